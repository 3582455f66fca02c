"""When a failed run is tried again: the task's own words first, else growing pauses for about two hours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, shared_task

from django_celery_signals import ReceiverTask, policy
from django_celery_signals.policy import LONGEST_PAUSE, LONGEST_WAIT, MOST_RETRIES
from tests.making import KINDS, Tasks
from tests.receiving import ignore


@pytest.fixture
def at_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance always says the most."""
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: high)


# How often ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_receiver_that_says_nothing(kind: str, tasks: Tasks) -> None:
    """A task without a word about retries is tried again twenty times, however it was made."""
    task = getattr(tasks, kind)()

    assert (MOST_RETRIES, False) == (policy.most_retries(task), policy.has_policy(task))


@pytest.mark.parametrize("limit", [0, 1, 3, 50, None])
def test_a_receiver_that_says_how_often(limit: int | None, tasks: Tasks) -> None:
    """``max_retries`` is the limit, also where it is the number that Celery has by default; None is no limit."""
    assert limit == policy.most_retries(tasks.shared(max_retries=limit))


@pytest.mark.parametrize("limit", [3, None])
def test_a_class_that_says_how_often(limit: int | None, tasks: Tasks, celery_app: Celery) -> None:
    """A project's own base class may say it for its tasks."""

    class Patient(ReceiverTask):
        abstract = True
        max_retries = limit

    task = celery_app.task(base=Patient, name=tasks.name())(ignore)

    assert limit == policy.most_retries(task)


def test_an_instance_that_says_how_often(tasks: Tasks) -> None:
    """An attribute that somebody set on the task is said as well."""
    task = tasks.shared()
    task.max_retries = 3

    assert 3 == policy.most_retries(task)


@pytest.mark.parametrize("limit", [0, 2, None])
def test_the_limit_of_the_last_retry(limit: int | None, tasks: Tasks) -> None:
    """``self.retry(max_retries=...)`` has the last word, for the running request."""
    task = tasks.shared(max_retries=7)
    task.override_max_retries = limit
    try:
        during = policy.most_retries(task)
    finally:
        del task.override_max_retries

    assert (limit, 7) == (during, policy.most_retries(task))


@pytest.mark.parametrize(
    ("limit", "attempts", "expected"), [(0, 0, True), (2, 1, False), (2, 2, True), (2, 3, True), (None, 10**6, False)]
)
def test_the_last_try(limit: int | None, attempts: int, expected: bool, tasks: Tasks) -> None:
    """A task is tried once, and as often again as its limit says."""
    assert expected is policy.is_spent(tasks.shared(max_retries=limit), attempts)


@pytest.mark.parametrize(("options", "expected"), [({"autoretry_for": (OSError,)}, True), ({}, False)])
def test_a_policy_of_its_own(options: dict[str, Any], expected: bool, tasks: Tasks) -> None:
    """A task that names the errors that are worth another try wants none for the others."""
    assert expected is policy.has_policy(tasks.shared(**options))


def test_a_task_that_is_no_receiver(tasks: Tasks) -> None:
    """Whatever has the attributes of a task can be asked."""
    task = shared_task(name=tasks.name())(ignore)

    assert (MOST_RETRIES, False) == (policy.most_retries(task), policy.has_policy(task))


# When --------------------------------------------------------------------------------------------------------------


def test_pauses_grow(at_the_longest: None) -> None:
    """Pauses are 1, 2, 4, ... seconds, up to ten minutes, for about two hours in all."""
    pauses = [policy.pause(attempts) for attempts in range(MOST_RETRIES)]

    assert [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600] == pauses[:12]
    assert 600 == LONGEST_PAUSE == policy.pause(10**9)
    assert timedelta(hours=1) < timedelta(seconds=sum(pauses)) < timedelta(hours=2.5)


def test_short_pauses_for_what_passes(at_the_longest: None) -> None:
    """Where an outage is likely to pass, a pause is a minute at the most."""
    assert [1, 32, 60, 60] == [policy.pause(attempts, LONGEST_WAIT) for attempts in (0, 5, 6, 100)]


def test_pauses_have_jitter() -> None:
    """Up to half of a pause is left to chance, so that many that failed together do not come back together."""
    pauses = {policy.pause(6) for _ in range(200)}

    assert 32 <= min(pauses) < 40
    assert 56 < max(pauses) <= 64
    assert 150 < len(pauses)


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's own clock shows another zone's time."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (None, 0.0),
        (0, 0.0),
        (-5, 0.0),
        (1.5, 1.5),
        ("2.5", 2.5),
        (NOON + timedelta(seconds=90), 90.0),
        (NOON - timedelta(seconds=90), 0.0),
        (datetime(2026, 7, 1, 12, 1), 60.0),
        (datetime(2026, 7, 1, 14, 1, tzinfo=timezone(timedelta(hours=2))), 60.0),
    ],
    ids=["none", "zero", "negative", "seconds", "text", "later", "earlier", "naive", "zone"],
)
def test_the_seconds_until(when: Any, expected: float, in_tokyo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery says when as a number of seconds or a moment, in UTC where it names no zone; what is over is now."""
    monkeypatch.setattr(policy, "time", SimpleNamespace(time=NOON.timestamp))

    assert expected == policy.seconds_until(when)
