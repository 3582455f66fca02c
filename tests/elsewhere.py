"""Other threads of a test, each with database connections of its own; and how a connection sees the others' work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from django.db import connections

from django_celery_signals.durable import hold

T = TypeVar("T")


def elsewhere(act: Callable[[], T]) -> T:
    """Do something in a connection of its own, and return what comes of it."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_and_close, act).result()


def _and_close(act: Callable[[], T]) -> T:
    try:
        return act()
    finally:
        connections.close_all()


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A transaction that another thread has open."""

    using: str
    thread: ThreadPoolExecutor

    def begin(self, act: Callable[[], T]) -> Future[T]:
        """Let it do something that may wait for others."""
        return self.thread.submit(act)

    def do(self, act: Callable[[], T]) -> T:
        """Let it do something."""
        return self.begin(act).result()

    def commit(self) -> None:
        """Commit what it has done."""
        self.do(lambda: connections[self.using].commit())


@contextmanager
def other_transaction(using: str, act: Callable[[], Any]) -> Iterator[Other]:
    """Open a transaction in another thread, and let it do something; in the end it is rolled back."""
    with ThreadPoolExecutor(1) as thread:
        other = Other(using=using, thread=thread)
        other.do(lambda: connections[using].set_autocommit(False))
        try:
            other.do(act)
            yield other
        finally:
            other.do(lambda: connections[using].rollback())
            other.do(connections.close_all)


@contextmanager
def connecting(using: str, **options: Any) -> Iterator[None]:
    """Open the connections to a database with further options, such as an isolation level."""
    config = connections.settings[using]
    saved = config["OPTIONS"]
    config["OPTIONS"] = {**saved, **options}
    _forget(using)
    try:
        yield
    finally:
        config["OPTIONS"] = saved
        _forget(using)


def _forget(using: str) -> None:
    connections[using].close()
    hold._sees_the_past.cache_clear()


def execute(using: str, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """Execute a statement, and return its rows, if it has any."""
    with connections[using].cursor() as cursor:
        cursor.execute(sql, params or None)
        return list(cursor.fetchall()) if cursor.description else []
