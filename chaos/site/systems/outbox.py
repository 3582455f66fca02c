"""django-celery-outbox: every call of a task becomes a row, which its relay publishes and deletes.

Set up as its documentation says: the app is an ``OutboxCelery``, and its relay is a process. Publisher confirms are on,
as it recommends. What becomes of a message is Celery's: acknowledged late, and again when a worker is lost.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from celery import shared_task
from django.core.management import call_command
from django.db import transaction
from django.db.models.signals import post_save

from chaos.site.models import Happening
from chaos.site.receivers import LEASE, receive
from chaos.site.systems import undone

ORDERS = False
open_count = undone  # its rows tell nothing: what was published is none any more
together = nullcontext


@shared_task(
    name="free", acks_late=True, reject_on_worker_lost=True, autoretry_for=(Exception,), max_retries=20, retry_backoff=1
)
def free(number: int) -> None:
    """Do the work, in a transaction."""
    with transaction.atomic():
        receive(number, lambda: Happening.objects.get(pk=number))


def _send(instance: Happening, created: bool, **_: Any) -> None:
    free.delay(instance.pk)


def connect() -> None:
    """Connect the glue."""
    post_save.connect(_send, sender=Happening)


def relay() -> None:
    """Relay, as quick to recover as its options allow: it takes what a dead one had after a lease, not 300 s."""
    quick = {"idle_time": 0.2, "backoff_time": 5, "broker_outage_cooldown": 5.0, "stale_timeout_seconds": int(LEASE)}
    call_command("celery_outbox_relay", max_retries=100, **quick)


def left() -> list[dict[str, Any]]:
    """Return what is open, and the dead letters."""
    from django_celery_outbox.models import CeleryOutbox, CeleryOutboxDeadLetter

    return [
        {"number": row.args[0], "given_up": model is CeleryOutboxDeadLetter, "error": None}
        for model in (CeleryOutbox, CeleryOutboxDeadLetter)
        for row in model.objects.all()
    ]
