"""What a durable sending costs its request when the broker is away, and that nothing of it is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Thread

import pytest
from asgiref.sync import async_to_sync
from celery import Celery
from django.db import connections, transaction
from django.db.models.signals import post_save
from django.dispatch import Signal
from django.test import override_settings

from chaos.proxy import Proxy
from django_celery_signals import Relay, deliveries
from django_celery_signals import breaker as breaker_module
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import State
from django_celery_signals.signals import event_lost
from tests.brokers import Broker
from tests.drain import arrived, run, waiting
from tests.parameters import each_broker, each_database
from tests.project.celery import configure, disconnect
from tests.proxies import in_front_of, settings_through
from tests.receiving import Receiving, hearing
from tests.shop.models import Tag

TIMEOUT = 1.0
BOUND = 2 * TIMEOUT  # of a whole commit, with room for a busy machine
MANY = 20

doorbell = Signal()

FAULTS: dict[str, Callable[[Proxy], None]] = {
    "refused": Proxy.refuse,
    "silent": Proxy.be_silent,
    "slow": lambda proxy: proxy.delay(TIMEOUT / 2),
}
each_fault = pytest.mark.parametrize("fault", FAULTS)


def durable(**more: int) -> override_settings:
    """Return settings under which receivers are durable, and patience is short."""
    return override_settings(DJANGO_CELERY_SIGNALS={"PUBLISH_TIMEOUT": TIMEOUT, **more})


@pytest.fixture
def proxy(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Stands between the app and its broker."""
    monkeypatch.setattr(breaker_module, "FIRST_PAUSE", TIMEOUT)
    with in_front_of(broker) as proxy, durable():
        configure(settings_through(proxy, broker))
        yield proxy
        disconnect()


def save_tags(alias: str, count: int = MANY) -> float:
    """Save some tags in one transaction, and return how long that took."""
    start = time.monotonic()
    with transaction.atomic(using=alias):
        for _ in range(count):
            Tag.objects.using(alias).create(name="new")
    return time.monotonic() - start


def relay_all(app: Celery, alias: str) -> None:
    """Publish what the sender left behind, as if its time had come."""
    deliveries(alias).filter(state=State.READY).update(due_at=In(-1))
    Relay(app=app, databases=[alias]).once()


@each_fault
@pytest.mark.parametrize("connected", [False, True], ids=["at first", "later"])
@each_broker("rabbitmq", "redis")
@each_database("default", "postgres")
def test_a_commit_is_bounded_and_loses_nothing(
    alias: str, broker: Broker, connected: bool, fault: str, celery_app: Celery, proxy: Proxy, receiving: Receiving
) -> None:
    """A broker that refuses, hangs or is slow costs one PUBLISH_TIMEOUT, then nothing; the relay has the rest (H31).

    RabbitMQ's confirms are not waited for: that they do not come is found out by what is sent when they should have.
    """
    receiving(post_save, sender=Tag)
    before = save_tags(alias, 1) if connected else 0
    FAULTS[fault](proxy)

    with hearing(event_lost) as lost:
        first, second = save_tags(alias), save_tags(alias)
        time.sleep(TIMEOUT)
        third = save_tags(alias, 1)

    assert ([], True) == (lost, max(first, second, third) < BOUND), (before, first, second, third)
    assert 2 * MANY + 1 + connected == deliveries(alias).count()
    proxy.heal()
    relay_all(celery_app, alias)
    events = {message.headers["id"] for message in waiting(broker)}
    assert set(deliveries(alias).values_list("event_id", flat=True)) == events
    assert {State.SENT} == set(deliveries(alias).values_list("state", flat=True))


@each_broker("rabbitmq", "redis")
@each_database("postgres")
def test_an_open_breaker_leaves_all_to_the_relay(
    alias: str, broker: Broker, celery_app: Celery, proxy: Proxy, receiving: Receiving
) -> None:
    """While the breaker is open rows are written as the relay's, so that nothing has to be taken back."""
    receiving(post_save, sender=Tag)
    proxy.be_silent()
    save_tags(alias, 1)

    with transaction.atomic(using=alias):
        Tag.objects.using(alias).create(name="new")
        assert State.READY == deliveries(alias).order_by("-pk")[0].state


@each_database
@durable(FAST_PATH_LIMIT=3)
def test_a_large_transaction_is_the_relays(
    alias: str, broker: Broker, celery_app: Celery, receiving: Receiving
) -> None:
    """Of a transaction that writes many, the first few are published at once and the others in bulk (H37)."""
    receiving(post_save, sender=Tag)
    save_tags(alias, 10)

    assert [State.SENT] * 3 + [State.READY] * 7 == list(
        deliveries(alias).order_by("pk").values_list("state", flat=True)
    )
    assert 3 == len(arrived(broker, 3))
    assert 7 == Relay(app=celery_app, databases=[alias]).once()


@each_database
@durable(FAST_PATH_LIMIT=2)
def test_a_rolled_back_savepoint_spoils_nothing(
    alias: str, broker: Broker, celery_app: Celery, receiving: Receiving
) -> None:
    """What is sent after a savepoint that was rolled back is published at the commit, like what was sent before it."""
    receiving(post_save, sender=Tag)

    with transaction.atomic(using=alias):
        with suppress(LookupError), transaction.atomic(using=alias):
            Tag.objects.using(alias).create(name="ghost")
            raise LookupError
        Tag.objects.using(alias).create(name="new")

    row = deliveries(alias).get()
    assert ([row.event_id], State.SENT) == ([message.headers["id"] for message in arrived(broker)], row.state)


@each_database
@durable()
def test_a_savepoint_rolled_back_by_hand_leaves_no_ghost(
    alias: str, broker: Broker, celery_app: Celery, receiving: Receiving
) -> None:
    """Django keeps the hooks of a savepoint that is rolled back by hand: their message finds no row to open (H36)."""
    names: list[str] = []
    receiving(post_save, lambda instance: names.append(instance.name), sender=Tag)

    with transaction.atomic(using=alias):
        savepoint = connections[alias].savepoint()
        Tag.objects.using(alias).create(name="ghost")
        transaction.savepoint_rollback(savepoint, using=alias)
        Tag.objects.using(alias).create(name="new")
    for message in arrived(broker, 2):
        run(celery_app, message)

    assert (["new"], 0) == (names, deliveries(alias).count())


@each_broker("rabbitmq", "redis")
@each_database("postgres", "mariadb")
@durable()
def test_threads_send_side_by_side(alias: str, broker: Broker, celery_app: Celery, receiving: Receiving) -> None:
    """Many threads at once publish each of their deliveries once."""
    receiving(post_save, sender=Tag)

    def save() -> None:
        for _ in range(10):
            save_tags(alias, 1)
        connections.close_all()

    threads = [Thread(target=save) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert set(deliveries(alias).values_list("event_id", flat=True)) == {
        message.headers["id"] for message in arrived(broker, 80)
    }


@each_database
@durable()
def test_a_coroutine_sends(alias: str, broker: Broker, celery_app: Celery, receiving: Receiving) -> None:
    """A signal sent with asend, as in an async view, is delivered like any other (H24)."""
    receiving(doorbell)
    async_to_sync(doorbell.asend)(sender=None, using=alias)

    assert [deliveries(alias).get().event_id] == [message.headers["id"] for message in arrived(broker)]
