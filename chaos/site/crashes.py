"""Die or stop at a named place, when the rig has armed that."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

from django.conf import settings

from chaos.points import take

FOLDER = Path(settings.CHAOS.get("points", "/nonexistent"))


def asked(what: str) -> bool:
    """Tell whether the rig wants all to behave in some way."""
    return (FOLDER / what).exists()


def reached(point: str) -> None:
    """Die or stop here, if that is asked for."""
    if not asked(point) or (how := take(FOLDER, point)) is None:
        return
    signal.pthread_kill(threading.get_ident(), how)
    while how == signal.SIGKILL:
        time.sleep(1)
