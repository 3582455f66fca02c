"""Crash points: named places in the library's code at which the first process to come dies or stops, when armed."""

from __future__ import annotations

import signal
from pathlib import Path

# No points, but names of files that say how all are to behave while they are there:
TWICE = "twice"  # everything is published twice
LONG = "long"  # every receiver takes longer than a lease

SENDER = ("inserted", "committed", "handed over")
RELAY = ("claimed", "published", "marked")
WORKER = ("opened", "folded", "in the body", "with a lock", "after the body", "completed", "before the next", "over")


def arm(folder: Path, point: str, how: signal.Signals) -> None:
    """Let the next process that comes to a point die or stop there."""
    (folder / point).write_text(str(how.value))


def disarm(folder: Path, point: str) -> bool:
    """Take it back; tell whether nobody came."""
    try:
        (folder / point).unlink()
    except FileNotFoundError:
        return False
    return True


def who(folder: Path, point: str) -> int | None:
    """Return the process that died or stopped at a point."""
    path = folder / f"{point}.taken"
    text = path.read_text() if path.exists() else ""
    return int(text) if text else None
