"""What a type checker sees of the public names; checked, never run."""

from __future__ import annotations

from typing import assert_type

from celery import shared_task
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal

from django_celery_signals import (
    Discard,
    Event,
    ReceiverTask,
    RetryAfter,
    connect,
    current_event,
    disconnect,
    receiver_task,
    register_codec,
)

order_paid = Signal()


@receiver_task([post_save, post_delete], sender="shop.Order", changed=["status"], atomic=False, max_retries=5)
def by_decorator(sender: type, instance: object, event: Event, **kwargs: object) -> None:
    assert_type(event.id, str)
    assert_type(event.depth, int)
    if event.depth:
        raise Discard("not again")
    raise RetryAfter(2.5, "later")


@shared_task(base=ReceiverTask, ignore_result=True)
def by_hand(sender: type, **kwargs: object) -> None:
    """Connected below, by each spelling."""


order_paid.connect(by_hand.delay)
connect(order_paid, by_hand, guarantee="immediate", countdown=3)
assert_type(disconnect(order_paid, by_hand), bool)
assert_type(current_event(), Event | None)
register_codec(
    complex, tag="shop.Point", encode=lambda point: [point.real, point.imag], decode=lambda parts: complex(*parts)
)
