"""Receipts of what the worker did, written by receivers of the library's own signals."""

from __future__ import annotations

from typing import Any

from django_celery_signals import Event
from django_celery_signals.signals import receiver_discarded, receiver_failed, receiver_succeeded

from .models import Receipt


def write(receiver: str, event: Event, outcome: str) -> None:
    """Keep one receipt per event, however often it arrives."""
    Receipt.objects.bulk_create([Receipt(event_id=event.id, receiver=receiver, outcome=outcome)], ignore_conflicts=True)


def on_succeeded(sender: str, event: Event, **kwargs: Any) -> None:
    """Note that a receiver did its work."""
    write(sender, event, "succeeded")


def on_discarded(sender: str, event: Event, **kwargs: Any) -> None:
    """Note that there was nothing to do, as the flight was gone."""
    write(sender, event, "discarded")


def on_failed(sender: str, event: Event | None, will_retry: bool, **kwargs: Any) -> None:
    """Note that a receiver gave up."""
    if event is not None and not will_retry:
        write(sender, event, "failed")


receiver_succeeded.connect(on_succeeded)
receiver_discarded.connect(on_discarded)
receiver_failed.connect(on_failed)
