"""What is counted: everything that the library's own signals tell, by the database that it belongs to."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.signals import worker_process_shutdown
from django.dispatch import Signal
from django.test import override_settings

from django_celery_signals import Discard, Relay, RetryAfter, execution
from django_celery_signals.durable import upkeep as relays
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.upkeep import Upkeep
from django_celery_signals.signals import LIFECYCLE, event_sent, tell
from django_celery_signals.statistics import counting as module
from django_celery_signals.statistics import upkeep
from django_celery_signals.statistics.flushing import Counts, Flusher
from django_celery_signals.statistics.table import SUMS
from django_celery_signals.wire import ARGUMENT
from tests.brokers import Broker
from tests.delivering import moment, place
from tests.drain import drain, take
from tests.receiving import Receiving, ignore
from tests.unit.test_costs import calls

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

bell = Signal()


@pytest.fixture(autouse=True)
def counts(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Counts:
    """The test's own, of which nobody writes anything."""
    counts = Counts()
    monkeypatch.setattr(module, "counts", counts)
    monkeypatch.setattr(Flusher, "wake", lambda self: None)
    return counts


def found(counts: Counts) -> list[tuple[str, str, dict[str, float]]]:
    """Return what was counted for each database and receiver, without the runtime."""
    return [
        (
            alias,
            receiver,
            {name: count for name, count in zip(SUMS, figures, strict=True) if count and name != "runtime"},
        )
        for (alias, receiver, _), figures in counts.take().items()
    ]


def fail(**kwargs: Any) -> None:
    raise LookupError("the number 4111 is unknown")


def drop(**kwargs: Any) -> None:
    raise Discard("too late")


def delay(**kwargs: Any) -> None:
    raise RetryAfter(60)


@pytest.mark.parametrize(
    ("guarantee", "function", "figure"),
    [
        *[("durable", ignore, "succeeded"), ("durable", fail, "failed"), ("durable", drop, "discarded")],
        ("durable", delay, "retried"),
        *[("immediate", ignore, "succeeded"), ("immediate", fail, "failed"), ("immediate", drop, "discarded")],
    ],
)
@pytest.mark.parametrize("using", ["default", "other"])
def test_runs(
    guarantee: str, function: Any, figure: str, using: str, receiving: Receiving, counts: Counts, celery_app: Celery
) -> None:
    """A sending, and how its run ends, are counted once, in the sending's database, whatever the guarantee."""
    task = receiving(bell, function, guarantee=guarantee, max_retries=0 if function is fail else 3)

    bell.send(sender=None, using=using)
    drain(celery_app)

    assert [(using, task.name, {"sent": 1, figure: 1})] == found(counts)


def test_runtime(receiving: Receiving, counts: Counts, celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds of runs that succeed add up."""
    moments = iter([10.0, 11.5, 20.0, 20.25])  # when each begins, and when it ends
    monkeypatch.setattr(execution, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    receiving(bell, guarantee="immediate")
    for _ in range(2):
        bell.send(sender=None)
    drain(celery_app)

    ((_, figures),) = counts.take().items()
    assert 1.75 == figures[-1]


def test_what_a_relay_sends(celery_app: Celery, receiving: Receiving, counts: Counts) -> None:
    """What a relay publishes is counted in the relay's process, each of those that go together."""
    task = receiving(bell, guarantee="durable", chunk_size=10)
    for alias, count in (("default", 30), ("other", 1)):
        place(alias, task, count)

    Relay(app=celery_app, databases=["default", "other"]).once()

    assert [("default", task.name, {"sent": 30}), ("other", task.name, {"sent": 1})] == found(counts)
    assert len(take(celery_app)) < 31


def test_what_a_relay_gives_up(celery_app: Celery, receiving: Receiving, counts: Counts) -> None:
    """A receiver that kills its workers, or that nobody knows, has failed as well, though no worker says so."""
    task = receiving(bell, guarantee="durable")
    place("other", task, state=State.RUNNING, due_at=moment(-1), crashes=4)
    place("other", "tests.nobody", reruns=60)

    Upkeep(celery_app, "other").expire()
    Relay(app=celery_app, databases=["other"]).once()

    assert [("other", task.name, {"failed": 1}), ("other", "tests.nobody", {"failed": 1})] == found(counts)


def test_an_event_that_cannot_be_read(celery_app: Celery, receiving: Receiving, counts: Counts) -> None:
    """A delivery whose event is damaged fails in the database that has it; where nothing says one, none is counted."""
    task = receiving(bell, guarantee="durable")
    bell.send(sender=None, using="other")
    deliveries("other").update(payload="damaged")
    drain(celery_app)
    assert [("other", task.name, {"sent": 1, "failed": 1})] == found(counts)

    task.apply(kwargs={ARGUMENT: "damaged"}, throw=False)
    assert [] == found(counts)


# In a process --------------------------------------------------------------------------------------------------------


def listeners() -> set[Any]:
    return {listener for signal in LIFECYCLE for _, listener, *_ in signal.receivers if _is_ours(listener())}


def _is_ours(listener: Any) -> bool:
    return getattr(listener, "__module__", None) == module.__name__


@pytest.fixture
def disconnected() -> Iterator[None]:
    """A process before it counts; and as it was, afterwards."""
    further = dict(relays.further)
    disconnect()
    yield
    disconnect()
    module.connect()
    assert further == relays.further


def disconnect() -> None:
    for signal, listener in module.LISTENERS.items():
        signal.disconnect(listener)
    relays.further.clear()


@override_settings(DJANGO_CELERY_SIGNALS={"STATISTICS_DAYS": 0})
def test_switched_off(disconnected: None) -> None:
    """Without statistics there is no listener, and a relay only deletes what was counted before."""
    module.connect()

    assert set() == listeners()
    assert {upkeep.purge: upkeep.PURGE_EVERY} == relays.further


def test_connected_once(disconnected: None) -> None:
    """However often an app is made ready, everything is counted once."""
    for _ in range(2):
        module.connect()

    assert len(module.LISTENERS) == len(listeners())
    assert {upkeep.purge, upkeep.note} == relays.further.keys()


def test_the_end_of_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's child, which ends past Python's own hooks, writes at its end what is left."""
    ended: list[Flusher] = []
    monkeypatch.setattr(Flusher, "finish", lambda flusher: ended.append(flusher))

    worker_process_shutdown.send(sender=None, pid=1, exitcode=0)

    assert [module.flusher] == ended


def test_a_forked_child(monkeypatch: pytest.MonkeyPatch, counts: Counts) -> None:
    """A child begins with no counts and no thread: what its parent has counted is the parent's to write."""
    monkeypatch.setattr(module, "flusher", Flusher(counts))
    counts.add("default", "shop.a", 0)
    reading, writing = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # of threads in the process
        pid = os.fork()
    if pid == 0:
        os.write(writing, json.dumps([len(module.counts.take()), module.flusher._thread is None]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert [0, True] == json.load(said)
    assert (module.counts, 1) == (counts, len(counts.take()))


def test_a_fork_waits(monkeypatch: pytest.MonkeyPatch, counts: Counts) -> None:
    """While SQLite is written to no child is forked, but a fork does not wait for ever."""
    flusher = Flusher(counts)
    monkeypatch.setattr(module, "flusher", flusher)
    monkeypatch.setattr(module, "LONGEST_FLUSH", 0.1)

    for is_free in (True, False):
        with nullcontext() if is_free else flusher.busy:
            began = time.monotonic()
            module._wait()
            waited = time.monotonic() - began
            module._go_on()
            assert is_free != flusher.busy.locked()
        assert (waited < 0.1) is is_free
    module._wait()
    module._begin_anew()
    assert ([], False, True) == (module._held, module.flusher.busy.locked(), module.counts is not counts)


def test_the_cost(counts: Counts) -> None:
    """To count an event costs a few calls, most of them of Django's, which tells the listener."""

    def send() -> None:
        tell(event_sent, "shop.a", event_id="1", signal_name="shop:sold", using="default")

    with_it = calls(send)
    event_sent.disconnect(module.LISTENERS[event_sent])
    try:
        without = calls(send)
    finally:
        module.connect()

    assert with_it - without < 26
