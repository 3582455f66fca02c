"""Roles of a process with Sentry's SDK, which patches Celery for good: it sends, works, and says what Sentry got."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentry_sdk
from celery.app import trace
from django.db import transaction
from django.dispatch import Signal
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.django import DjangoIntegration
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.transport import Transport

from tests.project.celery import app

sent: list[dict[str, Any]] = []  # to Sentry: errors, records of logging, and transactions


class Kept(Transport):
    """Keeps what would be sent."""

    def capture_envelope(self, envelope: Envelope) -> None:
        sent.extend(item.payload.json for item in envelope.items if item.type in ("event", "transaction"))


sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1",
    transport=Kept,
    integrations=[CeleryIntegration(), DjangoIntegration()],
    traces_sample_rate=1.0,
)

from django_celery_signals import Discard, Relay, receiver_task  # noqa: E402 - after Sentry, as in a project
from django_celery_signals.durable import packing  # noqa: E402
from django_celery_signals.durable.clock import In  # noqa: E402
from django_celery_signals.durable.deliveries import deliveries  # noqa: E402
from tests.brokers import Broker  # noqa: E402
from tests.drain import Published, arrived  # noqa: E402

rung, refused, hurried, dropped = Signal(), Signal(), Signal(), Signal()
poured, spilled = Signal(), Signal()
seen: list[Any] = []  # by receivers


class OutOfStock(Exception):
    """What receivers raise."""


@receiver_task(rung, guarantee="durable")
def ring(word: str, number: int) -> None:
    """Note what came, and in which trace."""
    seen.append([word, number, sentry_sdk.get_current_span().trace_id])


@receiver_task(refused, guarantee="durable", max_retries=1)
def refuse(word: str) -> None:
    """Fail at every try."""
    seen.append(sentry_sdk.get_current_span().trace_id)
    raise OutOfStock("none are left")


@receiver_task(hurried, guarantee="on_commit")
def hurry() -> None:
    """Fail, and be tried no more."""
    raise OutOfStock("none are left")


@receiver_task(dropped, guarantee="durable")
def drop() -> None:
    """Drop the event on purpose."""
    raise Discard("nobody wants it")


@receiver_task(poured, guarantee="durable", countdown=1, chunk_size=10)
def one_by_one(number: int) -> None:
    """Come in a message with others, and leave something to be done after the commit."""
    transaction.on_commit(lambda: seen.append(number))


@receiver_task(poured, guarantee="durable", countdown=1, batch=True)
def all_at_once(events: list[Any]) -> None:
    """Come in a message with others."""
    seen.append([event.kwargs["number"] for event in events])


@receiver_task(spilled, guarantee="durable", countdown=1, chunk_size=10, max_retries=0)
def spill(number: int) -> None:
    """Come in a message with others, of which one fails for good."""
    if number == 1:
        raise OutOfStock("none are left")


def send(signal: Signal, name: str, **kwargs: Any) -> str:
    """Send a signal within a transaction of Sentry's and one of the database; return the id of the trace."""
    with sentry_sdk.start_transaction(name=name, op="http.server") as request, transaction.atomic():
        signal.send(sender=None, **kwargs)
    return str(request.trace_id)


def work(message: Published) -> str:
    """Run a message as a worker does, which gives the task its headers; return what becomes of it."""
    task, headers = app.tasks[message.task], message.headers
    request = {**headers, "hostname": "worker", "delivery_info": {"exchange": "", "routing_key": "any"}}
    traced = trace.build_tracer(task.name, task, app=app)(headers["id"], message.args, message.kwargs, request)
    return str(traced.info.state) if traced.info else "SUCCESS"


def relay() -> None:
    """Publish what waits, as if its time had come."""
    deliveries("default").filter(due_at__isnull=False).update(due_at=In(-1))
    Relay(app=app, databases=["default"]).once()


def rings(broker: Broker) -> dict[str, Any]:
    """Send two events, and run them."""
    traces = [send(rung, f"request {number}", word="hällo", number=number) for number in range(2)]
    messages = arrived(broker, 2)
    states = [work(message) for message in messages]
    return {"traces": traces, "headers": [message.headers for message in messages], "states": states}


def refusals(broker: Broker) -> dict[str, Any]:
    """Send an event that fails twice; the second run is published by a relay."""
    traces, headers, states = [send(refused, "request", word="a secret")], [], []
    for _ in range(2):
        [message] = arrived(broker)
        headers.append(message.headers)
        states.append(work(message))
        relay()
    return {"traces": traces, "headers": headers, "states": states}


def quiet_refusals(broker: Broker) -> dict[str, Any]:
    """The same, where Sentry leaves out the record of it."""
    ignore_logger("django_celery_signals.durable.failing")
    return refusals(broker)


def others(broker: Broker) -> dict[str, Any]:
    """Send an event without a row that fails, and a durable one that is dropped."""
    traces = [send(hurried, "request"), send(dropped, "request")]
    return {"traces": traces, "states": [work(message) for message in arrived(broker, 2)]}


def several(broker: Broker) -> dict[str, Any]:
    """Send events that a relay puts into one message for each of two receivers."""
    return together(broker, poured, 2)


def several_refusals(broker: Broker) -> dict[str, Any]:
    """Send events that a relay puts into one message; one of them fails for good."""
    return together(broker, spilled, 1)


def together(broker: Broker, signal: Signal, count: int) -> dict[str, Any]:
    """Send events that a relay puts into so many messages."""
    packing.SHARES = 1  # else only where many wait
    with sentry_sdk.start_transaction(name="request", op="http.server") as request, transaction.atomic():
        for number in range(3):
            signal.send(sender=None, number=number)
    relay()
    return {"traces": [request.trace_id], "states": [work(message) for message in arrived(broker, count)]}


def main(role: str, name: str, url: str, queue: str, said: str, code: str = "") -> None:
    """Play a role.

    Args:
        role: a function of this module.
        name: of the broker.
        url: of the broker.
        queue: at the broker.
        said: the file for what is to be told.
        code: of the project's, to run before.
    """
    exec(code, {"__name__": "shop.receivers"})
    broker = Broker(name=name, url=url, queue=queue, options={}, clear=lambda broker: None)
    told = globals()[role](broker)
    Path(said).write_text(json.dumps({"sent": sent, "seen": seen, **told}, default=str))
