"""What every run executes: open, read, complete; behind the fence, by the keys, whatever the database can return."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connections, transaction
from django.test.utils import CaptureQueriesContext

from django_celery_signals.durable import texts, working
from django_celery_signals.durable.clock import instant
from django_celery_signals.durable.deliveries import DeliveryQuerySet, State, deliveries
from django_celery_signals.durable.reference import Chunk, Reference
from django_celery_signals.durable.texts import OPENED
from tests.delivering import place
from tests.parameters import each_database

NOBODY = "tests.nobody"

each_kind = each_database("default", "postgres", "mariadb", transaction=False)


@pytest.fixture(params=[True, False], ids=["returning", "reading"])
def way(request: pytest.FixtureRequest, alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether opening returns the row, as on PostgreSQL, or it is read, as always on MariaDB, or with an old SQLite."""
    returns = request.param and alias != "mariadb"
    found = texts._texts(connections[alias], returns)
    assert returns == found.returns == ("RETURNING" in found.open)
    monkeypatch.setattr(working, "texts_for", lambda connection: found)


def placed(alias: str, **columns: Any) -> Any:
    place(alias, NOBODY, traceback="why", options={"priority": 3}, **columns)
    return deliveries(alias).latest("pk")


def reference_to(row: Any, **changes: Any) -> Reference:
    known = {"alias": row._state.db, "id": row.pk, "token": row.token, "receiver": row.receiver}
    return Reference(**{**known, **changes})


def columns_of(row: Any) -> dict[str, Any]:
    return {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}


def known_of(row: Any) -> list[Any]:
    """Return what a worker must know of a row."""
    return [getattr(row, name if name != "id" else "pk") for name in OPENED]


@pytest.mark.usefixtures("way")
@each_kind
@pytest.mark.parametrize("state", [State.READY, State.SENT])
def test_open(alias: str, state: State) -> None:
    """What is opened is as the database has it then, the payload as well; other rows stay as they are."""
    before, other = placed(alias, state=state, claim=7, sends=2), placed(alias)

    row = deliveries(alias).open(reference_to(before), 60)

    assert row is not None
    kept = columns_of(deliveries(alias).get(pk=before.pk))
    assert known_of(deliveries(alias).get(pk=before.pk)) == known_of(row)
    changed = {"state": State.RUNNING, "token": before.token + 1, "claim": None, "sends": 0, "due_at": row.due_at}
    assert {**columns_of(before), **changed} == kept
    assert 58 < (row.due_at - datetime.now(UTC)).total_seconds() < 62
    assert columns_of(other) == columns_of(deliveries(alias).get(pk=other.pk))


@pytest.mark.usefixtures("way")
@each_kind
@pytest.mark.parametrize(
    ("columns", "changes"),
    [
        ({"state": State.RUNNING}, {}),
        ({"state": State.FAILED}, {}),
        ({"state": State.DONE}, {}),
        ({}, {"token": 7}),
        ({}, {"receiver": "tests.somebody"}),
        ({}, {"id": 2**63 - 1}),
    ],
    ids=str,
)
def test_what_is_not_opened(alias: str, columns: dict[str, Any], changes: dict[str, Any]) -> None:
    """What is in other hands, done, or somebody else's is left as it is."""
    row = placed(alias, **columns)

    assert deliveries(alias).open(reference_to(row, **changes), 60) is None
    assert columns_of(row) == columns_of(deliveries(alias).get(pk=row.pk))


@pytest.mark.usefixtures("way")
@each_database("default", "postgres", "mariadb")
def test_open_without_zones(alias: str, settings: Any) -> None:
    """Without ``USE_TZ`` a lease begins by the database's clock as well."""
    row = placed(alias)
    connections[alias].close()
    settings.USE_TZ, settings.TIME_ZONE = False, "America/New_York"
    try:
        opened = deliveries(alias).open(reference_to(row), 60)
        assert opened is not None
        until = instant(opened.due_at, connections[alias]).replace(tzinfo=UTC)
    finally:
        connections[alias].close()

    assert opened.due_at.tzinfo is None
    assert abs(until - datetime.now(UTC) - timedelta(seconds=60)) < timedelta(seconds=2)


@each_database("default", "postgres", "mariadb", transaction=False)
def test_who_returns(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old SQLite returns as little from an update as MariaDB does; the others return the row."""
    assert (alias != "mariadb") == texts.texts_for(connections[alias]).returns

    monkeypatch.setattr(connections["default"].features, "can_return_columns_from_insert", False, raising=False)
    assert (alias == "postgres") == texts.texts_for(connections[alias]).returns


# Several together ----------------------------------------------------------------------------------------------------


def chunk_to(*rows: Any, **changes: Any) -> Chunk:
    known = {"alias": rows[0]._state.db, "rows": [(row.pk, row.token) for row in rows], "receiver": rows[0].receiver}
    return Chunk(**{**known, **changes})


@pytest.mark.usefixtures("way")
@each_kind
def test_open_together(alias: str) -> None:
    """All are opened in one statement, the oldest first, and say that they run with others; other rows stay."""
    states = [State.READY, State.SENT, State.SENT]
    before, other = [placed(alias, state=state, sends=2) for state in states], placed(alias)

    rows = deliveries(alias).open_together(chunk_to(*reversed(before)), 60)

    kept = [deliveries(alias).get(pk=row.pk) for row in before]
    for row, now, old in zip(rows, kept, before, strict=True):
        assert known_of(row) == known_of(now)
        changed = {"state": State.RUNNING, "token": old.token + 1, "claim": now.claim, "sends": 0, "due_at": row.due_at}
        assert {**columns_of(old), **changed} == columns_of(now)
        assert 58 < (row.due_at - datetime.now(UTC)).total_seconds() < 62
    assert (1, True) == (len({row.claim for row in kept}), kept[0].claim is not None)
    assert columns_of(other) == columns_of(deliveries(alias).get(pk=other.pk))
    assert [] == deliveries(alias).open_together(chunk_to(*before), 60)


@pytest.mark.usefixtures("way")
@each_kind
@pytest.mark.parametrize(
    ("columns", "changes"),
    [
        ({"state": State.RUNNING}, {}),
        ({"state": State.FAILED}, {}),
        ({"state": State.DONE}, {}),
        ({"token": 7}, {}),
        ({"receiver": "tests.somebody"}, {}),
        ({}, {"receiver": "tests.somebody"}),
    ],
    ids=str,
)
def test_what_is_not_opened_together(alias: str, columns: dict[str, Any], changes: dict[str, Any]) -> None:
    """One that is in other hands, done, or somebody else's is left as it is, and keeps none of the others back."""
    first, second = placed(alias), placed(alias)
    chunk = chunk_to(first, second, **changes)
    deliveries(alias).filter(pk=second.pk).update(**columns)
    left = columns_of(deliveries(alias).get(pk=second.pk))

    opened = deliveries(alias).open_together(chunk, 60)

    assert ([] if changes else [first.pk]) == [row.pk for row in opened]
    assert left == columns_of(deliveries(alias).get(pk=second.pk))


@pytest.mark.usefixtures("way")
@each_kind
def test_open_together_what_another_message_has_opened(alias: str) -> None:
    """What is in two messages, for it was published twice, is opened by one of them, be the other of several or not."""
    first, second, third, fourth = (placed(alias) for _ in range(4))
    copy, alone = chunk_to(first, second, third), reference_to(first)

    assert [first.pk, fourth.pk] == [row.pk for row in deliveries(alias).open_together(chunk_to(first, fourth), 60)]
    assert deliveries(alias).open(alone, 60) is None
    assert deliveries(alias).open(reference_to(third), 60) is not None
    assert [second.pk] == [row.pk for row in deliveries(alias).open_together(copy, 60)]


@each_kind
def test_complete_together(alias: str) -> None:
    """Whoever holds deliveries can delete them together, and nobody else's; it is told how many that were."""
    rows = [placed(alias, state=State.RUNNING) for _ in range(5)]
    for row, columns in zip(rows[3:], ({"token": 7}, {"state": State.READY}), strict=True):
        deliveries(alias).filter(pk=row.pk).update(**columns)
    mine = rows[1:]

    assert 2 == deliveries(alias).complete_together([row.pk for row in mine], [row.token for row in mine])
    assert [rows[0].pk, rows[3].pk, rows[4].pk] == list(deliveries(alias).order_by("pk").values_list("pk", flat=True))


@each_database("mariadb")
def test_found_together_by_their_keys(alias: str) -> None:
    """MariaDB is told to find several by their keys, too."""
    before = [placed(alias), placed(alias)]
    with CaptureQueriesContext(connections[alias]) as queries:
        rows = deliveries(alias).open_together(chunk_to(*before), 60)
        assert 2 == deliveries(alias).complete_together([row.pk for row in rows], [row.token for row in rows])

    hints = [query["sql"].count(" FORCE INDEX (`PRIMARY`)") for query in queries if "delivery" in query["sql"]]
    assert [1, 0, 1] == hints  # the second reads, and locks nothing


@each_kind
@pytest.mark.parametrize("columns", [{"token": 7}, {"state": State.READY}, {"state": State.FAILED}], ids=str)
def test_complete(alias: str, columns: dict[str, Any]) -> None:
    """Whoever holds a delivery can delete it, and nobody else."""
    mine, other = (placed(alias, state=State.RUNNING) for _ in range(2))
    deliveries(alias).filter(pk=other.pk).update(**columns)

    assert (1, 0) == tuple(deliveries(alias).complete(row.pk, row.token) for row in (mine, other))
    assert [other.pk] == list(deliveries(alias).values_list("pk", flat=True))


@each_database("mariadb")
def test_found_by_their_keys(alias: str) -> None:
    """MariaDB is told to find by its key what it is to change, once in each statement."""
    row = placed(alias)
    with CaptureQueriesContext(connections[alias]) as queries:
        opened = deliveries(alias).open(reference_to(row), 60)
        assert opened is not None
        assert 1 == deliveries(alias).complete(opened.pk, opened.token)

    hints = [query["sql"].count(" FORCE INDEX (`PRIMARY`)") for query in queries if "delivery" in query["sql"]]
    assert [1, 0, 1] == hints  # the second reads, and locks nothing


# What was opened and cannot be read ----------------------------------------------------------------------------------


@each_database("mariadb")
@pytest.mark.parametrize("columns", [{"token": 7}, {"state": State.READY}], ids=str)
def test_taken_before_it_was_read(alias: str, columns: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What another has by the time that it is read is not run."""
    row, execute = placed(alias), DeliveryQuerySet._execute

    def open_and_lose(self: Any, *args: Any) -> int:
        opened = execute(self, *args)
        deliveries(alias).update(**columns)
        return opened

    monkeypatch.setattr(DeliveryQuerySet, "_execute", open_and_lose)
    assert deliveries(alias).open(reference_to(row), 60) is None


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that goes away before it is read."""

    def raw(*args: Any) -> Any:
        raise OperationalError("away")

    monkeypatch.setattr(DeliveryQuerySet, "raw", raw)


@pytest.mark.usefixtures("unreadable")
@each_database("mariadb")
def test_given_back_when_it_cannot_be_read(alias: str) -> None:
    """If what was opened cannot be read, nobody runs it: it is published again, and that counts as no crash."""
    row = placed(alias)

    with pytest.raises(OperationalError, match="away"):
        deliveries(alias).open(reference_to(row), 60)

    found = deliveries(alias).get(pk=row.pk)
    assert (State.READY, 0, 0, 1) == (found.state, found.attempts, found.crashes, found.reruns)
    assert found.due_at <= datetime.now(UTC) + timedelta(seconds=1)


@each_database("mariadb")
def test_several_given_back_when_they_cannot_be_read(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does anybody run several that cannot be read; but what another message has opened stays with that one."""

    def raw(*args: Any) -> Any:
        raise OperationalError("away")

    first, second, third = (placed(alias) for _ in range(3))
    copy = chunk_to(first, second, third)
    deliveries(alias).open_together(chunk_to(first), 60)
    monkeypatch.setattr(DeliveryQuerySet, "raw", raw)

    with pytest.raises(OperationalError, match="away"):
        deliveries(alias).open_together(copy, 60)

    columns = ["state", "attempts", "crashes", "reruns"]
    found = list(deliveries(alias).order_by("pk").values_list(*columns))
    assert [(State.RUNNING, 0, 0, 0), (State.READY, 0, 0, 1), (State.READY, 0, 0, 1)] == found


@pytest.mark.usefixtures("unreadable")
@each_database("mariadb")
def test_nothing_is_given_back_in_a_transaction(alias: str) -> None:
    """Within a transaction its own end decides what becomes of the opening."""
    row = placed(alias)

    with pytest.raises(OperationalError, match="away"), transaction.atomic(using=alias):
        deliveries(alias).open(reference_to(row), 60)

    assert columns_of(row) == columns_of(deliveries(alias).get(pk=row.pk))


@each_database("default", "postgres", "mariadb")
def test_error_in_a_transaction(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that fails takes the transaction around it along, as every other one of Django's does."""

    def fail(self: Any, *args: Any) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")

    monkeypatch.setattr(DeliveryQuerySet, "_execute", fail)
    with transaction.atomic(using=alias):
        with pytest.raises(DatabaseError):
            deliveries(alias).complete(1, 1)
        assert connections[alias].needs_rollback
        transaction.set_rollback(True, using=alias)
