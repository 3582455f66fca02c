"""Keys: what names a row or a thing for certain, and the lane that a sending of a receiver waits in."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from django.db.models import F
from django.db.models.signals import post_save
from django.dispatch import Signal
from django.utils.functional import SimpleLazyObject, empty
from django.utils.translation import gettext_lazy

from django_celery_signals import ConnectError, ReceiverTask
from django_celery_signals.envelope import Lane, Sending
from django_celery_signals.keys import lane_of, takes_turns
from django_celery_signals.options import SendingOptions, read
from tests.shop.models import (
    Country,
    Customer,
    Everything,
    Holiday,
    Order,
    OrderLine,
    Parcel,
    PriorityOrder,
    Profile,
    RushOrder,
    WeightClass,
)

some_signal = Signal()
NUMBER = uuid.UUID(int=5)


@pytest.fixture
def strict(settings: Any) -> None:
    """Keys that cannot be are raised."""
    settings.DJANGO_CELERY_SIGNALS = {"STRICT": True}


def lane(receiver: str = "shop.index", given: dict[str, Any] | None = None, **kwargs: Any) -> Lane | None:
    """Return the lane of a sending of the signal with these arguments."""
    sending = Sending(signal=some_signal, sender=Order, kwargs=kwargs)
    return lane_of(read(given or {}, "here"), sending, receiver)


def of(value: Any, receiver: str = "shop.index") -> Lane | None:
    """Return the lane of a sending about a thing, as a function of the project's tells it."""
    return lane(receiver, {"key": lambda thing: thing}, thing=value)


def lazily(value: Any) -> SimpleLazyObject:
    """Return a lazy object that has been looked at."""
    found = SimpleLazyObject(lambda: value)
    assert found == value
    return found


# Rows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instance", "key"),
    [
        (Order(pk=5), "shop.Order:5"),
        (Order(pk="5"), "shop.Order:5"),
        (Order(pk=Everything.Level(2)), "shop.Order:2"),
        (PriorityOrder(pk=5), "shop.Order:5"),
        (RushOrder(pk=5), "shop.Order:5"),
        (RushOrder(order_ptr_id="5"), "shop.Order:5"),
        (lazily(Order(pk=5)), "shop.Order:5"),
        (Parcel(pk=NUMBER), f"shop.Parcel:{NUMBER}"),
        (Parcel(pk=str(NUMBER)), f"shop.Parcel:{NUMBER}"),
        (Profile(customer_id=5), "shop.Profile:5"),
        (Profile(customer=Customer(pk="5")), "shop.Profile:5"),
        (OrderLine(order_id=5, number="2"), "shop.OrderLine:5,2"),
        (Customer(pk=5), "shop.Customer:5"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.usefixtures("strict")
def test_key_of_a_row(instance: Any, key: str) -> None:
    """A row has one key, in whatever form its own is given, and whichever of its classes, parents and proxies it has
    come in (H19)."""
    by_instance, by_function = lane(instance=instance), of(instance)

    assert by_instance == by_function
    assert by_instance is not None
    assert key == by_instance.key


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (Country(pk="at"), Country(code="at", name="Austria"), Country(pk="AT")),
        (Holiday(pk=date(2030, 1, 1)), Holiday(pk="2030-01-01"), Holiday(pk=date(2030, 1, 2))),
        (WeightClass(pk=Decimal("2.50")), WeightClass(pk="2.50"), WeightClass(pk=Decimal(3))),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.usefixtures("strict")
def test_key_that_may_say_something(one: Any, same: Any, other: Any) -> None:
    """A key that is no number could be a name or an e-mail address: it is told by its hash, in every form alike."""
    found = lane(instance=one)

    assert found is not None
    assert found == lane(instance=same) != lane(instance=other)
    assert re.fullmatch(rf"{one._meta.label}:[0-9a-f]{{32}}", found.key)


@pytest.mark.usefixtures("strict")
def test_key_of_a_decimal_in_another_form() -> None:
    """A decimal that is a row's key is the same however many zeros it is written with, as the database has it."""
    assert lane(instance=WeightClass(pk=Decimal("2.5"))) == lane(instance=WeightClass(pk=Decimal("2.50")))


@pytest.mark.parametrize(
    "instance",
    [
        Order(),
        RushOrder(),
        Country(pk=None),
        Profile(),
        OrderLine(order_id=5),
        OrderLine(number=5),
        Order(pk=F("total")),
        Country(pk=F("name")),
        Order(pk="five"),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.pk!r}",
)
@pytest.mark.usefixtures("strict")
def test_object_without_a_key(instance: Any) -> None:
    """What is no row yet, or has no key that could be one, is nothing that others could wait for."""
    assert (None, None) == (lane(instance=instance), of(instance))


# Functions -----------------------------------------------------------------------------------------------------------


class Text(str):
    """Shows itself in its own way."""

    __slots__ = ()

    def __str__(self) -> str:
        return "shown"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("order 5", "order 5"),
        ("", ""),
        (Text("hidden"), "hidden"),
        (Order.Status.PAID, "paid"),
        (5, "5"),
        (Everything.Level.HIGH, "2"),
        (True, "True"),
        (False, "False"),
        (NUMBER, str(NUMBER)),
        (Decimal("2.50"), "2.5"),
        (date(2030, 1, 2), "2030-01-02"),
        (datetime(2030, 1, 2, 3, 4), "2030-01-02 03:04:00"),
        (datetime(2030, 1, 2, 3, 4, tzinfo=UTC), "2030-01-02T03:04:00+00:00"),
        (datetime(2030, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=2))), "2030-01-02T01:04:00+00:00"),
        (time(3, 4), "03:04:00"),
        (timedelta(hours=1), "1:00:00"),
        (("a", 5), '["a", "5"]'),
        (["a", 5, None, ("b", True)], '["a", "5", null, "[\\"b\\", \\"True\\"]"]'),
        ((Order(pk=5), "ü"), '["shop.Order:5", "ü"]'),
        ((), "[]"),
    ],
    ids=repr,
)
@pytest.mark.usefixtures("strict")
def test_key_of_a_function(value: Any, key: str) -> None:
    """A text, a number, a moment, an instance, or several of these together are keys."""
    found = of(value)

    assert found is not None
    assert key == found.key


@pytest.mark.usefixtures("strict")
def test_function_that_returns_a_lazy_object() -> None:
    """A lazy object that a function returns, such as a request's user, is looked at."""
    found = of(SimpleLazyObject(lambda: Order(pk=5)))

    assert found is not None
    assert "shop.Order:5" == found.key


@pytest.mark.parametrize("value", [None, Order()], ids=["None", "no row"])
@pytest.mark.usefixtures("strict")
def test_function_that_names_nothing(value: Any) -> None:
    """A sending may have no key: a function says so by None."""
    assert of(value) is None


@pytest.mark.usefixtures("strict")
def test_what_a_function_is_given() -> None:
    """A function is given what it names of the sending's arguments, the sender and the signal; or all of them."""

    def of_all(**given: Any) -> str:
        return ",".join(sorted(given))

    def of_some(sender: Any, number: int, signal: Any, other: int = 7) -> Any:
        return (sender._meta.label, number, signal is some_signal, other)

    arguments = {"number": 5, "instance": Order(pk=1)}
    keys = [lane(given={"key": function}, **arguments) for function in (of_all, of_some, lambda: "constant")]
    assert ["instance,number,sender,signal", '["shop.Order", "5", "True", "7"]', "constant"] == [
        found.key for found in keys if found
    ]


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "ä\U0001f600", "'; DROP TABLE"], ids=ascii)
@pytest.mark.usefixtures("strict")
def test_any_text_is_a_key(text: str) -> None:
    """There is no text that could not be a key."""
    found = of(text)

    assert found is not None
    assert text == found.key
    assert re.fullmatch("[0-9a-f]{32}", found.name)


@pytest.mark.usefixtures("strict")
def test_long_key() -> None:
    """A key is shown in part when it is long, and is told from others by all of it."""
    one, other, short = of("x" * 201 + "1"), of("x" * 201 + "2"), of("x" * 200)

    assert one is not None
    assert other is not None
    assert short is not None
    assert "x" * 200 + "…" == one.key == other.key
    assert "x" * 200 == short.key
    assert one.name != other.name


# What cannot be ------------------------------------------------------------------------------------------------------


class Failing:
    """A function of a project's own that raises."""

    def __call__(self) -> None:
        raise ZeroDivisionError("of the project")


NAMES_NOTHING = r"shop\.index: key= returned .*, which names nothing for certain\. Return a text, a number, a UUID"
NO_INSTANCE = r"shop\.index takes .* has no instance= to be the key\. Say what it is about: key=lambda"
UNKNOWN: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    **{
        type(value).__name__: ({"given": {"key": lambda value=value: value}}, ConnectError, NAMES_NOTHING)
        for value in (2.5, b"a", object(), {"a": 1}, {1}, Order, gettext_lazy("text"), (1, [2.5]))
    },
    "error": ({"given": {"key": Failing()}}, ZeroDivisionError, "of the project"),
    "missing argument": ({"given": {"key": lambda order_id: order_id}}, TypeError, "order_id"),
    "no instance": ({"number": 5}, ConnectError, NO_INSTANCE),
    "no model": ({"instance": 5}, ConnectError, NO_INSTANCE),
    "lazy": ({"instance": SimpleLazyObject(lambda: Order(pk=5))}, ConnectError, NO_INSTANCE),
}


@pytest.mark.parametrize("kind", UNKNOWN)
@pytest.mark.usefixtures("strict")
def test_key_that_cannot_be_told(kind: str) -> None:
    """Under STRICT a key that cannot be told raises, saying by which receiver, and what to write."""
    kwargs, error, message = UNKNOWN[kind]

    with pytest.raises(error, match=message):
        lane(**kwargs)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_key_that_cannot_be_told_in_production(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise that is logged with its error, and the event is delivered without waiting for any other."""
    kwargs, error, message = UNKNOWN[kind]

    assert lane(**kwargs) is None

    (record,) = caplog.records
    assert "The key of a sending to shop.index cannot be told; it is delivered out of turn." == record.getMessage()
    assert record.exc_info is not None
    assert error is record.exc_info[0]
    assert re.search(message, str(record.exc_info[1]))


def test_nothing_is_evaluated() -> None:
    """A lazy object that nobody has looked at stays so: a key costs no query."""
    thing = SimpleLazyObject(lambda: Order(pk=5))
    assert lane(instance=thing) is None
    assert empty is vars(thing)["_wrapped"]


# Lanes ---------------------------------------------------------------------------------------------------------------


def test_lanes_of_two_receivers() -> None:
    """Two receivers of one key do not wait for each other, nor do two keys of one receiver; case counts."""
    lanes = [of(key, receiver) for receiver in ("shop.index", "shop.mail") for key in ("a", "A", "b")]

    assert 6 == len({one.name for one in lanes if one})
    assert of("a") == of("a")


def test_lanes_of_a_renamed_receiver() -> None:
    """A receiver that was renamed takes turns with what waits for its first name."""
    sending = Sending(signal=some_signal, sender=Order, kwargs={"instance": Order(pk=5)})
    old = lane_of(SendingOptions(), sending, "shop.index")

    assert old == lane_of(SendingOptions(), sending, "shop.reindex", ["shop.index"])
    assert old == lane_of(SendingOptions(), sending, "shop.refresh", ("shop.index", "shop.reindex"))
    assert old != lane_of(SendingOptions(), sending, "shop.reindex", [])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (False, 0, 0)),
        ({"coalesce": True}, (True, 0, 0)),
        ({"debounce": 2}, (True, 2, 30)),
        ({"debounce": 0.5, "max_wait": 1}, (True, 0.5, 1)),
        ({"coalesce": True, "debounce": 2}, (True, 2, 30)),
    ],
    ids=str,
)
def test_how_a_lane_is_joined(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """A lane folds what it is told to; a debounced one waits no longer than fifteen times that, unless told."""
    found = lane(given=given, instance=Order(pk=5))

    assert found is not None
    assert expected == (found.folds, found.debounce, found.max_wait)


class Ordered(ReceiverTask):
    """A task that takes events in order."""

    ordered = True


@pytest.mark.parametrize(
    ("options", "task", "turns", "folding"),
    [
        (SendingOptions(), ReceiverTask, False, False),
        (SendingOptions(), None, False, False),
        (SendingOptions(), Ordered, True, False),
        (SendingOptions(coalesce=False), Ordered, True, False),
        (SendingOptions(coalesce=True), None, True, True),
        (SendingOptions(coalesce=False), ReceiverTask, False, False),
        (SendingOptions(debounce=2), ReceiverTask, True, True),
        (SendingOptions(debounce=2, coalesce=True), Ordered, True, True),
    ],
)
def test_who_takes_turns(options: SendingOptions, task: Any, turns: bool, folding: bool) -> None:
    """Turns are for the receivers that are ordered, and for what is coalesced; to debounce is to coalesce."""
    assert (turns, folding) == (takes_turns(options, task), options.folds)


def test_keys_need_no_signal_of_djangos() -> None:
    """The signal, and what else is sent, are no part of a key: all about a row is in one lane."""
    kwargs: dict[str, Any] = {"instance": Order(pk=5)}
    one = Sending(signal=post_save, sender=Order, kwargs={**kwargs, "created": True})
    two = Sending(signal=some_signal, sender=None, kwargs=kwargs)

    assert lane_of(SendingOptions(), one, "shop.index") == lane_of(SendingOptions(), two, "shop.index")
