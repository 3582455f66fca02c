"""Savepoints of several deliveries in one transaction, one after the other.

On PostgreSQL the end of one and the beginning of the next are one round trip, for there a connection knows by itself
whether the transaction is broken; elsewhere only the end of a savepoint tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from django.db import Error, connections, transaction

_NAME = "django_celery_signals"
_BEGIN = f"SAVEPOINT {_NAME}"
_NEXT = f"RELEASE SAVEPOINT {_NAME}; {_BEGIN}"
_WHOLE = 2  # of libpq's PQTRANS: in a transaction that is not broken

Savepoint = Callable[..., AbstractContextManager[Any]]  # given ``using=``


def savepoints(using: str) -> Savepoint:
    """Return what begins and ends the savepoints of a transaction."""
    return _Savepoints() if connections[using].vendor == "postgresql" else transaction.atomic


class _Savepoints:
    def __init__(self) -> None:
        self._is_there = False  # the last one, which the next is to end

    @contextmanager
    def __call__(self, *, using: str) -> Iterator[None]:
        """Do what Django's ``atomic()`` does within another, but leave a good end to the next."""
        connection: Any = connections[using]
        with connection.cursor() as cursor:
            cursor.execute(_NEXT if self._is_there else _BEGIN)
        self._is_there, hooks = True, len(connection.run_on_commit)
        try:
            with transaction.atomic(using=using, savepoint=False):
                yield
            if not _is_whole(connection):
                connection.savepoint_commit(_NAME)  # which says why
                self._is_there = False
        except Exception:
            del connection.run_on_commit[hooks:]
            _roll_back(connection)
            raise


def _is_whole(connection: Any) -> bool:
    """Tell whether a connection says that its transaction is not broken."""
    return getattr(getattr(connection.connection, "info", None), "transaction_status", None) == _WHOLE


def _roll_back(connection: Any) -> None:
    """Take back what was done since the savepoint, or all if that cannot be."""
    connection.needs_rollback = False  # or nothing can be executed
    try:
        connection.savepoint_rollback(_NAME)
    except Error:
        connection.needs_rollback = True
