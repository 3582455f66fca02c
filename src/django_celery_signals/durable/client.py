"""Something that is to be done before a database's client is next used, by whomever and for whatever.

psycopg 3 takes a lock for all that it sends, so the lock is what knows. Something else than psycopg's own stands in its
place only as long as something is to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

Act = Callable[[], Any]


class _Lock:
    """A client's lock that does something else, once, before it is taken for the first time.

    Its methods are the real one's: no signal's handler comes between these and the block, as between functions of ours.
    """

    def __init__(self, client: Any) -> None:
        self._client, self._lock, self.acts = client, client.lock, list[Act]()
        self._guard = RLock()  # another thread has to wait until it is done; what does it uses the lock as well
        client.lock = self

    def put_back(self) -> None:
        if self._client.lock is self and not self.acts:
            self._client.lock = self._lock

    @property
    def __enter__(self) -> Any:
        with self._guard:
            acts, self.acts = self.acts, []  # which may themselves use the client
            try:
                while acts:
                    acts.pop(0)()
            finally:
                self.acts += acts  # those behind one that has raised
                self.put_back()
        return self._lock.__enter__

    @property
    def __exit__(self) -> Any:
        return self._lock.__exit__


def on_its_next_use(client: Any, act: Act) -> None:
    """Do something before a client is next used; what raises, raises there. Several things are done in their order."""
    lock = client.lock if isinstance(client.lock, _Lock) else _Lock(client)
    lock.acts.append(act)


def not_any_more(client: Any, act: Act) -> None:
    """Do it no more, if it has not been done."""
    if isinstance(client.lock, _Lock):
        client.lock.acts[:] = [one for one in client.lock.acts if one != act]
        client.lock.put_back()


@contextmanager
def before_its_use(client: Any, act: Act) -> Iterator[None]:
    """Do something before a block first uses a client's connection or cursors; never, if it does not."""
    on_its_next_use(client, act)
    try:
        yield
    finally:
        not_any_more(client, act)


_known: dict[type, bool] = {}  # classes of clients, and whether they do


def takes_its_lock(connection: Any) -> bool:
    """Tell whether a client takes its lock before it sends a statement, as psycopg 3 does; tried once for its class."""
    client = connection.connection
    if not hasattr(client, "lock"):
        return False
    if type(client) not in _known:
        taken: list[bool] = []
        with (
            connection.wrap_database_errors,
            before_its_use(client, lambda: taken.append(True)),
            client.cursor() as cursor,
        ):
            cursor.execute("SELECT 1")
        _known[type(client)] = bool(taken)
    return _known[type(client)]
