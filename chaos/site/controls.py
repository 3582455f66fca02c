"""Negative controls: the library with one of its safeguards taken out, which the rig must find."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.conf import settings

NAME: str = settings.CHAOS.get("control", "")
#: Whether there are receivers that take turns: only deliveries with a row can.
TURNS = NAME not in ("plain on_commit", "publish before commit", "delete on publish")
#: Of the receiver that takes none.
OPTIONS: dict[str, Any] = {
    "plain on_commit": {"guarantee": "on_commit"},
    "publish before commit": {"guarantee": "immediate", "instance": "snapshot"},
}.get(NAME, {})


def install() -> None:
    """Take it out."""
    CONTROLS.get(NAME, lambda: None)()


def _replace(owner: Any, name: str, other: Any) -> None:
    """Put something else into the library's place; whoever renames it there must do so here."""
    assert hasattr(owner, name), f"{owner!r} has no {name!r} any more"
    setattr(owner, name, other)


def no_fence() -> None:
    """Commit what a run has done whether or not it still has the delivery."""
    from django_celery_signals.durable.hold import Held
    from django_celery_signals.exceptions import LeaseLost

    original = Held.complete

    def complete(self: Held) -> None:
        with suppress(LeaseLost):
            original(self)

    _replace(Held, "complete", complete)


def no_renewal() -> None:
    """Never renew a lease: a receiver that takes longer begins again."""
    from django_celery_signals.durable import hold, together

    for owner in (hold, together):
        _replace(owner, "lease_of", lambda *_: (float(settings.CHAOS["lease"]), False))


def claim_by_last_seen() -> None:
    """Claim what is newer than the newest that was claimed: a lower id that commits late is passed over for ever."""
    from django_celery_signals.durable.deliveries import Claimed, DeliveryQuerySet

    original, seen = DeliveryQuerySet.claim, [0]

    def claim(self: Any, limit: int, grace: float) -> Claimed:
        claimed = original(self.filter(pk__gt=seen[0]), limit, grace)
        seen[0] = max((row.pk for row in claimed.rows), default=seen[0])
        return claimed

    _replace(DeliveryQuerySet, "claim", claim)


def promote_inside() -> None:
    """Let the next have its turn in the transaction that completes, and look for none that is left behind."""
    from django_celery_signals.durable import hold
    from django_celery_signals.durable.deliveries import deliveries
    from django_celery_signals.durable.hold import Held
    from django_celery_signals.durable.upkeep import Upkeep

    original = Held.complete

    def complete(self: Held) -> None:
        original(self)
        if self.known.lane is not None:
            row = deliveries(self.lease.using).waiting(self.known.lane).first()
            if row is not None and not deliveries(self.lease.using).filter(slot=self.known.lane).exists():
                deliveries(self.lease.using).pass_turn(self.known.lane)

    _replace(Held, "complete", complete)
    _replace(hold, "publish_next", lambda *args: None)
    _replace(Upkeep, "lead_strays", lambda self: False)


def ungated_fold() -> None:
    """Fold what waits whether or not the opening has succeeded: a copy of a message deletes it."""
    from django_celery_signals.durable import hold
    from django_celery_signals.durable.deliveries import deliveries
    from django_celery_signals.durable.reference import Reference
    from django_celery_signals.durable.rows import State

    original = hold.opened

    def opened(task: Any, reference: Reference) -> Any:
        held = original(task, reference)
        rows = deliveries(reference.alias)
        if held is None and (row := rows.filter(pk=reference.id, folds=True).first()) is not None:
            rows.filter(lane=row.lane, state=State.READY, slot=None).erase()
        return held

    from django_celery_signals import execution

    _replace(execution, "opened", opened)


def delete_on_publish() -> None:
    """Take what the broker has for done, as an outbox does: delete the row, and let the message carry all."""
    from django.db import transaction

    from django_celery_signals import dispatch
    from django_celery_signals.durable.deliveries import deliveries
    from django_celery_signals.durable.writing import insert
    from django_celery_signals.exceptions import PublishError
    from django_celery_signals.handover import publish

    def durable(app: Any, task: Any, envelope: Any, options: dict[str, Any], connection: Any) -> None:
        """Write a row, and delete it when the message is published."""
        row, using = dispatch.row_of(app, task, envelope, options, sent=True), envelope.event.using
        insert([row], connection)
        message = dispatch._message(app, envelope, options)

        def hand_over() -> None:
            try:
                publish(message)
            except PublishError:
                deliveries(using).put_back(row.pk, row.token)
            else:
                deliveries(using).filter(pk=row.pk).erase()

        transaction.on_commit(hand_over, using=using, robust=True)

    dispatch.durable = durable


CONTROLS: dict[str, Callable[[], None]] = {
    "no fence": no_fence,
    "no renewal": no_renewal,
    "claim by last seen": claim_by_last_seen,
    "promote inside": promote_inside,
    "ungated fold": ungated_fold,
    "delete on publish": delete_on_publish,
}
