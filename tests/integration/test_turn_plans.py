"""The statements of turns read a handful of rows, however many wait: each database's own plan says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from django_celery_signals.durable.deliveries import DeliveryQuerySet, deliveries
from tests.delivering import place
from tests.parameters import each_database

TABLE = "django_celery_signals_delivery"
HOT, LONE = "f" * 32, "e" * 32
LANES = {"hot": HOT, "lone": LONE}
MANY = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Deliveries that wait, and the youngest of each lane that matters."""

    rows: DeliveryQuerySet
    hot: Any
    lone: Any


def crowd(using: str) -> Crowd:
    """Let many wait in one lane, behind as many in others, with as little for the planner to be sure of."""
    rows = deliveries(using)
    for number in range(MANY // 100):
        place(using, "task", 100, lane=f"{number:032d}", due_at=None)
    place(using, "task", MANY, lane=HOT, due_at=None, options={"debounce": 5, "max_wait": 50})
    place(using, "task", lane=LONE, due_at=None)
    youngest = {lane: rows.filter(lane=lane).order_by("pk").last() for lane in (HOT, LONE)}
    rows.filter(pk__in=[youngest[HOT].pk, youngest[LONE].pk]).update(claim=7)
    analyse = {"postgresql": f"ANALYZE {TABLE}", "mysql": f"ANALYZE TABLE {TABLE}", "sqlite": "ANALYZE"}
    with connections[using].cursor() as cursor:
        cursor.execute(analyse[connections[using].vendor])
    return Crowd(rows=rows, **{name: youngest[lane] for name, lane in LANES.items()})


VERBS: dict[str, Callable[[Crowd], Any]] = {
    "take_turn": lambda crowd: crowd.rows.take_turn(crowd.hot.pk, HOT),
    "pass_turn": lambda crowd: crowd.rows.pass_turn(HOT),
    "followers": lambda crowd: crowd.rows.followers(HOT, 100),
    "admit": lambda crowd: crowd.rows.admit(7, [crowd.hot, crowd.lone]),
    "debounce": lambda crowd: crowd.rows._quiet_in(crowd.hot),
    "strays": lambda crowd: crowd.rows.strays(HOT[:-1], 100),
}


def plan(using: str, sql: str) -> list[str]:
    """Return the steps in which a database executes a statement, as it says."""
    connection = connections[using]
    word = {"postgresql": "EXPLAIN", "mysql": "EXPLAIN", "sqlite": "EXPLAIN QUERY PLAN"}[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(f"{word} {sql.replace('%', '%%')}")
        return [" ".join(map(str, row)) for row in cursor.fetchall()]


def reads_all(vendor: str, steps: list[str]) -> list[str]:
    """Return the steps that read a whole table, or an index from end to end."""
    if vendor == "sqlite":  # "SCAN table", where it would SEARCH
        return [step for step in steps if f"SCAN {TABLE}" in step]
    if vendor == "mysql":  # the type of access; what is derived has a name in brackets
        return [step for step in steps if re.search(rf" {TABLE} (ALL|index) ", step)]
    text = "\n".join(steps)
    scans = re.findall(r"[^\n]*Scan[^\n]*(?:\n\s+(?!->|Sort|Filter)[^\n]*)?", text)
    return [scan for scan in scans if f"on {TABLE}" in scan and "Index Cond" not in scan]


@pytest.mark.parametrize("verb", VERBS)
@each_database("default", "postgres", "mariadb")
def test_crowded(alias: str, verb: str) -> None:
    """No statement of a turn reads what waits in other lanes, nor all that waits in its own."""
    crowded = crowd(alias)
    with CaptureQueriesContext(connections[alias]) as queries:
        VERBS[verb](crowded)

    statements = [query["sql"] for query in queries if TABLE in query["sql"]]
    steps = {sql: reads_all(connections[alias].vendor, plan(alias, sql)) for sql in statements}
    assert statements
    assert {} == {sql: found for sql, found in steps.items() if found}
