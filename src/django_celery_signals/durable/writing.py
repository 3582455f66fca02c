"""Write new deliveries in the transaction there is, one or many with one statement.

Past Django's own signals, for a receiver of every sender's would be told of itself, and past its models: to make an
instance, and a statement of it, takes longer than the database takes to execute that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any

from django.db import Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from .clock import bounded, from_now
from .texts import CUT, LIST, ONCE, SEPARATOR, Texts, sources_of, texts_for
from .unawaited import Answer, Wrapper, executed


@dataclass(slots=True, kw_only=True)
class New:
    """A delivery that is not written yet."""

    event_id: str
    receiver: str
    signal: str
    summary: str
    queue: str
    state: int
    token: int
    sends: int
    options: dict[str, Any]
    payload: str
    due_in: float | None  # seconds until the relay must look; None: it need not
    key: str | None = None
    lane: str | None = None
    folds: bool = False
    written: Answer | int | None = None  # the key, or what will tell it, once it is written alone
    attempts: int = 0
    depth: int = 0
    parent_id: str | None = None
    root_id: str | None = None

    @property
    def pk(self) -> int | None:
        """Its key, when it was written alone.

        Raises:
            django.db.Error: when the database has refused it.
        """
        return self.written.key() if isinstance(self.written, Answer) else self.written

    @property
    def json(self) -> str:
        """The options, as the database keeps them."""
        return json.dumps(self.options) if self.options else "{}"


_parent = attrgetter("parent_id")


def are_caused(rows: Sequence[New]) -> bool:
    """Tell whether other events have caused some, so that there is a lineage to be written."""
    return any(map(_parent, rows))


def insert(rows: Sequence[New], connection: BaseDatabaseWrapper, own: Wrapper | None = None) -> None:
    """Write deliveries; one that is written alone is given its key, which MySQL tells of many only one by one.

    On PostgreSQL, in a transaction and no savepoint, it need not be waited for: then it is the next statement, and the
    COMMIT, that raises.

    Args:
        rows: what to write.
        connection: to the database.
        own: the wrapper of the connection's statements that need not see this one.

    Raises:
        django.db.Error: when the database does not take them; the transaction is lost then in any case.
    """
    texts, alone = texts_for(connection, caused=are_caused(rows)), len(rows) == 1
    sql, values = _in_lists(rows, connection, texts) if texts.many and not alone else _in_rows(rows, connection, texts)
    explain = partial(_explain, rows[0].receiver, connection.alias)
    try:
        answer = executed(connection, sql, values, explain, own=own, returns=alone)
        if alone:
            rows[0].written = answer or _executed(connection, sql, values, texts)
        elif answer is None:
            with connection.cursor() as cursor:
                cursor.execute(sql, values)
    except Exception as error:
        if isinstance(error, Error):
            explain(error)
        # Of many the batch tries again in the end, and raises then, if the error is swallowed now.
        with transaction.mark_for_rollback_on_error(connection.alias) if alone else nullcontext():
            raise


def _executed(connection: BaseDatabaseWrapper, sql: str, values: Sequence[Any], texts: Texts) -> int:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return int(cursor.fetchone()[0] if texts.returns else cursor.lastrowid)


def _explain(receiver: str, alias: str, error: Exception) -> None:
    if getattr(error.__cause__, "__notes__", None):  # it is the one before that was refused
        return
    error.add_note(
        f"django_celery_signals was writing the delivery for {receiver} to the database {alias!r}. If the table is "
        f"missing there, run: manage.py migrate --database={alias}"
    )


def _in_rows(rows: Sequence[New], connection: BaseDatabaseWrapper, texts: Texts) -> tuple[str, list[Any]]:
    placed = [_placed(row, connection, texts) for row in rows]
    sql = f"{texts.insert} {', '.join([text for text, _ in placed])} {texts.key if len(rows) == 1 else ''}"
    return sql, [value for _, values in placed for value in values]


def _in_lists(rows: Sequence[New], connection: BaseDatabaseWrapper, texts: Texts) -> tuple[str, list[Any]]:
    """Say it by columns, which PostgreSQL reads several times as fast as a row for each delivery."""
    now, _ = from_now(connection, 0)
    due = [None if row.due_in is None else bounded(row.due_in) for row in rows]
    ids, *others = (*zip(*map(texts.values, rows), strict=True), due)
    said = [_listed(ids), *map(_said, others)]  # one is a list in any case, which says how many there are
    sources = sources_of(texts.given, tuple(way for way, _ in said))
    in_order = sorted(said, key=lambda column: column[0] == ONCE)
    return _filled(texts.many, now=now, sources=sources), [value for _, value in in_order]


def _said(column: Sequence[Any]) -> tuple[str, Any]:
    """Return how the values of a column are said, and the parameter that says them."""
    return (ONCE, column[0]) if column.count(column[0]) == len(column) else _listed(column)


def _listed(column: Sequence[Any]) -> tuple[str, str]:
    """Return the same of values that differ.

    Not as a list of Python's: of that psycopg makes an array ten times as slowly, by regular expressions. And the
    quotes of JSON need no escaping in a text that is cut.
    """
    if set(map(type, column)) == {str}:
        text = SEPARATOR.join(column)
        if text.count(SEPARATOR) == len(column) - 1:  # else somebody has sent one
            return CUT, text
    return LIST, "{" + ",".join(map(_element, column)) + "}"


def _element(value: Any) -> str:
    """Write what is in one of PostgreSQL's arrays."""
    if not isinstance(value, str):
        return "NULL" if value is None else str(value)
    escaped = str.__str__(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _placed(row: New, connection: BaseDatabaseWrapper, texts: Texts) -> tuple[str, tuple[Any, ...]]:
    """Return what a statement says of a row, and its values."""
    created, now = from_now(connection, 0)
    due, moment = ("NULL", ()) if row.due_in is None else from_now(connection, row.due_in)
    sent, moments = (created, now) if row.sends else ("NULL", ())
    filled = _filled(texts.row, due_at=due, sent_at=sent, created_at=created)
    return filled, (*texts.values(row), *moment, *moments, *now)


@lru_cache
def _filled(text: str, **moments: str) -> str:
    return text.format(**moments)
