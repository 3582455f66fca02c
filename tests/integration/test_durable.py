"""Durable deliveries from the sending to the receiver, on every database and every broker: one suite for all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal

from django_celery_signals import Discard, Event, Relay, RetryAfter, deliveries
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import State
from tests.brokers import Broker
from tests.drain import arrived, run, waiting
from tests.parameters import each_database, each_durable_broker
from tests.receiving import Receiving
from tests.shop.models import Customer, Tag

bell = Signal()


class Boom(Exception):
    """What receivers raise here."""


@pytest.fixture
def relayed(celery_app: Celery) -> Callable[[str], int]:
    """Lets a relay publish all that waits in a database, as if its time had come."""

    def relayed(alias: str) -> int:
        deliveries(alias).filter(state=State.READY).update(due_at=In(-1))
        return Relay(app=celery_app, databases=[alias]).once()

    return relayed


@each_durable_broker
@each_database
def test_done_is_when_the_receiver_succeeded(
    alias: str, broker: Broker, celery_app: Celery, receiving: Receiving, relayed: Callable[[str], int]
) -> None:
    """A delivery outlives every failure of its receiver, and is gone in the commit of its success (H33, H47)."""
    runs: list[tuple[str, str, int | None]] = []

    def write(instance: Tag, event: Event) -> None:
        runs.append((instance.name, event.id, event.fence))
        Customer.objects.using(alias).create(name=f"run {len(runs)}")
        if len(runs) < 3:
            raise Boom

    receiving(post_save, write, sender=Tag, guarantee="durable")
    Tag.objects.using(alias).create(name="red")

    [message] = arrived(broker)
    run(celery_app, message)
    for _ in range(2):
        assert 1 == relayed(alias)
        [message] = arrived(broker)
        run(celery_app, message)

    assert ["run 3"] == list(Customer.objects.using(alias).values_list("name", flat=True))
    assert [] == list(deliveries(alias))
    assert {("red", runs[0][1])} == {(name, event_id) for name, event_id, _ in runs}
    assert runs[0][2] < runs[1][2] < runs[2][2]  # type: ignore[operator]


@each_durable_broker
@each_database
def test_the_message_holds_no_value(alias: str, broker: Broker, receiving: Receiving) -> None:
    """The broker is told where the row is and what opens it, and nothing of what was sent; Flower reads the summary."""
    task = receiving(post_save, sender=Customer, guarantee="durable", instance="snapshot")
    customer = Customer.objects.using(alias).create(name="Ada Lovelace", email="ada@example.com")

    [message] = arrived(broker)

    row = deliveries(alias).get()
    reference = {"alias": alias, "id": row.pk, "token": row.token, "receiver": task.name}
    assert ((), {"__event__": reference}) == (tuple(message.args), message.kwargs)
    assert "lovelace" not in f"{message.headers} {message.properties} {message.kwargs}".lower()
    assert f"post_save shop.Customer pk={customer.pk} created" == message.headers["argsrepr"]
    assert row.event_id == message.headers["id"]
    assert broker.queue == row.queue


@each_durable_broker
@each_database
def test_copies_change_nothing(
    alias: str, broker: Broker, celery_app: Celery, receiving: Receiving, relayed: Callable[[str], int]
) -> None:
    """However often a message arrives, the receiver runs once: the first that opens the row has it (H47)."""
    names: list[str] = []
    receiving(post_save, lambda instance: names.append(instance.name), sender=Tag, guarantee="durable")
    Tag.objects.using(alias).create(name="once")
    deliveries(alias).update(state=State.READY)  # as after a suspected loss
    assert 1 == relayed(alias)

    first, second = arrived(broker, 2)
    states = [run(celery_app, message).state for message in (first, second, first)]

    assert (["once"], ["SUCCESS"] * 3) == (names, states)


@each_durable_broker
@each_database
def test_a_rollback_leaves_nothing(alias: str, broker: Broker, receiving: Receiving) -> None:
    """What a transaction or a savepoint rolls back was never sent; what it keeps is published in order (H36, H37)."""
    receiving(post_save, sender=Tag, guarantee="durable")

    with transaction.atomic(using=alias):
        Tag.objects.using(alias).create(name="first")
        with suppress(Boom), transaction.atomic(using=alias):
            Tag.objects.using(alias).create(name="ghost")
            raise Boom
        Tag.objects.using(alias).create(name="second")
    with suppress(Boom), transaction.atomic(using=alias):
        Tag.objects.using(alias).create(name="ghost, too")
        raise Boom

    rows = list(deliveries(alias).order_by("pk").values_list("event_id", flat=True))
    assert rows == [message.headers["id"] for message in arrived(broker, 2)]


@each_durable_broker
@each_database
def test_a_deleted_row_travels(alias: str, broker: Broker, celery_app: Celery, receiving: Receiving) -> None:
    """A deletion arrives with the values of the row that is gone (H51)."""
    found: list[Any] = []
    receiving(post_delete, lambda instance: found.append((instance.pk, instance.name)), sender=Tag, guarantee="durable")
    tag = Tag.objects.using(alias).create(name="gone")
    pk = tag.pk
    tag.delete()

    [message] = arrived(broker)
    run(celery_app, message)

    assert [(pk, "gone")] == found


@each_durable_broker
@each_database
def test_receivers_are_independent(
    alias: str, broker: Broker, celery_app: Celery, receiving: Receiving, relayed: Callable[[str], int]
) -> None:
    """Of the receivers of one event, each succeeds, is put off, is dropped and fails by itself."""

    def succeed(**kwargs: Any) -> None: ...

    def put_off(**kwargs: Any) -> None:
        raise RetryAfter(3600)

    def drop(**kwargs: Any) -> None:
        raise Discard("of no use")

    def fail(**kwargs: Any) -> None:
        raise Boom

    for function in (succeed, put_off, drop):
        receiving(bell, function, guarantee="durable")
    receiving(bell, fail, guarantee="durable", max_retries=0)
    bell.send(sender=None, using=alias)

    for message in arrived(broker, 4):
        run(celery_app, message)

    states = dict(deliveries(alias).values_list("receiver", "state"))
    names = {receiver.rpartition(".")[2].rpartition("_")[0]: State(state) for receiver, state in states.items()}
    assert {"put_off": State.READY, "fail": State.FAILED} == names


@each_durable_broker
@each_database
def test_the_time_of_a_retry_is_in_the_row(
    alias: str, broker: Broker, celery_app: Celery, receiving: Receiving
) -> None:
    """What is put off waits in the table until it is due, and never in the broker."""

    def put_off(event: Event) -> None:
        raise RetryAfter(3600)

    receiving(bell, put_off, guarantee="durable")
    bell.send(sender=None, using=alias)
    [message] = arrived(broker)
    run(celery_app, message)

    assert 0 == Relay(app=celery_app, databases=[alias]).once()
    assert [] == list(waiting(broker))
    assert 1 == deliveries(alias).filter(due_at__gt=In(3500), due_at__lt=In(3700), attempts=1).count()


@each_durable_broker
@each_database
def test_a_countdown_waits_in_the_table(
    alias: str, broker: Broker, celery_app: Celery, receiving: Receiving, relayed: Callable[[str], int]
) -> None:
    """A sending with a countdown is left to the relay until then."""
    numbers: list[int] = []
    receiving(bell, lambda number: numbers.append(number), guarantee="durable", countdown=600)
    bell.send(sender=None, using=alias, number=7)

    assert [] == list(waiting(broker))
    assert 0 == Relay(app=celery_app, databases=[alias]).once()
    assert 1 == relayed(alias)
    [message] = arrived(broker)
    run(celery_app, message)

    assert ([7], None) == (numbers, message.headers["eta"])


@each_durable_broker
@each_database
def test_an_expired_event_is_dropped_aloud(
    alias: str, broker: Broker, celery_app: Celery, receiving: Receiving
) -> None:
    """What expires is dropped when it is opened, not by Celery in silence; the time counts from the sending."""
    receiving(bell, guarantee="durable", expires=timedelta(minutes=5))
    bell.send(sender=None, using=alias)
    row = deliveries(alias).get()
    [message] = arrived(broker)
    deliveries(alias).update(options={**row.options, "expires": "2020-01-01T00:00:00+00:00"})

    result = run(celery_app, message)

    assert ("IGNORED", None) == (result.state, message.headers["expires"])
    assert [] == list(deliveries(alias))
