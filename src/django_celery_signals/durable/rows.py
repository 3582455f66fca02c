"""What all statements on deliveries share: the states, and how a statement is executed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from django.db import Error, connections, models, transaction

from .clock import In, by_index, lock_no_gaps
from .trouble import is_conflict

T = TypeVar("T")

CONFLICTS = 5  # times that a statement is repeated which has met another's
HEAVIEST = 8 * 1024 * 1024  # bytes of payloads that a worker has in memory at once, but for a single one's
STEP = 500  # rows that one statement deletes by their keys; of 1000 MariaDB makes a query that locks all rows


class State(models.IntegerChoices):
    """Where a delivery stands."""

    READY = 1, "ready"  # the relay publishes it when it is due
    SENT = 2, "sent"  # the broker has a message of it, or had
    RUNNING = 3, "running"  # a worker has opened it, and renews due_at
    FAILED = 4, "failed"  # given up, kept for people to look at
    DONE = 5, "done"  # succeeded, kept for as long as the receiver's retain= says
    PAUSED = 6, "paused"  # could run, but its receiver is paused; the relay has it back when that is over


def options_of(text: str) -> dict[str, Any]:
    """Read a delivery's options as a database has them that was asked past the model; most have none."""
    return {} if text == "{}" else json.loads(text)


def new_token() -> int:
    """Return a number nobody guesses, with room above it to count."""
    return int.from_bytes(os.urandom(8), "big") >> 4


class RowQuerySet(models.QuerySet[Any]):
    """Deliveries; every verb works on the rows chosen so far."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Read where is written: a replica may lag behind."""
        super().__init__(*args, **options)
        self._for_write = True

    def update(self, **changes: Any) -> int:
        """Change rows in one statement."""
        return self._surely(lambda: super(RowQuerySet, self).update(**changes))

    def erase(self) -> int:
        """Delete rows in one statement, past Django's signals: a receiver of every sender's would be told of itself."""
        return self._surely(lambda: self._raw_delete(self.db) or 0)

    def _surely(self, statement: Callable[[], T]) -> T:
        """Execute a statement, again if it met another's, which PostgreSQL refuses above READ COMMITTED."""
        left = 0 if connections[self.db].in_atomic_block else CONFLICTS
        while True:
            try:
                with transaction.mark_for_rollback_on_error(self.db), by_index(connections[self.db], self.model):
                    return statement()
            except Error as error:
                left -= 1
                if left < 0 or not is_conflict(error):
                    raise

    def due(self, *states: State) -> Self:
        """Return those in the given states that the relay must look at, the longest due first."""
        return self.filter(due_at__lte=In(0), state__in=states).order_by("due_at", "id")

    @contextmanager
    def held(self, limit: int) -> Iterator[list[int]]:
        """Give the ids of some, without those that another transaction has its hands on, and keep them until the end.

        On MariaDB they are found without a lock and then locked by their keys, for a locking range would block the
        senders' inserts. Where nothing can be passed over, the statement that follows sees what happened meanwhile.
        """
        connection, rows = connections[self.db], self
        if connection.vendor == "sqlite" or not connection.features.has_select_for_update_skip_locked:
            yield list(self.values_list("pk", flat=True)[:limit])
            return
        if connection.vendor == "mysql":
            ids = list(self.values_list("pk", flat=True)[:limit])
            rows = self.model.objects.using(self.db).filter(pk__in=ids)
            lock_no_gaps(connection)
        with transaction.atomic(using=self.db):
            with by_index(connection, self.model):
                ids = list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True)[:limit])
            yield ids

    def in_steps(self, ids: Sequence[int]) -> Iterator[Self]:
        """Yield those of some ids in parts, for what one statement of many keys would do to a database."""
        for start in range(0, len(ids), STEP):
            yield self.filter(pk__in=ids[start : start + STEP])

    def claimed(self, claim: int, ids: Iterable[int]) -> Self:
        """Return those of a claim that nobody has touched since."""
        return self.filter(pk__in=list(ids), claim=claim, state=State.READY)
