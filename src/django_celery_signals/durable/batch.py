"""Many sendings of one transaction, whose deliveries are written together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from .outbox import insert

SIZE = 500  # deliveries that are written at once

_batches: dict[int, Batch] = {}  # by the identity of a connection, which is one thread's


@contextmanager
def batched(using: str = DEFAULT_DB_ALIAS) -> Iterator[None]:
    """Write the durable deliveries of a block's sendings together, some hundred with each statement.

    The block is a transaction, or a savepoint of the one there is: what it does is committed as a whole, or not at all.
    A savepoint within it that is rolled back takes its own sendings along, and no others. The relay publishes what was
    written, soon after the commit. Also a decorator. Inside of another, the block joins that one's batch.

    Args:
        using: alias of the database; what is sent in the transactions of others is written at once, as ever.

    Raises:
        django.db.Error: at the end of the block, when the database does not take the deliveries.
    """
    connection = connections[using]
    with transaction.atomic(using=using):
        if id(connection) in _batches:
            yield
            return
        batch = _batches[id(connection)] = Batch(connection)
        try:
            yield
            batch.close()
        finally:
            del _batches[id(connection)]


def batch_on(connection: BaseDatabaseWrapper) -> Batch | None:
    """Return the batch that is open in a transaction, if there is one."""
    return _batches.get(id(connection))


class _Mark:
    """What tells whether a savepoint was rolled back: Django forgets the hooks that were registered in it."""

    def __init__(self, savepoints: frozenset[Any]) -> None:
        self.savepoints = savepoints

    def __call__(self) -> None:
        """Nothing is to be done after the commit."""


class Batch:
    """Deliveries that are not written yet, in the order of their sendings."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Begin empty."""
        self.connection = connection
        self._rows: list[tuple[Any, _Mark]] = []
        self._mark: _Mark | None = None

    def add(self, row: Any) -> None:
        """Take a delivery, and write what there is when that has become much."""
        savepoints = frozenset(filter(None, self.connection.savepoint_ids))
        if self._mark is None or self._mark.savepoints != savepoints:
            self._mark = _Mark(savepoints)
            transaction.on_commit(self._mark, using=self.connection.alias)
        self._rows.append((row, self._mark))
        # What was sent outside of the innermost savepoint must not be written in it, where it would be rolled back.
        if len(self._rows) >= SIZE and savepoints <= self._rows[0][1].savepoints:
            self.write()

    def close(self) -> None:
        """Write the rest, unless the transaction can only be rolled back by now."""
        if not self.connection.needs_rollback:
            self.write()

    def write(self) -> None:
        """Write all whose savepoints were not rolled back."""
        hooks = self.connection.run_on_commit
        standing = {id(entry[1]) for entry in hooks}
        rows, marks = [row for row, mark in self._rows if id(mark) in standing], {id(mark) for _, mark in self._rows}
        self._rows, self._mark = [], None
        self.connection.run_on_commit = [entry for entry in hooks if id(entry[1]) not in marks]
        for start in range(0, len(rows), size := self._size(rows)):
            insert(rows[start : start + size], self.connection.alias)

    def _size(self, rows: list[Any]) -> int:
        """Return how many rows one statement can have; SQLite counts the values."""
        fields = rows[0]._meta.concrete_fields if rows else ()
        return max(1, min(SIZE, self.connection.ops.bulk_batch_size(fields, rows)))
