"""What a worker does with a delivery: open it, read what waits behind it, complete it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.db import Error, connections
from django.db.models import F

from .clock import In, from_now
from .reference import Reference
from .rows import State
from .texts import texts_for
from .turns import TurnQuerySet


class WorkQuerySet(TurnQuerySet):
    """Deliveries in the hands of workers. These verbs find their rows by what they are given, and by nothing else."""

    def open(self, reference: Reference, seconds: float) -> Any | None:
        """Take what a message refers to for so many seconds: in one statement, where a database can return the row.

        Returns:
            The row as it is then; None when it is done, in other hands, or for another receiver.
        """
        texts, (due, moment) = texts_for(self.db), from_now(connections[self.db], seconds)
        sql, params = texts.open.format(due=due), (*moment, reference.id, reference.token, reference.receiver)
        if texts.returns:
            rows = self._surely(lambda: list(self.raw(sql, params)))
        elif self._surely(lambda: self._execute(sql, params)):
            rows = self._opened(reference.id, reference.token + 1)
        else:
            rows = []
        return rows[0] if rows else None

    def _opened(self, pk: int, token: int) -> list[Any]:
        """Read what was opened just now; if that cannot be done, nobody runs it, and it is to be published again."""
        try:
            return list(self.raw(texts_for(self.db).read, (pk, token)))
        except Error:
            connection = connections[self.db]
            if not connection.in_atomic_block:
                with suppress(Error):
                    connection.close()  # or the next statement fails as well
                    mine = self.filter(pk=pk, token=token, state=State.RUNNING)
                    mine.update(state=State.READY, due_at=In(0), reruns=F("reruns") + 1)
            raise

    def followers(self, lane: str, limit: int) -> list[Any]:
        """Return the oldest that wait in a lane, without their payloads, but with the ``size`` of each."""
        return list(self.raw(texts_for(self.db).followers, (lane, lane, limit)))

    def complete(self, pk: int, token: int) -> int:
        """Delete what is held by a token."""
        return self._surely(lambda: self._execute(texts_for(self.db).complete, (pk, token)))

    def _fetch(self, sql: str, params: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with connections[self.db].cursor() as cursor:
            cursor.execute(sql, params)
            return list(cursor.fetchall())

    def _execute(self, sql: str, params: tuple[Any, ...]) -> int:
        with connections[self.db].cursor() as cursor:
            cursor.execute(sql, params)
            return int(cursor.rowcount)
