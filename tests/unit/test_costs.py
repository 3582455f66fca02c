"""What the hot paths cost, counted in calls, which no busy machine changes: a guard against what creeps in.

The bounds are half as much again as what was counted; Python's versions differ by some per cent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from django.db import connection, transaction
from django.db.models.signals import post_save
from kombu import Producer
from kombu.transport import pyamqp

from django_celery_signals import batched
from django_celery_signals.durable.deliveries import deliveries
from django_celery_signals.durable.outbox import message_of
from django_celery_signals.template import apply_plainly, template_for
from tests.receiving import Receiving
from tests.shop.models import Tag

REFERENCE = {"alias": "default", "id": 1, "token": 2, "receiver": "shop.notify"}
OPTIONS = {"task_id": "5d0b9c62-3a3f-4b8e-9d61-0c0f3f9f1c11", "retries": 0, "expires": None}


def calls(act: Callable[[], Any]) -> int:
    """Return how many functions are called, in Python or in C, when something is done for the third time."""
    act()
    act()
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(before)
    return count


class Nowhere:
    """A producer whose messages go nowhere."""

    def __init__(self, app: Celery) -> None:
        self.connection = app.connection_for_write()

    def publish(self, body: Any, **options: Any) -> None: ...


def test_a_message(celery_app: Celery, receiving: Receiving) -> None:
    """To fill in a template is a small part of what apply_async does for the same message."""
    task, producer = receiving(post_save, sender=Tag), Nowhere(celery_app)

    def fill_in() -> None:
        template: Any = template_for(celery_app, task, OPTIONS)
        template.filled(celery_app, REFERENCE, OPTIONS, "sold")

    celerys = calls(lambda: apply_plainly(task, REFERENCE, producer, OPTIONS, "sold"))
    ours = calls(fill_in)

    assert ours < 65
    assert ours < celerys / 6


class Socket:
    """A channel of py-amqp's, up to the bytes of the properties."""

    connection = None
    prepare_message = pyamqp.Channel.prepare_message

    def basic_publish(self, message: Any, **options: Any) -> None:
        message._serialize_properties()


class Writing(Producer):
    """A producer that declares nothing and has no broker."""

    def __init__(self, app: Celery) -> None:
        super().__init__(Socket(), auto_declare=False)
        self.__connection__ = app.connection_for_write()

    def revive(self, channel: Any) -> None: ...

    def maybe_declare(self, entity: Any, retry: bool = False, **policy: Any) -> None: ...


def test_a_message_on_the_wire(celery_app: Celery, receiving: Receiving) -> None:
    """To write a message to RabbitMQ is a small part of what kombu and py-amqp do for the same bytes."""
    task, producer = receiving(post_save, sender=Tag), Writing(celery_app)
    template: Any = template_for(celery_app, task, OPTIONS)
    body, options = template.filled(celery_app, REFERENCE, OPTIONS, "sold")

    theirs = calls(lambda: producer.publish(body, **options))
    ours = calls(lambda: template.publish(producer, body, options))

    assert ours < theirs / 3


@pytest.mark.django_db(transaction=True)
def test_a_sending(receiving: Receiving) -> None:
    """A durable sending, from the signal to its hook for the commit; beyond a bare INSERT by Django's cursor."""
    receiving(post_save, sender=Tag, guarantee="durable")
    with batched():
        tag = Tag.objects.create(name="new")

    def send() -> None:
        post_save.send(Tag, instance=tag, created=True, update_fields=None, raw=False, using="default")

    with transaction.atomic():
        assert calls(send) < 620
        transaction.set_rollback(True)
    with batched():
        assert calls(send) < 420


@pytest.mark.django_db(transaction=True)
def test_a_row_of_the_relays(celery_app: Celery, receiving: Receiving) -> None:
    """A claimed row's message, and the mark: a part of each batch's statements, and little beside them."""
    task = receiving(post_save, sender=Tag, guarantee="durable")
    with batched():
        Tag.objects.create(name="new")
    (row,) = deliveries(connection.alias).claim(1, 2.0).rows

    def make() -> None:
        message = message_of(celery_app, row, "default")
        template: Any = template_for(celery_app, task, message.options)
        template.filled(celery_app, message.body, message.options, message.summary)

    assert calls(make) < 78
