"""Events that a real worker process receives, over every broker that leads out of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.db import transaction
from django.db.models.signals import post_save
from django.dispatch import Signal
from django.utils import timezone

from django_celery_signals import connect, disconnect
from django_celery_signals.dispatch import ARGUMENT
from tests import worker_tasks
from tests.brokers import Broker
from tests.parameters import each_worker_broker, needs
from tests.peers import Peer
from tests.processes import Process, Processes, wait_until
from tests.services import SERVICES, absent
from tests.shop.models import Customer, Tag
from tests.worker_tasks import REPORT, count_together, doorbell, note, read_reports, try_again, wait_a_moment

ALIASES = [alias for alias in ("default", "other", "postgres", "mariadb") if alias not in absent()]
TASKS = worker_tasks.__name__


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """The file into which the worker's tasks write."""
    return tmp_path / "reports"


@contextmanager
def connected(signal: Signal, task: Any, **options: Any) -> Iterator[None]:
    sender = options.get("sender")
    connect(signal, task, **options)
    try:
        yield
    finally:
        assert disconnect(signal, task, sender=sender)


def start_worker(processes: Processes, broker: Broker, reports: Path, **more: Any) -> Process:
    env = {REPORT: str(reports), **more.pop("env", {})}
    return processes.worker(broker, modules=more.pop("modules", [TASKS]), env=env, **more)


def wait_for(reports: Path, task: str, count: int, *, timeout: float = 30) -> list[dict[str, Any]]:
    """Return what a task has reported, when it has done so often enough."""
    wait_until(lambda: len(read_reports(reports, task)) >= count, timeout=timeout, what=f"{count} reports of {task}")
    return read_reports(reports, task)


@each_worker_broker
@pytest.mark.django_db(transaction=True, databases=ALIASES)
def test_worker_receives_what_was_committed(broker: Broker, processes: Processes, reports: Path) -> None:
    """A worker is given the row from the database it was saved to, the live class and signal, and its event (H48, H49)."""
    start_worker(processes, broker, reports)
    before = timezone.now()

    with connected(post_save, note, sender=Tag):
        for alias in ALIASES:
            with transaction.atomic(using=alias):
                Tag.objects.using(alias).create(name=alias)
            with transaction.atomic(using=alias):
                Tag.objects.using(alias).create(name="ghost")
                transaction.set_rollback(True, using=alias)

    received = wait_for(reports, "note", len(ALIASES))
    assert len(ALIASES) == len(received)
    for alias, facts in zip(ALIASES, received, strict=True):
        event = facts.pop("event")
        assert {
            "task": "note",
            "sender": "tests.shop.models.Tag",
            "signal": "post_save",
            "name": alias,
            "created": True,
            "using": [alias, alias],
        } == facts
        assert ("django.db.models.signals:post_save", 0, None, True) == (
            event["signal_name"],
            event["depth"],
            event["parent_id"],
            event["is_current"],
        )
        assert before <= datetime.fromisoformat(event["sent_at"]) <= timezone.now()


@each_worker_broker
@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_worker_goes_on_after_trouble(celery_app: Celery, broker: Broker, processes: Processes, reports: Path) -> None:
    """Forged and unknown messages and retries harm nothing; coroutines and ordinary calls run beside them (H13, H32)."""
    worker = start_worker(processes, broker, reports)

    note.apply_async(kwargs={ARGUMENT: "forged"})
    celery_app.send_task("tests.of_nobody", kwargs={"number": 1})
    with connected(doorbell, try_again), connected(doorbell, wait_a_moment):
        doorbell.send(sender=None, number=7)
    count_together.delay(2, second=3)

    tries = wait_for(reports, "try_again", 2)
    (coroutine,) = wait_for(reports, "wait_a_moment", 1)
    assert [{"task": "count_together", "sum": 5}] == wait_for(reports, "count_together", 1)
    assert [True, False] == [facts["first"] for facts in tries]
    assert 1 == len({facts["id"] for facts in tries})
    assert ("coroutine 7", True) == (coroutine["name"], coroutine["event"]["is_current"])
    assert Customer.objects.filter(name="coroutine 7").exists()
    assert not Tag.objects.filter(name="undone").exists()
    worker.wait_for("tests.worker_tasks.note cannot read its event: The envelope's signature does not match")
    worker.wait_for("Received unregistered task of type 'tests.of_nobody'")


@each_worker_broker("filesystem")
@pytest.mark.django_db(transaction=True)
def test_worker_drops_what_is_gone(broker: Broker, processes: Processes, reports: Path) -> None:
    """An event whose row is gone before the worker looks is dropped, with a line in the log that names the row (H53)."""
    with connected(post_save, note, sender=Tag):
        tag = Tag.objects.create(name="gone")
        pk = tag.pk
        Tag.objects.filter(pk=pk).delete()
        Tag.objects.create(name="there")

    worker = start_worker(processes, broker, reports)

    assert ["there"] == [facts["name"] for facts in wait_for(reports, "note", 1)]
    worker.wait_for(f"shop.Tag pk={pk} no longer exists")


@each_worker_broker("filesystem")
@pytest.mark.django_db(transaction=True)
def test_worker_stops_a_loop(broker: Broker, processes: Processes, reports: Path) -> None:
    """A receiver that causes itself runs to the limit, then the worker drops the next event and prints the chain (H28)."""
    worker = start_worker(processes, broker, reports, modules=[TASKS, "tests.worker_connections"])

    with connected(post_save, worker_tasks.save_again, sender=Tag):
        tag = Tag.objects.create(name="round and round")

    worker.wait_for("Receivers have caused one another 9 times, more than MAX_DEPTH = 8")
    assert list(range(9)) == [facts["depth"] for facts in read_reports(reports, "save_again")]
    step = f"post_save shop.Tag pk={tag.pk} -> tests.worker_tasks.save_again"
    assert 9 <= worker.log.count(step)


@needs("postgres")
@each_worker_broker("filesystem")
@pytest.mark.django_db(transaction=True, databases=["postgres"])
def test_worker_waits_for_its_database(broker: Broker, processes: Processes, reports: Path) -> None:
    """A database that is down when the worker looks is not a row that is gone: the event is tried again."""
    peer = Peer("127.0.0.1", 5432)
    try:
        env = {SERVICES["postgres"].variable: f"postgresql://postgres@127.0.0.1:{peer.port}/postgres"}
        worker = start_worker(processes, broker, reports, env=env)
        peer.refuse()
        with connected(post_save, note, sender=Tag):
            Tag.objects.using("postgres").create(name="patient")
        worker.wait_for("retry: Retry in")
        assert [] == read_reports(reports)
        peer.recover()

        assert ["patient"] == [facts["name"] for facts in wait_for(reports, "note", 1)]
    finally:
        peer.close()
