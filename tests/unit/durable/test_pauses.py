"""Receivers that are paused: nothing of theirs begins, nothing is lost, and the order of a key is kept."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connections
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal

from django_celery_signals.durable.deliveries import deliveries
from django_celery_signals.durable.pauses import pause, paused, pauses, resume
from django_celery_signals.durable.reference import Chunk, Reference
from django_celery_signals.durable.relay import Relay
from django_celery_signals.durable.rows import State
from django_celery_signals.durable.upkeep import Upkeep
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
    assert [NAME] == list(map(str, pauses(using)))
    assert {} == paused("other")
    assert resume(NAME, using)
    assert not resume(NAME, using)
    assert not resume("tests.never", using)
    assert {} == paused(using)
    assert pause(NAME, using)
    assert [NAME] == list(paused(using))


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
def test_a_relay_that_does_not_know_of_the_end(using: str, receiving: Receiving, broker: Any) -> None:
    """What it lays aside though the pause is over is brought back by the next look, whosever that is."""
    task = receiving(Signal(), guarantee="durable")
    pause(task.name, using)
    late = Relay(databases=[using])
    late._upkeep[using].work()
    resume(task.name, using)
    place(using, task)

    late._publish(using, late._claim(using))
    assert {"paused": 1} == states(using)

    assert 1 == Relay(databases=[using]).once()


@everywhere
def test_a_pause_that_ends_before_it_is_laid_aside(using: str, receiving: Receiving, broker: Any) -> None:
    """A delivery that was refused by a pause which is over at once is not left behind."""
    task = receiving(Signal(), guarantee="durable")
    place(using, task, state=State.SENT)
    row = deliveries(using).get()
    assert 1 == deliveries(using).park([row.pk], [row.token], task.name)

    assert 1 == Relay(databases=[using]).once()


@everywhere
def test_it_goes_on(using: str, receiving: Receiving, broker: Any) -> None:
    """When the pause has ended, the relay publishes all of it, and nothing of another receiver's that lasts."""
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
    assert [other.name] == list(paused(using))


def test_many_go_on_in_steps(celery_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a pause to end is brought back a part at a time, as long as there is more."""
    monkeypatch.setattr("django_celery_signals.durable.upkeep.UNPARKED", 2)
    place("default", NAME, 3, state=State.PAUSED)
    place("default", "tests.another", 1, state=State.PAUSED)
    upkeep, first = Upkeep(celery_app, "default"), deliveries("default").order_by("pk").first()

    assert upkeep.look_at_pauses()
    assert {"paused": 1, "ready": 3} == states("default")
    first.refresh_from_db()
    assert State.READY == first.state
    assert [True, False] == [upkeep.look_at_pauses() for _ in range(2)]
    assert {"ready": 4} == states("default")


@pytest.mark.parametrize("using", ["postgres", "mariadb"])
def test_many_paused_cost_nothing(using: str) -> None:
    """Of very many that are paused, those of another receiver are found by an index alone."""
    place(using, NAME, 2000, state=State.PAUSED, due_at=None)
    place(using, "tests.zebra", 3, state=State.PAUSED, due_at=None)
    with connections[using].cursor() as cursor:
        cursor.execute("ANALYZE TABLE django_celery_signals_delivery" if using == "mariadb" else "ANALYZE")
    assert [NAME, "tests.zebra"] == deliveries(using).parked()

    rows = deliveries(using).filter(state=State.PAUSED, receiver="tests.zebra").order_by("pk")

    assert "dcs_delivery_kept" in rows.explain()
    assert 2 == deliveries(using).unpark("tests.zebra", 2)


@everywhere
def test_a_pause_is_nobodys_event(using: str) -> None:
    """No receiver of every sender's is told of a pause, which is no business of the project's."""
    seen: list[Any] = []

    def note(sender: Any, **_: Any) -> None:
        seen.append(sender)

    signals = (pre_save, post_save, pre_delete, post_delete)
    for signal in signals:
        signal.connect(note)
    try:
        assert pause(NAME, using)
        assert resume(NAME, using)
    finally:
        for signal in signals:
            signal.disconnect(note)
    assert [] == seen


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
            pause(NAME, using)
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
