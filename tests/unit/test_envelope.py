"""One sending in an envelope: what is written of it, its summary, its changes, and reading it value by value."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from datetime import timedelta
from datetime import timezone as fixed_timezone
from decimal import Decimal
from io import StringIO
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.signals import request_started
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.dispatch import Signal
from django.http import HttpResponse
from django.test import override_settings
from django.utils import timezone, translation
from django.utils.functional import SimpleLazyObject

from django_celery_signals import DecodeError, EncodeError, InstanceMissing, NotCarried, envelope
from django_celery_signals.codec.standins import Unavailable
from django_celery_signals.envelope import Reader, Sending, summarise, write
from django_celery_signals.names import UnknownSignal, find_signal
from tests.carrying import RECEIVER, sent, some_signal
from tests.shop.models import Account, Country, Customer, Order, OrderLine, Parcel, Stamped, Tag, User

HERE = __name__

paid = Signal()


class Shop:
    """An object that lives in a module and has no codec."""


shop = Shop()


def function() -> None: ...


def written(
    kwargs: dict[str, Any] | None = None, *, signal: Signal = some_signal, sender: Any = None, **options: Any
) -> envelope.Envelope:
    sending = Sending(signal=signal, sender=sender, kwargs=kwargs or {})
    return write(sending, RECEIVER, **{"using": "default", **options})


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the envelope's log says, as in a process that has just begun."""
    monkeypatch.setattr(envelope, "_warned", set())
    caplog.set_level(logging.WARNING, envelope.__name__)
    return caplog


# Arguments ---------------------------------------------------------------------------------------------------------


def test_arguments_are_carried_whatever_they_are_called() -> None:
    """Arguments keep names, order and presence; None is not absent; names of Celery's and Python's do no harm
    (H17, H19, H20)."""
    kwargs = {
        "self": 1,
        "args": (),
        "kwargs": {"a": 1},
        "task_id": "x",
        "queue": None,
        "countdown": 5,
        "using": 3,
        "$": {"$": "x"},
        "event": "own",
        "zebra": 1,
        "aardvark": 2,
    }

    arrived = sent(kwargs)

    assert list(kwargs) == list(arrived.envelope.kwargs)
    assert kwargs == {name: arrived[name] for name in kwargs}


def test_values_are_those_of_the_sending() -> None:
    """What happens to an argument after the sending changes nothing of what travels (H35)."""
    basket, customer = {"apples": [1]}, Customer(name="before")
    one = written({"basket": basket, "customer": customer})
    basket["apples"].append(2)
    customer.name = "after"

    reader = Reader(one)

    assert {"apples": [1]} == reader.value(one.kwargs["basket"])
    assert "before" == reader.value(one.kwargs["customer"]).name


def test_the_context_of_the_sending_travels() -> None:
    """Language and time zone are those of the sending (H63)."""
    with translation.override("de"), timezone.override(ZoneInfo("Asia/Tokyo")):
        one = written()

    assert {"language": "de", "timezone": "Asia/Tokyo"} == one.context


@pytest.mark.parametrize(
    ("offset", "expected"),
    [(timedelta(hours=5, minutes=30), "UTC+05:30"), (timedelta(hours=-3), "UTC-03:00"), (timedelta(), "UTC")],
    ids=str,
)
def test_a_bare_offset_travels_whatever_its_name(offset: timedelta, expected: str) -> None:
    """A time zone without a name that the worker could know travels as its offset (H63)."""
    with timezone.override(fixed_timezone(offset, "own")):
        assert expected == written().context["timezone"]


def test_a_raw_request_is_recognised_by_its_signal() -> None:
    """A dictionary that request_started carries is a request, whatever is in it: only its facts travel (H69)."""
    raw = {"PATH_INFO": "/", "HTTP_COOKIE": "hidden"}

    assert {"PATH_INFO": "/"} == sent({"environ": raw}, signal=request_started)["environ"]
    assert raw == sent({"environ": raw})["environ"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"wsgi.url_scheme": "http", "REQUEST_METHOD": "GET", "HTTP_COOKIE": "hidden"}, {"REQUEST_METHOD": "GET"}),
        ({"asgi": {"version": "3.0"}, "type": "http", "headers": ["hidden"]}, {"type": "http"}),
        ({"asgi": "yes", "type": "mine"}, {"asgi": "yes", "type": "mine"}),
        ({"wsgi.url_scheme": "mine"}, {"wsgi.url_scheme": "mine"}),
    ],
    ids=["environ", "scope", "own", "own-too"],
)
def test_a_raw_request_is_recognised_by_its_form(value: dict[str, Any], expected: dict[str, Any]) -> None:
    """What has the form of a WSGI environ or an ASGI scope is a request, whoever sends it; other data is data (H69)."""
    assert expected == sent({"value": value})["value"]


# Senders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sender",
    [None, "shop", "", Order, Order.tags.through, Shop, function, len, Stamped, int, Order.Status.PAID, shop, 5],
    ids=lambda sender: repr(sender).partition(" at 0x")[0],  # the same in every process
)
def test_senders_of_every_sort_arrive(sender: Any) -> None:
    """Classes, text, nothing, functions, members of enumerations and objects of modules arrive as themselves (H22)."""
    arrived = sent({}, sender=sender).sender

    assert arrived is sender or (type(arrived) is type(sender) and arrived == sender)


def test_an_unsaved_instance_can_be_a_sender() -> None:
    """An instance arrives as a sender, and is the same object as among the arguments (H22, H67)."""
    order = Order(total=5)
    arrived = sent({"order": order, "same": [order]}, sender=order)

    assert type(arrived.sender) is Order
    assert arrived["order"] is arrived.sender is arrived["same"][0]
    assert arrived["order"] is not sent({"order": order})["order"]


def test_other_objects_leave_a_stand_in_as_sender(warnings: pytest.LogCaptureFixture) -> None:
    """A view or form, which no module holds, arrives as a stand-in, and the log names the sender (H18, H22)."""
    arrived = sent({"a": 1}, sender=Shop())

    assert type(arrived.sender) is Unavailable
    assert 1 == arrived["a"]
    assert f"is sent 'sender' of type {HERE}.Shop by some_signal" in warnings.text


# What cannot be carried --------------------------------------------------------------------------------------------


def test_what_cannot_be_carried_costs_only_itself(warnings: pytest.LogCaptureFixture) -> None:
    """An argument that cannot be carried arrives as a stand-in and warns once per signal and argument (H18)."""
    for _ in range(3):
        arrived = sent({"cart": object(), "more": [1, object()]}, signal=paid)
    sent({"cart": object()}, signal=some_signal)

    assert type(arrived["cart"]) is Unavailable
    assert 1 == arrived["more"][0]
    assert [
        f"{RECEIVER} is sent {argument!r} of type builtins.object by {signal}"
        for argument, signal in (("cart", "paid"), ("more", "paid"), ("cart", "some_signal"))
    ] == [message.partition(",")[0] for message in warnings.messages]
    assert "register_codec()" in warnings.text


@override_settings(DJANGO_CELERY_SIGNALS={"STRICT": True})
def test_strict_mode_raises_at_the_sending() -> None:
    """Under STRICT the sending raises, naming receiver, argument, type, reason and remedy (H18)."""
    with pytest.raises(EncodeError) as raised:
        written({"deep": [{"cart": (object(),)}]}, signal=Signal())

    said = str(raised.value)
    assert f"{RECEIVER} is sent 'deep' of type builtins.object by an unnamed signal" in said
    assert "which cannot be carried: no codec is registered for its type. Send the facts" in said


@override_settings(DJANGO_CELERY_SIGNALS={"STRICT": True})
def test_what_never_travels_is_no_surprise(warnings: pytest.LogCaptureFixture) -> None:
    """What Django's own signals carry and nobody can send is a stand-in without warning, also under STRICT (H18)."""
    arrived = sent({"queryset": Order.objects.all()}, signal=post_save)["queryset"]

    with pytest.raises(NotCarried, match="send primary keys"):
        list(arrived)
    assert "" == warnings.text


@pytest.mark.parametrize(
    "value", [Order.objects.none(), HttpResponse(), StringIO()], ids=lambda one: type(one).__name__
)
def test_what_never_travels_is_a_surprise_in_a_signal_of_ones_own(
    value: Any, warnings: pytest.LogCaptureFixture
) -> None:
    """The same in a project's own signal warns, and raises under STRICT, with what to send instead (H18)."""
    assert type(sent({"value": value})["value"]) is Unavailable
    assert "is sent 'value'" in warnings.text

    with (
        override_settings(DJANGO_CELERY_SIGNALS={"STRICT": True}),
        pytest.raises(EncodeError, match=r"belongs to|keys"),
    ):
        written({"value": value})


# The event and its signal ------------------------------------------------------------------------------------------


def test_the_event_tells_signal_receiver_and_database() -> None:
    """An envelope's event has the signal's best name, and all its names lead to the live signal (H21)."""
    one = written(signal=post_save, using="other")

    assert ("django.db.models.signals:post_save", RECEIVER, "other") == (
        one.event.signal_name,
        one.event.receiver,
        one.event.using,
    )
    assert one.event.signal_name == one.signal_names[0]
    assert find_signal(*one.signal_names) is post_save


def test_a_signal_nobody_can_name_is_a_null_object() -> None:
    """A signal that no module holds travels without a name and arrives as a null object (H21)."""
    one = written(signal=Signal())

    assert ("", ()) == (one.event.signal_name, one.signal_names)
    assert type(find_signal(*one.signal_names)) is UnknownSignal


# Summaries ---------------------------------------------------------------------------------------------------------


class Unmoved:
    """Nothing that is asked of it may run."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for.")

    __str__ = __repr__ = __format__ = __bool__ = __eq__ = __hash__ = None  # type: ignore[assignment]


class Shouting(str):
    def __format__(self, spec: str) -> str:
        raise AssertionError("Its own code ran.")


def lazy_failure() -> Any:
    return SimpleLazyObject(lambda: pytest.fail("It was evaluated."))


def filled(value: Any) -> Any:
    """Return lazy objects, already evaluated, one around the other."""
    outer = SimpleLazyObject(lambda: SimpleLazyObject(lambda: value))
    outer.__class__  # noqa: B018
    return outer


UUID = uuid.UUID(int=5)


@pytest.mark.parametrize(
    ("signal", "sender", "kwargs", "summary"),
    [
        (post_save, Order, {"instance": Order(pk=5), "created": True}, "post_save shop.Order pk=5 created"),
        (post_save, Order, {"instance": Order(pk=5), "created": False}, "post_save shop.Order pk=5"),
        (post_save, Order, {"instance": Order(pk=5), "created": "hidden"}, "post_save shop.Order pk=5"),
        (post_delete, Parcel, {"instance": Parcel(pk=UUID)}, f"post_delete shop.Parcel pk={UUID}"),
        (post_save, Order, {"instance": Order()}, "post_save shop.Order pk=None"),
        (post_save, OrderLine, {"instance": OrderLine(order_id=1, number=2)}, "post_save shop.OrderLine pk=(1, 2)"),
        (post_save, Country, {"instance": Country(code="hidden")}, "post_save shop.Country pk=…"),
        (post_save, OrderLine, {"instance": OrderLine(order_id="x", number=2)}, "post_save shop.OrderLine pk=…"),
        (post_save, Order, {"instance": filled(Order(pk=5))}, "post_save shop.Order pk=5"),
        (post_save, Order, {"instance": lazy_failure()}, "post_save shop.Order"),
        (m2m_changed, Order.tags.through, {"action": "post_add"}, "m2m_changed shop.Order_tags post_add"),
        (m2m_changed, Order.tags.through, {"action": ["hidden"]}, "m2m_changed shop.Order_tags"),
        (some_signal, None, {"action": "hidden"}, "some_signal"),
        (some_signal, "shop", {}, "some_signal shop"),
        (some_signal, Shouting("x" * 99), {}, f"some_signal {'x' * 60}"),
        (some_signal, str, {}, "some_signal str"),
        (some_signal, Order(pk=5), {}, "some_signal shop.Order pk=5"),
        (some_signal, filled(Order(pk=5)), {"instance": Tag(pk=1)}, "some_signal shop.Order pk=5 pk=1"),
        (some_signal, function, {}, "some_signal function"),
        (some_signal, Shop, {}, "some_signal Shop"),
        (some_signal, shop, {}, "some_signal Shop"),
        (some_signal, Unmoved(), {"instance": Unmoved()}, "some_signal Unmoved"),
        (some_signal, lazy_failure(), {}, "some_signal SimpleLazyObject"),
        (some_signal, 5, {"name": "hidden"}, "some_signal int"),
        (Signal(), None, {}, "signal"),
    ],
    ids=lambda value: value.replace(" ", "-") if type(value) is str else "",
)
def test_a_summary_says_what_was_sent(signal: Signal, sender: Any, kwargs: dict[str, Any], summary: str) -> None:
    """A summary names signal, sender, a key that says nothing by itself, and what happened; never a field's value, and
    it evaluates nothing (H66b)."""
    name = written(signal=signal).event.signal_name

    assert summary == summarise(Sending(signal=signal, sender=sender, kwargs=kwargs), name)


# Changes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Says which values a save changed."""

    def say(**pairs: tuple[Any, Any]) -> None:
        monkeypatch.setattr(envelope, "changes_of", lambda instance, names: {name: pairs[name] for name in names})

    return say


def test_changes_travel(watched: Any) -> None:
    """Old and new values of the watched fields travel exactly, also for an instance in a lazy object (H66b)."""
    watched(total=(Decimal("1.50"), 2), status=(None, Order.Status.PAID))
    for order in (Order(), filled(Order())):
        arrived = sent({"instance": order}, changed=["total", "status"])

        assert {"total": (Decimal("1.50"), 2), "status": (None, Order.Status.PAID)} == arrived.reader.changes()
    assert {} == sent({"instance": Order()}).reader.changes()
    assert {} == sent({"instance": SimpleLazyObject(lambda: 1 / 0)}, changed=["total"]).reader.changes()


def test_changes_of_secret_fields_stay_behind(watched: Any) -> None:
    """Of a field named like a secret, not even the old and new values of its change travel (H65)."""
    watched(password=("hidden", "hidden too"), owner=("Ada", "Eve"))
    arrived = sent({"instance": Account()}, changed=["password", "owner"])

    [old, new] = arrived.reader.changes()["password"]
    assert [Unavailable, Unavailable] == [type(old), type(new)]
    assert "its field is sensitive" in repr(new)
    assert ("Ada", "Eve") == arrived.reader.changes()["owner"]
    assert "hidden" not in str(arrived.envelope)


@pytest.mark.parametrize("node", [5, [], {"total": 5}, {"total": [1]}, {"$": "tuple", "v": []}, {"$": "x", "v": 1}])
def test_damaged_changes_are_refused(node: Any) -> None:
    """Changes that no sending can have are refused with a DecodeError."""
    one = written()
    object.__setattr__(one, "changes", node)

    with pytest.raises(DecodeError):
        Reader(one).changes()


# Reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_only_what_is_asked_for_is_read(django_assert_num_queries: Any) -> None:
    """A value is read, and its row fetched, only when it is asked for, and then once (H67)."""
    user, tag = User.objects.create_user("ada"), Tag.objects.create(name="a")
    with django_assert_num_queries(0):
        arrived = sent({"instance": tag, "user": user, "same": [tag]})
    with django_assert_num_queries(1):
        assert tag == arrived["instance"]
        assert arrived["instance"] is arrived["same"][0]


@pytest.mark.django_db
def test_a_missing_row_costs_only_its_argument() -> None:
    """An argument whose row is gone raises when it is read, and the others can be read (H53)."""
    tag = Tag.objects.create(name="gone")
    arrived = sent({"instance": tag, "number": 5})
    tag.delete()

    assert 5 == arrived["number"]
    with pytest.raises(InstanceMissing, match=r"shop\.Tag"):
        arrived["instance"]


def test_too_deep_a_value_is_refused() -> None:
    """A crafted value nested beyond what Python can follow is refused with a DecodeError."""
    node: Any = {"$": "tuple", "v": []}
    for _ in range(20_000):
        node = [node]

    with pytest.raises(DecodeError, match="too deeply"):
        Reader(written()).value(node)
