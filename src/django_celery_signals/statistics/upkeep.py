"""What a relay does for the table of minutes: note how deliveries stand, and delete what is old."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.db import Error, connections

from .. import conf
from ..durable.clock import In, by_index, instant
from ..durable.deliveries import deliveries
from ..durable.rows import State
from . import table
from .flushing import is_testing

logger = logging.getLogger(__name__)

NOTE_EVERY, PURGE_EVERY = 15.0, 60.0  # seconds
MOST_WAITING = 10_000  # that are counted: to count a million would take a second, every minute
DAY = 24 * 60  # minutes

_failing: set[tuple[str, str]] = set()  # what is known not to work, and in which database


def note(using: str) -> bool:
    """Note how deliveries stand, unless somebody has done so in this minute."""
    if is_testing():
        return False
    minute = table.this_minute()
    with _kept("noted", using):
        if not table.has_gauges(using, minute):
            table.note(using, minute, lag(using), waiting(using))
    return False


def purge(using: str) -> bool:
    """Delete minutes older than ``STATISTICS_DAYS``, in small steps; tell whether there is more."""
    if is_testing():
        return False
    before = table.this_minute() - round(conf.get().STATISTICS_DAYS * DAY)
    with _kept("purged", using):
        return table.purge(using, before)
    return False


@contextmanager
def _kept(what: str, using: str) -> Iterator[None]:
    """Keep an error of the database, which must not keep the relay from publishing; log it once until it is over."""
    try:
        yield
        _failing.discard((what, using))
    except Error as error:
        if (what, using) not in _failing:
            logger.warning("Figures of each minute cannot be %s in %r for now: %s", what, using, error)
        _failing.add((what, using))


def lag(using: str) -> float:
    """Return for how many seconds the oldest delivery waits that could run: for a relay, or in a queue for a worker.

    By the database's clock, and by indexes: a look for the relay's, and one for each queue.
    """
    connection, rows = connections[using], deliveries(using)
    with by_index(connection, rows.model, "dcs_delivery_due"):
        found = list(rows.due(State.READY).values_list("due_at", In(0))[:1])
    for queue in ("", *rows.queues()):
        sent = rows.filter(state=State.SENT, queue=queue, sent_at__isnull=False)
        with by_index(connection, rows.model, "dcs_delivery_sent"):
            found += sent.order_by("sent_at").values_list("sent_at", In(0))[:1]
    return max((_seconds(since, now, connection) for since, now in found), default=0.0)


def _seconds(since: datetime, now: datetime, connection: Any) -> float:
    return max(0.0, (instant(now, connection) - instant(since, connection)).total_seconds())


def waiting(using: str) -> int:
    """Return how many deliveries could run, but no more than ``MOST_WAITING``."""
    rows, found = deliveries(using), 0
    # In the order of an index: asked for any so many, a database might look everywhere.
    by_sending = rows.filter(state=State.SENT).order_by("queue", "sent_at")
    for chosen, index in ((rows.due(State.READY), "dcs_delivery_due"), (by_sending, "dcs_delivery_sent")):
        with by_index(connections[using], rows.model, index):
            found += chosen[:MOST_WAITING].count()
    return min(MOST_WAITING, found)
