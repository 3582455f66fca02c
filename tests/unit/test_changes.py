"""Which saves ``changed=`` lets through, what it says of them, and what it keeps for that."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from celery import Celery
from django.core import serializers
from django.core.cache import caches
from django.core.files.base import ContentFile
from django.db import DatabaseError, connection, models, transaction
from django.db.models import F, Value
from django.db.models.functions import Greatest
from django.db.models.signals import post_init, post_save, pre_delete, pre_save
from django.template import Context, Engine
from django.test.utils import isolate_apps
from django.utils.functional import SimpleLazyObject

from django_celery_signals import ConnectError, NotCarried, changes, connect, disconnect
from django_celery_signals.changes import Values
from django_celery_signals.codec.standins import Unavailable
from tests.carrying import opened
from tests.drain import drain, take
from tests.making import Tasks
from tests.receiving import Receiving
from tests.shop.models import (
    Account,
    Article,
    Club,
    Country,
    Customer,
    Everything,
    Holiday,
    Invoice,
    Order,
    OrderLine,
    Person,
    PriorityOrder,
    Product,
    Receipt,
    RushOrder,
    Stock,
)

pytestmark = pytest.mark.django_db

FOLLOWED = ("from_db", "refresh_from_db", "save_base")

Sent = Callable[[], list[dict[str, tuple[Any, Any]]]]


@pytest.fixture(autouse=True)
def at_once(settings: Any) -> None:
    """Messages leave without waiting for a commit."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate"}


def forget_watched() -> None:
    for model in list(changes._watched):
        post_save.disconnect(sender=model, dispatch_uid=changes._UID)
        for name in FOLLOWED:
            delattr(model, name)
        del changes._watched[model]


@pytest.fixture(autouse=True)
def nothing_watched() -> Iterator[None]:
    """No model is watched, as in a process that has just begun."""
    before = dict(changes._watched)
    forget_watched()
    yield
    forget_watched()
    for model, names in before.items():
        changes.watch(model, names, "a test before")


@pytest.fixture
def sent(celery_app: Celery) -> Sent:
    """Takes what was sent since the last time, and says which changes it tells of."""
    return lambda: [opened(message.sealed).reader.changes() for message in take(celery_app)]


@pytest.fixture
def product(receiving: Receiving, sent: Sent) -> Product:
    """A loaded row whose views are watched."""
    receiving(post_save, sender=Product, changed=["views"])
    product = Product.objects.get(pk=Product.objects.create(sku="a", views=1).pk)
    sent()
    return product


@pytest.fixture
def everything(receiving: Receiving, sent: Sent) -> Everything:
    """A loaded row of every field type, of which these are watched."""
    names = ["char", "json", "file", "level", "binary", "float", "decimal", "points"]
    receiving(post_save, sender=Everything, changed=names)
    row = Everything.objects.create(json={"a": [1]}, file="old.txt", binary=b"old", decimal=Decimal("1.5"))
    sent()
    return Everything.objects.get(pk=row.pk)


@pytest.fixture
def heard() -> Iterator[Callable[..., None]]:
    """Connects plain functions to a signal until the test ends."""
    undo: list[Callable[[], Any]] = []

    def hear(signal: Any, function: Callable[..., Any], sender: Any) -> None:
        signal.connect(function, sender=sender, weak=False)
        undo.append(lambda: signal.disconnect(function, sender=sender))

    yield hear
    for step in undo:
        step()


def is_expression(value: Any) -> bool:
    """Tell whether Django left an expression on an instance, as it does before 6.0."""
    return hasattr(value, "resolve_expression")


# Created, changed, unchanged ---------------------------------------------------------------------------------------


def test_created_always_matches(receiving: Receiving, sent: Sent) -> None:
    """A save that inserts is sent, with None as the old value of each watched field."""
    receiving(post_save, sender=Product, changed=["views", "sku"])

    Product.objects.create(sku="a", views=3)
    Product().save()

    assert [{"views": (None, 3), "sku": (None, "a")}, {"views": (None, 0), "sku": (None, "")}] == sent()


def test_only_a_change_is_sent(product: Product, sent: Sent) -> None:
    """A save is sent when it changes a watched field, and not when it changes others, nothing, or nothing more."""
    product.save()
    product.sku = "b"
    product.save()
    unchanged = sent()
    product.views = 2
    product.save()
    product.save()
    there_and_back = product.views = 3
    product.views = there_and_back - 1
    product.save()

    assert [] == unchanged
    assert [{"views": (1, 2)}] == sent()


def test_each_save_is_compared_with_the_one_before(product: Product, sent: Sent) -> None:
    """Old values are those of the last save, and changing back is a change."""
    for views in (2, 2, 5, 1):
        product.views = views
        product.save()

    assert [{"views": (1, 2)}, {"views": (2, 5)}, {"views": (5, 1)}] == sent()


def test_a_created_instance_is_followed_from_there(product: Product, sent: Sent) -> None:
    """What was just created counts as saved: the next save is sent only if it changes something."""
    made = Product.objects.create(sku="b", views=5)
    sent()

    made.save()
    made.views = 6
    made.save()

    assert [{"views": (5, 6)}] == sent()


@pytest.mark.parametrize("how", ["get_or_create", "update_or_create"])
def test_or_create(how: str, product: Product, sent: Sent) -> None:
    """get_or_create() and update_or_create() send what they create, and an update that changes something."""
    method = getattr(Product.objects, how)
    for views in (7, 7, 8):
        method(sku="new", defaults={"views": views})

    updates = [{"views": (7, 8)}] if how == "update_or_create" else []
    assert [{"views": (None, 7)}, *updates] == sent()


# update_fields -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update_fields", "expected"),
    [
        (None, [{"views": (1, 2)}]),
        (["views"], [{"views": (1, 2)}]),
        (("views", "sku"), [{"views": (1, 2)}]),
        (["sku"], []),
        ([], []),
    ],
)
def test_update_fields(update_fields: Any, expected: Any, product: Product, sent: Sent) -> None:
    """A change counts when it is written: not while update_fields leaves it out, and then at the save that has it
    (H26)."""
    product.views, product.sku = 2, "b"

    product.save(update_fields=update_fields)
    first = sent()
    product.save()

    assert expected == first
    assert [{"views": (1, 2)}] == first + sent()


@pytest.mark.parametrize("watched", ["customer", "customer_id"])
@pytest.mark.parametrize("update_fields", [None, ["customer"], ["customer_id"]])
@pytest.mark.parametrize("by", ["object", "id"])
def test_foreign_keys(watched: str, update_fields: Any, by: str, receiving: Receiving, sent: Sent) -> None:
    """A foreign key is compared by its value, however it is named, assigned and written; related rows are not loaded
    (H60)."""
    receiving(post_save, sender=Order, changed=[watched], created=False)
    one, two = Customer.objects.create(name="one"), Customer.objects.create(name="two")
    order = Order.objects.get(pk=Order.objects.create(customer=one).pk)

    for customer in (one, two):
        if by == "object":
            order.customer = customer
        else:
            order.customer_id = customer.pk
        order.save(update_fields=update_fields)

    assert [{watched: (one.pk, two.pk)}] == sent()


def test_a_foreign_key_to_another_column(receiving: Receiving, sent: Sent) -> None:
    """A foreign key that does not point at the primary key is compared by what it holds (H60)."""
    receiving(post_save, sender=Stock, changed=["product"], created=False)
    one, two = Product.objects.create(sku="one"), Product.objects.create(sku="two")
    stock = Stock.objects.create(product=one)

    stock.product = two
    stock.save()

    assert [{"product": ("one", "two")}] == sent()


# Expressions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [F("views") + 1, F("views"), Value(1), Greatest("views", 0)],
    ids=["increment", "itself", "constant", "function"],
)
@pytest.mark.parametrize("options", [{}, {"update_fields": ["views"]}], ids=["all", "update_fields"])
def test_expressions_count_as_changed(expression: Any, options: Any, product: Product, sent: Sent) -> None:
    """An expression counts as changed, whatever it comes to; the event has its value if Django fetched it, else a
    stand-in (H57)."""
    product.views = expression
    product.save(**options)

    [[(old, new)]] = [list(changed.values()) for changed in sent()]
    assert 1 == old
    assert type(new) is Unavailable if is_expression(product.views) else product.views == new


def test_an_expression_in_strict_mode(product: Product, sent: Sent, settings: Any) -> None:
    """An expression does not fail the save under STRICT (H18, H57)."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate", "STRICT": True}
    product.views = F("views") + 1

    product.save()

    assert 1 == len(sent())


def test_an_expression_is_applied_by_each_save_that_has_it(product: Product, sent: Sent) -> None:
    """A second save is sent if Django left the expression on the instance, for it is applied again (H57)."""
    product.views = F("views") + 1
    product.save()
    sent()
    is_left = is_expression(product.views)

    product.save()

    assert is_left == bool(sent())


def test_an_expression_that_is_not_written(product: Product, sent: Sent) -> None:
    """An expression that update_fields leaves out does not count (H57)."""
    product.views = F("views") + 1

    product.save(update_fields=["sku"])

    assert [] == sent()


def test_a_value_after_an_expression(product: Product, sent: Sent) -> None:
    """After an expression, the instance's next value is compared with what is known: the refreshed one, or none
    (H57)."""
    product.views = F("views") + 1
    product.save()
    product.refresh_from_db()
    sent()

    product.save()
    product.views = 1
    product.save()

    assert [{"views": (2, 1)}] == sent()


def test_what_django_defers_while_saving_has_changed(product: Product, sent: Sent) -> None:
    """A field that Django defers, for it cannot fetch what an expression came to, has changed, and its value is unknown
    until it is loaded (H57, H58)."""
    # What Django >= 6.0 does on a database without UPDATE ... RETURNING. (This runs before the receivers.)
    original = Product._save_table

    def defer(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        del self.__dict__["views"]
        return result

    product.views = F("views") + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Product, "_save_table", defer)
        product.save()
    [changed] = sent()
    product.views = 1
    product.save()

    assert 1 == changed["views"][0]
    assert "only the database knows" in repr(changed["views"][1])
    assert [{"views": (None, 1)}] == sent()


# Deferred ----------------------------------------------------------------------------------------------------------


LOADED_WITHOUT = {
    "only": lambda pk: Product.objects.only("sku").get(pk=pk),
    "defer": lambda pk: Product.objects.defer("views").get(pk=pk),
    "raw": lambda pk: Product.objects.raw("SELECT id, sku FROM shop_product WHERE id = %s", [pk])[0],
}


@pytest.mark.parametrize("loaded", LOADED_WITHOUT)
def test_a_deferred_field_counts_once_it_is_assigned(loaded: str, product: Product, sent: Sent) -> None:
    """A deferred field is not loaded to be compared: it has changed when it was assigned, and only then (H59)."""
    deferred = LOADED_WITHOUT[loaded](product.pk)

    deferred.sku = "b"
    deferred.save()
    untouched = sent(), "views" in deferred.__dict__
    deferred.views = 1
    deferred.save()
    deferred.save()

    assert ([], False) == untouched
    assert [{"views": (None, 1)}] == sent()


LOADS: dict[str, Callable[[Product], Any]] = {
    "by access": lambda product: product.views,
    "by name": lambda product: product.refresh_from_db(fields=["views"]),
    "by position": lambda product: product.refresh_from_db(None, ["views"]),
    "by queryset": lambda product: product.refresh_from_db(fields=["views"], from_queryset=Product.objects.all()),
}


@pytest.mark.parametrize("loads", LOADS)
@pytest.mark.parametrize("loaded", LOADED_WITHOUT)
def test_a_deferred_field_that_was_loaded_later(loaded: str, loads: str, product: Product, sent: Sent) -> None:
    """A deferred field that is loaded later is compared from then on (H59)."""
    deferred = LOADED_WITHOUT[loaded](product.pk)

    LOADS[loads](deferred)
    deferred.save()
    unchanged = sent()
    deferred.views = 2
    deferred.save()

    assert [] == unchanged
    assert [{"views": (1, 2)}] == sent()


PARTLY: dict[str, Callable[[Product], None]] = {
    "by name": lambda product: product.refresh_from_db(fields=["sku"]),
    "by position": lambda product: product.refresh_from_db(None, ["sku"]),
}


@pytest.mark.parametrize("partly", PARTLY)
def test_a_refresh_renews_what_it_loads(partly: str, product: Product, sent: Sent) -> None:
    """After refresh_from_db() the refreshed values count as known, and the others as they were."""
    Product.objects.filter(pk=product.pk).update(views=7)
    product.refresh_from_db()
    product.save()
    product.views = 8
    PARTLY[partly](product)
    product.save()

    assert [{"views": (7, 8)}] == sent()


async def refreshed_and_saved(product: Product) -> None:
    await product.arefresh_from_db()
    await product.asave()
    product.views += 1
    await product.asave()


@pytest.mark.django_db(transaction=True)
def test_coroutines(receiving: Receiving, sent: Sent) -> None:
    """asave() and arefresh_from_db() are followed like the others (H24)."""
    receiving(post_save, sender=Product, changed=["views"], created=False)
    product = Product.objects.create(sku="a", views=1)
    Product.objects.update(views=5)

    async_to_sync(refreshed_and_saved)(product)

    assert [{"views": (5, 6)}] == sent()


# What values are ---------------------------------------------------------------------------------------------------


def changed_by(everything: Everything, sent: Sent, change: Callable[[Everything], Any]) -> Any:
    change(everything)
    everything.save()
    everything.save()
    return sent()


def test_json_changed_in_place(everything: Everything, sent: Sent) -> None:
    """A JSON value that is changed in place has changed, at any depth (H61)."""
    assert [{"json": ({"a": [1]}, {"a": [1, 2]})}] == changed_by(everything, sent, lambda row: row.json["a"].append(2))


def test_bytes_changed_in_place(everything: Everything, sent: Sent) -> None:
    """A bytearray that is changed in place has changed, and equal bytes of another type have not (H61)."""
    assert [] == changed_by(everything, sent, lambda row: setattr(row, "binary", bytearray(b"old")))
    assert [{"binary": (bytearray(b"old"), bytearray(b"Xld"))}] == changed_by(
        everything, sent, lambda row: row.binary.__setitem__(0, ord("X"))
    )


def test_enums_are_compared_by_value(everything: Everything, sent: Sent) -> None:
    """A member of an enumeration and its value are the same, another member is not (H62)."""
    assert [] == changed_by(everything, sent, lambda row: setattr(row, "level", Everything.Level.LOW))
    [changed] = changed_by(everything, sent, lambda row: setattr(row, "level", Everything.Level.HIGH))

    assert {"level": (1, 2)} == changed
    assert [] == changed_by(everything, sent, lambda row: setattr(row, "level", 2))


def test_files_are_compared_by_name(everything: Everything, sent: Sent, settings: Any, tmp_path: Any) -> None:
    """A file has changed when its name has, which saving may choose; looking at a file changes nothing (H61)."""
    settings.MEDIA_ROOT = tmp_path

    assert [] == changed_by(everything, sent, lambda row: row.file.name)
    assert [] == changed_by(everything, sent, lambda row: setattr(row, "file", "old.txt"))
    assert [{"file": ("old.txt", "files/new.txt")}] == changed_by(
        everything, sent, lambda row: setattr(row, "file", ContentFile(b"x", name="new.txt"))
    )
    assert [{"file": ("files/new.txt", "files/newer.txt")}] == changed_by(
        everything, sent, lambda row: row.file.save("newer.txt", ContentFile(b"y"), save=False)
    )


def test_not_a_number_is_compared_with_itself(everything: Everything, sent: Sent) -> None:
    """NaN, which is not equal to itself, changes once and not at each save (H61)."""
    [changed] = changed_by(everything, sent, lambda row: setattr(row, "float", float("nan")))

    assert ["float"] == list(changed)


def test_equal_numbers_are_unchanged(everything: Everything, sent: Sent) -> None:
    """Numbers of equal value are unchanged, whatever their type and digits; text in their place is not (H56)."""
    assert [] == changed_by(everything, sent, lambda row: setattr(row, "decimal", Decimal("1.500")))
    assert [] == changed_by(everything, sent, lambda row: setattr(row, "decimal", 1.5))
    assert [{"decimal": (1.5, "1.5")}] == changed_by(everything, sent, lambda row: setattr(row, "decimal", "1.5"))


class Undecided(str):
    """Text that does not say whether it is another."""

    __hash__ = str.__hash__

    def __ne__(self, other: object) -> bool:
        raise ValueError("The truth value of an array is ambiguous.")


def test_values_that_do_not_compare_have_changed(everything: Everything, sent: Sent) -> None:
    """A value that raises when it is compared counts as changed, and the save goes on; untouched it has not changed."""
    [changed] = changed_by(everything, sent, lambda row: setattr(row, "char", Undecided("x")))

    assert "x" == changed["char"][1]
    assert [["char"]] == [
        list(one) for one in changed_by(everything, sent, lambda row: setattr(row, "char", Undecided("y")))
    ]


def test_values_of_the_database(everything: Everything, sent: Sent) -> None:
    """A default of the database is known once the row is inserted (H58)."""
    made = Everything()
    made.save()
    [created] = sent()

    assert [(None, 7)] == [created["points"]]
    assert [] == changed_by(made, sent, lambda row: None)
    assert [{"points": (7, 8)}] == changed_by(made, sent, lambda row: setattr(row, "points", 8))


# Which rows --------------------------------------------------------------------------------------------------------


def test_an_instance_made_by_hand(product: Product, sent: Sent) -> None:
    """Saved over an existing row, an instance made by hand may have changed all of it (H52)."""
    Product(pk=product.pk, sku="a", views=1).save()
    pretended = Product(pk=product.pk, sku="a", views=1)
    pretended._state.adding, pretended._state.db = False, "default"
    pretended.save()
    pretended.save()

    assert [{"views": (None, 1)}] * 2 == sent()


def test_an_instance_becomes_a_copy(product: Product, sent: Sent) -> None:
    """Without its primary key an instance is inserted again, and followed as the new row."""
    product.pk, product.sku = None, "b"
    product.save()
    product.views = 2
    product.save()

    assert [{"views": (None, 1)}, {"views": (1, 2)}] == sent()


def test_an_instance_is_written_over_another_row(product: Product, sent: Sent) -> None:
    """Given another row's primary key, an instance may have changed all of that row."""
    product.pk, product.sku = Product.objects.bulk_create([Product(sku="b", views=9)])[0].pk, "c"

    product.save()
    product.save()

    assert [{"views": (None, 1)}] == sent()


def test_bulk_methods_are_not_followed(product: Product, sent: Sent) -> None:
    """bulk_create() and bulk_update() send nothing; of what they wrote, only a later save tells (H26)."""
    made = Product(sku="b", views=1)
    made.views = 2
    Product.objects.bulk_create([made])
    by_bulk = sent()
    made.views = 1
    made.save()
    product.views = 5
    Product.objects.bulk_update([product], ["views"])
    product.save()

    assert [] == by_bulk
    assert [{"views": (None, 1)}, {"views": (1, 5)}] == sent()


def test_a_deleted_instance_is_created_again(product: Product, sent: Sent) -> None:
    """A row that was deleted is inserted by the next save of its instance, which is sent, the old values being None."""
    Product.objects.all().delete()
    product.save()
    product.delete()
    product.save()

    assert [{"views": (None, 1)}] * 2 == sent()


def test_composite_keys(receiving: Receiving, sent: Sent) -> None:
    """A row with a primary key of several columns is followed like others (H54)."""
    receiving(post_save, sender=OrderLine, changed=["quantity"], created=False)
    order = Order.objects.create(customer=Customer.objects.create())
    OrderLine.objects.create(order=order, number=1)
    line = OrderLine.objects.get(pk=(order.pk, 1))

    line.save()
    line.quantity = 2
    line.save()

    assert [{"quantity": (1, 2)}] == sent()


def test_a_failed_save_is_none(product: Product, sent: Sent) -> None:
    """A save that fails changes nothing of what is known, and the next one is compared with the values before it."""
    Product.objects.create(sku="taken")
    sent()
    product.views, product.sku = 2, "taken"
    with suppress(DatabaseError), transaction.atomic():
        product.save()
    product.sku = "free"
    failed = sent()

    product.save()

    assert [] == failed
    assert [{"views": (1, 2)}] == sent()


# Other models ------------------------------------------------------------------------------------------------------


def test_a_child_with_its_own_table(receiving: Receiving, sent: Sent) -> None:
    """A child's watched fields may be its own or its parent's, and watching the parent does not watch it (H11)."""
    receiving(post_save, sender=RushOrder, changed=["status", "courier"], created=False)
    receiving(post_save, sender=Order, changed=["status"])
    customer = Customer.objects.create()
    child = RushOrder.objects.get(pk=RushOrder.objects.create(customer=customer, courier="Ada").pk)

    child.save()
    child.status = "paid"
    child.save()
    child.courier = "Eve"
    child.save(update_fields=["courier"])

    assert [{"status": ("new", "paid")}, {"courier": ("Ada", "Eve")}] == sent()


def test_a_parent_is_followed_through_its_own_class(receiving: Receiving, sent: Sent) -> None:
    """The parent row of a child, loaded as the parent, is an instance of its own (H11)."""
    receiving(post_save, sender=Order, changed=["status"])
    child = RushOrder.objects.create(customer=Customer.objects.create())
    order = Order.objects.get(pk=child.pk)

    order.status = "sent"
    order.save()
    order.save()
    child.status = "paid"
    child.order_ptr.save()  # Django makes it out of the child's values

    assert [{"status": ("new", "sent")}, {"status": (None, "paid")}] == sent()


def test_a_proxy_is_a_model_of_its_own(receiving: Receiving, sent: Sent) -> None:
    """A proxy is watched by itself: its instances are followed, and those of its base are not (H10)."""
    receiving(post_save, sender=PriorityOrder, changed=["status"])
    pk = Order.objects.create(customer=Customer.objects.create()).pk

    for model in (Order, PriorityOrder):
        order = model.objects.get(pk=pk)
        order.save()
        order.status = model.__name__[:5]
        order.save()

    assert [{"status": ("Order", "Prior")}] == sent()


def test_children_of_an_abstract_base(receiving: Receiving, sent: Sent) -> None:
    """Of an abstract base's children each is watched by itself; auto_now counts like any assignment (H12)."""
    receiving(post_save, sender=Invoice, changed=["number"], created=False)
    receiving(post_save, sender=Receipt, changed=["changed_at"], created=False)
    for one in (Invoice.objects.create(number="1"), Receipt.objects.create(number="1")):
        one.save()
        one.number = "2"
        one.save()

    assert [["number"], ["changed_at"], ["changed_at"]] == [list(changed) for changed in sent()]


@pytest.mark.parametrize(
    ("model", "name", "said"),
    [
        (Product, "colour", "has only the columns id, sku, views"),
        (Product, "pk", "has only the columns"),
        (Product, "stocks", "has only the columns"),
        (Order, "tags", "has only the columns"),
        (Order, "comments", "has only the columns"),
        (OrderLine, "pk", "has only the columns order, number, quantity"),
        (Everything, "doubled", "has only the columns .*points"),
    ],
)
def test_names_that_are_no_columns(model: Any, name: str, said: str, receiving: Receiving) -> None:
    """What no save writes is refused when connecting: relations, unknown names, what the database computes (H58)."""
    with pytest.raises(ConnectError, match=f"receiver tests.receiving.*{said}"):
        receiving(post_save, sender=model, changed=[name])


@pytest.mark.parametrize("sender", [len, int, None], ids=["function", "class", "nothing"])
def test_senders_that_are_no_models(sender: Any) -> None:
    """Only a model can be watched, and the error names the declaration."""
    with pytest.raises(ConnectError, match=f"^receiver x: changed= compares .* the sender is {sender!r}"):
        changes.watch(sender, ["views"], "receiver x")


# Nothing more ------------------------------------------------------------------------------------------------------


def test_no_query(product: Product, django_assert_num_queries: Any) -> None:
    """Watching issues no query: not when loading, deferred or not, nor when saving (H59)."""
    with django_assert_num_queries(4):
        deferred = Product.objects.only("sku").get(pk=product.pk)
        deferred.save()
        product.views = 2
        product.save()
        product.refresh_from_db()


def test_no_query_without_a_primary_key(product: Product, django_assert_num_queries: Any) -> None:
    """An instance that project code loads without its primary key is not asked for it (H59)."""
    with django_assert_num_queries(0):
        loaded = Product.from_db("default", ["sku"], ["a"])

    assert "a" == loaded.sku


def keeps_nothing(instance: models.Model) -> bool:
    fields = {field.attname for field in instance._meta.concrete_fields}
    return set(instance.__dict__) <= {*fields, "_state", "_prefetched_objects_cache"}


def test_models_without_changed_keep_nothing(product: Product) -> None:
    """A model that does not use changed= has no receiver, no method of ours, and nothing in its instances."""
    made = Holiday.objects.create(day="2013-01-01", name="New Year")
    loaded = Holiday.objects.get(pk=made.pk)
    loaded.save()

    assert keeps_nothing(made)
    assert keeps_nothing(loaded)
    assert [] == [signal for signal in (post_save, pre_save, post_init) if signal.has_listeners(Holiday)]
    assert set() == set(FOLLOWED) & set(vars(Holiday))
    assert not hasattr(Holiday.save_base, "__wrapped__")


@isolate_apps("tests.shop")
def test_children_of_a_watched_model_keep_nothing(receiving: Receiving) -> None:
    """Children and proxies of a watched model that are not watched themselves keep nothing in their instances."""

    class Land(Country):
        class Meta:
            proxy = True
            app_label = "shop"

    receiving(post_save, sender=Country, changed=["name"])
    made = Land.objects.create(code="de", name="Germany")
    loaded = Land.objects.get(pk="de")
    loaded.refresh_from_db()
    loaded.save()

    assert keeps_nothing(made)
    assert keeps_nothing(loaded)


def test_templates_still_cannot_save(product: Product) -> None:
    """A template cannot call the methods of a watched model that alter data."""
    template = Engine().from_string("{{ product.save_base }}{{ product.sku }}")

    assert "a" == template.render(Context({"product": product}))


# Nested ------------------------------------------------------------------------------------------------------------


def test_a_receiver_saves_the_same_instance(receiving: Receiving, sent: Sent, heard: Any) -> None:
    """A save by a receiver of the same instance is another one, with its own changes; those behind it see theirs."""

    def count(instance: Any, **_: Any) -> None:
        if instance.views < 10:
            instance.views += 10
            instance.save()

    receiving(post_save, sender=Product, changed=["views"], created=False)
    product = Product.objects.create(sku="a", views=10)
    heard(post_save, count, Product)
    receiving(post_save, sender=Product, changed=["views"], created=False)
    product.views = 1
    product.save()

    assert [{"views": (10, 1)}, {"views": (1, 11)}, {"views": (1, 11)}, {"views": (10, 1)}] == sent()


def test_a_receiver_saves_other_fields(receiving: Receiving, celery_app: Celery, heard: Any) -> None:
    """A receiver's save of other watched fields is sent only to who watches those, and does not hide the outer save
    (H28)."""

    def count(instance: Any, update_fields: Any, **_: Any) -> None:
        if not update_fields:
            instance.views += 10
            instance.save(update_fields=["views"])

    views = receiving(post_save, sender=Product, changed=["views"], created=False)
    heard(post_save, count, Product)
    sku = receiving(post_save, sender=Product, changed=["sku"], created=False)
    product = Product.objects.create(sku="a", views=1)
    take(celery_app)
    product.sku = "b"
    product.save()

    said = [(message.task, opened(message.sealed).reader.changes()) for message in take(celery_app)]
    assert [(views.name, {"views": (11, 21)}), (sku.name, {"sku": ("a", "b")})] == said


def test_a_receiver_before_the_save_saves_the_same_instance(product: Product, sent: Sent, heard: Any) -> None:
    """What a receiver of pre_save has saved already is not changed by the save itself."""
    nested = [True]

    def save_first(instance: Any, **_: Any) -> None:
        if nested:
            nested.pop()
            instance.save()

    heard(pre_save, save_first, Product)
    product.views = 2
    product.save()

    assert [{"views": (1, 2)}] == sent()


def test_a_receiver_that_fails_after_a_nested_save(product: Product, sent: Sent, heard: Any) -> None:
    """After a receiver failed, the save in flight is forgotten, and the next one is compared with what was written."""

    def fail(instance: Any, **_: Any) -> None:
        if instance.views == 2:
            instance.views = 3
            instance.save()
            raise ZeroDivisionError

    heard(post_save, fail, Product)
    product.views = 2
    with pytest.raises(ZeroDivisionError):
        product.save()
    sent()

    product.save()
    product.views = 4
    product.save()

    assert [{"views": (3, 4)}] == sent()


def test_saves_of_several_instances_at_once(product: Product, sent: Sent, heard: Any) -> None:
    """A save of another instance, by a receiver, keeps neither from being compared."""
    other = Product.objects.create(sku="b", views=5)
    sent()

    def pass_on(instance: Any, **_: Any) -> None:
        if instance is product:
            other.views = product.views
            other.save()

    heard(pre_save, pass_on, Product)
    product.views = 2
    product.save()

    assert [{"views": (5, 2)}, {"views": (1, 2)}] == sent()


# Copies ------------------------------------------------------------------------------------------------------------


def through_cache(instance: Any) -> Any:
    cache = caches.create_connection("default")
    cache.set("changes", instance)
    return cache.get("changes")


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda instance: pickle.loads(pickle.dumps(instance)),
    "cache": through_cache,
}


@pytest.mark.parametrize("copied", COPIES)
def test_copies_know_what_their_original_knew(copied: str, product: Product, sent: Sent) -> None:
    """A copy of an instance, also through a cache, starts from what is known, and goes its own way from there."""
    product.views = 2
    twin = COPIES[copied](product)

    twin.save()
    product.save()
    twin.save()

    assert [{"views": (1, 2)}] * 2 == sent()


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("fails", [True, False], ids=["rolled back", "committed"])
def test_copies_made_inside_a_transaction(copied: str, fails: bool, product: Product, sent: Sent) -> None:
    """A copy taken after a rollback starts from the values from before, one after the commit from those saved."""
    with suppress(ZeroDivisionError), transaction.atomic():
        product.views = 2
        product.save()
        assert not fails or 1 / 0
    sent()
    twin = COPIES[copied](product)

    twin.save()

    assert ([{"views": (1, 2)}] if fails else []) == sent()


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_made_by_a_receiver(copied: str, product: Product, sent: Sent, heard: Any) -> None:
    """A copy that a receiver keeps of an instance is not being saved, and holds nothing of the save."""
    twins: list[Any] = []
    heard(post_save, lambda instance, **_: twins.append(COPIES[copied](instance)), Product)
    product.views = 2
    product.save()
    sent()
    [twin] = twins

    twin.save()
    twin.views = 3
    twin.save()

    assert [{"views": (2, 3)}] == sent()
    assert set(product.__dict__) == set(twin.__dict__) - {"_django_version"}


# Savepoints --------------------------------------------------------------------------------------------------------


class Undo(Exception):
    """Makes a block roll back."""


def saved(product: Product, views: int, *, fails: bool = False) -> None:
    """Save in a block of its own, which may roll back."""
    with suppress(Undo), transaction.atomic():
        product.views = views
        product.save()
        if fails:
            raise Undo


def test_after_a_rollback_the_values_before_count(product: Product, sent: Sent) -> None:
    """A rolled back save never was: saving again sends again, and the restored value is no change (H36)."""
    saved(product, 2, fails=True)
    sent()
    product.save()
    again = sent()
    saved(product, 3, fails=True)
    product.views = 2
    sent()
    product.save()

    assert [{"views": (1, 2)}] == again
    assert [] == sent()


def test_each_savepoint_takes_back_its_own(product: Product, sent: Sent) -> None:
    """The rollback of a savepoint takes back what was saved in it, also in released ones, and nothing else (H36)."""
    with transaction.atomic():
        saved(product, 2)
        with suppress(Undo), transaction.atomic():
            saved(product, 3)
            saved(product, 4)
            product.views = 5
            product.save()
            raise Undo
        sent()
        product.save()
        back_to_two = sent()
        saved(product, 6, fails=True)
        sent()
        product.save()

    assert [{"views": (2, 5)}] == back_to_two
    assert [{"views": (5, 6)}] == sent()


def test_released_savepoints_fall_with_the_block(product: Product, sent: Sent) -> None:
    """A block's rollback takes back all that its released savepoints saved, in whatever order (H36)."""
    with suppress(Undo), transaction.atomic():
        product.views = 2
        product.save()
        saved(product, 3)
        saved(product, 4, fails=True)
        saved(product, 5)
        with transaction.atomic(savepoint=False):
            product.views = 6
            product.save()
        saved(product, 7)
        raise Undo
    sent()

    product.save()

    assert [{"views": (1, 7)}] == sent()


def test_a_refresh_inside_a_block_is_taken_back(product: Product, sent: Sent) -> None:
    """What a refresh saw inside a block that rolled back does not count (H36)."""
    with suppress(Undo), transaction.atomic():
        product.views = 2
        product.save()
        product.refresh_from_db()
        raise Undo
    sent()

    product.save()

    assert [{"views": (1, 2)}] == sent()


def test_a_created_row_that_was_rolled_back(product: Product, sent: Sent) -> None:
    """An instance whose insertion was rolled back is created again by the next save, and followed then (H36)."""
    made = Product(sku="b")
    saved(made, 5, fails=True)
    sent()

    made.save()
    made.save()

    assert [{"views": (None, 5)}] == sent()


@pytest.mark.django_db(transaction=True)
def test_what_was_committed_stands(product: Product, sent: Sent) -> None:
    """Once it is committed, a save is what later ones are compared with, also after one was rolled back (H36)."""
    saved(product, 2)
    saved(product, 3, fails=True)
    sent()

    product.views = 2
    product.save()

    assert [] == sent()


def values_alive() -> int:
    gc.collect()
    return sum(type(one) is Values for one in gc.get_objects())


@pytest.mark.parametrize("block", ["none", "one", "savepoints", "rollbacks"])
def test_a_long_life_keeps_no_past(block: str, receiving: Receiving) -> None:
    """An instance that is saved very often keeps no more than what a rollback could bring back."""
    receiving(post_save, sender=Product, changed=["views"], created=True)
    product = Product.objects.create(sku="a")
    hooks, alive = len(connection.run_on_commit), values_alive()

    for views in range(1, 300):
        if block in ("savepoints", "rollbacks"):
            saved(product, views, fails=block == "rollbacks")
        else:
            product.views = views
            product.save()

    assert values_alive() <= alive + 2
    assert block == "savepoints" or len(connection.run_on_commit) <= hooks + 1


@pytest.mark.django_db(transaction=True)
def test_a_transaction_has_one_hook(receiving: Receiving, sent: Sent) -> None:
    """However many instances a transaction saves, it has one commit hook that tells what becomes of them (H38)."""
    receiving(post_save, sender=Product, changed=["views"], created=False)

    with transaction.atomic():
        products = [Product.objects.create(sku=str(number), views=1) for number in range(5)]
        hooks = len(connection.run_on_commit)

    for product in products:
        product.save()
    assert (1, []) == (hooks, sent())


@pytest.mark.django_db(transaction=True)
def test_a_save_in_a_commit_hook_that_is_rolled_back(receiving: Receiving, sent: Sent) -> None:
    """What a commit hook saves and rolls back is sent when it is saved again, whichever hook comes first (H36, H39)."""
    receiving(post_save, sender=Product, changed=["views"], created=False)
    first, second = (Product.objects.create(sku=sku, views=1) for sku in "ab")

    def hook() -> None:
        saved(second, 5, fails=True)
        second.save()

    with transaction.atomic():
        transaction.on_commit(hook)
        first.views = 2
        first.save()

    assert [{"views": (1, 2)}, {"views": (1, 5)}, {"views": (1, 5)}] == sent()
    second.save()
    assert [] == sent()


# Sent otherwise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"created": False},
        {"created": "yes", "using": "nowhere"},
        {"created": False, "using": "default", "update_fields": frozenset({"sku"}), "raw": False},
    ],
    ids=["none", "created", "wrong", "all"],
)
def test_a_signal_sent_by_hand(arguments: Any, product: Product, sent: Sent) -> None:
    """A post_save that no save sent may lack arguments and always matches, for nobody knows what was saved; nor is
    anything known afterwards."""
    post_save.send(Product, instance=product, **arguments)
    post_save.send(Product, instance=product, **arguments)
    by_hand = sent()
    product.save()
    product.save()

    assert [{"views": (None, 1)}] * 2 == by_hand
    assert [{"views": (None, 1)}] == sent()


def test_a_signal_sent_by_hand_for_a_child(receiving: Receiving, sent: Sent, heard: Any) -> None:
    """A parent's post_save that a receiver sends by hand for a child, while that is saved, does no harm (H11)."""
    receiving(post_save, sender=Order, changed=["status"])
    heard(post_save, lambda instance, **_: post_save.send(Order, instance=instance), RushOrder)

    RushOrder.objects.create(customer=Customer.objects.create())

    assert [{"status": (None, "new")}] == sent()


@pytest.mark.parametrize("instance", [None, 5])
def test_a_signal_sent_by_hand_without_an_instance(instance: Any, receiving: Receiving, sent: Sent) -> None:
    """A post_save of something that is no instance is sent, and tells of no changes."""
    receiving(post_save, sender=Product, changed=["views"])

    post_save.send(Product, instance=instance)

    assert [{}] == sent()


def test_a_signal_sent_by_hand_for_a_lazy_instance(product: Product, sent: Sent) -> None:
    """An instance in a lazy object, which was evaluated, is treated as itself (H66b)."""
    lazy = SimpleLazyObject(lambda: product)
    assert 1 == lazy.views

    post_save.send(Product, instance=lazy)
    product.save()

    assert [{"views": (None, 1)}] * 2 == sent()


def test_a_signal_sent_by_hand_while_another_instance_is_saved(product: Product, sent: Sent, heard: Any) -> None:
    """A receiver that sends post_save by hand, for another instance than is being saved, tells of that one's values."""
    other = Product(sku="b", views=9)
    heard(pre_save, lambda instance, **_: post_save.send(Product, instance=other), Product)
    product.views = 2

    product.save()

    assert [{"views": (None, 9)}, {"views": (1, 2)}] == sent()


def test_raw_saves(receiving: Receiving, sent: Sent) -> None:
    """What loaddata saves always counts as changed, for those who want it, and is not known afterwards (H30)."""
    receiving(post_save, sender=Product, changed=["views"], raw=True)
    receiving(post_save, sender=Product, changed=["views"])
    product = Product.objects.create(sku="a", views=1)
    sent()

    [loaded] = serializers.deserialize("json", serializers.serialize("json", [product]))
    loaded.save()
    by_loaddata = sent()
    product.views = 2
    models.Model.save_base(product, raw=True)
    by_hand = sent()
    product.views = 1
    product.save()

    assert [{"views": (None, 1)}] == by_loaddata
    assert [{"views": (None, 2)}] == by_hand
    assert [{"views": (None, 1)}] * 2 == sent()


def test_save_base_raw_of_the_model(receiving: Receiving, sent: Sent) -> None:
    """A raw save through the model's own save_base() is compared like others (H30)."""
    receiving(post_save, sender=Product, changed=["views"], raw=True, created=False)
    product = Product.objects.create(sku="a", views=1)

    product.save_base(raw=True)
    product.views = 2
    product.save_base(raw=True)

    assert [{"views": (1, 2)}] == sent()


# Connected otherwise -----------------------------------------------------------------------------------------------


def test_a_plain_connection(tasks: Tasks, sent: Sent, caplog: pytest.LogCaptureFixture) -> None:
    """Connected by Django's own connect(), a task with changed= learns of the model at the first sending: it sends all
    until then, warns once, and works with what is loaded or saved from then on (H1)."""
    caplog.set_level(logging.WARNING, "django_celery_signals")
    task = tasks.shared(changed=("title",))
    post_save.connect(task.delay, sender=Article)
    try:
        before = Article.objects.create(title="one")
        first = sent()
        before.save()
        before.save()
        second = sent()
        loaded = Article.objects.get(pk=before.pk)
        loaded.save()
        loaded.title = "two"
        loaded.save()
        post_save.send(Article, instance=loaded)
        third = sent()
    finally:
        post_save.disconnect(task.delay, sender=Article)

    assert [{"title": (None, "one")}] == first
    assert [{"title": (None, "one")}] == second
    assert [{"title": ("one", "two")}, {"title": (None, "two")}] == third
    assert ["changed=('title',) of"] == [" ".join(one.split()[:2]) for one in caplog.messages]
    assert "Use receiver_task() or connect()" in caplog.text


def test_a_receiver_before_the_watching_one(tasks: Tasks, celery_app: Celery, receiving: Receiving) -> None:
    """Receivers that were connected before the model was watched know the same of a save as those after (H1)."""
    task = tasks.shared(changed=("title",))
    post_save.connect(task.delay, sender=Article)
    try:
        after = receiving(post_save, sender=Article, changed=["title"])
        article = Article.objects.create(title="one")
        article.save()
        article.title = "two"
        article.save()
        messages = take(celery_app)
    finally:
        post_save.disconnect(task.delay, sender=Article)

    said = [(one.task, opened(one.sealed).reader.changes()) for one in messages]
    pairs = [{"title": (None, "one")}, {"title": ("one", "two")}]
    assert [(name, pair) for pair in pairs for name in (task.name, after.name)] == said


def test_instances_that_exist_before(receiving: Receiving, sent: Sent) -> None:
    """Of an instance that was loaded before its model was watched nothing is known: its first save is sent."""
    article = Article.objects.create(title="one")
    receiving(post_save, sender=Article, changed=["title"])

    article.save()
    article.save()

    assert [{"title": (None, "one")}] == sent()


def test_further_fields_are_watched_later(receiving: Receiving, celery_app: Celery) -> None:
    """A further receiver may watch further fields; of instances loaded before, those are not known yet."""
    title = receiving(post_save, sender=Article, changed=["title"], created=False)
    article = Article.objects.create(title="one")
    deleted = receiving(post_save, sender=Article, changed=["deleted"], created=False)

    article.save()
    article.save()
    article.title = "two"
    article.save()

    said = [(one.task, opened(one.sealed).reader.changes()) for one in take(celery_app)]
    assert [(deleted.name, {"deleted": (None, False)}), (title.name, {"title": ("one", "two")})] == said


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "not watched"])
def test_a_plain_connection_to_another_signal(watched: bool, tasks: Tasks, receiving: Receiving, sent: Sent) -> None:
    """With another signal than post_save, changed= of a task takes no part, whatever fields the sender has."""
    task = tasks.shared(changed=("name",))
    if watched:
        receiving(post_save, sender=Product, changed=["views"])
    for model in (Product, Customer):
        pre_delete.connect(task.delay, sender=model)
    try:
        product, customer = Product.objects.create(sku="a"), Customer.objects.create(name="Ada")
        sent()
        product.delete()
        customer.delete()
        said = sent()
    finally:
        for model in (Product, Customer):
            pre_delete.disconnect(task.delay, sender=model)

    assert [{}, {}] == said


def test_a_plain_connection_that_cannot_work(tasks: Tasks) -> None:
    """A plain connection of a task whose changed= names no field of the sender raises at the sending, and says so."""
    task = tasks.shared(changed=("colour",))
    post_save.connect(task.delay, sender=Club)
    try:
        with pytest.raises(ConnectError, match=f"task {task.name}: changed= names 'colour', but shop.Club"):
            Club.objects.create(name="x")
    finally:
        post_save.disconnect(task.delay, sender=Club)


def test_several_receivers(receiving: Receiving, celery_app: Celery) -> None:
    """Of several receivers of a model each is sent the changes of its own fields, under the names it uses."""
    options = {"sender": Order, "created": False}
    receivers = [
        receiving(post_save, changed=names, **options)
        for names in (["status"], ["total", "status"], ["customer_id"], ["customer"])
    ]
    order = Order.objects.create(customer=Customer.objects.create(), total=1)

    order.status = "paid"
    order.save()
    order.total, order.customer = 2, Customer.objects.create()
    order.save()

    said = [(one.task, list(opened(one.sealed).reader.changes())) for one in take(celery_app)]
    names = [one.name for one in receivers]
    assert [(names[0], ["status"]), (names[1], ["status"])] == said[:2]
    assert [(names[1], ["total"]), (names[2], ["customer_id"]), (names[3], ["customer"])] == said[2:]


def test_disconnected_and_connected_again(receiving: Receiving, sent: Sent) -> None:
    """After disconnect() nothing is sent; connected again, the receiver knows what was saved meanwhile."""
    task = receiving(post_save, sender=Person, changed=["name"], created=False)
    person = Person.objects.create(name="one")
    disconnect(post_save, task, sender=Person)
    person.name = "two"
    person.save()
    connect(post_save, task, sender=Person, changed=["name"], created=False)

    person.save()
    person.name = "three"
    person.save()

    assert [{"name": ("two", "three")}] == sent()


# In the worker -----------------------------------------------------------------------------------------------------


def test_changes_in_the_worker(receiving: Receiving, celery_app: Celery) -> None:
    """The receiver is given old and new values of what was changed, in their types, as event.changes."""
    given: list[Any] = []
    receiving(
        post_save,
        lambda event: given.append(event.changes),
        sender=Order,
        changed=["status", "total", "notes", "customer"],
        created=False,
    )
    order = Order.objects.get(pk=Order.objects.create(customer=Customer.objects.create(), total=Decimal("1.50")).pk)

    order.status, order.total, order.notes["gift"] = Order.Status.PAID, Decimal("2.50"), (1, 2)
    order.save()
    drain(celery_app)

    [pairs] = given
    assert {
        "status": ("new", Order.Status.PAID),
        "total": (Decimal("1.50"), Decimal("2.50")),
        "notes": ({}, {"gift": (1, 2)}),
    } == pairs
    assert all(type(pair) is tuple for pair in pairs.values())


def test_secrets_in_the_worker(receiving: Receiving, celery_app: Celery) -> None:
    """A change of a secret is sent, and neither its old nor its new value (H65)."""
    given: list[Any] = []
    receiving(post_save, lambda event: given.append(event.changes), sender=Account, changed=["password"], created=False)
    account = Account.objects.create(owner="Ada", password="old hidden")

    account.save()
    account.password = "new hidden"
    account.save()
    messages = take(celery_app)
    [message] = messages
    celery_app.tasks[message.task].apply(kwargs=message.kwargs, throw=True)

    [(old, new)] = [pair["password"] for pair in given]
    assert "hidden" not in message.sealed
    for value in (old, new):
        with pytest.raises(NotCarried):
            bool(value)
