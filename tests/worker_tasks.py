"""Tasks for workers that are processes of their own: they report what they were given.

The tests connect them; a worker that is to send as well imports ``tests.worker_connections``.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Any

from asgiref.sync import sync_to_async
from celery import current_task, shared_task
from django.db import connections
from django.dispatch import Signal
from django.utils import timezone, translation

from django_celery_signals import Event, ReceiverTask, RetryAfter, current_event
from tests.reports import report
from tests.shop.models import Customer, Tag

doorbell = Signal()


def _of(event: Event) -> Mapping[str, Any]:
    return {
        "id": event.id,
        "signal_name": event.signal_name,
        "sent_at": event.sent_at.isoformat(),
        "depth": event.depth,
        "parent_id": event.parent_id,
        "is_current": current_event() is event,
    }


@shared_task(base=ReceiverTask)
def note(sender: Any, instance: Tag, created: bool, using: str, signal: Signal, event: Event) -> None:
    """Tell everything about a saved tag."""
    report(
        "note",
        sender=f"{sender.__module__}.{sender.__qualname__}",
        signal=event.signal_name.rpartition(":")[2] if signal is not None else None,
        name=instance.name,
        created=created,
        using=[using, instance._state.db],
        event=_of(event),
    )


@shared_task(base=ReceiverTask)
def look_around(number: int, event: Event) -> None:
    """Tell under which language, time zone and event a ring is answered, and save something, which sends again."""
    tag = Tag.objects.create(name=f"ring {number}")
    report(
        "look_around",
        number=number,
        language=translation.get_language(),
        zone=timezone.get_current_timezone_name(),
        event=_of(event),
        tag=tag.pk,
        pid=os.getpid(),
    )


@shared_task(base=ReceiverTask)
def follow(instance: Tag, event: Event) -> None:
    """Tell what a receiver caused."""
    report("follow", name=instance.name, event=_of(event))


@shared_task(base=ReceiverTask)
async def wait_a_moment(number: int, event: Event) -> None:
    """Do the work in a coroutine."""
    await asyncio.sleep(0)
    customer = await Customer.objects.acreate(name=f"coroutine {number}")
    report("wait_a_moment", number=number, name=customer.name, event=_of(event))


@shared_task(base=ReceiverTask)
def try_again(number: int, event: Event) -> None:
    """Ask once for another try."""
    first = not Tag.objects.using("other").filter(name=event.id).exists()
    report("try_again", number=number, id=event.id, first=first)
    if first:
        Tag.objects.using("other").create(name=event.id)  # stays: the receiver's transaction is the default's
        Tag.objects.create(name="undone")
        raise RetryAfter(0.1)


@shared_task(base=ReceiverTask)
def save_again(instance: Tag, event: Event) -> None:
    """Cause itself."""
    report("save_again", depth=event.depth)
    instance.save()


@shared_task(base=ReceiverTask)
def count_together(first: int, second: int = 0) -> int:
    """Be an ordinary task."""
    report("count_together", sum=first + second)
    return first + second


class Busy(Exception):
    """Passes if one tries often enough."""


def _try(task: str, number: int, event: Event) -> None:
    retries = current_task.request.retries
    report(task, number=number, id=event.id, retries=retries)
    Tag.objects.create(name=f"{task} {retries}")
    if retries < 2:
        raise Busy


@shared_task(base=ReceiverTask, autoretry_for=(Busy,), retry_kwargs={"countdown": 0.1})
def keep_trying(number: int, event: Event) -> None:
    """Succeed at the third try."""
    _try("keep_trying", number, event)


@shared_task(base=ReceiverTask, autoretry_for=(Busy,), retry_kwargs={"countdown": 0.1})
async def keep_trying_in_a_coroutine(number: int, event: Event) -> None:
    """Succeed at the third try, in a coroutine."""
    await asyncio.sleep(0)
    await sync_to_async(_try)("keep_trying_in_a_coroutine", number, event)


@shared_task(base=ReceiverTask, acks_late=True, reject_on_worker_lost=True)
def die_once(number: int, event: Event) -> None:
    """Take the process along at the first try, in the middle of the work."""
    first = not Tag.objects.using("other").filter(name=event.id).exists()
    report("die_once", number=number, id=event.id, pid=os.getpid())
    Tag.objects.create(name="half done" if first else "done")
    if first:
        Tag.objects.using("other").create(name=event.id)  # stays: the receiver's transaction is the default's
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task(base=ReceiverTask)
def fail_here(number: int) -> None:
    """Fail."""
    raise Busy


@shared_task(base=ReceiverTask)
def tell_place() -> None:
    """Be an ordinary task that tells what is left of those before it."""
    event = current_event()
    place = [translation.get_language(), timezone.get_current_timezone_name(), event and event.id]
    report("tell_place", place=place, in_block=connections["default"].in_atomic_block)
