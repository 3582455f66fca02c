"""What happened, in files that only grow: written past the database and the broker, and read when all is over."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path


class Writer:
    """Appends lines; each process to a file of its own."""

    def __init__(self, folder: Path, role: str) -> None:
        """Open the file."""
        path = folder / f"{role}-{os.getpid()}-{time.time_ns()}.log"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, *words: object, safely: bool = False) -> None:
        """Append a line, with the time; ``safely``: return when it is on the disk."""
        line = " ".join(map(str, (*words, f"{time.time():.6f}")))
        os.write(self._file, f"{line}\n".encode())
        if safely:
            os.fdatasync(self._file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a receiver, as it says itself."""

    name: str  # which its effect has as well
    attempt: int  # retries before it
    started: float
    ended: float | None = None
    raised: bool = False  # on purpose: it is to run again


@dataclass(kw_only=True)
class Ledger:
    """All that was noted; of events by their numbers."""

    attempted: dict[int, float] = field(default_factory=dict)  # when
    committed: dict[int, float] = field(default_factory=dict)
    rolled_back: set[int] = field(default_factory=set)
    runs: dict[int, list[Run]] = field(default_factory=lambda: defaultdict(list))


def read(folder: Path) -> Ledger:
    """Read all files."""
    ledger = Ledger()
    for path in folder.glob("sender-*.log"):
        for word, number, moment in _lines(path):
            if word == "rolled_back":
                ledger.rolled_back.add(int(number))
            else:
                {"attempt": ledger.attempted, "committed": ledger.committed}[word][int(number)] = float(moment)
    for path in folder.glob("receiver-*.log"):
        for event, run in _runs(path).values():
            ledger.runs[event].append(run)
    for runs in ledger.runs.values():
        runs.sort(key=lambda run: run.started)
    return ledger


def _runs(path: Path) -> dict[str, tuple[int, Run]]:
    """Return the runs of one process, by their names, each with the number of its event."""
    runs: dict[str, tuple[int, Run]] = {}
    for word, number, attempt, name, moment in _lines(path):
        if word == "start":
            runs[name] = int(number), Run(name=name, attempt=int(attempt), started=float(moment))
        else:
            ended = replace(runs[name][1], ended=float(moment), raised=word == "raised")
            runs[name] = int(number), ended
    return runs


def committed_so_far(folder: Path) -> int:
    """Return how many events are known to be committed."""
    return sum(path.read_bytes().count(b"committed") for path in folder.glob("sender-*.log"))


def _lines(path: Path) -> Iterator[list[str]]:
    """Yield the words of each whole line: a process may have been killed in the middle of one."""
    *whole, _ = path.read_text().split("\n")
    yield from (line.split() for line in whole)
