"""Model instances: which travel by reference and which as a snapshot, what a snapshot holds, and what it refuses."""

from __future__ import annotations

import copy
import enum
import json
import pickle
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from asgiref.sync import async_to_sync
from django.apps.registry import Apps
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import ContentFile
from django.core.serializers.base import DeserializedObject
from django.db import models
from django.db.models import F, Value
from django.db.models.expressions import DatabaseDefault
from django.db.models.fields.files import FieldFile
from django.db.models.functions import Upper
from django.db.models.query_utils import DeferredAttribute
from django.db.models.signals import post_init, post_save, pre_init, pre_save
from django.test import override_settings
from django.test.utils import isolate_apps
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy

from django_celery_signals import (
    DecodeError,
    DetachedInstance,
    EncodeError,
    InstanceMissing,
    NotCarried,
    envelope,
)
from django_celery_signals.codec import fetching, fields, instances, named
from django_celery_signals.codec.core import Decoder, codec_for
from django_celery_signals.codec.fetching import instance_from
from django_celery_signals.codec.instances import as_instance, is_sensitive
from django_celery_signals.codec.standins import Unavailable
from tests.carrying import exact, opened, sealed, sent
from tests.shop.models import (
    Account,
    Article,
    Comment,
    Country,
    Customer,
    Everything,
    Holiday,
    Invoice,
    Order,
    OrderLine,
    Parcel,
    PriorityOrder,
    Product,
    Profile,
    RushOrder,
    Tag,
    User,
    WeightClass,
)

UUID = uuid.UUID(int=5)
BERLIN = ZoneInfo("Europe/Berlin")


class Size(enum.Enum):
    SMALL = object()


class Touchy(str):
    """Text that cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = str.__hash__


class Pair(NamedTuple):
    left: Any
    right: Any


def stored(instance: Any, alias: str | None = "default") -> Any:
    """Return an instance that takes itself for a row."""
    instance._state.adding, instance._state.db = False, alias
    return instance


def loaded(model: Any, **values: Any) -> Any:
    """Return an instance of a row of which only these columns were loaded."""
    names = [field.attname for field in model._meta.concrete_fields if field.attname in values]
    return model.from_db("default", names, [values[name] for name in names])


def values_of(instance: models.Model) -> dict[str, Any]:
    """Describe, exactly, the values that an instance holds; what is deferred stays so."""
    names = [field.attname for field in instance._meta.concrete_fields if field.attname in instance.__dict__]
    return {name: exact(getattr(instance, name)) for name in names}


def snapshot(instance: Any, **options: Any) -> Any:
    """Return what arrives of an instance by value."""
    return sent({"instance": instance}, snapshot=True, **options)["instance"]


def entries(*sending: Any, **options: Any) -> list[dict[str, Any]]:
    """Return the table of instances of a sending."""
    return sent({"all": list(sending)}, **options).envelope.objects


def kinds(*sending: Any) -> list[str]:
    """Say how the instances of a sending travel."""
    return ["value" if "fields" in entry else "reference" for entry in entries(*sending)]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Apps]:
    """Holds the models that a test declares; they live as long as it does."""
    with isolate_apps("tests.shop") as apps:
        for module in (fetching, fields, named):
            monkeypatch.setattr(module, "apps", apps)
        yield apps


class OfShop:
    """The Meta of a test's own model, whose rows are those of the tags."""

    app_label = "shop"
    db_table = "shop_tag"
    managed = False


# By reference or by value -------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_row_travels_by_reference(django_assert_num_queries: Any) -> None:
    """Of a row only model, primary key and database travel, and no query is needed to say so (H49, H60)."""
    customer = Customer.objects.create(name="Ada")
    order = Order.objects.select_related("customer").get(pk=Order.objects.create(customer=customer).pk)
    order.tags.add(Tag.objects.create(name="a"))
    order.total = Decimal(5)  # unsaved
    with django_assert_num_queries(0):
        arrived = sent({"order": order})

    assert [{"model": "shop.Order", "pk": order.pk, "db": "default"}] == arrived.envelope.objects
    with django_assert_num_queries(1):
        assert values_of(arrived["order"]) == {**values_of(order), "total": exact(Decimal("0.00"))}
    assert "customer" not in arrived["order"]._state.fields_cache


class Shown(DeferredAttribute):
    """Shows a key as a text, while the instance holds a number."""

    def __get__(self, instance: Any, cls: Any = None) -> Any:
        return self if instance is None else f"tag {super().__get__(instance, cls)}"

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.field.attname] = value


def test_a_primary_key_is_what_its_field_shows(registry: Apps) -> None:
    """A key whose field has a descriptor of its own travels as that shows it, not as the instance holds it."""

    class Key(models.CharField):
        descriptor_class = Shown

    class Marked(models.Model):
        key = Key(primary_key=True, max_length=50)

        class Meta(OfShop):
            pass

    instance = Marked()
    instance.__dict__["key"] = 5
    assert "tag 5" == sent({"instance": stored(instance)}).envelope.objects[0]["pk"]


@pytest.mark.parametrize(
    "instance",
    [
        Order(),
        Parcel(),
        Order(pk=5),
        stored(Order()),
        stored(OrderLine()),
        stored(OrderLine(order_id=1)),
        stored(Country(code=Upper(Value("de")))),
        stored(OrderLine(order_id=F("number"), number=1)),
    ],
    ids=[
        "unsaved",
        "pk-set-before",
        "pk-by-hand",
        "deleted",
        "composite-unset",
        "composite-half",
        "expression",
        "expression-half",
    ],
)
def test_what_has_no_row_travels_by_value(instance: Any) -> None:
    """An instance that was never saved, was deleted, or has no known primary key travels by value (H51, H52)."""
    arrived = sent({"instance": instance})

    assert {"model", "pk", "db", "fields"} == arrived.envelope.objects[0].keys()
    assert instance._state.adding is arrived["instance"]._state.adding
    assert instance._state.db == arrived["instance"]._state.db
    assert type(instance) is type(arrived["instance"])


@pytest.mark.parametrize(
    ("instance", "pk", "is_set"),
    [
        (Order(), None, False),
        (Parcel(id=UUID), UUID, True),
        (stored(OrderLine()), (None, None), False),
        (OrderLine(order_id=1), (1, None), False),
        (OrderLine(order_id=1, number=2), (1, 2), True),
        (Profile(customer_id=3), 3, True),
    ],
    ids=["none", "uuid", "composite-unset", "composite-half", "composite", "foreign-key"],
)
def test_a_primary_key_arrives_as_far_as_it_is_set(instance: Any, pk: Any, is_set: bool) -> None:
    """A primary key that is None, half set, or set before the insert, is so in the worker (H51, H52)."""
    arrived = sent({"instance": instance})["instance"]

    assert exact(pk) == exact(arrived.pk)
    assert is_set is arrived._is_pk_set()


@pytest.mark.parametrize(
    ("instance", "pk"),
    [
        (Order(pk=5), 5),
        (Order(pk="5"), "5"),
        (Country(code="de"), "de"),
        (Parcel(id=UUID), UUID),
        (Parcel(id=str(UUID)), str(UUID)),
        (Holiday(day=date(2026, 10, 3)), date(2026, 10, 3)),
        (WeightClass(limit=Decimal("2.50")), Decimal("2.50")),
        (OrderLine(order_id=1, number=2), (1, 2)),
        (Profile(customer_id=3), 3),
        (RushOrder(order_ptr_id=7), 7),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, models.Model) else "",
)
def test_references_carry_primary_keys_exactly(instance: Any, pk: Any) -> None:
    """A primary key of any type is carried as it is, not as text, and a composite one as a tuple (H54)."""
    [entry] = entries(stored(instance))

    assert {"model", "pk", "db"} == entry.keys()
    assert exact(pk) == exact(Decoder([], instance_from).decode(entry["pk"]))


def test_a_primary_key_may_be_a_list(registry: Apps) -> None:
    """A primary key without a hash identifies its row like any other (H54, H67)."""

    class Path(models.Model):
        steps = models.JSONField(primary_key=True)

        class Meta(OfShop):
            pass

    one, same, other = (stored(Path(steps=steps)) for steps in ([1, {"a": 2}], [1, {"a": 2}], [1]))

    assert [[1, {"a": 2}], [1]] == [entry["pk"] for entry in entries(one, same, other)]


def test_a_primary_key_may_be_an_object(registry: Apps) -> None:
    """A primary key of a class of its own is carried by its field; one the field cannot carry leaves a stand-in of
    the instance, for nothing would find the row (H18, H54)."""

    class Code:
        def __init__(self, text: str) -> None:
            self.text = text

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Code) and self.text == other.text

        def __str__(self) -> str:
            return self.text

    class CodeField(models.CharField):
        def to_python(self, value: Any) -> Any:
            return Code(value) if type(value) is str else value

    class Coded(models.Model):
        code = CodeField(max_length=5, primary_key=True)

        class Meta(OfShop):
            pass

    arrived = sent({"good": stored(Coded(code=Code("de"))), "bad": stored(Coded(code=object()))})
    [entry] = arrived.envelope.objects

    assert Code("de") == Decoder([], instance_from).decode(entry["pk"])
    assert type(arrived["bad"]) is Unavailable
    assert "Coded: its primary key cannot be carried: no codec" in repr(arrived["bad"])
    assert type(snapshot(stored(Coded(code=object()))).pk) is Unavailable


def test_a_class_that_is_not_installed_leaves_a_stand_in() -> None:
    """A migration's historical model, one of an app that is not installed, and their instances are stand-ins (H18)."""
    with isolate_apps("tests.shop"):
        historical = type("Order", (models.Model,), {"__module__": __name__, "Meta": OfShop})
        unknown = type("Nowhere", (models.Model,), {"__module__": __name__, "Meta": OfShop})

    for cls in (historical, unknown):
        arrived = sent({"instance": cls(), "model": cls})
        assert [Unavailable, Unavailable] == [type(arrived["instance"]), type(arrived["model"])]
        assert [] == arrived.envelope.objects


# Two of one row -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"snapshot": True}], ids=["reference", "value"])
def test_two_objects_of_one_row_are_one(options: dict[str, Any]) -> None:
    """One object at several places, and two that are alike, arrive as one object (H67)."""
    order, same = (stored(Order(pk=5, status="new", placed_at=datetime(2026, 1, 1))) for _ in range(2))
    arrived = sent({"order": order, "same": {"deep": [same, (order,)]}}, sender=order, **options)

    assert 1 == len(arrived.envelope.objects)
    index = {"$": "obj", "v": 0}
    assert [index, index, {"deep": [index, {"$": "tuple", "v": [index]}]}] == [
        arrived.envelope.sender,
        *arrived.envelope.kwargs.values(),
    ]


@pytest.mark.parametrize("names", ["before after", "after before", "before after after2", "after after2 before"])
def test_two_states_of_one_row_travel_by_value(names: str) -> None:
    """Where two objects of a row differ, each arrives as it was, in whatever order they come (H66)."""
    states = {"before": "new", "after": "paid", "after2": "paid"}
    kwargs = {name: stored(Order(pk=5, status=states[name], placed_at=None)) for name in names.split()}

    arrived = sent(kwargs)

    assert {name: states[name] for name in kwargs} == {name: arrived[name].status for name in kwargs}
    assert 2 == len(arrived.envelope.objects)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Tag(pk=1, name="a"), Tag(pk=2, name="b"), ["reference"] * 2),
        (Tag(pk=1, name="a"), Customer(pk=1, name="b"), ["reference"] * 2),
        (Order(pk=1, placed_at=None), PriorityOrder(pk=1, placed_at=None), ["reference"] * 2),
        (Order(pk=1, placed_at=None), PriorityOrder(pk=1, placed_at=None, status="paid"), ["value"] * 2),
        (Order(pk=1, placed_at=None), RushOrder(id=1, pk=1, placed_at=None), ["reference"] * 2),
        (RushOrder(id=1, pk=1, placed_at=None), Order(pk=1, placed_at=None, status="paid"), ["value"] * 2),
        (Product(pk=1, views=F("views") + 1), Product(pk=1, views=F("views") + 1), ["reference"]),
        (Product(pk=1, views=F("views") + 1), Product(pk=1, views=2), ["value"] * 2),
        (Product(pk=1, views=True), Product(pk=1, views=1), ["reference"]),
    ],
    ids=[
        "rows",
        "models",
        "proxy",
        "proxy-differs",
        "child",
        "child-differs",
        "same-expression",
        "expression",
        "types",
    ],
)
def test_which_objects_are_states_of_one_row(one: Any, other: Any, expected: list[str]) -> None:
    """Two objects are two states when they are of one row, also of its proxy or child, and a value differs; a proxy
    and a child stay what they are (H50, H66)."""
    assert expected == kinds(stored(one), stored(other))


def test_rows_of_two_databases_are_two() -> None:
    """Rows of the same primary key in two databases have nothing to do with each other (H49)."""
    sending = stored(Tag(pk=1, name="a")), stored(Tag(pk=1, name="b"), "other")

    assert ["default", "other"] == [entry["db"] for entry in entries(*sending)]
    assert ["reference", "reference"] == kinds(*sending)


def test_unsaved_and_deleted_objects_are_nobodys_twin() -> None:
    """Two unsaved or deleted objects are two, however alike; an unsaved one is no state of the row (H52)."""
    assert 2 == len(entries(stored(Tag(name="a")), stored(Tag(name="a"))))
    assert 2 == len(entries(Tag(pk=1), Tag(pk=1)))
    assert ["reference", "value"] == kinds(stored(Tag(pk=1, name="a")), Tag(pk=1, name="b"))


def test_a_partly_loaded_twin_is_no_other_state() -> None:
    """Two objects of which one has more columns loaded both travel by reference, and each keeps its own (H50)."""
    some, whole = loaded(Product, id=1, sku="a"), loaded(Product, id=1, sku="a", views=3)

    assert [["views"], None] == [entry.get("deferred") for entry in entries(some, whole)]
    assert ["value", "value"] == kinds(loaded(Product, id=1, sku="b"), whole)


def test_types_tell_snapshots_apart() -> None:
    """Two snapshots are one object only when their values are alike in type, too."""
    first, second = sent({"all": [stored(Product(pk=1, views=True)), stored(Product(pk=1, views=1))]}, snapshot=True)[
        "all"
    ]

    assert [True, 1] == [first.views, second.views]
    assert [bool, int] == [type(first.views), type(second.views)]


def test_a_snapshot_is_no_twin_of_its_row() -> None:
    """What arrived as a snapshot stays one when it is sent on, and the row beside it stays a reference (H51)."""
    row = stored(Tag(pk=1, name="a"))
    old = snapshot(row)

    assert ["value", "reference"] == kinds(old, row)
    assert ["reference", "value"] == kinds(row, old)


def test_values_that_refuse_to_be_compared_differ() -> None:
    """Twins with values that raise when they are compared are taken for two states, and arrive (H66)."""
    arrived = sent({"all": [stored(Tag(pk=1, name=Touchy(name))) for name in "ab"]})

    assert ["a", "b"] == [str(tag.name) for tag in arrived["all"]]


# Where instances are ------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_instances_may_be_anywhere() -> None:
    """Instances arrive out of containers, keys and lazy objects, and without what was cached (H60, H66b)."""
    Tag.objects.create(name="a")
    tag = Tag.objects.annotate(more=Value(1)).prefetch_related("orders").get()
    arrived = sent({"set": {tag}, "key": {tag: 1}, "lazy": SimpleLazyObject(lambda: tag), "dict": {"$": tag}})

    [of_set], [of_key] = arrived["set"], arrived["key"]
    assert of_set is of_key is arrived["lazy"] is arrived["dict"]["$"]
    assert Tag is type(of_set)
    assert {"_state", "id", "name"} == vars(of_set).keys()


def test_a_deleted_key_leaves_a_stand_in() -> None:
    """An instance that was deleted while it was a key or a member of a set, and so lost its hash, costs only itself."""
    tag, kept = stored(Tag(pk=1, name="a")), stored(Tag(pk=2, name="b"))
    sending = {"set": {tag, "x"}, "frozen": frozenset([tag]), "key": {tag: 1, kept: 2}}
    tag.pk = None
    arrived = sent(sending, snapshot=True)

    assert {Unavailable, str} == {type(member) for member in arrived["set"]}
    assert [Unavailable] == [type(member) for member in arrived["frozen"]]
    assert [(Unavailable, 1), (Tag, 2)] == [(type(key), value) for key, value in arrived["key"].items()]


def test_an_instance_inside_its_own_field() -> None:
    """An instance whose field holds the instance arrives, with a stand-in there."""
    order = Order(pk=5)
    order.notes = {"order": order, "tag": Tag(name="a")}
    arrived = snapshot(order)

    assert 5 == arrived.pk
    assert type(arrived.notes) is Unavailable
    assert "a" == snapshot(Order(notes={"tag": Tag(name="a")})).notes["tag"].name


def test_as_instance_unwraps_and_evaluates_nothing() -> None:
    """An instance is found within lazy objects that hold one already, and no other lazy object is evaluated (H66b)."""
    tag = Tag()
    inner = SimpleLazyObject(lambda: tag)
    outer = SimpleLazyObject(lambda: inner)
    assert as_instance(outer) is None
    assert "" == outer.name

    assert as_instance(outer) is tag
    assert as_instance(tag) is tag
    assert [None, None, None] == [as_instance(value) for value in (5, Tag, None)]


# Values of a snapshot -----------------------------------------------------------------------------------------------

HELD = {
    "decimal": "1.5",
    "date": datetime(2026, 1, 1, 12),
    "date_time": datetime(2026, 1, 1, 12, 30, 15, 123456),
    "time": time(1, 2, 3, 4, fold=1),
    "duration": timedelta(days=-1, microseconds=1),
    "float": float("nan"),
    "ip_address": IPv4Address("127.0.0.1"),
    "integer": Everything.Level.HIGH,
    "integer_null": True,
    "big_integer": 2**63 - 1,
    "json": {"a": (1, 2), 3: {4}, "$": "x", "nan": float("inf"), "when": datetime(2026, 1, 1, tzinfo=UTC)},
    "json_exact": [Decimal("1.50"), None, Size.SMALL],
    "char": Order.Status.PAID,
    "char_null": "\ud800\udc00 a\x00",
    "binary": bytearray(b"\x00\xff"),
    "binary_null": memoryview(b"\x01"),
    "uuid": str(UUID),
    "uuid_null": UUID,
    "customer_id": "5",
    "text": Pair(1, {"b"}),
}


@pytest.mark.parametrize("name", HELD)
def test_snapshots_keep_values_as_they_are(name: str) -> None:
    """A value arrives as the instance held it, exact in value and type, whatever the field would make of it
    (H55, H56, H61, H62, H64)."""
    one = Everything(**{name: HELD[name]})

    assert exact(HELD[name]) == exact(getattr(snapshot(one), name))


def test_a_snapshot_holds_all_that_was_loaded() -> None:
    """A snapshot holds every loaded column, of a child also its parent's, and nothing else (H55, H60)."""
    customer = stored(Customer(pk=3))
    rush = RushOrder(pk=5, customer=customer, courier="c", placed_at=datetime(2026, 1, 1, tzinfo=BERLIN))
    arrived = snapshot(stored(rush))

    assert values_of(rush) == values_of(arrived)
    assert {"id", "order_ptr_id", "customer_id", "courier"} < values_of(arrived).keys()
    assert {} == arrived._state.fields_cache


@pytest.mark.django_db
def test_deferred_fields_stay_deferred(django_assert_num_queries: Any) -> None:
    """What was not loaded is not loaded for the sending, and is loaded in the worker when it is used (H50, H59)."""
    Product.objects.create(sku="a", views=7)
    for options in ({}, {"snapshot": True}):
        product = Product.objects.defer("views").get()
        with django_assert_num_queries(0):
            text = sealed({"product": product}, **options)
        arrived = opened(text)["product"]

        assert {"views"} == product.get_deferred_fields() == arrived.get_deferred_fields()
        with django_assert_num_queries(1):
            assert 7 == arrived.views


@pytest.mark.django_db
def test_expressions_are_left_for_the_database(django_assert_num_queries: Any) -> None:
    """F() and the like on an instance arrive as deferred fields in a snapshot, and as the value by reference (H57)."""
    product = Product.objects.create(sku="a", views=7)
    product.views = F("views") + 1
    product.sku = Value("b")
    with django_assert_num_queries(0):
        by_value, by_reference = sealed({"product": product}, snapshot=True), sealed({"product": product})

    assert {"views", "sku"} == opened(by_value)["product"].get_deferred_fields()
    assert (7, "a") == (opened(by_value)["product"].views, opened(by_reference)["product"].sku)


def test_a_primary_key_that_is_an_expression_leaves_a_stand_in() -> None:
    """A primary key that only the database knows arrives as a stand-in, not as a field that could be loaded (H57)."""
    arrived = snapshot(Country(code=Upper(Value("de")), name="Germany"))

    assert type(arrived.pk) is Unavailable
    assert "only the database knows" in repr(arrived.pk)
    assert "Germany" == arrived.name


def test_database_defaults_are_unset_before_the_insert() -> None:
    """A field whose value the database will give arrives as unset as it was, and a generated one is missing (H58)."""
    one = Everything()
    arrived = snapshot(one)

    assert [DatabaseDefault, DatabaseDefault] == [type(arrived.points), type(arrived.stored_at)]
    assert [one.points.expression, one.stored_at.expression] == [
        arrived.points.expression,
        arrived.stored_at.expression,
    ]
    assert {"doubled", "shouted"} == arrived.get_deferred_fields()
    with pytest.raises(AttributeError, match="from an unsaved model"):
        arrived.doubled  # noqa: B018
    assert 8 == snapshot(Everything(points=8)).points


def test_lazy_text_arrives_in_the_senders_language() -> None:
    """Lazy text in a field arrives as the text it is, also when its field would have to carry it (H63)."""
    assert exact("Monday") == exact(snapshot(Tag(name=gettext_lazy("Monday"))).name)


def test_a_lazy_value_that_fails_costs_only_its_field() -> None:
    """A lazy value that raises when it is evaluated leaves a stand-in in its field only (H18, H66b)."""
    arrived = snapshot(Product(pk=5, sku=SimpleLazyObject(lambda: 1 / 0), views=SimpleLazyObject(lambda: 3)))

    assert type(arrived.sku) is Unavailable
    assert (5, 3) == (arrived.pk, arrived.views)


@pytest.mark.parametrize("value", ["files/a.txt", "", ContentFile(b"x", name="a.txt"), ContentFile(b"x"), None])
def test_files_travel_by_name(value: Any) -> None:
    """Of a file its name travels, whether it is stored already or not; nothing is opened (H61)."""
    one = Everything(file=value)
    for _ in range(2):  # reading the attribute wraps what it holds
        arrived = snapshot(one)
        assert FieldFile is type(arrived.file)
        assert one.file.name == arrived.file.name
        assert arrived.file.instance is arrived


def test_a_file_is_an_argument_of_its_own() -> None:
    """A field's file arrives as that of its instance; one that belongs to none leaves a stand-in (H61, H67)."""
    one = Everything(file="files/a.txt")
    orphan = FieldFile(None, one.file.field, "files/b.txt")  # type: ignore[arg-type]
    arrived = sent({"file": one.file, "instance": one, "orphan": orphan})

    assert ("files/a.txt", FieldFile) == (arrived["file"].name, type(arrived["file"]))
    assert arrived["file"].instance is arrived["instance"]
    assert type(arrived["orphan"]) is Unavailable


def test_a_generic_relation_travels_as_its_columns() -> None:
    """Of a generic foreign key its two columns travel, and not the object (H60)."""
    comment = Comment(content_type_id=3, object_id="5", text="a")
    comment._state.fields_cache["subject"] = Tag(pk=5)
    arrived = sent({"comment": comment})

    assert 1 == len(arrived.envelope.objects)
    assert values_of(comment) == values_of(arrived["comment"])
    assert {} == arrived["comment"]._state.fields_cache


@override_settings(DJANGO_CELERY_SIGNALS={"MAX_BINARY_BYTES": 4})
@pytest.mark.parametrize("value", [b"12345", memoryview(b"12345"), bytearray(5)], ids=["bytes", "view", "array"])
def test_binary_values_have_a_limit(value: Any) -> None:
    """A binary value that is too large stays behind, and the rest of the instance arrives (H61)."""
    arrived = snapshot(Everything(binary=value, binary_null=value[:4], char="a"))

    assert type(arrived.binary) is Unavailable
    assert "MAX_BINARY_BYTES (4 bytes)" in repr(arrived.binary)
    assert exact(value[:4]) == exact(arrived.binary_null)
    assert "a" == arrived.char


# Values that only their field can carry -----------------------------------------------------------------------------


class Money:
    """A value of no type that the codec knows."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __str__(self) -> str:
        return str(self.cents)


class ComparableMoney(Money):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComparableMoney) and self.cents == other.cents


class Vector(Money):
    """Compares like an array: one answer per element."""

    def __eq__(self, other: object) -> Any:
        return [True, False][2]


class LosingMoney(ComparableMoney):
    def __str__(self) -> str:
        return "0"


class MoneyField(models.IntegerField):
    kind: Any = Money

    def to_python(self, value: Any) -> Any:
        return self.kind(int(value)) if type(value) is str else value


class MoneyEncoder(json.JSONEncoder):
    def default(self, o: Any) -> Any:
        return {"cents": o.cents}


class MoneyDecoder(json.JSONDecoder):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "object_hook": lambda pairs: Money(pairs["cents"])})


@pytest.fixture
def priced(registry: Apps) -> Callable[[Any], Any]:
    """Makes a model whose field has values of a class."""

    def make(kind: Any) -> Any:
        field = MoneyField()
        field.kind = kind

        class Priced(models.Model):
            name = models.CharField(max_length=50)
            price = field

            class Meta(OfShop):
                pass

        return Priced

    return make


@pytest.mark.parametrize("kind", [Money, ComparableMoney, Vector])
def test_fields_carry_values_of_their_own_classes(priced: Any, kind: Any) -> None:
    """A value of a class that the codec does not know is carried as its field puts it into text (H54, H56)."""
    arrived = snapshot(priced(kind)(name="a", price=kind(250)))

    assert (kind, 250) == (type(arrived.price), arrived.price.cents)
    assert "a" == arrived.name


@override_settings(DJANGO_CELERY_SIGNALS={"STRICT": True})
def test_changes_carry_values_of_their_own_classes(priced: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old and new values of a watched field are carried as the field carries them in a snapshot (H56)."""
    old, new = Money(100), Money(250)
    monkeypatch.setattr(envelope, "changes_of", lambda instance, names: {"price": (old, new)})
    arrived = sent({"instance": priced(Money)(name="a", price=new)}, snapshot=True, changed=["price"])

    assert [(Money, 100), (Money, 250)] == [(type(one), one.cents) for one in arrived.reader.changes()["price"]]


def raising(value: Any) -> Any:
    raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("kind", "value"),
    [(LosingMoney, LosingMoney(250)), (Money, ComparableMoney(250)), (Money, object()), (raising, Money(250))],
    ids=["loses", "another-class", "no-text", "raises"],
)
def test_what_a_field_cannot_read_back_leaves_a_stand_in(priced: Any, kind: Any, value: Any) -> None:
    """A value that its field does not read back the same from text leaves a stand-in, and never another value (H18)."""
    arrived = snapshot(priced(kind)(name="a", price=value))

    assert type(arrived.price) is Unavailable
    assert "no codec is registered for its type" in repr(arrived.price)
    assert "a" == arrived.name


@override_settings(DJANGO_CELERY_SIGNALS={"STRICT": True})
def test_strict_mode_names_the_type_in_a_field() -> None:
    """Under STRICT a field's value that cannot travel raises at the sending (H18)."""
    with pytest.raises(EncodeError, match=r"'instance' of type builtins\.object"):
        snapshot(Tag(name=object()))


def test_enums_that_no_module_holds_arrive_as_their_value() -> None:
    """A member of an enumeration that cannot be found again arrives as the equal value that a fetch gives (H62)."""

    class Level(models.IntegerChoices):
        LOW = 1

    class Status(models.TextChoices):
        NEW = "new"

    arrived = snapshot(Everything(integer=Level.LOW, char=Status.NEW))

    assert (1, "new") == (arrived.integer, arrived.char)


def test_json_fields_use_their_encoder_and_decoder(registry: Apps) -> None:
    """JSON with values that only the field's encoder knows arrives as a fetch gives it; without one it stays behind
    (H61)."""

    class Offer(models.Model):
        price = models.JSONField(encoder=MoneyEncoder, decoder=MoneyDecoder)
        plain = models.JSONField()

        class Meta(OfShop):
            pass

    arrived = snapshot(Offer(price=[1, Money(250)], plain=[Money(250)]))

    assert (1, 250) == (arrived.price[0], arrived.price[1].cents)
    assert type(arrived.plain) is Unavailable


def test_generated_fields_are_read_by_their_output_field(registry: Apps) -> None:
    """A generated value of a class of its own is carried by the field that reads it (H56, H58)."""

    class Sum(models.Model):
        name = models.CharField(max_length=5)
        total = models.GeneratedField(expression=F("id"), output_field=MoneyField(), db_persist=True)

        class Meta(OfShop):
            pass

    arrived = snapshot(loaded(Sum, id=1, name="a", total=Money(250)))

    assert (Money, 250) == (type(arrived.total), arrived.total.cents)


# Secrets ------------------------------------------------------------------------------------------------------------


def test_secrets_stay_behind() -> None:
    """Fields named like secrets stay behind, are never None, and say why when they are read (H65)."""
    account = Account(owner="Ada", password="hidden", api_token="hidden", secret="hidden", iban="visible")
    for pk in (None, 5):
        account.pk = pk
        text = sealed({"account": account})
        arrived = opened(text)["account"]

        assert "hidden" not in text
        assert ("Ada", "visible") == (arrived.owner, arrived.iban)
        assert {"password", "api_token", "secret"} == arrived.get_deferred_fields()
        for name in arrived.get_deferred_fields():
            with pytest.raises(AttributeError, match=rf"shop\.Account\.{name} was left|'{name}' from an unsaved model"):
                getattr(arrived, name)
    with pytest.raises(NotCarried, match="was left out of the snapshot because it is sensitive"):
        arrived.password  # noqa: B018


@pytest.mark.parametrize(
    ("model", "name", "given", "expected"),
    [
        (Account, "iban", [], False),
        (Account, "iban", ["iban"], True),
        (Account, "iban", ["shop.Account.iban"], True),
        (Account, "iban", ["shop.Customer.iban"], False),
        (Order, "customer", ["customer_id"], True),
        (Order, "customer", ["shop.Order.customer_id"], True),
        (RushOrder, "status", ["shop.Order.status"], True),
        (PriorityOrder, "status", ["shop.Order.status"], True),
        (Order, "status", ["shop.RushOrder.status"], False),
        (Invoice, "stamped_at", ["shop.Stamped.stamped_at"], True),
    ],
)
def test_settings_name_more_secrets(model: Any, name: str, given: list[str], expected: bool) -> None:
    """SENSITIVE_FIELDS names fields of any model, or of one model and those derived from it (H65)."""
    with override_settings(DJANGO_CELERY_SIGNALS={"SENSITIVE_FIELDS": given}):
        assert expected is is_sensitive(model, model._meta.get_field(name))


@pytest.mark.parametrize(
    "word",
    ["password", "old_passwd", "passphrase", "apiKey", "api_key", "PRIVATEKEY", "tokens", "credentials", "session_key"],
)
def test_words_for_secrets(registry: Apps, word: str) -> None:
    """Names that contain a word for a secret, in either case, are sensitive; an instance of such a primary key, which
    it can neither leave out nor carry, leaves a stand-in (H65)."""

    class Holder(models.Model):
        locals()[word] = models.CharField(max_length=5)

        class Meta(OfShop):
            pass

    class Keyed(models.Model):
        locals()[word] = models.CharField(max_length=5, primary_key=True)

        class Meta(OfShop):
            pass

    assert is_sensitive(Holder, Holder._meta.get_field(word))  # type: ignore[arg-type]
    assert not is_sensitive(Keyed, Keyed._meta.get_field(word))  # type: ignore[arg-type]
    for keyed in (stored(Keyed(pk="hidden")), Keyed(pk="hidden")):
        arrived = sent({"instance": keyed})
        assert f"its primary key {word!r} is a secret" in repr(arrived["instance"])
        assert "hidden" not in str(arrived.envelope)


def test_numbers_and_relations_are_no_secret_keys(registry: Apps) -> None:
    """A primary key that is a number, or the key of another model, travels whatever it is called (H54)."""

    class Token(models.Model):
        class Meta(OfShop):
            pass

    class PremiumToken(Token):
        class Meta(OfShop):
            pass

    class Visit(models.Model):
        session_id = models.AutoField(primary_key=True)

        class Meta(OfShop):
            pass

    class Secretary(models.Model):
        secretary = models.OneToOneField(Token, models.CASCADE, primary_key=True)

        class Meta(OfShop):
            pass

    for made in (PremiumToken(pk=5, token_ptr_id=5), Visit(pk=5), Secretary(secretary_id=5)):
        assert type(made) is type(sent({"instance": made}, snapshot=True)["instance"])


@override_settings(DJANGO_CELERY_SIGNALS={"STRICT": True})
def test_django_itself_may_save_a_secret_key() -> None:
    """What Django's signals say of a session, whose key is a secret, arrives as a stand-in, also under STRICT (H65)."""
    arrived = sent({"instance": stored(Session(pk="hidden"))}, signal=post_save)

    assert type(arrived["instance"]) is Unavailable
    assert "hidden" not in str(arrived.envelope)


@pytest.mark.django_db
@override_settings(DJANGO_CELERY_SIGNALS={"SENSITIVE_FIELDS": ["shop.Order.customer", "status"]})
@pytest.mark.parametrize("again", [lambda order: order, copy.copy, copy.deepcopy], ids=["itself", "copy", "deepcopy"])
def test_secrets_are_not_loaded_either(again: Any) -> None:
    """No way of loading a field that was left out succeeds, by either of its names; others can be loaded (H65)."""
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"))
    arrived = again(snapshot(Order.objects.defer("total").get()))

    for way in (
        lambda: arrived.customer,
        lambda: arrived.customer_id,
        lambda: arrived.refresh_from_db(fields=["customer"]),
        lambda: arrived.refresh_from_db(None, ["total", "customer_id"]),
        lambda: arrived.refresh_from_db(fields=iter(["status"])),
        lambda: async_to_sync(arrived.arefresh_from_db)(fields=["status"]),
    ):
        with pytest.raises(NotCarried):
            way()
    assert Decimal(0) == arrived.total
    Order.objects.filter(pk=order.pk).update(notes={"new": 1})
    arrived.refresh_from_db()
    assert {"new": 1} == arrived.notes
    assert {"customer_id", "status"} == arrived.get_deferred_fields()


def test_of_users_only_the_primary_key_travels() -> None:
    """A snapshot of a user holds the primary key, unless more is asked for, and never the password (H65)."""
    user = stored(User(pk=5, username="ada", password="hidden"))
    arrived, whole = snapshot(user), snapshot(user, users_too=True)

    assert {"id"} == values_of(arrived).keys()
    with pytest.raises(NotCarried, match="or, for the user model, ask for instance='snapshot'"):
        arrived.username  # noqa: B018
    assert "ada" == whole.username
    assert {"password"} == whole.get_deferred_fields()
    assert ["reference"] == kinds(user)


def test_two_states_of_a_user_travel_by_reference() -> None:
    """Two states of a user stay one reference, for a snapshot would hold less, unless more is asked for (H65, H66)."""
    states = [stored(User(pk=5, username=name)) for name in ("before", "after")]
    arrived = sent({"all": states}, users_too=True)["all"]

    assert ["reference"] == kinds(*states)
    assert ["before", "after"] == [user.username for user in arrived]


def test_a_project_may_have_no_user_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a user model no instance is taken for a user."""

    def nobody() -> Any:
        raise ImproperlyConfigured("AUTH_USER_MODEL refers to a model that has not been installed")

    monkeypatch.setattr(instances, "get_user_model", nobody)

    assert "a" == snapshot(Tag(name="a")).name


def test_what_was_left_out_once_stays_forbidden() -> None:
    """A snapshot that is sent on leaves out what it had to leave out, even where more may travel (H65)."""
    user = snapshot(stored(User(pk=5, username="ada")))
    user.first_name = "Ada"  # known now
    again = snapshot(user, users_too=True)

    assert {"id", "first_name"} == values_of(again).keys()
    with pytest.raises(NotCarried):
        again.username  # noqa: B018


# Snapshots in the worker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Order, PriorityOrder, RushOrder, Invoice, Article, Parcel, Holiday])
def test_instances_are_made_as_the_database_makes_them(model: Any) -> None:
    """A snapshot is a genuine object of the sender's class, and making it sends what loading a row sends (H50, H68)."""
    heard: list[Any] = []

    def listen(signal: Any, sender: Any, **kwargs: Any) -> None:
        heard.append((signal, sender))

    instance = stored(model(), "other")
    text = sealed({"instance": instance}, snapshot=True)
    signals = (pre_init, post_init, pre_save, post_save)
    for signal in signals:
        signal.connect(listen, sender=model)
    try:
        arrived = opened(text)["instance"]
    finally:
        for signal in signals:
            signal.disconnect(listen, sender=model)

    assert type(arrived) is model
    assert (False, "other") == (arrived._state.adding, arrived._state.db)
    assert [(pre_init, model), (post_init, model)] == heard
    assert values_of(instance) == values_of(arrived)


def test_models_with_code_of_their_own(registry: Apps) -> None:
    """A model's own from_db, __init__, __eq__, __hash__ and properties neither disturb nor are disturbed (H68)."""

    class Odd(models.Model):
        name = models.CharField(max_length=50)
        title_text = models.CharField(max_length=50)

        class Meta(OfShop):
            pass

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.first_name = self.name

        @classmethod
        def from_db(cls, db: Any, field_names: Any, values: Any) -> Any:
            instance = super().from_db(db, field_names, values)
            instance.loaded_values = dict(zip(field_names, values, strict=True))
            return instance

        def __eq__(self, other: object) -> bool:
            raise AssertionError("Nothing may compare.")

        def __hash__(self) -> int:
            raise AssertionError("Nothing may hash.")

        @property
        def title(self) -> str:
            return self.title_text.upper()

        @title.setter
        def title(self, value: str) -> None:
            self.title_text = value

    odd = stored(Odd(pk=5, name="a", title_text="b"))
    odd.name = "changed"
    first, second = sent({"all": [odd, odd, stored(Odd(pk=5, name="a"))]}, snapshot=True)["all"][::2]

    assert ("changed", "changed", "B") == (first.name, first.first_name, first.title)
    assert {"id": 5, "name": "changed", "title_text": "b"} == first.loaded_values
    assert "a" == second.name


REFUSED: dict[str, Callable[[Any], Any]] = {
    "save": lambda order: order.save(),
    "save-fields": lambda order: order.save(update_fields=["status"]),
    "save-insert": lambda order: order.save(force_insert=True),
    "asave": lambda order: async_to_sync(order.asave)(),
    "save-base": lambda order: order.save_base(raw=True),
    "delete": lambda order: order.delete(),
    "adelete": lambda order: async_to_sync(order.adelete)(),
    "by-class": lambda order: Order.save(order),
    "by-proxy": lambda order: PriorityOrder.save(order),
    "by-base-class": lambda order: models.Model.save_base(order, raw=True),
    "by-base-class-not-raw": lambda order: models.Model.save_base(order),
    "fixture": lambda order: DeserializedObject(order).save(),
    "bulk-create": lambda order: Order.objects.bulk_create([order]),
    "bulk-create-ignore": lambda order: Order.objects.bulk_create([order], ignore_conflicts=True),
    "bulk-create-upsert": lambda order: Order.objects.bulk_create(
        [order], update_conflicts=True, update_fields=["status"], unique_fields=["id"]
    ),
    "abulk-create": lambda order: async_to_sync(Order.objects.all().abulk_create)([order]),
    "bulk-update": lambda order: Order.objects.bulk_update([order], ["status"]),
    "related-bulk": lambda order: Customer(pk=order.customer_id).orders.bulk_create([order]),
    "related-add": lambda order: Customer(pk=order.customer_id).orders.add(order, bulk=False),
    "as-new": lambda order: (setattr(order, "pk", None), setattr(order._state, "adding", True), order.save()),
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("again", [lambda order: order, copy.copy, copy.deepcopy], ids=["itself", "copy", "deepcopy"])
@pytest.mark.parametrize("way", REFUSED.values(), ids=REFUSED)
def test_snapshots_cannot_be_written(way: Callable[[Any], Any], again: Callable[[Any], Any]) -> None:
    """No way of writing a snapshot resurrects its row or inserts another, nor does one of its copy (H51)."""
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"), status="paid")
    arrived = again(snapshot(order))
    order.delete()

    with pytest.raises(DetachedInstance, match=r"This shop\.Order is a snapshot from the moment its signal was sent"):
        way(arrived)

    assert not Order.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_children_cannot_be_written_by_way_of_the_parent() -> None:
    """A snapshot of a child writes neither table, whichever class is asked (H51)."""
    arrived = snapshot(stored(RushOrder(pk=5, customer=Customer.objects.create(name="Ada"), courier="c")))
    for cls in (RushOrder, Order, models.Model):
        with pytest.raises(DetachedInstance):
            cls.save_base(arrived)

    assert not Order.objects.exists()


@pytest.mark.django_db
def test_rows_beside_a_snapshot_can_be_written() -> None:
    """Rows that refer to a snapshot, and its own row fetched again, are written as ever (H51)."""
    ada = Customer.objects.create(name="Ada")
    arrived = snapshot(ada)
    arrived.name = "unsaved"

    order = arrived.orders.create(total=5)
    Order(customer=arrived).save()
    row, created = Customer.objects.update_or_create(pk=arrived.pk, defaults={"email": "ada@example.com"})

    assert (arrived, row, False) == (order.customer, ada, created)
    assert 2 == Order.objects.filter(customer=arrived).count()
    assert "Ada" == Customer.objects.get().name


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, *(lambda one, p=p: pickle.loads(pickle.dumps(one, p)) for p in (2, 5))],
    ids=["copy", "deepcopy", "pickle2", "pickle5"],
)
@pytest.mark.django_db
def test_copies_of_a_snapshot_stand_for_themselves(again: Any) -> None:
    """A copied or pickled snapshot is one of its own: detached, and loading what is deferred into itself (H51, H59)."""
    Product.objects.create(sku="a", views=7)
    first = snapshot(Product.objects.defer("views").get())
    first.sku = "changed"
    second = again(first)
    first.sku = "again"

    assert Product is type(second)
    assert (7, "changed") == (second.views, second.sku)
    assert "views" not in vars(first)
    second.refresh_from_db()
    assert ("a", "again") == (second.sku, first.sku)
    with pytest.raises(DetachedInstance):
        second.save()
    assert second == first
    assert ["value", "value"] == kinds(first, second)


@pytest.mark.django_db
def test_a_row_can_be_written() -> None:
    """An instance that arrives by reference is the row: it can be changed and saved, copied and deleted (H68)."""
    Tag.objects.create(name="a")
    arrived = sent({"tag": Tag.objects.get()})["tag"]
    arrived.name = "b"
    arrived.save()

    assert "b" == Tag.objects.get().name
    assert 1 == copy.copy(arrived).delete()[0]


@pytest.mark.django_db(databases=["default", "other"])
def test_snapshots_load_from_their_own_database() -> None:
    """A deferred field of a snapshot is loaded from the database it was sent from, whatever a router says (H48)."""
    pk = Product.objects.create(sku="a", views=1).pk
    Product.objects.using("other").create(pk=pk, sku="a", views=2)
    arrived = snapshot(Product.objects.using("other").defer("views").get())

    class ToDefault:
        def db_for_read(self, model: Any, **hints: Any) -> str:
            return "default"

    with override_settings(DATABASE_ROUTERS=[ToDefault()]):
        assert 2 == arrived.views
        arrived.refresh_from_db("default")
    assert 1 == arrived.views


# Another version of the model ---------------------------------------------------------------------------------------


def edited(instance: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """Return what arrives of a snapshot whose entry another version of the code has written."""
    arrived = sent({"instance": instance}, snapshot=True)
    change(arrived.envelope.objects[0])
    return arrived["instance"]


@pytest.mark.django_db
def test_a_field_that_the_model_gained_is_deferred() -> None:
    """A snapshot written before its model had a field arrives with that field deferred (H75)."""
    arrived = edited(Product.objects.create(sku="a", views=7), lambda entry: entry["fields"]["values"].pop("views"))

    assert {"views"} == arrived.get_deferred_fields()
    assert ("a", 7) == (arrived.sku, arrived.views)


def test_a_field_that_the_model_lost_is_ignored() -> None:
    """A snapshot with values, unset and forbidden fields that its model no longer has arrives without them (H75)."""

    def older(entry: dict[str, Any]) -> None:
        entry["fields"]["values"]["gone"] = {"$": "unknown", "v": 1}
        entry["fields"]["unset"].append("gone_too")
        entry["fields"]["forbidden"].append("gone_as_well")
        entry["note"] = "of a newer version"

    arrived = edited(stored(Product(pk=1, sku="a")), older)

    assert (1, "a") == (arrived.pk, arrived.sku)
    assert {"gone", "gone_too", "gone_as_well"}.isdisjoint(vars(arrived))


def test_a_default_that_became_the_applications_own() -> None:
    """A field that was the database's to fill, and has an ordinary default now, arrives with that (H58, H75)."""
    arrived = edited(Product(sku="a"), lambda entry: entry["fields"]["unset"].append("views"))
    assert 0 == arrived.views

    arrived = edited(
        Product(sku="a"),
        lambda entry: (entry["fields"]["values"].pop("views"), entry["fields"]["unset"].append("views")),
    )
    assert 0 == arrived.views


@pytest.mark.django_db
def test_a_deferred_field_that_the_model_lost_is_ignored() -> None:
    """A reference that defers a field which its model no longer has is fetched all the same (H75)."""
    arrived = sent({"tag": Tag.objects.create(name="a")})
    arrived.envelope.objects[0]["deferred"] = ["gone", "name"]

    assert {"name"} == arrived["tag"].get_deferred_fields()


# Fetching -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(databases=["default", "other"])
def test_rows_are_fetched_where_they_were_sent_from() -> None:
    """A row is fetched from the recorded database; of an instance that has none, where its model is written (H48)."""
    for alias in ("default", "other"):
        Tag.objects.using(alias).create(pk=5, name=alias)

    class Replicas:
        def db_for_read(self, model: Any, **hints: Any) -> str:
            return "other"

        def db_for_write(self, model: Any, **hints: Any) -> str:
            return "default"

    with override_settings(DATABASE_ROUTERS=[Replicas()]):
        arrived = [sent({"tag": stored(Tag(pk=5), alias)})["tag"] for alias in ("default", "other", None)]

    assert ["default", "other", "default"] == [tag.name for tag in arrived]
    assert ["default", "other", "default"] == [tag._state.db for tag in arrived]


@pytest.mark.django_db
def test_a_hidden_row_is_fetched(django_assert_num_queries: Any) -> None:
    """A row that the model's managers hide is fetched, by one query (H49)."""
    article = Article.objects.create(title="a", deleted=True)
    assert not Article.objects.exists()
    with django_assert_num_queries(1):
        assert "a" == sent({"article": article})["article"].title


@pytest.mark.django_db
def test_a_row_that_is_gone_is_told_apart() -> None:
    """A row that is gone raises InstanceMissing, which names it and the remedy, also deep inside a value (H53)."""
    arrived = sent({"tag": stored(Tag(pk=5)), "deep": {"tags": [stored(OrderLine(order_id=1, number=2))]}})

    with pytest.raises(InstanceMissing, match=r"shop\.Tag pk=5 no longer exists in the database 'default'.*on_miss"):
        arrived["tag"]
    with pytest.raises(InstanceMissing, match=r"shop\.OrderLine pk=\(1, 2\) no longer exists"):
        arrived["deep"]


# Damage -------------------------------------------------------------------------------------------------------------

WHOLE = {"values": {}, "forbidden": [], "unset": [], "adding": False}
ENTRY = {"model": "shop.Tag", "pk": 1, "db": "default"}
DAMAGED: dict[str, Any] = {
    "no-table": 5,
    "nothing": {},
    "no-pk": {"model": "shop.Tag", "db": "default"},
    "no-model": {"pk": 1, "db": "default"},
    "unknown-model": {**ENTRY, "model": "shop.Nothing"},
    "unknown-app": {**ENTRY, "model": "nowhere.Tag"},
    "no-label": {**ENTRY, "model": ["shop.Tag"]},
    "unknown-database": {**ENTRY, "db": "nowhere"},
    "no-database": {**ENTRY, "db": ["default"]},
    "pk-of-another-type": {**ENTRY, "pk": "one"},
    "pk-list": {**ENTRY, "pk": [1]},
    "pk-dict": {**ENTRY, "pk": {"id": 1}},
    "pk-unknown-tag": {**ENTRY, "pk": {"$": "nothing", "v": 1}},
    "pk-is-itself": {**ENTRY, "pk": {"$": "obj", "v": 0}},
    "composite-too-short": {**ENTRY, "model": "shop.OrderLine", "pk": {"$": "tuple", "v": [1]}},
    "deferred-number": {**ENTRY, "deferred": 5},
    "fields-list": {**ENTRY, "fields": []},
    "fields-empty": {**ENTRY, "fields": {}},
    "values-list": {**ENTRY, "fields": {**WHOLE, "values": []}},
    "values-unknown-tag": {**ENTRY, "fields": {**WHOLE, "values": {"name": {"$": "nothing", "v": 1}}}},
    "values-itself": {**ENTRY, "fields": {**WHOLE, "values": {"name": {"$": "obj", "v": 0}}}},
    "unset-number": {**ENTRY, "fields": {**WHOLE, "unset": 5}},
    "unset-nested": {**ENTRY, "fields": {**WHOLE, "unset": [[]]}},
    "forbidden-number": {**ENTRY, "fields": {**WHOLE, "forbidden": 5}},
    "no-forbidden": {**ENTRY, "fields": {"values": {}, "unset": [], "adding": False}},
    "no-adding": {**ENTRY, "fields": {"values": {}, "unset": [], "forbidden": []}},
}


@pytest.mark.django_db
@pytest.mark.parametrize("entry", DAMAGED.values(), ids=DAMAGED)
def test_damaged_entries_are_refused(entry: Any) -> None:
    """An entry that no encoder writes is refused with a DecodeError (H70)."""
    arrived = sent({"tag": stored(Tag(pk=1))})
    arrived.envelope.objects[0] = entry

    with pytest.raises(DecodeError):
        arrived["tag"]


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        ["shop.Tag", "name"],
        ["shop.Nothing", "name", "a"],
        ["shop.Tag", "nothing", "a"],
        ["shop.Tag", "name", 5],
        ["shop.Everything", "integer", "five"],
        ["shop.Everything", "json", "{"],
        [["shop.Tag"], "name", "a"],
    ],
)
def test_damaged_values_of_fields_are_refused(payload: Any) -> None:
    """A field's text that no field has written is refused with a DecodeError (H70)."""
    with pytest.raises(DecodeError):
        Decoder([], instance_from).decode({"$": "field", "v": payload})


@pytest.mark.parametrize(
    "payload", [None, [], [None, "file", "a"], [5, "file", "a"], [{"$": "obj", "v": 0}, "no", "a"]]
)
def test_damaged_files_are_refused(payload: Any) -> None:
    """A file of no instance, or of a field that does not exist, is refused with a DecodeError (H70)."""
    decoder = Decoder([{**ENTRY, "fields": WHOLE}], instance_from)

    with pytest.raises(DecodeError):
        decoder.decode({"$": "fieldfile", "v": payload})


def test_instances_never_travel_outside_the_table() -> None:
    """What travels as something else has no form of its own that a message could hold."""
    codec: Any = codec_for(Order)

    with pytest.raises(DecodeError, match="never travels under a tag of its own"):
        codec.decode({}, Decoder([], instance_from))
