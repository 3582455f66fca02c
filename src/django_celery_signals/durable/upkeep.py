"""What the relay does besides publishing: end dead runs, find what the broker lost, and keep the table small."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from celery import Celery
from django.db import Error, connections

from .. import conf
from ..event import Event
from ..exceptions import DecodeError, UnknownReceiver, WorkerLost
from ..plurals import quantity
from ..wire import parse
from .clock import In
from .deliveries import CRASH_BUDGET, deliveries
from .failing import give_up
from .pauses import paused
from .probe import Probes
from .rows import State

logger = logging.getLogger(__name__)

BATCH = 1000  # rows of one statement
UNPARKED = 250  # deliveries of a receiver that are brought back at once: fewer than a relay publishes meanwhile
LANES = 900  # that one statement walks through
EXPIRE_EVERY, PAUSES_EVERY, PROBE_EVERY, STRAYS_EVERY, PURGE_EVERY = 1.0, 1.0, 2.0, 5.0, 10.0  # seconds
LOOK = 0.5  # seconds that one look for strays lasts
LONG_LOCK = 0.1  # seconds for which SQLite's lock may be waited for without a thought
UNKNOWN_WAIT, UNKNOWN_TRIES = 60.0, 60  # seconds, times: an hour, for a deploy may be under way

#: What else is done for a database, given its alias, and every how many seconds; it tells whether there is more. It has
#: to keep its errors to itself, for one that is raised keeps the relay from publishing.
further: dict[Callable[[str], bool], float] = {}


class Upkeep:
    """Looks after the deliveries of one database, now and then."""

    def __init__(self, app: Celery, using: str) -> None:
        """Begin carefully: while there was no relay, there may have been no database either."""
        self.app, self.using = app, using
        self._probes = Probes(app, using)
        self._every: dict[Callable[[], bool], float] = {
            self.expire: EXPIRE_EVERY,
            self._probes.work: PROBE_EVERY,
            self.lead_strays: STRAYS_EVERY,
            self.purge: PURGE_EVERY,
            self.look_at_pauses: PAUSES_EVERY,
            **{partial(act, using): seconds for act, seconds in further.items()},
        }
        self.paused: frozenset[str] = frozenset()  # receivers, as of a moment ago
        self._lane = ""  # the last one that was looked at
        self._next = dict.fromkeys(self._every, 0.0)
        self.be_careful()

    def work(self) -> None:
        """Do what its time has come for.

        Raises:
            django.db.Error: when the database does not answer.
        """
        now = time.monotonic()
        for act in [act for act, at in self._next.items() if at <= now]:
            self._next[act] = now + self._every[act]
            if self._do(act):  # there is more of it
                self._next[act] = 0.0

    def _do(self, act: Callable[[], bool]) -> bool:
        try:
            return act()
        except Error:
            raise
        except Exception:  # one row that cannot be looked after must not keep all the others from being published
            logger.exception("The relay could not look after all of %r.", self.using)
            return False

    def be_careful(self) -> None:
        """End no run for a whole lease: the database was away, and living workers could not renew theirs."""
        self._next[self.expire] = time.monotonic() + conf.get().LEASE

    def expire(self) -> bool:
        """Let runs whose worker is dead begin again, or give up on a receiver that kills its workers."""
        if not self._may_expire():
            return False
        again, spent = deliveries(self.using).expire(BATCH)
        if again:
            whose = "its worker" if again == 1 else "their workers"
            logger.warning("%s in %r will run again: %s ended without a word.", quantity(again), self.using, whose)
        for row in spent:
            error = WorkerLost(
                f"{row.receiver}: the workers of {CRASH_BUDGET} runs ended without a word, as they do when a receiver "
                "exhausts the memory, is killed by a time limit, or ends the process."
            )
            fence = {"token": row.token, "state": State.RUNNING, "due_at__lte": In(0)}
            self._give_up(row, fence, error, crashes=CRASH_BUDGET)
        return again + len(spent) >= BATCH

    def _may_expire(self) -> bool:
        """Tell whether leases are over, and nothing kept their workers from renewing them: no slow database, no lock.

        Asked first, for a question that is answered late would find all of them over.
        """
        rows, began, patience = deliveries(self.using), time.monotonic(), conf.get().LEASE / 3
        if not rows.due(State.RUNNING).exists():
            return False
        if connections[self.using].vendor == "sqlite":
            rows.filter(pk=0).update(claim=None)  # changes nothing, but takes the one lock
            patience = LONG_LOCK
        if time.monotonic() - began <= patience:
            return True
        self.be_careful()
        return False

    def unknown(self, claim: int, rows: Sequence[Any]) -> None:
        """Wait for a process that has the task; after an hour, give up."""
        waiting = [row for row in rows if row.reruns < UNKNOWN_TRIES]
        deliveries(self.using).release(claim, [row.pk for row in waiting], UNKNOWN_WAIT, counted=True)
        for receiver, count in Counter(row.receiver for row in waiting).items():
            logger.warning("No task %r is known here; %s must wait for one.", receiver, quantity(count))
        for row in rows:
            if row.reruns < UNKNOWN_TRIES:
                continue
            error = UnknownReceiver(
                f"For an hour no relay knew the task {row.receiver!r}. If it was renamed, give the new one "
                f"former_names=[{row.receiver!r}] and retry; if it was removed, discard."
            )
            self._give_up(row, {"claim": claim, "state": State.READY}, error)

    def _give_up(self, row: Any, fence: dict[str, Any], error: Exception, **counts: Any) -> None:
        task: Any = self.app.tasks.get(row.receiver)
        chosen = deliveries(self.using).filter(pk=row.pk)
        given_up = give_up(chosen.filter(**fence), row, error, _event_of(chosen), task=task, **counts)
        if given_up and row.lane is not None:
            deliveries(self.using).pass_turn(row.lane)

    def lead_strays(self) -> bool:
        """Let those have their turn that were left behind by a process that died; the next look goes on from there."""
        rows, until = deliveries(self.using), time.monotonic() + LOOK
        while True:
            lanes, self._lane = rows.strays(self._lane, LANES)
            for lane in lanes:
                rows.pass_turn(lane)
            if not self._lane or time.monotonic() > until:
                return False

    def look_at_pauses(self) -> bool:
        """Learn which receivers are paused, and bring back in small steps what waits for one that is not."""
        self.paused = frozenset(paused(self.using))
        rows = deliveries(self.using)
        return sum(rows.unpark(receiver, UNPARKED) for receiver in rows.parked() if receiver not in self.paused) > 0

    def purge(self) -> bool:
        """Delete and erase in small steps."""
        purged = deliveries(self.using).purge(BATCH)
        if purged:
            logger.info("Purged %s in %r.", quantity(purged), self.using)
        return bool(purged)


def _event_of(row: Any) -> Event | None:
    """Read the event of a delivery; None when it is gone, erased or damaged."""
    try:
        return parse(row.values_list("payload", flat=True).first() or "").event
    except DecodeError:
        return None
