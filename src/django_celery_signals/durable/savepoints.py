"""Savepoints of several deliveries in one transaction, one after the other.

On PostgreSQL the end of one and the beginning of the next are one round trip, for there a connection knows by itself
whether the transaction is broken; elsewhere only the end of a savepoint tells. They are executed by the client's own
cursor, for Django's takes as long again as client and server together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

from django.db import Error, connections, transaction

_WHOLE = 2  # of libpq's PQTRANS: in a transaction that is not broken

Savepoint = Callable[..., AbstractContextManager[Any]]  # given ``using=``


def savepoints(using: str) -> Savepoint:
    """Return what begins and ends the savepoints of a transaction."""
    connection = connections[using]
    is_prepared = connection.settings_dict["OPTIONS"].get("prepare_threshold") == 0  # two statements cannot be
    return transaction.atomic if connection.vendor != "postgresql" or is_prepared else _Savepoints(using)


class _Savepoints:
    def __init__(self, using: str) -> None:
        self._using, self._numbers = using, count()
        self._last: str | None = None  # which the next is to end
        self._cursor: Any = None  # of the client

    @contextmanager
    def __call__(self, *, using: str) -> Iterator[None]:
        """Do what Django's ``atomic()`` does within another, but leave a good end to the next."""
        if using != self._using:  # whose transaction it is not
            with transaction.atomic(using=using):
                yield
            return
        connection: Any = connections[using]
        name = self._begin(connection)
        connection.savepoint_ids.append(name)  # by which Django knows what is rolled back with it
        try:
            with transaction.atomic(using=using, savepoint=False):
                yield
            if not _is_whole(connection):
                connection.savepoint_commit(name)  # which says why
                self._last = None
        except Exception:
            _roll_back(connection, name)
            raise
        finally:
            connection.savepoint_ids = [one for one in connection.savepoint_ids if one != name]

    def _begin(self, connection: Any) -> str:
        name, last = f"django_celery_signals_{next(self._numbers)}", self._last
        with connection.wrap_database_errors:
            if self._cursor is None or self._cursor.connection is not connection.connection:
                self._cursor = connection.connection.cursor()
            self._cursor.execute(f"RELEASE SAVEPOINT {last}; SAVEPOINT {name}" if last else f"SAVEPOINT {name}")
        self._last = name
        return name


def _is_whole(connection: Any) -> bool:
    """Tell whether a connection says that its transaction is not broken."""
    return getattr(getattr(connection.connection, "info", None), "transaction_status", None) == _WHOLE


def _roll_back(connection: Any, name: str) -> None:
    """Take back what was done since the savepoint, or all if that cannot be."""
    connection.needs_rollback = False  # or nothing can be executed
    try:
        connection.savepoint_rollback(name)
    except Error:
        connection.needs_rollback = True
