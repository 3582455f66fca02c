"""Receivers for which the newest event of a key stands for those that wait with it: one suite for every database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from django.db import transaction
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.dispatch import Signal

from django_celery_signals import Discard, Event, Fail, batched, connect, deliveries, disconnect
from django_celery_signals.durable import folding
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.rows import State
from tests.brokers import Broker
from tests.delivering import states
from tests.drain import arrived
from tests.lanes import Boom, Stage, step
from tests.parameters import each_database, each_durable_broker
from tests.receiving import Receiving
from tests.shop.models import Customer, Order, Tag

each_kind = each_database("default", "postgres", "mariadb")


@pytest.fixture
def stage(alias: str, broker: Broker, celery_app: Celery, receiving: Receiving) -> Stage:
    return Stage(alias=alias, app=celery_app, receiving=receiving)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a receiver was given."""

    number: Any
    coalesced: int
    event_id: str


def counting(stage: Stage, *, plain: Signal | None = None, **options: Any) -> list[Run]:
    """Declare a receiver of coalesced steps, and perhaps of another signal without coalesce=; return its runs."""
    runs: list[Run] = []

    def index(number: int, event: Event) -> None:
        runs.append(Run(number=number, coalesced=event.coalesced, event_id=event.id))
        stage.body(number)

    options = {"guarantee": "durable", "coalesce": True, "key": lambda key: key, **options}
    task = stage.receiving(step, index, **options)
    if plain is not None:
        connect(plain, task, guarantee="durable", key=lambda key: key, coalesce=False)
        stage.receiving.undo.append(lambda: disconnect(plain, task))
    return runs


def shown(runs: list[Run]) -> list[tuple[Any, int]]:
    return [(run.number, run.coalesced) for run in runs]


# What is folded ------------------------------------------------------------------------------------------------------


@each_durable_broker
@each_database
def test_one_run_for_all_that_wait(stage: Stage, broker: Broker) -> None:
    """A run stands for all that was sent before it started, in however many transactions; it is told of the newest."""
    runs = counting(stage)
    stage.send("a", 1, 2)
    with transaction.atomic(using=stage.alias):
        stage.send("a", 3, 4)
    stage.send("b", 10)

    first, other = arrived(broker, 2)
    assert {"sent": 2, "ready": 3} == states(stage.alias)
    newest = stage.rows(key="a").latest("pk").event_id
    stage.run(other)
    stage.run(first)

    assert [(10, 0), (4, 3)] == shown(runs)
    assert newest == runs[1].event_id
    assert ({}, []) == (states(stage.alias), arrived(broker, 0))


@pytest.mark.parametrize("atomic", [True, False])
@each_kind
def test_what_is_sent_after_the_start_is_run_again(stage: Stage, atomic: bool) -> None:
    """What is sent while the receiver runs, by itself or by others, leads to one more run after this one."""
    runs, out = counting(stage, atomic=atomic), []
    send = stage.send if atomic and stage.alias == "default" else stage.send_elsewhere  # SQLite has one writer

    def send_two(number: int) -> None:
        if number == 1:
            send("a", 2, 3)
            out.extend(stage.take())

    stage.body = send_two
    stage.send("a", 1)

    assert 2 == stage.work()  # without a relay
    assert ([(1, 0), (3, 1)], [], {}) == (shown(runs), out, states(stage.alias))


@each_kind
def test_without_a_key(stage: Stage) -> None:
    """A sending whose key is None is folded into no other."""
    runs = counting(stage)
    stage.send(None, 1, 2)

    stage.work()
    assert [(1, 0), (2, 0)] == shown(runs)


@each_kind
def test_a_batch_is_folded(stage: Stage) -> None:
    """What batched() writes is folded like what is sent one by one."""
    runs = counting(stage)
    with batched(stage.alias):
        for number in range(6):
            stage.send(number % 2, number)

    assert 2 == stage.relay()
    stage.work()
    assert [(4, 2), (5, 2)] == sorted(shown(runs))


@each_kind
def test_more_than_one_run_stands_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folds a bounded number, the oldest first, and the next one the rest."""
    monkeypatch.setattr(folding, "MOST", 3)
    runs = counting(stage)
    stage.send("a", *range(9))

    assert 3 == stage.work()
    assert ([(3, 3), (7, 3), (8, 0)], {}) == (shown(runs), states(stage.alias))


@each_kind
def test_mixed_with_what_is_not_coalesced(stage: Stage) -> None:
    """Events of a connection without coalesce= are each run for themselves, in their turn among those that have it."""
    plain = Signal()
    runs = counting(stage, plain=plain, ordered=True)
    for signal, number in ((step, 1), (step, 2), (plain, 3), (plain, 4), (step, 5), (step, 6)):
        signal.send(sender=None, using=stage.alias, key="a", number=number)

    assert 4 == stage.work()
    assert [(2, 1), (3, 0), (4, 0), (6, 1)] == shown(runs)


@each_kind
def test_what_cannot_be_read_is_not_folded(stage: Stage) -> None:
    """A damaged event waits for its own turn, in which it fails and is kept; what was sent around it arrives."""
    runs = counting(stage)
    stage.send("a", 1, 2, 3, 4)
    stage.rows(pk=stage.rows().order_by("pk")[2].pk).update(payload="{")

    assert 3 == stage.work()
    assert ([(2, 1), (4, 0)], {"failed": 1}) == (shown(runs), states(stage.alias))


# What they become ----------------------------------------------------------------------------------------------------


def saving(stage: Stage, signals: Any = post_save, sender: Any = Tag, **options: Any) -> list[dict[str, Any]]:
    """Declare a receiver of coalesced sendings about instances, and return what will be its arguments."""
    seen: list[dict[str, Any]] = []

    def index(instance: Any, signal: Signal, event: Event, **kwargs: Any) -> None:
        facts = {"created": kwargs.get("created"), "fields": kwargs.get("update_fields"), "changes": event.changes}
        seen.append({"signal": signal, "instance": instance, "coalesced": event.coalesced, **facts})

    stage.receiving(signals, index, sender=sender, guarantee="durable", coalesce=True, **options)
    return seen


@each_kind
def test_saves_add_up(stage: Stage) -> None:
    """A creation stays one, changes go from the first old value to the last new one, and the row is read at the end."""
    seen = saving(stage, changed=["name"])
    tag = Tag.objects.using(stage.alias).create(name="a")
    tag = Tag.objects.using(stage.alias).get(pk=tag.pk)
    for name in ("b", "c"):
        tag.name = name
        tag.save()

    assert 1 == stage.work()
    [run] = seen
    assert ("c", True, None, 2) == (run["instance"].name, run["created"], run["fields"], run["coalesced"])
    assert "c" == run["changes"]["name"][1]


@each_kind
def test_updates_add_up(stage: Stage) -> None:
    """The names of update_fields are united, and changes of several fields are all there."""
    customer = Customer.objects.using(stage.alias).create(name="a", email="a@example.com")
    seen = saving(stage, sender=Customer, changed=["name", "email"])
    customer = Customer.objects.using(stage.alias).get(pk=customer.pk)
    for field, value in (("name", "b"), ("email", "b@example.com"), ("name", "c")):
        setattr(customer, field, value)
        customer.save(update_fields=[field])

    assert 1 == stage.work()
    [run] = seen
    assert (False, frozenset({"name", "email"})) == (run["created"], run["fields"])
    assert {"name": ("a", "c"), "email": ("a@example.com", "b@example.com")} == run["changes"]


@each_kind
def test_a_save_and_its_m2m_changes(stage: Stage) -> None:
    """What a form does in one transaction, a save and then changes of many-to-many fields, is one event."""
    seen: list[Any] = []

    def index(instance: Order, event: Event) -> None:
        seen.append((instance.status, instance.tags.count(), event.coalesced))

    task = stage.receiving(post_save, index, sender=Order, guarantee="durable", coalesce=True)
    connect(m2m_changed, task, sender="shop.Order.tags", action="post_*", guarantee="durable", coalesce=True)
    customer = Customer.objects.using(stage.alias).create(name="Ada")
    tags = [Tag.objects.using(stage.alias).create(name=name) for name in "ab"]
    with transaction.atomic(using=stage.alias):
        order = Order.objects.using(stage.alias).create(customer=customer, status="paid")
        order.tags.set(tags)
        order.tags.remove(tags[0])
    disconnect(m2m_changed, task, sender="shop.Order.tags")

    assert 1 == stage.work()
    assert ([("paid", 1, 2)], {}) == (seen, states(stage.alias))


@each_kind
def test_a_delete_supersedes(stage: Stage) -> None:
    """A deletion stands for the saves before it, and a later save of the key for the deletion: nothing is added."""
    seen = saving(stage, [post_save, post_delete])
    tag = Tag.objects.using(stage.alias).create(name="a")
    pk = tag.pk
    tag.delete()
    stage.work()
    tag.pk = pk
    tag.save(force_insert=True)
    tag.delete()
    again = Tag.objects.using(stage.alias).create(pk=pk, name="again")
    again.save(update_fields=["name"])
    stage.work()

    assert [(post_delete, None, 1), (post_save, True, 3)] == [
        (run["signal"], run["created"], run["coalesced"]) for run in seen
    ]
    assert [("a", pk), ("again", pk)] == [(run["instance"].name, run["instance"].pk) for run in seen]


@pytest.mark.parametrize(("over", "seen"), [([0], [(2, 1)]), ([1], [(2, 1)]), ([0, 1], [])])
@each_kind
def test_the_last_expiry_counts(stage: Stage, over: list[int], seen: list[Any]) -> None:
    """When all of those that were folded have expired they are dropped, and else none is."""
    runs = counting(stage, expires=timedelta(hours=1))
    stage.send("a", 1, 2)
    for row in [stage.rows().order_by("pk")[at] for at in over]:
        stage.rows(pk=row.pk).update(options={**row.options, "expires": "2020-01-01T00:00:00+00:00"})

    assert 1 == stage.work()
    assert (seen, {}) == (shown(runs), states(stage.alias))


# How a run ends ------------------------------------------------------------------------------------------------------


def failing(*errors: BaseException) -> Callable[[Any], None]:
    """Return a body that raises each of these once."""
    left = list(reversed(errors))

    def body(number: Any) -> None:
        if left:
            raise left.pop()

    return body


@each_kind
def test_a_retry_has_all_that_was_folded(stage: Stage) -> None:
    """When a run fails, its next try stands for the same, and for what was sent meanwhile."""
    runs = counting(stage)
    stage.body = failing(Boom(), Boom())
    stage.send("a", 1, 2)
    stage.work()
    assert ({"ready": 1}, 0) == (states(stage.alias), stage.waiting())
    assert 1 == stage.relay_later()
    stage.work()
    stage.send("a", 3, 4)
    assert [] == stage.take()
    assert 1 == stage.relay_later()
    stage.work()

    assert ([(2, 1), (2, 1), (4, 3)], {}) == (shown(runs), states(stage.alias))
    assert runs[0].event_id == runs[1].event_id != runs[2].event_id


@each_kind
def test_a_crash_after_the_fold(stage: Stage) -> None:
    """What was folded by a worker that died before it ran the receiver is in the next run."""
    runs = counting(stage)
    stage.send("a", 1, 2, 3)
    [message] = stage.take()
    held = stage.open(message)
    assert held is not None
    assert 2 == held.envelope().event.coalesced
    stage.expire()
    assert 1 == stage.relay_later()

    stage.work()
    assert ([(3, 2)], {}) == (shown(runs), states(stage.alias))


@each_kind
def test_a_crash_before_the_fold(stage: Stage) -> None:
    """What waited behind a delivery whose worker died before it folded them is folded by the next."""
    runs = counting(stage)
    stage.send("a", 1, 2, 3)
    [message] = stage.take()
    assert stage.open(message)
    assert 2 == stage.waiting()
    stage.expire()
    assert 1 == stage.relay_later()

    stage.work()
    assert ([(3, 2)], {}) == (shown(runs), states(stage.alias))


@each_kind
def test_the_next_begins_when_one_is_given_up(stage: Stage) -> None:
    """What is discarded, or fails for good, takes along what was folded into it; the next begins without a relay."""
    runs = counting(stage, atomic=False)

    def end(number: int) -> None:
        if number < 5:
            stage.send("a", number + 1, number + 2)
            raise Discard("of no use") if number == 2 else Fail("for good")

    stage.body = end
    stage.send("a", 1, 2)

    assert 3 == stage.work()
    assert ([(2, 1), (4, 1), (6, 1)], {"failed": 1}) == (shown(runs), states(stage.alias))
    assert 1 == deliveries(stage.alias).retry()
    stage.body = lambda number: None
    assert 1 == stage.relay()
    stage.work()
    assert (4, 1) == shown(runs)[-1]


@each_kind
def test_a_blocked_key_is_folded_when_it_goes_on(stage: Stage) -> None:
    """What is sent while a delivery blocks its key is counted behind it, and is in its run when it is retried."""
    runs = counting(stage, on_failure="block")
    stage.body = failing(Fail("once"))
    stage.send("a", 1)
    stage.work()
    stage.send("a", 2, 3)
    assert 2 == stage.rows().behind()

    assert 1 == deliveries(stage.alias).retry()
    assert 1 == stage.relay()
    stage.work()
    assert ([(1, 0), (3, 2)], {}) == (shown(runs), states(stage.alias))


# Debounce ------------------------------------------------------------------------------------------------------------


def age(stage: Stage, *seconds: float) -> None:
    """Let deliveries have been sent so long ago, the oldest first, and the first be due."""
    keys = list(stage.rows().order_by("pk").values_list("pk", flat=True))
    for pk, ago in zip(keys, seconds, strict=True):
        stage.rows(pk=pk).update(created_at=In(-ago))
    stage.rows(pk=keys[0]).update(due_at=In(-1))


@each_kind
def test_debounce_waits_until_it_is_quiet(stage: Stage) -> None:
    """A run begins when nothing of its key was sent for so long, and stands for all that was."""
    runs = counting(stage, debounce=20)
    stage.send("a", 1)
    assert ([], 0) == (stage.take(), stage.relay())
    assert 1 == stage.rows(due_at__gt=In(15), due_at__lt=In(21)).count()
    stage.send("a", 2, 3)
    age(stage, 30, 25, 10)
    assert 0 == stage.relay()
    assert 1 == stage.rows(slot__isnull=False, due_at__gt=In(5), due_at__lt=In(11)).count()

    age(stage, 45, 40, 25)
    assert 1 == stage.relay()
    stage.work()
    assert ([(3, 2)], {}) == (shown(runs), states(stage.alias))


@pytest.mark.parametrize(("options", "bound"), [({"max_wait": 100}, 100), ({}, 300)])
@each_kind
def test_debounce_waits_no_longer_than_it_may(stage: Stage, options: dict[str, float], bound: float) -> None:
    """Where it is never quiet a run begins after max_wait=, by default 15 times debounce=."""
    runs = counting(stage, debounce=20, **options)
    stage.send("a", 1, 2)
    age(stage, bound - 10, 1)
    assert 0 == stage.relay()
    assert 1 == stage.rows(due_at__gt=In(5), due_at__lt=In(11)).count()

    age(stage, bound + 1, 1)
    assert 1 == stage.relay()
    stage.work()
    assert [(2, 1)] == shown(runs)


@each_kind
def test_countdown_of_what_waits(stage: Stage) -> None:
    """What may not start yet is not folded into a run that may, and neither is what waits behind it."""
    runs = counting(stage, countdown=60)
    stage.send("a", 1, 2, 3)
    age(stage, 70, 65, 5)
    assert 1 == stage.relay()
    stage.work()
    assert [(2, 1)] == shown(runs)
    assert 1 == stage.rows(slot__isnull=False, due_at__gt=In(50), due_at__lt=In(56)).count()

    stage.rows().update(created_at=In(-61), due_at=In(-1))
    assert 1 == stage.relay()
    stage.work()
    assert ([(2, 1), (3, 0)], {}) == (shown(runs), states(stage.alias))


@each_kind
def test_debounce_of_what_waits_behind_a_run(stage: Stage) -> None:
    """What is sent while the receiver runs begins only after a quiet time, too, which counts from its sending."""
    runs = counting(stage, debounce=20, atomic=False)
    stage.body = lambda number: stage.send("a", 2) if number == 1 else None
    stage.send("a", 1)
    age(stage, 21)
    assert 1 == stage.relay()

    assert 1 == stage.work()
    assert 1 == stage.rows(slot__isnull=False, due_at__gt=In(15), due_at__lt=In(21)).count()
    assert 0 == stage.relay()
    age(stage, 21)
    assert 1 == stage.relay()
    stage.work()
    assert ([(1, 0), (2, 0)], {}) == (shown(runs), states(stage.alias))


@each_kind
def test_debounce_of_several_keys(stage: Stage) -> None:
    """One key's being noisy keeps no other from its run."""
    runs = counting(stage, debounce=20)
    stage.send("a", 1)
    stage.send("b", 10)
    stage.send("a", 2)
    stage.rows().update(created_at=In(-25), due_at=In(-1))
    stage.rows(pk=stage.rows().latest("pk").pk).update(created_at=In(0), due_at=In(20))

    assert 1 == stage.relay()
    stage.work()
    assert ([(10, 0)], State.READY) == (shown(runs), stage.rows(slot__isnull=False).get().state)


@each_kind
def test_eager(stage: Stage) -> None:
    """Under task_always_eager nothing waits, and so nothing is coalesced: each is run after its commit."""
    stage.app.conf.update(task_always_eager=True, task_eager_propagates=True)
    runs = counting(stage)
    with transaction.atomic(using=stage.alias):
        stage.send("a", 1, 2)
    stage.send("a", 3)

    assert ([(1, 0), (2, 0), (3, 0)], {}) == (shown(runs), states(stage.alias))
