"""Senders: what names one, when it is known, and which could never send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User as SwappedOut
from django.db import models
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal

from django_celery_signals import ConnectError
from django_celery_signals.senders import check_model, check_senders, each_sender, label_of, several
from tests.shop.models import (
    Club,
    Customer,
    Invoice,
    Membership,
    Order,
    Person,
    PriorityOrder,
    RushOrder,
    Stamped,
    Tag,
    User,
)

some_signal = Signal()


class Till:
    """A sender that is no model."""


def found(sender: Any, **options: Any) -> list[Any]:
    """Return the senders that are known at once."""
    senders: list[Any] = []
    each_sender(sender, senders.append, "receiver shop.update", **options)
    return senders


@pytest.fixture
def still_loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Django while it loads the models; those that a test declares are forgotten at its end."""
    monkeypatch.setattr(apps, "models_ready", False)
    monkeypatch.setattr(apps, "ready", False)
    known = dict(apps.all_models["shop"])
    yield
    for name in apps.all_models["shop"].keys() - known.keys():
        del apps.all_models["shop"][name]
    apps._pending_operations.clear()  # type: ignore[attr-defined]
    monkeypatch.undo()
    apps.clear_cache()


# What names a sender -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "expected"),
    [
        (Order, [Order]),
        (PriorityOrder, [PriorityOrder]),
        (RushOrder, [RushOrder]),
        (None, [None]),
        ("shop.Order", [Order]),
        ("shop.order", [Order]),
        ("shop.Order.tags", [Order.tags.through]),
        ("shop.order.tags", [Order.tags.through]),
        ("shop.RushOrder.tags", [Order.tags.through]),
        ("shop.Order_tags", [Order.tags.through]),
        ("shop.Club.members", [Membership]),
        ("shop.Person.friends", [Person.friends.through]),
        ("auth.User", [User]),
        (SwappedOut, [User]),
        ("auth.User.groups", [User.groups.through]),
        (["shop.Order", Invoice], [Order, Invoice]),
        (("shop.Order", None), [Order, None]),
        (iter([Order, "shop.Tag"]), [Order, Tag]),
        ({Order}, [Order]),
        ([], []),
        (Till, [Till]),
        (len, [len]),
        (5, [5]),
    ],
    ids=lambda value: f"{value!r:.40}" if isinstance(value, (str, type(None), int)) else type(value).__name__,
)
def test_what_names_a_sender(sender: Any, expected: list[Any]) -> None:
    """Senders are named by class, object, text, field or list; a swapped-out model is its replacement (H7, H8, H12)."""
    assert expected == found(sender)


def test_several() -> None:
    """Lists, tuples, sets and iterators name several senders, anything else one, also what could be iterated (H8)."""
    config = apps.get_app_config("auth")

    assert [Order, Tag] == several([Order, Tag]) == several((Order, Tag)) == several(iter([Order, Tag]))
    assert list(config.get_models()) == several(config.get_models())
    assert [[Order.objects], ["shop.Order"], [None]] == [several(Order.objects), several("shop.Order"), several(None)]


def test_a_label() -> None:
    """A sender has a stable word for a name: no address of an object that has a name of its own (H4)."""
    senders = (Order, "shop", Till, len, None, 5)

    assert ["shop.Order", "'shop'", "Till", "len", "*", "5"] == [label_of(sender) for sender in senders]


# Later -------------------------------------------------------------------------------------------------------------


def test_a_model_that_is_not_loaded_yet(still_loading: None) -> None:
    """While Django loads, a sender is known as soon as its model is there (H7)."""
    senders = found(["shop.Latecomer", "shop.LATECOMER", Order])
    before = list(senders)

    class Latecomer(models.Model):
        class Meta:
            app_label = "shop"

    assert ([Order], [Order, Latecomer, Latecomer]) == (before, senders)


def test_a_relation_that_is_not_loaded_yet(still_loading: None) -> None:
    """While Django loads, a through model is known as soon as it is there, be it named with its app or without (H7)."""
    senders = found(["shop.Latecomer.tags", "shop.Latecomer.customers"])

    class Latecomer(models.Model):
        tags = models.ManyToManyField(Tag, through="Link", related_name="+")
        customers = models.ManyToManyField(Customer, through="shop.Visit", related_name="+")

        class Meta:
            app_label = "shop"

    before = list(senders)

    class Link(models.Model):
        latecomer = models.ForeignKey(Latecomer, on_delete=models.CASCADE, related_name="+")
        tag = models.ForeignKey(Tag, on_delete=models.CASCADE, related_name="+")

        class Meta:
            app_label = "shop"

    class Visit(models.Model):
        latecomer = models.ForeignKey(Latecomer, on_delete=models.CASCADE, related_name="+")
        customer = models.ForeignKey(Customer, on_delete=models.CASCADE, related_name="+")

        class Meta:
            app_label = "shop"

    assert ([], [Link, Visit]) == (before, senders)


def test_a_wrong_field_of_a_model_that_is_not_loaded_yet(still_loading: None) -> None:
    """A field that turns out not to exist raises when the model is loaded."""
    found("shop.Latecomer.tags")

    with pytest.raises(ConnectError, match=r"shop\.Latecomer has no many-to-many field 'tags'\. It has none"):

        class Latecomer(models.Model):
            class Meta:
                app_label = "shop"


def test_nothing_is_checked_before_its_time(still_loading: None) -> None:
    """While Django loads, relations are not known yet, so no model is refused for them."""
    check_model(m2m_changed, Order, "receiver shop.update")


# What is no sender -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["Order", "", "shop.", ".Order", "shop.Order.tags.all", "shop/Order", "shop.Order ", "ü b"]
)
def test_other_text(text: str) -> None:
    """Text that names no model raises: Django would compare its identity, and never find it (H7)."""
    with pytest.raises(
        ConnectError, match=r"is not 'app\.Model' or 'app\.Model\.field'\. Django tells other strings .*when="
    ) as c:
        found(text)

    assert f"receiver shop.update: sender={text!r}" in str(c.value)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("shop.Ordr", r"Did you mean 'shop\.Order'\?"),
        ("shops.Order", r"Did you mean 'shop\.Order'\?"),
        ("shop.order-tags".replace("-", "tags_"), r"Did you mean 'shop\.Order_tags'\?"),
        (
            "checkout.finished",
            r"Check INSTALLED_APPS\. Django tells other strings apart by identity.*when=lambda sender",
        ),
        ("tests.shop.Order", r"Check INSTALLED_APPS"),
    ],
)
def test_a_model_that_does_not_exist(text: str, remedy: str) -> None:
    """A model that is not installed raises at once, and the nearest one is named (H7)."""
    with pytest.raises(ConnectError, match=rf"sender='{text}' names no installed model\. {remedy}"):
        found(text)


@pytest.mark.parametrize("field", ["customer", "lines", "tag", "nowhere"])
def test_a_field_that_is_no_relation(field: str) -> None:
    """A field that has no through model raises, and the error lists those that have one (H7)."""
    with pytest.raises(ConnectError, match=rf"shop\.Order has no many-to-many field '{field}'\. It has tags"):
        found(f"shop.Order.{field}")


def test_a_relation_is_named_from_the_model_that_declares_it() -> None:
    """The other end of a relation has no name for it, and the error says whose it is."""
    with pytest.raises(
        ConnectError, match=r"shop\.Tag has no many-to-many field 'orders'.*by the model that declares it"
    ):
        found("shop.Tag.orders")


def test_an_abstract_model() -> None:
    """An abstract model never sends, and is a sender only for its subclasses' sake (H12)."""
    with pytest.raises(
        ConnectError, match=r"Stamped is abstract and never sends\. Name its concrete models, or.*subclasses"
    ):
        found(Stamped)

    assert [Stamped] == found(Stamped, subclasses=True)


@pytest.mark.parametrize(
    "sender", [5, Order.objects, Order(), len, b"shop.Order", Club.members], ids=lambda sender: type(sender).__name__
)
def test_what_sends_no_signal_of_models(sender: Any) -> None:
    """Signals of models are sent by classes: anything else, such as an instance or ``Club.members``, raises (H7)."""
    with pytest.raises(ConnectError, match=r"is no model, but models send this signal.*'app\.Model\.field'") as caught:
        check_senders(post_save, [Order, sender], "receiver shop.update")
    check_senders(some_signal, [Order, sender], "receiver shop.update")

    assert f"sender={sender!r}" in str(caught.value)


@pytest.mark.parametrize("signal", [post_save, some_signal])
def test_nobody_at_all(signal: Signal) -> None:
    """An empty list of senders raises: nothing would be connected, in silence."""
    with pytest.raises(ConnectError, match="the list sender= is empty, so nothing would be connected"):
        check_senders(signal, [], "receiver shop.update")


# What never sends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [pre_save, post_save, pre_delete, post_delete])
@pytest.mark.parametrize("through", [Order.tags.through, Person.friends.through, User.groups.through])
def test_a_generated_through_model(signal: Signal, through: Any) -> None:
    """A generated through model sends nothing but m2m_changed, and connecting it to anything else raises (H9)."""
    with pytest.raises(ConnectError, match=rf"{through._meta.label} is the generated through model.*Connect to that"):
        check_model(signal, through, "receiver shop.update")
    check_model(m2m_changed, through, "receiver shop.update")


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Order, ["shop.Order.tags"]),
        (RushOrder, ["shop.Order.tags"]),
        (PriorityOrder, ["shop.Order.tags"]),
        (Tag, ["shop.Order.tags"]),
        (Club, ["shop.Club.members"]),
        (Person, ["shop.Person.friends", "shop.Person.follows"]),
    ],
)
def test_the_model_of_a_relation(model: Any, named: list[str]) -> None:
    """A model is no sender of its relations' signal, and the error names the through models (H7)."""
    with pytest.raises(ConnectError, match=rf"{model._meta.label} never sends m2m_changed") as caught:
        check_model(m2m_changed, model, "receiver shop.update")
    check_model(post_save, model, "receiver shop.update")

    assert all(repr(name) in str(caught.value) for name in named)


@pytest.mark.parametrize("sender", [Membership, Invoice, None, 5, Till])
def test_what_may_send_anything(sender: Any) -> None:
    """A project's own through model sends both kinds of signals, and of what has no relations nothing is known."""
    for signal in (post_save, m2m_changed, some_signal):
        check_model(signal, sender, "receiver shop.update")
