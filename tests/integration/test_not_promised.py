"""What docs/guarantees.md says is not promised: it happens, and this is how it looks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery
from django.db import connections, transaction
from django.db.models.signals import post_save
from django.dispatch import Signal

from django_celery_signals import Event, Relay, deliveries
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import State
from django_celery_signals.durable.probe import TASK, probes
from tests.drain import Published, run, take
from tests.making import Tasks
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Customer, Tag

bell = Signal()


class Boom(Exception):
    """What receivers raise here."""


@pytest.fixture
def relayed(celery_app: Celery) -> Callable[[str], list[Published]]:
    """Lets a relay that has just begun publish what waits in a database, and takes it from the broker."""

    def relayed(alias: str) -> list[Published]:
        deliveries(alias).filter(state=State.READY).update(due_at=In(-1))
        Relay(app=celery_app, databases=[alias]).once()
        return take(celery_app)

    return relayed


@pytest.fixture
def ring_for_two_runs(celery_app: Celery, relayed: Callable[[str], list[Published]]) -> Callable[[str], None]:
    """Sends a signal, runs its receiver, and runs it again when the relay has published it once more."""

    def ring(alias: str) -> None:
        bell.send(sender=None, using=alias)
        [first] = take(celery_app)
        run(celery_app, first)
        [second] = relayed(alias)
        run(celery_app, second)

    return ring


def fail_once(work: Callable[[], Any]) -> Callable[..., None]:
    """Return a receiver that does its work and then fails, but the second time does not."""
    runs: list[Event] = []

    def receiver(event: Event) -> None:
        work()
        runs.append(event)
        if len(runs) == 1:
            raise Boom

    return receiver


@each_database
@pytest.mark.parametrize(("instance", "seen"), [("fetch", "later"), ("snapshot", "at the sending")])
def test_a_reference_shows_what_is_there_now(
    alias: str, celery_app: Celery, receiving: Receiving, instance: str, seen: str
) -> None:
    """A receiver that starts late is given the row of then; only a snapshot is that of the sending."""
    names: list[str] = []
    receiving(
        post_save, lambda instance: names.append(instance.name), sender=Tag, guarantee="durable", instance=instance
    )

    Tag.objects.using(alias).create(name="at the sending")
    [message] = take(celery_app)
    Tag.objects.using(alias).update(name="later")
    run(celery_app, message)

    assert [seen] == names


@pytest.mark.django_db(transaction=True)
def test_ordinary_tasks_begin_a_new_chain(celery_app: Celery, receiving: Receiving, tasks: Tasks) -> None:
    """What a receiver causes by way of an ordinary task counts from the beginning: no limit ends such a loop (H28)."""
    depths: list[int] = []
    ring_again = tasks.shared(lambda: bell.send(sender=None))

    def receiver(event: Event) -> None:
        depths.append(event.depth)
        ring_again.delay()

    receiving(bell, receiver, guarantee="durable")
    bell.send(sender=None)
    for _ in range(24):
        [message] = take(celery_app)
        run(celery_app, message)

    assert [0] * 12 == depths


@each_database
@pytest.mark.parametrize(("atomic", "copies"), [(True, 1), (False, 2)])
def test_work_without_a_transaction_is_repeated(
    alias: str, receiving: Receiving, ring_for_two_runs: Callable[[str], None], atomic: bool, copies: int
) -> None:
    """With atomic=False, what a run has done before it fails stays, and the next run does it again (H47)."""
    work = fail_once(lambda: Customer.objects.using(alias).create(name="Ada"))
    receiving(bell, work, guarantee="durable", atomic=atomic)

    ring_for_two_runs(alias)

    assert (copies, 0) == (Customer.objects.using(alias).count(), deliveries(alias).count())


@each_database("default", "postgres", "mariadb", also=["other"])
def test_work_in_another_database_is_repeated(
    alias: str, receiving: Receiving, ring_for_two_runs: Callable[[str], None]
) -> None:
    """The receiver's transaction is on the event's database; what it writes to another one is not undone with it."""

    def work() -> None:
        for using in (alias, "other"):
            Customer.objects.using(using).create(name="Ada")

    receiving(bell, fail_once(work), guarantee="durable")
    ring_for_two_runs(alias)

    assert (1, 2) == (Customer.objects.using(alias).count(), Customer.objects.using("other").count())


@each_database("postgres", "mariadb")
def test_ddl_commits_on_mariadb(alias: str, receiving: Receiving, ring_for_two_runs: Callable[[str], None]) -> None:
    """DDL ends the receiver's transaction in the middle on MariaDB, where PostgreSQL undoes it with all the rest."""
    statement = {"postgres": "COMMENT ON TABLE shop_tag IS 'x'", "mariadb": "ALTER TABLE shop_tag COMMENT 'x'"}[alias]

    def work() -> None:
        Customer.objects.using(alias).create(name="Ada")
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)

    receiving(bell, fail_once(work), guarantee="durable")
    ring_for_two_runs(alias)

    assert {"postgres": 1, "mariadb": 2}[alias] == Customer.objects.using(alias).count()
    assert 0 == deliveries(alias).count()


@each_database
def test_a_savepoint_rolled_back_by_hand_is_published(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """Django keeps the hooks of a savepoint that is rolled back by hand, so "on_commit" sends a ghost (H36)."""
    receiving(post_save, sender=Tag, guarantee="on_commit")

    with transaction.atomic(using=alias):
        savepoint = connections[alias].savepoint()
        Tag.objects.using(alias).create(name="ghost")
        transaction.savepoint_rollback(savepoint, using=alias)

    assert 1 == len(take(celery_app))


@each_database
def test_a_hook_that_raises_only_delays(
    alias: str, celery_app: Celery, receiving: Receiving, relayed: Callable[[str], list[Published]]
) -> None:
    """Where a project's failing hook makes Django drop the publication behind it, the probe finds it missing (H38)."""
    receiving(post_save, sender=Tag, guarantee="durable")

    def fail() -> None:
        raise Boom

    with suppress(Boom), transaction.atomic(using=alias):
        transaction.on_commit(fail, using=alias)
        Tag.objects.using(alias).create(name="behind the hook")
    assert [] == take(celery_app)

    deliveries(alias).update(sent_at=In(-60))
    [probe] = relayed(alias)
    run(celery_app, probe)
    probes(alias).update(seen_at=In(-60))
    [message] = relayed(alias)

    assert TASK == probe.task
    assert deliveries(alias).get().event_id == message.headers["id"]
