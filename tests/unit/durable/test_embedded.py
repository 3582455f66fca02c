"""The relay inside of a worker: it begins when the worker is ready, and ends with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from celery import Celery
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down
from django.db import connections
from django.test import override_settings

from django_celery_signals.durable import embedded
from django_celery_signals.durable.deliveries import State
from django_celery_signals.durable.relay import Relay
from tests.brokers import Broker
from tests.delivering import place, states
from tests.making import Tasks
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

NAME = "django-celery-signals-relay-default"
ON = override_settings(DJANGO_CELERY_SIGNALS={"EMBED_RELAY": True})


@pytest.fixture(autouse=True)
def only_the_default(monkeypatch: pytest.MonkeyPatch, broker: Broker) -> Iterator[None]:
    """Relays look at one database only; none of them outlives the test."""
    monkeypatch.setattr(embedded, "keeping", lambda: ["default"])
    yield
    embedded.join()


@dataclass(eq=False)
class Consumer:
    """What Celery sends as the worker that is ready."""

    app: Celery


def relays() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@ON
def test_relay_lives_as_long_as_its_worker(celery_app: Celery, tasks: Tasks) -> None:
    """A worker that is ready has a relay, for its own app; one that is told to end waits for it at the end only."""
    place("default", tasks.shared())

    worker_ready.send(sender=Consumer(celery_app))
    wait_until(lambda: states("default") == {"sent": 1}, what="the publication")
    [thread] = relays()
    worker_shutting_down.send(sender=None, sig="SIGTERM", how="Warm", exitcode=0)
    worker_shutdown.send(sender=None)

    assert thread.daemon
    assert not thread.is_alive()
    assert [] == embedded._running


@ON
def test_relay_of_the_project(celery_app: Celery) -> None:
    """Without a word about the app the relay serves the project's."""
    embedded.start()

    [(relay, _)] = embedded._running
    assert celery_app is relay.app


@override_settings(DJANGO_CELERY_SIGNALS={"EMBED_RELAY": False})
def test_relay_is_switched_off(celery_app: Celery, tasks: Tasks) -> None:
    """With EMBED_RELAY off a worker has none, and ends as it does without."""
    place("default", tasks.shared(), state=State.READY)

    worker_ready.send(sender=Consumer(celery_app))
    worker_shutting_down.send(sender=None)
    worker_shutdown.send(sender=None)

    assert [] == relays()
    assert {"ready": 1} == states("default")


@ON
def test_end_of_a_worker_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that does not end keeps its worker for a while only."""
    held, stopped = threading.Event(), threading.Event()
    monkeypatch.setattr(embedded, "PATIENCE", 0.1)
    monkeypatch.setattr(Relay, "run", lambda self: held.wait(30))
    monkeypatch.setattr(Relay, "stop", lambda self: stopped.set())
    embedded.start()
    [thread] = relays()

    embedded.join()

    assert thread.is_alive()
    assert stopped.is_set()
    held.set()
    thread.join()


def test_listens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the app is loaded, a worker gets one relay."""
    counts = [len(signal.receivers) for signal in (worker_ready, worker_shutting_down, worker_shutdown)]
    embedded.embed()

    assert counts == [len(signal.receivers) for signal in (worker_ready, worker_shutting_down, worker_shutdown)]


@ON
def test_databases_do_not_wait_for_each_other(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each database has a relay of its own, so that one that does not answer delays no other's deliveries."""
    monkeypatch.setattr(embedded, "keeping", lambda: ["default", "other"])
    monkeypatch.setattr(Relay, "run", lambda self: None)
    embedded.start()

    assert [["default"], ["other"]] == [relay.databases for relay, _ in embedded._running]


# Children that are forked meanwhile ----------------------------------------------------------------------------------


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[[], None]]]:
    """What is done at a fork."""
    registered: dict[str, Callable[[], None]] = {}
    monkeypatch.setattr(os, "register_at_fork", registered.update)
    embedded._guard.cache_clear()
    yield registered
    embedded._guard.cache_clear()


@ON
def test_no_child_is_forked_in_a_batch(hooks: dict[str, Callable[[], None]], celery_app: Celery) -> None:
    """While a relay is busy with SQLite, a fork of its worker waits; it does not while the relay sleeps."""
    worker_ready.send(sender=Consumer(celery_app))
    guard, forked = embedded._guard(), threading.Event()
    [(relay, _)] = embedded._running

    def fork() -> None:
        hooks["before"]()
        forked.set()
        hooks["after_in_parent"]()

    assert guard is relay.guard
    with guard:
        thread = threading.Thread(target=fork)
        thread.start()
        assert not forked.wait(0.2)
    thread.join(5)
    assert forked.is_set()
    wait_until(lambda: not guard.locked(), what="a relay that sleeps")


@ON
@pytest.mark.parametrize("after", ["after_in_parent", "after_in_child"])
def test_a_fork_waits_for_a_bounded_time(
    hooks: dict[str, Callable[[], None]], monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """A batch that takes long delays a fork for seconds, and is then left alone."""
    monkeypatch.setattr(embedded, "LONGEST_BATCH", 0.1)
    guard = embedded._guard()
    with guard:
        hooks["before"]()
        hooks[after]()
        assert guard.locked()
    hooks["before"]()
    assert guard.locked()
    hooks[after]()
    assert not guard.locked()


@ON
def test_other_databases_need_no_guard(
    hooks: dict[str, Callable[[], None]], celery_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's clients have no such locks."""
    monkeypatch.setattr(connections["default"], "vendor", "postgresql")
    worker_ready.send(sender=Consumer(celery_app))

    assert {} == hooks
