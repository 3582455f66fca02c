"""Which sendings a connection is for."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
from celery import Celery
from django.contrib.auth.models import User as SwappedOut
from django.db.models.signals import m2m_changed, post_save
from django.dispatch import Signal

from django_celery_signals import ConnectError, changes, connect
from django_celery_signals.envelope import Sending
from django_celery_signals.filters import lets_through
from django_celery_signals.options import (
    SendingOptions,
    of_family,
    read,
)
from tests.drain import take
from tests.making import Tasks
from tests.shop.models import Customer, Invoice, Order, PriorityOrder, RushOrder, Stamped, Tag, User, WeightClass

some_signal = Signal()


@pytest.fixture(autouse=True)
def at_once(settings: Any) -> None:
    """Messages leave without waiting for a database."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate"}


def passes(options: dict[str, Any], sender: Any = Order, signal: Signal = post_save, **kwargs: Any) -> bool:
    """Tell whether a connection with these options lets a sending through."""
    return lets_through(read(options, "here"), Sending(signal=signal, sender=sender, kwargs=kwargs), "shop.update")


def test_everything_by_default() -> None:
    """Without options every sending is let through, except what a fixture saves (H30)."""
    assert passes({}, instance=Order(), created=False, raw=False)
    assert passes({}, signal=some_signal, sender=None)
    assert not passes({}, raw=True)


@pytest.mark.parametrize(
    ("options", "signal", "raw", "expected"),
    [
        ({"raw": True}, post_save, True, True),
        ({"raw": True}, post_save, False, True),
        ({"raw": False}, post_save, True, False),
        ({}, m2m_changed, True, False),
        ({}, some_signal, True, True),
        ({}, post_save, "yes", True),
    ],
)
def test_raw(options: Any, signal: Any, raw: Any, expected: bool) -> None:
    """Fixtures are let through on request; ``raw`` of a project's own signal means what the project says (H30)."""
    assert expected is passes(options, signal=signal, raw=raw)


@pytest.mark.parametrize(
    ("created", "sent", "expected"),
    [
        (True, {"created": True}, True),
        (True, {"created": False}, False),
        (False, {"created": False}, True),
        (False, {"created": True}, False),
        (True, {}, False),
        (False, {}, False),
        (True, {"created": 1}, False),
    ],
)
def test_created(created: bool, sent: dict[str, Any], expected: bool) -> None:
    """``created`` lets through what says exactly that."""
    assert expected is passes({"created": created}, **sent)


@pytest.mark.parametrize(
    ("patterns", "action", "expected"),
    [
        ("post_*", "post_add", True),
        ("post_*", "pre_add", False),
        ("*_add", "pre_add", True),
        (["pre_clear", "post_clear"], "post_clear", True),
        ("post_add", "POST_ADD", False),
        ("post_*", None, False),
        ("*", 5, False),
    ],
)
def test_action(patterns: Any, action: Any, expected: bool) -> None:
    """``action`` lets through what one of its patterns fits, letter by letter."""
    assert expected is passes({"action": patterns}, signal=m2m_changed, action=action)


def test_action_of_a_signal_without() -> None:
    """A sending that has no action fits no pattern."""
    assert not passes({"action": "*"}, signal=some_signal)


an_order = Order(pk=1)


@pytest.mark.parametrize(
    ("exclude", "sender", "expected"),
    [
        (Order, Order, False),
        (Order, Customer, True),
        (Order, PriorityOrder, True),
        ("shop.Order", Order, False),
        ("shop.order", Order, False),
        ("shop.Order", RushOrder, True),
        (["shop.Tag", Customer], Customer, False),
        ("shop.Order_tags", Order.tags.through, False),
        ("auth.User", User, False),
        (SwappedOut, User, False),
        ([None], None, False),
        ([None], Order, True),
        (an_order, an_order, False),
        (an_order, Order(pk=1), True),
        ("shop.Order", "shop.Order", True),
        ("nowhere.Model", Order, True),
        (Stamped, Invoice, True),
    ],
)
def test_exclude(exclude: Any, sender: Any, expected: bool) -> None:
    """``exclude`` leaves out these senders, by class, text or identity, and no subclass of theirs (H9, H10, H12)."""
    assert expected is passes({"exclude": exclude}, sender=sender)


@pytest.mark.parametrize(
    ("family", "sender", "expected"),
    [
        (Order, Order, True),
        (Order, PriorityOrder, True),
        (Order, RushOrder, True),
        (Order, Tag, False),
        (Stamped, Invoice, True),
        (Order, None, False),
        (Order, an_order, False),
        (Order, "shop.Order", False),
    ],
)
def test_a_family(family: Any, sender: Any, expected: bool) -> None:
    """With subclasses, a class and all that derive from it are let through (H10)."""
    options = of_family(SendingOptions(), family, "here")

    assert expected is lets_through(options, Sending(signal=post_save, sender=sender, kwargs={}), "shop.update")


def test_a_family_keeps_no_values() -> None:
    """``changed`` keeps values of the models it names, so it does not go with subclasses, and the error says so."""
    with pytest.raises(
        ConnectError, match=r"changed= keeps values per model; list the models instead of subclasses=True"
    ):
        of_family(SendingOptions(changed=("total",)), Order, "here")


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (lambda: True, True),
        (lambda: 0, False),
        (lambda: None, False),
        (lambda number: number > 4, True),
        (lambda sender, signal: sender is Order and signal is post_save, True),
        (lambda absent=False: absent, False),
        (lambda **sent: set(sent) == {"number", "sender", "signal"}, True),
        (functools.partial(lambda limit, number: number > limit, 9), False),
    ],
    ids=["yes", "zero", "none", "an argument", "sender and signal", "a default", "everything", "a partial"],
)
def test_when(when: Any, expected: bool) -> None:
    """``when`` is given the arguments it names, and decides by what it returns."""
    assert expected is passes({"when": when}, number=5)


def broken(**kwargs: Any) -> bool:
    raise LookupError("no such shop")


def test_a_when_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """When the question fails, the event is sent all the same, and the error logged with the receiver's name (H23)."""
    with caplog.at_level(logging.ERROR):
        assert passes({"when": broken})

    assert "when= of shop.update raised; the event is sent all the same." in caplog.text
    assert "LookupError: no such shop" in caplog.text


def test_a_when_that_raises_under_strict(settings: Any) -> None:
    """Under ``STRICT`` it is raised, for tests and development (H23)."""
    settings.DJANGO_CELERY_SIGNALS = {"STRICT": True}

    with pytest.raises(LookupError, match="no such shop"):
        passes({"when": broken})


def test_when_is_asked_last() -> None:
    """What another option keeps out is not asked about."""
    assert not passes({"when": broken, "created": True}, created=False)


def test_changed_of_what_has_no_row() -> None:
    """``changed`` keeps nothing out that is no save of an instance."""
    assert passes({"changed": "total"}, signal=some_signal)
    assert passes({"changed": "total"}, instance=5)


@pytest.mark.django_db
@pytest.mark.parametrize("made", ["plain", "by the library"])
def test_changed(made: str, tasks: Tasks, celery_app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """``changed`` lets through what is new or changed; after a plain connect, from the next load on, and it says so."""
    task = tasks.shared(changed=["price"])
    if made == "plain":
        changes._watched.pop(WeightClass, None)
        post_save.connect(task.delay, sender=WeightClass)
    else:
        connect(post_save, task, sender=WeightClass)

    row = WeightClass.objects.create(limit="2.50", price=3)
    row.save()
    row = WeightClass.objects.get()
    row.save()
    row.price = 4
    row.save()
    post_save.disconnect(task.delay, sender=WeightClass)

    sent = [dict(message.body["kwargs"])["created"] for message in take(celery_app)]
    assert ([True, False, False] if made == "plain" else [True, False]) == sent
    assert (made == "plain") is ("begins to work with the instances loaded from now on" in caplog.text)
