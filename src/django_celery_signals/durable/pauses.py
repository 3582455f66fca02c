"""Receivers that are paused: their deliveries are written as ever, and wait until somebody lets them go on.

A pause is a row. Opening a delivery asks for it in the same statement, so none begins once the pause is committed; what
could not be opened, or would be published, becomes "paused". When the pause has ended, the relay brings it back.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.apps import apps
from django.db import IntegrityError, transaction

from .clock import In
from .rows import State

SETTLED = 60.0  # seconds after its end for which a pause is looked at: another relay may not know of the end yet

#: What becomes of a delivery. It keeps its turn, so that those of its key stay in order.
PARKED: dict[str, Any] = {"state": State.PAUSED, "due_at": In(0), "claim": None, "sent_at": None, "sends": 0}


def pauses(using: str) -> Any:
    """Return the pauses in a database."""
    return apps.get_model("django_celery_signals", "Pause")._base_manager.using(using)


def pause(receiver: str, using: str) -> bool:
    """Let a receiver's deliveries in a database wait; tell whether it was not paused before."""
    if pauses(using).filter(receiver=receiver, ended_at=None).exists():
        return False
    if pauses(using).filter(receiver=receiver).update(since=In(0), ended_at=None):
        return True
    try:
        with transaction.atomic(using=using):
            pauses(using).create(receiver=receiver, since=In(0))
    except IntegrityError:  # somebody else has just done so
        return False
    return True


def resume(receiver: str, using: str) -> bool:
    """Let them go on; tell whether they were waiting. A relay publishes them within seconds, the oldest first."""
    return bool(pauses(using).filter(receiver=receiver, ended_at=None).update(ended_at=In(0)))


def paused(using: str) -> dict[str, datetime]:
    """Return the receivers that are paused, each with since when."""
    return dict(pauses(using).filter(ended_at=None).order_by("receiver").values_list("receiver", "since"))
