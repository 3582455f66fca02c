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

    pid: int
    attempt: int
    started: float
    ended: float | None = None
    raised: bool = False  # on purpose: it is to run again


@dataclass(kw_only=True)
class Ledger:
    """All that was noted."""

    attempted: set[int] = field(default_factory=set)
    committed: dict[int, float] = field(default_factory=dict)  # number of an event -> when
    rolled_back: set[int] = field(default_factory=set)
    runs: dict[int, list[Run]] = field(default_factory=lambda: defaultdict(list))


def read(folder: Path) -> Ledger:
    """Read all files."""
    ledger = Ledger()
    for path in folder.glob("sender-*.log"):
        for word, number, *_, moment in _lines(path):
            if word == "attempt":
                ledger.attempted.add(int(number))
            elif word == "committed":
                ledger.committed[int(number)] = float(moment)
            else:
                ledger.rolled_back.add(int(number))
    for path in folder.glob("receiver-*.log"):
        open_runs: dict[int, Run] = {}
        for word, number, attempt, moment in _lines(path):
            pid = int(path.name.split("-")[1])
            if word == "start":
                if (cut_off := open_runs.pop(int(number), None)) is not None:
                    ledger.runs[int(number)].append(cut_off)
                open_runs[int(number)] = Run(pid=pid, attempt=int(attempt), started=float(moment))
            elif (run := open_runs.pop(int(number), None)) is not None:
                ledger.runs[int(number)].append(replace(run, ended=float(moment), raised=word == "raised"))
        for number, run in open_runs.items():
            ledger.runs[number].append(run)
    return ledger


def committed_so_far(folder: Path) -> int:
    """Return how many events are known to be committed."""
    return sum(path.read_bytes().count(b"committed") for path in folder.glob("sender-*.log"))


def _lines(path: Path) -> Iterator[list[str]]:
    """Yield the words of each whole line: a process may have been killed in the middle of one."""
    *whole, _ = path.read_text().split("\n")
    yield from (line.split() for line in whole)
