"""The admin's links from a delivery to what caused it, and to what it caused; what these cost where there are many."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import OperationalError, connections
from django.test import Client
from django.test.utils import CaptureQueriesContext

from django_celery_signals.admin import bounds, lineage, listing
from django_celery_signals.admin.choices import FAMILY
from django_celery_signals.durable.deliveries import State, deliveries
from tests.delivering import place
from tests.parameters import each_database
from tests.shop.models import User

LIST = "/admin/django_celery_signals/delivery/"
TABLE = "django_celery_signals_delivery"
SOME, MANY = 40, 4000  # rows of one root, and of others

each_kind = each_database("default", "postgres", "mariadb", transaction=False, also=("default", "other"))


@pytest.fixture
def client(db: None) -> Client:
    """Somebody who may see deliveries, and no more."""
    user = User.objects.create_user("ada", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_delivery"))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which databases keep deliveries."""
    return lambda *aliases: monkeypatch.setattr(lineage, "keeping", lambda: [*aliases])


def written(alias: str, parent: Any = None, **columns: Any) -> Any:
    """Write a delivery that another one caused, if any, and return it."""
    caused: dict[str, Any] = {}
    if parent is not None:
        root = parent.root_id or parent.event_id
        caused = {"depth": parent.depth + 1, "parent_id": parent.event_id, "root_id": root}
    place(alias, columns.pop("receiver", "shop.note"), **caused, **columns)
    row = deliveries(alias).latest("pk")
    deliveries(alias).filter(pk=row.pk).update(event_id=str(uuid.uuid4()))
    row.refresh_from_db(using=alias)
    return row


def own(row: Any) -> str:
    """Return the address of a delivery's page."""
    return f"{LIST}{row._state.db}_3A{row.pk}/change/"


def facts(client: Client, row: Any) -> dict[str, str]:
    """Return what a delivery's page says of its lineage, as HTML."""
    response = client.get(own(row))
    assert response.status_code == 200
    text = unescape(response.content.decode())
    found = re.findall(r'form-row field-(depth|cause|root|caused)">.*?class="readonly">(.*?)</div>', text, re.DOTALL)
    return dict(found)


def words(html: str) -> str:
    """Return what of some HTML is to be read."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def links(html: str) -> list[str]:
    return re.findall(r'href="([^"]*)"', html)


def rows_of(client: Client, **parameters: str) -> list[Any]:
    """Return what the list shows."""
    response = client.get(LIST, parameters)
    assert response.status_code == 200
    return [row.pk for row in response.context["cl"].result_list]


def asked(queries: CaptureQueriesContext) -> list[str]:
    return [query["sql"] for query in queries if TABLE in query["sql"]]


@each_kind
def test_links(alias: str, client: Client, keeping: Callable[..., None]) -> None:
    """A delivery leads to the one that caused it, to the one that began, and to those that it caused."""
    keeping(alias)
    root = written(alias, state=State.DONE)
    middle = written(alias, root)
    leaves = [written(alias, middle, receiver=f"shop.leaf{number}") for number in range(2)]
    written(alias)

    first, second, third = (facts(client, row) for row in (root, middle, leaves[1]))

    whole = f"{LIST}?database={alias}&root_id={root.event_id}"
    assert ("0", "no other event, as far as is recorded") == (first["depth"], words(first["cause"]))
    assert "root" not in first
    assert [own(middle), whole] == links(first["caused"])
    assert ("1", [own(root)], [own(root)]) == (second["depth"], links(second["cause"]), links(second["root"]))
    assert [*map(own, leaves), whole] == links(second["caused"])
    assert ("2", [own(middle)], [own(root)]) == (third["depth"], links(third["cause"]), links(third["root"]))
    assert f"{alias}:{root.pk} (done): bell → shop. note" == words(third["root"])
    assert "Nothing that is still there." in words(third["caused"])
    assert [whole] == links(third["caused"])


@each_kind
def test_what_is_gone(alias: str, client: Client, keeping: Callable[..., None]) -> None:
    """What caused a delivery, and is done, is named by its event."""
    keeping(alias)
    root = written(alias)
    middle = written(alias, root)
    leaf = written(alias, middle)
    deliveries(alias).filter(pk__in=[root.pk, middle.pk]).erase()

    found = facts(client, leaf)

    assert f"event {middle.event_id}: done and gone, or never durable." == words(found["cause"])
    assert f"event {root.event_id}: done and gone, or never durable." == words(found["root"])


@each_kind
def test_lists(alias: str, client: Client, keeping: Callable[..., None]) -> None:
    """The list shows what an event caused itself, or all that began with it, with other filters, too."""
    root = written(alias)
    middle = written(alias, root)
    leaf = written(alias, middle, receiver="shop.leaf")
    other = written(alias, written(alias))
    shown = {"database": alias}

    assert [leaf.pk, middle.pk] == rows_of(client, **shown, root_id=root.event_id)
    assert [middle.pk] == rows_of(client, **shown, parent_id=root.event_id)
    assert [leaf.pk] == rows_of(client, **shown, root_id=root.event_id, receiver="shop.leaf")
    assert [leaf.pk] == rows_of(client, **shown, root_id=root.event_id, age="hour", receiver="shop.leaf")
    assert [leaf.pk, middle.pk] == rows_of(client, **shown, root_id=root.event_id, state="ready")
    assert [] == rows_of(client, **shown, root_id=root.event_id, parent_id=other.parent_id)
    assert 5 == len(rows_of(client, **shown, root_id=""))
    text = unescape(client.get(LIST, {**shown, "root_id": root.event_id}).content.decode())
    assert f"{root.event_id[:8]}…" in text
    assert "By cause" not in text
    assert "Clear all filters" in text


@pytest.mark.django_db(databases=["default", "other"])
def test_other_databases(client: Client, keeping: Callable[..., None]) -> None:
    """What caused a delivery, and what it caused, is found in other databases as well, after its own."""
    keeping("default", "other")
    root = written("other")
    middle, elsewhere = written("default", root), written("other", root)
    leaf = written("default", middle)
    away = written("other", middle)

    assert [own(root)] == links(facts(client, middle)["cause"])
    both = f"{LIST}?database=default&root_id={root.event_id}"
    assert [own(leaf), own(away), both] == links(facts(client, middle)["caused"])
    assert [own(elsewhere), own(middle)] == links(facts(client, root)["caused"])[:2]


@pytest.mark.django_db(databases=["default", "other"])
def test_database_that_is_away(client: Client, keeping: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is shown though another database does not answer, and says so; without its own it is not shown."""
    keeping("default", "other")
    row = written("default", written("default"))
    deliveries("default").exclude(pk=row.pk).erase()
    deliveries_of = lineage.deliveries

    def refuse(alias: str, away: str) -> Any:
        if alias == away:
            raise OperationalError("no route")
        return deliveries_of(alias)

    monkeypatch.setattr(lineage, "deliveries", lambda alias: refuse(alias, "other"))
    found = facts(client, row)
    assert f"event {row.parent_id}: done and gone, or never durable. No answer from other." == words(found["cause"])
    assert "No answer from other." in words(found["caused"])

    monkeypatch.setattr(lineage, "deliveries", lambda alias: refuse(alias, "default"))
    assert 503 == client.get(own(row)).status_code


@pytest.mark.django_db(databases=["default", "other"])
def test_what_caused_many(client: Client, keeping: Callable[..., None]) -> None:
    """Of many that a delivery caused the first are named, and a link leads to all; it asks as often for one."""
    keeping("default", "other")
    row = written("default", written("other"))
    written("default", row)

    def queries() -> int:
        with CaptureQueriesContext(connections["default"]) as own, CaptureQueriesContext(connections["other"]) as other:
            facts(client, row)
        return len(asked(own)) + len(asked(other))

    few = queries()
    caused = {"depth": 2, "parent_id": row.event_id, "root_id": row.root_id}
    place("default", "shop.note", lineage.MOST_CAUSED + 5, **caused)
    found = facts(client, row)["caused"]

    assert few == queries() <= 7
    assert lineage.MOST_CAUSED == found.count("<li>")
    more = f"{LIST}?database=default&parent_id={row.event_id}"
    assert more in links(found)
    assert lineage.MOST_CAUSED + 6 == len(rows_of(client, parent_id=row.event_id))


@pytest.mark.django_db(databases=["default", "other"])
def test_looks_have_a_bound(client: Client, keeping: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """What caused a delivery is looked for among so many before it, and a list of a root among its newest."""
    keeping("default")
    for module in (bounds, lineage, listing):
        monkeypatch.setattr(module, "LOOKED_AT", 3)
    root = written("default")
    middle = written("default", root)
    near = written("default", middle)
    place("default", "shop.note", 2)
    far = written("default", middle)
    place("default", "shop.note", 5)

    assert [own(middle)] == links(facts(client, near)["cause"])
    assert "or older than the 3 that were looked through." in words(facts(client, far)["cause"])
    more = [written("default", middle).pk for _ in range(2)]
    found = client.get(LIST, {"root_id": root.event_id, "receiver": "shop.note"})
    assert [*more[::-1], far.pk] == [row.pk for row in found.context["cl"].result_list]
    assert "Only the newest 3 deliveries from that event were looked through" in found.content.decode()


@pytest.mark.django_db(databases=["default", "other"])
def test_rows_from_before(client: Client, keeping: Callable[..., None]) -> None:
    """A row that was written before there were these columns, or by a sender that does not know them, says nothing."""
    keeping("default", "other")
    columns = "event_id, receiver, signal, summary, queue, folds, state, token, attempts, crashes, reruns, sends"
    with connections["default"].cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {TABLE} ({columns}, options, created_at) VALUES "
            "('e', 'shop.note', 's', 'rang', '', false, 1, 1, 0, 0, 0, 0, '{}', '2026-01-01 00:00:00')"
        )
    row = deliveries("default").get()

    assert (0, None, None) == (row.depth, row.parent_id, row.root_id)
    assert "no other event, as far as is recorded" == words(facts(client, row)["cause"])


# What it costs -------------------------------------------------------------------------------------------------------


def very_many(alias: str) -> Any:
    """Write very many deliveries, and some of one root; return the root."""
    root = written(alias)
    caused = {"depth": 1, "parent_id": root.event_id, "root_id": root.event_id}
    other = {"depth": 1, "parent_id": "p" * 36, "root_id": "r" * 36}
    place(alias, "shop.note", MANY // 2)
    place(alias, "shop.note", SOME, **caused)
    place(alias, "shop.note", MANY // 2, **other)
    if connections[alias].vendor != "mysql":  # which would commit, and is told by which index to look
        with connections[alias].cursor() as cursor:
            cursor.execute(f"ANALYZE {TABLE}")
    return root


def indexes(alias: str, sql: str) -> str:
    """Return how a database would find what a statement is about."""
    explain = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN (FORMAT JSON)", "mysql": "EXPLAIN"}
    with connections[alias].cursor() as cursor:
        cursor.execute(f"{explain[connections[alias].vendor]} {sql}")
        return json.dumps(cursor.fetchall(), default=str)


@each_kind
def test_by_index(alias: str, client: Client, keeping: Callable[..., None]) -> None:
    """What comes from an event is found by an index, on a delivery's page and in the list."""
    keeping(alias)
    root = very_many(alias)

    with CaptureQueriesContext(connections[alias]) as queries:
        facts(client, root)
    (caused,) = [sql for sql in asked(queries) if root.event_id in sql]
    assert "dcs_delivery_parent" in indexes(alias, caused)

    for name, index in FAMILY.items():
        with CaptureQueriesContext(connections[alias]) as queries:
            rows_of(client, database=alias, **{name: root.event_id})
        mine = [sql for sql in asked(queries) if root.event_id in sql]
        assert 2 == len(mine)
        assert [] == [sql for sql in mine if index not in indexes(alias, sql)]
