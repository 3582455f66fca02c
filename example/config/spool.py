"""kombu's filesystem transport, made fit for several thousand messages between busy processes."""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):
    """A channel whose messages appear in the folder whole, and which looks into the folder once for many of them.

    The original writes under the final name, so a worker that looks at that moment reads an empty message and fails;
    and it lists and sorts the whole folder for each message, which a long queue makes slow.
    """

    _listed: deque[str] = deque()  # names not yet tried, oldest first; shared, as the folder is

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        folder = Path(self.data_folder_out)
        name = f"{time.time_ns()}_{uuid.uuid4()}.{queue}.msg"
        draft = folder / f"{name}.draft"
        draft.write_text(dumps(payload))
        draft.rename(folder / name)

    def _get(self, queue: str) -> Any:
        folder = Path(self.data_folder_in)
        if not self._listed:
            self._listed.extend(sorted(os.listdir(folder)))
        while self._listed:
            name = self._listed.popleft()
            if not name.endswith(f".{queue}.msg"):
                continue
            payload = take(folder / name)
            if payload is not None:
                return loads(payload)
        raise Empty


def take(message: Path) -> str | None:
    """Remove a message and return it, or None when another process was faster."""
    taken = message.with_suffix(".taken")
    try:
        message.rename(taken)
    except FileNotFoundError:
        return None
    payload = taken.read_text()
    taken.unlink()
    return payload


class Transport(filesystem.Transport):
    """The transport to name in ``broker_transport``."""

    Channel = Channel
