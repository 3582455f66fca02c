"""The library's own signals: what happened, for metrics, tracing and logs.

Every one is sent with ``sender`` = the receiver's task name (a string; connect with ``sender=None``). None of them is
given an argument's value. A receiver of these that raises is logged and changes nothing.
"""

from __future__ import annotations

from typing import Any

from django.dispatch import Signal

#: A message was taken by the broker, or handed to it where its confirm is not waited for. Arguments: ``event_id``,
#: ``signal_name``, ``using`` (the alias of the sending's database).
event_sent = Signal()
#: An event will not arrive. Arguments: ``event_id``, ``signal_name``, ``summary``, ``error`` (the exception).
event_lost = Signal()
#: A worker starts a receiver. Arguments: ``event`` (:class:`~django_celery_signals.Event`).
receiver_started = Signal()
#: A receiver returned. Arguments: ``event``, ``runtime`` (seconds).
receiver_succeeded = Signal()
#: A receiver raised, or its envelope could not be read. Arguments: ``event`` (or None), ``error``, ``will_retry``,
#: ``using`` (the alias of the sending's database; None where nothing says it).
receiver_failed = Signal()
#: An event was dropped on purpose. Arguments: ``event``, ``reason``.
receiver_discarded = Signal()
#: A durable delivery was given up. Arguments: ``event_id``, ``signal_name``, ``summary``, ``error``, ``using`` (the
#: database's alias), ``delivery_id``.
delivery_failed = Signal()

LIFECYCLE = (
    *(event_sent, event_lost),
    *(receiver_started, receiver_succeeded, receiver_failed, receiver_discarded),
    delivery_failed,
)


def tell(signal: Signal, receiver: str, **facts: Any) -> None:
    """Send one of our own signals; a failing listener is logged by Django and never reaches the caller."""
    signal.send_robust(sender=receiver, **facts)
