"""The event: which one is current, and how events of one chain know one another."""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from django.test import override_settings

from django_celery_signals import Event, current_event
from django_celery_signals.event import check_depth, new_event, running
from django_celery_signals.exceptions import LoopDetected


def made(number: int = 1, receiver: str = "shop.tasks.index") -> Event:
    return new_event(receiver, "django.db.models.signals:post_save", f"post_save shop.Order pk={number}", "other")


@contextmanager
def chain_of(length: int) -> Iterator[list[Event]]:
    """Run the receivers of that many events, each inside the one before."""
    with ExitStack() as stack:
        events: list[Event] = []
        for number in range(length):
            events.append(made(number))
            stack.enter_context(running(events[-1]))
        yield events


def test_a_new_event_tells_where_it_comes_from() -> None:
    """An event has an identity of its own, tells when, for whom and on which database it was sent, and never changes
    (H47)."""
    event = made()

    assert ("shop.tasks.index", "django.db.models.signals:post_save", "other") == (
        event.receiver,
        event.signal_name,
        event.using,
    )
    assert event.sent_at.tzinfo is UTC
    assert timedelta() <= datetime.now(UTC) - event.sent_at < timedelta(minutes=1)
    assert {} == event.changes
    assert event.id != made().id
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.id = "other"  # type: ignore[misc]


def test_an_event_without_a_cause_is_a_root() -> None:
    """An event that no receiver caused begins a chain (H28)."""
    event = made()

    assert (0, event.id, None) == (event.depth, event.root_id, event.parent_id)
    assert ("post_save shop.Order pk=1 -> shop.tasks.index",) == event.chain


def test_an_event_knows_what_caused_it() -> None:
    """An event sent by a receiver is linked to the receiver's event and to the first of the chain (H28)."""
    with chain_of(3) as (root, middle, last):
        pass

    assert (2, root.id, middle.id) == (last.depth, last.root_id, last.parent_id)
    assert (root.id, root.id) == (middle.root_id, middle.parent_id)
    assert tuple(f"post_save shop.Order pk={number} -> shop.tasks.index" for number in range(3)) == last.chain


@override_settings(DJANGO_CELERY_SIGNALS={"MAX_DEPTH": 2})
def test_a_chain_has_an_end() -> None:
    """A sending that more than MAX_DEPTH receivers have caused is refused, and the error prints the chain (H28)."""
    with chain_of(3) as events:
        check_depth(events[-1])
        last = made(3, "shop.tasks.save_again")

    with pytest.raises(LoopDetected) as raised:
        check_depth(last)

    said = str(raised.value)
    assert (2, 3) == (events[-1].depth, last.depth)
    assert "caused one another 3 times, more than MAX_DEPTH = 2" in said
    assert said.index("pk=0 -> shop.tasks.index") < said.index("pk=3 -> shop.tasks.save_again")
    assert "QuerySet.update()" in said


def test_the_current_event_is_that_of_the_running_receiver() -> None:
    """The innermost running receiver's event is the current one; outside of receivers there is none."""
    assert current_event() is None
    with chain_of(2) as (outer, inner):
        assert current_event() is inner
        assert contextvars.Context().run(current_event) is None
    with running(outer), pytest.raises(RuntimeError), running(inner):
        raise RuntimeError
    assert current_event() is None


def test_an_event_without_a_row_is_nobody_elses() -> None:
    """What a message carried cannot be taken away from its run, and there is nothing to fence it with (H47)."""
    event = made()

    assert (None, None) == (event.fence, event.lease)
    assert event.still_mine()


@pytest.mark.parametrize("answer", [True, False])
def test_an_event_of_a_row_asks_its_lease(answer: bool) -> None:
    """Whether a durable event is still this run's is asked of its lease, each time; the lease is not shown."""
    asked: list[bool] = []

    def is_mine() -> bool:
        asked.append(answer)
        return answer

    event = dataclasses.replace(made(), fence=7, lease=SimpleNamespace(is_mine=is_mine))

    assert (answer, answer) == (event.still_mine(), event.still_mine())
    assert [answer, answer] == asked
    assert "fence=7" in repr(event)
    assert "lease" not in repr(event)
    assert event == dataclasses.replace(event, lease=None)
