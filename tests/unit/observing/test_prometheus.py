"""Metrics: what a process counts, and what the databases say when they are scraped."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from celery import Celery
from celery.signals import worker_process_shutdown
from django.db import OperationalError, connections
from django.dispatch import Signal
from django.test.utils import CaptureQueriesContext
from prometheus_client import CollectorRegistry

from django_celery_signals import Fail, Relay
from django_celery_signals.durable.deliveries import DeliveryQuerySet, State, deliveries
from django_celery_signals.durable.pauses import pause
from django_celery_signals.event import new_event
from django_celery_signals.observing import prometheus
from django_celery_signals.signals import LIFECYCLE, event_lost, receiver_discarded, receiver_started, tell
from tests.delivering import moment, place
from tests.drain import drain
from tests.parameters import each_database
from tests.receiving import Receiving

NAME = "tests.nobody"
PREFIX = prometheus.PREFIX


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    """A registry of the test's own, in which this process counts."""
    registry = CollectorRegistry()
    prometheus.connect(registry)
    yield registry
    prometheus.disconnect(registry)


@pytest.fixture
def standing() -> CollectorRegistry:
    """A registry that asks the databases."""
    registry = CollectorRegistry()
    registry.register(prometheus.Deliveries())
    return registry


def value(registry: CollectorRegistry, name: str, receiver: str = NAME, **labels: str) -> float | None:
    return registry.get_sample_value(f"{PREFIX}_{name}", {"receiver": receiver, **labels})


# Counts --------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_success(registry: CollectorRegistry, receiving: Receiving, celery_app: Celery) -> None:
    """A run that returns is counted, with what it took and how long it had to wait."""
    bell = Signal()
    name = receiving(bell).name
    bell.send(sender=None)
    drain(celery_app)

    assert (1, 1) == (value(registry, "sent_total", name), value(registry, "succeeded_total", name))
    for metric in ("run_seconds", "wait_seconds"):
        assert 1 == value(registry, f"{metric}_count", name)
        assert 0 <= (value(registry, f"{metric}_sum", name) or -1) < 60


@pytest.mark.django_db(transaction=True)
def test_a_failure(registry: CollectorRegistry, receiving: Receiving, celery_app: Celery) -> None:
    """What fails is counted apart from what will run again; no text of an error is told, and nothing that was sent."""
    bell, tries = Signal(), []

    def refuse(word: str) -> None:
        tries.append(word)
        raise (ValueError if len(tries) == 1 else Fail)("a secret")

    name = receiving(bell, refuse, guarantee="durable").name
    bell.send(sender=None, word="a secret")
    drain(celery_app)
    deliveries("default").update(due_at=moment(-1))
    assert 1 == Relay(app=celery_app, databases=["default"]).once()
    drain(celery_app)

    assert ["a secret"] * 2 == tries
    assert 1 == value(registry, "failed_total", name, will_retry="true")
    assert 1 == value(registry, "failed_total", name, will_retry="false")
    assert 1 == value(registry, "given_up_total", name)
    assert "secret" not in str(list(registry.collect()))


def test_what_does_not_arrive(registry: CollectorRegistry) -> None:
    """What is lost and what is dropped are counted."""
    tell(event_lost, NAME, event_id="1", signal_name="", summary="", error=ValueError())
    tell(receiver_discarded, NAME, event=new_event(NAME, "", "", "default"), reason="")

    assert (1, 1) == (value(registry, "lost_total"), value(registry, "discarded_total"))


@pytest.mark.parametrize(("ago", "seconds"), [(90, 90), (-90, 0)])
def test_clocks_that_differ(
    registry: CollectorRegistry, ago: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sending that seems to be in the future has waited for no time."""
    event = new_event(NAME, "", "", "default")
    clock = type(
        "Clock", (), {"now": staticmethod(lambda zone: event.sent_at.astimezone(UTC) + timedelta(seconds=ago))}
    )
    monkeypatch.setattr(prometheus, "datetime", clock)
    tell(receiver_started, NAME, event=event)

    assert seconds == value(registry, "wait_seconds_sum")


def test_connecting_twice(registry: CollectorRegistry) -> None:
    """To connect once more changes nothing, nor does to disconnect what is not connected."""
    prometheus.connect(registry)
    tell(event_lost, NAME)
    assert 1 == value(registry, "lost_total")

    prometheus.disconnect(registry)
    prometheus.disconnect(registry)
    tell(event_lost, NAME)
    assert [] == list(registry.collect())


def test_every_signal_is_listened_to(registry: CollectorRegistry) -> None:
    """None of the library's signals is left out."""
    assert set(LIFECYCLE) == set(prometheus._connected[registry].listeners)


# How deliveries stand ------------------------------------------------------------------------------------------------


@each_database
def test_deliveries(alias: str, standing: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every database says how its deliveries stand, with a query or two for each figure."""
    monkeypatch.setattr(prometheus, "keeping", lambda: [alias])
    place(alias, NAME, 2, due_at=moment(-90))
    place(alias, NAME, state=State.FAILED, due_at=moment(60))
    pause("tests.lazy", alias)

    with CaptureQueriesContext(connections[alias]) as queries:
        found = {metric.name: metric.samples for metric in standing.collect()}

    def of(name: str) -> list[tuple[dict[str, str], float]]:
        return [(sample.labels, sample.value) for sample in found[f"{PREFIX}_{name}"]]

    [(labels, seconds)] = of("oldest_due_seconds")
    here = {"database": alias}
    assert (here, 90) == (labels, round(seconds))
    assert [[(here, 2)], [(here, 1)], [(here, 1)]] == [of("waiting"), of("failed"), of("up")]
    assert [({**here, "receiver": "tests.lazy"}, 1)] == of("paused")
    assert 10 > len(queries)


@pytest.mark.django_db
def test_counting_has_an_end(standing: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has failed is counted up to a bound."""
    monkeypatch.setattr(prometheus, "MOST_FAILED", 3)
    monkeypatch.setattr(prometheus, "keeping", lambda: ["default"])
    place("default", NAME, 5, state=State.FAILED, due_at=moment(60))

    assert 3 == standing.get_sample_value(f"{PREFIX}_failed", {"database": "default"})


@pytest.mark.django_db(databases=["default", "other"])
def test_a_database_that_is_away(standing: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no sample but that it is away, and the others have all theirs."""
    lag = DeliveryQuerySet.lag

    def fail(rows: DeliveryQuerySet) -> float:
        if rows.db == "default":
            raise OperationalError("The database is away.")
        return lag(rows)

    monkeypatch.setattr(prometheus, "keeping", lambda: ["default", "other"])
    monkeypatch.setattr(DeliveryQuerySet, "lag", fail)
    samples = [sample for metric in standing.collect() for sample in metric.samples]

    assert [(f"{PREFIX}_up", 0)] == [(one.name, one.value) for one in samples if one.labels["database"] == "default"]
    others = {one.name: one.value for one in samples if one.labels["database"] == "other"}
    assert {f"{PREFIX}_{name}": 0 for name in ("oldest_due_seconds", "waiting", "failed")} | {
        f"{PREFIX}_up": 1
    } == others


def test_to_register_asks_no_database() -> None:
    """Where apps are being loaded no database is asked; the test may not."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(prometheus.Deliveries())

    assert f"{PREFIX}_up" in registry._names_to_collectors


# Serve ---------------------------------------------------------------------------------------------------------------


def scrape(**given: Any) -> str:
    """Serve, look at it once, and end."""
    server, thread = prometheus.serve(0, **given)
    try:
        with urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=30) as answer:
            return str(answer.read().decode())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.django_db(transaction=True)
def test_one_process_serves(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process serves what it counts, and what the databases say; connections of the server's thread are closed."""
    closed = []
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr(prometheus, "keeping", lambda: ["default"])
    monkeypatch.setattr(type(connections["default"]), "close", lambda self: closed.append(self.alias) or _close(self))
    tell(event_lost, NAME)

    said = scrape(registry=registry)

    assert f'{PREFIX}_lost_total{{receiver="{NAME}"}} 1.0' in said
    assert f'{PREFIX}_up{{database="default"}} 1.0' in said
    assert ["default"] == closed


_close = type(connections["default"]).close


def test_without_deliveries(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """No database is asked where that is not wanted."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)

    assert f"{PREFIX}_up" not in scrape(registry=registry, deliveries=False)


def test_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes share a folder, each child says when it ends, and what is served is what the folder has."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    registry = CollectorRegistry()
    prometheus.connect(registry)
    live = tmp_path / "gauge_liveall_99999999.db"
    live.touch()
    try:
        worker_process_shutdown.send(sender=None, pid=99999999, exitcode=0)
        tell(event_lost, NAME)
    finally:
        prometheus.disconnect(registry)
        worker_process_shutdown.disconnect(dispatch_uid=f"{prometheus.__name__}.child_ends")

    assert not live.exists()
    assert "lost" not in scrape(registry=registry, deliveries=False)  # this process began without it


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of threads in the process
def test_a_fork_waits(registry: CollectorRegistry) -> None:
    """A child that is forked while another thread counts has inherited no lock that is held."""
    held, count = threading.Event(), prometheus._connected[registry].lost

    def hold() -> None:
        with prometheus._counting, count._lock:
            held.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(30)
    if (pid := os.fork()) == 0:
        signal.alarm(5)  # which ends it, if it waits for ever
        tell(event_lost, NAME)
        os._exit(0)
    other.join()

    assert 0 == os.waitpid(pid, 0)[1]
    tell(event_lost, NAME)
    assert 1 == value(registry, "lost_total")
