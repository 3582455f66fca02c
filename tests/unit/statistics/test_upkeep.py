"""What relays do for the table: they note how deliveries stand, and delete what is old; no error is the relay's."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from django.db import OperationalError, connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from django_celery_signals import Relay
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.statistics import table
from django_celery_signals.statistics import upkeep as module
from django_celery_signals.statistics.table import minutes
from tests.delivering import moment, place, place_sent
from tests.parameters import each_database

MINUTE = 30_000_000
NAME = "tests.nobody"


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The minute that it is, in a relay that is none of a test's."""
    now = [MINUTE]
    monkeypatch.setattr(module, "is_testing", lambda: False)
    monkeypatch.setattr(module, "_failing", set())
    monkeypatch.setattr(table, "this_minute", lambda: now[0])
    return now


# How deliveries stand ------------------------------------------------------------------------------------------------


@each_database
def test_nothing_waits(alias: str) -> None:
    """What runs, has failed or is done does not wait, nor what is not due or waits for its turn."""
    place(alias, NAME, state=State.RUNNING, due_at=moment(60))
    place(alias, NAME, state=State.FAILED, due_at=moment(-60))
    place(alias, NAME, state=State.DONE, due_at=moment(-60))
    place(alias, NAME, due_at=moment(60))
    place(alias, NAME, due_at=None, lane="a")

    assert (0, 0) == (deliveries(alias).lag(), module.waiting(alias))


@each_database
@pytest.mark.parametrize(("due", "queues", "seconds"), [(90, [60, 70], 90), (50, [60, 70], 70), (50, [80, 70], 80)])
def test_the_oldest(alias: str, due: float, queues: list[float], seconds: float) -> None:
    """The lag is the age of the oldest delivery: of all that are due, and of what lies in any queue."""
    place(alias, NAME, due_at=moment(-due))
    place(alias, NAME, due_at=moment(-1))
    for queue, ago in zip(("", "mail"), queues, strict=True):
        place_sent(alias, NAME, queue, ago=ago)
        place_sent(alias, NAME, queue, ago=1)

    assert seconds == round(deliveries(alias).lag())
    assert 6 == module.waiting(alias)


@each_database
@pytest.mark.parametrize(("ready", "sent", "waiting"), [(3, 1, 4), (3, 3, 5), (9, 0, 5), (0, 9, 5)])
def test_counting_has_an_end(alias: str, ready: int, sent: int, waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is counted than a bound, nor looked at."""
    monkeypatch.setattr(module, "MOST_WAITING", 5)
    place(alias, NAME, ready)
    place_sent(alias, NAME, "mail", sent)

    with CaptureQueriesContext(connections[alias]) as queries:
        assert waiting == module.waiting(alias)

    assert [True, True] == ["LIMIT 5" in query["sql"] for query in queries.captured_queries]


@each_database
def test_without_time_zones(alias: str) -> None:
    """Local time or not, an age is an age."""
    place(alias, NAME, due_at=moment(-60))

    with override_settings(USE_TZ=False, TIME_ZONE="Europe/Berlin"):
        assert 60 == round(deliveries(alias).lag())


@each_database
def test_noted_once_a_minute(alias: str, now: list[int]) -> None:
    """The first relay that looks in a minute notes it, in the row of all receivers; the others do not even count."""
    place(alias, NAME, 2, due_at=moment(-60))
    table.add(alias, [("", MINUTE, [7] * 6)])

    assert not module.note(alias)
    place(alias, NAME, due_at=moment(-90))
    with CaptureQueriesContext(connections[alias]) as queries:
        module.note(alias)
    assert 1 == len(queries)
    now[0] += 1
    module.note(alias)

    found = minutes(alias).order_by("minute").values_list("receiver", "minute", "waiting", "sent", "lag")
    assert [("", MINUTE, 2, 7, 60), ("", MINUTE + 1, 3, 0, 90)] == [(*row[:-1], round(row[-1])) for row in found]


# What is old ---------------------------------------------------------------------------------------------------------


@each_database
@pytest.mark.parametrize(("days", "kept"), [(1, 24 * 60), (0.5, 12 * 60), (0, 0)])
def test_old_minutes(alias: str, days: float, kept: int) -> None:
    """What is older than ``STATISTICS_DAYS`` is deleted; with 0 all but the minute that it is."""
    table.add(alias, [("", MINUTE - age, [1] * 6) for age in {0, kept, kept + 1, kept + 5000}])

    with override_settings(DJANGO_CELERY_SIGNALS={"STATISTICS_DAYS": days}):
        assert not module.purge(alias)

    assert {MINUTE, MINUTE - kept} == set(minutes(alias).values_list("minute", flat=True))


@pytest.mark.django_db(transaction=True)
def test_very_many_old_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many some are deleted at a time."""
    monkeypatch.setattr(table, "STEP", 2)
    table.add("default", [("", minute, [1] * 6) for minute in range(5)])

    assert [True, True, False] == [module.purge("default") for _ in range(3)]
    assert 0 == minutes("default").count()


# In a relay ----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_relay_does_so(celery_app: Celery) -> None:
    """A relay does both in each of its databases."""
    table.add("default", [("", 5, [1] * 6)])

    Relay(app=celery_app, databases=["default"]).once()

    assert [("", MINUTE)] == list(minutes("default").values_list("receiver", "minute"))


@pytest.mark.django_db(transaction=True)
def test_not_in_tests(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that a test runs leaves the table alone, and has no query for it."""
    monkeypatch.undo()

    with CaptureQueriesContext(connections["default"]) as queries:
        Relay(app=celery_app, databases=["default"]).once()

    assert queries.captured_queries
    assert [] == [
        query for query in queries.captured_queries if minutes("default").model._meta.db_table in query["sql"]
    ]


@each_database
def test_errors(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without the table a relay logs once that figures are neither noted nor purged, and does the rest."""
    connection, model = connections[alias], minutes(alias).model
    with connection.schema_editor() as editor:
        editor.delete_model(model)
    try:
        for _ in range(2):
            assert not module.note(alias)
            assert not module.purge(alias)
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(model)

    assert deliveries(alias).count() == 0
    assert 1 == caplog.text.count(f"Figures of each minute cannot be noted in {alias!r} for now: ")
    assert 1 == caplog.text.count(f"Figures of each minute cannot be purged in {alias!r} for now: ")


@pytest.mark.django_db(transaction=True)
def test_errors_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The next time that it fails it is logged anew."""

    def fail(*_: Any) -> bool:
        raise OperationalError("away")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(table, "purge", fail)
            module.purge("default")
        module.purge("default")

    assert 2 == caplog.text.count("cannot be purged in 'default' for now: away")
