"""Senders, workers and relays that meet over one key: two have never the turn, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from celery import Celery
from django.db import connections

from django_celery_signals import Fail, dispatch
from django_celery_signals.durable import hold, outbox
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import deliveries
from django_celery_signals.durable.rows import State
from django_celery_signals.durable.turns import TurnQuerySet
from tests.brokers import Broker
from tests.delivering import states
from tests.elsewhere import elsewhere, other_transaction
from tests.lanes import LEVELS, Stage, after_completion, impatient, waits
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Tag
from tests.waiting import wait_until

each_kind = each_database("default", "postgres", "mariadb")
each_server = each_database("postgres", "mariadb")  # on SQLite one transaction at a time writes


@pytest.fixture
def stage(alias: str, broker: Broker, celery_app: Celery, receiving: Receiving) -> Stage:
    return Stage(alias=alias, app=celery_app, receiving=receiving)


def do_nothing(*args: Any) -> None:
    """Be dead by then."""


# Who gives the turn --------------------------------------------------------------------------------------------------


def left_behind(stage: Stage, *numbers: int) -> tuple[str, list[int]]:
    """Leave steps of a key behind, as processes do that die after the commit; return their lane and their ids."""
    stage.receive(ordered=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "publish_or_leave", do_nothing)
        stage.send("a", *numbers)
    rows = stage.rows().order_by("pk")
    return str(rows[0].lane), list(rows.values_list("pk", flat=True))


def by_sender(stage: Stage, lane: str, pk: int) -> int:
    """Let a delivery have its turn as its sender does; return how many are to be published."""
    return int(deliveries(stage.alias).take_turn(pk, lane))


def by_worker(stage: Stage, lane: str, pk: int) -> int:
    """Let the next have its turn as the worker that ended the one before it does."""
    return int(deliveries(stage.alias).pass_turn(lane, publishing=True) is not None)


def by_relay(stage: Stage, lane: str, pk: int) -> int:
    """Let what is due have its turn."""
    stage.rows(pk=pk).update(due_at=In(-1))
    claimed = deliveries(stage.alias).claim(10, 30)
    return len(deliveries(stage.alias).admit(claimed.claim, claimed.rows))


PROMOTERS = {"sender": by_sender, "worker": by_worker, "relay": by_relay}
each_promoter = pytest.mark.parametrize("promote", PROMOTERS.values(), ids=PROMOTERS)
each_rival = pytest.mark.parametrize("rival", PROMOTERS.values(), ids=PROMOTERS)


@each_promoter
@each_rival
@each_kind
def test_one_slot(stage: Stage, promote: Any, rival: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However two meet that both found the slot free, one of them lets the oldest have it, and it is published once."""
    lane, ids = left_behind(stage, 1, 2)
    original, published = TurnQuerySet._win, []

    def win_later(self: TurnQuerySet, *args: Any, **changes: Any) -> int:
        monkeypatch.setattr(TurnQuerySet, "_win", original)
        published.append(elsewhere(lambda: rival(stage, lane, ids[0])))
        return original(self, *args, **changes)

    monkeypatch.setattr(TurnQuerySet, "_win", win_later)
    published.append(promote(stage, lane, ids[0]))

    assert (1, [ids[0]]) == (sum(published), list(stage.rows(slot=lane).values_list("pk", flat=True)))
    assert 2 == len(published)


@pytest.mark.parametrize("commits", [True, False])
@each_promoter
@each_server
def test_a_slot_that_is_not_committed(stage: Stage, promote: Any, commits: bool) -> None:
    """Who gives a slot that another is giving waits for that one's commit, and gives it only after a rollback."""
    lane, [second, first] = left_behind(stage, 2, 1)
    stage.rows(pk=second).update(lane="elsewhere")  # nobody sees the one before it yet
    promoted = stage.rows(pk=second)
    with (
        other_transaction(stage.alias, lambda: promoted.update(slot=lane, state=State.SENT)) as other,
        ExitStack() as stack,
    ):
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(elsewhere(lambda: promote(stage, lane, first))))
        stack.callback(thread.join)
        thread.start()
        wait_until(lambda: found or is_waiting(stage.alias), what="the wait for the other's commit")
        assert [] == found
        if commits:
            other.commit()
        else:
            other.do(lambda: connections[stage.alias].rollback())

    assert [int(not commits)] == found
    assert [second if commits else first] == list(stage.rows(slot=lane).values_list("pk", flat=True))


def is_waiting(using: str) -> bool:
    """Tell whether a transaction of this database waits for another's lock."""
    sql = {
        "postgresql": "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
        "mysql": "SELECT 1 FROM information_schema.innodb_trx t JOIN information_schema.processlist p "
        "ON p.id = t.trx_mysql_thread_id WHERE t.trx_state = 'LOCK WAIT' AND p.db = DATABASE()",
    }
    with connections[using].cursor() as cursor:
        cursor.execute(sql[connections[using].vendor])
        found = cursor.fetchone() is not None
    if not found and connections[using].vendor == "mysql":
        time.sleep(0.3)  # InnoDB looks anew only when nobody has asked it for 0.1 seconds
    return found


@each_kind
def test_one_of_several_slots(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that is too late for one key of its batch admits the others."""
    lane, [first, second] = left_behind(stage, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "publish_or_leave", do_nothing)
        stage.send("b", 10)
    other, rows = stage.rows(key="b").get().pk, deliveries(stage.alias)
    stage.rows().exclude(pk=second).update(due_at=In(-1))
    claimed, original = rows.claim(10, 30), TurnQuerySet._win

    def win_later(self: TurnQuerySet, *args: Any, **changes: Any) -> int:
        monkeypatch.setattr(TurnQuerySet, "_win", original)
        elsewhere(lambda: stage.rows(pk=second).update(slot=lane, state=State.SENT, sent_at=In(0)))
        return original(self, *args, **changes)

    monkeypatch.setattr(TurnQuerySet, "_win", win_later)

    assert [other] == [row.pk for row in rows.admit(claimed.claim, claimed.rows)]
    assert {second, other} == set(stage.rows(slot__isnull=False).values_list("pk", flat=True))
    assert 1 == stage.rows(pk=first, due_at=None, claim=None).count()  # it waits for the other's end


# Wake-ups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@each_kind
def test_a_sender_commits_when_a_run_ends(stage: Stage, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed between the end of a run and the search for the next, or later, needs no relay."""
    stage.receive(ordered=True)
    stage.send("a", 1)
    original = TurnQuerySet.pass_turn

    def pass_turn(self: TurnQuerySet, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(TurnQuerySet, "pass_turn", original)
        if when == "before":
            stage.send_elsewhere("a", 2)
        found = original(self, *args, **options)
        if when == "after":
            stage.send_elsewhere("a", 2)
        return found

    monkeypatch.setattr(TurnQuerySet, "pass_turn", pass_turn)

    assert (2, [1, 2], {}) == (stage.work(), stage.seen, states(stage.alias))


@pytest.mark.parametrize("level", [False, True], ids=["as ever", "repeatable read"])
@each_server
def test_a_run_ends_before_its_senders_commit(stage: Stage, level: bool) -> None:
    """What was sent before the end of a run, and is committed after it, has its turn then: its sender gives it."""
    with impatient(stage.alias, **(LEVELS[stage.alias] if level else {})):
        stage.receive(ordered=True)
        stage.send("a", 1)
        with stage.sending("a", 2), stage.sending("a", 3):
            assert 1 == stage.work()
        assert 2 == stage.work()

    assert ([1, 2, 3], {}) in [(sorted(stage.seen), states(stage.alias))]


@pytest.mark.parametrize("level", [False, True], ids=["as ever", "repeatable read"])
@each_server
def test_a_sender_commits_while_a_run_completes(stage: Stage, level: bool) -> None:
    """What is committed while the end of a run is noted and not yet committed is published by that run's worker."""
    with impatient(stage.alias, **(LEVELS[stage.alias] if level else {})):
        stage.receive(ordered=True)
        stage.send("a", 1)
        with after_completion(lambda: stage.send_elsewhere("a", 2) if stage.seen == [1] else None):
            assert 2 == stage.work()

    assert ([1, 2], {}) == (stage.seen, states(stage.alias))


@each_server
def test_a_lower_id_that_commits_late(stage: Stage) -> None:
    """What was written first and is committed last waits for the run that is under way, and is then the next."""
    stage.receive(ordered=True)
    with stage.sending("a", 1) as sender:
        stage.body = lambda number: sender.commit() if number == 2 else None
        stage.send("a", 2, 3)
        [message] = stage.take()
        assert 2 == stage.waiting() + 1
        stage.run(message)
        [message] = stage.take()
        stage.run(message)
        stage.work()

    assert ([2, 1, 3], {}) == (stage.seen, states(stage.alias))


@each_server
def test_a_lower_id_that_commits_late_and_is_folded(stage: Stage) -> None:
    """A coalesced event that was written first and is committed last is in the next run, and not lost."""
    stage.receive(coalesce=True)
    with stage.sending("a", 1) as sender:
        stage.body = lambda number: sender.commit() if number == 2 else None
        stage.send("a", 2)
        assert 2 == stage.work()

    assert ([2, 1], {}) == (stage.seen, states(stage.alias))


@pytest.mark.parametrize("options", [{"ordered": True}, {"coalesce": True}], ids=["ordered", "coalesce"])
@each_kind
def test_copies_of_a_message(stage: Stage, options: dict[str, Any]) -> None:
    """A message that comes again changes nothing, while its delivery runs, waits for a retry or is done: all that waits
    stays, and has its turn."""
    fails = [True]
    stage.receive(atomic=False, **options)
    stage.send("a", 1)
    [message] = stage.take()

    def receive_again(number: int) -> None:
        if number == 1 and fails:
            stage.send_elsewhere("a", 2)
            elsewhere(lambda: stage.run(message))
            assert 1 == stage.waiting()
            raise OSError(fails.pop())

    stage.body = receive_again
    stage.run(message)
    stage.run(message)
    assert 1 == stage.waiting()
    assert 1 == stage.relay_later()
    stage.run(message)
    stage.work()
    stage.send("a", 3)
    stage.run(message)
    stage.work()

    assert ([1, 2, 3] if "coalesce" in options else [1, 1, 2, 3], {}) == (stage.seen, states(stage.alias))


# Nobody waits for another --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"ordered": True}, {"coalesce": True}], ids=["ordered", "coalesce"])
@each_kind
def test_a_sender_beside_a_long_receiver(stage: Stage, options: dict[str, Any]) -> None:
    """Who sends waits for no receiver of the key, however long its transaction is open; on SQLite, if it has none."""
    found: list[Any] = []
    stage.receive(atomic=stage.alias != "default", **options)

    def take_long(number: int) -> None:
        if number == 1:
            Tag.objects.using(stage.alias).create(name="locked")
            found.append(waits(lambda: stage.send_elsewhere("a", 2)))

    stage.body = take_long
    with impatient(stage.alias):
        stage.send("a", 1)
        stage.work()

    assert ([False], [1, 2]) == (found, stage.seen)


@pytest.mark.parametrize("level", [False, True], ids=["as ever", "repeatable read"])
@each_server
def test_senders_beside_one_another(stage: Stage, level: bool) -> None:
    """Who sends waits for no other sender, though that one's transaction has sent with the same keys and stays open."""
    with impatient(stage.alias, **(LEVELS[stage.alias] if level else {})):
        stage.receive(coalesce=True)
        with stage.sending("a", 1) as one, stage.sending("b", 10) as other:
            assert not waits(lambda: stage.send("a", 2))
            assert not waits(lambda: stage.send("b", 20))
            for future in (one.send("b", 11), other.send("a", 3)):  # crossed
                assert future.result() is None
            assert 2 == stage.work()

    has_slot: defaultdict[str, list[bool]] = defaultdict(list)
    for lane, slot in stage.rows().order_by("pk").values_list("lane", "slot"):
        has_slot[lane].append(lane == slot)
    # 1 and 3 of "a", 10 and 11 of "b". Who sent 10 and 3 committed first.
    assert [[False, True], [True, False]] == list(has_slot.values())
    assert (2, [2, 20, 11, 3], {}) == (stage.work(), stage.seen, states(stage.alias))


# Who dies in between -------------------------------------------------------------------------------------------------


@each_kind
def test_a_sender_dies_after_its_commit(stage: Stage) -> None:
    """What its sender could not give its turn any more is found by the relay, in the order of its key."""
    left_behind(stage, 1, 2)
    assert [] == stage.take()

    assert 1 == stage.relay()
    assert (2, [1, 2], {}) == (stage.work(), stage.seen, states(stage.alias))


@each_kind
def test_a_worker_dies_after_a_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker could not give its turn any more is found by the relay, or by the next sender's sending's end."""
    stage.receive(ordered=True)
    stage.send("a", 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(hold, "publish_next", do_nothing)
        assert 1 == stage.work()
    stage.send("a", 3)
    assert ([], 2) == (stage.take(), stage.waiting())

    assert 1 == stage.relay()
    assert (2, [1, 2, 3], {}) == (stage.work(), stage.seen, states(stage.alias))


@pytest.mark.parametrize("dies", [False, True])
@each_kind
def test_a_worker_dies_before_it_publishes(stage: Stage, dies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has its turn, and was not published, is found by the probe like everything else that the broker lost."""
    stage.receive(ordered=True)
    stage.send("a", 1, 2)
    with monkeypatch.context() as patch:
        if dies:
            patch.setattr(outbox, "publish_or_leave", do_nothing)
        [message] = stage.take()
        stage.run(message)
    assert int(not dies) == len(stage.take())
    stage.rows(slot__isnull=False).update(sent_at=In(-1000))
    queue = str(stage.rows().get().queue)

    assert 1 == deliveries(stage.alias).sweep(queue, In(0), 10)
    assert 1 == stage.relay()
    assert (1, [1, 2]) == (stage.work(), stage.seen)


@each_kind
def test_a_sender_is_late(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was run, parked and retried before its sender published it is not marked as sent for a stale message."""
    late: list[Any] = []
    fails = [True]
    stage.receive(coalesce=True)
    stage.body = lambda number: fail(fails.pop()) if fails else None
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "publish_or_leave", lambda *args: late.append(args))
        stage.send("a", 1)
    assert 1 == stage.relay()
    assert 1 == stage.work()
    assert 1 == stage.rows(state=State.FAILED).retry()
    [args] = late
    outbox.publish_or_leave(*args)
    stage.work()
    stage.relay()

    assert (1, [1, 1], {}) == (stage.work(), stage.seen, states(stage.alias))


def fail(_: bool) -> None:
    raise Fail("for good")


# All at once ---------------------------------------------------------------------------------------------------------


@each_kind
def test_many_at_once(stage: Stage) -> None:
    """Senders and workers without a relay: of a key one runs at a time, a sender's in its order, and none stays."""
    keys, senders, count, workers = "ab", 3, 8, 3
    running: defaultdict[str, int] = defaultdict(int)
    overlaps: list[str] = []
    guard, ended = threading.Lock(), threading.Event()

    def enter(number: tuple[str, int, int]) -> None:
        with guard:
            running[number[0]] += 1
            if running[number[0]] > 1:
                overlaps.append(number[0])
        stage.rows(pk=0).exists()
        with guard:
            running[number[0]] -= 1

    stage.receive(ordered=True, atomic=stage.alias != "default")
    stage.body = enter

    def send(sender: int) -> None:
        for number in range(count):
            for key in keys:
                stage.send(key, (key, sender, number))

    def work() -> None:
        while not ended.wait(0.005):
            stage.work()

    def start(*acts: Callable[[], None]) -> list[threading.Thread]:
        threads = [threading.Thread(target=lambda act=act: elsewhere(act)) for act in acts]
        for thread in threads:
            thread.start()
        return threads

    working = start(*[work] * workers)
    for thread in start(*(lambda sender=sender: send(sender) for sender in range(senders))):
        thread.join()
    with suppress(AssertionError):
        wait_until(lambda: not stage.rows().exists(), timeout=30)
    ended.set()
    for thread in working:
        thread.join()

    assert ([], {}) == (overlaps, states(stage.alias))
    for key in keys:
        for sender in range(senders):
            mine = [number for name, by, number in stage.seen if (name, by) == (key, sender)]
            assert list(range(count)) == mine
