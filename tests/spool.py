"""kombu's filesystem transport, whose messages appear in the folder when they are whole.

The original writes under the final name: a worker that looks at that moment reads half a message, or none, and ends.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps


class Channel(filesystem.Channel):
    """A channel that writes a message aside, and gives it its name at the end."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        message = Path(self.data_folder_out) / f"{time.time_ns()}_{uuid.uuid4()}.{queue}.msg"
        draft = message.with_suffix(".draft")
        draft.write_text(dumps(payload))
        draft.rename(message)


class Transport(filesystem.Transport):
    """The transport to name in ``broker_transport``."""

    Channel = Channel
