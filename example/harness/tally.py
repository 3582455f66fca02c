"""What is counted, and the last line that tells it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import connection, transaction

# What the library writes for each event and receiver; the event's id is the first of its columns.
DELIVERY = re.compile(r"INSERT INTO .django_celery_signals_delivery. \(.event_id.,")


@dataclass(slots=True, kw_only=True)
class Tally:
    """What happened in a demonstration."""

    saved: int = 0
    sent: set[str] = field(default_factory=set)  # ids of events whose transaction was committed
    received: Counter[str] = field(default_factory=Counter)  # ids of events -> how often their work was committed
    failed: set[str] = field(default_factory=set)  # ids of events whose receiver gave up
    mismatches: list[str] = field(default_factory=list)
    cut_short: bool = False

    @property
    def lost(self) -> set[str]:
        """Return the events without the work that was to follow from them, and without a failure that says so."""
        return self.sent - self.received.keys() - self.failed

    @property
    def duplicates(self) -> int:
        """Return how often work was committed that had been committed before."""
        return self.received.total() - len(self.received)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what this process sends, by what its database commits: nothing that is lost later can escape."""
        with connection.execute_wrapper(self._watch):
            yield

    def _watch(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if DELIVERY.match(sql):
            transaction.on_commit(lambda: self.sent.add(params[0]))
        return result

    def succeeded(self) -> bool:
        """Tell whether everything is as promised."""
        return not (self.cut_short or self.failed or self.duplicates or self.lost or self.mismatches)

    def __str__(self) -> str:
        return (
            f"demo: saved={self.saved} sent={len(self.sent)} received={len(self.received)} "
            f"failed={len(self.failed) + self.cut_short} duplicates={self.duplicates} "
            f"lost={len(self.lost)} mismatches={len(self.mismatches)}"
        )
