"""What databases do differently: their clocks, their indexes of a part of a table, and how they find rows to lock."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.models import Q
from django.db.models.query import QuerySet
from django.test.utils import CaptureQueriesContext

from django_celery_signals.durable import clock
from django_celery_signals.durable.clock import In, PartialIndex, by_index, force, instant, lock_no_gaps
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.models import Delivery
from tests.delivering import place
from tests.elsewhere import connecting, execute
from tests.parameters import each_database
from tests.waiting import wait_until

TABLE = Delivery._meta.db_table


def placed(alias: str, **columns: Any) -> Any:
    """Write one delivery, and return it as the database keeps it."""
    place(alias, "tests.nobody", **columns)
    return deliveries(alias).order_by("-pk").first()


# The clock -----------------------------------------------------------------------------------------------------------


@each_database
def test_now(alias: str) -> None:
    """Now is now, to the microsecond, in a column of any database."""
    before = datetime.now(UTC)
    row = placed(alias, due_at=In(0))

    assert before - timedelta(seconds=1) <= row.due_at <= datetime.now(UTC) + timedelta(seconds=1)


@each_database
@pytest.mark.parametrize("seconds", [90.5, -0.000001, -86_400, 30 * 86_400])
def test_distance(alias: str, seconds: float) -> None:
    """So many seconds from now are that many, fractions as well, in both directions."""
    row = placed(alias, created_at=In(0), due_at=In(seconds))

    tolerance = 0.5 if alias in ("default", "other") else 0.0  # there the clock is read twice
    assert abs((row.due_at - row.created_at).total_seconds() - seconds) <= tolerance


@each_database
def test_time_goes_on_within_a_transaction(alias: str) -> None:
    """A statement has its own time, not that of its transaction's start."""
    with transaction.atomic(using=alias):
        first = placed(alias, due_at=In(0))

        def is_past() -> bool:
            return deliveries(alias).filter(pk=first.pk, due_at__lt=In(-0.05)).exists()

        wait_until(is_past, what="the time")
        assert first.due_at < placed(alias, due_at=In(0)).due_at


@each_database
def test_due(alias: str) -> None:
    """What was due a moment ago is due, and what is due in a moment is not."""
    for seconds in (-3600, -0.001, 0.5, 3600):
        place(alias, "tests.nobody", due_at=In(seconds))

    past = deliveries(alias).filter(due_at__lte=In(0)).order_by("pk")
    assert list(deliveries(alias).order_by("pk")[:2]) == list(past)


@each_database("postgres", "mariadb")
def test_zone_of_the_session(alias: str) -> None:
    """Whatever zone the session is in, the clock tells the time as Django keeps it."""
    execute(alias, "SET TIME ZONE '+05:00'" if alias == "postgres" else "SET time_zone = '+05:00'")

    (age,) = deliveries(alias).filter(pk=placed(alias, due_at=In(-10)).pk).values_list("due_at", flat=True)

    assert 9 < (datetime.now(UTC) - age).total_seconds() < 15
    connections[alias].close()


@each_database("default", "postgres", "mariadb")
@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata"])
def test_without_zones(alias: str, settings: Any, zone: str) -> None:
    """Without ``USE_TZ`` times are UTC, or PostgreSQL's own, which have no zone: in local time an hour comes twice."""
    settings.USE_TZ, settings.TIME_ZONE = False, zone
    connections[alias].close()
    row = placed(alias, due_at=In(-10), created_at=In(0))
    told = instant(row.due_at, connections[alias])
    connections[alias].close()

    assert row.due_at.tzinfo is None
    assert (told.tzinfo is None) == (alias != "postgres")
    assert 9 < (datetime.now(told.tzinfo or UTC).replace(tzinfo=told.tzinfo) - told).total_seconds() < 15


@each_database("postgres")
@pytest.mark.parametrize("hour", [1, -1])
def test_clocks_that_change(alias: str, settings: Any, hour: int) -> None:
    """When local time leaps in ten seconds, a lease of 25 is over in 25, without ``USE_TZ`` as well."""
    settings.USE_TZ = False
    connections[alias].close()
    leap = datetime.now(UTC) + timedelta(seconds=10)
    before, after = (0, -hour) if hour > 0 else (hour, 0)  # POSIX counts to the west
    local = leap - timedelta(hours=before)  # for which it may be tomorrow
    day, moment = local.timetuple().tm_yday, local.strftime("%H:%M:%S")
    later = (leap + timedelta(days=40)).timetuple().tm_yday
    execute(alias, f"SET TIME ZONE 'AAA{before}BBB{after},{day - 1}/{moment},{later - 1}/02:00'")
    (shown,) = execute(alias, "SELECT (NOW() + INTERVAL '60 seconds')::timestamp - NOW()::timestamp")

    place(alias, "tests.nobody", due_at=In(25))
    left = execute(alias, f"SELECT EXTRACT(EPOCH FROM due_at - NOW())::float FROM {TABLE}")
    connections[alias].close()

    assert shown[0] == timedelta(seconds=60, hours=hour)
    assert 20 < left[0][0] <= 25


def test_an_hour_that_comes_twice(settings: Any) -> None:
    """Which of the two it is, is kept."""
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Vienna"
    connection = SimpleNamespace(vendor="postgresql", timezone_name="Europe/Vienna")
    first, second = (instant(datetime(2026, 10, 25, 2, 30, fold=fold), connection) for fold in (0, 1))

    assert (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), timedelta(hours=1)) == (first, second - first)


@each_database
@pytest.mark.parametrize("seconds", [1e12, math.inf, -math.inf, math.nan], ids=str)
def test_the_end_of_time(alias: str, seconds: float) -> None:
    """No distance is too far for a database, or for Python: it ends after a hundred years."""
    row = placed(alias, due_at=In(seconds))

    years = (row.due_at - datetime.now(UTC)).days / 365
    assert round(math.copysign(100, seconds)) == round(years)


@each_database("default")
@pytest.mark.parametrize(("microsecond", "due"), [(499_999, 0), (500_000, 1), (500_001, 1), (0, 0)])
def test_text_of_sqlite(alias: str, monkeypatch: pytest.MonkeyPatch, microsecond: int, due: int) -> None:
    """SQLite compares times as text, so ours is written as Django's: with six digits, or with none."""
    moment = datetime(2030, 1, 1, 12, tzinfo=UTC)
    place(alias, "tests.nobody", due_at=moment.replace(microsecond=500_000))
    place(alias, "tests.nobody", due_at=moment.replace(microsecond=1))

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return moment.replace(microsecond=microsecond)

    monkeypatch.setattr(clock, "datetime", Stopped)

    assert due + (microsecond > 0) == deliveries(alias).filter(due_at__lte=In(0)).count()


@each_database("postgres")
def test_clock_is_an_index_condition(alias: str) -> None:
    """PostgreSQL finds what is due by its index; by a clock that moves within a statement it could not."""
    with transaction.atomic(using=alias):
        execute(alias, "SET LOCAL enable_seqscan = off")
        execute(alias, "SET LOCAL enable_bitmapscan = off")
        plan = deliveries(alias).due(State.READY).explain()

    assert "Index Scan using dcs_delivery_due" in plan
    assert "(due_at <= statement_timestamp())" in plan.partition("Index Cond: ")[2].splitlines()[0]


# Indexes -------------------------------------------------------------------------------------------------------------

CONDITIONS = {
    "dcs_delivery_due": "due_at is not null",
    "dcs_delivery_sent": "state = 2",
    "dcs_delivery_lane": "lane is not null",
    "dcs_delivery_kept": "state = 4 or state = 6",
    "dcs_delivery_parent": "parent_id is not null",
    "dcs_delivery_root": "root_id is not null",
}
DEFINITIONS = {
    "sqlite": f"SELECT name, sql FROM sqlite_master WHERE tbl_name = '{TABLE}' AND name LIKE 'dcs%%'",
    "postgresql": f"SELECT indexname, indexdef FROM pg_indexes WHERE tablename = '{TABLE}' AND indexname LIKE 'dcs%%'",
    "mysql": "SELECT index_name, index_name FROM information_schema.statistics "
    f"WHERE table_schema = DATABASE() AND table_name = '{TABLE}' AND index_name LIKE 'dcs%%'",
}


@each_database("default", "postgres")
def test_indexes_of_a_part(alias: str) -> None:
    """Where a database has indexes of a part of a table, they hold only the rows that are looked for."""
    found = execute(alias, DEFINITIONS[connections[alias].vendor])

    assert CONDITIONS == {name: condition_of(sql) for name, sql in found}


def condition_of(sql: str) -> str:
    """Return an index's condition in plain letters."""
    return re.sub('["()]', "", sql.lower().partition(" where ")[2])


@each_database("mariadb")
def test_indexes_of_a_whole(alias: str) -> None:
    """Where it has none, the indexes are there all the same, of all rows."""
    assert CONDITIONS.keys() == dict(execute(alias, DEFINITIONS["mysql"])).keys()


@each_database
def test_models_have_no_warning(alias: str) -> None:
    """``manage.py check`` has nothing to say of the indexes, whatever the database."""
    assert [] == Delivery.check(databases=[alias])


def test_index_in_a_migration() -> None:
    """A migration writes an index with its condition, and reads it back as the same."""
    index = PartialIndex("due_at", "id", name="due", where=Q(due_at__isnull=False))

    path, args, kwargs = index.deconstruct()

    assert (f"{clock.__name__}.PartialIndex", ("due_at", "id")) == (path, args)
    assert {"name": "due", "where": Q(due_at__isnull=False)} == kwargs
    assert index == PartialIndex(*args, **kwargs) == index.clone()
    assert index != PartialIndex(*args, **{**kwargs, "where": Q(due_at__isnull=True)})


# Rows to lock, and indexes to find them by ---------------------------------------------------------------------------


@each_database("mariadb")
def test_rows_are_found_by_their_keys(alias: str) -> None:
    """MariaDB is told to find by their keys what it is to lock, once in each statement."""
    connection, rows = connections[alias], QuerySet(Delivery, using=alias).filter(pk__in=[1, 2])
    with transaction.atomic(using=alias), CaptureQueriesContext(connection) as queries:
        with by_index(connection, Delivery):
            list(rows.select_for_update().values_list("pk"))
            rows.update(claim=1)
            rows._raw_delete(alias)
        rows.update(claim=1)

    hint = f"`{TABLE}` FORCE INDEX (`PRIMARY`) "
    assert [1, 1, 1, 0] == [query["sql"].count(hint) for query in queries]


@each_database("default", "postgres")
def test_other_databases_need_no_telling(alias: str) -> None:
    """No other database is told how to find rows."""
    connection = connections[alias]
    with CaptureQueriesContext(connection) as queries, by_index(connection, Delivery):
        QuerySet(Delivery, using=alias).filter(pk__in=[1, 2]).update(claim=1)

    assert ["FORCE" in query["sql"] for query in queries] == [False]


@each_database
def test_another_index(alias: str) -> None:
    """A statement may be told of another index, where the database takes such a hint: then it reads that alone."""
    connection, rows = connections[alias], QuerySet(Delivery, using=alias).filter(lane__gte="a")
    with CaptureQueriesContext(connection) as queries, by_index(connection, Delivery, "dcs_delivery_lane"):
        list(rows.order_by("lane", "pk").values_list("pk")[:1])

    hint = force(connection, "dcs_delivery_lane")
    assert ("FORCE INDEX (`dcs_delivery_lane`)" if alias == "mariadb" else "") == hint
    assert [hint] == [hint if f"{TABLE}` {hint} WHERE" in query["sql"] else "" for query in queries]


@each_database("mariadb")
@pytest.mark.parametrize(("level", "count"), [("read committed", 0), ("repeatable read", 1), (None, 1)])
def test_gaps_are_not_locked(alias: str, level: str | None, count: int) -> None:
    """MariaDB is told to lock no gaps before a transaction, unless Django has told the whole session; never within."""
    with connecting(alias, isolation_level=level):
        connection = connections[alias]
        with CaptureQueriesContext(connection) as queries:
            lock_no_gaps(connection)
            with transaction.atomic(using=alias):
                lock_no_gaps(connection)

    said = [query["sql"] for query in queries if "ISOLATION" in query["sql"]]
    assert ["SET TRANSACTION ISOLATION LEVEL READ COMMITTED"] * count == said


@each_database("mariadb")
def test_gaps_and_a_connection_that_is_not_open(alias: str) -> None:
    """What a session will be told is known only once it is open."""
    connection = connections[alias]
    connection.close()
    vars(connection).pop("isolation_level", None)
    lock_no_gaps(connection)

    with CaptureQueriesContext(connection) as queries:
        lock_no_gaps(connection)
    assert ("read committed", []) == (connection.isolation_level, queries.captured_queries)
