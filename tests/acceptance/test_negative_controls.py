"""What would go wrong without each part of the protocol: every check here fails on a variant that lacks that part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from django.db import connections, transaction
from django.dispatch import Signal

from django_celery_signals import connect, disconnect
from django_celery_signals import task as task_module
from django_celery_signals.durable import deliveries as relays
from django_celery_signals.durable import texts, working
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import DeliveryQuerySet, State, deliveries
from django_celery_signals.durable.hold import Held, opened
from django_celery_signals.durable.lease import Keeper
from django_celery_signals.durable.reference import read
from django_celery_signals.durable.relay import Relay
from django_celery_signals.wire import ARGUMENT
from tests.brokers import Broker
from tests.drain import Published, take
from tests.making import Tasks
from tests.parameters import each_database
from tests.shop.models import Person
from tests.waiting import wait_until

LEASE = 1  # seconds
rung = Signal()


@dataclass(kw_only=True)
class Stage:
    """One database, one relay and one receiver, which this process runs step by step."""

    alias: str
    app: Celery
    task: Any
    relay: Relay
    body: Callable[[], None] = lambda: None  # what the receiver does beside leaving an effect
    runs: int = 0

    def send(self) -> None:
        """Send an event, which the relay will publish."""
        with transaction.atomic(using=self.alias):
            rung.send(sender=None, using=self.alias)

    def publish(self) -> Published:
        """Let the relay publish the one delivery that is due; return its message."""
        assert 1 == self.relay.once()
        [message] = take(self.app)
        return message

    def run(self, message: Published) -> None:
        """Run the receiver as a worker does."""
        tracer = build_tracer(self.task.name, self.task, app=self.app)
        headers = {"id": message.headers["id"], "retries": message.headers["retries"]}
        tracer(message.headers["id"], (), message.kwargs, {**headers, "delivery_info": {}})

    def open(self, message: Published) -> Held | None:
        """Open a delivery as a worker does."""
        return opened(self.task, read(message.kwargs[ARGUMENT], (self.task.name,)))

    def take_over(self) -> Held | None:
        """Let the lease end, and another worker open the delivery; from another connection."""

        def act() -> Held | None:
            deliveries(self.alias).update(due_at=In(-1))
            assert (1, []) == deliveries(self.alias).expire(10)
            deliveries(self.alias).update(due_at=In(0))
            return self.open(self.publish())

        return elsewhere(act)

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        """Return columns of the deliveries that there are."""
        return list(deliveries(self.alias).values_list(*columns))

    @property
    def effects(self) -> int:
        """How many effects were committed."""
        return Person.objects.using(self.alias).count()


def elsewhere(act: Callable[[], Any]) -> Any:
    """Do something in a connection of its own; return what it returns."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(act())
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return results[0]


@pytest.fixture
def stage(alias: str, broker: Broker, celery_app: Celery, tasks: Tasks, settings: Any) -> Iterator[Stage]:
    settings.DJANGO_CELERY_SIGNALS = {"LEASE": LEASE, "FAST_PATH_LIMIT": 0}

    def leave(using: str, **_: Any) -> None:
        stage.runs += 1
        Person.objects.using(using).create(name="effect")
        stage.body()

    task = tasks.shared(leave, guarantee="durable")
    connect(rung, task)
    stage = Stage(alias=alias, app=celery_app, task=celery_app.tasks[task.name], relay=Relay(databases=[alias]))
    yield stage
    disconnect(rung, task)


# The checks ------------------------------------------------------------------------------------------------------


def check_success_of_a_zombie(stage: Stage) -> None:
    """What a run has done is not committed once another one has the delivery, and that one keeps it."""
    stage.send()
    others: list[Any] = []
    stage.body = lambda: others.append(stage.take_over())

    stage.run(stage.publish())

    assert [(State.RUNNING, others[0].lease.token)] == stage.rows("state", "token")
    assert 0 == stage.effects


def check_failure_of_a_zombie(stage: Stage) -> None:
    """A run that fails changes nothing once another one has the delivery."""
    stage.send()
    others: list[Any] = []

    def fail() -> None:
        others.append(stage.take_over())
        raise ValueError("of a zombie")

    stage.body = fail
    stage.run(stage.publish())

    assert [(State.RUNNING, others[0].lease.token)] == stage.rows("state", "token")
    assert [(0, 1)] == stage.rows("attempts", "crashes")


def check_copy(stage: Stage) -> None:
    """A copy of a message does nothing, also while the delivery waits for its next run."""
    stage.send()
    message = stage.publish()

    def fail() -> None:
        raise ValueError("at the first time")

    stage.body = fail
    stage.run(message)
    stage.run(message)

    assert (1, [(1,)]) == (stage.runs, stage.rows("attempts"))


def check_long_receiver(stage: Stage) -> None:
    """A living receiver is not ended, however long it takes."""
    stage.send()
    rows, ended = deliveries(stage.alias), []

    def is_old() -> bool:
        return bool(elsewhere(lambda: rows.filter(sent_at__lt=In(-1.5 * LEASE)).exists()))

    def work() -> None:
        wait_until(is_old, what="more than a lease")
        ended.append(elsewhere(lambda: rows.expire(10)))

    stage.body = work
    stage.run(stage.publish())

    assert [(0, [])] == ended
    assert (1, 1) == (stage.runs, stage.effects)


def check_crash_in_the_body(stage: Stage) -> None:
    """That a delivery is under way is seen by the relay, which can so count a crash."""
    stage.send()
    seen: list[Any] = []
    stage.body = lambda: seen.append(elsewhere(lambda: stage.rows("state")))

    stage.run(stage.publish())

    assert [[(State.RUNNING,)]] == seen


def check_stopped_relay(stage: Stage) -> None:
    """A relay that was stopped before it could mark what it has published does not mark what has happened since."""
    stage.send()
    claimed = deliveries(stage.alias).claim(10, grace=0)
    [row] = claimed.rows

    def fail() -> None:
        raise ValueError("for another run, later")

    stage.body = fail
    stage.run(stage.publish())
    planned = stage.rows("state", "due_at")
    deliveries(stage.alias).mark(claimed.claim, [row.pk], "queue")

    assert State.READY == planned[0][0]
    assert planned == stage.rows("state", "due_at")


def check_late_commit(stage: Stage) -> None:
    """A delivery that was written before another one, and committed after it, is published as well."""
    with transaction.atomic(using=stage.alias):
        rung.send(sender=None, using=stage.alias)
        elsewhere(stage.send)
        published = elsewhere(stage.relay.once)

    assert (1, 1) == (published, stage.relay.once())


def check_lost_message(stage: Stage) -> None:
    """A delivery is there until its receiver has succeeded, so that what the broker loses is published again."""
    stage.send()
    stage.publish()
    rows = deliveries(stage.alias)
    rows.update(sent_at=In(-1000))

    queue = rows.values_list("queue", flat=True).first() or ""
    assert 1 == rows.sweep(queue, In(0), 10)
    stage.run(stage.publish())
    assert (1, False) == (stage.effects, rows.exists())


# The variants ----------------------------------------------------------------------------------------------------


def without_fence(patch: pytest.MonkeyPatch) -> None:
    """Every worker may change every delivery."""
    _without_condition(patch, "token")
    fenced = texts.texts_for

    def texts_for(connection: Any) -> texts.Texts:
        found = fenced(connection)
        free = {name: getattr(found, name).replace("token = %s", "%s > 0") for name in ("open", "complete")}
        free["read_all"] = found.read_all.replace("token {among}", "0 NOT {among}")
        return replace(found, **free)

    patch.setattr(working, "texts_for", texts_for)


def without_fence_of_claims(patch: pytest.MonkeyPatch) -> None:
    """Every relay may mark every delivery."""
    _without_condition(patch, "claim")
    fenced = texts.texts_for

    def texts_for(connection: Any) -> texts.Texts:
        found = fenced(connection)
        return replace(found, mark=found.mark.replace("claim = %s", "%s > 0"))

    patch.setattr(relays, "texts_for", texts_for)


def _without_condition(patch: pytest.MonkeyPatch, name: str) -> None:
    original = DeliveryQuerySet.filter

    def filter_less(self: Any, *args: Any, **conditions: Any) -> Any:
        conditions.pop(name, None)
        return original(self, *args, **conditions)

    patch.setattr(DeliveryQuerySet, "filter", filter_less)


def without_renewal(patch: pytest.MonkeyPatch) -> None:
    """Leases are kept by nobody."""
    patch.setattr(Keeper, "keep", lambda self, lease: None)


def with_the_opening_in_the_transaction(patch: pytest.MonkeyPatch) -> None:
    """A delivery is opened in the transaction that completes it."""
    original = task_module.execute

    def execute(task: Any, carried: Any) -> None:
        with transaction.atomic(using=carried["alias"]):
            original(task, carried)

    patch.setattr(task_module, "execute", execute)


def with_claims_by_id(patch: pytest.MonkeyPatch) -> None:
    """A relay remembers the highest id that it has seen, and claims what lies above."""
    original, last = DeliveryQuerySet.claim, [0]

    def claim(self: Any, limit: int, grace: float) -> Any:
        claimed = original(self.filter(pk__gt=last[0]), limit, grace)
        last.extend(row.pk for row in claimed.rows)
        last[:] = [max(last)]
        return claimed

    patch.setattr(DeliveryQuerySet, "claim", claim)


def with_deletion_on_publication(patch: pytest.MonkeyPatch) -> None:
    """What the broker has is deleted."""
    patch.setattr(DeliveryQuerySet, "mark", lambda self, claim, ids, queue: self.claimed(claim, ids).erase())


CONTROLS: dict[str, tuple[Callable[[Stage], None], Callable[[pytest.MonkeyPatch], None]]] = {
    "success of a zombie": (check_success_of_a_zombie, without_fence),
    "failure of a zombie": (check_failure_of_a_zombie, without_fence),
    "copy": (check_copy, without_fence),
    "long receiver": (check_long_receiver, without_renewal),
    "crash in the body": (check_crash_in_the_body, with_the_opening_in_the_transaction),
    "stopped relay": (check_stopped_relay, without_fence_of_claims),
    "late commit": (check_late_commit, with_claims_by_id),
    "lost message": (check_lost_message, with_deletion_on_publication),
}
each_control = pytest.mark.parametrize(("check", "variant"), CONTROLS.values(), ids=CONTROLS)


@each_control
@each_database("postgres", "mariadb")
def test_protocol(stage: Stage, check: Callable[[Stage], None], variant: Any) -> None:
    """Each check passes."""
    check(stage)


@each_control
@each_database("postgres", "mariadb")
def test_control(stage: Stage, check: Callable[[Stage], None], variant: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Each check fails where the part of the protocol that it is about is missing."""
    with pytest.MonkeyPatch.context() as patch:
        variant(patch)
        with pytest.raises(AssertionError):
            check(stage)
