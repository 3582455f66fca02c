"""Receivers of durable deliveries for processes of their own: each leaves a row in the database that it was sent from.

The tests connect them, and count the rows: a person is an effect, a tag is what the sender has written.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from celery import current_task, shared_task
from django.db import transaction
from django.dispatch import Signal

from django_celery_signals import Event, ReceiverTask
from django_celery_signals.durable.deliveries import deliveries
from tests.crashing import reached
from tests.reports import connected, report
from tests.shop.models import Person, RushOrder, Tag
from tests.waiting import wait_until

placed = Signal()


def _leave(name: str, using: str, event: Event) -> None:
    task = event.receiver.rpartition(".")[2]
    Person.objects.using(using).create(name=f"{task} {name}"[:50])
    known = current_task.request.hold.known
    facts = {"charged": known.attempts + known.crashes, "reruns": known.reruns, "mine": event.still_mine()}
    report(task, name=name, id=event.id, pid=os.getpid(), **facts)
    reached("in the body", current_task.request.hold)


@shared_task(base=ReceiverTask, guarantee="durable")
def inside(name: str, using: str, event: Event) -> None:
    """Leave an effect in the transaction that completes the delivery."""
    _leave(name, using, event)


@shared_task(base=ReceiverTask, guarantee="durable", atomic=False)
def outside(name: str, using: str, event: Event) -> None:
    """Leave an effect that is committed at once."""
    _leave(name, using, event)


@shared_task(base=ReceiverTask, guarantee="durable", acks_late=True)
def late(name: str, using: str, event: Event) -> None:
    """Leave an effect, with the message acknowledged only afterwards, which no durable receiver needs."""
    _leave(name, using, event)


@shared_task(base=ReceiverTask, guarantee="durable")
def quickly(name: str, using: str) -> None:
    """Leave an effect, and do nothing else: there are thousands."""
    Person.objects.using(using).create(name=f"quickly {name}")


@shared_task(base=ReceiverTask, guarantee="durable")
def follow_order(instance: RushOrder, using: str, event: Event) -> None:
    """Leave an effect of a saved order."""
    _leave("rush", using, event)


@shared_task(base=ReceiverTask, guarantee="durable")
def die(name: str, using: str, event: Event) -> None:
    """Take the process along, each time."""
    _leave(name, using, event)
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(base=ReceiverTask, guarantee="durable")
def stay_inside(name: str, using: str, event: Event) -> None:
    """Work until a file is there, in the transaction that completes the delivery."""
    _leave(name, using, event)
    wait_until(Path(name).exists, timeout=60, what=name)
    Person.objects.using(using).first()


@shared_task(base=ReceiverTask, guarantee="durable", atomic=False)
def stay_outside(name: str, using: str, event: Event) -> None:
    """Work until a file is there, without a transaction."""
    _leave(name, using, event)
    wait_until(Path(name).exists, timeout=60, what=name)


@shared_task(base=ReceiverTask, guarantee="durable")
def take_long_inside(name: str, using: str, event: Event) -> None:
    """Work for so many seconds, in the transaction that completes the delivery."""
    _leave(name, using, event)
    time.sleep(float(name))


@shared_task(base=ReceiverTask, guarantee="durable", atomic=False)
def take_long_outside(name: str, using: str, event: Event) -> None:
    """Work for so many seconds, without a transaction."""
    _leave(name, using, event)
    time.sleep(float(name))


@contextmanager
def connected_to(*tasks: Any) -> Iterator[None]:
    """Connect tasks for a while."""
    with ExitStack() as stack:
        for task in tasks:
            stack.enter_context(connected(placed, task))
        yield


def place(using: str, names: Sequence[str]) -> None:
    """Write what the events are about, and send them, in one transaction."""
    with transaction.atomic(using=using):
        for name in names:
            Tag.objects.using(using).create(name=name[-50:])
            placed.send(sender=None, name=name, using=using)


def effects(using: str) -> dict[str, int]:
    """Return how often each effect is there."""
    return dict(Counter(Person.objects.using(using).values_list("name", flat=True)))


def wait_until_done(using: str, *, timeout: float = 90) -> None:
    """Return as soon as no delivery is open."""
    rows = deliveries(using)
    wait_until(lambda: not rows.all().exists(), timeout=timeout, what="the last delivery")
