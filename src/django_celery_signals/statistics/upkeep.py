"""What a relay does for the table of minutes: note how deliveries stand, and delete what is old."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import Error, connections

from .. import conf
from ..durable.clock import by_index
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
            table.note(using, minute, deliveries(using).lag(), waiting(using))
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


def waiting(using: str) -> int:
    """Return how many deliveries could run, but no more than ``MOST_WAITING``."""
    rows, found = deliveries(using), 0
    # In the order of an index: asked for any so many, a database might look everywhere.
    by_sending = rows.filter(state=State.SENT).order_by("queue", "sent_at")
    for chosen, index in ((rows.due(State.READY), "dcs_delivery_due"), (by_sending, "dcs_delivery_sent")):
        with by_index(connections[using], rows.model, index):
            found += chosen[:MOST_WAITING].count()
    return min(MOST_WAITING, found)
