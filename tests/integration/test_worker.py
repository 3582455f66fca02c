"""Events that a real worker process receives, over every broker that leads out of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from celery import Celery
from django.db import transaction
from django.db.models.signals import post_save
from django.utils import timezone

from chaos.proxy import Proxy
from django_celery_signals.wire import ARGUMENT
from tests import worker_tasks
from tests.brokers import Broker
from tests.parameters import each_worker_broker, needs
from tests.processes import Process, Processes
from tests.reports import Reports, connected
from tests.services import SERVICES, absent
from tests.shop.models import Customer, Tag
from tests.worker_tasks import count_together, doorbell, note, try_again, wait_a_moment

ALIASES = [alias for alias in ("default", "other", "postgres", "mariadb") if alias not in absent()]

StartWorker = Callable[..., Process]


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(tmp_path / "reports")


@pytest.fixture
def start_worker(processes: Processes, broker: Broker, reports: Reports) -> Iterator[StartWorker]:
    """Starts a worker that knows the tasks and reports."""

    def start(*modules: str, env: Mapping[str, str] | None = None) -> Process:
        tasks = [worker_tasks.__name__, *modules]
        return processes.worker(broker, modules=tasks, env={**reports.environment, **(env or {})})

    yield start
    for process in processes.started:
        process.kill()  # nothing is left to be finished, and an orderly end takes seconds


@each_worker_broker
@pytest.mark.django_db(transaction=True, databases=ALIASES)
def test_worker_receives_what_was_committed(start_worker: StartWorker, reports: Reports) -> None:
    """A worker gets the row from the database it was saved to, the live class, and the event (H48, H49)."""
    start_worker()
    before = timezone.now()

    with connected(post_save, note, sender=Tag):
        for alias in ALIASES:
            with transaction.atomic(using=alias):
                Tag.objects.using(alias).create(name=alias)
            with transaction.atomic(using=alias):
                Tag.objects.using(alias).create(name="ghost")
                transaction.set_rollback(True, using=alias)

    received = reports.wait_for("note", len(ALIASES))
    assert len(ALIASES) == len(received)
    for alias, facts in zip(ALIASES, received, strict=True):
        event = facts.pop("event")
        assert {
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
def test_worker_goes_on_after_trouble(celery_app: Celery, start_worker: StartWorker, reports: Reports) -> None:
    """Forged and unknown messages harm nothing; retries, coroutines and ordinary calls work beside them (H32)."""
    worker = start_worker()

    note.apply_async(kwargs={ARGUMENT: "forged"})
    celery_app.send_task("tests.of_nobody", kwargs={"number": 1})
    with connected(doorbell, try_again), connected(doorbell, wait_a_moment):
        doorbell.send(sender=None, number=7)
    count_together.delay(2, second=3)

    tries = reports.wait_for("try_again", 2)
    (coroutine,) = reports.wait_for("wait_a_moment")
    assert [{"sum": 5}] == reports.wait_for("count_together")
    assert [True, False] == [facts["first"] for facts in tries]
    assert 1 == len({facts["id"] for facts in tries})
    assert ("coroutine 7", True) == (coroutine["name"], coroutine["event"]["is_current"])
    assert Customer.objects.filter(name="coroutine 7").exists()
    assert not Tag.objects.filter(name="undone").exists()
    worker.wait_for("tests.worker_tasks.note cannot read its event: The envelope's signature does not match")
    worker.wait_for("Received unregistered task of type 'tests.of_nobody'")


@each_worker_broker("filesystem")
@pytest.mark.django_db(transaction=True)
def test_worker_drops_what_is_gone(start_worker: StartWorker, reports: Reports) -> None:
    """An event whose row is gone before the worker looks is dropped, and the log names the row (H53)."""
    with connected(post_save, note, sender=Tag):
        tag = Tag.objects.create(name="gone")
        pk = tag.pk
        Tag.objects.filter(pk=pk).delete()
        Tag.objects.create(name="there")

    worker = start_worker()

    assert ["there"] == [facts["name"] for facts in reports.wait_for("note")]
    worker.wait_for(f"shop.Tag pk={pk} no longer exists")


@each_worker_broker("filesystem")
@pytest.mark.django_db(transaction=True)
def test_worker_stops_a_loop(start_worker: StartWorker, reports: Reports) -> None:
    """A receiver that causes itself runs to the limit; then the worker drops the event and prints the chain (H28)."""
    worker = start_worker("tests.worker_connections")

    with connected(post_save, worker_tasks.save_again, sender=Tag):
        tag = Tag.objects.create(name="round and round")

    worker.wait_for("Receivers have caused one another 9 times, more than MAX_DEPTH = 8")
    assert list(range(9)) == [facts["depth"] for facts in reports.of("save_again")]
    step = f"post_save shop.Tag pk={tag.pk} -> tests.worker_tasks.save_again"
    assert 9 <= worker.log.count(step)


@needs("postgres")
@each_worker_broker("filesystem")
@pytest.mark.django_db(transaction=True, databases=["postgres"])
def test_worker_waits_for_its_database(start_worker: StartWorker, reports: Reports) -> None:
    """A database that is down when the worker looks is not a row that is gone: the event is tried again."""
    parts = urlsplit(SERVICES["postgres"].url)
    proxy = Proxy(parts.port or 5432, parts.hostname or "127.0.0.1")
    netloc = parts.netloc.replace(parts.netloc.rpartition("@")[2], f"127.0.0.1:{proxy.port}")
    try:
        env = {SERVICES["postgres"].variable: parts._replace(netloc=netloc).geturl()}
        worker = start_worker(env=env)
        proxy.refuse()
        with connected(post_save, note, sender=Tag):
            Tag.objects.using("postgres").create(name="patient")
        worker.wait_for("retry: Retry in")
        assert [] == reports.of("note")
        proxy.heal()

        assert ["patient"] == [facts["name"] for facts in reports.wait_for("note")]
    finally:
        proxy.close()
