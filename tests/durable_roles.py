"""What the processes of durable deliveries import, or are: short pauses, crash points; a sender, a relay.

Nobody else imports this. A worker includes it; the others begin with :func:`main`.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from celery.signals import task_postrun
from django.db.models.signals import post_save

from django_celery_signals import breaker, connect
from django_celery_signals.durable import deliveries, lease, probe, relay, upkeep
from tests import crashing, durable_tasks
from tests.project.celery import app
from tests.reports import report
from tests.scene import CRASH_BUDGET, REAL_PAUSES
from tests.shop.models import Customer, RushOrder

PAUSES: list[tuple[Any, dict[str, float]]] = [
    (probe, {"OLD": 0.2, "EVERY": 0.4, "SETTLED": 0.2}),
    (deliveries, {"SWEPT_AFTER": 0.2}),
    (relay, {"GRACE": 1.0, "SOON": 0.2, "LONGEST_PAUSE": 0.5}),
    (upkeep, {"EXPIRE_EVERY": 0.2, "PROBE_EVERY": 0.2}),
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


def main(role: str, *arguments: str) -> None:
    """Be one of them."""
    {"send": send, "save": save, "relay": run_relay}[role](*arguments)


if REAL_PAUSES not in os.environ:
    hurry()
crashing.install()
