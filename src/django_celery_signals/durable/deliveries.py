"""The relay's statements: what is due, claimed, published, lost; each one short, and safe beside any number of others.

What every run executes is in ``working``. ``due_at`` always means "when the relay must look"; null: it need not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any

from django.apps import apps
from django.db import connections
from django.db.models import F, Func, IntegerField, Q

from .clock import In, by_index, byte_length, from_now
from .pauses import PARKED
from .rows import STEP, State, new_token, options_of
from .texts import LARGE, texts_for
from .working import WorkQuerySet

CRASH_BUDGET = 5  # runs that may end without a word before a delivery is failed
SWEPT_AFTER, MOST_SENDS = 5.0, 9  # seconds, times 2 for every publication: how old "sent" must be to count as lost
UNPROBED_AFTER = 900.0  # the same where no probe can tell, for the route names no queue


@dataclass(slots=True)
class Due:
    """What a relay must know of a delivery; of an instance of the model it would be a small part."""

    pk: int
    event_id: str
    receiver: str
    signal: str
    summary: str
    lane: str | None
    slot: str | None
    folds: bool
    token: int
    attempts: int
    crashes: int
    reruns: int
    options: Any  # as the database has them, until it is made
    created_at: datetime

    def __post_init__(self) -> None:
        """Read the options."""
        self.options = options_of(self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A batch of deliveries that one relay publishes."""

    claim: int
    rows: Sequence[Any]  # Due, or of Delivery without its payload
    began: float  # by the monotonic clock, before its time began to run


def deliveries(using: str) -> DeliveryQuerySet:
    """Return the deliveries in a database; by the registry, for models cannot be imported before it is there."""
    return DeliveryQuerySet(apps.get_model("django_celery_signals", "Delivery"), using=using)


class DeliveryQuerySet(WorkQuerySet):
    """Deliveries, and what can be done with them; every verb works on the rows chosen so far."""

    # What the relay does -----------------------------------------------------------------------------------------

    def claim(self, limit: int, grace: float) -> Claimed:
        """Take what is due for publication; whoever dies with it leaves it due again after ``grace`` seconds."""
        claim, began = new_token(), time.monotonic()
        if (text := texts_for(connections[self.db]).claim) and not self.query.where:
            rows = self._claimed_at_once(text, claim, limit, grace)
            return Claimed(claim=claim, rows=rows, began=began)
        with self.due(State.READY).held(limit) as ids:
            mine = self.filter(pk__in=ids, state=State.READY, due_at__lte=In(0))
            mine.update(claim=claim, due_at=In(grace), sent_at=In(0))
        mine = self.claimed(claim, ids).defer(*LARGE).order_by("pk")
        return Claimed(claim=claim, rows=list(mine), began=began)

    def _claimed_at_once(self, text: str, claim: int, limit: int, grace: float) -> list[Due]:
        connection = connections[self.db]
        (now, _), (due, moment) = from_now(connection, 0), from_now(connection, grace)
        sql, params = text.format(now=now, due=due), (limit, claim, *moment)
        rows = self._surely(lambda: self._fetch(sql, params))
        return sorted((Due(*row) for row in rows), key=attrgetter("pk"))

    def sizes(self, ids: Sequence[int]) -> dict[int, int]:
        """Return the bytes of deliveries' payloads, without reading them."""
        size: Any = Func(F("payload"), function=byte_length(connections[self.db]), output_field=IntegerField())
        return dict(self.filter(pk__in=ids).values_list("pk", size))

    def queues(self) -> list[str]:
        """Return the names of queues with deliveries in them."""
        return self._each("queue", State.SENT)

    def renew(self, claim: int, ids: Iterable[int], grace: float) -> int:
        """Keep what was claimed for so many seconds more, but for what another transaction has its hands on."""
        ids = list(ids)
        with self.claimed(claim, ids).held(len(ids)) as mine:
            return self.claimed(claim, mine).update(due_at=In(grace))

    def mark(self, claim: int, ids: Iterable[int], queue: str) -> int:
        """Note what the broker has confirmed."""
        ids = list(ids)
        if ids and (text := texts_for(connections[self.db]).mark) and not self.query.where:
            return self._surely(lambda: self._execute(text, (queue, ids, claim)))
        return self.claimed(claim, ids).update(
            state=State.SENT, due_at=None, claim=None, queue=queue, sends=F("sends") + 1
        )

    def release(self, claim: int, ids: Iterable[int], seconds: float = 0, *, counted: bool = False) -> int:
        """Give claimed deliveries back, to be published in so many seconds."""
        counts: dict[str, Any] = {"reruns": F("reruns") + 1} if counted else {}
        return self.claimed(claim, ids).update(due_at=In(seconds), claim=None, sent_at=None, **counts)

    def park_claimed(self, claim: int, ids: Iterable[int]) -> int:
        """Lay aside what was claimed for receivers that are paused."""
        return self.claimed(claim, ids).update(**PARKED)

    def parked(self) -> list[str]:
        """Return the receivers of paused deliveries."""
        return self._each("receiver", State.PAUSED)

    def _each(self, column: str, state: State) -> list[str]:
        """Return the texts that a column has in a state, hopping through its index: it may hold a million."""
        found: list[str] = []
        rows = self.filter(state=state).order_by(column).values_list(column, flat=True)
        while text := rows.filter(**{f"{column}__gt": found[-1] if found else ""}).first():
            found.append(str(text))
        return found

    def unpark(self, receiver: str, limit: int) -> int:
        """Have deliveries of a receiver published that were paused, the oldest first."""
        with self.filter(state=State.PAUSED, receiver=receiver).order_by("pk").held(limit) as ids:
            return self.filter(pk__in=ids, state=State.PAUSED).update(state=State.READY, due_at=In(0))

    def put_back(self, pk: int, token: int) -> int:
        """Leave to the relay what its sender could not publish."""
        return self.put_back_all([pk], [token])

    def put_back_all(self, ids: Sequence[int], tokens: Sequence[int]) -> int:
        """Do so with several, some of which may be under way by now; nobody guesses a token, so pairs need no check."""
        found = 0
        for start in range(0, len(ids), STEP):
            part = slice(start, start + STEP)
            mine = self.filter(pk__in=ids[part], token__in=tokens[part], state=State.SENT)
            found += mine.update(state=State.READY, due_at=In(0), sent_at=None, sends=0)
        return found

    def expire(self, limit: int) -> tuple[int, list[Any]]:
        """Count a crash for every run whose lease has ended; of several together nobody knows which it was.

        Returns:
            How many will run again, and the rows that have crashed too often, which are left as they are.
        """
        with self.due(State.RUNNING).held(limit) as ids:
            expired = self.filter(pk__in=ids, state=State.RUNNING, due_at__lte=In(0))
            count = expired.filter(claim__isnull=False).rerun()
            spent = list(expired.filter(crashes__gte=CRASH_BUDGET - 1).defer(*LARGE))
            again = expired.filter(crashes__lt=CRASH_BUDGET - 1)
            for crashes in range(CRASH_BUDGET - 1):  # 1, 2, 4, 8 seconds
                count += again.filter(crashes=crashes).update(
                    state=State.READY, crashes=crashes + 1, due_at=In(2**crashes), claim=None, sends=0
                )
        return count, spent

    def sweep(self, queue: str, seen: Any, limit: int) -> int:
        """Publish again what was sent to a queue before a probe that has arrived, and was not opened.

        What was repeated already waits longer: a worker may hold messages that it has no room to run.
        """
        lost = self.filter(_old(SWEPT_AFTER), state=State.SENT, queue=queue, sent_at__lt=seen)
        return self._again(lost.order_by("sent_at"), limit)

    def sweep_unprobed(self, limit: int) -> int:
        """Publish again, after a long time, what was sent where no probe can follow."""
        lost = self.filter(_old(UNPROBED_AFTER), state=State.SENT, queue="", sent_at__lt=In(-UNPROBED_AFTER))
        return self._again(lost.order_by("sent_at"), limit)

    def _again(self, rows: DeliveryQuerySet, limit: int) -> int:
        with rows.held(limit) as ids:
            return self.filter(pk__in=ids, state=State.SENT).update(state=State.READY, due_at=In(0), claim=None)

    def purge(self, limit: int) -> int:
        """Delete what was kept long enough after success, and erase what failed long ago but for its cause."""
        with self.due(State.DONE).held(min(limit, STEP)) as done:
            deleted = self.filter(pk__in=done, state=State.DONE).erase() if done else 0
        with self.due(State.FAILED).held(limit) as failed:
            return deleted + self.filter(pk__in=failed, state=State.FAILED).update(due_at=None, **ERASED)

    def lag(self) -> float:
        """Return the seconds since the oldest delivery that could run was due, by the database's clock.

        That is one that a relay should have published, that a worker should have opened, or whose worker is gone. By
        indexes alone: two looks, and one for each queue.
        """
        connection, now = connections[self.db], In(0)
        with by_index(connection, self.model, "dcs_delivery_due"):
            found = [self.due(state).values_list("due_at", now).first() for state in (State.READY, State.RUNNING)]
        for queue in ("", *self.queues()):
            sent = self.filter(state=State.SENT, queue=queue, sent_at__isnull=False).order_by("sent_at")
            with by_index(connection, self.model, "dcs_delivery_sent"):
                found.append(sent.values_list("sent_at", now).first())
        return max((self._between(*moments) for moments in found if moments is not None), default=0.0)

    # What people do ----------------------------------------------------------------------------------------------

    def failed(self) -> DeliveryQuerySet:
        """Return those that were given up."""
        return self.filter(state=State.FAILED)

    def retry(self, each: Callable[[int], None] = lambda count: None) -> int:
        """Let failed deliveries start anew; return how many. Those whose payload is erased stay as they are.

        One that blocks its key is the next of it; one that was parked waits for its turn, before all younger ones.

        Args:
            each: told after each step how many more are done.
        """
        anew = {"state": State.READY, "due_at": In(0), "finished_at": None, "claim": None}
        counts = dict.fromkeys(("attempts", "crashes", "reruns", "sends"), 0)
        kept = self.filter(payload__isnull=False)
        return _sum((rows.update(**anew, **counts) for rows in kept._failed_in_steps()), each)

    def discard(self, each: Callable[[int], None] = lambda count: None) -> int:
        """Delete failed deliveries, and let those go on that waited behind them; return how many were deleted.

        Args:
            each: told after each step how many more are done.
        """
        return _sum((rows.drop() for rows in self._failed_in_steps()), each)

    def _failed_in_steps(self) -> Iterator[DeliveryQuerySet]:
        """Yield them in parts, by their keys: where no index leads to them, a statement would lock all it looks at."""
        return self.failed().in_steps(list(self.failed().values_list("pk", flat=True)))


def _sum(steps: Iterator[int], each: Callable[[int], None]) -> int:
    total = 0
    for count in steps:
        total += count
        each(count)
    return total


def _old(seconds: float) -> Q:
    """Choose what was sent so long ago, and twice as long for each time that it was sent before, up to a bound."""
    old = Q(sends__gt=MOST_SENDS, sent_at__lt=In(-seconds * 2**MOST_SENDS))
    for sends in range(MOST_SENDS + 1):
        old |= Q(sends=sends, sent_at__lt=In(-seconds * 2**sends))
    return old


#: What a failed delivery loses in time: whatever may hold a value of the sending.
ERASED = {"payload": None, "key": None, "error_message": None, "traceback": None}
