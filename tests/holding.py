"""Durable deliveries in a worker's hands: sent without a broker, run as a worker runs them, taken over by another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.app.trace import build_tracer
from django.db.models import F
from django.dispatch import Signal
from django.test import override_settings

from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.reference import Chunk, Reference
from django_celery_signals.wire import ARGUMENT
from tests.elsewhere import elsewhere

bell = Signal()
MESSAGE = "00000000-0000-4000-8000-000000000000"  # id of a message that has several deliveries


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What Celery made of one message."""

    state: str  # "SUCCESS", "FAILURE", "RETRY", "IGNORED" or "REJECTED"
    error: Any  # what the task raised, if anything


def send(using: str, **kwargs: Any) -> None:
    """Send to the bell's receivers, and leave what was written to a relay."""
    with override_settings(DJANGO_CELERY_SIGNALS={"FAST_PATH_LIMIT": 0}):
        bell.send(sender=None, using=using, **kwargs)


def message(using: str, **chosen: Any) -> Callable[[Celery], Outcome]:
    """Return what runs the message that a delivery would be published with now; it can be run at any time."""
    row = deliveries(using).get(**chosen)
    reference = Reference(alias=using, id=row.pk, token=row.token, receiver=row.receiver, folds=row.folds)
    return lambda app: _run(app, row, reference.carried())


def work(app: Celery, using: str, **chosen: Any) -> Outcome:
    """Run a delivery as a worker does."""
    return message(using, **chosen)(app)


def message_together(using: str, **chosen: Any) -> Callable[[Celery], Outcome]:
    """Return what runs the one message that several deliveries would be published with now."""
    rows = list(deliveries(using).filter(**chosen).order_by("pk"))
    chunk = Chunk(alias=using, receiver=rows[0].receiver, rows=[(row.pk, row.token) for row in rows])
    return lambda app: trace(app, chunk.receiver, MESSAGE, {ARGUMENT: chunk.carried()}, 0)


def work_together(app: Celery, using: str, **chosen: Any) -> Outcome:
    """Run several deliveries of one message as a worker does."""
    return message_together(using, **chosen)(app)


def _run(app: Celery, row: Any, carried: dict[str, Any]) -> Outcome:
    return trace(app, row.receiver, row.event_id, {ARGUMENT: carried}, row.attempts)


def trace(
    app: Celery, receiver: str, event_id: str, kwargs: dict[str, Any], retries: int, args: tuple[Any, ...] = ()
) -> Outcome:
    """Run a message as a worker does, which ``task.apply()`` does not: to a task that is eager."""
    task = app.tasks[receiver]
    request = {
        "id": event_id,
        "task": receiver,
        "retries": retries,
        "delivery_info": {"exchange": "", "routing_key": "any"},
    }
    traced = build_tracer(task.name, task, app=app)(event_id, args, kwargs, request)
    return Outcome(state=traced.info.state if traced.info else "SUCCESS", error=traced.info and traced.info.retval)


def take_over(using: str) -> None:
    """Open a delivery that is running once more, as another worker does when its lease has ended."""
    running = deliveries(using).filter(state=State.RUNNING)
    assert 1 == elsewhere(lambda: running.update(token=F("token") + 1))
