"""Die or stop at a named place, when the rig has armed that."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from django.conf import settings

FOLDER = Path(settings.CHAOS.get("points", "/nonexistent"))


def asked(what: str) -> bool:
    """Tell whether the rig wants all to behave in some way."""
    return (FOLDER / what).exists()


def reached(point: str) -> None:
    """Die or stop here, if that is asked for."""
    path = FOLDER / point
    if not path.exists():
        return
    try:
        how = int(path.read_text() or 0)
        path.unlink()  # one process can do that
    except (FileNotFoundError, ValueError):
        return
    (FOLDER / f"{point}.taken").write_text(str(os.getpid()))
    signal.pthread_kill(threading.get_ident(), how)
    while how == signal.SIGKILL:
        time.sleep(1)
