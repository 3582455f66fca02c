"""Receivers that are paused: nothing of theirs begins, nothing is lost, and the order of a key is kept."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import IntegrityError, connections
from django.dispatch import Signal

from django_celery_signals.durable import pauses as module
from django_celery_signals.durable.deliveries import deliveries
from django_celery_signals.durable.pauses import pause, paused, pauses, resume
from django_celery_signals.durable.reference import Chunk, Reference
from django_celery_signals.durable.relay import Relay
from django_celery_signals.durable.rows import State
from django_celery_signals.durable.upkeep import BATCH, Upkeep
from django_celery_signals.models import Delivery
from tests.delivering import place, states
from tests.receiving import Receiving

ALIASES = ["default", "postgres", "mariadb"]
everywhere = pytest.mark.parametrize("using", ALIASES)
pytestmark = pytest.mark.django_db(databases=[*ALIASES, "other"], transaction=True)
NAME = "tests.paused"


def reference(row: Any, using: str) -> Reference:
    return Reference(alias=using, id=row.pk, token=row.token, receiver=row.receiver, folds=row.folds)


@everywhere
def test_a_pause(using: str) -> None:
    """It begins once and ends once, and may begin again; each database has its own."""
    assert pause(NAME, using)
    assert not pause(NAME, using)
    assert [NAME] == list(paused(using))
    assert {} == paused("other")
    assert resume(NAME, using)
    assert not resume(NAME, using)
    assert not resume("tests.never", using)
    assert {} == paused(using)
    assert pause(NAME, using)
    assert [NAME] == list(paused(using))


@everywhere
def test_two_at_once(using: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two who pause a receiver at once, one has done it."""

    class Late:
        """Finds nothing, and comes too late."""

        def filter(self, **_: Any) -> Late:
            return self

        def exists(self) -> bool:
            return False

        def update(self, **_: Any) -> int:
            return 0

        def create(self, **columns: Any) -> Any:
            raise IntegrityError

    monkeypatch.setattr(module, "pauses", lambda alias: Late())

    assert not pause(NAME, using)


@everywhere
@pytest.mark.parametrize("state", [State.READY, State.SENT])
def test_nothing_begins(using: str, state: State) -> None:
    """A message that has reached a worker opens nothing: what it is about is laid aside, and others are opened."""
    place(using, NAME, state=state, lane="lane", slot="lane", sends=1)
    place(using, "tests.other", state=state)
    mine, other = deliveries(using).order_by("pk")
    pause(NAME, using)

    assert deliveries(using).open(reference(mine, using), 30) is None
    assert deliveries(using).open(reference(other, using), 30) is not None

    mine.refresh_from_db(using=using)
    assert (State.PAUSED, "lane", 0, None) == (mine.state, mine.slot, mine.sends, mine.sent_at)
    assert {"paused": 1, "running": 1} == states(using)


@everywhere
def test_a_copy_is_not_laid_aside(using: str) -> None:
    """A copy of a message changes nothing of a row that has been opened, or that is not paused."""
    place(using, NAME, 2, state=State.SENT)
    first, second = deliveries(using).order_by("pk")
    assert deliveries(using).open(reference(first, using), 30) is not None
    pause(NAME, using)
    assert deliveries(using).open(reference(first, using), 30) is None
    resume(NAME, using)
    stale = Reference(alias=using, id=second.pk, token=second.token + 7, receiver=NAME, folds=False)
    assert deliveries(using).open(stale, 30) is None

    assert {"running": 1, "sent": 1} == states(using)


@everywhere
def test_nothing_of_many_begins(using: str) -> None:
    """The same for a message that refers to several."""
    place(using, NAME, 3, state=State.SENT)
    rows = list(deliveries(using).order_by("pk"))
    chunk = Chunk(alias=using, receiver=NAME, rows=[(row.pk, row.token) for row in rows])
    pause(NAME, using)
    assert [] == deliveries(using).open_together(chunk, 30)
    assert {"paused": 3} == states(using)

    resume(NAME, using)
    assert 3 == deliveries(using).unpark(NAME, 10)
    assert 3 == len(deliveries(using).open_together(chunk, 30))


@everywhere
def test_the_relay_lays_aside(using: str, receiving: Receiving, broker: Any) -> None:
    """What is due for a paused receiver is not published, but what is due for others is."""
    mine, other = receiving(Signal(), guarantee="durable"), receiving(Signal(), guarantee="durable")
    place(using, mine, 2)
    place(using, other)
    pause(mine.name, using)

    assert 1 == Relay(databases=[using]).once()

    assert {"paused": 2, "sent": 1} == states(using)
    assert not deliveries(using).filter(state=State.PAUSED, claim__isnull=False).exists()


@everywhere
def test_it_goes_on(using: str, receiving: Receiving, broker: Any) -> None:
    """When the pause has ended, the relay publishes all of it, the oldest first, and forgets the pause in time."""
    mine, other = receiving(Signal(), guarantee="durable"), receiving(Signal(), guarantee="durable")
    place(using, mine, 3)
    place(using, other, state=State.PAUSED)
    pause(mine.name, using)
    pause(other.name, using)
    Relay(databases=[using]).once()
    resume(mine.name, using)
    relay = Relay(databases=[using])

    assert 3 == relay.once()
    assert {"paused": 1, "sent": 3} == states(using)
    assert pauses(using).filter(receiver=mine.name).exists()

    pauses(using).filter(receiver=mine.name).update(ended_at=datetime(2026, 1, 1, tzinfo=UTC))
    Upkeep(relay.app, using).look_at_pauses()
    assert [other.name] == list(pauses(using).values_list("receiver", flat=True))


def test_many_go_on_in_steps(celery_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a pause to end is brought back a part at a time, as long as there is more."""
    monkeypatch.setattr("django_celery_signals.durable.upkeep.BATCH", 2)
    assert BATCH > 2
    place("default", NAME, 3, state=State.PAUSED)
    pause(NAME, "default")
    resume(NAME, "default")
    upkeep = Upkeep(celery_app, "default")

    assert [True, False, False] == [upkeep.look_at_pauses() for _ in range(3)]
    assert {"ready": 3} == states("default")


@everywhere
def test_a_key_keeps_its_order(using: str, receiving: Receiving, broker: Any) -> None:
    """Of a key the first is laid aside with its turn, so the others wait behind it, also what is sent afterwards."""
    task = receiving(Signal(), guarantee="durable", ordered=True, key=lambda n: n)
    place(using, task, 2, lane="lane")
    pause(task.name, using)

    Relay(databases=[using]).once()

    assert {"paused": 1, "ready": 1} == states(using)
    first, second = deliveries(using).order_by("pk")
    assert ("lane", None) == (first.slot, second.slot)
    place(using, task, lane="lane")
    third = deliveries(using).order_by("-pk").first()
    assert third is not None
    assert not deliveries(using).take_turn(third.pk, "lane")
    resume(task.name, using)
    assert 1 == Relay(databases=[using]).once()
    assert {"sent": 1, "ready": 2} == states(using)


def test_a_pause_while_one_runs(celery_app: Any) -> None:
    """What runs is not disturbed, and what a run puts off waits."""
    place("default", NAME, state=State.SENT)
    row = Delivery.objects.get()
    opened = deliveries("default").open(reference(row, "default"), 30)
    assert opened is not None
    pause(NAME, "default")

    assert 1 == deliveries("default").running([opened.pk], [opened.token]).rerun()
    assert 0 == Relay(app=celery_app, databases=["default"]).once()


@pytest.mark.parametrize("using", ["postgres", "mariadb"])
def test_who_opens_is_not_kept_waiting(using: str) -> None:
    """A pause that another transaction is about to commit keeps nobody from opening a delivery."""
    place(using, NAME, state=State.SENT)
    row = deliveries(using).get()
    begun, ended = threading.Event(), threading.Event()

    def hold() -> None:
        connection = connections[using]
        connection.set_autocommit(False)
        try:
            pauses(using).create(receiver=NAME, since=datetime.now(UTC))
            begun.set()
            ended.wait(10)
        finally:
            connection.rollback()
            connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert begun.wait(10)
        assert deliveries(using).open(reference(row, using), 30) is not None
    finally:
        ended.set()
        thread.join()
