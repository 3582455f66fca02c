"""The database's own clock, for processes on several machines agree on no other; and indexes of a part of a table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, Func, Index, Q


class In(Func):
    """The moment so many seconds from now, by the database's clock; ``In(0)`` is now, ``In(-10)`` ten seconds ago.

    On PostgreSQL the start of the statement: ``clock_timestamp()`` is no index condition, ``now()`` the start of the
    transaction. On SQLite, which has one machine, Python's clock: its own writes three digits where Django writes six,
    and times are compared as text there.
    """

    output_field = DateTimeField()
    arity = 0

    def __init__(self, seconds: float) -> None:
        """Keep the distance."""
        super().__init__()
        self.seconds = float(seconds)

    def as_postgresql(self, compiler: Any, connection: BaseDatabaseWrapper, **_: Any) -> tuple[str, list[Any]]:
        """Return PostgreSQL's expression."""
        if not self.seconds:
            return "STATEMENT_TIMESTAMP()", []
        return "(STATEMENT_TIMESTAMP() + %s * INTERVAL '1 second')", [self.seconds]

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
