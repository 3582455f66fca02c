"""The statements on the table of minutes. Each is short, sends no signal, and is safe beside any number of others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from django.apps import apps
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Max

from ..durable.clock import by_index

#: Columns that are added up, in the order of a row's figures.
SUMS = ("sent", "succeeded", "failed", "retried", "discarded", "runtime")
GAUGES = ("lag", "waiting")  # which are what they were last
EVERY_RECEIVER = ""  # the receiver of the row that has the figures of all
STEP = 500  # rows of one statement
MOST_RECEIVERS = 200  # that are listed, with all of them together

Row = tuple[str, int, Sequence[float]]  # receiver, minute, and figures, with or without gauges


def minutes(using: str) -> Any:
    """Return the minutes in a database; read where is written, for a replica may lag behind."""
    return apps.get_model("django_celery_signals", "Minute")._base_manager.using(using)


def this_minute() -> int:
    """Return the number of the minute that it is, by this process's clock."""
    return int(time.time()) // 60


def add(using: str, rows: Sequence[Row]) -> None:
    """Add figures to those that a database has of the same minutes and receivers, each once; all of them or none.

    Raises:
        django.db.Error: when the database does not take them. Where only its answer was lost, it may have.
    """
    connection = connections[using]
    in_order = sorted(rows, key=lambda row: row[:2])  # the same everywhere, so that nobody waits for one who waits
    # One statement is a transaction of its own: a process that is stopped in between would keep all others waiting.
    block = transaction.atomic(using=using) if len(in_order) > STEP else nullcontext()
    with block, connection.cursor() as cursor:
        for start in range(0, len(in_order), STEP):
            part = [_values(row) for row in in_order[start : start + STEP]]
            cursor.execute(_text(connection, len(part)), [value for values in part for value in values])


def _values(row: Row) -> list[Any]:
    receiver, minute, figures = row
    return [receiver, minute, *figures, *[None] * (len(SUMS) + len(GAUGES) - len(figures))]


def _text(connection: BaseDatabaseWrapper, count: int) -> str:
    quote: Any = connection.ops.quote_name
    table = quote(minutes(connection.alias).model._meta.db_table)
    is_mysql = connection.vendor == "mysql"
    new = "VALUES({})" if is_mysql else "excluded.{}"
    # Of MySQL's way to name a new row there is none that MariaDB has as well, but for this older one.
    conflict = "ON DUPLICATE KEY UPDATE" if is_mysql else "ON CONFLICT (receiver, minute) DO UPDATE SET"
    sums = [f"{quote(name)} = {table}.{quote(name)} + {new.format(quote(name))}" for name in SUMS]
    gauges = [f"{quote(name)} = COALESCE({new.format(quote(name))}, {table}.{quote(name)})" for name in GAUGES]
    columns = ("receiver", "minute", *SUMS, *GAUGES)
    row = f"({', '.join(['%s'] * len(columns))})"
    return (
        f"INSERT INTO {table} ({', '.join(map(quote, columns))}) VALUES {', '.join([row] * count)} "  # noqa: S608
        f"{conflict} {', '.join([*sums, *gauges])}"
    )


def last_minutes(using: str) -> dict[str, int]:
    """Return the receivers that have figures, the first ``MOST_RECEIVERS`` by name, each with its last minute.

    From one to the next, by the key: what it costs does not grow with the minutes.
    """
    connection = connections[using]
    rows = minutes(using)
    if connection.vendor == "mysql":  # which walks so for a grouping, and reads the table for the walk below
        found = rows.order_by("receiver").values_list("receiver").annotate(last=Max("minute"))
        return dict(found[:MOST_RECEIVERS])
    with connection.cursor() as cursor:
        cursor.execute(_WALK.format(table=connection.ops.quote_name(rows.model._meta.db_table)), (MOST_RECEIVERS,))
        return dict(cursor.fetchall())


_WALK = (
    "WITH RECURSIVE walk (receiver) AS (SELECT MIN(receiver) FROM {table} UNION ALL "
    "SELECT (SELECT MIN(other.receiver) FROM {table} AS other WHERE other.receiver > walk.receiver) "
    "FROM walk WHERE walk.receiver IS NOT NULL) "
    "SELECT receiver, (SELECT MAX(own.minute) FROM {table} AS own WHERE own.receiver = walk.receiver) "
    "FROM walk WHERE receiver IS NOT NULL LIMIT %s"
)


def has_gauges(using: str, minute: int) -> bool:
    """Tell whether somebody has noted already how deliveries stood in a minute."""
    mine = minutes(using).filter(receiver=EVERY_RECEIVER, minute=minute, lag__isnull=False)
    return bool(mine.exists())


def note(using: str, minute: int, lag: float, waiting: int) -> None:
    """Note how deliveries stood in a minute.

    Raises:
        django.db.Error: when the database does not take it.
    """
    add(using, [(EVERY_RECEIVER, minute, (*[0] * len(SUMS), lag, waiting))])


def purge(using: str, before: int) -> bool:
    """Delete some of what is older than a minute, the oldest first; tell whether there may be more.

    Raises:
        django.db.Error: when the database does not answer.
    """
    old = minutes(using).filter(minute__lt=before)
    last = list(old.order_by("minute").values_list("minute", flat=True)[STEP - 1 : STEP])
    with by_index(connections[using], old.model, "dcs_minute_minute"):
        (old.filter(minute__lte=last[0]) if last else old)._raw_delete(using)
    return bool(last)
