"""What would go wrong without each part of the protocol of turns: a scene ends badly on a variant without it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery

from django_celery_signals import dispatch
from django_celery_signals.durable import hold, outbox
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import deliveries
from django_celery_signals.durable.hold import Held
from django_celery_signals.durable.rows import State
from django_celery_signals.durable.texts import GIVEN
from django_celery_signals.durable.turns import TurnQuerySet
from tests.brokers import Broker
from tests.elsewhere import elsewhere
from tests.lanes import Stage, after_completion, impatient, waits
from tests.parameters import needs
from tests.receiving import Receiving


@pytest.fixture
def stage(alias: str, broker: Broker, celery_app: Celery, receiving: Receiving) -> Stage:
    return Stage(alias=alias, app=celery_app, receiving=receiving)


# The scenes: each returns what came of it -----------------------------------------------------------------------------


def while_one_completes(stage: Stage) -> list[int]:
    """A sender commits after a run has noted its success, and before that is committed; return what has run."""
    stage.receive(ordered=True)
    stage.send("a", 1)
    with after_completion(lambda: stage.send_elsewhere("a", 2) if stage.seen == [1] else None):
        stage.work()
    return stage.seen


def copy_while_one_waits(stage: Stage) -> list[int]:
    """A message arrives once more while its run lasts and another delivery waits behind it; return what has run."""
    stage.receive(coalesce=True, atomic=False)
    stage.send("a", 1)
    [message] = stage.take()

    def receive_again(number: int) -> None:
        if number == 1:
            stage.send_elsewhere("a", 2)
            elsewhere(lambda: stage.run(message))

    stage.body = receive_again
    stage.run(message)
    stage.work()
    return stage.seen


def late_commit(stage: Stage) -> int:
    """The first of a key commits while the second runs, and workers have time; return how many ran at once."""
    running: list[int] = []
    most: list[int] = []
    stage.receive(ordered=True)
    with stage.sending("a", 1) as sender:

        def let_others_run(number: int) -> None:
            running.append(number)
            most.append(len(running))
            if number == 2:
                sender.commit()
                elsewhere(stage.work)
            running.remove(number)

        stage.body = let_others_run
        stage.send("a", 2)
        stage.work()
    assert [1, 2] == sorted(stage.seen)
    return max(most)


def beside_a_sender(stage: Stage) -> bool:
    """Another sender's transaction with the same key stays open; return whether one has to wait for it."""
    stage.receive(coalesce=True)
    with impatient(stage.alias), stage.sending("a", 1):
        return waits(lambda: stage.send("a", 2))


def beside_a_receiver(stage: Stage) -> bool:
    """A receiver of the key is done, but for its commit, which takes long; return whether a sender has to wait."""
    found: list[bool] = []
    stage.receive(coalesce=True)
    stage.send("a", 1)
    with (
        impatient(stage.alias),
        after_completion(lambda: found.append(waits(lambda: stage.send_elsewhere("a", 2)))),
    ):
        stage.run(stage.take()[0])
    return found[0]


def crossed(stage: Stage) -> bool:
    """Two transactions send with the same two keys, one in the other's reverse order; return whether one is lost."""
    stage.receive(coalesce=True)
    with stage.sending("a", 1) as one, stage.sending("b", 2) as other:
        both = [one.send("b", 3), other.send("a", 4)]
        wait(both)
        return any(future.exception() for future in both)


# The variants ----------------------------------------------------------------------------------------------------


def with_promotion_in_the_transaction(patch: pytest.MonkeyPatch) -> None:
    """A run lets the next have its turn in the transaction in which it ends."""
    original = Held.complete

    def complete(self: Held) -> None:
        original(self)
        outbox.publish_next(self.task.app, self.lease.using, self.known.lane)

    patch.setattr(Held, "complete", complete)
    patch.setattr(hold, "publish_next", lambda *_: None)


def with_an_ungated_fold(patch: pytest.MonkeyPatch) -> None:
    """What waits is deleted by whoever tries to open a delivery, also if that has not succeeded."""
    original = hold.opened

    def opened(task: Any, reference: Any) -> Held | None:
        held, rows = original(task, reference), deliveries(reference.alias)
        if held is None:
            rows.waiting(rows.get(pk=reference.id).lane).erase()
        return held

    patch.setattr("django_celery_signals.execution.opened", opened)


def without_slots(patch: pytest.MonkeyPatch) -> None:
    """It is a delivery's turn when there is none of its key with a lower id."""

    def take_turn(self: Any, pk: int, lane: str) -> bool:
        published = {"state": State.SENT, "sent_at": In(0), "sends": 1, "due_at": None}
        is_first = not self.filter(lane=lane, pk__lt=pk).exists()
        return is_first and self.filter(pk=pk, state=State.READY).update(**published) > 0

    def pass_turn(self: Any, lane: str, *, publishing: bool = False) -> Any:
        row = self.waiting(lane).first()
        return row if row is not None and self.take_turn(row.pk, lane) else None

    patch.setattr(TurnQuerySet, "take_turn", take_turn)
    patch.setattr(TurnQuerySet, "pass_turn", pass_turn)


def with_upsert(patch: pytest.MonkeyPatch) -> None:
    """A sending of a key that has a delivery already changes that one."""

    def insert(rows: Any, connection: Any) -> None:
        [new], using = rows, connection.alias
        row = deliveries(using).model(
            **{name: getattr(new, name) for name in GIVEN},
            slot=new.lane,
            due_at=None if new.due_in is None else In(new.due_in),
            created_at=In(0),
        )
        target = {} if connection.vendor == "mysql" else {"unique_fields": ["slot"]}
        changed = ["payload", "event_id"]
        deliveries(using).bulk_create([row], update_conflicts=True, update_fields=changed, **target)
        new.written = deliveries(using).values_list("pk", flat=True).get(slot=new.lane)

    def take_turn(self: Any, pk: int, lane: str) -> bool:
        return self.filter(pk=pk, state=State.READY).update(state=State.SENT, sent_at=In(0), sends=1, due_at=None) > 0

    patch.setattr(dispatch, "insert", insert)
    patch.setattr(TurnQuerySet, "take_turn", take_turn)


# Both ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A scene, how it has to end, and how it ends on a variant that lacks what the scene is about."""

    scene: Callable[[Stage], Any]
    right: Any
    variant: Callable[[pytest.MonkeyPatch], None]
    wrong: Any
    aliases: tuple[str, ...] = ("postgres", "mariadb")


# All but "copy" need two transactions that have both written, which SQLite's lock forbids: there nobody commits while
# a run completes, no lower id commits late, no keys cross, and who sends waits for whoever writes, whatever that does.
CONTROLS = {
    "while one completes": Control(
        scene=while_one_completes, right=[1, 2], variant=with_promotion_in_the_transaction, wrong=[1]
    ),
    "copy": Control(
        scene=copy_while_one_waits,
        right=[1, 2],
        variant=with_an_ungated_fold,
        wrong=[1],
        aliases=("default", "postgres", "mariadb"),
    ),
    "late commit": Control(scene=late_commit, right=1, variant=without_slots, wrong=2),
    "beside a sender": Control(scene=beside_a_sender, right=False, variant=with_upsert, wrong=True),
    "beside a receiver": Control(scene=beside_a_receiver, right=False, variant=with_upsert, wrong=True),
    "crossed": Control(scene=crossed, right=False, variant=with_upsert, wrong=True),
}


def _parameter(alias: str, name: str) -> Any:
    marks = [pytest.mark.django_db(databases=[alias], transaction=True), needs(alias)]
    return pytest.param(alias, CONTROLS[name], marks=marks, id=f"{name}-{alias}")


each_control = pytest.mark.parametrize(
    ("alias", "control"), [_parameter(alias, name) for name, one in CONTROLS.items() for alias in one.aliases]
)


@each_control
def test_scene(stage: Stage, control: Control) -> None:
    """Each scene ends well."""
    assert control.right == control.scene(stage)


@each_control
def test_variant(stage: Stage, control: Control) -> None:
    """Each scene ends badly where the part of the protocol that it is about is missing."""
    with pytest.MonkeyPatch.context() as patch:
        control.variant(patch)
        assert control.wrong == control.scene(stage)
