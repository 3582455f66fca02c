"""Many sendings of one transaction, whose deliveries are written together."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import accumulate
from typing import Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.db import DEFAULT_DB_ALIAS, Error, InternalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from .texts import GIVEN, LINEAGE, MOMENTS
from .writing import New, are_caused, insert

F = TypeVar("F", bound=Callable[..., Any])

SIZE, WEIGHT = 500, 1024 * 1024  # deliveries that one statement writes, at most, and characters of their payloads

_GAP = r"(?:\s|/\*.*?\*/|--[^\n]*(?:\n|$))"  # where tracing may put a comment
_SAVEPOINT = re.compile(
    rf"{_GAP}*(?:(SAVEPOINT)|(RELEASE)(?:{_GAP}+SAVEPOINT)?|(ROLLBACK)(?:{_GAP}+(?:WORK|TRANSACTION))?{_GAP}+TO"
    rf"(?:{_GAP}+SAVEPOINT)?){_GAP}+([^\s;]+?){_GAP}*;?{_GAP}*",
    re.IGNORECASE | re.DOTALL,
)

_batches: dict[int, Batch] = {}  # by the identity of a connection, which is one thread's


class batched:
    """Write the durable deliveries of a block's sendings together, some hundred with each statement.

    The block is a transaction, or a savepoint of the one there is: what it does is committed as a whole, or not at all.
    A savepoint within it that is rolled back takes its own sendings along, and no others. The relay publishes what was
    written, soon after the commit. Inside of another, the block joins that one's batch. Also a decorator of functions.

    At its end the block raises ``django.db.Error`` when the database does not take the deliveries.
    """

    def __init__(self, using: str = DEFAULT_DB_ALIAS) -> None:
        """Choose the database.

        Args:
            using: its alias; what is sent in the transactions of others is written at once, as ever.
        """
        self.using = using
        self._own = threading.local()  # one object may be entered again, and by other threads

    def __enter__(self) -> None:
        """Begin the block."""
        block = _block(self.using)
        block.__enter__()
        vars(self._own).setdefault("blocks", []).append(block)

    def __exit__(self, *error: Any) -> None:
        """End it."""
        self._own.blocks.pop().__exit__(*error)

    def __call__(self, function: F) -> F:
        """Make each call of a function a block.

        Raises:
            TypeError: for a coroutine function, whose connection would be another thread's, and a generator function.
        """
        refuse_generators(function, "batched()")
        if iscoroutinefunction(function):
            raise TypeError(
                f"batched() cannot decorate {function.__qualname__}(), a coroutine function: Django's transactions "
                "belong to a thread. Decorate the function that it gives to sync_to_async()."
            )

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with batched(self.using):
                return function(*args, **kwargs)

        return cast(F, call)


def refuse_generators(function: Any, block: str) -> None:
    """Refuse to decorate what runs nothing when it is called.

    Raises:
        TypeError: saying what to do instead.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{block} cannot decorate {function.__qualname__}(), a generator function: its body runs when the call is "
            f"over. Write: with {block}: inside of it."
        )


@contextmanager
def _block(using: str) -> Iterator[None]:
    connection = connections[using]
    with transaction.atomic(using=using):
        if id(connection) in _batches:
            yield
            return
        batch = _batches[id(connection)] = Batch(connection)
        try:
            with connection.execute_wrapper(batch.watch):
                yield
            batch.close()
        finally:
            del _batches[id(connection)]


def batch_on(connection: BaseDatabaseWrapper) -> Batch | None:
    """Return the batch that is open in a transaction, if there is one."""
    return _batches.get(id(connection))


class Batch:
    """Deliveries that are not written yet, in the order of their sendings."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Begin empty."""
        self.connection = connection
        self._rows: list[New] = []
        self._weight = 0  # of all of them
        self._savepoints: list[tuple[str, int]] = []  # the open ones, and how many rows were there before each
        self._doubt: BaseException | None = None  # what has cut a writing off: nobody knows whether it was sent

    def add(self, row: New) -> None:
        """Take a delivery, and write what there is when that has become much."""
        self._rows.append(row)
        self._weight += len(row.payload)
        self._write_if_much()

    def watch(self, execute: Any, sql: Any, *args: Any) -> Any:
        """Execute a statement; when that ends a savepoint, made by whomever, drop what was sent in it."""
        result = execute(sql, *args)
        match = _SAVEPOINT.fullmatch(sql) if isinstance(sql, str) else None
        if match is not None:
            verb = match[1] or match[2] or match[3]
            self._follow(verb.upper(), match[4].strip('"`').casefold())
        return result

    def _follow(self, verb: str, name: str) -> None:
        if verb == "SAVEPOINT":
            self._savepoints.append((name, len(self._rows)))
            return
        while self._savepoints and self._savepoints[-1][0] != name:
            self._savepoints.pop()
        if verb == "ROLLBACK":  # to one that is older than the batch, it is the whole
            self._drop(slice(self._savepoints[-1][1] if self._savepoints else 0, None))
            return
        del self._savepoints[-1:]
        self._write_if_much()

    def _write_if_much(self) -> None:
        """Write, unless some were sent before the innermost savepoint, and would be rolled back with that."""
        is_safe = not self._savepoints or self._savepoints[-1][1] == 0
        if is_safe and (len(self._rows) >= SIZE or self._weight >= WEIGHT):
            self._write()

    def close(self) -> None:
        """Write the rest, unless the transaction can only be rolled back by now."""
        if not self.connection.needs_rollback:
            self._write()

    def _write(self) -> None:
        """Write all; what the database does not take stays for the next time, for its error may be swallowed.

        Raises:
            InternalError: when a time limit has come in between: to write once more could be once too often.
        """
        if self._doubt is not None:
            raise InternalError(
                "Writing the deliveries of a batched() block was cut off, so the block cannot be committed."
            ) from self._doubt
        try:
            while self._rows:
                count = self._fitting()
                insert(self._rows[:count], self.connection, self.watch)
                self._drop(slice(count))
        except Error:
            raise
        except BaseException as error:
            self._doubt = error
            raise

    def _drop(self, rows: slice) -> None:
        self._weight -= sum(map(_weight, self._rows[rows]))
        del self._rows[rows]

    def _fitting(self) -> int:
        """Return how many of the next ones fit into a statement: SQLite counts the values, MariaDB the bytes."""
        fields = (*GIVEN, *MOMENTS, *(LINEAGE if are_caused(self._rows) else ()))
        most = min(SIZE, self.connection.ops.bulk_batch_size(fields, self._rows))
        weights = accumulate(map(_weight, self._rows[:most]))
        return max(1, sum(weight <= WEIGHT for weight in weights))


def _weight(row: New) -> int:
    return len(row.payload)
