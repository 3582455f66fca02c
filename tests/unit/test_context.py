"""What surrounds a sending is there again while its receiver runs; or the receiver does not run."""

from __future__ import annotations

import re
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from django.db import transaction
from django.dispatch import Signal
from django.test import override_settings
from django.utils import translation

from django_celery_signals import ContextLost, Event, Relay, context, register_context
from django_celery_signals.context import captured, is_required, of_receiver, restored
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.hold import Held
from django_celery_signals.signals import receiver_succeeded
from tests.delivering import moment, states
from tests.drain import drain
from tests.receiving import Receiving

doorbell = Signal()
tenant: ContextVar[Any] = ContextVar("tenant", default=None)
OWN = {"language": "en", "timezone": "UTC"}


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, and what it has been told of, is forgotten at its end."""
    monkeypatch.setattr(context, "_carriers", dict(context._carriers))
    monkeypatch.setattr(context, "_told", set())


@contextmanager
def inside(value: Any) -> Iterator[None]:
    """Be in a tenant for a while."""
    token = tenant.set(value)
    try:
        yield
    finally:
        tenant.reset(token)


def fail(*_: Any) -> Any:
    """Fail."""
    raise LookupError("nobody there")


@contextmanager
def fails_at_the_end(value: Any) -> Iterator[None]:
    """Fail when all is over."""
    yield
    fail()


# Registering -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "$lost", "a b", None, 5])
def test_names_that_cannot_be(name: Any) -> None:
    """A name is a word."""
    with pytest.raises(ValueError, match="must be a word such as 'tenant'"):
        register_context(name, variable=tenant)


def test_a_name_is_registered_once() -> None:
    """A second carrier of a name is refused, also of the library's own."""
    register_context("tenant", variable=tenant)

    for name in ("tenant", "language"):
        with pytest.raises(ValueError, match="the name is taken"):
            register_context(name, variable=tenant)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"capture": tenant.get},
        {"restore": inside},
        {"capture": tenant.get, "variable": tenant},
        {"restore": inside, "variable": tenant},
        {"capture": tenant.get, "restore": inside, "variable": tenant},
    ],
)
def test_half_a_carrier(given: dict[str, Any]) -> None:
    """Both functions are given, or a variable alone."""
    with pytest.raises(ValueError, match="give capture= and restore=, or variable= alone"):
        register_context("tenant", **given)


# At the sending ----------------------------------------------------------------------------------------------------


def test_captured() -> None:
    """Every carrier's value, but for those that have none; what is required is named."""
    register_context("tenant", variable=tenant, required=True)
    register_context("user", capture=lambda: {"id": 5}, restore=inside)

    register_context("request", variable=ContextVar("request"))
    assert {**OWN, "tenant": None, "$required": ["tenant"], "user": {"id": 5}} == captured()
    with inside("acme"):
        assert {**OWN, "tenant": "acme", "$required": ["tenant"], "user": {"id": 5}} == captured()


@pytest.mark.parametrize(
    "capture", [fail, object, lambda: {1, 2}, lambda: float("nan")], ids=["fails", "object", "set", "nan"]
)
@pytest.mark.parametrize("required", [False, True])
def test_what_cannot_be_captured(capture: Callable[[], Any], required: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A capture that fails, or that returns what is no JSON, breaks nothing, and is said once."""
    register_context("tenant", capture=capture, restore=inside, required=required)

    first, second = captured(), captured()

    assert {**OWN, "$lost": ["tenant"], **({"$required": ["tenant"]} if required else {})} == first == second
    assert ["The context 'tenant' could not be captured. (Said once.)"] == [one.message for one in caplog.records]


# In the worker -----------------------------------------------------------------------------------------------------


def test_restored() -> None:
    """A value is there as long as the block lasts, and then what was there before."""
    register_context("tenant", variable=tenant)

    with inside("other"), restored({"tenant": "acme"}):
        assert "acme" == tenant.get()
    with inside("other"):
        with pytest.raises(ZeroDivisionError), restored({"tenant": "acme"}):
            1 / 0  # noqa: B018
        assert "other" == tenant.get()


def test_what_is_unknown_is_left_out() -> None:
    """What another process carries, and this one does not know, changes nothing unless it is required."""
    with restored({"tenant": "acme"}):
        assert tenant.get() is None
    with (
        pytest.raises(ContextLost, match=re.escape("Call register_context('tenant', ...)")),
        restored({"tenant": "acme", "$required": ["tenant"]}),
    ):
        raise AssertionError


def test_a_receivers_error_is_its_own() -> None:
    """A carrier neither sees nor swallows what a receiver raises."""
    seen: list[Any] = []

    class Swallows(AbstractContextManager[None]):
        def __exit__(self, *error: object) -> bool:
            seen.append(error)
            return True

    register_context("tenant", capture=lambda: "acme", restore=lambda value: Swallows())

    with pytest.raises(ZeroDivisionError), restored(captured()):
        1 / 0  # noqa: B018
    assert [(None, None, None)] == seen


@pytest.mark.parametrize("restore", [fail, lambda value: None], ids=["fails", "no context manager"])
def test_what_cannot_be_restored(restore: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is not required is left out, and said once; others are restored all the same, and taken back."""
    register_context("broken", capture=lambda: 1, restore=restore)
    register_context("tenant", variable=tenant)
    with inside("acme"):
        found = captured()

    for _ in range(2):
        with restored(found):
            assert "acme" == tenant.get()
    assert tenant.get() is None
    assert ["The context 'broken' could not be restored. (Said once.)"] == [one.message for one in caplog.records]


def test_what_is_required_must_be_restored() -> None:
    """Without what is required nothing runs, and what was restored before is taken back."""
    register_context("tenant", variable=tenant)
    register_context("broken", capture=lambda: 1, restore=fail, required=True)
    with inside("acme"):
        found = captured()

    with pytest.raises(ContextLost, match="'broken' could not be restored: LookupError"), restored(found):
        raise AssertionError
    assert tenant.get() is None


def test_what_was_lost_at_the_sending() -> None:
    """What is required and could not even be captured is missing in the worker."""
    register_context("tenant", capture=fail, restore=inside, required=True)

    with (
        pytest.raises(ContextLost, match="'tenant' could not be captured when the event was sent"),
        restored(captured()),
    ):
        raise AssertionError


def test_what_cannot_be_reset(caplog: pytest.LogCaptureFixture) -> None:
    """A carrier that fails afterwards is told of, and no receiver's error."""
    register_context("tenant", capture=lambda: "acme", restore=fails_at_the_end, required=True)

    with restored(captured()):
        pass

    assert ["The context 'tenant' could not be reset, and may be another receiver's now."] == [
        one.message for one in caplog.records
    ]


def test_one_that_is_interrupted() -> None:
    """What ends one of them from outside leaves none of the others as it is."""

    @contextmanager
    def interrupted(value: Any) -> Iterator[None]:
        yield
        raise CancelledError

    register_context("tenant", variable=tenant)
    register_context("user", capture=lambda: "5", restore=interrupted)
    with pytest.raises(CancelledError), restored({"language": "de", "tenant": "acme", "user": "5"}):
        assert ("de", "acme") == (translation.get_language(), tenant.get())
    assert ("en", None) == (translation.get_language(), tenant.get())


def test_what_a_receiver_sees() -> None:
    """The values, and not what is noted of them."""
    register_context("tenant", variable=tenant, required=True)
    with inside("acme"):
        found = captured()

    assert {**OWN, "tenant": "acme"} == of_receiver(found)
    assert is_required(found)
    assert not is_required(OWN)


def all_the_way(app: Celery) -> list[int]:
    """Relay and run until no delivery is open; return how many messages each round had."""
    rounds: list[int] = []
    while deliveries("default").exists():
        Relay(app=app, databases=["default"]).once()
        rounds.append(len(drain(app)))
    return rounds


# The whole way -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("guarantee", ["durable", "on_commit"])
def test_a_receiver_is_surrounded(guarantee: str, celery_app: Celery, receiving: Receiving) -> None:
    """The value is in force while a receiver runs, in event.context, and in what it sends; but no argument."""
    register_context("tenant", variable=tenant, required=True)
    seen: list[Any] = []

    def note(event: Event, **kwargs: Any) -> None:
        seen.append((tenant.get(), event.context["tenant"], sorted(kwargs)))
        if len(seen) == 1:
            doorbell.send(sender=None, again=True)

    receiving(doorbell, note, guarantee=guarantee)
    with inside("acme"):
        doorbell.send(sender=None, again=False)

    drain(celery_app)

    assert [("acme", "acme", ["again", "sender", "signal"])] * 2 == seen
    assert tenant.get() is None


@pytest.mark.django_db(transaction=True)
def test_a_key_is_a_tenants(celery_app: Celery, receiving: Receiving) -> None:
    """What two tenants call by the same key takes no turns, and is not folded into one."""
    seen: list[Any] = []
    receiving(doorbell, lambda: seen.append(tenant.get()), guarantee="durable", key=lambda: 5, coalesce=True)
    doorbell.send(sender=None)
    before = deliveries("default").get().lane
    register_context("request", variable=ContextVar("request"))
    doorbell.send(sender=None)
    assert {before} == set(deliveries("default").values_list("lane", flat=True))
    register_context("user", variable=ContextVar("user"), required=True)
    doorbell.send(sender=None)
    assert {before} == set(deliveries("default").values_list("lane", flat=True))
    register_context("tenant", variable=tenant, scope=True)
    for name in ("acme", "other"):
        with inside(name):
            doorbell.send(sender=None)

    assert 3 == len(set(deliveries("default").values_list("lane", flat=True)))
    all_the_way(celery_app)
    assert {None, "acme", "other"} == set(seen)


@pytest.mark.django_db(transaction=True)
def test_a_delivery_without_its_tenant_waits(celery_app: Celery, receiving: Receiving) -> None:
    """It waits, uncharged, for a worker that knows the context, or until it can be restored; in the end it is kept."""
    seen: list[Any] = []
    register_context("tenant", variable=tenant, required=True)
    receiving(doorbell, lambda: seen.append(tenant.get()), guarantee="durable")
    for _ in range(2):
        with inside("acme"):
            doorbell.send(sender=None)
    known = dict(context._carriers)
    del context._carriers["tenant"]
    first, second = deliveries("default").order_by("pk")
    deliveries("default").filter(pk=second.pk).update(reruns=Held.OUTAGES)

    drain(celery_app)

    first.refresh_from_db()
    second.refresh_from_db()
    assert (State.READY, 0, 1) == (first.state, first.attempts, first.reruns)
    assert (State.FAILED, "django_celery_signals.exceptions.ContextLost") == (second.state, second.error_type)
    assert "register_context('tenant', ...)" in str(second.error_message)
    assert [] == seen
    context._carriers.update(known)
    assert 1 == deliveries("default").failed().retry()
    deliveries("default").update(due_at=moment(-1))
    all_the_way(celery_app)
    assert ["acme", "acme"] == seen


@pytest.mark.django_db(transaction=True)
def test_a_delivery_without_its_tenant_waits_longer_each_time(celery_app: Celery, receiving: Receiving) -> None:
    """What has waited often waits for half a minute or more, so that all its tries take about an hour."""
    register_context("tenant", variable=tenant, required=True)
    receiving(doorbell, lambda: None, guarantee="durable")
    doorbell.send(sender=None)
    del context._carriers["tenant"]
    deliveries("default").update(reruns=6)
    drain(celery_app)

    row = deliveries("default").get()
    assert (State.READY, 7) == (row.state, row.reruns)
    assert moment(25) < row.due_at < moment(60)


@pytest.mark.django_db(transaction=True)
def test_a_delivery_whose_tenant_was_lost_is_kept(celery_app: Celery, receiving: Receiving) -> None:
    """Nothing brings back what could not be captured."""
    register_context("tenant", capture=fail, restore=inside, required=True)
    receiving(doorbell, fail, guarantee="durable")
    doorbell.send(sender=None)

    drain(celery_app)

    assert {"failed": 1} == states("default")
    assert "could not be captured" in str(deliveries("default").get().error_message)


def test_a_time_limit_is_not_the_carriers() -> None:
    """A time limit that is over while something is restored ends the run, and nothing else."""

    def late(value: Any) -> Any:
        raise SoftTimeLimitExceeded

    for required in (False, True):
        context._carriers.pop("late", None)
        register_context("late", capture=lambda: 1, restore=late, required=required)
        with pytest.raises(SoftTimeLimitExceeded), restored(captured()):
            raise AssertionError


@pytest.mark.django_db(transaction=True)
@override_settings(DJANGO_CELERY_SIGNALS={"FAST_PATH_LIMIT": 0})
@pytest.mark.parametrize("is_lost", [False, True])
def test_what_follows_the_run_of_several(
    is_lost: bool, celery_app: Celery, receiving: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    """What is done after the commit of several deliveries is done in the context of each, if it is to be had."""
    schema = ["public"]  # as a connection has it, which no context variable is

    @contextmanager
    def in_schema(name: str) -> Iterator[None]:
        if is_lost and name in seen:
            raise LookupError
        before, schema[0] = schema[0], name
        yield
        schema[0] = before

    seen: list[str] = []
    hooks: list[tuple[int, str]] = []
    told: list[str] = []

    def note(number: int) -> None:
        transaction.on_commit(lambda: hooks.append((number, schema[0])))
        if is_lost:
            seen.append(schema[0])

    def listen(**_: Any) -> None:
        told.append(schema[0])

    register_context("schema", capture=lambda: schema[0], restore=in_schema, required=True)
    receiving(doorbell, note, guarantee="durable", chunk_size=5)
    for number in range(20):
        with in_schema(f"tenant {number}"):
            doorbell.send(sender=None, number=number)
    receiver_succeeded.connect(listen)
    try:
        assert [10] == all_the_way(celery_app)
    finally:
        receiver_succeeded.disconnect(listen)

    mine = [(number, "public" if is_lost else f"tenant {number}") for number in range(20)]
    assert (mine, sorted(name for _, name in mine)) == (sorted(hooks), sorted(told))
    assert is_lost is ("What follows a run is done without its context." in caplog.messages)


@pytest.mark.django_db(transaction=True)
@override_settings(DJANGO_CELERY_SIGNALS={"FAST_PATH_LIMIT": 0})
@pytest.mark.parametrize("options", [{"chunk_size": 5}, {"chunk_size": 5, "atomic": False}, {"batch": True}], ids=str)
def test_many_in_one_message(options: dict[str, Any], celery_app: Celery, receiving: Receiving) -> None:
    """Of several deliveries in one message each is run in its own context, and no instance is fetched in another's."""
    register_context("tenant", variable=tenant, required=True)
    seen: list[Any] = []

    def note(number: int) -> None:
        seen.append((tenant.get(), number))

    def note_all(events: list[Event]) -> None:
        seen.extend((tenant.get(), event.kwargs["number"]) for event in events)

    task = receiving(doorbell, note_all if "batch" in options else note, guarantee="durable", **options)
    for number in range(20):
        with inside("acme" if number % 2 else "other"):
            doorbell.send(sender=None, number=number)

    rounds = all_the_way(celery_app)

    assert [("acme" if number % 2 else "other", number) for number in range(20)] == sorted(seen, key=lambda one: one[1])
    assert ([1, 20] if task.batch else [10]) == rounds
