"""What is done before a client is next used: once, in its order, and whatever comes in between."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Event, Lock
from typing import Any

import pytest

from django_celery_signals.durable import client as module


class Client:
    """A client as far as it is asked."""

    def __init__(self, lock: Any = None) -> None:
        if lock is not None:
            self.lock = lock
        self.wrap_database_errors, self.connection, self.asked = nullcontext(), self, 0

    def cursor(self) -> Any:
        return nullcontext(self)

    def execute(self, sql: str) -> None:
        self.asked += 1


class Locking(Client):
    """One that takes its lock."""

    def execute(self, sql: str) -> None:
        super().execute(sql)
        with self.lock:
            assert self.lock.locked()


@pytest.mark.parametrize("make", [lambda: Locking(Lock()), lambda: Client(Lock()), Client])
def test_which_client_can_be_waited_for(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes its lock for what it sends; it is tried once."""
    monkeypatch.setattr(module, "_known", {})
    client = make()
    lock = getattr(client, "lock", None)

    found = [module.takes_its_lock(client) for _ in range(2)]

    assert [type(client) is Locking] * 2 == found
    assert (lock is not None) == client.asked
    assert lock is getattr(client, "lock", None)


def test_one_within_another() -> None:
    """Of two that wait for the same use the outer one begins first, and each once."""
    client, done = Client(Lock()), list[str]()
    real = client.lock

    def begin(name: str) -> Callable[[], None]:
        def act() -> None:
            with client.lock:  # as a client does that executes something
                done.append(name)

        return act

    with module.before_its_use(client, begin("outer")):
        with module.before_its_use(client, begin("inner")):
            for _ in range(2):
                with client.lock:
                    assert real.locked()
        with client.lock:
            assert real.locked()

    assert (["outer", "inner"], real) == (done, client.lock)


def test_threads_that_share_a_client() -> None:
    """Whoever else uses the connection waits until the savepoint has begun."""
    client, done, is_beginning, has_overtaken = Client(Lock()), list[str](), Event(), Event()

    def begin() -> None:
        is_beginning.set()
        has_overtaken.wait(0.05)
        with client.lock:
            done.append("savepoint")

    def use(name: str) -> None:
        with client.lock:
            done.append(name)

    def use_later() -> None:
        is_beginning.wait(5)
        use("second")
        has_overtaken.set()

    with module.before_its_use(client, begin), ThreadPoolExecutor(1) as others:
        second = others.submit(use_later)
        use("first")
        second.result()

    assert "savepoint" == done[0]
    assert {"savepoint", "first", "second"} == set(done)


class TimeIsUp(BaseException):
    """As a time limit, which comes at any moment."""


def test_time_limit_at_any_moment() -> None:
    """A signal's handler that raises while the lock is taken or given back leaves it free."""
    client, moments = Client(Lock()), random.Random(5)

    def stop(*_: Any) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    try:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            real = client.lock
            try:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, 12e-6))
                module.on_its_next_use(client, int)
                lock: Any = client.lock
                with client.lock:
                    pass
                lock.put_back()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except TimeIsUp:
                pass
            client.lock = real
            assert real.acquire(blocking=False)
            real.release()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
