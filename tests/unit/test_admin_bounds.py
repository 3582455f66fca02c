"""What the pages of deliveries cost where there are very many: no statement reads the table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from django.test.utils import CaptureQueriesContext

from django_celery_signals.admin import bounds, choices
from django_celery_signals.admin.bounds import COUNTED, LOOKED_AT
from django_celery_signals.durable.deliveries import State, deliveries
from tests.parameters import each_database
from tests.services import absent
from tests.shop.models import User

MANY, GIVEN_UP = 200_000, 400  # rows, and how many of the oldest have failed
FEW = 100  # rows more: the page itself, and those by which receivers are found
LIST = "/admin/django_celery_signals/delivery/"
TABLE = "django_celery_signals_delivery"
INSERT = f"""
INSERT INTO {TABLE} (event_id, receiver, signal, summary, queue, folds, state, due_at, token, attempts, crashes, reruns,
    sends, options, payload, created_at, finished_at, fingerprint)
SELECT md5(i::text), 'shop.r' || i % 20, 'django.db.models.signals:post_save', 'post_save shop.Order pk=' || i % 5000,
    '', false, CASE WHEN i <= {GIVEN_UP} THEN 4 WHEN i % 3 = 0 THEN 5 WHEN i % 3 = 1 THEN 2 ELSE 1 END,
    now(), i, 0, 0, 0, 0, '{{}}', repeat('x', 200), now() - ({MANY} - i) * interval '10 seconds', now(),
    'Boom ' || i % 7
FROM generate_series(1, {MANY}) AS i
"""
MINUTE_TABLE = "django_celery_signals_minute"
RECEIVERS, KEPT = 50, 2000  # and minutes of each
MINUTES = f"""
INSERT INTO {MINUTE_TABLE} (receiver, minute, sent, succeeded, failed, retried, discarded, runtime)
SELECT CASE r WHEN 0 THEN '' ELSE 'shop.r' || r END, EXTRACT(EPOCH FROM now())::int / 60 - m, 9, 8, 1, 1, 0, 1.5
FROM generate_series(0, {RECEIVERS}) AS r, generate_series(1, {KEPT}) AS m
"""


@pytest.fixture(autouse=True, scope="module")
def very_many(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """The rows, which no test of these changes for the next."""
    if "postgres" in absent():
        yield
        return
    with django_db_blocker.unblock(), connections["postgres"].cursor() as cursor:
        cursor.execute(INSERT)
        cursor.execute(f"ANALYZE {TABLE}")
    yield
    with django_db_blocker.unblock(), connections["postgres"].cursor() as cursor:
        cursor.execute(f"TRUNCATE {TABLE}")
        cursor.execute(f"ANALYZE {TABLE}")


@pytest.fixture
def client() -> Client:
    """A superuser."""
    client = Client()
    client.force_login(User.objects.create_superuser("ada", password="x"))
    return client


def read(plan: dict[str, Any], table: str) -> float:
    """Return how many rows of a table a statement looks at."""
    removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
    own = (plan["Actual Rows"] + removed) * plan["Actual Loops"] if plan.get("Relation Name") == table else 0
    return float(own + sum(read(inner, table) for inner in plan.get("Plans", ())))


def costs(queries: CaptureQueriesContext, table: str = TABLE) -> dict[str, float]:
    """Return the rows of a table that each statement looks at."""
    found = {}
    with connections["postgres"].cursor() as cursor:
        for query in queries.captured_queries:
            if query["sql"].startswith(("SELECT", "WITH")):
                cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query['sql']}")
                (plans,) = cursor.fetchone()
                (plan,) = json.loads(plans) if isinstance(plans, str) else plans
                found[query["sql"]] = read(plan["Plan"], table)
    return found


pytestmark = [
    pytest.mark.django_db(databases=["default", "other", "postgres", *([] if "mariadb" in absent() else ["mariadb"])]),
    pytest.mark.skipif("postgres" in absent(), reason=absent().get("postgres", "")),
]


@pytest.mark.parametrize(
    ("parameters", "most", "asked"),
    [
        pytest.param({}, COUNTED + 100, 4, id="list"),
        pytest.param({"p": "200"}, COUNTED + 100, 4, id="last page"),
        pytest.param({"state": "failed"}, 2 * GIVEN_UP, 5, id="failed"),
        pytest.param({"state": "running"}, FEW, 5, id="running"),
        pytest.param({"state": "done"}, LOOKED_AT + FEW, 5, id="done"),
        pytest.param({"state": "failed", "receiver": "shop.r3"}, 2 * GIVEN_UP, 5, id="failed of a receiver"),
        pytest.param({"receiver": "shop.r3"}, LOOKED_AT + FEW, 5, id="receiver"),
        pytest.param({"receiver": "shop.none"}, LOOKED_AT + FEW, 5, id="receiver of none"),
        pytest.param({"age": "hour"}, COUNTED + 100, 30, id="young"),
        pytest.param({"age": "older-week"}, COUNTED + 100, 30, id="old"),
        pytest.param({"age": "older-week", "receiver": "shop.r3"}, LOOKED_AT + FEW, 50, id="old of a receiver"),
        pytest.param({"q": "shop.Order 5"}, LOOKED_AT + FEW, 5, id="object"),
        pytest.param({"q": "0" * 8 + "-0000" * 3 + "-" + "0" * 12}, LOOKED_AT + FEW, 5, id="event"),
        pytest.param({"q": "key=Ada"}, LOOKED_AT + FEW, 5, id="key"),
        pytest.param({"q": "postgres:5"}, FEW, 4, id="number"),
        pytest.param({"q": "shop.Order 5", "state": "failed"}, 2 * GIVEN_UP, 5, id="failed object"),
    ],
)
def test_list(client: Client, parameters: dict[str, str], most: int, asked: int) -> None:
    """However many deliveries there are, each statement of the list looks at no more of them than is bounded."""
    with CaptureQueriesContext(connections["postgres"]) as queries:
        assert 200 == client.get(LIST, {"database": "postgres", **parameters}).status_code

    assert len(queries) <= asked
    assert {} == {sql: rows for sql, rows in costs(queries).items() if rows > most}


def test_other_pages(client: Client) -> None:
    """So does each of the failures by cause, of a delivery's page, and of what is asked before an action."""
    row = deliveries("postgres").failed()[0]
    group = {"receiver": row.receiver, "fingerprint": row.fingerprint}
    place = f"{LIST}postgres_3A{row.pk}"
    with CaptureQueriesContext(connections["postgres"]) as queries:
        assert 200 == client.get(f"{LIST}failures/", {"database": "postgres"}).status_code
        assert 200 == client.get(f"{place}/change/").status_code
        assert 200 == client.post(f"{place}/discard/").status_code
        assert 200 == client.post(f"{LIST}failures/retry/?database=postgres", group).status_code

    assert len(queries) <= 20
    assert {} == {sql: rows for sql, rows in costs(queries).items() if rows > 3 * GIVEN_UP}


def test_lineage(client: Client) -> None:
    """What caused a delivery, and is gone, is looked for among so many before it; what it caused, by an index."""
    row = deliveries("postgres").latest("pk")
    deliveries("postgres").filter(pk=row.pk).update(depth=2, parent_id="gone", root_id="gone too")
    for parameters in ({"parent_id": "gone"}, {"root_id": "gone too", "receiver": row.receiver, "age": "day"}):
        with CaptureQueriesContext(connections["postgres"]) as queries:
            found = client.get(LIST, {"database": "postgres", **parameters}).context["cl"].result_list
        assert [row.pk] == [one.pk for one in found]
        assert {} == {sql: rows for sql, rows in costs(queries).items() if rows > FEW}
    with CaptureQueriesContext(connections["postgres"]) as queries:
        page = client.get(f"{LIST}postgres_3A{row.pk}/change/").content.decode()

    assert f"done and gone, or never durable, or older than the {LOOKED_AT:,}" in page
    assert len(queries) <= 8
    assert {} == {sql: rows for sql, rows in costs(queries).items() if rows > LOOKED_AT + FEW}


def test_large_families(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one event may come a large part of all deliveries, and not those at the end from which a look begins."""
    rows, largest = deliveries("postgres"), MANY // 3
    first, last = (rows.order_by(order).values_list("pk", flat=True)[largest] for order in ("pk", "-pk"))
    cause = rows.order_by("pk")[0]
    rows.filter(pk__lt=first).update(depth=1, parent_id="r", root_id="r")
    rows.filter(pk__gt=last).update(depth=1, parent_id=cause.event_id, root_id=cause.event_id)
    with connections["postgres"].cursor() as cursor:
        cursor.execute(f"ANALYZE {TABLE}")
    for parameters in ({"parent_id": "r"}, {"root_id": "r"}):
        with CaptureQueriesContext(connections["postgres"]) as queries:
            found = client.get(LIST, {"database": "postgres", **parameters}).context["cl"].result_list
        assert first > found[0].pk > found[1].pk
        assert {} == {sql: rows for sql, rows in costs(queries).items() if rows > COUNTED + FEW}
    monkeypatch.setattr(bounds, "LOOKED_AT", 2000)  # for of most of a table none would ask its indexes
    with CaptureQueriesContext(connections["postgres"]) as queries:
        found = client.get(LIST, {"database": "postgres", "root_id": "r", "receiver": "shop.r3"}).context["cl"]
        page = client.get(f"{LIST}postgres_3A{cause.pk}/change/").content.decode()
    assert f"{LIST}postgres_3A{last + 1}/" in page
    assert 50 == len(found.result_list)
    assert {} == {sql: rows for sql, rows in costs(queries).items() if rows > COUNTED + FEW}


@pytest.mark.parametrize("receiver", ["", "shop.r3"])
def test_dashboard(client: Client, receiver: str) -> None:
    """So does each of the dashboard; and of the minutes it reads those of one receiver, and of each the last ones."""
    with connections["postgres"].cursor() as cursor:
        cursor.execute(MINUTES)
        cursor.execute(f"ANALYZE {MINUTE_TABLE}")
    parameters = {"database": "postgres", "span": "week", "receiver": receiver}
    with CaptureQueriesContext(connections["postgres"]) as queries:
        assert 200 == client.get(f"{LIST}dashboard/", parameters).status_code

    assert len(queries) <= 14
    assert {} == {sql: rows for sql, rows in costs(queries).items() if rows > COUNTED + FEW}
    most = KEPT + RECEIVERS * 10
    assert {} == {sql: rows for sql, rows in costs(queries, MINUTE_TABLE).items() if rows > most}


def test_all_of_the_list(client: Client) -> None:
    """An action on the whole list changes the failed ones in steps, and reads no others."""
    action = {"action": "retry_selected", "select_across": "1", "_selected_action": "1", "confirmed": "yes"}
    with CaptureQueriesContext(connections["postgres"]) as queries:
        assert 302 == client.post(f"{LIST}?database=postgres", action).status_code

    assert 0 == deliveries("postgres").failed().count()
    assert [] == [query for query in queries if "IN (" in query["sql"] and query["sql"].count(",") > 1200]
    assert {} == {sql: rows for sql, rows in costs(queries).items() if rows > COUNTED + 3 * GIVEN_UP}


@each_database("mariadb", transaction=False)
def test_receivers_on_mariadb(alias: str) -> None:
    """Where no index has the failed ones alone, their receivers are found among the first of them."""
    rows = deliveries(alias)
    for name in ("shop.b", "shop.a", "shop.b"):
        rows.create(receiver=name, state=State.FAILED, token=1, created_at="2026-01-01T00:00Z")
    rows.create(receiver="shop.c", state=State.READY, token=1, created_at="2026-01-01T00:00Z")

    assert ["shop.a", "shop.b"] == choices.failed_receivers(rows)
