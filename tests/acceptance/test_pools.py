"""Every pool of a Celery worker: each event once, under its own language and time zone, and sending on from there."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from django.utils import timezone, translation

from tests import worker_tasks
from tests.brokers import Broker
from tests.parameters import each_worker_broker
from tests.processes import Processes
from tests.reports import Reports, connected
from tests.shop.models import Customer, Tag
from tests.waiting import wait_until
from tests.worker_tasks import doorbell, look_around, wait_a_moment

pytestmark = pytest.mark.django_db(transaction=True)

RINGS = 24
PLACES = [("de", "Europe/Berlin"), ("fr", "Africa/Dakar"), ("en", "America/Lima")]


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(tmp_path / "reports")


def ring() -> dict[int, tuple[str, str]]:
    """Send many events from several places in turn; return which came from where."""
    sent = dict(zip(range(RINGS), itertools.cycle(PLACES), strict=False))
    for number, (language, zone) in sent.items():
        with translation.override(language), timezone.override(zone):
            doorbell.send(sender=None, number=number)
    return sent


@each_worker_broker("filesystem")
@pytest.mark.parametrize(("pool", "concurrency"), [("prefork", 2), ("threads", 4), ("solo", 1), ("gevent", 8)])
def test_pool(broker: Broker, processes: Processes, reports: Reports, pool: str, concurrency: int) -> None:
    """A worker of this pool runs each event once, under its own context, and sends what its receivers save (H63)."""
    modules = [worker_tasks.__name__, "tests.worker_connections"]
    worker = processes.worker(broker, pool=pool, concurrency=concurrency, modules=modules, env=reports.environment)

    with connected(doorbell, look_around):
        sent = ring()

    looked = {facts["number"]: facts for facts in reports.wait_for("look_around", RINGS)}
    followed = {facts["name"]: facts for facts in reports.wait_for("follow", RINGS)}
    assert sent == {number: (facts["language"], facts["zone"]) for number, facts in looked.items()}
    assert RINGS == len(looked) == len(followed) == Tag.objects.count()
    assert all(facts["event"]["is_current"] for facts in (*looked.values(), *followed.values()))
    for number, facts in looked.items():
        caused = followed[f"ring {number}"]["event"]
        assert (0, 1, facts["event"]["id"]) == (facts["event"]["depth"], caused["depth"], caused["parent_id"])
    assert (pool == "prefork") is ({worker.pid} != {facts["pid"] for facts in looked.values()})
    assert (RINGS, RINGS) == (len(reports.of("look_around")), len(reports.of("follow")))
    worker.kill()


@each_worker_broker("filesystem")
@pytest.mark.parametrize(("pool", "concurrency"), [("prefork", 2), ("threads", 4), ("solo", 1)])
def test_coroutines_in_a_pool(
    broker: Broker, processes: Processes, reports: Reports, pool: str, concurrency: int
) -> None:
    """A worker of this pool runs coroutine functions to their end, several at a time where it can (H13)."""
    worker = processes.worker(
        broker, pool=pool, concurrency=concurrency, modules=[worker_tasks.__name__], env=reports.environment
    )

    with connected(doorbell, wait_a_moment):
        ring()

    waited = reports.wait_for("wait_a_moment", RINGS)
    assert list(range(RINGS)) == sorted(facts["number"] for facts in waited)
    assert all(facts["event"]["is_current"] for facts in waited)
    wait_until(lambda: Customer.objects.count() == RINGS, what="the last commit")
    worker.kill()
