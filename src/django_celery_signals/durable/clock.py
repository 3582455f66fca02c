"""What databases do differently: their clocks, for processes on several machines agree on no other; their indexes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, Func, Index, Q

LONGEST = 100 * 365 * 86_400.0  # seconds: databases, and Python, know no time without end


Moment = tuple[str, tuple[Any, ...]]  # a database's expression, and its parameters


def from_now(connection: BaseDatabaseWrapper, seconds: float) -> Moment:
    """Return the moment so many seconds from now, by the database's clock.

    Where the database knows no zones it is in UTC, also without ``USE_TZ``: local time has an hour twice, every autumn.
    """
    return _CLOCKS[connection.vendor](bounded(seconds))


def instant(moment: datetime, connection: BaseDatabaseWrapper) -> datetime:
    """Return a moment that was read from a database as one that can be reckoned with.

    PostgreSQL's are of no zone, and without ``USE_TZ`` Django shows them in local time, which leaps twice a year. (Of
    an hour that comes twice psycopg says which it is, psycopg2 does not, and takes it for the first.)
    """
    if moment.tzinfo is not None or connection.vendor != "postgresql":
        return moment
    return moment.replace(tzinfo=ZoneInfo(connection.timezone_name)).astimezone(UTC)


def seconds_between(earlier: datetime, later: datetime, connection: BaseDatabaseWrapper) -> float:
    """Return the distance of two moments that were read from a database."""
    return (instant(later, connection) - instant(earlier, connection)).total_seconds()


def bounded(seconds: float) -> float:
    """Return a distance as a float, and no longer than databases, and Python, know times."""
    return max(-LONGEST, min(LONGEST, float(seconds)))


_NOW = "STATEMENT_TIMESTAMP()"


def _on_postgresql(seconds: float) -> Moment:
    """By the start of the statement: ``clock_timestamp()`` is no index condition, ``now()`` the transaction's start."""
    return ("(STATEMENT_TIMESTAMP() + %s * INTERVAL '1 second')", (seconds,)) if seconds else (_NOW, ())


def _on_mysql(seconds: float) -> Moment:
    """By MySQL's and MariaDB's clock; Django keeps times in UTC there, whatever the session's zone is."""
    return "(UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND)", (round(seconds * 1_000_000),)


def _on_sqlite(seconds: float) -> Moment:
    """By Python's clock, for SQLite has one machine, as Django writes it: SQLite's own has three digits, Django's six,
    and times are compared as text there.
    """
    return "%s", (str(datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=seconds)),)


_CLOCKS = {"postgresql": _on_postgresql, "mysql": _on_mysql, "sqlite": _on_sqlite}


class In(Func):
    """:func:`from_now` in a query; ``In(0)`` is now, ``In(-10)`` ten seconds ago."""

    output_field = DateTimeField()
    arity = 0

    def __init__(self, seconds: float) -> None:
        """Keep the distance."""
        super().__init__()
        self.seconds = seconds

    def as_sql(self, compiler: Any, connection: BaseDatabaseWrapper, *_: Any, **__: Any) -> Any:
        """Return a database's expression."""
        return from_now(connection, self.seconds)


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


def byte_length(connection: BaseDatabaseWrapper) -> str:
    """Return the function that counts a text's bytes; SQLite before 3.43 can only count characters."""
    return "LENGTH" if connection.vendor == "sqlite" else "OCTET_LENGTH"


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
