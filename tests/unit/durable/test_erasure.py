"""Forgetting: what deliveries hold about an object is found in every form and deleted, and nothing else is."""

from __future__ import annotations

import uuid
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from django.apps import apps
from django.contrib.sessions.models import Session
from django.db import models
from django.db.models import F, Model
from django.test.utils import isolate_apps

from django_celery_signals import forget
from django_celery_signals.durable import deliveries as module
from django_celery_signals.durable import erasure, rows
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.relay import keeping
from tests.delivering import place, states
from tests.elsewhere import elsewhere
from tests.holding import bell, send, work
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import (
    Article,
    Country,
    Customer,
    Holiday,
    Order,
    OrderLine,
    Parcel,
    PriorityOrder,
    Profile,
    RushOrder,
    Tag,
    User,
    WeightClass,
)

each_kind = each_database("default", "postgres", "mariadb")

SNAPSHOT = {"instance": "snapshot"}


@pytest.fixture(autouse=True)
def looked_through(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all databases only the test's own is there."""
    alias = getattr(request.node, "callspec", None) and request.node.callspec.params.get("alias")
    if alias is not None:
        monkeypatch.setattr(erasure, "keeping", lambda: [alias])


@pytest.fixture
def hold(receiving: Receiving) -> Any:
    """Sends objects to a durable receiver, in one delivery."""

    def hold(using: str, *objects: Any, **options: Any) -> int:
        task = receiving(bell, guarantee="durable", **options)
        send(using, value=list(objects))
        receiving.end()
        return int(deliveries(using).get(receiver=task.name).pk)

    return hold


def left(alias: str) -> list[int]:
    return list(deliveries(alias).order_by("pk").values_list("pk", flat=True))


# What is found -------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("options", [{}, SNAPSHOT], ids=["reference", "snapshot"])
def test_forget(alias: str, hold: Any, options: dict[str, Any]) -> None:
    """Deliveries that refer to an object, or hold its values, are deleted; those of others stay."""
    mine, other = (Customer.objects.using(alias).create(name=name) for name in ("Ada", "Ben"))
    hold(alias, mine, **options)
    hold(alias, other, mine, **options)
    kept = [hold(alias, other, **options), hold(alias, Tag.objects.using(alias).create(pk=mine.pk), **options)]

    assert 2 == forget(mine)
    assert kept == left(alias)
    assert 0 == forget(mine)


@each_kind
def test_forget_keys_that_begin_alike(alias: str, hold: Any) -> None:
    """A key that another one begins with is another key."""
    objects = [Customer.objects.using(alias).create(pk=pk, name="any") for pk in (1, 10, 11, 100)]
    kept = [hold(alias, each) for each in objects][1:]

    assert 1 == forget(objects[0])
    assert kept == left(alias)


@each_kind
def test_forget_in_every_state(alias: str, hold: Any) -> None:
    """Whatever state a delivery is in, it is deleted: what waits, what has failed, what is kept after success."""
    customer = Customer.objects.using(alias).create(name="Ada")
    for state in State:
        pk = hold(alias, customer)
        deliveries(alias).filter(pk=pk).update(state=state)

    assert len(State) == forget(customer)
    assert {} == states(alias)


@each_kind
def test_forget_what_has_its_turn(alias: str, hold: Any) -> None:
    """What waits behind a forgotten delivery goes on, whatever that one was doing."""
    customer = Customer.objects.using(alias).create(name="Ada")
    options = {"ordered": True, "key": lambda: "all"}
    head = hold(alias, customer, **options)
    lane = str(deliveries(alias).get(pk=head).lane)
    deliveries(alias).filter(pk=head).update(slot=lane, state=State.RUNNING)
    place(alias, "tests.nobody", lane=lane, due_at=None)

    assert 1 == forget(customer)
    assert [(lane, State.READY)] == list(deliveries(alias).values_list("slot", "state"))


@each_kind
@pytest.mark.parametrize("key", ["one", "two", "nested"])
def test_forget_by_key(alias: str, hold: Any, key: str) -> None:
    """What has an object as its key refers to it, alone or among others; what only begins alike does not."""
    mine, other = (Customer.objects.using(alias).create(pk=pk, name="any") for pk in (7, 77))
    keys = {"one": lambda: mine, "two": lambda: ("x", mine), "nested": lambda: (1, ("x", mine))}
    others = {"one": lambda: other, "two": lambda: ("x", other), "nested": lambda: (1, ("x", other))}
    gone = hold(alias, ordered=True, key=keys[key])
    behind = hold(alias, ordered=True, key=others[key])

    assert "shop.Customer:7" in deliveries(alias).get(pk=gone).key
    assert 1 == forget(mine)
    assert [behind] == left(alias)


@each_kind
def test_forget_what_is_erased(alias: str, hold: Any) -> None:
    """What has lost its payload holds nothing any more, and stays to be counted."""
    customer = Customer.objects.using(alias).create(name="Ada")
    hold(alias, customer)
    deliveries(alias).update(payload=None, state=State.FAILED)

    assert 0 == forget(customer)
    assert {"failed": 1} == states(alias)


@pytest.mark.django_db(databases="__all__", transaction=True)
def test_forget_in_every_database(hold: Any) -> None:
    """Every database is looked through: an object is sent from wherever it is used."""
    customer = Customer.objects.create(name="Ada")
    for alias in keeping():
        hold(alias, customer)

    assert len(keeping()) == forget(customer) > 1


@each_kind
def test_forget_what_runs(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A receiver that is running is not stopped, but what it does is rolled back with its transaction."""

    def act(value: Any) -> None:
        if alias == "default":  # within the lock of SQLite
            forget(value)
        else:
            elsewhere(lambda: forget(value))
        Tag.objects.using(alias).create(name="effect")

    receiving(bell, act, guarantee="durable")
    send(alias, value=Customer.objects.using(alias).create(name="Ada"))

    assert "IGNORED" == work(celery_app, alias).state
    assert 0 == Tag.objects.using(alias).count()
    assert {} == states(alias) or alias == "default"  # there the deletion was part of what was rolled back


@each_kind
def test_forget_many(alias: str, hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, no statement deletes very many of them."""
    monkeypatch.setattr(rows, "STEP", 2)
    customer = Customer.objects.using(alias).create(name="Ada")
    hold(alias, customer)
    payload = deliveries(alias).get().payload
    place(alias, "tests.nobody", 4, payload=payload)

    assert 5 == forget(customer)
    assert module.STEP < 1000  # of so many keys MariaDB makes a query that locks all rows


# Families ------------------------------------------------------------------------------------------------------------


@each_database("default")
def test_forget_a_family(alias: str, hold: Any) -> None:
    """A row is one object, whatever class it was sent as: a parent's, a child's, a proxy's."""
    customer = Customer.objects.create(name="Ada")
    rush = RushOrder.objects.create(customer=customer, courier="Ben")
    forms = [rush, Order.objects.get(pk=rush.pk), PriorityOrder.objects.get(pk=rush.pk)]

    for one in forms:
        for other in forms:
            hold(alias, other)
        assert 3 == forget(one), type(one)


@each_database("default")
def test_forget_no_stranger(alias: str, hold: Any) -> None:
    """What only points at an object, or has a key of the same value, is no part of it."""
    customer = Customer.objects.create(name="Ada")
    profile = Profile.objects.create(customer=customer)
    order = Order.objects.create(pk=customer.pk, customer=customer)
    kept = [hold(alias, profile), hold(alias, order)]

    assert 0 == forget(customer)
    assert kept == left(alias)
    assert 1 == forget(profile)


@isolate_apps("tests.shop")
def test_rows_of_two_parents() -> None:
    """A row with two parents shares its key with the first; the second's key may be that of a stranger's row."""

    class First(models.Model):
        first_id = models.AutoField(primary_key=True)

        class Meta:
            app_label = "shop"

    class Second(models.Model):
        second_id = models.AutoField(primary_key=True)

        class Meta:
            app_label = "shop"

    class Both(First, Second):
        class Meta:
            app_label = "shop"

    assert [True, False, True] == [erasure._share_a_row(model, Both(pk=1)) for model in (First, Second, Both)]
    assert [True, False] == [erasure._share_a_row(Both, other) for other in (First(pk=1), Second(pk=1))]


# Keys ----------------------------------------------------------------------------------------------------------------


def keyed() -> list[Model]:
    """Return an object of every kind of key."""
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"))
    return [
        Parcel.objects.create(weight=1.0),
        Country.objects.create(code="é%", name="any"),
        Country.objects.create(code='"\\', name="any"),
        Holiday.objects.create(day=date(2030, 1, 2), name="any"),
        WeightClass.objects.create(limit=Decimal("5.50")),
        OrderLine.objects.create(order=order, number=3),
        Article.objects.create(title="hidden", deleted=True),
        User.objects.create(username="ada"),
    ]


@each_database("default")
@pytest.mark.parametrize("options", [{}, SNAPSHOT], ids=["reference", "snapshot"])
def test_forget_any_key(alias: str, hold: Any, options: dict[str, Any]) -> None:
    """Keys of every kind are found, whatever characters they hold, and only they (H54)."""
    objects = keyed()
    kept = [hold(alias, each, **options) for each in objects]

    for each in objects:
        assert 1 == forget(each), repr(each)
        assert kept[1:] == left(alias)
        kept.pop(0)


@each_database("default")
def test_forget_text_in_capital_letters(alias: str, hold: Any) -> None:
    """A key that differs in its case is another one, also where the database takes them for one."""
    kept = hold(alias, Country.objects.create(code="DE", name="any"))
    hold(alias, Country.objects.create(code="de", name="any"))

    assert 1 == forget(Country(code="de"))
    assert [kept] == left(alias)


KEYS: list[tuple[type[Model], Any, Any]] = [
    (Customer, 5, "5"),
    (Parcel, uuid.UUID(int=7), str(uuid.UUID(int=7))),
    (Holiday, date(2030, 1, 2), "2030-01-02"),
    (Profile, 5, "5"),
    (OrderLine, (5, 3), ("5", 3)),
]


@each_database("default")
@pytest.mark.parametrize(("model", "value", "text"), KEYS, ids=[model.__name__ for model, *_ in KEYS])
def test_forget_keys_as_they_were_written(alias: str, hold: Any, model: Any, value: Any, text: Any) -> None:
    """A key that was sent as text, as a form has it, is found by the object's own, and the other way round (H56)."""
    for sent in (value, text):
        for asked in (value, text):
            hold(alias, saved(model(pk=sent)))
            assert 1 == forget(model(pk=asked)), (sent, asked)


def saved(instance: Model) -> Model:
    """Make an object look as if it had been saved."""
    instance._state.adding, instance._state.db = False, "default"
    return instance


@each_database("default")
def test_forget_what_cannot_be_sent(alias: str) -> None:
    """An object whose key never travels is held nowhere."""
    assert 0 == forget(Customer(pk=F("id")))
    assert 0 == forget(Session(pk="a secret"))


def test_forget_what_has_no_key() -> None:
    """An object without a key cannot be found, which is said at once."""
    with pytest.raises(ValueError, match=r"^forget\(<Customer: Ada>\): it has no primary key"):
        forget(Customer(name="Ada"))


def test_all_models_are_looked_at() -> None:
    """The tables between two models, which Django makes itself, have rows that can be sent as well."""
    (through,) = [model for model in apps.get_models(include_auto_created=True) if model._meta.auto_created is Order]
    assert erasure._share_a_row(through, through(pk=1))
