"""What only a database itself can tell, asked with ``manage.py check --database`` and before ``manage.py migrate``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Warning
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder

from ..broker import loaded_app
from ..durable.missing import missing_tables
from ..durable.rows import State
from .project import used

READ = 10_000  # rows that are looked at: the oldest, among which are those that nobody takes


def check_table(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Warn of databases that are to keep deliveries, and lack a table that this takes."""
    return [
        Warning(
            f"The database {alias!r} has no table {lacking[0]}: durable sendings, workers and relays that use it fail.",
            hint=f"manage.py migrate --database={alias}, if that is not what is running. A database that is to keep no "
            "deliveries is told apart by a router's allow_migrate().",
            id="dcs.W014",
        )
        for alias in _asked(databases)
        if (lacking := missing_tables(alias)) and _is_begun(connections[alias])
    ]


def check_skip_locked(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Warn of servers on which relays wait for one another."""
    return [
        Warning(
            f"The server of {alias!r} knows no SKIP LOCKED, so relays wait for one another, and for workers.",
            hint="Run MariaDB 10.6 or MySQL 8.0.1, or later.",
            id="dcs.W009",
        )
        for alias in _asked(databases)
        if connections[alias].vendor == "mysql" and not connections[alias].features.has_select_for_update_skip_locked
    ]


def check_isolation(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Warn of databases whose transactions do not see what others have committed meanwhile."""
    return [
        Warning(
            f"Transactions of {alias!r} run at {level.upper()}: statements of receivers and of the relay that meet "
            "another transaction's fail, and are executed again.",
            hint="READ COMMITTED, as Django has it: without 'isolation_level' in "
            f"DATABASES[{alias!r}]['OPTIONS'], and whatever the server, the database or the role says else.",
            id="dcs.W010",
        )
        for alias in _asked(databases)
        if (level := _isolation(connections[alias])) in ("repeatable read", "serializable")
    ]


def check_rows(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Warn of deliveries whose receivers are gone."""
    return [
        Warning(
            f"Deliveries in {alias!r} are for {name}, but the Celery app has no such task: they wait for an hour, and "
            "fail then.",
            hint=f"Where the task was renamed: former_names=[{name!r}] at the new one. Where it was removed, once they "
            f"have failed: manage.py signals discard --receiver={name}",
            id="dcs.W011",
        )
        for alias in _asked(databases)
        if not missing_tables(alias)
        for name in _unknown(alias)
    ]


def _asked(databases: Sequence[str] | None) -> list[str]:
    return [alias for alias in used() if alias in (databases or ())]


def _is_begun(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether the database was ever migrated; before the first time it lacks all tables."""
    return MigrationRecorder(connection).has_table()


def _isolation(connection: BaseDatabaseWrapper) -> str:
    if connection.vendor not in ("postgresql", "mysql"):
        return ""
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:  # psycopg sets that of transactions
        is_postgres = connection.vendor == "postgresql"
        # Its name depends on the version: MariaDB's is tx_isolation, and from 11.1 on transaction_isolation as well.
        of_mysql = "SHOW VARIABLES WHERE Variable_name IN ('transaction_isolation', 'tx_isolation')"
        cursor.execute("SHOW transaction_isolation" if is_postgres else of_mysql)
        return str(cursor.fetchone()[-1]).replace("-", " ").lower()


def _unknown(alias: str) -> Iterator[str]:
    rows = apps.get_model("django_celery_signals", "Delivery").objects.using(alias)
    app = loaded_app()
    open_ones = rows.filter(state__in=(State.READY, State.SENT, State.PAUSED)).order_by("id")
    for name in sorted(set(open_ones.values_list("receiver", flat=True)[:READ])):
        if name not in app.tasks:
            yield name


CHECKS = [check_table, check_skip_locked, check_isolation, check_rows]
