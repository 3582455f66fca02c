"""Put waiting deliveries of a receiver into one message, where its chunk_size= or batch= allows that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

from celery import Celery

from ..event import new_id
from ..handover import Message
from ..plurals import quantity
from .deliveries import deliveries
from .outbox import message_of
from .pace import most_together
from .reference import Chunk
from .rows import HEAVIEST

SHARES = 10  # messages that a claim of one receiver makes at least, for so many workers may be idle
_LIMITS = ("time_limit", "soft_time_limit")

Pack = Sequence[Any]  # deliveries that go together


def packed(app: Celery, rows: Iterable[Any], using: str) -> list[Pack]:
    """Divide deliveries into those that go together, in their order.

    Alone goes what takes turns, and what has been tried before: it may have failed by itself, or with others, of which
    nobody knows whose fault it was. Where few wait, all go alone, and start at once in as many workers.
    """
    packs: list[Pack] = []
    alike: defaultdict[tuple[Any, ...], list[Any]] = defaultdict(list)
    most = cache(partial(most_together, app))
    for row in rows:
        if row.lane or row.attempts or row.crashes or row.reruns or most(row.receiver) == 1:
            packs.append([row])
        else:
            alike[row.receiver, row.options.get("queue"), row.options.get("priority")].append(row)
    for (receiver, *_), waiting in alike.items():
        task: Any = app.tasks[receiver]
        size = task.most_together if task.batch else max(1, min(task.most_together, len(waiting) // SHARES))
        weights = deliveries(using).sizes([row.pk for row in waiting]) if size > 1 else {}
        packs.extend(_divided(waiting, size, weights))
    return packs


def _divided(waiting: Sequence[Any], size: int, weights: Mapping[int, int]) -> Iterator[Pack]:
    """Yield packs of so many deliveries, or of as many as a worker should have in memory at once."""
    pack: list[Any] = []
    weight = 0
    for row in waiting:
        own = weights.get(row.pk, 0)
        if pack and (len(pack) == size or weight + own > HEAVIEST):
            yield pack
            pack, weight = [], 0
        pack.append(row)
        weight += own
    yield pack


def message_of_pack(app: Celery, pack: Pack, using: str) -> Message:
    """Return the message of deliveries that go together; they have as many times the time of one, but for one call."""
    if len(pack) == 1:
        return message_of(app, pack[0], using)
    first = pack[0]
    task: Any = app.tasks[first.receiver]
    routing = {name: first.options[name] for name in ("queue", "priority") if name in first.options}
    limits = {name: getattr(task, name) or getattr(app.conf, f"task_{name}") for name in _LIMITS}
    return Message(
        app=app,
        receiver=first.receiver,
        event_id=(own_id := new_id()),
        signal_name=first.signal,
        summary=f"{quantity(len(pack))}, the first of {first.summary}",
        body=Chunk(alias=using, receiver=first.receiver, rows=[(row.pk, row.token) for row in pack]).carried(),
        options={
            **routing,
            **({} if task.batch else {name: limit * len(pack) for name, limit in limits.items() if limit}),
            "expires": None,
            "task_id": own_id,
            "retries": 0,
        },
        using=using,
        parts=[(row.event_id, row.signal) for row in pack],
    )
