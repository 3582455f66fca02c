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
from threading import RLock
from typing import Any

from django.db import Error, connections, transaction

_NONE, _WHOLE = 0, 2  # of libpq's PQTRANS: in no transaction, in one that is not broken
IDLE = 1.0  # seconds for which the transaction may do nothing before the next savepoint begins beforehand

Savepoint = Callable[..., AbstractContextManager[Any]]  # given ``using=``


@contextmanager
def savepoints(using: str) -> Iterator[Savepoint]:
    """Give what begins and ends savepoints of a transaction, one after the other.

    Raises:
        django.db.Error: at the end, when the last one is gone: what was done before may be gone as well.
    """
    connection = connections[using]
    is_prepared = connection.settings_dict["OPTIONS"].get("prepare_threshold") == 0  # two statements cannot be
    if connection.vendor != "postgresql" or is_prepared:
        yield transaction.atomic
        return
    savepoint = _Savepoints(using)
    yield savepoint
    savepoint.end()


class _Savepoints:
    def __init__(self, using: str) -> None:
        self._using, self._numbers = using, count()
        self._last: str | None = None  # which the next is to end
        self._begun_at = time.monotonic()
        self._cursor: Any = None  # of the client

    @contextmanager
    def __call__(self, *, using: str) -> Iterator[None]:
        """Do what Django's ``atomic()`` does within another, but leave a good end to the next."""
        if using != self._using:  # whose transaction it is not
            with transaction.atomic(using=using):
                yield
            return
        connection: Any = connections[using]
        name = f"django_celery_signals_{next(self._numbers)}"
        with self._begun(connection, name):
            connection.savepoint_ids.append(name)  # by which Django knows what is rolled back with it
            try:
                with transaction.atomic(using=using, savepoint=False):
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
            connections[self._using].savepoint_commit(self._last)

    def _begun(self, connection: Any, name: str) -> AbstractContextManager[Any]:
        """Begin a savepoint, at the latest when the block uses the connection, be it to roll back.

        At once after a while without one: the server may end a transaction that does nothing, or be gone.
        """
        client = connection.connection
        begin = partial(self._begin, connection, client, name)
        if time.monotonic() - self._begun_at < IDLE and _locks(connection):
            return _before_its_use(client, begin)
        begin()
        return nullcontext()

    def _begin(self, connection: Any, client: Any, name: str) -> None:
        if connection.connection is not client:  # the block has closed it, and others may have it by now
            return
        with connection.wrap_database_errors:
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


# Just in time ----------------------------------------------------------------------------------------------------


class _Lock:
    """A client's lock that does something else, once, before it is taken for the first time.

    Its methods are the real one's: no signal's handler comes between these and the block, as between functions of ours.
    """

    def __init__(self, client: Any, act: Callable[[], Any]) -> None:
        self._client, self._lock, self._acts = client, client.lock, [act]
        self._guard = RLock()  # another thread has to wait until it is done; what does it uses the lock as well
        client.lock = self

    def put_back(self) -> None:
        if self._client.lock is self:
            self._client.lock = self._lock

    @property
    def __enter__(self) -> Any:
        with self._guard:
            while self._acts:
                self._acts.pop()()
                self.put_back()
        return self._lock.__enter__

    @property
    def __exit__(self) -> Any:
        return self._lock.__exit__


@contextmanager
def _before_its_use(client: Any, act: Callable[[], Any]) -> Iterator[None]:
    """Do something before a block first uses a client's connection or cursors; never, if it does not."""
    lock = _Lock(client, act)
    try:
        yield
    finally:
        lock.put_back()


_known: dict[type, bool] = {}  # classes of clients, and whether they do


def _locks(connection: Any) -> bool:
    """Tell whether a client takes its lock before it sends a statement, as psycopg 3 does; tried once for its class."""
    client = connection.connection
    if not hasattr(client, "lock"):
        return False
    if type(client) not in _known:
        taken: list[bool] = []
        with (
            connection.wrap_database_errors,
            _before_its_use(client, lambda: taken.append(True)),
            client.cursor() as cursor,
        ):
            cursor.execute("SELECT 1")
        _known[type(client)] = bool(taken)
    return _known[type(client)]
