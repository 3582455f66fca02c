"""Deliveries that were never sent: rows as a sender leaves them, many at once and in any state."""

from __future__ import annotations

import secrets
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from kombu import Queue

from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.wire import ARGUMENT
from tests.brokers import Broker
from tests.drain import Published

EXACT = timedelta(seconds=0.5)  # by how much clocks may differ


def moment(seconds: float) -> datetime:
    """Return the moment so many seconds from now."""
    return datetime.now(UTC) + timedelta(seconds=seconds)


def place(using: str, receiver: Any, count: int = 1, **columns: Any) -> None:
    """Write deliveries.

    Args:
        using: alias of the database.
        receiver: task, or its name.
        count: of the rows.
        columns: where they differ from what waits for the relay.
    """
    model = deliveries(using).model
    columns = {"state": State.READY, "due_at": moment(-1), "created_at": moment(-1), "payload": "{}", **columns}
    name = str(getattr(receiver, "name", receiver))
    rows = (
        model(event_id=str(uuid.uuid4()), receiver=name, summary="bell", token=secrets.randbits(60), **columns)
        for _ in range(count)
    )
    deliveries(using).bulk_create(rows, batch_size=500)


def place_sent(using: str, receiver: Any, queue: str, count: int = 1, *, ago: float = 60, **columns: Any) -> None:
    """Write deliveries that were published into a queue so many seconds ago."""
    published = {"state": State.SENT, "due_at": None, "sent_at": moment(-ago), "sends": 1}
    place(using, receiver, count, **{**published, "queue": queue, **columns})


def states(using: str) -> dict[str, int]:
    """Return how many deliveries are in each state, by its name."""
    return dict(Counter(State(state).label for state in deliveries(using).values_list("state", flat=True)))


def burnt(using: str) -> set[tuple[int, int, int]]:
    """Return what deliveries have used up of their attempts, crashes and reruns."""
    return set(deliveries(using).values_list("attempts", "crashes", "reruns"))


def seconds_left(using: str, **filters: Any) -> set[int]:
    """Return in how many seconds deliveries are due."""
    due = deliveries(using).filter(**filters).values_list("due_at", flat=True)
    return {round((at - moment(0)).total_seconds()) for at in due}


def are_due(using: str, seconds: float, since: datetime, **filters: Any) -> bool:
    """Tell whether deliveries are due so many seconds after something that was done between a moment and now."""
    until, due = moment(0), deliveries(using).filter(**filters).values_list("due_at", flat=True)
    left = timedelta(seconds=seconds)
    return bool(due) and all(since - EXACT <= at - left <= until + EXACT for at in due)


def messages(broker: Broker, queue: str | None = None) -> list[Published]:
    """Take all messages out of a queue at once, by default the default one, oldest first."""
    found: list[Published] = []
    with broker.connection() as connection, connection.channel() as channel:
        bound = Queue(queue or broker.queue)(channel)
        while (message := bound.get(no_ack=True)) is not None:
            args, kwargs, _ = message.decode()
            found.append(Published(headers=message.headers, properties=message.properties, args=args, kwargs=kwargs))
    return found


def taken(broker: Broker, queue: str | None = None) -> list[int]:
    """Take all messages out of a queue, and return the ids of the deliveries that they refer to."""
    return [message.kwargs[ARGUMENT]["id"] for message in messages(broker, queue)]
