"""The thread that writes what a process has counted, on connections of its own: no request, and no receiver, waits."""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ..durable.relay import keeping
from .table import EVERY_RECEIVER, SUMS, Row, add

logger = logging.getLogger(__name__)

EVERY = 20.0  # seconds between two writings of a busy process, on the average
PATIENCE = 2.0  # seconds for which the end of a process waits for the last one, at most
MOST_MINUTES = 60  # that are kept while a database does not take them

Key = tuple[str, str, int]  # database, receiver, minute
Taken = dict[Key, list[float]]  # figures, in the order of ``SUMS``

#: Connections of such threads. A forked child frees what its parent's threads had of their own, and MySQL's client then
#: says goodbye to the server that the parent is talking to.
_connections: list[BaseDatabaseWrapper] = []


class Counts:
    """Figures in memory, of the last ``MOST_MINUTES`` at the most."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.RLock()  # a signal's handler may count while its own thread does
        self._figures: Taken = {}
        self._newest = 0  # minute

    def add(self, using: str, receiver: str, figure: int, runtime: float = 0.0) -> bool:
        """Count something that has just happened; tell whether it is the first of its minute and receiver.

        Args:
            using: alias of the database that it belongs to.
            receiver: name of the task.
            figure: which of ``SUMS``, by its place.
            runtime: seconds.
        """
        key = using, receiver[:255], int(time.time()) // 60
        with self._lock:
            figures = self._figures.get(key)
            is_new = figures is None
            if figures is None:
                figures = self._begin(key)
            figures[figure] += 1
            if runtime:
                figures[-1] += runtime
        return is_new

    def _begin(self, key: Key) -> list[float]:
        if key[2] > self._newest:
            self._newest = key[2]
            self._figures = {key: figures for key, figures in self._figures.items() if self._is_kept(key)}
        figures = self._figures[key] = [0] * len(SUMS)
        return figures

    def _is_kept(self, key: Key) -> bool:
        return key[2] > self._newest - MOST_MINUTES

    def take(self) -> Taken:
        """Return all, and begin with none."""
        with self._lock:
            taken, self._figures = self._figures, {}
        return taken

    def put_back(self, taken: Taken) -> None:
        """Count once more what a database did not take, but for what is too old."""
        with self._lock:
            for key, figures in taken.items():
                if self._is_kept(key):
                    self._figures[key] = _sum(self._figures.get(key, _NONE), figures)


_NONE = (0,) * len(SUMS)


def _sum(these: Sequence[float], those: Sequence[float]) -> list[float]:
    return [sum(both) for both in zip(these, those, strict=True)]


def rows_of(taken: Taken) -> list[Row]:
    """Return what is to be written to a database: the figures of each receiver, and in each minute of all together."""
    of_all: dict[int, Sequence[float]] = {}
    for (_, _, minute), figures in taken.items():
        of_all[minute] = _sum(of_all.get(minute, _NONE), figures)
    every = [(EVERY_RECEIVER, minute, figures) for minute, figures in of_all.items()]
    return [*every, *((receiver, minute, figures) for (_, receiver, minute), figures in taken.items())]


class Flusher:
    """Writes counts while there are any. It begins with the first, and sleeps for as long as nothing is counted."""

    def __init__(self, counts: Counts) -> None:
        """Begin without a thread."""
        self.counts = counts
        self.busy = threading.Lock()  # held while it writes to SQLite, whose locks are the whole process's
        self._starting = threading.RLock()
        self._thread: threading.Thread | None = None
        self._counted, self._ended = threading.Event(), threading.Event()
        self._failing: set[str] = set()  # databases of which that is known

    def wake(self) -> None:
        """See to it that what is counted will be written. Nothing is while Django runs tests, and nothing is kept."""
        if is_testing():
            self.counts.take()
            return
        with self._starting:
            if self._thread is None:
                self._start()
        self._counted.set()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="django-celery-signals-statistics", daemon=True)
        with suppress(RuntimeError):  # of a process that ends, or may have no further thread
            thread.start()
            self._thread = thread

    def finish(self) -> None:
        """Write what is left, and wait for that, but not for long."""
        self._ended.set()
        self._counted.set()
        if self._thread is not None:
            self._thread.join(PATIENCE)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._counted.wait()
            self._counted.clear()
            is_last = self._ended.wait(EVERY * random.uniform(0.5, 1.5))  # noqa: S311 - not all at the same time
            self.flush()

    def flush(self) -> None:
        """Write what has been counted to each database that keeps deliveries; what one does not take is kept a while.

        The thread's own connections are used, and closed. Never an error.
        """
        taken = self.counts.take()
        try:
            used = {alias for alias, _, _ in taken}
            for alias in used.intersection(keeping() if used else ()):
                self._write(alias, {key: figures for key, figures in taken.items() if key[0] == alias})
        except Exception:
            logger.exception("The figures of the last minutes are lost.")

    def _write(self, alias: str, taken: Taken) -> None:
        try:
            with self._held(alias):
                add(alias, rows_of(taken))
            self._failing.discard(alias)
        except Exception as error:
            if alias not in self._failing:
                logger.warning("Figures of each minute cannot be written to %r for now: %s", alias, error)
            self._failing.add(alias)
            self.counts.put_back(taken)
            self._counted.set()
        with suppress(Exception):  # what is broken may be too broken to be closed
            connections[alias].close()

    def _held(self, alias: str) -> AbstractContextManager[object]:
        connection = connections[alias]
        if connection not in _connections:
            _connections.append(connection)
        return self.busy if connection.vendor == "sqlite" else nullcontext()


def is_testing() -> bool:
    """Tell whether Django runs tests in this process, whose databases are no business of a thread's."""
    utils = sys.modules.get("django.test.utils")
    return hasattr(getattr(utils, "_TestState", None), "saved_data")
