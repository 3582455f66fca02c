"""Whether what the receivers wrote is what one SQL query over the flights says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from django.db import connection

from .models import ALERT, LATE, LOGGED, AirportStatistics, CarrierStatistics, DelayAlert, LogEntry, SearchEntry

Rows = dict[Any, Any]

COUNTS = f"""
    COUNT(*),
    COUNT(CASE WHEN f.dep_delay IS NULL THEN 1 END),
    COUNT(CASE WHEN f.arr_delay >= {LATE} THEN 1 END),
    COALESCE(SUM(f.arr_delay), 0),
    SUM(f.distance)
"""
BY_AIRPORT = f"""
    SELECT a.code, {COUNTS}
      FROM flights_airport a JOIN flights_flight f ON a.code IN (f.origin_id, f.dest_id)
  GROUP BY a.code
"""
BY_CARRIER = f"SELECT f.carrier_id, {COUNTS} FROM flights_flight f GROUP BY f.carrier_id"
ALERTS = f"SELECT id, arr_delay FROM flights_flight WHERE arr_delay >= {ALERT}"
LOG = "SELECT id, carrier_id, number, tailnum, origin_id, dest_id, dep_delay, arr_delay FROM flights_flight"
SEARCH = """
    SELECT f.id, c.code, c.name, f.number, f.tailnum, o.code, o.name, d.code, d.name, t.name
      FROM flights_flight f
      JOIN flights_carrier c ON c.code = f.carrier_id
      JOIN flights_airport o ON o.code = f.origin_id
      JOIN flights_airport d ON d.code = f.dest_id
 LEFT JOIN flights_flight_tags ft ON ft.flight_id = f.id
 LEFT JOIN flights_tag t ON t.id = ft.tag_id
"""


def query(sql: str) -> list[tuple[Any, ...]]:
    """Return what a query answers."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def numbers(rows: Iterable[tuple[Any, ...]]) -> Rows:
    """Return rows by their first column, without those that count nothing."""
    found = {key: tuple(map(int, values)) for key, *values in rows}
    return {key: values for key, values in found.items() if any(values)}


def entries(rows: Iterable[tuple[Any, ...]]) -> Rows:
    """Return the text of each flight, put together from one row for each of its tags."""
    words: dict[Any, tuple[Any, ...]] = {}
    tags: dict[Any, list[str]] = {}
    for flight, *said, tag in rows:
        words[flight] = tuple(said)
        tags.setdefault(flight, []).extend([f"#{tag}"] if tag else [])
    return {
        flight: " ".join(str(word) for word in (*said, *sorted(tags[flight])) if word) for flight, said in words.items()
    }


def replayed() -> Rows:
    """Return the flights as they are when everything in the log has happened in its order."""
    told = LogEntry.objects.replayed()
    return {flight: tuple(values.get(name) for name in LOGGED) for flight, values in told.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """One thing that receivers keep, and the query that says what it must be."""

    name: str
    sql: str  # over the flights alone
    read: Callable[[Iterable[tuple[Any, ...]]], Rows]  # rows of that query -> what is compared
    kept: Callable[[], Rows]  # what the receivers wrote


STATISTICS = [
    Statistic(
        name="airports",
        sql=BY_AIRPORT,
        read=numbers,
        kept=lambda: numbers(AirportStatistics.objects.values_list("pk", *AirportStatistics.NAMES)),
    ),
    Statistic(
        name="carriers",
        sql=BY_CARRIER,
        read=numbers,
        kept=lambda: numbers(CarrierStatistics.objects.values_list("pk", *CarrierStatistics.NAMES)),
    ),
    Statistic(
        name="delay alerts",
        sql=ALERTS,
        read=numbers,
        kept=lambda: numbers(DelayAlert.objects.values_list("pk", "minutes")),
    ),
    Statistic(
        name="search entries",
        sql=SEARCH,
        read=entries,
        kept=lambda: dict(SearchEntry.objects.values_list("pk", "text")),
    ),
    Statistic(
        name="log, replayed",
        sql=LOG,
        read=lambda rows: {flight: tuple(values) for flight, *values in rows},
        kept=replayed,
    ),
]


def compare(statistic: Statistic) -> list[str]:
    """Return a line for each row in which the receivers' work differs from the query."""
    wanted, kept = statistic.read(query(statistic.sql)), statistic.kept()
    return [
        f"{statistic.name} {key}: is {kept.get(key)!r}, must be {wanted.get(key)!r}"
        for key in sorted(wanted.keys() | kept.keys())
        if wanted.get(key) != kept.get(key)
    ]
