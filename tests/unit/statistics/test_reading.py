"""Reading the table of minutes: figures over time, without gaps, and the rates of the last minutes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from django_celery_signals.statistics import Figures, Point, rates, series, step_for, table
from tests.parameters import each_database

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
MINUTE = int(NOON.timestamp()) // 60


def add(alias: str, receiver: str, minute: int, **figures: float) -> None:
    """Add some figures, of so many minutes after noon."""
    table.add(alias, [(receiver, MINUTE + minute, [figures.get(name) or 0 for name in table.SUMS])])


def after(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


@each_database
def test_a_time_in_minutes(alias: str) -> None:
    """Each minute has a point, also one in which nothing happened; both ends are those of the minutes they are in."""
    for minute in range(-1, 5):
        add(alias, "", minute, sent=minute + 10)
    add(alias, "shop.a", 1, sent=99)
    table.minutes(alias).filter(minute=MINUTE + 2).delete()
    table.note(alias, MINUTE + 1, 2.5, 7)

    found = series(alias, after(0.4), after(3.1))

    assert [
        Point(at=after(0), sent=10),
        Point(at=after(1), sent=11, lag=2.5, waiting=7),
        Point(at=after(2)),
        Point(at=after(3), sent=13),
    ] == found


@each_database
def test_a_time_in_steps(alias: str) -> None:
    """A step has the sums of its minutes and the highest of its gauges; one query reads them all."""
    for minute in (0, 2, 4, 5, 11):
        add(alias, "", minute, sent=1, succeeded=2, failed=3, retried=4, discarded=5, runtime=0.5)
        table.note(alias, MINUTE + minute, float(minute), minute)

    with CaptureQueriesContext(connections[alias]) as queries:
        found = series(alias, after(3), after(12), step_minutes=5)

    figures = {"sent": 3, "succeeded": 6, "failed": 9, "retried": 12, "discarded": 15, "runtime": 1.5}
    assert Point(at=after(0), lag=4.0, waiting=4, **figures) == found[0]
    assert [(3, 4), (1, 5), (1, 11)] == [(point.sent, point.waiting) for point in found]
    assert 1 == len(queries)


@each_database("default", "postgres", "mariadb")
def test_a_receiver(alias: str) -> None:
    """The figures of a receiver are its own, and it has no gauges."""
    add(alias, "", 0, sent=5)
    add(alias, "shop.a", 0, sent=2)
    table.note(alias, MINUTE, 2.5, 7)

    assert [Point(at=NOON, sent=2)] == series(alias, NOON, after(1), "shop.a")


@each_database("default")
@override_settings(TIME_ZONE="Europe/Berlin", USE_TZ=False)
def test_time_zones(alias: str) -> None:
    """Minutes are counted in UTC, whatever the project's settings are, and whatever zone is asked for."""
    add(alias, "", 0, sent=1)
    there = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))

    (point,) = series(alias, there, there + timedelta(minutes=1))

    assert (1, NOON, timedelta(0)) == (point.sent, point.at, point.at.utcoffset())


@pytest.mark.parametrize(
    ("until", "step", "words"),
    [(after(10), 0, "step_minutes=0 must be at least 1"), (after(501), 1, r"501 steps of 1 minutes, more than 500\.")],
)
def test_what_cannot_be_drawn(until: datetime, step: int, words: str) -> None:
    """A step that cannot be, or more points than anybody sees, is refused, and the remedy named."""
    with pytest.raises(ValueError, match=words):
        series("default", NOON, until, step_minutes=step)


@pytest.mark.parametrize(
    ("hours", "step"), [(1, 1), (8, 1), (9, 2), (24, 5), (7 * 24, 30), (490 * 24, 1440), (1000 * 24, 3 * 1440)]
)
@pytest.mark.django_db
def test_step_that_fits(hours: float, step: int) -> None:
    """For any time there is a step that people count in, and by which the series is short enough."""
    until = NOON + timedelta(hours=hours, seconds=30)

    assert step == step_for(NOON, until)
    assert series("default", NOON + timedelta(seconds=30), until, step_minutes=step)


@each_database
def test_rates(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates are those of the minutes that have ended, for each receiver that had any and for all together."""
    monkeypatch.setattr(table, "this_minute", lambda: MINUTE + 5)
    for minute in range(-1, 6):
        add(alias, "", minute, sent=10, runtime=1)
    add(alias, "shop.a", 4, failed=1)
    add(alias, "shop.b", -1, failed=1)

    with CaptureQueriesContext(connections[alias]) as queries:
        found = rates(alias)

    assert {"": Figures(sent=10, runtime=1), "shop.a": Figures(failed=0.2)} == found
    assert {"": Figures(sent=10, runtime=1), "shop.a": Figures(failed=0.5)} == rates(alias, 2)
    assert 1 == len(queries)


def test_this_minute() -> None:
    """Minutes are those since 1970, in UTC."""
    before, now, after = datetime.now(UTC).timestamp(), table.this_minute(), datetime.now(UTC).timestamp()

    assert before // 60 <= now <= after // 60


def test_rates_of_no_time() -> None:
    """Rates of less than a minute are refused."""
    with pytest.raises(ValueError, match="minutes=0 must be at least 1"):
        rates("default", 0)


@each_database("postgres", "mariadb", "default")
@pytest.mark.parametrize(
    ("read", "indexes"),
    [
        (lambda alias: series(alias, NOON, after(5), "a"), ("pkey", "PRIMARY", "sqlite_autoindex")),
        (rates, ("dcs_minute_minute", "sqlite_autoindex")),  # SQLite goes from receiver to receiver
    ],
    ids=["series", "rates"],
)
def test_indexes(
    alias: str, read: Callable[[str], Any], indexes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the table is, only the rows that are asked for are looked at."""
    rows = [(name, minute, [1] * 6) for name in ("", *"abcdefghij") for minute in range(MINUTE, MINUTE + 500)]
    table.add(alias, rows)
    monkeypatch.setattr(table, "this_minute", lambda: MINUTE + 100)
    with CaptureQueriesContext(connections[alias]) as queries:
        read(alias)

    plan = explain(alias, queries.captured_queries[0]["sql"])
    assert any(index in plan for index in indexes), plan


def explain(alias: str, sql: str) -> str:
    """Return how a database finds what a query asks for, after it has looked at its tables."""
    name = table.minutes(alias).model._meta.db_table
    kinds: dict[str, Any] = {"mysql": ("ANALYZE TABLE", "EXPLAIN"), "sqlite": ("ANALYZE", "EXPLAIN QUERY PLAN")}
    analyse, words = kinds.get(connections[alias].vendor, ("ANALYZE", "EXPLAIN"))
    with connections[alias].cursor() as cursor:
        cursor.execute(f"{analyse} {name}")
        if analyse == "ANALYZE TABLE":
            cursor.fetchall()
        cursor.execute(f"{words} {sql}")
        return str(cursor.fetchall())
