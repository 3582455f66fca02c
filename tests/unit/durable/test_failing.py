"""Giving a delivery up: the row says why, hooks write with it, listeners are told; all of it once, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from django.db import IntegrityError

from django_celery_signals import Event
from django_celery_signals.durable import failing
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.failing import give_up
from django_celery_signals.signals import delivery_failed
from django_celery_signals.wire import parse
from tests.delivering import moment, place, seconds_left, states
from tests.elsewhere import elsewhere
from tests.holding import bell, send, take_over, work
from tests.parameters import each_database
from tests.receiving import Receiving, hearing
from tests.shop.models import Order, Tag

each_kind = each_database("default", "postgres", "mariadb")
each_alone = each_database("default", "postgres", "mariadb", transaction=False)

ERROR = ValueError("no stock")
NOBODY = "tests.nobody"


@pytest.fixture(autouse=True)
def hooks() -> Iterator[None]:
    """The hooks of one test, which end with it."""
    saved = dict(failing.hooks)
    yield
    failing.hooks.clear()
    failing.hooks.update(saved)


def hooked(function: Callable[..., Any], receiver: str = NOBODY) -> None:
    failing.hooks[receiver].append(function)


def running(alias: str) -> Any:
    """Write a delivery that is running, and return it."""
    place(alias, NOBODY, state=State.RUNNING, due_at=moment(60), claim=7, attempts=2, signal="shop.signals:bell")
    return deliveries(alias).latest("pk")


def given_up(alias: str, row: Any, event: Event | None = None, **options: Any) -> bool:
    return give_up(deliveries(alias).filter(pk=row.pk, state=State.RUNNING), row, ERROR, event, **options)


# The row -------------------------------------------------------------------------------------------------------------


@each_alone
def test_the_row(alias: str) -> None:
    """What is given up stays, with its payload for thirty days, its error, and the time of its end."""
    row = running(alias)

    assert given_up(alias, row, crashes=5)

    after = deliveries(alias).get()
    assert (State.FAILED, None, 2, 5) == (after.state, after.claim, after.attempts, after.crashes)
    assert ("ValueError", "no stock", f"ValueError in {NOBODY}") == (
        after.error_type,
        after.error_message,
        after.fingerprint,
    )
    assert ("{}", {30 * 86_400}) == (after.payload, seconds_left(alias))
    assert abs((after.finished_at - moment(0)).total_seconds()) < 10


@each_alone
def test_how_long_payloads_are_kept(alias: str, settings: Any) -> None:
    """For how long is a setting, and for ever is no error."""
    settings.DJANGO_CELERY_SIGNALS = {"FAILED_PAYLOAD_DAYS": 0.5}
    given_up(alias, running(alias))
    assert {43_200} == seconds_left(alias)

    settings.DJANGO_CELERY_SIGNALS = {"FAILED_PAYLOAD_DAYS": 1e300}
    row = running(alias)
    given_up(alias, row)
    assert 1 == deliveries(alias).filter(pk=row.pk, due_at__gt=In(90 * 365 * 86_400)).count()


@each_alone
def test_what_others_have(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """What somebody else has by now is not given up, and nobody is told anything."""
    called: list[str] = []
    hooked(lambda: called.append("hook"))
    row = running(alias)
    deliveries(alias).update(state=State.READY)

    with hearing(delivery_failed) as heard:
        assert not given_up(alias, row)

    assert ({"ready": 1}, [], [], []) == (states(alias), called, heard, caplog.records)


@each_alone
def test_who_is_told(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log and the listeners of ``delivery_failed`` are told what was sent, for whom, where its row is, and why."""
    row = running(alias)

    with hearing(delivery_failed) as heard:
        given_up(alias, row)

    (told,) = heard
    facts = {"event_id": row.event_id, "signal_name": "shop.signals:bell", "summary": "bell", "error": ERROR}
    assert {"receiver": NOBODY, "using": alias, "delivery_id": row.pk, **facts} == told
    (record,) = caplog.records
    text = f"Delivery failed: {NOBODY} will not get 'bell' (delivery {row.pk} of '{alias}'): ValueError: no stock"
    assert (logging.ERROR, text) == (record.levelno, record.message)


@each_kind
def test_when_they_are_told(alias: str) -> None:
    """They are told after the commit, when everyone can see what has become of the row."""
    row, seen = running(alias), []

    def listen(**_: Any) -> None:
        seen.append(elsewhere(lambda: states(alias)))

    delivery_failed.connect(listen)
    try:
        given_up(alias, row)
    finally:
        delivery_failed.disconnect(listen)

    assert [{"failed": 1}] == seen


@each_alone
def test_listener_that_fails(alias: str) -> None:
    """A listener that raises changes nothing."""

    def listen(**_: Any) -> None:
        raise RuntimeError

    delivery_failed.connect(listen)
    try:
        assert given_up(alias, running(alias))
    finally:
        delivery_failed.disconnect(listen)
    assert {"failed": 1} == states(alias)


# Hooks ---------------------------------------------------------------------------------------------------------------


@each_kind
def test_hook(alias: str) -> None:
    """A hook writes in the transaction that notes the failure: others see both, or none."""
    looks: list[Any] = []

    def hook(event: Event | None, error: Exception) -> None:
        Tag.objects.using(alias).create(name=str(error))
        looks.append((event, elsewhere(lambda: (states(alias), Tag.objects.using(alias).count()))))

    hooked(hook)
    given_up(alias, running(alias))

    assert [(None, ({"running": 1}, 0))] == looks
    assert ({"failed": 1}, "no stock") == (states(alias), Tag.objects.using(alias).get().name)


@each_alone
def test_hooks_take_what_they_name(alias: str) -> None:
    """Hooks are called in their order, and each is given what it names."""
    called: list[Any] = []

    def of_error(error: Exception) -> None:
        called.append(error)

    def of_all(**facts: Any) -> None:
        called.append(sorted(facts))

    for function in (lambda: called.append("none"), of_error, of_all):
        hooked(function)
    hooked(lambda: called.append("another's"), "tests.another")
    given_up(alias, running(alias))

    assert ["none", ERROR, ["error", "event"]] == called


@each_alone
def test_hooks_of_a_renamed_receiver(alias: str) -> None:
    """A delivery that was sent to a former name calls the hooks of the receiver as it is called now (H75)."""
    called: list[str] = []
    hooked(lambda: called.append("now"), "tests.somebody")
    hooked(lambda: called.append("before"))

    given_up(alias, running(alias), task=SimpleNamespace(name="tests.somebody", blocks_key=False))
    given_up(alias, running(alias))

    assert ["now", "before"] == called


@each_alone
def test_hook_that_fails(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """A hook that raises is logged; what it has written is rolled back, and everything else stays."""

    def bad() -> None:
        Tag.objects.using(alias).create(name="bad")
        raise RuntimeError("hook")

    hooked(bad)
    hooked(lambda: Tag.objects.using(alias).create(name="good"))

    assert given_up(alias, running(alias))
    assert ({"failed": 1}, ["good"]) == (states(alias), list(Tag.objects.using(alias).values_list("name", flat=True)))
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.message.endswith("test_hook_that_fails.<locals>.bad raised; the delivery is failed all the same.")


@each_database("default", "postgres")
def test_hook_whose_work_fails_at_the_commit(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a hook writes and the database refuses only at the commit is left out; the delivery is failed, and told."""
    hooked(lambda: Order.objects.using(alias).create(customer_id=123_456))

    with hearing(delivery_failed) as heard:
        assert given_up(alias, running(alias))

    assert ({"failed": 1}, 1, 0) == (states(alias), len(heard), Order.objects.using(alias).count())
    assert 1 == len([record for record in caplog.records if "cannot be" in record.message])


@each_database("default", "postgres")
def test_taken_by_another_before_the_commit_failed(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If somebody else has the row by then, it is not given up after all, and nobody is told that it is."""
    original = failing._fail

    def fail(*args: Any, **facts: Any) -> bool:
        try:
            return original(*args, **facts)
        except IntegrityError:
            deliveries(alias).update(state=State.READY)
            raise

    monkeypatch.setattr(failing, "_fail", fail)
    hooked(lambda: Order.objects.using(alias).create(customer_id=123_456))
    row = running(alias)

    with hearing(delivery_failed) as heard:
        assert not given_up(alias, row)
    assert ({"ready": 1}, []) == (states(alias), heard)


# From the worker -----------------------------------------------------------------------------------------------------


@each_kind
def test_on_failed(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """``@task.on_failed`` decorates what is called when the receiver has failed for good, with event and error."""
    told: list[Any] = []

    def act() -> None:
        Tag.objects.using(alias).create(name="effect")
        raise ERROR

    task = receiving(bell, act, guarantee="durable", max_retries=1)

    @task.on_failed
    def tell(event: Event, error: Exception) -> None:
        told.append((event.receiver, event.id, error))
        Tag.objects.using(alias).create(name="compensation")

    send(alias)
    row = deliveries(alias).get()
    assert "RETRY" == work(celery_app, alias).state
    assert [] == told

    assert "FAILURE" == work(celery_app, alias).state
    assert [(task.name, row.event_id, ERROR)] == told
    assert ["compensation"] == list(Tag.objects.using(alias).values_list("name", flat=True))
    assert parse(deliveries(alias).get().payload).event.id == row.event_id


@each_kind
def test_on_failed_of_a_zombie(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A run that fails too late calls no hook: another one may succeed."""
    told: list[Any] = []

    def act() -> None:
        take_over(alias)
        raise ERROR

    task = receiving(bell, act, guarantee="durable", max_retries=0, atomic=False)
    task.on_failed(lambda: told.append("failed"))
    send(alias)

    with hearing(delivery_failed) as heard:
        assert "IGNORED" == work(celery_app, alias).state
    assert ([], [], {"running": 1}) == (told, heard, states(alias))
