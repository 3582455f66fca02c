"""Which errors of a database are worth the same work once more: real errors of every database, and made-up ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)

from django_celery_signals.durable.trouble import is_conflict, is_transient
from tests.elsewhere import connecting, execute, other_transaction
from tests.parameters import each_database
from tests.shop.models import Tag

CONFLICTS = {"40001", "40P01", "1213", "1020"}
OF_THE_MOMENT = [
    "40001",
    "40P01",
    "55P03",
    "25P03",
    "25006",
    "08006",
    "08003",
    "53300",
    "53100",
    "57P01",
    "57P02",
    "57P03",
]
OF_THE_WORK = ["57014", "42601", "42P01", "23505", "22001", "25P02", "P0001"]


def raised(alias: str, sql: str, *params: Any) -> Error:
    """Return what a statement raises."""
    with pytest.raises(Error) as caught, transaction.atomic(using=alias):
        execute(alias, sql, *params)
    return caught.value


@contextmanager
def caused(error: Error, cause: Exception) -> Iterator[Error]:
    """Give an error of Django's as it is raised from a client's own."""
    try:
        raise error from cause
    except Error as found:
        yield found


@each_database("postgres")
@pytest.mark.parametrize("state", OF_THE_MOMENT)
def test_postgresql_of_the_moment(alias: str, state: str) -> None:
    """Deadlocks, serialization failures, lock timeouts, shutdowns and a want of room pass."""
    error = raised(alias, f"DO $$ BEGIN RAISE EXCEPTION 'told' USING ERRCODE = '{state}'; END $$")

    assert (True, state in CONFLICTS) == (is_transient(error), is_conflict(error))


@each_database("postgres")
@pytest.mark.parametrize("state", OF_THE_WORK)
def test_postgresql_of_the_work(alias: str, state: str) -> None:
    """Wrong statements and values, broken constraints and cancelled queries do not pass."""
    error = raised(alias, f"DO $$ BEGIN RAISE EXCEPTION 'told' USING ERRCODE = '{state}'; END $$")

    assert (False, False) == (is_transient(error), is_conflict(error))


@each_database("mariadb")
@pytest.mark.parametrize("number", [1205, 1213, 1020, 1053, 1927, 2006, 2013, 1040, 1203, 1290])
def test_mariadb_of_the_moment(alias: str, number: int) -> None:
    """Deadlocks, lock timeouts, shutdowns, lost connections and too many of them pass."""
    error = raised(alias, f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'told'")

    assert (True, str(number) in CONFLICTS) == (is_transient(error), is_conflict(error))


@each_database("mariadb")
@pytest.mark.parametrize("number", [1064, 1062, 1406, 1317, 1644, 1146])
def test_mariadb_of_the_work(alias: str, number: int) -> None:
    """Wrong statements and values, broken constraints and cancelled queries do not pass."""
    error = raised(alias, f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'told'")

    assert (False, False) == (is_transient(error), is_conflict(error))


@each_database("default")
def test_sqlite(alias: str) -> None:
    """A database file that somebody else has locked will be free again; a missing table will stay away."""
    with (
        other_transaction(alias, lambda: Tag.objects.using(alias).create(name="locked")),
        connecting(alias, timeout=0),
        pytest.raises(OperationalError) as caught,
    ):
        Tag.objects.using(alias).create(name="late")

    assert (True, False) == (is_transient(caught.value), is_conflict(caught.value))
    assert not is_transient(raised(alias, "SELECT 1 FROM nowhere"))


@each_database("postgres", "mariadb")
def test_connection_that_was_ended(alias: str) -> None:
    """A connection that the server has ended is no fault of the work: neither at once, nor at what is tried with it."""
    end = {
        "postgres": "SELECT pg_terminate_backend(pg_backend_pid())",
        "mariadb": "KILL CONNECTION_ID()",
    }[alias]
    with suppress(Error):
        execute(alias, end)
    with pytest.raises(Error) as first:
        execute(alias, "SELECT 1")
    with pytest.raises(Error) as second:
        execute(alias, "SELECT 1")
    connections[alias].close()

    assert [True, True] == [is_transient(caught.value) for caught in (first, second)]


@each_database("postgres", "mariadb")
def test_server_that_is_not_there(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refuses the connection is away."""
    connections[alias].close()
    monkeypatch.setitem(connections.settings[alias], "PORT", "1")

    with pytest.raises(OperationalError) as caught:
        execute(alias, "SELECT 1")

    assert (True, False) == (is_transient(caught.value), is_conflict(caught.value))


class OfPsycopg2(Exception):
    """An error of the older client, which names the state differently."""

    def __init__(self, pgcode: str | None) -> None:
        super().__init__("told")
        self.pgcode = pgcode


@pytest.mark.parametrize(
    ("pgcode", "passes", "conflicts"),
    [("40001", True, True), ("57P01", True, False), (None, True, False), ("22003", False, False)],
)
def test_psycopg2(pgcode: str | None, passes: bool, conflicts: bool) -> None:
    """Django's other client of PostgreSQL is understood as well."""
    with caused(OperationalError("told"), OfPsycopg2(pgcode)) as error:
        assert (passes, conflicts) == (is_transient(error), is_conflict(error))


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (InterfaceError(0, ""), True),
        (InterfaceError("connection already closed"), False),
        (OperationalError(0, ""), False),
    ],
    ids=repr,
)
def test_closed_connection_of_mysql(error: Error, passes: bool) -> None:
    """The clients of MySQL say nothing but 0 of a connection that is closed."""
    assert passes == is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("database is locked"),
        ProgrammingError("database is locked"),
        IntegrityError(1213, "told"),
        DataError("told"),
        DatabaseError("told"),
        OperationalError(),
        OperationalError("no such column: colour"),
        TimeoutError("told"),
    ],
    ids=repr,
)
def test_other_errors(error: Exception) -> None:
    """Nothing else passes by itself, least of all what is no error of a database."""
    assert (False, False) == (is_transient(error), is_conflict(error))
