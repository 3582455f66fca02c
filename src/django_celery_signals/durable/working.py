"""What a worker does with a delivery: open it, read what waits behind it, complete it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, Self

from django.db import Error, connections
from django.db.models import F

from .clock import In, from_now
from .pauses import PARKED
from .reference import Chunk, Reference
from .rows import State, new_token, options_of
from .texts import among, texts_for
from .turns import TurnQuerySet


@dataclass
class Opened:
    """What a worker must know of a delivery that it has opened."""

    pk: int
    event_id: str
    receiver: str
    signal: str
    summary: str
    key: str | None
    lane: str | None
    folds: bool
    token: int
    attempts: int
    crashes: int
    reruns: int
    options: Any  # as the database has them, until it is made
    payload: str | None
    due_at: datetime
    followed: bool = True  # whether others wait behind it, as far as was asked

    def __post_init__(self) -> None:
        """Read the options."""
        self.options = options_of(self.options)


class WorkQuerySet(TurnQuerySet):
    """Deliveries in the hands of workers. These verbs find their rows by what they are given, and by nothing else."""

    def open(self, reference: Reference, seconds: float) -> Any | None:
        """Take what a message refers to for so many seconds: in one statement, where a database can return the row.

        Returns:
            The row as it is then, with ``followed``, whether others wait behind it, if it folds; None when it is done,
            in other hands, or for another receiver.
        """
        connection = connections[self.db]
        texts, (due, moment) = texts_for(connection), from_now(connection, seconds)
        opening, reading = (texts.open_folding, texts.read_folding) if reference.folds else (texts.open, texts.read_all)
        sql, params = opening.format(due=due), (*moment, reference.id, reference.token, reference.receiver)
        if texts.returns:
            rows = self._surely(lambda: self._returned(sql, params))
        elif self._surely(lambda: self._execute(sql, params)):
            rows = self._opened([reference.id], [reference.token + 1], reading)
        else:
            rows = []
        if not rows:
            self.park([reference.id], [reference.token], reference.receiver)
        return rows[0] if rows else None

    def open_together(self, chunk: Chunk, seconds: float) -> list[Any]:
        """Take those of several that can be taken; ``claim`` says of them that whatever ends this run is not theirs."""
        connection, claim = connections[self.db], new_token()
        texts, (due, moment) = texts_for(connection), from_now(connection, seconds)
        ids, tokens = zip(*chunk.rows, strict=True)
        condition, values = among(connection, ids, tokens)
        sql = texts.open_all.format(due=due, among=condition)
        params = (*moment, claim, *values, chunk.receiver)
        if texts.returns:
            rows = self._surely(lambda: self._returned(sql, params))
        elif self._surely(lambda: self._execute(sql, params)):
            rows = self._opened(ids, [token + 1 for token in tokens], texts.read_all, claim)
        else:
            rows = []
        if len(rows) < len(ids):
            self.park(ids, tokens, chunk.receiver)
        return sorted(rows, key=attrgetter("pk"))

    def park(self, ids: Sequence[int], tokens: Sequence[int], receiver: str) -> int:
        """Lay aside what could have been opened but for a pause; if that is over by now, the relay brings it back.

        Nobody guesses a token, so pairs need no check.
        """
        mine = self.filter(pk__in=ids, token__in=tokens, receiver=receiver, state__in=(State.READY, State.SENT))
        return mine.update(**PARKED)

    def _returned(self, sql: str, params: Sequence[Any]) -> list[Any]:
        """Return what a statement returns: to make an instance of it takes longer than the rest."""
        if connections[self.db].vendor != "postgresql":
            return list(self.raw(sql, params))
        return [Opened(*row) for row in self._fetch(sql, params)]

    def _opened(self, ids: Sequence[int], tokens: Sequence[int], reading: str, claim: int | None = None) -> list[Any]:
        """Read what was opened just now; if that cannot be done, nobody runs it, and it is to be published again.

        A delivery may be in several messages, with the same token, so ``claim`` tells what this one has opened.
        """
        connection = connections[self.db]
        condition, values = among(connection, ids, tokens)
        try:
            rows = list(self.raw(reading.format(among=condition), values))
        except Error:
            if not connection.in_atomic_block:
                with suppress(Error):
                    connection.close()  # or the next statement fails as well
                    self.running(ids, tokens).filter(claim=claim).rerun()
            raise
        return [row for row in rows if row.claim == claim]

    def running(self, ids: Sequence[int], tokens: Sequence[int]) -> Self:
        """Return what a worker holds; nobody guesses a token, so pairs need no check."""
        return self.filter(pk__in=ids, token__in=tokens, state=State.RUNNING)

    def rerun(self, seconds: float = 0) -> int:
        """Have deliveries run again in so many seconds, without counting, and by themselves if they were together."""
        return self.update(state=State.READY, due_at=In(seconds), reruns=F("reruns") + 1, claim=None, sends=0)

    def complete_together(self, ids: Sequence[int], tokens: Sequence[int]) -> int:
        """Delete what is held by these tokens."""
        condition, values = among(connections[self.db], ids, tokens)
        return self._surely(
            lambda: self._execute(texts_for(connections[self.db]).complete_all.format(among=condition), values)
        )

    def followers(self, lane: str, limit: int) -> list[Any]:
        """Return the oldest that wait in a lane, without their payloads, but with the ``size`` of each."""
        return list(self.raw(texts_for(connections[self.db]).followers, (lane, lane, limit)))

    def complete(self, pk: int, token: int) -> int:
        """Delete what is held by a token."""
        return self._surely(lambda: self._execute(texts_for(connections[self.db]).complete, (pk, token)))

    def _fetch(self, sql: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
        with connections[self.db].cursor() as cursor:
            cursor.execute(sql, params)
            return list(cursor.fetchall())

    def _execute(self, sql: str, params: Sequence[Any]) -> int:
        with connections[self.db].cursor() as cursor:
            cursor.execute(sql, params)
            return int(cursor.rowcount)
