"""Crash points: named places in the library's code at which the first process to come dies or stops, when armed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# No points, but names of files that say how all are to behave while they are there:
TWICE = "twice"  # everything is published twice
LONG = "long"  # every receiver takes as long as that file is there

SENDER = ("inserted", "committed", "handed over")
RELAY = ("claimed", "published", "marked")
WORKER = ("opened", "folded", "in the body", "with a lock", "after the body", "completed", "before the next", "over")


def arm(folder: Path, point: str, how: signal.Signals) -> None:
    """Let the next process that comes to a point die or stop there."""
    for taken in folder.glob(f"{point}.taken.*"):
        taken.unlink()
    new = folder / f"{point}.new"
    new.write_text(str(how.value))
    new.rename(folder / point)


def take(folder: Path, point: str) -> int | None:
    """Return the signal that this process is to have at a point, if that is armed and nobody else was first."""
    mine = folder / f"{point}.taken.{os.getpid()}"
    try:
        (folder / point).rename(mine)
    except FileNotFoundError:
        return None
    return int(mine.read_text())


def disarm(folder: Path, point: str) -> int | None:
    """Take it back; return the process that has died or stopped there, if one has."""
    (folder / point).unlink(missing_ok=True)
    return who(folder, point)


def who(folder: Path, point: str) -> int | None:
    """Return the process that died or stopped at a point."""
    for taken in folder.glob(f"{point}.taken.*"):
        return int(taken.name.rpartition(".")[2])
    return None
