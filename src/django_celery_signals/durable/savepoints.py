"""Savepoints of several deliveries in one transaction, one after the other.

On PostgreSQL the end of one and the beginning of the next are one round trip, for there a connection knows by itself
whether the transaction is broken; elsewhere only the end of a savepoint tells. With psycopg 3 even that waits until a
receiver uses the connection: many do not, for what they need was fetched beforehand. Both are executed by the client's
own cursor, for Django's takes as long again as client and server together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import Any

from django.db import Error, connections, transaction

from .client import before_its_use, takes_its_lock

_NONE, _WHOLE = 0, 2  # of libpq's PQTRANS: in no transaction, in one that is not broken
IDLE = 1.0  # seconds for which the transaction may do nothing before the next savepoint begins beforehand

Savepoint = Callable[..., AbstractContextManager[Any]]  # given ``using=``


@contextmanager
def savepoints(using: str) -> Iterator[Savepoint]:
    """Give what begins and ends savepoints of a transaction, one after the other.

    Raises:
        django.db.Error: at the end, when the last one is gone: what was done before may be gone as well.
    """
    connection: Any = connections[using]
    is_prepared = connection.settings_dict["OPTIONS"].get("prepare_threshold") == 0  # two statements cannot be
    if connection.vendor != "postgresql" or is_prepared:
        yield transaction.atomic
        return
    savepoint = _Savepoints(connection)
    yield savepoint
    savepoint.end()


class _Savepoints:
    def __init__(self, connection: Any) -> None:
        self._connection, self._numbers = connection, count()
        self._last: str | None = None  # which the next is to end
        self._begun_at = time.monotonic()
        self._cursor: Any = None  # of the client

    @contextmanager
    def __call__(self, *, using: str) -> Iterator[None]:
        """Do what Django's ``atomic()`` does within another, but leave a good end to the next."""
        connection = self._connection
        if using != connection.alias:  # whose transaction it is not
            with transaction.atomic(using=using):
                yield
            return
        name = f"django_celery_signals_{next(self._numbers)}"
        with self._begun(name):
            connection.savepoint_ids.append(name)  # by which Django knows what is rolled back with it
            try:
                yield
                if not _is_whole(connection, is_begun=self._last is not None):
                    connection.savepoint_commit(name)  # which says why
                    self._last = None
            except Exception:
                _roll_back(connection, name)
                raise
            finally:
                connection.savepoint_ids = [one for one in connection.savepoint_ids if one != name]

    def end(self) -> None:
        """End the last one, which says whether all of them were in the same transaction."""
        if self._last is not None:
            self._connection.savepoint_commit(self._last)

    def _begun(self, name: str) -> AbstractContextManager[Any]:
        """Begin a savepoint, at the latest when the block uses the connection, be it to roll back.

        At once after a while without one: the server may end a transaction that does nothing, or be gone.
        """
        client = self._connection.connection
        begin = partial(self._begin, client, name)
        if time.monotonic() - self._begun_at < IDLE and takes_its_lock(self._connection):
            return before_its_use(client, begin)
        begin()
        return nullcontext()

    def _begin(self, client: Any, name: str) -> None:
        if self._connection.connection is not client:  # the block has closed it, and others may have it by now
            return
        with self._connection.wrap_database_errors:
            if self._cursor is None or self._cursor.connection is not client:
                self._cursor = client.cursor()
            last = self._last
            self._cursor.execute(f"RELEASE SAVEPOINT {last}; SAVEPOINT {name}" if last else f"SAVEPOINT {name}")
        self._last, self._begun_at = name, time.monotonic()


def _is_whole(connection: Any, *, is_begun: bool) -> bool:
    """Tell whether a connection says that its transaction is not broken; it may say that none is begun yet."""
    status = getattr(getattr(connection.connection, "info", None), "transaction_status", None)
    return status == _WHOLE or (status == _NONE and not is_begun)


def _roll_back(connection: Any, name: str) -> None:
    """Take back what was done since the savepoint, or all if that cannot be."""
    connection.needs_rollback = False  # or nothing can be executed
    try:
        connection.savepoint_rollback(name)
    except Error:
        connection.needs_rollback = True
