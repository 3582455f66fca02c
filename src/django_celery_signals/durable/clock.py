"""What databases do differently: their clocks, for processes on several machines agree on no other; their indexes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, Func, Index, Q

LONGEST = 100 * 365 * 86_400.0  # seconds: databases, and Python, know no time without end


class In(Func):
    """The moment so many seconds from now, by the database's clock; ``In(0)`` is now, ``In(-10)`` ten seconds ago.

    On PostgreSQL the start of the statement: ``clock_timestamp()`` is no index condition, ``now()`` the start of the
    transaction. On SQLite, which has one machine, Python's clock: its own writes three digits where Django writes six,
    and times are compared as text there. In UTC, also without ``USE_TZ``: local time has an hour twice, every autumn.
    """

    output_field = DateTimeField()
    arity = 0

    def __init__(self, seconds: float) -> None:
        """Keep the distance."""
        super().__init__()
        self.seconds = max(-LONGEST, min(LONGEST, float(seconds)))

    def as_text(self, connection: BaseDatabaseWrapper) -> tuple[str, list[Any]]:
        """Return a database's expression, and its parameters."""
        sql, params = getattr(self, f"as_{connection.vendor}")(None, connection)
        return sql, params

    def as_postgresql(self, compiler: Any, connection: BaseDatabaseWrapper, **_: Any) -> tuple[str, list[Any]]:
        """Return PostgreSQL's expression."""
        now = "STATEMENT_TIMESTAMP()" if settings.USE_TZ else "(STATEMENT_TIMESTAMP() AT TIME ZONE 'UTC')"
        if not self.seconds:
            return now, []
        return f"({now} + %s * INTERVAL '1 second')", [self.seconds]

    def as_mysql(self, compiler: Any, connection: BaseDatabaseWrapper, **_: Any) -> tuple[str, list[Any]]:
        """Return MySQL's and MariaDB's expression; Django keeps times in UTC there, whatever the session's zone is."""
        return "(UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND)", [round(self.seconds * 1_000_000)]

    def as_sqlite(self, compiler: Any, connection: Any, **_: Any) -> Any:
        """Return the moment as Django writes it."""
        moment = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=self.seconds)
        return "%s", [str(moment)]


class PartialIndex(Index):
    """An index of the rows that fulfil a condition; where the database has none such, of all, and without a warning."""

    def __init__(self, *fields: str, name: str, where: Q) -> None:
        """Keep the condition under a name that Django's check does not look at."""
        super().__init__(fields=fields, name=name)
        self.where = where

    def create_sql(self, model: Any, schema_editor: Any, using: str = "", **options: Any) -> Any:
        """Return the statement."""
        features = schema_editor.connection.features
        index = Index(
            fields=self.fields, name=self.name, condition=self.where if features.supports_partial_indexes else None
        )
        return index.create_sql(model, schema_editor, using=using, **options)

    def deconstruct(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Return what a migration writes."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, tuple(self.fields), {"name": self.name, "where": self.where}


def force(connection: BaseDatabaseWrapper, index: str) -> str:
    """Return MariaDB's and MySQL's hint to use an index; nothing where the planner needs none, or takes none."""
    return f"FORCE INDEX ({connection.ops.quote_name(index)})" if connection.vendor == "mysql" else ""


@contextmanager
def by_index(connection: BaseDatabaseWrapper, model: Any, index: str = "PRIMARY") -> Iterator[None]:
    """Have MariaDB and MySQL find by an index, by default by their keys, what a statement is about.

    Left to themselves they look through a small table, or another index, and wait for whatever has been locked on the
    way: for the rows of senders that have not yet committed. What they pass by they lock as well, and let no sender
    insert. And for the first of many rows that are alike they read the whole table in the order of its keys.
    """
    if connection.vendor != "mysql":
        yield
        return
    table = connection.ops.quote_name(model._meta.db_table)
    hinted = f"{table} {force(connection, index)}"

    def execute(original: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("DELETE FROM"):  # takes a hint only where it names the table twice
            sql = sql.replace("DELETE", f"DELETE {table}", 1)
        word = "UPDATE" if sql.startswith("UPDATE") else "FROM"  # only the first: inner ones look for something else
        return original(sql.replace(f"{word} {table} ", f"{word} {hinted} ", 1), params, many, context)

    with connection.execute_wrapper(execute):
        yield


def lock_no_gaps(connection: BaseDatabaseWrapper) -> None:
    """Have the next transaction on MariaDB or MySQL lock rows, and not what lies between, where senders insert.

    Nothing need be said where Django has said it to the whole session, as it does unless told otherwise.
    """
    connection.ensure_connection()
    if not connection.in_atomic_block and getattr(connection, "isolation_level", None) != "read committed":
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
