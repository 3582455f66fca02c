"""Receivers that take the events of a key one by one, the oldest first: one suite for every database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from celery import Celery, current_task
from django.core.management import call_command
from django.db import connections, transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal

from django_celery_signals import Discard, Fail, RetryAfter, batched, connect, deliveries, disconnect, forget
from django_celery_signals.durable import erasure
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import CRASH_BUDGET
from django_celery_signals.durable.rows import State
from django_celery_signals.durable.upkeep import UNKNOWN_TRIES, Upkeep
from tests.brokers import Broker
from tests.delivering import states
from tests.drain import arrived, waiting
from tests.elsewhere import elsewhere
from tests.lanes import Boom, Stage, after_completion, impatient, step
from tests.parameters import each_database, each_durable_broker
from tests.receiving import Receiving
from tests.shop.models import Customer, Order, RushOrder, Tag

each_kind = each_database("default", "postgres", "mariadb")


@pytest.fixture
def stage(alias: str, broker: Broker, celery_app: Celery, receiving: Receiving) -> Stage:
    return Stage(alias=alias, app=celery_app, receiving=receiving)


def raising(number: int, error: BaseException, times: int = 1) -> Callable[[int], None]:
    """Return a body that raises so often, for one number."""
    errors = [error] * times

    def body(seen: int) -> None:
        if seen == number and errors:
            raise errors.pop()

    return body


# One after the other -------------------------------------------------------------------------------------------------


@each_durable_broker
@each_database
def test_one_at_a_time_and_the_oldest_first(stage: Stage, broker: Broker) -> None:
    """Of a key one message is out at a time, of other keys as well, and the end of a run publishes the next."""
    stage.receive(ordered=True)
    stage.send("a", 1, 2, 3)
    stage.send("b", 10)

    first, other = arrived(broker, 2)
    assert {"sent": 2, "ready": 2} == states(stage.alias)
    stage.run(other)
    assert ([10], []) == (stage.seen, list(waiting(broker)))
    for number in (1, 2, 3):
        stage.run(first)
        assert number == stage.seen[-1]
        first = next(iter(arrived(broker, int(number < 3))), first)
    assert {} == states(stage.alias)


@pytest.mark.parametrize("retain", [0, 60])
@pytest.mark.parametrize("atomic", [True, False])
@each_kind
def test_nothing_of_the_key_is_out_while_one_runs(stage: Stage, atomic: bool, retain: int) -> None:
    """With or without a transaction, and whether what is done is kept, the next is published once the run has ended."""
    out: list[Any] = []
    stage.body = lambda number: out.extend(stage.take())
    stage.receive(ordered=True, atomic=atomic, retain=retain)
    with transaction.atomic(using=stage.alias):
        stage.send("a", 1, 2, 3)

    assert 3 == stage.work()
    assert ([1, 2, 3], []) == (stage.seen, out)
    assert ({"done": 3} if retain else {}) == states(stage.alias)
    assert not stage.rows(slot__isnull=False).exists()


@pytest.mark.parametrize("atomic", [True, False])
@each_kind
def test_a_receiver_that_sends_to_its_own_key(stage: Stage, atomic: bool) -> None:
    """What a receiver sends about its own key comes after those that wait already, and needs no relay either."""
    stage.receive(ordered=True, atomic=atomic)
    stage.body = lambda number: stage.send("a", 3) if number == 1 else None
    stage.send("a", 1, 2)

    assert 3 == stage.work()
    assert ([1, 2, 3], {}) == (stage.seen, states(stage.alias))


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}])
@each_kind
def test_the_relay_keeps_the_order(stage: Stage, settings: Any, options: dict[str, Any]) -> None:
    """What a large transaction leaves to the relay takes turns as well, however few a batch has."""
    settings.DJANGO_CELERY_SIGNALS = {"FAST_PATH_LIMIT": 0}
    stage.receive(ordered=True)
    with transaction.atomic(using=stage.alias):
        for number in range(9):
            stage.send(number % 3, number)

    assert 3 == stage.relay(**options)
    assert 0 == stage.relay(**options)
    assert 3 == stage.rows(slot__isnull=False).count()
    assert 9 == stage.work()
    assert list(range(9)) == sorted(stage.seen)
    assert [[key, key + 3, key + 6] for key in range(3)] == [
        [number for number in stage.seen if number % 3 == key] for key in range(3)
    ]


@each_kind
def test_a_batch_keeps_the_order(stage: Stage) -> None:
    """What batched() writes takes turns in the order of its sendings, with what was sent before and is sent later."""
    stage.receive(ordered=True)
    stage.send("a", 0)
    with batched(stage.alias):
        stage.send("a", *range(1, 6))
    stage.send("a", 6)

    assert 7 == stage.work()
    assert list(range(7)) == stage.seen


@each_kind
def test_eager(stage: Stage) -> None:
    """Under task_always_eager every event runs in its sender's process, in the order of the sendings."""
    stage.app.conf.update(task_always_eager=True, task_eager_propagates=True)
    stage.receive(ordered=True)
    with transaction.atomic(using=stage.alias):
        stage.send("a", 1, 2)
    stage.send("a", 3)

    assert ([1, 2, 3], {}) == (stage.seen, states(stage.alias))


# What is committed ---------------------------------------------------------------------------------------------------


def noting(stage: Stage) -> list[str]:
    """Declare a receiver that notes how tags are called when they are saved, and that they are deleted."""
    noted: list[str] = []

    def note(instance: Tag, signal: Signal) -> None:
        noted.append(instance.name if signal is post_save else "deleted")

    stage.receiving([post_save, post_delete], note, sender=Tag, guarantee="durable", ordered=True, instance="snapshot")
    return noted


def change(tag: Tag, name: str) -> None:
    """Save or delete a tag."""
    if name == "deleted":
        tag.delete()
    else:
        tag.name = name
        tag.save()


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "deleted", "c"], ["deleted", "b", "deleted"]], ids="-".join)
@each_kind
def test_the_order_of_the_commits(stage: Stage, names: list[str]) -> None:
    """Whoever has the row of an instance first commits first and is taken first, although another began before."""
    alias, has_begun = stage.alias, threading.Event()
    pk = Tag.objects.using(alias).create(name="new").pk
    tags = [Tag.objects.using(alias).get(pk=pk) for _ in names]
    noted = noting(stage)

    def tell(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith(("BEGIN", "UPDATE", "DELETE")):  # the one that waits for the row, or for all of SQLite
            has_begun.set()
        return execute(sql, *args)

    def change_second() -> None:
        with connections[alias].execute_wrapper(tell), transaction.atomic(using=alias):
            change(tags[1], names[1])
        connections.close_all()

    with ThreadPoolExecutor(1) as thread:
        with transaction.atomic(using=alias):
            Tag.objects.using(alias).select_for_update().get(pk=pk)
            second = thread.submit(change_second)
            assert has_begun.wait(60)
            change(tags[0], names[0])
        second.result()
    change(tags[2], names[2])

    assert 3 == stage.work()
    assert (names, {}) == (noted, states(alias))


@each_kind
def test_the_order_of_commits_that_race(stage: Stage) -> None:
    """Many that save an instance at the same time are taken in the order in which they had its row."""
    alias, committed, start = stage.alias, [], threading.Barrier(4)
    pk = Tag.objects.using(alias).create(name="new").pk
    noted = noting(stage)

    def save(sender: int) -> None:
        tag = Tag.objects.using(alias).get(pk=pk)
        start.wait(60)
        for number in range(6):
            with transaction.atomic(using=alias):
                change(tag, f"{sender}-{number}")
                committed.append(tag.name)  # nobody else has the row until the commit
        connections.close_all()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(save, range(4)))
    while stage.work() or stage.relay_later():
        pass

    assert 24 == len(committed)
    assert (committed, {}) == (noted, states(alias))


@dataclass(kw_only=True)
class Effects:
    """What the runs of a key write, and what each found of the others."""

    stage: Stage
    found: list[tuple[int, list[str]]] = field(default_factory=list)

    def write(self, number: int) -> None:
        """Leave a row."""
        self.found.append((number, self.rows()))
        Tag.objects.using(self.stage.alias).create(name=f"{number}")

    def rows(self) -> list[str]:
        """Return the rows that are there."""
        return list(Tag.objects.using(self.stage.alias).order_by("pk").values_list("name", flat=True))


@each_kind
def test_what_a_key_commits(stage: Stage) -> None:
    """Each run finds all that those before it have committed and nothing of any later one, however they end."""
    effects, fail = Effects(stage=stage), raising(2, Boom(), times=2)

    def body(number: int) -> None:
        effects.write(number)
        fail(number)
        if number == 3:
            raise Discard

    stage.body = body
    stage.receive(ordered=True)
    stage.send("a", 1, 2, 3, 4)
    while stage.work() or stage.relay_later():
        pass

    assert ["1", "2", "4"] == effects.rows()
    assert [(1, []), *[(2, ["1"])] * 3, (3, ["1", "2"]), (4, ["1", "2"])] == effects.found
    assert {} == states(stage.alias)


@pytest.mark.parametrize("moment", ["before it writes", "after it has written"])
@each_database("postgres", "mariadb")
def test_what_a_stopped_worker_commits(stage: Stage, moment: str) -> None:
    """What a worker that was stopped does when its run was repeated, and the next ones have run, is not committed."""
    effects, stopped = Effects(stage=stage), []

    def go_on_without_it() -> None:
        stage.expire()
        assert 1 == stage.relay_later()
        assert 3 == stage.work()

    def body(number: int) -> None:
        stops = not stopped
        stopped.append(number)
        if stops and moment == "before it writes":
            elsewhere(go_on_without_it)
        effects.write(number)
        if stops and moment == "after it has written":
            elsewhere(go_on_without_it)

    stage.body = body
    stage.receive(ordered=True)
    stage.send("a", 1, 2, 3)
    [message] = stage.take()

    assert "IGNORED" == stage.run(message)
    assert ([1, 1, 2, 3], ["1", "2", "3"]) == (stopped, effects.rows())
    assert {(1, ()), (2, ("1",)), (3, ("1", "2"))} <= {(number, tuple(rows)) for number, rows in effects.found}
    assert ([], {}) == (stage.take(), states(stage.alias))


@each_database("postgres", "mariadb")
def test_a_worker_that_is_stopped_before_its_commit(stage: Stage) -> None:
    """Nothing of the key runs before the commit of a worker that has completed the delivery, although it is late."""
    effects, others = Effects(stage=stage), []

    def body(number: int) -> None:
        effects.write(number)
        elsewhere(lambda: stage.rows(state=State.RUNNING).update(due_at=In(-1)))

    def do_the_rest() -> None:
        Upkeep(stage.app, stage.alias).expire()
        others.append((stage.relay_later(), stage.work()))

    stage.body = body
    stage.receive(ordered=True)
    stage.send("a", 1, 2, 3)
    [message] = stage.take()
    with impatient(stage.alias), after_completion(lambda: elsewhere(do_the_rest)):
        assert "SUCCESS" == stage.run(message)
        assert 2 == stage.work()

    assert [(0, 0)] * 3 == others
    assert [(1, []), (2, ["1"]), (3, ["1", "2"])] == effects.found
    assert (["1", "2", "3"], {}) == (effects.rows(), states(stage.alias))


# How a run ends ------------------------------------------------------------------------------------------------------


RETRIES: dict[str, tuple[BaseException | None, dict[str, Any]]] = {
    "by default": (Boom(), {}),
    "RetryAfter": (RetryAfter(60), {"atomic": False}),
    "self.retry": (None, {}),
    "autoretry_for": (Boom(), {"autoretry_for": (Boom,), "retry_backoff": 60, "retry_jitter": False}),
}


@pytest.mark.parametrize(("error", "options"), RETRIES.values(), ids=RETRIES)
@each_kind
def test_a_retry_keeps_the_turn(stage: Stage, error: BaseException | None, options: dict[str, Any]) -> None:
    """While a delivery waits for its next run, the younger ones of its key wait for it, and other keys go on."""
    fails = [True, True]

    def fail(number: int) -> None:
        if number == 1 and fails:
            fails.pop()
            raise error or current_task.retry(countdown=60, exc=Boom())

    stage.body = fail
    stage.receive(ordered=True, **options)
    stage.send("a", 1, 2)
    for other in (10, 11):
        assert 1 == stage.work()
        stage.send("a", other)  # behind them
        stage.send("b", -other)
        assert 1 == stage.work()
        assert 0 == stage.relay()  # too early
        assert 1 == stage.relay_later()

    assert 4 == stage.work()
    assert [1, -10, 1, -11, 1, 2, 10, 11] == stage.seen
    assert {} == states(stage.alias)


ENDS: dict[str, tuple[BaseException, dict[str, Any], dict[str, int]]] = {
    "Discard": (Discard("of no use"), {}, {}),
    "Fail": (Fail("for good"), {"on_failure": "park"}, {"failed": 1}),
    "no more retries": (Boom(), {"on_failure": "park", "max_retries": 0, "atomic": False}, {"failed": 1}),
}


@pytest.mark.parametrize(("error", "options", "left"), ENDS.values(), ids=ENDS)
@each_kind
def test_the_next_begins_when_one_is_dropped_or_parked(
    stage: Stage, error: BaseException, options: dict[str, Any], left: dict[str, int]
) -> None:
    """What is discarded, or fails with on_failure="park", lets the next of its key begin, without a relay."""
    stage.body = raising(1, error)
    stage.receive(ordered=True, **options)
    stage.send("a", 1, 2, 3)

    assert 3 == stage.work()
    assert ([1, 2, 3], left) == (stage.seen, states(stage.alias))
    assert [] == list(deliveries(stage.alias).blocked())


@each_kind
def test_the_next_begins_when_one_has_expired(stage: Stage) -> None:
    """An event that has waited for longer than its expires= is dropped when it has its turn, and the next begins."""
    stage.receive(ordered=True, expires=timedelta(hours=1))
    stage.send("a", 1, 2, 3)
    second = stage.rows().order_by("pk")[1]
    stage.rows(pk=second.pk).update(options={**second.options, "expires": "2020-01-01T00:00:00+00:00"})

    assert 3 == stage.work()
    assert ([1, 3], {}) == (stage.seen, states(stage.alias))


@each_kind
def test_the_next_begins_when_a_row_is_gone(stage: Stage) -> None:
    """An event about an object that was deleted meanwhile is dropped, and the next of its key begins."""
    names: list[str] = []
    stage.receiving(
        post_save,
        lambda instance: names.append(instance.name),
        sender=Tag,
        guarantee="durable",
        ordered=True,
        key=lambda created: created,
    )
    gone, _ = (Tag.objects.using(stage.alias).create(name=name) for name in "ab")
    Tag.objects.using(stage.alias).filter(pk=gone.pk).delete()

    assert 2 == stage.work()
    assert (["b"], {}) == (names, states(stage.alias))


@each_kind
def test_a_crash_keeps_the_turn(stage: Stage) -> None:
    """A delivery whose worker died runs again, before the younger ones of its key."""
    stage.receive(ordered=True)
    stage.send("a", 1, 2)
    [message] = stage.take()
    assert stage.open(message)
    stage.expire()

    assert 0 == stage.relay()  # a pause follows
    assert 1 == stage.relay_later()
    assert 2 == stage.work()
    assert [1, 2] == stage.seen


@pytest.mark.parametrize(("on_failure", "seen"), [("block", []), ("park", [2])])
@each_kind
def test_a_receiver_that_kills_its_workers(stage: Stage, on_failure: str, seen: list[int]) -> None:
    """Once the crash budget is spent, the delivery blocks its key or lets the next begin, as on_failure= says."""
    stage.receive(ordered=True, on_failure=on_failure)
    stage.send("a", 1, 2)
    [message] = stage.take()
    assert stage.open(message)
    stage.rows(state=State.RUNNING).update(crashes=CRASH_BUDGET - 1)
    stage.expire()

    assert len(seen) == stage.relay()
    stage.work()
    assert (seen, 1 - len(seen)) == (stage.seen, stage.rows().behind())


# Blocked and parked --------------------------------------------------------------------------------------------------


def said(word: str, *options: str) -> list[str]:
    """Return what the management command says."""
    out = StringIO()
    call_command("signals", word, *options, stdout=out)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("word", "done"), [("retry", "retried"), ("discard", "discarded")])
@each_kind
def test_a_blocked_key(stage: Stage, word: str, done: str) -> None:
    """A delivery that fails blocks its key, and no other, until it is retried or discarded; it is seen meanwhile."""
    stage.body = raising(1, Fail("once"))
    task = stage.receive(ordered=True)
    stage.send("a", 1, 2)
    assert 1 == stage.work()
    stage.send("a", 3)
    stage.send("b", 10)
    assert 1 == stage.work()

    assert 0 == stage.relay_later()
    assert [("a", 2)] == list(deliveries(stage.alias).blocked().values_list("key", "behind"))
    assert 2 == stage.rows().behind()
    [count, *_, blocked] = said("status", "--database", stage.alias, "--no-broker")
    assert "2 of the ready ones wait for their key's turn" in count
    assert f"{task.name}  key=a  behind=2  " in blocked

    words = said(word, "--receiver", task.name, "--database", stage.alias)
    assert [f"{stage.alias}: 1 {done}; 2 wait behind these and go on"] == words
    assert 1 == stage.relay()
    assert 3 - (word == "discard") == stage.work()
    assert ([1, 10, *([1] if word == "retry" else []), 2, 3], {}) == (stage.seen, states(stage.alias))


@each_kind
def test_a_blocked_key_may_fail_again(stage: Stage) -> None:
    """A delivery that is retried and fails once more blocks its key as before."""
    stage.body = raising(1, Fail("twice"), times=2)
    stage.receive(ordered=True)
    stage.send("a", 1, 2)
    stage.work()

    assert 1 == deliveries(stage.alias).retry()
    assert 1 == stage.relay()
    assert 1 == stage.work()
    assert ([1, 1], 1) == (stage.seen, stage.rows().behind())


@each_kind
def test_a_parked_one_runs_before_younger_ones(stage: Stage) -> None:
    """A parked delivery that is retried waits for the one that has its turn, and is the next, before younger ones."""
    stage.body = raising(1, Fail("once"))
    stage.receive(ordered=True, on_failure="park")
    stage.send("a", 1, 2, 3)
    [first] = stage.take()
    stage.run(first)
    [second] = stage.take()

    assert 1 == deliveries(stage.alias).retry()
    assert 0 == stage.relay()
    stage.send("a", 4)
    stage.run(second)
    stage.work()

    assert ([1, 2, 1, 3, 4], {}) == (stage.seen, states(stage.alias))


@each_kind
def test_a_parked_one_runs_alone(stage: Stage) -> None:
    """A parked delivery that is retried when no other of its key is there has its turn at once, before what is sent."""
    stage.body = raising(1, Fail("once"))
    stage.receive(ordered=True, on_failure="park")
    stage.send("a", 1)
    stage.work()

    assert 1 == deliveries(stage.alias).retry()
    stage.send("a", 2)
    assert [] == stage.take()
    assert 1 == stage.relay()
    stage.work()
    assert [1, 1, 2] == stage.seen


@pytest.mark.parametrize("in_transaction", [False, True])
@each_kind
def test_a_forgotten_one(stage: Stage, in_transaction: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the delivery that has its turn is erased with its object, the next has it, once that is committed."""
    monkeypatch.setattr(erasure, "keeping", lambda: [stage.alias])
    names: list[str] = []
    options = {"sender": Tag, "guarantee": "durable", "ordered": True, "key": lambda created: created}
    stage.receiving(post_save, lambda instance: names.append(instance.name), **options)
    first, _ = (Tag.objects.using(stage.alias).create(name=name) for name in "ab")
    [message] = stage.take()

    if in_transaction:
        with transaction.atomic(using=stage.alias):
            assert 1 == forget(first)
            assert not stage.rows(slot__isnull=False).exists()
    else:
        assert 1 == forget(first)
    assert 1 == stage.relay()
    stage.run(message)
    assert [] == names
    stage.work()
    assert (["b"], {}) == (names, states(stage.alias))


# Keys ----------------------------------------------------------------------------------------------------------------


@each_kind
def test_the_instance_is_the_key(stage: Stage) -> None:
    """The key is the instance, unless said otherwise: its row, whatever class and signal it is sent by."""
    seen: list[Any] = []

    def note(instance: Any) -> None:
        seen.append(type(instance).__name__)

    stage.receiving(post_save, note, sender=[Order, RushOrder], guarantee="durable", ordered=True)
    customer = Customer.objects.using(stage.alias).create(name="Ada")
    rush = RushOrder.objects.using(stage.alias).create(customer=customer)
    Order.objects.using(stage.alias).get(pk=rush.pk).save()
    Order.objects.using(stage.alias).create(customer=customer)

    assert 2 == len(stage.take())
    assert [f"shop.Order:{rush.pk}"] * 2 == list(stage.rows().order_by("pk").values_list("key", flat=True)[:2])
    assert 1 == stage.waiting()


@each_kind
def test_a_key_of_several_signals(stage: Stage) -> None:
    """Signals with the same key of a receiver take turns; an other receiver's key is another, whatever it does."""
    other, seen = Signal(), []

    def fail(number: int) -> None:
        seen.append(number)
        raise Fail("here only")

    task = stage.receive(ordered=True)
    stage.receiving([step, other], fail, guarantee="durable", ordered=True, key=lambda key: key)
    stage.send("a", 1)
    other.send(sender=None, using=stage.alias, key="a", number=2)
    stage.send("a", 3)

    stage.work()
    assert ([1, 3], [1]) == (stage.seen, seen)
    assert [2] == [row.behind for row in deliveries(stage.alias).blocked()]
    assert task.name not in stage.rows().values_list("receiver", flat=True)


@each_kind
def test_without_a_key(stage: Stage) -> None:
    """A sending whose key is None waits for no other, nor lets others wait."""
    stage.receive(ordered=True)
    stage.send(None, 1, 2)
    stage.send("a", 3, 4)

    assert 3 == len(stage.take())
    assert 1 == stage.waiting()


# Later ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def countdown(stage: Stage) -> Iterator[Callable[..., None]]:
    """Sends a step with a countdown, to the receiver of all steps."""
    later = Signal()
    task = stage.receive(ordered=True)
    connect(later, task, guarantee="durable", key=lambda key: key, countdown=60)
    yield lambda key, number: later.send(sender=None, using=stage.alias, key=key, number=number)
    disconnect(later, task)


@pytest.mark.parametrize("limit", [100, 0])
@each_kind
def test_a_countdown_lets_younger_ones_wait(
    stage: Stage, countdown: Callable[..., None], settings: Any, limit: int
) -> None:
    """What is sent with a countdown waits for its time, and what is sent after it behind it, by the relay, too."""
    settings.DJANGO_CELERY_SIGNALS = {"FAST_PATH_LIMIT": limit}
    countdown("a", 1)
    stage.send("a", 2)
    stage.send("b", 10)

    stage.relay()
    assert 1 == stage.work()
    assert 0 == stage.relay()
    assert 1 == stage.relay_later()
    assert 2 == stage.work()
    assert [10, 1, 2] == stage.seen


@each_kind
def test_a_countdown_lasts_from_the_sending(stage: Stage, countdown: Callable[..., None]) -> None:
    """What has its turn before its countdown is over is published when that is, counted from the sending."""
    stage.send("a", 1)
    countdown("a", 2)
    stage.send("a", 3)
    stage.rows().update(created_at=In(-20))

    assert 1 == stage.work()
    assert 0 == stage.relay()
    assert 1 == stage.rows(slot__isnull=False, due_at__gt=In(35), due_at__lt=In(41)).count()
    assert 1 == stage.relay_later()
    assert 2 == stage.work()
    assert [1, 2, 3] == stage.seen


# When it cannot be published -----------------------------------------------------------------------------------------


def refuse(*args: Any, **options: Any) -> None:
    raise OSError("refused")


@each_kind
def test_the_broker_is_away_at_the_sending(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sender cannot publish keeps its turn, and is left to the relay with all that is sent after it."""
    stage.receive(ordered=True)
    with monkeypatch.context() as patch:
        patch.setattr(Celery, "send_task", refuse)
        stage.send("a", 1)
    stage.send("a", 2)

    assert 1 == stage.relay()
    assert 0 == stage.relay()
    stage.work()
    stage.relay()  # the worker left the broker alone for a while, too
    stage.work()
    assert ([1, 2], {}) == (stage.seen, states(stage.alias))


@each_kind
def test_the_broker_is_away_when_a_run_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a worker cannot publish the next of a key, its own run has succeeded, and the next keeps its turn."""
    stage.receive(ordered=True)
    stage.send("a", 1, 2, 3)
    [message] = stage.take()
    with monkeypatch.context() as patch:
        patch.setattr(Celery, "send_task", refuse)
        assert "SUCCESS" == stage.run(message)

    assert [(State.READY, True), (State.READY, False)] == [
        (row.state, row.slot is not None) for row in stage.rows().order_by("pk")
    ]
    for _ in range(2):
        stage.relay()
        stage.work()
    assert ([1, 2, 3], {}) == (stage.seen, states(stage.alias))


@pytest.mark.parametrize("gone", [False, True])
@each_kind
def test_an_unknown_receiver_keeps_the_turn(stage: Stage, gone: bool) -> None:
    """While no process knows the receiver its keys wait; a delivery that is given up blocks its key."""
    task = stage.receive(ordered=True)
    stage.send("a", 1)
    stage.take()
    stage.send("a", 2)
    del stage.app._tasks[task.name]
    stage.rows(state=State.SENT).update(state=State.READY, due_at=In(0), reruns=UNKNOWN_TRIES if gone else 0)

    assert 0 == stage.relay()
    assert 0 == stage.relay()
    stage.app._tasks[task.name] = task
    assert int(gone) == stage.rows().behind() == deliveries(stage.alias).retry()
    assert 1 == stage.relay_later()
    stage.work()
    assert [1, 2] == stage.seen


@each_kind
def test_a_renamed_receiver_keeps_the_order(stage: Stage) -> None:
    """What waits under a former name is taken in turn by the task of the new one, and before what is sent to that."""
    old = stage.receive(ordered=True)
    stage.send("a", 1, 2, 3)
    stage.receiving.end()
    stage.receive(ordered=True, former_names=[old.name])
    stage.send("a", 4)

    assert 4 == stage.work()
    assert ([1, 2, 3, 4], {}) == (stage.seen, states(stage.alias))
    del stage.app._tasks[old.name]
