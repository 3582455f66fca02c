"""The guarantees, side by side: what happens between a sending and the broker."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from celery import Celery
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from .broker import is_eager
from .durable.batch import batch_on
from .durable.outbox import check_table, delay_of, message_of, publish_or_leave, row_of, takes_the_fast_path
from .durable.saving import autocommits
from .durable.writing import insert
from .envelope import Envelope
from .event import check_depth
from .exceptions import LoopDetected, PublishError
from .handover import Hook, Message, Patience, lose, lost, patience_of, publish, publish_or_lose, told
from .wire import seal

#: What looks on, such as a test: called with the app, the envelope, the guarantee and the options of each sending.
watchers: list[Callable[[Celery, Envelope, str, dict[str, Any]], None]] = []
AUDIT = "audit"  # the guarantee of signals that must survive a rollback, when none was asked for


def dispatch(
    app: Celery,
    task: Any,
    envelope: Envelope,
    guarantee: str,
    options: dict[str, Any],
    connection: BaseDatabaseWrapper | None = None,
) -> None:
    """Send an envelope under a guarantee.

    Args:
        app: the Celery app that has the receiver.
        task: the receiver; None when the app does not have it.
        envelope: what to send, as it was at the sending.
        guarantee: ``"durable"`` or a key of :data:`OTHERS`.
        options: of ``apply_async``: queue, priority, countdown, expires.
        connection: of a durable one, to the database whose transaction the sending belongs to.

    Raises:
        SettingsError: under ``"durable"``, where there is no table for it.
        PublishError: under ``"immediate"``, when the broker does not take the message.
        django.db.Error: under ``"durable"``, when the database does not take the row.
    """
    options = {**_lineage(app, task), **_absolute(app, options)}
    for watch in tuple(watchers):
        watch(app, envelope, guarantee, options)
    if connection is not None:
        durable(app, task, envelope, options, connection)
    else:
        OTHERS[guarantee](app, envelope, options)


def durable(
    app: Celery, task: Any, envelope: Envelope, options: dict[str, Any], connection: BaseDatabaseWrapper
) -> None:
    """Write a row in the sending's transaction; after its commit publish, and leave what fails to the relay."""
    using, receiver = envelope.event.using, envelope.event.receiver
    check_table(connection, receiver)
    if "expires" not in options and (expires := getattr(task, "expires", None)) is not None:
        options = _absolute(app, {**options, "expires": expires})
    batch = batch_on(connection)
    if batch is not None and not is_eager(app):
        batch.add(row_of(app, task, envelope, options, sent=False))
        return
    patience = patience_of(connection, publish_or_leave) or Patience(free=0)
    fast = takes_the_fast_path(app, receiver, delay_of(envelope, options), connection, patience)
    row = row_of(app, task, envelope, options, sent=fast)
    insert([row], connection)
    if not fast:
        return
    row.payload = ""  # which is written, and may be large
    make = partial(message_of, app, row, using, lane=row.lane)
    if connection.in_atomic_block:
        patience.count += 1
        _after_commit(app, Hook(receiver, make, patience, publish_or_leave), using)
    else:
        publish_or_leave(make(), patience)


def on_commit(app: Celery, envelope: Envelope, options: dict[str, Any]) -> None:
    """Publish after the outermost commit of the sending's database; nothing on rollback, never an error."""
    if _refuses(envelope):
        return
    using, message = envelope.event.using, _message(app, envelope, options)
    connection = connections[using]
    if connection.in_atomic_block:
        patience = patience_of(connection, publish_or_lose) or Patience()
        _after_commit(app, Hook(message.receiver, lambda: message, patience, publish_or_lose), using)
        return
    if not autocommits(connection):
        raise transaction.TransactionManagementError(
            f"{message.receiver}: autocommit is off on {using!r} and no atomic() block is open, so "
            "Django cannot tell when this sending commits. Open an atomic() block, or connect the receiver with "
            "guarantee='immediate'."
        )
    publish_or_lose(message)


def immediate(app: Celery, envelope: Envelope, options: dict[str, Any]) -> None:
    """Publish now, inside whatever transaction there is: it may be a ghost, and it raises when the broker is away."""
    if _refuses(envelope):
        return
    message = _message(app, envelope, options)
    try:
        with told(message):
            publish(message)
    except PublishError as error:
        lost(message, error)
        raise


def audit(app: Celery, envelope: Envelope, options: dict[str, Any]) -> None:
    """Publish now, for it must survive a rollback, but never raise into what is failing already."""
    if not _refuses(envelope):
        publish_or_lose(_message(app, envelope, options))


#: The guarantees under which nothing but the broker holds an event.
OTHERS: dict[str, Callable[[Celery, Envelope, dict[str, Any]], None]] = {
    "on_commit": on_commit,
    "immediate": immediate,
    AUDIT: audit,
}


def _refuses(envelope: Envelope) -> bool:
    """End a chain of receivers that have caused one another too often; a durable one ends in its row, as failed."""
    event = envelope.event
    try:
        check_depth(event)
    except LoopDetected as error:
        lose(event.receiver, event.signal_name, envelope.summary, error, event_id=event.id)
        return True
    return False


def _message(app: Celery, envelope: Envelope, options: dict[str, Any]) -> Message:
    """Return the message of an envelope that nothing but the broker holds."""
    event = envelope.event
    return Message(
        app=app,
        receiver=event.receiver,
        event_id=event.id,
        signal_name=event.signal_name,
        summary=envelope.summary,
        body=seal(envelope),
        options=options,
        using=event.using,
    )


def _absolute(app: Celery, options: dict[str, Any]) -> dict[str, Any]:
    """Fix a relative expiry at the sending: a late commit or a retry must not start it anew."""
    expires = options.get("expires")
    if expires is None:
        return options
    if isinstance(expires, datetime) and expires.tzinfo is None:  # in Celery's zone, to Celery
        return {**options, "expires": expires.replace(tzinfo=app.timezone)}
    if isinstance(expires, (int, float)):
        expires = timedelta(seconds=expires)
    return {**options, "expires": datetime.now(UTC) + expires} if isinstance(expires, timedelta) else options


def _lineage(app: Celery, task: Any) -> dict[str, Any]:
    """Return what Celery derives from the running task; the publisher's thread and the relay run none."""
    parent: Any = app.current_worker_task
    if not parent:
        return {}
    lineage = {"root_id": parent.request.root_id or parent.request.id, "parent_id": parent.request.id}
    if app.conf.task_inherit_parent_priority and task is not None and task.priority is None:
        lineage["priority"] = (parent.request.delivery_info or {}).get("priority")
    return lineage


def _after_commit(app: Celery, hook: Hook, using: str) -> None:
    """Register what is done after the commit.

    Robust: one that fails stops neither the others nor the request. But an eager receiver's error is for the test.
    """
    propagates = is_eager(app) and app.conf.task_eager_propagates
    transaction.on_commit(hook, using=using, robust=not propagates)
