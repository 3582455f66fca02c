"""The event: what a receiver may know about the sending it runs for, and what caused it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from . import conf
from .exceptions import LoopDetected


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a receiver may know about the sending that it runs for."""

    id: str  # the same at every attempt: an idempotency key, a Message-ID
    signal_name: str  # "module:name"; empty for a signal that no module holds
    receiver: str  # name of the task the event is addressed to
    sent_at: datetime  # when the signal was sent, in UTC
    using: str  # alias of the database whose transaction the sending belonged to
    changes: dict[str, tuple[Any, Any]]  # field name -> (old, new), for receivers with changed=
    depth: int  # how many receivers caused this sending, one another; 0: none
    root_id: str  # id of the event that started the chain; its own for the first
    parent_id: str | None  # id of the event whose receiver sent this one
    chain: tuple[str, ...] = ()  # what led here, in words, oldest first
    coalesced: int = 0  # how many earlier sendings of its key this one stands for as well
    key: str | None = None  # what it is about, for a receiver with ordered= or coalesce=, as it is shown
    context: dict[str, Any] = field(default_factory=dict, repr=False)  # what surrounded the sending: register_context
    kwargs: dict[str, Any] = field(default_factory=dict, repr=False)  # what was sent, for a receiver with batch=True
    fence: int | None = None  # of a durable delivery: grows with every run of its key, so that others refuse older ones
    lease: Any = field(default=None, repr=False, compare=False)  # what still_mine() asks

    def still_mine(self) -> bool:
        """Tell whether this run still has the delivery, by asking the database: for what no rollback can undo.

        It has not when the process was stopped for longer than ``LEASE``: then another run may have begun, and what
        this one writes to the database will be rolled back if the receiver is atomic. True without "durable".
        """
        return self.lease is None or bool(self.lease.is_mine())


_current: ContextVar[Event | None] = ContextVar("django_celery_signals.event", default=None)


def current_event() -> Event | None:
    """Return the event of the receiver that is running, or None outside of one."""
    return _current.get()


@contextmanager
def running(event: Event) -> Iterator[None]:
    """Make an event the current one."""
    token = _current.set(event)
    try:
        yield
    finally:
        _current.reset(token)


def new_id() -> str:
    """Return a random UUID, as text; Python's own class takes as long again to make one of the same bytes."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[int(text[16], 16) & 3]}{text[17:20]}-{text[20:]}"


def new_event(receiver: str, signal_name: str, summary: str, using: str) -> Event:
    """Return the event of a sending, linked to the event whose receiver is sending it."""
    parent = current_event()
    own_id = new_id()
    chain = (*(parent.chain if parent else ()), f"{summary} -> {receiver}")
    return event_of(
        id=own_id,
        signal_name=signal_name,
        receiver=receiver,
        sent_at=datetime.now(UTC),
        using=using,
        changes={},
        depth=len(chain) - 1,
        root_id=parent.root_id if parent else own_id,
        parent_id=parent.id if parent else None,
        chain=chain,
    )


def event_of(**facts: Any) -> Event:
    """Return an event of these facts, as its class does, in a third of the time: a frozen one is set field by field."""
    event = object.__new__(Event)
    vars(event).update(context={}, kwargs={}, **facts)
    return event


def with_facts(event: Event, **facts: Any) -> Event:
    """Return an event of which these facts are others, as ``replace()`` does, in a third of the time."""
    other = object.__new__(Event)
    vars(other).update(vars(event), **facts)
    return other


def check_depth(event: Event) -> None:
    """Refuse an event that is the last of a chain too long to be meant.

    Raises:
        LoopDetected: when more than ``MAX_DEPTH`` receivers have caused one another, printing the chain.
    """
    limit = conf.get().MAX_DEPTH
    if event.depth > limit:
        steps = "\n  ".join(event.chain)
        raise LoopDetected(
            f"Receivers have caused one another {event.depth} times, more than MAX_DEPTH = {limit}:\n  {steps}\n"
            "Let the receiver write with QuerySet.update(), which sends nothing, or narrow it with changed= or when=; "
            "raise MAX_DEPTH if a chain this long is meant."
        )
