"""Writing what a process has counted: by a thread, on connections of its own, without an error that anybody sees."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction
from django.test import override_settings

from django_celery_signals.statistics import flushing as module
from django_celery_signals.statistics.flushing import Counts, Flusher, is_testing, rows_of
from django_celery_signals.statistics.table import minutes
from tests.parameters import each_database, needs
from tests.waiting import wait_until

NAME = "django-celery-signals-statistics"


class Clock:
    """Time as the test tells it, in minutes."""

    def __init__(self) -> None:
        self.minute = 100

    def time(self) -> float:
        return self.minute * 60 + 59.9


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def flusher(counts: Counts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flusher]:
    """One that writes at once, in spite of the test."""
    monkeypatch.setattr(module, "is_testing", lambda: False)
    monkeypatch.setattr(module, "EVERY", 0.001)
    flusher = Flusher(counts)
    yield flusher
    flusher.finish()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def sent(alias: str) -> dict[tuple[str, int], int]:
    return {(row.receiver, row.minute): row.sent for row in minutes(alias)}


# In memory -----------------------------------------------------------------------------------------------------------


def test_counting(counts: Counts, clock: Clock) -> None:
    """Each minute, database and receiver has its own figures; only the first count of one says so."""
    firsts = [counts.add("default", "shop.a", 0), counts.add("default", "shop.a", 0), counts.add("other", "shop.a", 0)]
    firsts.append(counts.add("default", "shop.b", 1, 0.5))
    counts.add("default", "shop.b", 1, 0.25)
    clock.minute += 1
    firsts.append(counts.add("default", "shop.a", 4))

    assert [True, False, True, True, True] == firsts
    assert {
        ("default", "shop.a", 100): [2, 0, 0, 0, 0, 0],
        ("other", "shop.a", 100): [1, 0, 0, 0, 0, 0],
        ("default", "shop.b", 100): [0, 2, 0, 0, 0, 0.75],
        ("default", "shop.a", 101): [0, 0, 0, 0, 1, 0],
    } == counts.take()
    assert {} == counts.take()


def test_what_is_kept_is_bounded(counts: Counts, clock: Clock) -> None:
    """While nobody takes the counts, or no database does, those of the last minutes are kept."""
    for _ in range(module.MOST_MINUTES + 30):
        clock.minute += 1
        counts.add("default", "shop.a", 0)
    taken = counts.take()
    assert module.MOST_MINUTES == len(taken)

    counts.add("default", "shop.a", 0)
    clock.minute += 10
    counts.add("default", "shop.a", 0)
    counts.put_back(taken)
    kept = counts.take()

    assert {clock.minute - minute for minute in (0, *range(10, module.MOST_MINUTES))} == {key[2] for key in kept}
    assert 2 == kept["default", "shop.a", clock.minute - 10][0]


def test_rows() -> None:
    """In each minute there is a row of all receivers together, and names are as long as the table takes them."""
    counts = Counts()
    counts.add("default", "a" * 300, 0)
    counts.add("default", "shop.b", 1, 0.5)

    assert {
        ("", 100, (1, 1, 0, 0, 0, 0.5)),
        ("a" * 255, 100, (1, 0, 0, 0, 0, 0)),
        ("shop.b", 100, (0, 1, 0, 0, 0, 0.5)),
    } == {(receiver, minute, tuple(figures)) for receiver, minute, figures in rows_of(counts.take())}


# The thread ----------------------------------------------------------------------------------------------------------


@each_database
def test_writes_in_a_thread(alias: str, flusher: Flusher) -> None:
    """What is counted is soon in the table of its database, also when the counting thread's transaction never ends."""
    is_alone = connections[alias].vendor == "sqlite"  # where nobody else can write meanwhile
    with nullcontext() if is_alone else transaction.atomic(using=alias):
        count(flusher, alias)
        wait_until(lambda: {("", 100): 1, ("shop.a", 100): 1} == sent(alias), what="the figures")

    assert [True] == [thread.daemon for thread in threads()]


def count(flusher: Flusher, alias: str, receiver: str = "shop.a") -> None:
    if flusher.counts.add(alias, receiver, 0):
        flusher.wake()


@pytest.mark.django_db(transaction=True)
def test_one_thread(flusher: Flusher, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one thread, it keeps no connection, and it sleeps while there is nothing to write."""
    monkeypatch.setattr(module, "_connections", [])
    for number in range(3):
        count(flusher, "default", f"shop.{number}")
        wait_until(lambda: not flusher._counted.is_set() and not flusher.counts._figures, what="the writing")
    wait_until(lambda: 4 == len(sent("default")), what="the figures")

    assert 1 == len(threads())
    (connection,) = module._connections
    wait_until(lambda: connection.connection is None, what="the end of the connection")


@pytest.mark.django_db(transaction=True)
def test_the_end_of_a_process(flusher: Flusher, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is written at the end, at once; without a thread there is nothing to wait for."""
    monkeypatch.setattr(module, "EVERY", 600)
    flusher.finish()
    flusher = Flusher(flusher.counts)
    count(flusher, "default")
    wait_until(lambda: not flusher._counted.is_set(), what="a thread that sleeps")

    flusher.finish()

    assert {("", 100): 1, ("shop.a", 100): 1} == sent("default")
    assert [] == threads()


def test_no_further_thread(flusher: Flusher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that can start no thread counts, and tries again with the next minute."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        count(flusher, "default")
    assert flusher._thread is None
    assert flusher.counts._figures


def test_in_tests(counts: Counts) -> None:
    """While Django runs tests there is no thread, and nothing is kept."""
    assert is_testing()
    count(Flusher(counts), "default")

    assert ([], {}) == (threads(), counts.take())


def test_outside_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's helpers for tests may be imported without tests."""
    monkeypatch.delattr("django.test.utils._TestState.saved_data")

    assert not is_testing()


# What goes wrong -----------------------------------------------------------------------------------------------------


def fail(monkeypatch: pytest.MonkeyPatch, *aliases: str) -> list[str]:
    """Let databases be away; return for which it was tried."""
    tried: list[str] = []
    add = module.add

    def try_to_add(using: str, rows: Any) -> None:
        tried.append(using)
        if using in aliases:
            raise OperationalError(f"{using} is away")
        add(using, rows)

    monkeypatch.setattr(module, "add", try_to_add)
    return tried


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_database_that_is_away(
    flusher: Flusher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, others are written to, and what it did not take it is given later, with what came since."""
    with monkeypatch.context() as patch:
        tried = fail(patch, "default")
        for alias in ("default", "other"):
            count(flusher, alias)
        wait_until(lambda: tried.count("default") > 2, what="several tries")
        count(flusher, "default")
    wait_until(lambda: sent("default"), what="the figures")
    wait_until(lambda: not flusher.counts._figures, what="all figures")

    assert {("", 100): 2, ("shop.a", 100): 2} == sent("default")
    assert {("", 100): 1, ("shop.a", 100): 1} == sent("other")
    assert 1 == caplog.text.count("Figures of each minute cannot be written to 'default' for now: default is away")


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_again(
    counts: Counts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next outage is logged anew."""
    flusher = Flusher(counts)
    for _ in range(2):
        with monkeypatch.context() as patch:
            fail(patch, "default")
            for _ in range(2):
                counts.add("default", "shop.a", 0)
                flusher.flush()
        flusher.flush()

    assert 2 == caplog.text.count("cannot be written")
    assert 4 == sent("default")["", 100]


@each_database
def test_a_table_that_is_missing(alias: str, counts: Counts, caplog: pytest.LogCaptureFixture) -> None:
    """Before the migration, the process goes on, and what it counts is written after it."""
    connection, model = connections[alias], minutes(alias).model
    with connection.schema_editor() as editor:
        editor.delete_model(model)
    try:
        counts.add(alias, "shop.a", 0)
        Flusher(counts).flush()
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(model)
    assert f"Figures of each minute cannot be written to {alias!r} for now: " in caplog.text

    Flusher(counts).flush()

    assert {("", 100): 1, ("shop.a", 100): 1} == sent(alias)


class Elsewhere:
    """A router by which only one database keeps deliveries."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return db == "other" if app_label == "django_celery_signals" else None


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_databases_that_keep_no_deliveries(counts: Counts, caplog: pytest.LogCaptureFixture) -> None:
    """What belongs to a database without deliveries, or to none that there is, is dropped without a word."""
    for alias in ("default", "other", "nowhere"):
        counts.add(alias, "shop.a", 0)

    with override_settings(DATABASE_ROUTERS=[Elsewhere()]):
        Flusher(counts).flush()

    assert ({}, {("", 100): 1, ("shop.a", 100): 1}) == (sent("default"), sent("other"))
    assert ("", {}) == (caplog.text, counts.take())


class Broken:
    """A router that raises."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        raise LookupError("no such database")


def test_a_project_that_raises(counts: Counts, caplog: pytest.LogCaptureFixture) -> None:
    """An error of the project's, as of a router, is logged, and ends no thread."""
    counts.add("default", "shop.a", 0)

    with override_settings(DATABASE_ROUTERS=[Broken()]):
        Flusher(counts).flush()

    assert "The figures of the last minutes are lost." in caplog.text
    assert "no such database" in caplog.text


@needs("postgres")
@pytest.mark.django_db(transaction=True, databases=["default", "postgres"])
def test_only_sqlite_keeps_a_fork_waiting(flusher: Flusher, monkeypatch: pytest.MonkeyPatch) -> None:
    """While SQLite is written to, whose locks a child would inherit, no child is forked; others' clients have none."""
    busy: dict[str, bool] = {}
    monkeypatch.setattr(module, "add", lambda using, rows: busy.update({using: flusher.busy.locked()}))
    for alias in ("default", "postgres"):
        count(flusher, alias)
    wait_until(lambda: 2 == len(busy), what="both")

    assert {"default": True, "postgres": False} == busy
