"""The lease on a delivery that is running: renewed by a thread of the worker's process, for as long as that lives."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from django.db import Error, connections

from .clock import In
from .deliveries import DeliveryQuerySet, deliveries
from .rows import State
from .trouble import is_transient

logger = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two tries while the database is away
PATIENCE = 3600.0  # seconds for which a worker waits for a database that is away, to note how a run has ended


def surely(using: str, receiver: str, statement: Callable[[], int], *, patience: float | None = None) -> int:
    """Run a statement until the database answers, past the lease, too: who cannot ask it either ends no run.

    Args:
        using: alias of the database.
        receiver: name of the task of which it notes how it ended, for the log.
        statement: returns how many deliveries it changed; behind the fence, so it may run again.
        patience: seconds to wait for the database, ``PATIENCE`` unless told.

    Returns:
        What the statement returned; 0 when there was no answer.
    """
    connection = connections[using]
    until = time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        try:
            return statement()
        except Error as error:
            if connection.in_atomic_block or not is_transient(error) or time.monotonic() > until:
                logger.exception("How %s ended could not be noted; the lease will end.", receiver)
                return 0
        connection.close()
        time.sleep(PAUSE)


@dataclass(slots=True, kw_only=True)
class Lease:
    """What a worker holds while a receiver runs: the row, by the token that only the last opening knows."""

    using: str
    pk: int
    token: int
    seconds: float
    lost: bool = False  # whether another run has the delivery, or nobody
    ending: bool = False  # whether the worker itself is about to give it up
    renew_at: float = field(default_factory=time.monotonic)

    def row(self) -> DeliveryQuerySet:
        """Return the delivery, if it is still this worker's: every statement behind the fence begins with it."""
        return deliveries(self.using).filter(pk=self.pk, token=self.token, state=State.RUNNING)

    def postpone(self) -> None:
        """Plan the next renewal: past a third of the lease."""
        self.renew_at = time.monotonic() + self.seconds / 3

    def renew(self) -> None:
        """Begin the lease anew."""
        try:
            if self.row().update(due_at=In(self.seconds)):
                self.postpone()
                return
        except Exception as error:  # away, or on SQLite locked by the receiver itself, which keeps everyone else away
            logger.info("The lease on delivery %s of %r could not be renewed: %r", self.pk, self.using, error)
            self.renew_at = time.monotonic() + PAUSE
            return
        self.lost = True
        if self.ending:  # the renewal met the statement by which the worker itself ended the run
            return
        logger.warning(
            "The lease on delivery %s of %r is lost: the receiver still runs here, but what it does there will not be "
            "committed. It was stopped for longer than LEASE (%g s), or the delivery was discarded.",
            *(self.pk, self.using, self.seconds),
        )

    def is_mine(self) -> bool:
        """Ask the database, past the receiver's own transaction, which may see the past."""
        if self.lost:
            return False
        answers: list[bool] = []
        thread = threading.Thread(target=_elsewhere, args=(lambda: answers.append(self.row().exists()),))
        thread.start()
        thread.join()
        return bool(answers and answers[0])


def _elsewhere(ask: Callable[[], None]) -> None:
    """Ask in a connection of the thread's own."""
    try:
        ask()
    except Error as error:
        logger.info("Whether a lease still holds could not be asked: %s", error)
    finally:
        connections.close_all()


class Keeper:
    """The thread that renews the leases in one database; it sleeps while no receiver runs for a third of its lease."""

    def __init__(self) -> None:
        """Begin without a thread."""
        self._changed = threading.Condition()
        self._leases: list[Lease] = []
        self._runs = False
        self._wakes_at: float | None = None  # when the thread looks again by itself; None: when it is told

    def keep(self, *leases: Lease) -> None:
        """Renew leases from now on."""
        if not leases:
            return
        for lease in leases:
            lease.postpone()
        with self._changed:
            self._leases.extend(leases)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="django-celery-signals-leases", daemon=True).start()
            if self._wakes_at is None or min(lease.renew_at for lease in leases) < self._wakes_at:  # not for every run
                self._changed.notify()

    def let_go(self, *leases: Lease) -> None:
        """Renew them no more."""
        with self._changed:
            gone = set(map(id, leases))
            self._leases = [lease for lease in self._leases if id(lease) not in gone]

    def _run(self) -> None:
        while True:
            due = self._due()
            if not _renewed_together(due):
                for lease in due:
                    lease.renew()
            if due:
                _close(due[0].using)  # kept for a third of a lease, it would only count against the server's limit

    def _due(self) -> list[Lease]:
        """Return what is to be renewed now; if there is nothing, wait until there may be."""
        with self._changed:
            now = time.monotonic()
            self._leases = [lease for lease in self._leases if not lease.lost]
            due = [lease for lease in self._leases if lease.renew_at <= now]
            if not due:
                self._wakes_at = min((lease.renew_at for lease in self._leases), default=None)
                self._changed.wait(None if self._wakes_at is None else self._wakes_at - now)
                self._wakes_at = None
            return due


def _renewed_together(leases: Sequence[Lease]) -> bool:
    """Renew several leases in one statement; False, when each is to be looked at."""
    if len(leases) < 2 or len({lease.seconds for lease in leases}) > 1:
        return False
    rows = deliveries(leases[0].using).running([one.pk for one in leases], [one.token for one in leases])
    try:
        renewed = rows.update(due_at=In(leases[0].seconds))
    except Exception as error:  # which of them it is about, each will say
        logger.info("%d leases in %r could not be renewed together: %r", len(leases), leases[0].using, error)
        return False
    if renewed == len(leases):
        for lease in leases:
            lease.postpone()
    return renewed == len(leases)


def _close(using: str) -> None:
    with suppress(Exception):  # what is broken may be too broken to be closed, and this thread must go on
        connections[using].close()


_keepers: dict[tuple[int, str], Keeper] = {}


def keeper(using: str) -> Keeper:
    """Return what keeps this process's leases in a database.

    One for each: a database that does not answer must cost no lease in another. A forked child has its parent's
    keepers, but not their threads.
    """
    return _keepers.setdefault((os.getpid(), using), Keeper())
