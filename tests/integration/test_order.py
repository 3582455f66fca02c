"""Receivers that take the events of a key one by one, on every database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from django.db import transaction
from django.db.models.signals import post_save
from django.dispatch import Signal

from django_celery_signals import Event, Relay, deliveries
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.rows import State
from tests.delivering import states
from tests.drain import Published, take
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Tag

step = Signal()


class Boom(Exception):
    """What receivers raise here."""


def work(app: Celery, message: Published) -> None:
    """Run a message as a worker does."""
    task = app.tasks[message.task]
    request = {"task": message.task, "retries": message.headers["retries"], "delivery_info": {}}
    build_tracer(task.name, task, app=app)(message.headers["id"], (), message.kwargs, request)


def work_all(app: Celery) -> int:
    """Run what lies in the queue, and what comes of it, until nothing is left."""
    count = 0
    while messages := take(app):
        for message in messages:
            work(app, message)
            count += 1
    return count


@each_database
def test_one_at_a_time_and_the_oldest_first(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """Of a key one message is out at a time, and the end of one delivery publishes the next."""
    seen: list[int] = []

    def note(number: int) -> None:
        seen.append(number)

    receiving(step, note, guarantee="durable", ordered=True, key=lambda key: key)
    for number in range(5):
        step.send(sender=None, using=alias, key="a", number=number)
    step.send(sender=None, using=alias, key="b", number=10)

    assert {"sent": 2, "ready": 4} == states(alias)
    first, other = take(celery_app)
    work(celery_app, other)
    assert [10] == seen
    work(celery_app, first)
    assert [10, 0] == seen
    assert 4 == work_all(celery_app)
    assert [10, 0, 1, 2, 3, 4] == seen
    assert {} == states(alias)


@each_database
def test_retry_keeps_the_turn(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """While a delivery waits for its retry, the younger ones of its key wait for it."""
    seen: list[int] = []
    fails = [True, True]

    def note(number: int) -> None:
        seen.append(number)
        if fails:
            fails.pop()
            raise Boom

    receiving(step, note, guarantee="durable", ordered=True, key=lambda key: key)
    with transaction.atomic(using=alias):
        for number in range(3):
            step.send(sender=None, using=alias, key="a", number=number)
    work_all(celery_app)
    for _ in range(2):
        deliveries(alias).filter(state=State.READY, slot__isnull=False).update(due_at=In(-1))
        assert 1 == Relay(app=celery_app, databases=[alias]).once()
        work_all(celery_app)

    assert [0, 0, 0, 1, 2] == seen


@each_database
def test_fold(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A run stands for all that waited when it started."""
    seen: list[Any] = []

    def index(instance: Tag, event: Event, created: bool = False) -> None:
        seen.append((instance.name, created, event.coalesced, event.key))

    receiving(post_save, index, sender=Tag, guarantee="durable", coalesce=True)
    with transaction.atomic(using=alias):
        tag = Tag.objects.using(alias).create(name="a")
        tag.name = "b"
        tag.save()
    tag.name = "c"
    tag.save()
    assert 1 == work_all(celery_app)
    assert [("c", True, 2, f"shop.Tag:{tag.pk}")] == seen
    assert {} == states(alias)


@each_database
def test_relay_admits(alias: str, celery_app: Celery, receiving: Receiving, settings: Any) -> None:
    """What a large transaction left to the relay has its turn there."""
    settings.DJANGO_CELERY_SIGNALS = {"FAST_PATH_LIMIT": 0}
    seen: list[int] = []

    def note(number: int) -> None:
        seen.append(number)

    receiving(step, note, guarantee="durable", ordered=True, key=lambda number: number % 3)
    with transaction.atomic(using=alias):
        for number in range(9):
            step.send(sender=None, using=alias, number=number)
    assert 3 == Relay(app=celery_app, databases=[alias]).once()
    assert 0 == Relay(app=celery_app, databases=[alias]).once()
    assert 9 == work_all(celery_app)
    assert seen == sorted(seen)
    assert {} == states(alias)


@each_database
def test_debounce(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """x."""
    seen: list[Any] = []

    def index(instance: Tag, event: Event) -> None:
        seen.append((instance.name, event.coalesced))

    receiving(post_save, index, sender=Tag, guarantee="durable", debounce=20, max_wait=100)
    tag = Tag.objects.using(alias).create(name="a")
    tag.save()
    relay: Callable[[], int] = Relay(app=celery_app, databases=[alias]).once
    assert 0 == relay()
    first, second = deliveries(alias).order_by("pk").values_list("pk", flat=True)
    rows = deliveries(alias)
    rows.filter(pk=first).update(due_at=In(-1), created_at=In(-21))
    assert 0 == relay()
    rows.filter(pk=second).update(created_at=In(-21), due_at=In(-1))
    rows.filter(pk=first).update(due_at=In(-1))
    assert 1 == relay()
    work_all(celery_app)
    assert [("a", 1)] == seen
