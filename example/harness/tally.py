"""What is counted, and the last lines that tell it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from django.db import connection, transaction

# What the library writes for each event and receiver; among its first columns are the event's id and its key.
DELIVERY = re.compile(r"INSERT INTO .django_celery_signals_delivery. \(([^)]*)\)")

Group = tuple[str, str]  # the events that one run may stand for: those of a receiver and key, or one by itself


@dataclass(slots=True, kw_only=True)
class Tally:
    """What happened in a demonstration."""

    saved: int = 0
    sent: dict[str, Group] = field(default_factory=dict)  # ids of committed events, in the order of their commits
    received: Counter[str] = field(default_factory=Counter)  # ids -> how many events their committed work stands for
    failed: set[str] = field(default_factory=set)  # ids of events whose receiver gave up
    log: dict[int, list[str]] = field(default_factory=dict)  # flights -> ids of the events in their log, as it has them
    mismatches: dict[str, list[str]] = field(default_factory=dict)  # what was compared -> a line for each difference
    cut_short: bool = False

    @property
    def lost(self) -> Counter[Group]:
        """Return what lacks the work that was to follow from it, and a failure that says so."""
        failed = Counter(self.sent[event_id] for event_id in self.failed & self.sent.keys())
        return Counter(self.sent.values()) - self._done() - failed

    @property
    def duplicates(self) -> int:
        """Return how often work was committed that had been committed before."""
        return (self._done() - Counter(self.sent.values())).total()

    @property
    def inversions(self) -> int:
        """Return how many entries of the log stand behind one of the same flight that was to follow them."""
        places = {event_id: place for place, event_id in enumerate(self.sent)}
        logs = ([places[event_id] for event_id in ids if event_id in places] for ids in self.log.values())
        return sum(one > other for log in logs for one, other in pairwise(log))

    @property
    def ghosts(self) -> set[str]:
        """Return the ids of events that were received, but never committed."""
        return self.received.keys() - self.sent.keys()

    def runs(self) -> tuple[int, int]:
        """Return how many events could be coalesced, and how many runs they became."""
        coalescing = {event_id for event_id, group in self.sent.items() if group[0]}
        return len(coalescing), len(coalescing & self.received.keys())

    def _done(self) -> Counter[Group]:
        done: Counter[Group] = Counter()
        for event_id, count in self.received.items():
            if event_id in self.sent:
                done[self.sent[event_id]] += count
        return done

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what this process sends, by what its database commits: nothing that is lost later can escape."""
        with connection.execute_wrapper(self._watch):
            yield

    def _watch(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if written := DELIVERY.match(sql):
            row = dict(zip(re.findall(r"\w+", written[1]), params, strict=False))
            group = (row["receiver"], row["key"]) if row["folds"] else ("", row["event_id"])
            transaction.on_commit(lambda: self.sent.update({row["event_id"]: group}))
        return result

    def succeeded(self) -> bool:
        """Tell whether everything is as promised."""
        events, runs = self.runs()
        wrong = self.failed or self.duplicates or self.lost or self.inversions or any(self.mismatches.values())
        return not (self.cut_short or wrong) and runs < events

    def __str__(self) -> str:
        events, runs = self.runs()
        entries, received = sum(map(len, self.log.values())), (Counter(self.sent.values()) & self._done()).total()
        return (
            f"log: entries={entries} flights={len(self.log)} inversions={self.inversions}\n"
            f"index: sent={events} runs={runs} stale={len(self.mismatches.get('search entries', ()))}\n"
            f"demo: saved={self.saved} sent={len(self.sent)} received={received} "
            f"failed={len(self.failed) + self.cut_short} duplicates={self.duplicates} "
            f"lost={self.lost.total()} mismatches={sum(map(len, self.mismatches.values()))}"
        )
