"""Receivers of durable deliveries for processes of their own: each leaves a row in the database that it was sent from.

The tests connect them, and count the rows: a person is an effect, a tag is what the sender has written.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from celery import current_task, shared_task
from django.db import transaction
from django.dispatch import Signal

from django_celery_signals import Event, ReceiverTask
from django_celery_signals.durable.deliveries import deliveries
from tests.crashing import reached
from tests.reports import VARIABLE, connected, report
from tests.shop.models import Person, Product, RushOrder, Tag
from tests.waiting import wait_until

DEADLY = "deadly"  # whoever works on it together with others dies
SLOW = "product 0"  # is indexed for so long that its next run would begin meanwhile, if it could

LONG = 10  # seconds that a receiver sleeps which does so

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


@shared_task(base=ReceiverTask, guarantee="durable", chunk_size=50)
def together(name: str, using: str) -> None:
    """Leave an effect beside those of other events in one transaction; one name takes the process along, each time."""
    Person.objects.using(using).create(name=f"together {name}")
    known = current_task.request.hold.known
    report("together", name=name, charged=known.attempts + known.crashes, reruns=known.reruns)
    if name == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


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


@shared_task(base=ReceiverTask, guarantee="durable", ordered=True, key=lambda name: name)
def in_turn(name: str, number: int, using: str, event: Event) -> None:
    """Leave an effect of each event of a key, one after the other."""
    _leave(f"{name} {number}", using, event)


@shared_task(base=ReceiverTask, guarantee="durable", ordered=True, key=lambda name: name)
def sleep_in_turn(name: str, number: int, using: str, event: Event) -> None:
    """Leave an effect of each event of a key, and sleep long after the first, in the transaction."""
    _leave_and_sleep(name, number, using, event)


@shared_task(base=ReceiverTask, guarantee="durable", coalesce=True, key=lambda name: name)
def sleep_and_fold(name: str, number: int, using: str, event: Event) -> None:
    """Do the same, once for all events that wait."""
    _leave_and_sleep(name, number, using, event)


def _leave_and_sleep(name: str, number: int, using: str, event: Event) -> None:
    _leave(f"{name} {number}", using, event)
    if number == 1:
        time.sleep(LONG)


@shared_task(base=ReceiverTask, guarantee="durable", coalesce=True, atomic=False)
def reindex(instance: Product, using: str, event: Event) -> None:
    """Tell which state of a product there is to see, and leave for how many changes that was, as the recipe does."""
    with _telling("reindex", instance):
        if instance.sku == SLOW:
            _let_others_run(16)
        Person.objects.using(using).create(name=f"{instance.sku} {1 + event.coalesced}")


@shared_task(base=ReceiverTask, guarantee="durable", ordered=True, instance="snapshot")
def follow(instance: Product, using: str) -> None:
    """Leave the state of a product that each of its changes has led to."""
    with _telling("follow", instance):
        Person.objects.using(using).create(name=f"{instance.sku} {instance.views}")
        time.sleep(0.05)


def _let_others_run(times: int) -> None:
    """Wait until other receivers have begun and ended so often, or there is nothing to do for them."""
    file = Path(os.environ[VARIABLE])

    def lines() -> int:
        return file.read_bytes().count(b"\n")

    enough = lines() + 3 * times  # start, end, and how Celery sees the end
    with suppress(AssertionError):
        wait_until(lambda: lines() >= enough, timeout=1.5)


@contextmanager
def _telling(task: str, product: Product) -> Iterator[None]:
    facts = {"sku": product.sku, "state": product.views, "pid": os.getpid(), "group": os.getpgrp()}
    report(task, at="start", **facts)
    try:
        yield
    finally:
        report(task, at="end", **facts)


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


def line_up(using: str, name: str, count: int, *, first: int = 1) -> None:
    """Send several events of one key, in one transaction."""
    with transaction.atomic(using=using):
        for number in range(first, first + count):
            placed.send(sender=None, name=name, number=number, using=using)


def change_one(using: str) -> None:
    """Change one of the products, of which each counts its changes."""
    products = Product.objects.using(using)
    with transaction.atomic(using=using):
        product = products.select_for_update().get(pk=random.choice(products.values_list("pk", flat=True)))
        product.views += 1
        product.save(using=using)


def numbers(using: str) -> dict[str, list[int]]:
    """Return the numbers that the effects end with, in the order of the effects, by what stands before."""
    found: dict[str, list[int]] = {}
    for effect in Person.objects.using(using).order_by("pk").values_list("name", flat=True):
        name, _, number = effect.rpartition(" ")
        found.setdefault(name, []).append(int(number))
    return found


def effects(using: str) -> dict[str, int]:
    """Return how often each effect is there."""
    return dict(Counter(Person.objects.using(using).values_list("name", flat=True)))


def wait_until_done(using: str, *, timeout: float = 90) -> None:
    """Return as soon as no delivery is open."""
    rows = deliveries(using)
    wait_until(lambda: not rows.all().exists(), timeout=timeout, what="the last delivery")
