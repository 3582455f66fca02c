"""Instances of several envelopes: one query for each model and database, and every one given out once."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from django_celery_signals.codec import fetching
from django_celery_signals.codec.core import Decoder
from django_celery_signals.codec.fetching import Fetched, instance_from
from django_celery_signals.codec.instances import InstanceEncoder
from django_celery_signals.exceptions import DecodeError, InstanceMissing
from tests.parameters import each_database
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
    WeightClass,
)

each_kind = each_database("default", "postgres", "mariadb", transaction=False)


def entry_of(instance: Any, **changes: Any) -> dict[str, Any]:
    """Return an instance's entry in an envelope."""
    encoder = InstanceEncoder(lambda error: None, snapshot=False, users_too=False)
    encoder.encode(instance)
    return {**encoder.objects[0], **changes}


@each_kind
def test_other_classes_of_a_row(alias: str) -> None:
    """A row that was given out as one class of it is fetched anew as another: the first may have changed it."""
    order = RushOrder.objects.using(alias).create(customer=ada(alias))
    proxy = PriorityOrder.objects.using(alias).get(pk=order.pk)
    entries = [entry_of(order), entry_of(proxy)]
    fetched = Fetched(entries)
    given(fetched, entries[0])
    Order.objects.using(alias).update(status="paid")

    assert "paid" == given(fetched, entries[1]).status


@each_kind
def test_what_is_old(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched some time ago is fetched anew, or found to be gone."""
    one, other = (ada(alias) for _ in range(2))
    entries = [entry_of(one), entry_of(other)]
    monkeypatch.setattr(fetching, "FRESH", 0.0)
    fetched = Fetched(entries)
    Customer.objects.using(alias).filter(pk=one.pk).update(name="Countess")
    other.delete()

    assert "Countess" == given(fetched, entries[0]).name
    with pytest.raises(InstanceMissing):
        given(fetched, entries[1])


def given(fetched: Fetched, entry: Any) -> Any:
    return fetched(entry, Decoder([entry], instance_from))


def ada(alias: str) -> Customer:
    return Customer.objects.using(alias).create(name="Ada")


MADE: dict[str, Any] = {
    "number": ada,
    "uuid": lambda alias: Parcel.objects.using(alias).create(),
    "text": lambda alias: Country.objects.using(alias).create(code="de"),
    "child": lambda alias: RushOrder.objects.using(alias).create(customer=ada(alias)),
    "proxy": lambda alias: PriorityOrder.objects.using(alias).create(customer=ada(alias)),
    "foreign key": lambda alias: Profile.objects.using(alias).create(customer=ada(alias)),
    "hidden": lambda alias: Article.objects.using(alias).create(deleted=True),
}
SINGLY: dict[str, Any] = {
    "date": lambda alias: Holiday.objects.using(alias).create(day=date(2030, 1, 1)),
    "decimal": lambda alias: WeightClass.objects.using(alias).create(limit=5),
    "two columns": lambda alias: OrderLine.objects.using(alias).create(
        order=Order.objects.using(alias).create(customer=ada(alias)), number=1
    ),
    "deferred": lambda alias: Customer.objects.using(alias).defer("email").get(pk=ada(alias).pk),
}


@each_kind
@pytest.mark.parametrize("name", MADE)
def test_fetched_together(alias: str, name: str) -> None:
    """A row whose key says what it is comes with the others', past any manager, as its own class, from its database."""
    instance = MADE[name](alias)
    entry = entry_of(instance)
    with CaptureQueriesContext(connections[alias]) as queries:
        fetched = Fetched([entry, entry])
        assert 1 == len(queries)
        found = given(fetched, entry)
        assert 1 == len(queries)

    assert (instance, type(instance), alias) == (found, type(found), found._state.db)
    assert set() == found.get_deferred_fields()


@each_kind
@pytest.mark.parametrize("name", SINGLY)
def test_fetched_singly(alias: str, name: str) -> None:
    """Where it is not sure that a key equals the one that is fetched, or not all is, the row comes by itself."""
    instance = SINGLY[name](alias)
    entry = entry_of(instance)
    with CaptureQueriesContext(connections[alias]) as queries:
        fetched = Fetched([entry])
        assert 0 == len(queries)
        found = given(fetched, entry)

    assert instance == found
    assert instance.get_deferred_fields() == found.get_deferred_fields()


@each_kind
def test_one_query_for_each_model(alias: str) -> None:
    """However many there are, each model is one query; a row that two refer to is fetched once, and then again."""
    customers = [ada(alias) for _ in range(5)]
    parcels = [Parcel.objects.using(alias).create() for _ in range(5)]
    entries = [entry_of(instance) for instance in (*customers, *parcels)]
    with CaptureQueriesContext(connections[alias]) as queries:
        fetched = Fetched([*entries, *entries])
        first = [given(fetched, entry) for entry in entries]
        assert 2 == len(queries)
        Customer.objects.using(alias).update(name="Bob")
        second = [given(fetched, entry) for entry in entries[:5]]

    assert [*customers, *parcels] == first
    assert [["Ada"] * 5, ["Bob"] * 5] == [[one.name for one in found[:5]] for found in (first, second)]
    assert not {id(one) for one in first} & {id(one) for one in second}


@each_database("default", transaction=False, also=["other"])
def test_each_database_by_itself(alias: str) -> None:
    """Rows with one key in two databases are two."""
    entries = []
    for using in ("default", "other"):
        Customer.objects.using(using).create(pk=5, name=using)
        entries.append(entry_of(Customer.objects.using(using).get(pk=5)))

    fetched = Fetched(entries)
    assert ["default", "other"] == [given(fetched, entry).name for entry in entries]


@each_kind
def test_what_is_gone(alias: str) -> None:
    """A row that is not there is missing when it is asked for, and the others are there."""
    here, gone = ada(alias), ada(alias)
    entries = [entry_of(here), entry_of(gone)]
    gone.delete()

    fetched = Fetched(entries)
    assert here == given(fetched, entries[0])
    with pytest.raises(InstanceMissing):
        given(fetched, entries[1])


@each_database("mariadb", transaction=False)
def test_text_that_the_database_takes_for_another(alias: str) -> None:
    """Where a database takes capital letters for small ones, the row of such a key is the one it has, asked singly."""
    Country.objects.using(alias).create(code="de", name="Germany")
    entry = entry_of(Country(code="DE", name=""), db=alias, model="shop.Country", pk="DE")
    entry.pop("fields", None)

    assert "Germany" == given(Fetched([entry]), entry).name


@each_database("default", transaction=False)
def test_snapshots(alias: str) -> None:
    """What travels with its values is not fetched."""
    encoder = InstanceEncoder(lambda error: None, snapshot=True, users_too=False)
    encoder.encode(ada(alias))
    (entry,) = encoder.objects
    with CaptureQueriesContext(connections[alias]) as queries:
        assert "Ada" == given(Fetched([entry]), entry).name
    assert 0 == len(queries)


NONSENSE: dict[str, Any] = {
    "nothing": None,
    "number": 5,
    "list": [],
    "empty": {},
    "model": {"model": "shop.Nothing", "pk": 5, "db": "default"},
    "no model": {"model": "nonsense", "pk": 5, "db": "default"},
    "model of another type": {"model": ["shop.Customer"], "pk": 5, "db": "default"},
    "tag": {"model": "shop.Customer", "pk": {"$": "nothing", "v": 5}, "db": "default"},
    "number that is none": {"model": "shop.Customer", "pk": "five", "db": "default"},
    "list of keys": {"model": "shop.Customer", "pk": [5], "db": "default"},
    "key of another field": {"model": "shop.Parcel", "pk": 5, "db": "default"},
    "database": {"model": "shop.Customer", "pk": 5, "db": "nowhere"},
    "no database": {"model": "shop.Customer", "pk": 5, "db": None},
    "list of databases": {"model": "shop.Customer", "pk": 5, "db": ["default"]},
}


@each_database("default", transaction=False)
@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense(alias: str, name: str) -> None:
    """What is damaged is not fetched with the others, and is an error only where it is asked for."""
    customer = ada(alias)
    entry, good = NONSENSE[name], entry_of(customer)
    with CaptureQueriesContext(connections[alias]) as queries:
        fetched = Fetched([entry, good])
    assert 1 == len(queries)
    assert customer == given(fetched, good)
    with pytest.raises((DecodeError, InstanceMissing, LookupError, TypeError, ValueError)):
        given(fetched, entry)
