"""The sender's side of a durable delivery: write the row, and after the commit publish it, if that is quickly done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from celery import Celery
from django.apps import apps
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import conf
from ..ahead import Doubt
from ..broker import is_eager
from ..envelope import Envelope
from ..exceptions import PublishError, SettingsError
from ..handover import Message, Patience, publish
from ..plurals import quantity
from ..publisher import publisher
from ..wire import dump
from .deliveries import deliveries
from .failure import clean
from .pace import most_together, pace
from .reference import Reference
from .routes import queue_of
from .rows import State, new_token
from .saving import autocommits
from .writing import New

logger = logging.getLogger(__name__)

_READY, _SENT = int(State.READY), int(State.SENT)


def takes_the_fast_path(
    app: Celery, receiver: str, delay: float, connection: BaseDatabaseWrapper, patience: Patience
) -> bool:
    """Tell whether the sender publishes a delivery itself, rather than leave it to the relay.

    Not what is due later, nor the many of a large transaction, nor what this process or the broker cannot take now, nor
    what comes so fast that it had better be put together.
    """
    is_quick = not delay and patience.count < conf.get().FAST_PATH_LIMIT
    return (
        (is_quick or is_eager(app))
        and (connection.in_atomic_block or autocommits(connection))
        and receiver in app.tasks
        and not publisher().lines(app).breaker.is_open()
        and (most_together(app, receiver) == 1 or is_eager(app) or not pace.is_quick(receiver))
    )


def delay_of(envelope: Envelope, options: dict[str, Any]) -> float:
    """Return the seconds for which a delivery is not to be published."""
    countdown = float(options.get("countdown", 0))
    return countdown if envelope.lane is None else max(countdown, envelope.lane.debounce)


def row_of(app: Celery, task: Any, envelope: Envelope, options: dict[str, Any], *, sent: bool) -> New:
    """Return the delivery to be written.

    Args:
        app: the Celery app that has the receiver.
        task: the receiver; None when the app does not have it.
        envelope: what is sent.
        options: of ``apply_async``.
        sent: whether the sender publishes it. The row says so beforehand; only a failure that is known takes it back,
            and whatever else happens, the relay finds out. One with a lane is published when it has its turn, but
            eager there are no turns: a delivery runs at once or within another, and nobody comes back to what waits.
    """
    event, lane = envelope.event, envelope.lane
    identity = identity_of(envelope)
    takes_turns = lane is not None and not is_eager(app)
    published = sent and not takes_turns
    row = New(
        **identity,
        receiver=event.receiver,
        queue=queue_of(app, task, event.receiver, options) or "",
        state=_SENT if published else _READY,
        due_in=None if sent else delay_of(envelope, options),
        token=new_token(),
        sends=int(published),
        options={name: _as_json(value) for name, value in options.items() if name != "countdown" and value is not None},
        payload=dump(envelope),
    )
    if lane is not None:
        row.key = clean(lane.key)[:255]
    if lane is not None and takes_turns:
        row.lane, row.folds = lane.name, lane.folds
        asked = {"countdown": options.get("countdown"), "debounce": lane.debounce, "max_wait": lane.max_wait}
        row.options |= {name: value for name, value in asked.items() if value}
    return row


def identity_of(envelope: Envelope) -> dict[str, Any]:
    """Return the columns by which people, and the broker, know what a delivery is about, and what caused it."""
    event = envelope.event
    return {
        "event_id": event.id,
        "signal": clean(event.signal_name)[:255],
        "summary": clean(envelope.summary)[:255],
        "depth": event.depth,
        "parent_id": event.parent_id,
        "root_id": event.root_id if event.parent_id else None,
    }


#: Of a delivery's options, those that are none of ``apply_async``.
_NOT_PUBLISHED = ("countdown", "debounce", "max_wait")


def message_of(app: Celery, row: Any, using: str, *, lane: str | None = None) -> Message:
    """Return the message that a row's publication puts into the broker; with a lane, once it has its turn there."""
    reference = Reference(alias=using, id=row.pk, token=row.token, receiver=row.receiver, folds=row.folds)
    options = {name: value for name, value in row.options.items() if name not in _NOT_PUBLISHED}
    return Message(
        app=app,
        receiver=row.receiver,
        event_id=row.event_id,
        signal_name=row.signal,
        summary=row.summary,
        body=reference.carried(),
        # The row itself expires; Celery's own expiry would let a worker drop the message without a word.
        options={**options, "expires": None, "task_id": row.event_id, "retries": row.attempts},
        using=using,
        lane=lane,
        is_probed=bool(getattr(row, "queue", "")),
    )


def publish_or_leave(message: Message, patience: Patience) -> None:
    """Publish, if it is its turn; when that fails, leave the row to the relay."""
    reference = Reference(**message.body)
    if message.lane is not None and not _takes_turn(reference, message.lane, patience.lanes):
        return
    try:
        publish(message, patience, Doubt(reference, _put_back_all) if message.is_probed else None)
    except PublishError as error:
        logger.info("%s will get %r from the relay: %s", message.receiver, message.summary, error)
        _put_back(reference)
    except Exception:  # of a time limit that is over just now
        _put_back(reference)
        raise


def _takes_turn(reference: Reference, lane: str, asked: dict[str, Any]) -> bool:
    """Let a delivery have its turn, unless it is behind another of its commit, whose end comes back to this one."""
    rows = deliveries(reference.alias)
    try:
        # A savepoint that was rolled back by hand takes a row along, but not what Django is to call for it.
        first = asked.get(lane)
        if lane in asked and (first is None or rows.filter(pk=first.id, token=first.token).exists()):
            asked[lane] = None
            return False
        # By its token: for one that was run meanwhile, the message of a late sender would open nothing.
        has_turn = rows.filter(token=reference.token).take_turn(reference.id, lane)
        asked[lane] = None if has_turn else reference
        return has_turn
    except Error as error:  # the relay finds it: in its lane nothing is under way
        asked[lane] = None  # the others of its commit are behind it, and need not ask a database that is away
        logger.warning("Delivery %s could not have its turn, and will be late: %s", reference.id, error)
        return False


def _put_back(reference: Reference) -> None:
    try:
        deliveries(reference.alias).put_back(reference.id, reference.token)
    except Error as failure:  # the row says "sent" still, which the relay's probe will find untrue
        logger.warning("Delivery %s could not be put back, and will be late: %s", reference.id, failure)


def _put_back_all(references: Sequence[Reference]) -> list[Reference]:
    """Put back what the broker may not have, some time after the sending; what fails, the relay's probe finds.

    Returns:
        Those that are to be put back later, for somebody else's transaction is open.
    """
    for alias in {reference.alias for reference in references}:
        mine = [reference for reference in references if reference.alias == alias]
        if connections[alias].in_atomic_block:
            continue
        try:
            deliveries(alias).put_back_all([one.id for one in mine], [one.token for one in mine])
        except Error as failure:
            logger.warning("%s could not be put back, and may be late: %s", quantity(len(mine)), failure)
    return [reference for reference in references if connections[reference.alias].in_atomic_block]


def publish_next(app: Celery, using: str, lane: str) -> None:
    """After a delivery has ended, and that is committed, let the next of its lane begin without waiting for a relay.

    Never an error: what has ended has ended, even when its time limit is over just now. The relay finds the next.
    """
    try:
        row = deliveries(using).pass_turn(lane, publishing=not publisher().lines(app).breaker.is_open())
        if row is not None:
            publish_or_leave(message_of(app, row, using), Patience(free=0))
    except Exception as error:
        logger.warning("What waits in a lane of %r could not have its turn, and will be late: %r", using, error)


def check_table(connection: BaseDatabaseWrapper, receiver: str) -> None:
    """Refuse what has no table.

    Raises:
        SettingsError: saying what to do.
    """
    if "django_celery_signals" not in apps.app_configs:
        raise SettingsError(
            f"{receiver} is connected with guarantee='durable', which keeps deliveries in a table. Add "
            "'django_celery_signals' to INSTALLED_APPS and run manage.py migrate, or choose guarantee='on_commit'."
        )
    if connection.vendor not in ("postgresql", "mysql", "sqlite"):
        raise SettingsError(
            f"{receiver} is connected with guarantee='durable', but the sending belongs to the database "
            f"{connection.alias!r}, which is {connection.display_name} ({connection.vendor}); deliveries are kept on "
            "PostgreSQL, MariaDB, MySQL and SQLite. Send with using= one of these, or choose guarantee='on_commit'."
        )


def _as_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
