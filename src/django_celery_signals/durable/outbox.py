"""The sender's side of a durable delivery: write the row, and after the commit publish it, if that is quickly done."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from celery import Celery
from django.apps import apps
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import conf
from ..envelope import Envelope
from ..exceptions import PublishError, SettingsError
from ..handover import Message, Patience, publish
from ..publisher import publisher
from ..wire import dump
from .clock import In
from .deliveries import deliveries
from .failure import clean
from .reference import Reference
from .routes import queue_of
from .rows import State, new_token
from .saving import autocommits

logger = logging.getLogger(__name__)


def takes_the_fast_path(
    app: Celery, receiver: str, options: dict[str, Any], connection: BaseDatabaseWrapper, patience: Patience
) -> bool:
    """Tell whether the sender publishes a delivery itself, rather than leave it to the relay.

    Not what is due later, nor the many of a large transaction, nor what this process or the broker cannot take now.
    """
    is_quick = "countdown" not in options and patience.count < conf.get().FAST_PATH_LIMIT
    return (
        (is_quick or app.conf.task_always_eager)
        and (connection.in_atomic_block or autocommits(connection))
        and receiver in app.tasks
        and not publisher().lines(app).breaker.is_open()
    )


def insert(app: Celery, envelope: Envelope, options: dict[str, Any], *, sent: bool) -> Message:
    """Write the delivery, in the transaction of its sending and on its database; return the message for the broker.

    Args:
        app: the Celery app that has the receiver.
        envelope: what is sent.
        options: of ``apply_async``.
        sent: whether the sender publishes it. The row says so beforehand; only a failure that is known takes it back,
            and whatever else happens, the relay finds out.

    Raises:
        SettingsError: where there is no table for it.
        django.db.Error: when the database does not take it; the transaction is lost then in any case.
    """
    event = envelope.event
    check_table(event.using, event.receiver)
    rows, token = deliveries(event.using), new_token()
    kept = {name: _as_json(value) for name, value in options.items() if name != "countdown" and value is not None}
    row = rows.model(
        event_id=event.id,
        receiver=event.receiver,
        signal=clean(event.signal_name)[:255],
        summary=clean(envelope.summary)[:255],
        queue=queue_of(app, event.receiver, options) or "",
        state=State.SENT if sent else State.READY,
        due_at=None if sent else In(options.get("countdown", 0)),
        sent_at=In(0) if sent else None,
        token=token,
        sends=int(sent),
        options=kept,
        payload=dump(envelope),
        created_at=In(0),
    )
    return message_of(app, row, event.using, _insert(row, event.using))


def _insert(row: Any, using: str) -> int:
    """Insert past Django's own signals: a receiver of every sender's would be told of itself."""
    fields = [field for field in row._meta.concrete_fields if not field.primary_key and not _is_open(row, field)]
    try:
        results = type(row)._base_manager._insert([row], fields=fields, returning_fields=[row._meta.pk], using=using)
    except Error as error:
        error.add_note(
            f"django_celery_signals wrote the delivery for {row.receiver} to the database {using!r}. If the table is "
            f"missing there, run: manage.py migrate --database={using}"
        )
        raise
    return int(results[0][0])


def _is_open(row: Any, field: Any) -> bool:
    return field.null and getattr(row, field.attname) is None


def message_of(app: Celery, row: Any, using: str, pk: int) -> Message:
    """Return the message that a row's publication puts into the broker."""
    reference = Reference(alias=using, id=pk, token=row.token, receiver=row.receiver)
    return Message(
        app=app,
        receiver=row.receiver,
        event_id=row.event_id,
        signal_name=row.signal,
        summary=row.summary,
        body=reference.carried(),
        # The row itself expires; Celery's own expiry would let a worker drop the message without a word.
        options={**row.options, "expires": None, "task_id": row.event_id, "retries": row.attempts},
    )


def publish_or_leave(message: Message, patience: Patience) -> None:
    """Publish; when that fails, leave the row to the relay."""
    try:
        publish(message, patience)
    except PublishError as error:
        logger.info("%s will get %r from the relay: %s", message.receiver, message.summary, error)
        reference = Reference(**message.body)
        try:
            deliveries(reference.alias).put_back(reference.id, reference.token)
        except Error as failure:  # the row says "sent" still, which the relay's probe will find untrue
            logger.warning("Delivery %s could not be put back, and will be late: %s", reference.id, failure)


def check_table(using: str, receiver: str) -> None:
    """Refuse what has no table.

    Raises:
        SettingsError: saying what to do.
    """
    if not apps.is_installed("django_celery_signals"):
        raise SettingsError(
            f"{receiver} is connected with guarantee='durable', which keeps deliveries in a table. Add "
            "'django_celery_signals' to INSTALLED_APPS and run manage.py migrate, or choose guarantee='on_commit'."
        )
    if connections[using].vendor not in ("postgresql", "mysql", "sqlite"):
        raise SettingsError(
            f"{receiver} is connected with guarantee='durable', but the sending belongs to the database {using!r}, "
            f"which is {connections[using].display_name} ({connections[using].vendor}); deliveries are kept on "
            "PostgreSQL, MariaDB, MySQL and SQLite. Send with using= one of these, or choose guarantee='on_commit'."
        )


def _as_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
