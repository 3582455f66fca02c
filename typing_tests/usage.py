"""What a type checker sees of the public names; checked, never run."""

from __future__ import annotations

from typing import assert_type

from celery import shared_task
from django.db.models import Model, QuerySet
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal

from django_celery_signals import (
    Discard,
    Event,
    ReceiverTask,
    RetryAfter,
    batched,
    connect,
    current_event,
    deliveries,
    disconnect,
    muted,
    receiver_task,
    register_codec,
    send_saved,
)

order_paid = Signal()


@receiver_task([post_save, post_delete], sender="shop.Order", changed=["status"], atomic=False, max_retries=5)
def by_decorator(sender: type, instance: object, event: Event, **kwargs: object) -> None:
    assert_type(event.id, str)
    assert_type(event.depth, int)
    if event.depth:
        raise Discard("not again")
    raise RetryAfter(2.5, "later")


@receiver_task(order_paid, key=lambda order_id: order_id, ordered=True, on_failure="park", debounce=2, max_wait=30)
def in_turn(order_id: int, event: Event) -> None:
    assert_type(event.key, str | None)
    assert_type(event.coalesced, int)
    assert_type(event.fence, int | None)


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


@muted()
def forwards(apps: object, schema_editor: object) -> None:
    """A decorator keeps a function's type."""


@batched("other")
def bulk(instances: list[Model], rows: QuerySet[Model]) -> int:
    with batched(), muted():
        send_saved(rows, created=False, update_fields={"status"})
    return send_saved(instances, created=True)


assert_type(forwards(None, None), None)
assert_type(bulk([], QuerySet()), int)
assert_type(deliveries("default").failed().filter(receiver="shop.in_turn").retry(), int)
assert_type(deliveries("default").blocked().discard(), int)
assert_type(deliveries("default").behind(), int)
