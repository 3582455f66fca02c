"""What is written past Django's models is what these would have written."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import Error, connections
from django.test.utils import CaptureQueriesContext

from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import deliveries
from django_celery_signals.durable.rows import State
from django_celery_signals.durable.texts import COUNTS, CUT, GIVEN, LIST, MOMENTS, ONCE
from django_celery_signals.durable.writing import New, _said, insert
from django_celery_signals.models import Delivery
from tests.parameters import each_database

FULL: dict[str, Any] = {
    "event_id": "5",
    "receiver": "tests.nobody",
    "signal": "m:s",
    "summary": "ü 100 % {due_at} '\\",
    "queue": "q",
    "key": "%s",
    "lane": "f" * 32,
    "folds": True,
    "state": State.SENT,
    "token": 2**60,
    "sends": 4,
    "options": {"priority": 3, "é": [None, {"a": "'"}]},
    "payload": "€\n\\'",
    "due_in": -5,
}
BARE: dict[str, Any] = {**FULL, "key": None, "lane": None, "folds": False, "options": {}, "due_in": None}


class Name(str):
    """As a text that is marked as safe, or a member of an enumeration."""

    def __str__(self) -> str:
        return "another"


KINDS = {
    "of another class": {**FULL, "receiver": Name('a, "b"')},
    "all": FULL,
    "bare": BARE,
    "due": {**FULL, "sends": 0, "due_in": 5},
    "caused": {**FULL, "depth": 3, "parent_id": "%s", "root_id": "r" * 36},
}


@pytest.mark.parametrize(
    ("column", "way", "value"),
    [
        pytest.param(("a", "a"), ONCE, "a", id="alike"),
        pytest.param((None, None), ONCE, None, id="nothing"),
        pytest.param(("a", 'b"', "c\\"), CUT, 'a\x1fb"\x1fc\\', id="texts"),
        pytest.param(("", "a\n"), CUT, "\x1fa\n", id="texts of which one is empty"),
        pytest.param(("a\x1f", 'b"', "c\\"), LIST, '{"a\x1f","b\\"","c\\\\"}', id="texts with a separator"),
        pytest.param((1, 2.5, True), LIST, "{1,2.5,True}", id="numbers"),
        pytest.param((Name("a"), None, 1), LIST, '{"a",NULL,1}', id="others"),
    ],
)
def test_values_of_a_column(column: Any, way: str, value: Any) -> None:
    """Each value of a column arrives as it is, whatever it holds, with as little as can be said."""
    assert (way, value) == _said(column)


@each_database("postgres", transaction=False)
def test_columns_said_in_every_way(alias: str) -> None:
    """What is cut, listed or said once is the same on PostgreSQL."""
    texts = ["", 'a"b\\{},', "NULL", "€\n\t'%s"]
    for more in (texts, [*texts, "a\x1fb"]):
        insert(
            [New(**{**FULL, "event_id": str(at), "payload": text}) for at, text in enumerate(more)], connections[alias]
        )
        assert more == list(deliveries(alias).order_by("pk").values_list("payload", flat=True))
        deliveries(alias).erase()


@each_database("default", "postgres", "mariadb", transaction=False)
@pytest.mark.parametrize("columns", KINDS.values(), ids=KINDS)
def test_is_what_django_writes(alias: str, columns: dict[str, Any]) -> None:
    """One that is written alone, and each of many, is the row that Django makes of an instance."""
    own = {name: value for name, value in columns.items() if name != "due_in"}
    due_in = columns["due_in"]
    deliveries(alias).model(
        **own,
        due_at=None if due_in is None else In(due_in),
        sent_at=In(0) if columns["sends"] else None,
        created_at=In(0),
    ).save(using=alias, force_insert=True)
    one, *many = (New(**columns) for _ in range(3))

    insert([one], connections[alias])
    insert(many, connections[alias])

    rows = list(deliveries(alias).order_by("pk").values())
    keys = [row.pop("id") for row in rows]
    assert one.pk == keys[1]
    moments = [[row.pop(name) for name in MOMENTS] for row in rows]
    assert [rows[0]] * 4 == rows
    assert own == {name: rows[0][name] for name in own}
    for of_django, *others in zip(*moments, strict=True):
        assert all((of_django is None) == (moment is None) for moment in others)
        assert all(of_django is None or abs(of_django - moment).total_seconds() < 5 for moment in others)


@each_database("default", "postgres", "mariadb", transaction=False)
def test_many_that_differ(alias: str) -> None:
    """Each of many keeps its own values, and its own moment."""
    insert([New(**columns) for columns in (FULL, BARE, KINDS["due"])], connections[alias])

    rows = list(deliveries(alias).order_by("pk"))

    assert [row.key for row in rows] == ["%s", None, "%s"]
    assert [row.due_at is None for row in rows] == [False, True, False]
    assert [row.sent_at is None for row in rows] == [False, False, True]
    assert (rows[2].due_at - rows[0].due_at).total_seconds() == pytest.approx(10, abs=1)


@each_database("default", "postgres", "mariadb", transaction=False)
def test_lineage(alias: str) -> None:
    """What no event has caused is written without the columns for it, and keeps their defaults beside what one has."""
    caused = {"depth": 2, "parent_id": "p", "root_id": "r"}
    with CaptureQueriesContext(connections[alias]) as queries:
        insert([New(**BARE)], connections[alias])
        insert([New(**BARE), New(**BARE)], connections[alias])
        insert([New(**BARE), New(**BARE, **caused)], connections[alias])

    assert ["parent_id" in query["sql"] for query in queries] == [False, False, True]
    rows = list(deliveries(alias).order_by("pk").values_list("depth", "parent_id", "root_id"))
    assert rows == [(0, None, None)] * 4 + [(2, "p", "r")]


@each_database("default", "postgres", "mariadb", transaction=False)
def test_seconds_of_both_kinds(alias: str) -> None:
    """A receiver's debounce may be a whole number, another's none, and a third's longer than a database knows."""
    insert([New(**{**FULL, "due_in": seconds}) for seconds in (5, 0.0, None, 1e12)], connections[alias])

    due = list(deliveries(alias).order_by("pk").values_list("due_at", flat=True))

    assert (due[0] - due[1]).total_seconds() == pytest.approx(5, abs=1)
    assert due[2] is None
    assert (due[3] - due[1]).days == pytest.approx(36_500, abs=1)


def test_nothing_is_left_out() -> None:
    """Every column that may not be null is given a value, by the statement or by the table."""
    columns = [field for field in Delivery._meta.concrete_fields if not field.null and not field.primary_key]
    required = {field.column for field in columns if not field.has_db_default()}

    assert required <= {*GIVEN, *COUNTS, *MOMENTS}


@pytest.mark.django_db
def test_what_is_not_taken_names_the_receiver() -> None:
    """The database's error says whose delivery it was, and what to do."""
    with pytest.raises(Error) as caught:
        insert([New(**{**FULL, "state": None})], connections["default"])

    assert "tests.nobody" in caught.value.__notes__[0]
    assert "migrate --database=default" in caught.value.__notes__[0]
