"""What becomes of an event when its receiver fails or its worker dies, and what a receiver leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.utils import timezone, translation

from tests import worker_tasks
from tests.brokers import Broker
from tests.parameters import each_worker_broker
from tests.processes import Process, Processes
from tests.reports import Reports, connected
from tests.shop.models import Tag
from tests.waiting import wait_until
from tests.worker_tasks import (
    die_once,
    doorbell,
    fail_here,
    keep_trying,
    keep_trying_in_a_coroutine,
    look_around,
    tell_place,
)

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(tmp_path / "reports")


def start(processes: Processes, broker: Broker, reports: Reports, pool: str) -> Process:
    settings = {"worker_lost_wait": 0.1}  # seconds until the worker believes that a process of its pool has died
    modules = [worker_tasks.__name__]
    return processes.worker(broker, pool=pool, modules=modules, settings=settings, env=reports.environment)


@each_worker_broker
def test_autoretry(broker: Broker, processes: Processes, reports: Reports) -> None:
    """autoretry_for runs an event again, for coroutine functions as well; only the last try's work stays (H13, H47)."""
    worker = start(processes, broker, reports, "prefork")
    names = ["keep_trying", "keep_trying_in_a_coroutine"]

    with connected(doorbell, keep_trying), connected(doorbell, keep_trying_in_a_coroutine):
        doorbell.send(sender=None, number=7)

    for name in names:
        tries = reports.wait_for(name, 3)
        assert [(7, 0), (7, 1), (7, 2)] == [(facts["number"], facts["retries"]) for facts in tries]
        assert 1 == len({facts["id"] for facts in tries})
    wait_until(lambda: Tag.objects.count() == 2, what="the last commit")
    assert {f"{name} 2" for name in names} == set(Tag.objects.values_list("name", flat=True))
    worker.kill()


@each_worker_broker
def test_process_that_dies(broker: Broker, processes: Processes, reports: Reports) -> None:
    """An event whose process was killed runs again in another one, with the same id, and half its work undone (H47)."""
    worker = start(processes, broker, reports, "prefork")

    with connected(doorbell, die_once):
        doorbell.send(sender=None, number=7)

    first, second = reports.wait_for("die_once", 2)
    assert (7, first["id"]) == (second["number"], second["id"])
    assert first["pid"] != second["pid"]
    wait_until(lambda: Tag.objects.exists(), what="the commit")
    assert ["done"] == list(Tag.objects.values_list("name", flat=True))
    assert 2 == len(reports.of("die_once"))
    worker.kill()


@each_worker_broker("filesystem")
@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_nothing_is_left_for_the_next_task(broker: Broker, processes: Processes, reports: Reports, pool: str) -> None:
    """Language, time zone, event and transaction of a receiver end with it, also when it fails (H63)."""
    worker = start(processes, broker, reports, pool)

    with connected(doorbell, look_around), connected(doorbell, fail_here):
        for number, (language, zone) in enumerate([("de", "Europe/Berlin"), ("fr", "Africa/Dakar")]):
            with translation.override(language), timezone.override(zone):
                doorbell.send(sender=None, number=number)
                tell_place.delay()

    told = reports.wait_for("tell_place", 2)
    assert [{"place": ["en", "UTC", None], "in_block": False}] * 2 == told
    places = [(facts["language"], facts["zone"]) for facts in reports.of("look_around")]
    assert [("de", "Europe/Berlin"), ("fr", "Africa/Dakar")] == places
    worker.kill()
