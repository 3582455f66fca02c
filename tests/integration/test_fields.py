"""Every kind of model and every type of field, over every database: by reference as a fresh fetch has it, by value as
the instance held it, without a query to say so."""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from django.contrib.contenttypes.models import ContentType
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.db import connections, models, router
from django.db.models import F
from django.db.models.expressions import DatabaseDefault
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal
from django.test.utils import CaptureQueriesContext
from django.utils import translation
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy

from django_celery_signals import DetachedInstance, InstanceMissing, NotCarried
from tests.carrying import Arrived, exact, opened, sealed
from tests.drain import drain
from tests.parameters import each_database
from tests.pgshop.models import Booking, Catalogue
from tests.receiving import Receiving
from tests.shop.models import (
    Account,
    Article,
    Club,
    Comment,
    Country,
    Customer,
    Everything,
    Holiday,
    Invoice,
    Membership,
    Order,
    OrderLine,
    Parcel,
    Person,
    PriorityOrder,
    Product,
    Profile,
    Receipt,
    RushOrder,
    Stock,
    Tag,
    User,
    WeightClass,
)

UUID = uuid.UUID(int=5)
MOMENT = datetime(2026, 3, 29, 1, 30, 15, 123456, tzinfo=UTC)

#: A value for every field of ``Everything`` that takes one, as an application would give it.
FULL: dict[str, Any] = {
    "binary": b"\x00\xff",
    "binary_null": b"",
    "boolean": True,
    "boolean_null": False,
    "char": "ünï ☃ 🎈 $",
    "char_null": "",
    "date": date(2026, 3, 29),
    "date_time": MOMENT,
    "time": time(23, 59, 59, 999999),
    "decimal": Decimal("12345678901234.123456"),
    "duration": timedelta(days=-3, microseconds=1),
    "email": "ada@example.com",
    "file_path": "/tmp/a",
    "float": 0.1,
    "ip_address": "2001:db8::1",
    "integer": -5,
    "integer_null": 0,
    "big_integer": 2**63 - 1,
    "small_integer": -32768,
    "positive": 2**31 - 1,
    "positive_big": 2**53,
    "positive_small": 0,
    "json": {"a": [1, None, {"$": "x", "v": 2.5}], "": True},
    "json_exact": {"price": Decimal("1.10"), "day": date(2026, 1, 1), "sum": [1.25]},
    "level": Everything.Level.HIGH,
    "slug": "a-b",
    "text": "a\nb" * 100,
    "url": "https://example.com/?a=b",
    "uuid": UUID,
    "uuid_null": UUID,
    "points": 3,
    "stored_at": MOMENT,
}


def values_of(instance: models.Model) -> dict[str, Any]:
    """Describe, exactly, the values that an instance holds; what is deferred stays so."""
    names = [field.attname for field in instance._meta.concrete_fields if field.attname in instance.__dict__]
    return {name: exact(getattr(instance, name)) for name in names}


def refetched(instance: Any) -> Any:
    """Return the row of an instance as a fresh fetch has it, whatever its managers hide."""
    return models.QuerySet(type(instance), using=instance._state.db).get(pk=instance.pk)


@contextmanager
def no_queries() -> Iterator[None]:
    """Check that no database is asked anything."""
    with ExitStack() as stack:
        captured = [stack.enter_context(CaptureQueriesContext(connections[alias])) for alias in _open()]
        yield
    assert [] == [query["sql"] for queries in captured for query in queries.captured_queries]


def _open() -> list[str]:
    return [alias for alias in connections if connections[alias].connection is not None]


def unasked(kwargs: dict[str, Any], **options: Any) -> Arrived:
    """Return a sending after its journey; writing it asks no database."""
    with no_queries():
        text = sealed(kwargs, **options)
    return opened(text)


def by_reference(instance: Any) -> Any:
    return unasked({"instance": instance})["instance"]


def by_value(instance: Any, **options: Any) -> Any:
    return unasked({"instance": instance}, snapshot=True, **options)["instance"]


@contextmanager
def sendings(sender: Any, *signals: Signal, snapshot: bool = True) -> Iterator[list[tuple[dict[str, Any], str]]]:
    """Write each sending of some signals down as the library does: what the instance held then, and the envelope."""
    seen: list[tuple[dict[str, Any], str]] = []

    def write_down(signal: Signal, sender: Any, **kwargs: Any) -> None:
        with no_queries():
            text = sealed(kwargs, signal=signal, sender=sender, snapshot=snapshot)
            seen.append((values_of(kwargs["instance"]), text))

    for signal in signals:
        signal.connect(write_down, sender=sender)
    try:
        yield seen
    finally:
        for signal in signals:
            signal.disconnect(write_down, sender=sender)


@pytest.fixture
def receiving(celery_app: Celery) -> Iterator[Receiving]:
    """Declares receivers for the test."""
    declared = Receiving(app=celery_app)
    yield declared
    declared.end()


# Every kind of model ------------------------------------------------------------------------------------------------


def customer(alias: str) -> Customer:
    return Customer.objects.using(alias).create(name="Ada")


def order(alias: str, model: Any = Order, **values: Any) -> Any:
    return model.objects.using(alias).create(customer=customer(alias), status="paid", total=Decimal("5.00"), **values)


def comment(alias: str) -> Comment:
    kind = ContentType.objects.db_manager(alias).get_for_model(Parcel)
    return Comment.objects.using(alias).create(content_type=kind, object_id=str(UUID), text="a")


def through(alias: str) -> Any:
    tag = Tag.objects.using(alias).create(name="a")
    order(alias).tags.add(tag)
    return Order.tags.through.objects.using(alias).get()


def person(alias: str) -> Person:
    ada, bob = (Person.objects.using(alias).create(name=name) for name in ("Ada", "Bob"))
    ada.friends.add(bob)
    return Person.objects.using(alias).prefetch_related("friends").get(pk=ada.pk)


def make(model: Any, **values: Any) -> Callable[[str], Any]:
    return lambda alias: models.QuerySet(model, using=alias).create(**values)


KINDS: dict[str, Callable[[str], Any]] = {
    "plain": order,
    "proxy": lambda alias: order(alias, PriorityOrder),
    "child": lambda alias: order(alias, RushOrder, courier="c"),
    "of-abstract": make(Invoice, number="a"),
    "of-abstract-2": make(Receipt, number="b"),
    "hidden": make(Article, title="a", deleted=True),
    "uuid-pk": make(Parcel, weight=2.5),
    "text-pk": make(Country, code="de", name="Germany"),
    "date-pk": make(Holiday, day=date(2026, 10, 3), name="a"),
    "decimal-pk": make(WeightClass, limit=Decimal("2.50")),
    "composite-pk": lambda alias: OrderLine.objects.using(alias).create(order=order(alias), number=2),
    "fk-pk": lambda alias: Profile.objects.using(alias).create(customer=customer(alias), motto="a"),
    "to-field": lambda alias: Stock.objects.using(alias).create(
        product=Product.objects.using(alias).create(sku="a"), amount=3
    ),
    "generic-fk": comment,
    "through": through,
    "own-through": lambda alias: Membership.objects.using(alias).create(
        club=Club.objects.using(alias).create(name="a"), customer=customer(alias)
    ),
    "m2m-to-self": person,
    "secrets": make(Account, owner="Ada"),
    "user": make(User, username="ada"),
}


@each_database(transaction=False)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_travels_by_reference(alias: str, kind: str) -> None:
    """A row of every kind of model arrives by reference as a fresh fetch has it, of the same class, and nothing more
    (H49, H50, H54, H60, H68)."""
    instance = KINDS[kind](alias)
    expected = refetched(instance)

    for sent in (instance, expected, SimpleLazyObject(lambda: expected)):
        arrived = by_reference(sent)
        assert type(arrived) is type(expected)
        assert values_of(expected) == values_of(arrived)
        assert (alias, False) == (arrived._state.db, arrived._state.adding)
        assert {} == arrived._state.fields_cache
        assert vars(expected).keys() == vars(arrived).keys()  # neither cached relations nor what a snapshot shadows


@each_database(transaction=False)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_travels_by_value(alias: str, kind: str) -> None:
    """A row of every kind of model arrives by value as the instance held it, also when it is gone, and refuses to be
    written (H50, H51, H53, H54, H55, H60, H65)."""
    instance = KINDS[kind](alias)
    sent = [(one, unasked({"instance": one}, snapshot=True, users_too=True)) for one in (instance, refetched(instance))]
    reference = unasked({"instance": instance})
    models.QuerySet(type(instance), using=alias).filter(pk=instance.pk).delete()

    for one, snapshot in sent:
        arrived = snapshot["instance"]
        secrets = {"password", "api_token", "secret"}
        expected = {name: value for name, value in values_of(one).items() if name not in secrets}
        assert expected == values_of(arrived)
        assert (type(one), alias, False) == (type(arrived), arrived._state.db, arrived._state.adding)
        assert one.pk == arrived.pk
        with pytest.raises(DetachedInstance):
            arrived.save()
    with pytest.raises(InstanceMissing, match="no longer exists"):
        reference["instance"]


@each_database(transaction=False)
def test_a_row_is_looked_for_where_it_was_sent_from(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is fetched from the recorded database without asking a router where to read (H48)."""
    tag = Tag.objects.using(alias).create(name="a")
    asked: list[Any] = []
    monkeypatch.setattr(router, "db_for_read", lambda *args, **hints: asked.append(args))
    arrived = by_reference(tag)

    assert [] == asked
    assert ("a", alias) == (arrived.name, arrived._state.db)


@each_database(transaction=False)
def test_relations_of_what_arrived_work(alias: str) -> None:
    """Relations of what arrived are followed on its own database: foreign, generic, to a field, and many-to-many as it
    is by then (H48, H60)."""
    parcel = Parcel.objects.using(alias).create(id=UUID)
    product = Product.objects.using(alias).create(sku="a", views=3)
    stock = Stock.objects.using(alias).create(product=product)
    one = order(alias)
    sent = unasked({"comment": comment(alias), "stock": stock, "order": one})
    one.tags.add(Tag.objects.using(alias).create(name="later"))

    assert parcel == sent["comment"].subject
    assert 3 == sent["stock"].product.views
    assert "Ada" == sent["order"].customer.name
    assert ["later"] == [tag.name for tag in sent["order"].tags.all()]


@each_database(transaction=False)
@pytest.mark.parametrize("snapshot", [False, True], ids=["reference", "value"])
@pytest.mark.parametrize(
    ("model", "names", "deferred"),
    [
        (RushOrder, ["courier"], {"id", "customer_id", "status", "total", "notes", "extras", "placed_at"}),
        (RushOrder, ["status"], {"id", "customer_id", "courier", "total", "notes", "extras", "placed_at"}),
        (PriorityOrder, ["id"], {"customer_id", "status", "total", "notes", "extras", "placed_at"}),
    ],
    ids=["child", "parent", "proxy"],
)
def test_what_was_not_loaded_is_loaded_when_used(
    alias: str, snapshot: bool, model: Any, names: list[str], deferred: set[str]
) -> None:
    """Deferred fields, of a parent's table too, are not loaded by the sending, are deferred in the worker, and are
    loaded there when they are used (H50, H59)."""
    pk = order(alias, model, **({"courier": "c"} if model is RushOrder else {})).pk
    instance = model.objects.using(alias).only(*names).get(pk=pk)
    missing = instance.get_deferred_fields()
    assert deferred >= missing > set()
    arrived = unasked({"instance": instance}, snapshot=snapshot)["instance"]

    assert missing == arrived.get_deferred_fields() == instance.get_deferred_fields()
    with no_queries():
        assert (pk, pk) == (arrived.pk, arrived.id)  # a child's id is known from its link to the parent
    assert Decimal("5.00") == arrived.total
    assert {name: exact(getattr(arrived, name)) for name in missing} == {
        name: values_of(refetched(instance))[name] for name in missing
    }


# Every type of field ------------------------------------------------------------------------------------------------


@pytest.fixture
def files() -> Iterator[Callable[..., Any]]:
    """Makes rows with every field filled, files included, and removes the files."""
    made: list[Any] = []
    numbers = itertools.count(1)

    def make_one(alias: str, **values: Any) -> Any:
        file = ContentFile(b"content", name=f"a-{next(numbers)}.txt")
        made.append(Everything(**{**FULL, "customer": customer(alias), "file": file, **values}))
        made[-1].save(using=alias)
        return made[-1]

    yield make_one
    for one in made:
        FileSystemStorage().delete(one.file.name)


def test_full_has_every_field() -> None:
    """The tests give every field a value that can be given one."""
    given = {*FULL, "id", "customer", "file", "doubled", "shouted"}

    assert given == {field.name for field in Everything._meta.concrete_fields}
    assert {} == {
        field.name: value
        for field in Everything._meta.concrete_fields
        if (value := FULL.get(field.name)) is not None and field.name in ("level", "char") and value == field.default
    }


@each_database(transaction=False)
def test_every_field_arrives_as_it_was_fetched(alias: str, files: Any) -> None:
    """Every field of a fetched row arrives exact in value and type, by value and by reference (H54, H56, H61)."""
    fetched = refetched(files(alias))
    expected = values_of(fetched)

    assert expected == values_of(by_reference(fetched)) == values_of(by_value(fetched))
    assert len(Everything._meta.concrete_fields) == len(expected)


@each_database(transaction=False)
def test_every_field_may_be_empty(alias: str) -> None:
    """Fields that are None or empty arrive so (H56)."""
    fetched = refetched(Everything.objects.using(alias).create(uuid=UUID))

    assert values_of(fetched) == values_of(by_reference(fetched)) == values_of(by_value(fetched))
    assert by_value(fetched).ip_address is None


@each_database(transaction=False)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_binary_values_keep_their_type(alias: str, kind: Any) -> None:
    """A binary value arrives by value in the type it was given in, before and after the insert, and by reference in
    that of a fetch (H56, H61)."""
    with sendings(Everything, pre_save, post_save) as seen:
        instance = Everything.objects.using(alias).create(binary=kind(b"\x00\xff"), binary_null=kind(b""))

    for arrived in (opened(text)["instance"] for _, text in seen):
        assert [(kind, b"\x00\xff"), (kind, b"")] == [
            (type(value), bytes(value)) for value in (arrived.binary, arrived.binary_null)
        ]
    assert exact(refetched(instance).binary) == exact(by_reference(instance).binary)
    assert b"\x00\xff" == bytes(by_reference(instance).binary)


@each_database(transaction=False)
def test_values_are_as_given_until_they_are_fetched(alias: str) -> None:
    """What an application gave to the fields travels as it is by value, and as the database has it by reference
    (H56, H62, H63)."""
    given = {
        "decimal": "1.5",
        "level": Everything.Level.HIGH,
        "char": Order.Status.PAID,
        "text": gettext_lazy("Monday"),
        "date": "2026-03-29",
        "uuid": str(UUID),
        "json": (1, Everything.Level.LOW),
        "integer": True,
    }
    with translation.override("de"), sendings(Everything, post_save) as seen:
        instance = Everything.objects.using(alias).create(**given)
    [(_held, text)] = seen
    arrived = opened(text)["instance"]

    assert {**{name: exact(value) for name, value in given.items()}, "text": exact("Montag")} == {
        name: value for name, value in values_of(arrived).items() if name in given
    }
    fresh = by_reference(instance)
    assert (Decimal("1.500000"), 2, "paid", "Montag", date(2026, 3, 29), UUID, [1, 1], 1) == tuple(
        getattr(fresh, name) for name in given
    )
    assert int is type(fresh.level)


@each_database("postgres", transaction=False)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have(alias: str, number: float) -> None:
    """NaN and the infinities in a field arrive as they are (H61)."""
    fetched = refetched(Everything.objects.using(alias).create(float=number))

    assert repr(number) == repr(fetched.float) == repr(by_reference(fetched).float) == repr(by_value(fetched).float)


@each_database(transaction=False)
def test_files_work_in_the_worker(alias: str, files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that arrives can be opened, read and asked for its URL by its storage; the sending opens nothing (H61)."""

    def open_nothing(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("A file was opened.")

    with monkeypatch.context() as patch, sendings(Everything, post_save) as seen:
        patch.setattr(FileSystemStorage, "_open", open_nothing)
        instance = files(alias)
        sent = [unasked({"instance": instance, "file": instance.file}, snapshot=snapshot) for snapshot in (False, True)]

    for arrived in (*sent, opened(seen[0][1])):
        one = arrived["instance"]
        with one.file.open() as file:
            assert b"content" == file.read()
        assert (instance.file.name, instance.file.url, 7) == (one.file.name, one.file.url, one.file.size)
        assert one.file.storage is instance.file.storage
    for arrived in sent:
        with arrived["file"] as file:
            assert file.instance is arrived["instance"]
            assert b"content" == file.read()


@each_database(transaction=False)
def test_expressions_give_way_to_the_databases_value(alias: str) -> None:
    """F() that a save leaves on its instance arrives as the value it came to, by reference and by value (H57)."""
    product = Product.objects.using(alias).create(sku="a", views=7)
    product.views = F("views") + 1
    with sendings(Product, pre_save, snapshot=True) as before, sendings(Product, post_save, snapshot=False) as after:
        product.save()

    assert {"views"} == opened(before[0][1])["instance"].get_deferred_fields()
    assert 8 == opened(before[0][1])["instance"].views == opened(after[0][1])["instance"].views
    assert 8 == by_value(product).views == by_reference(product).views


@each_database(transaction=False)
def test_the_databases_own_values_before_and_after_the_insert(alias: str) -> None:
    """Generated values and the database's defaults are unset in pre_save, and in post_save as the instance has them
    (H52, H58)."""
    with sendings(Everything, pre_save, post_save) as seen:
        instance = Everything.objects.using(alias).create(integer=4, char="a")
    (held, before), (held_after, after) = seen
    unsaved, saved = opened(before)["instance"], opened(after)["instance"]

    assert [DatabaseDefault, DatabaseDefault] == [type(unsaved.points), type(unsaved.stored_at)]
    assert {"doubled", "shouted"} == unsaved.get_deferred_fields()
    assert (None, True) == (unsaved.pk, unsaved._state.adding)
    with pytest.raises(AttributeError, match="from an unsaved model"):
        unsaved.doubled  # noqa: B018
    assert held.keys() == values_of(unsaved).keys()
    assert (instance.pk, False) == (saved.pk, saved._state.adding)
    assert held_after == values_of(saved)
    for arrived in (saved, by_reference(instance)):
        assert (8, "A", 7, datetime) == (arrived.doubled, arrived.shouted, arrived.points, type(arrived.stored_at))


# What signals carry -------------------------------------------------------------------------------------------------


@each_database(transaction=False)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_deleted_arrives_as_it_was(alias: str, kind: str) -> None:
    """In pre_delete and post_delete the row's values travel, with its primary key, and the instance says it was saved;
    afterwards it has no primary key, and its snapshot has none (H51)."""
    instance = refetched(KINDS[kind](alias))
    pk = instance.pk
    with sendings(type(instance), pre_delete, post_delete) as seen:
        instance.delete()

    assert (0 if instance._meta.auto_created else 2) == len(seen)
    for held, text in seen:
        arrived = opened(text)["instance"]
        assert (pk, False, alias) == (arrived.pk, arrived._state.adding, arrived._state.db)
        assert values_of(arrived).items() <= held.items()
    arrived = by_reference(instance)
    assert exact((None, None) if kind == "composite-pk" else None) == exact(arrived.pk)
    assert not arrived._is_pk_set()
    with pytest.raises(DetachedInstance):
        arrived.save()
    assert not models.QuerySet(type(instance), using=alias).filter(pk=pk).exists()


@each_database(transaction=False)
def test_a_primary_key_set_before_the_insert_is_no_row(alias: str) -> None:
    """In pre_save an instance whose key the application made travels by value and unsaved, in post_save it is a row
    (H52)."""
    with sendings(Parcel, pre_save, post_save, snapshot=False) as seen:
        parcel = Parcel(weight=2.5)
        parcel.save(using=alias)
    before, after = (opened(text)["instance"] for _, text in seen)

    assert (parcel.pk, True) == (before.pk, before._state.adding)
    assert (parcel.pk, False, alias) == (after.pk, after._state.adding, after._state.db)
    assert values_of(refetched(parcel)) == values_of(after)
    with pytest.raises(DetachedInstance):
        before.save()
    after.save()


@each_database(transaction=False)
def test_two_states_of_a_row_in_one_sending(alias: str) -> None:
    """A row's state before a change and that after it arrive as two; alike, they arrive as one (H66, H67)."""
    after = KINDS["plain"](alias)
    before = refetched(after)
    same = unasked({"before": before, "after": after})
    after.status = Order.Status.SENT
    after.save()
    differing = unasked({"before": before, "after": after})

    assert same["before"] is same["after"]
    assert ("paid", "sent") == (differing["before"].status, differing["after"].status)
    assert differing["before"] == differing["after"]


@each_database(transaction=False)
def test_secrets_do_not_travel_and_are_not_loaded(alias: str) -> None:
    """A field named like a secret is in no snapshot and is not loaded in the worker, but by reference it is (H65)."""
    account = Account.objects.using(alias).create(owner="Ada", password="hidden", api_token="hidden")
    with no_queries():
        text = sealed({"account": account}, snapshot=True)
    arrived = opened(text)["account"]

    assert "hidden" not in text
    assert "Ada" == arrived.owner
    with no_queries(), pytest.raises(NotCarried, match=r"shop\.Account\.password was left out"):
        arrived.password  # noqa: B018
    assert "hidden" == by_reference(account).password


@each_database
def test_receivers_get_the_row_and_what_was_deleted(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A receiver of post_save gets the row as a fetch has it, one of post_delete what the instance held (H49, H51)."""
    got: list[Any] = []
    receiving([post_save, post_delete], lambda instance: got.append(instance), sender=Everything, atomic=False)

    instance = Everything.objects.using(alias).create(**FULL)
    fetched = refetched(instance)
    drain(celery_app)
    held = values_of(fetched)
    fetched.delete()
    drain(celery_app)

    assert [held, held] == [values_of(one) for one in got]
    assert [alias, alias] == [one._state.db for one in got]
    with pytest.raises(DetachedInstance):
        got[1].save()


# Fields of PostgreSQL's own -----------------------------------------------------------------------------------------

OF_POSTGRES: dict[str, Callable[[], Any]] = {
    "tuples": lambda: Booking(seats=(1, 5), tickets=(2**40, None), prices=(Decimal("1.50"), Decimal(3))),
    "days": lambda: Booking(days=(date(2026, 1, 1), date(2026, 2, 1)), period=(MOMENT, None)),
    "unbounded": lambda: Booking(seats=(None, None), prices=(None, Decimal(1)), days=(None, None)),
    "empty-range": lambda: Booking(seats=(1, 1), period=(MOMENT, MOMENT)),
    "no-ranges": Booking,
    "arrays": lambda: Catalogue(
        words=["a", "ü,\"'{}"],
        grid=[[1, None], [3, 4]],
        prices=[Decimal("1.50")],
        moments=[MOMENT],
        attributes={"a": "b", "c": None},
    ),
    "empty-arrays": lambda: Catalogue(words=[], grid=[], prices=[], moments=[], attributes={}),
    "no-arrays": lambda: Catalogue(words=("a", "b")),
}


@each_database("postgres", transaction=False)
@pytest.mark.parametrize("name", OF_POSTGRES)
def test_fields_of_postgresql_arrive(alias: str, name: str) -> None:
    """Ranges, arrays and key-value fields arrive exact in value and type: by value as given, by reference as fetched
    (H54, H56)."""
    instance = OF_POSTGRES[name]()
    with sendings(type(instance), pre_save, post_save) as seen:
        instance.save(using=alias)
    fetched = refetched(instance)

    assert [held for held, _ in seen] == [values_of(opened(text)["instance"]) for _, text in seen]
    assert values_of(fetched) == values_of(by_reference(instance)) == values_of(by_value(fetched))


@each_database("postgres", transaction=False)
def test_ranges_are_tuples_until_they_are_fetched(alias: str) -> None:
    """A range given as a tuple arrives as a tuple by value, and as the driver's range by reference and once fetched
    (H56)."""
    booking = Booking.objects.using(alias).create(seats=(1, 5))
    ranges = by_reference(booking).seats, by_value(refetched(booking)).seats

    assert (1, 5) == by_value(booking).seats
    assert ["Range", "Range"] == [type(one).__name__ for one in ranges]
    assert [(1, 5, True, False)] * 2 == [(one.lower, one.upper, one.lower_inc, one.upper_inc) for one in ranges]
