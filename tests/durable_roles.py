"""What the processes of durable deliveries import, or are: short pauses, crash points; a sender, a relay.

Nobody else imports this. A worker includes it; the others begin with :func:`main`.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from celery.signals import task_postrun
from django.db import connections
from django.db.models.signals import post_save

from django_celery_signals import breaker, connect
from django_celery_signals.durable import deliveries, lease, probe, relay, upkeep
from tests import crashing, durable_tasks
from tests.project.celery import app
from tests.reports import report
from tests.scene import CRASH_BUDGET, REAL_PAUSES
from tests.shop.models import Customer, Product, RushOrder
from tests.waiting import wait_until

EDITORS = 4  # threads of a process that changes products
THINKING = 0.1  # seconds between two changes of a thread, on the average
BACKLOG = 40  # deliveries that may wait for the workers

PAUSES: list[tuple[Any, dict[str, float]]] = [
    (probe, {"OLD": 0.2, "EVERY": 0.4, "SETTLED": 0.2}),
    (deliveries, {"SWEPT_AFTER": 0.2}),
    (relay, {"GRACE": 1.0, "SOON": 0.2, "LONGEST_PAUSE": 0.5}),
    (upkeep, {"EXPIRE_EVERY": 0.2, "PROBE_EVERY": 0.2, "STRAYS_EVERY": 0.5}),
    (lease, {"PAUSE": 0.2}),
    (breaker, {"FIRST_PAUSE": 0.2}),
]


def hurry() -> None:
    """Shorten the pauses that the library makes for the sake of large installations."""
    for module, pauses in PAUSES:
        for name, seconds in pauses.items():
            assert getattr(module, name) > seconds
            setattr(module, name, seconds)
    relay.Relay.__init__.__kwdefaults__["idle"] = 0.1
    deliveries.CRASH_BUDGET = upkeep.CRASH_BUDGET = int(os.environ.get(CRASH_BUDGET, deliveries.CRASH_BUDGET))


def send(using: str, *names: str) -> None:
    """Send, as a request does."""
    with durable_tasks.connected_to(durable_tasks.inside):
        durable_tasks.place(using, names)


def save(using: str) -> None:
    """Save a row of two tables outside of a transaction; the process may die before post_save reaches the receiver."""
    post_save.connect(_reach_saved, sender=RushOrder)
    connect(post_save, durable_tasks.follow_order, sender=RushOrder)
    customer = Customer.objects.using(using).create(name="Ada")
    RushOrder.objects.using(using).create(customer=customer, courier="Ben")


def _reach_saved(**_: Any) -> None:
    crashing.reached("saved")


def line_up(using: str, name: str, count: str) -> None:
    """Send several events of one key."""
    with durable_tasks.connected_to(durable_tasks.in_turn):
        durable_tasks.line_up(using, name, int(count))


def edit(using: str, receiver: str, times: str) -> None:
    """Change products in threads, as requests do, each so many times."""

    def goes_on(number: int) -> bool:
        time.sleep(random.uniform(0, 2 * THINKING))
        return number < int(times)

    _edit(using, receiver, goes_on)


def edit_until(using: str, receiver: str, end: str) -> None:
    """Do the same until a file is there, and no faster than the workers can follow."""

    def goes_on(number: int) -> bool:
        wait_until(lambda: deliveries.deliveries(using).count() < BACKLOG or Path(end).exists(), timeout=60)
        return not Path(end).exists()

    _edit(using, receiver, goes_on)


def _edit(using: str, receiver: str, goes_on: Callable[[int], bool]) -> None:
    def work() -> None:
        for number in itertools.count():
            if not goes_on(number):
                break
            durable_tasks.change_one(using)
        connections.close_all()

    connect(post_save, getattr(durable_tasks, receiver), sender=Product)
    with ThreadPoolExecutor(EDITORS) as pool:
        for working in [pool.submit(work) for _ in range(EDITORS)]:
            working.result()


def run_relay(using: str, batch: str) -> None:
    """Relay until SIGTERM."""
    running = relay.Relay(app=app, databases=[using], batch_size=int(batch))
    signal.signal(signal.SIGTERM, lambda *_: running.stop())
    print("relaying", flush=True)  # noqa: T201 - the test waits for it
    running.run()


@task_postrun.connect
def tell_end(task: Any, state: str, **_: Any) -> None:
    """Report how Celery sees the end of a receiver."""
    if task.name != probe.TASK:
        report("ended", pid=os.getpid(), state=state)


ROLES: dict[str, Callable[..., None]] = {
    **{function.__name__: function for function in (send, save, line_up, edit, edit_until)},
    "relay": run_relay,
}


def main(role: str, *arguments: str) -> None:
    """Be one of them."""
    ROLES[role](*arguments)


if REAL_PAUSES not in os.environ:
    hurry()
crashing.install()
