"""Receivers that are paused: their deliveries are written as ever, and wait until somebody lets them go on.

A pause is a row. Opening a delivery asks for it in the same statement, so no statement that begins after the pause's
commit opens one; what could not be opened, or would be published, becomes "paused". The relay brings back what is
paused without a pause.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.apps import apps
from django.db import connections
from django.db.models.constants import OnConflict

from .clock import from_now
from .rows import State

#: What becomes of a delivery. It keeps its turn, so that those of its key stay in order.
PARKED: dict[str, Any] = {"state": State.PAUSED, "due_at": None, "claim": None, "sent_at": None, "sends": 0}


def pauses(using: str) -> Any:
    """Return the pauses in a database."""
    return apps.get_model("django_celery_signals", "Pause")._base_manager.using(using)


def pause(receiver: str, using: str) -> bool:
    """Let a receiver's deliveries in a database wait; tell whether it was not paused before.

    Past Django's signals, as the deliveries themselves are written.
    """
    connection = connections[using]
    table, (now, moments) = connection.ops.quote_name(pauses(using).model._meta.db_table), from_now(connection, 0)
    ignore = connection.ops.insert_statement(on_conflict=OnConflict.IGNORE)
    suffix = connection.ops.on_conflict_suffix_sql([], OnConflict.IGNORE, [], [])
    with connection.cursor() as cursor:
        cursor.execute(f"{ignore} {table} (receiver, since) VALUES (%s, {now}) {suffix}", (receiver, *moments))
        return bool(cursor.rowcount)


def resume(receiver: str, using: str) -> bool:
    """Let them go on; tell whether they were waiting. A relay publishes them within seconds, the oldest first."""
    return bool(pauses(using).filter(receiver=receiver)._raw_delete(using))


def paused(using: str) -> dict[str, datetime]:
    """Return the receivers that are paused, each with since when."""
    return dict(pauses(using).order_by("receiver").values_list("receiver", "since"))
