"""django-domain-events: an event and its deliveries are rows, and its relay runs the receivers.

Set up as its documentation says: ``fire()`` in the transaction, durable receivers, ``deliver_events`` as two processes.
The lease is the rig's, so that what recovers is compared at the same patience.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from django.core.management import call_command
from django.db.models.signals import post_save
from django_domain_events import DURABLE, event, fire, receiver

from chaos.site.models import Happening
from chaos.site.receivers import receive
from chaos.site.systems import undone

ORDERS = False
open_count = undone
together = nullcontext
GIVEN_UP = ("dead", "orphaned")


@event
@dataclass(frozen=True, slots=True)
class Happened:
    """What is fired."""

    number: int


@receiver(Happened, mode=DURABLE)
def free(happened: Happened) -> None:
    """Do the work; the relay's transaction is around it."""
    receive(happened.number, lambda: Happening.objects.get(pk=happened.number))


def _send(instance: Happening, created: bool, **_: Any) -> None:
    fire(Happened(number=instance.pk))


def connect() -> None:
    """Connect the glue."""
    post_save.connect(_send, sender=Happening)


def relay() -> None:
    """Relay."""
    call_command("deliver_events")


def left() -> list[dict[str, Any]]:
    """Return what is open, and what is dead."""
    from django_domain_events.models.delivery_record import DeliveryRecord

    rows = DeliveryRecord.objects.exclude(status__in=("succeeded", "cancelled")).select_related("event")
    return [{"number": row.event.payload["number"], "given_up": row.status in GIVEN_UP, "error": None} for row in rows]
