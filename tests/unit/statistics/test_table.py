"""The table of minutes: what is added to it, by whomever and at the same time, and what is deleted."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import IntegrityError, connections
from django.db.models.signals import post_delete, post_save

from django_celery_signals.statistics import table
from django_celery_signals.statistics.table import add, has_gauges, minutes, note, purge
from tests.parameters import each_database
from tests.receiving import hearing

FIGURES = (1, 2, 3, 4, 5, 0.5)


def rows(alias: str) -> list[tuple[Any, ...]]:
    return list(minutes(alias).order_by("receiver", "minute").values_list("receiver", "minute", *table.SUMS))


@each_database
def test_figures_add_up(alias: str) -> None:
    """What is added to a minute that a receiver has already is added to its figures, and to nobody else's."""
    add(alias, [("shop.a", 7, FIGURES), ("shop.a", 8, FIGURES)])
    add(alias, [("shop.b", 7, FIGURES), ("shop.a", 7, FIGURES)])

    twice = tuple(2 * figure for figure in FIGURES)
    assert [("shop.a", 7, *twice), ("shop.a", 8, *FIGURES), ("shop.b", 7, *FIGURES)] == rows(alias)


@each_database
def test_gauges_are_the_last(alias: str) -> None:
    """How deliveries stand does not add up, and figures that come later leave it alone, as it leaves them."""
    add(alias, [("", 7, FIGURES)])
    assert not has_gauges(alias, 7)
    note(alias, 7, 2.5, 10)
    note(alias, 7, 1.5, 0)
    add(alias, [("", 7, FIGURES)])

    assert (has_gauges(alias, 7), has_gauges(alias, 8)) == (True, False)
    assert [(1.5, 0, 2, 1.0)] == list(minutes(alias).values_list("lag", "waiting", "sent", "runtime"))


@each_database
def test_many_rows(alias: str) -> None:
    """Very many rows take several statements, and all of them come in."""
    add(alias, [(f"shop.{number}", 7, FIGURES) for number in range(2 * table.STEP + 1)])

    assert 2 * table.STEP + 1 == minutes(alias).count()


@each_database
def test_all_or_none(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one of several statements fails, nothing is added, so that all can be added again."""
    monkeypatch.setattr(table, "STEP", 1)

    with pytest.raises(IntegrityError):
        add(alias, [("shop.a", 7, FIGURES), ("shop.b", 7, (None, *FIGURES[1:]))])

    assert [] == rows(alias)


@each_database
def test_several_at_once(alias: str) -> None:
    """Of those who add to the same minutes at once, in whatever order, none fails, and nothing is lost."""
    errors: list[BaseException] = []
    names = [f"shop.{number}" for number in range(20)]
    begin = threading.Barrier(4)

    def flush(mine: list[str]) -> None:
        try:
            begin.wait(20)
            for _ in range(10):
                add(alias, [(name, minute, FIGURES) for name in mine for minute in (7, 8)])
        except BaseException as error:
            errors.append(error)
        finally:
            connections[alias].close()

    threads = [threading.Thread(target=flush, args=(names[:: (-1) ** number],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert [] == errors
    assert {tuple(40 * figure for figure in FIGURES)} == {row[2:] for row in rows(alias)}
    assert 40 == len(rows(alias))


@each_database
def test_no_signal_is_sent(alias: str) -> None:
    """A receiver of every sender's would be told of itself."""
    with hearing(post_save) as saved, hearing(post_delete) as deleted:
        add(alias, [("shop.a", 7, FIGURES)])
        purge(alias, 8)

    assert ([], []) == (saved, deleted)


@each_database
def test_old_minutes_are_deleted(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is old goes in small steps, the oldest first; a minute goes wholly, and what is not old stays."""
    monkeypatch.setattr(table, "STEP", 4)
    add(alias, [(name, minute, FIGURES) for name in ("", "shop.a", "shop.b") for minute in (5, 6, 7, 8)])

    steps = []
    for _ in range(3):
        more = purge(alias, 8)
        steps.append((more, sorted({row[1] for row in rows(alias)})))

    assert [(True, [7, 8]), (False, [8]), (False, [8])] == steps
    assert 3 == minutes(alias).count()


def test_words() -> None:
    """A minute is shown with its receiver, or as that of all."""
    model = minutes("default").model

    assert "shop.a, minute 7" == str(model(receiver="shop.a", minute=7))
    assert "all receivers, minute 7" == str(model(receiver="", minute=7))
