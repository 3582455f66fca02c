"""Counts what the library's own signals tell: in memory, in a few steps, and without a query."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Any

from celery.signals import worker_process_shutdown
from django.dispatch import Signal

from .. import conf
from ..durable import upkeep as relays
from ..exceptions import UnknownReceiver, WorkerLost
from ..signals import delivery_failed, event_sent, receiver_discarded, receiver_failed, receiver_succeeded
from . import upkeep
from .flushing import Counts, Flusher

SENT, SUCCEEDED, FAILED, RETRIED, DISCARDED = range(5)  # places among the figures
LONGEST_FLUSH = 5.0  # seconds for which a fork waits for it, at most

counts = Counts()
flusher = Flusher(counts)


def _count(using: str | None, receiver: str, figure: int, runtime: float = 0.0) -> None:
    if using is not None and counts.add(using, receiver, figure, runtime):
        flusher.wake()


def _sent(sender: str, using: str | None, **_: Any) -> None:
    _count(using, sender, SENT)


def _succeeded(sender: str, event: Any, runtime: float, **_: Any) -> None:
    _count(event.using, sender, SUCCEEDED, runtime)


def _failed(sender: str, using: str | None, will_retry: bool, **_: Any) -> None:
    _count(using, sender, RETRIED if will_retry else FAILED)


def _discarded(sender: str, event: Any, **_: Any) -> None:
    _count(event.using, sender, DISCARDED)


def _given_up(sender: str, using: str, error: Exception, **_: Any) -> None:
    """Count what a relay gives up; of what a worker does, the run that failed was told already."""
    if isinstance(error, (UnknownReceiver, WorkerLost)):
        _count(using, sender, FAILED)


LISTENERS: dict[Signal, Callable[..., None]] = {
    event_sent: _sent,
    receiver_succeeded: _succeeded,
    receiver_failed: _failed,
    receiver_discarded: _discarded,
    delivery_failed: _given_up,
}


def connect() -> None:
    """Let this process count, and its relays look after the table; with ``STATISTICS_DAYS`` at 0 they only empty it."""
    if conf.get().STATISTICS_DAYS:
        for signal, listener in LISTENERS.items():
            signal.connect(listener)
        worker_process_shutdown.connect(_finish, dispatch_uid=f"{__name__}.finish")
        atexit.unregister(_finish)
        atexit.register(_finish)
        relays.further[upkeep.note] = upkeep.NOTE_EVERY
    relays.further[upkeep.purge] = upkeep.PURGE_EVERY


def _finish(**_: Any) -> None:
    flusher.finish()


# A child has no thread, and what its parent has counted is the parent's to write. It is not forked while the thread has
# SQLite's locks, which it would inherit locked.

_held: list[bool] = []


def _wait() -> None:
    _held.append(flusher.busy.acquire(timeout=LONGEST_FLUSH))


def _go_on() -> None:
    if _held.pop():
        flusher.busy.release()


def _begin_anew() -> None:
    global counts, flusher
    _held.clear()
    counts = Counts()
    flusher = Flusher(counts)


os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_begin_anew)
