"""``changed=`` over every database: values as they come back, commits and rollbacks, several connections at once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from django.db import IntegrityError, connections, transaction
from django.db.backends.postgresql.psycopg_any import NumericRange
from django.db.models import F
from django.db.models.signals import post_save
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_celery_signals.changes import Values
from tests.carrying import opened
from tests.drain import take
from tests.parameters import each_database
from tests.pgshop.models import Booking, Catalogue
from tests.receiving import Receiving
from tests.shop.models import Customer, Everything, Order, Product

Sent = Callable[[], list[dict[str, tuple[Any, Any]]]]


@pytest.fixture
def sent(celery_app: Celery) -> Sent:
    """Takes what was sent since the last time, and says which changes it tells of."""
    return lambda: [opened(message.sealed).reader.changes() for message in take(celery_app)]


@pytest.fixture
def at_once(settings: Any) -> None:
    """Messages leave without waiting for a commit."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate"}


def loaded_product(receiving: Receiving, alias: str, **options: Any) -> Product:
    """Return a loaded row whose views are watched."""
    receiving(post_save, sender=Product, changed=["views"], created=False, **options)
    made = Product.objects.using(alias).create(sku="a", views=1)
    return Product.objects.using(alias).get(pk=made.pk)


class Undo(Exception):
    """Makes a block roll back."""


# Values ------------------------------------------------------------------------------------------------------------

VALUES = {
    "char": ("a", "b"),
    "binary": (b"a", b"b"),
    "boolean_null": (None, False),
    "date_time": (timezone.now().replace(microsecond=5), None),
    "decimal": (Decimal("1.500000"), Decimal("1.500001")),
    "duration": (timedelta(seconds=1), timedelta(seconds=2)),
    "float": (0.1, 0.2),
    "json": ({"a": [1]}, {"a": [1, 2]}),
    "points": (7, 8),
}


@pytest.mark.usefixtures("at_once")
@each_database(transaction=False)
def test_values_come_back_as_they_were_saved(alias: str, receiving: Receiving, sent: Sent) -> None:
    """What a database gives back is what was saved: nothing has changed when it is loaded, and each change is told
    (H56)."""
    receiving(post_save, sender=Everything, changed=list(VALUES), created=False)
    made = Everything(**{name: old for name, (old, _) in VALUES.items()})
    made.save(using=alias)
    made.refresh_from_db()
    made.save()
    loaded = Everything.objects.using(alias).get(pk=made.pk)
    loaded.save()
    unchanged = sent()
    for name, (_, new) in VALUES.items():
        setattr(loaded, name, new)
    loaded.save()
    loaded.save()

    [pairs] = sent()
    assert [] == unchanged
    assert VALUES == {name: (_plain(old), _plain(new)) for name, (old, new) in pairs.items()}


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


@pytest.mark.usefixtures("at_once")
@each_database(transaction=False)
@pytest.mark.parametrize("expression", [F("views"), F("views") + 1], ids=["itself", "increment"])
def test_expressions_count_as_changed(expression: Any, alias: str, receiving: Receiving, sent: Sent) -> None:
    """An expression counts as changed, whether Django keeps, refreshes or defers it; loaded again, its value is known
    (H57, H58)."""
    product = loaded_product(receiving, alias)

    product.views = expression
    product.save()
    by_expression = sent()
    product.refresh_from_db(fields=["views"])
    views = product.views
    product.save()
    product.views = 9
    product.save()

    assert [1] == [old for old, _ in (pairs["views"] for pairs in by_expression)]
    assert [{"views": (views, 9)}] == sent()


@pytest.mark.usefixtures("at_once")
@each_database(transaction=False)
def test_no_query(alias: str, receiving: Receiving) -> None:
    """Watching issues no query of its own (H59)."""
    product = loaded_product(receiving, alias)
    with CaptureQueriesContext(connections[alias]) as queries:
        deferred = Product.objects.using(alias).only("sku").get(pk=product.pk)
        deferred.save()
        product.views = 2
        product.save()

    assert ["SELECT", "UPDATE", "UPDATE"] == [query["sql"].split()[0] for query in queries]


@pytest.mark.usefixtures("at_once")
@each_database("postgres", transaction=False)
def test_values_of_postgresql(alias: str, receiving: Receiving, sent: Sent) -> None:
    """Arrays and dictionaries changed in place have changed; ranges are compared by value once loaded (H56)."""
    receiving(post_save, sender=Catalogue, changed=["words", "attributes"], created=False)
    receiving(post_save, sender=Booking, changed=["seats"], created=False)
    catalogue = Catalogue.objects.using(alias).create(words=["a"], attributes={"a": "1"})
    made = Booking.objects.using(alias).create(seats=(1, 5))
    booking = Booking.objects.using(alias).get(pk=made.pk)

    catalogue.save()
    booking.seats = NumericRange(1, 5)
    booking.save()
    unchanged = sent()
    catalogue.words.append("b")
    catalogue.save()
    catalogue.attributes["b"] = "2"
    catalogue.save()
    booking.seats = NumericRange(1, 6)
    booking.save()

    assert [] == unchanged
    assert [
        {"words": (["a"], ["a", "b"])},
        {"attributes": ({"a": "1"}, {"a": "1", "b": "2"})},
        {"seats": (NumericRange(1, 5), NumericRange(1, 6))},
    ] == sent()


# Commit and rollback -----------------------------------------------------------------------------------------------


@each_database
def test_after_a_commit_nothing_is_sent_again(alias: str, receiving: Receiving, sent: Sent) -> None:
    """A committed save counts: saved again without a change, in a block or outside, nothing is sent (H34)."""
    product = loaded_product(receiving, alias)
    product.views = 2
    with transaction.atomic(using=alias):
        product.save()
        product.save()
        with transaction.atomic(using=alias):
            product.save()
    first = sent()

    product.save()
    with transaction.atomic(using=alias):
        product.save()

    assert [{"views": (1, 2)}] == first
    assert [] == sent()


@each_database
def test_after_a_rollback_it_is_sent_again(alias: str, receiving: Receiving, sent: Sent) -> None:
    """A rolled back save never was: nothing is sent of it, and saving again sends what it changes (H36)."""
    product = loaded_product(receiving, alias)
    product.views = 2
    with suppress(Undo), transaction.atomic(using=alias):
        product.save()
        raise Undo
    with transaction.atomic(using=alias):
        product.save()
        transaction.set_rollback(True, using=alias)
    rolled_back = sent()

    product.save()
    product.save()

    assert [] == rolled_back
    assert [{"views": (1, 2)}] == sent()


@each_database
def test_a_rollback_after_a_commit(alias: str, receiving: Receiving, sent: Sent) -> None:
    """A later transaction's rollback takes back its own save only, not what was committed before (H36)."""
    product = loaded_product(receiving, alias)
    for views, fails in ((2, False), (3, True), (4, False), (5, True)):
        with suppress(Undo), transaction.atomic(using=alias):
            product.views = views
            product.save()
            if fails:
                raise Undo
    product.save()

    assert [{"views": (1, 2)}, {"views": (2, 4)}, {"views": (4, 5)}] == sent()


@each_database
def test_after_the_rollback_of_a_savepoint(alias: str, receiving: Receiving, sent: Sent) -> None:
    """A savepoint's rollback takes back what was saved in it; what was saved before it stays until the commit (H36)."""
    product = loaded_product(receiving, alias)
    with transaction.atomic(using=alias):
        product.views = 2
        product.save()
        with suppress(Undo), transaction.atomic(using=alias):
            product.views = 3
            product.save()
            raise Undo
        product.save()
    product.save()

    assert [{"views": (1, 2)}, {"views": (2, 3)}] == sent()


@each_database
def test_a_commit_that_fails(alias: str, receiving: Receiving, sent: Sent) -> None:
    """A block that the database refuses, be it at the save or at the commit, leaves nothing that counts (H36)."""
    receiving(post_save, sender=Order, changed=["status"], created=False)
    customer = Customer.objects.using(alias).create()
    order = Order.objects.using(alias).create(customer=customer)
    order.status, order.customer_id = "paid", customer.pk + 1000
    with suppress(IntegrityError), transaction.atomic(using=alias):
        order.save()
    order.customer_id = customer.pk
    refused = sent()

    order.save()

    assert [] == refused
    assert [{"status": ("new", "paid")}] == sent()


@each_database("default")
def test_a_hook_that_fails(alias: str, receiving: Receiving, sent: Sent) -> None:
    """Where a project's own failing hook makes Django drop the hooks behind it, the change is sent by the next save
    (H38)."""
    product = loaded_product(receiving, alias)
    product.views = 2
    with suppress(ZeroDivisionError), transaction.atomic(using=alias):
        transaction.on_commit(lambda: 1 / 0, using=alias)
        product.save()
    dropped = sent()

    product.save()
    product.save()

    assert [] == dropped
    assert [{"views": (1, 2)}] == sent()


@pytest.mark.usefixtures("at_once")
@each_database
def test_without_autocommit(alias: str, receiving: Receiving, sent: Sent) -> None:
    """With autocommit off and no block nobody tells of a commit, so nothing is known after a save, and the next one is
    sent (H40)."""
    product = loaded_product(receiving, alias)
    connection = connections[alias]
    connection.set_autocommit(False)
    try:
        product.views = 2
        product.save()
        connection.rollback()
        product.save()
        connection.commit()
        product.views = 1
        product.save()
        connection.commit()
    finally:
        connection.rollback()
        connection.set_autocommit(True)
    product.refresh_from_db()
    product.save()

    assert [{"views": (1, 2)}, {"views": (None, 2)}, {"views": (None, 1)}] == sent()


def values_alive() -> int:
    gc.collect()
    return sum(type(one) is Values for one in gc.get_objects())


@each_database("default")
def test_a_long_life_keeps_no_past(alias: str, receiving: Receiving) -> None:
    """An instance that is saved in very many transactions keeps no more than one needs."""
    receiving(post_save, sender=Product, changed=["views"], created=True, guarantee="immediate")
    product = Product.objects.using(alias).create(sku="a")
    alive = values_alive()

    for views in range(1, 300):
        product.views = views
        with transaction.atomic(using=alias):
            product.save()
            with transaction.atomic(using=alias):
                product.views += 1000
                product.save()

    assert values_alive() <= alive + 2


# Several connections -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
@pytest.mark.django_db(databases=["default", "other"])
def test_a_row_of_another_database(receiving: Receiving, sent: Sent) -> None:
    """Of an instance's row in another database nothing is known, nor of the first one's when it returns (H33)."""
    product = loaded_product(receiving, "default")
    Product.objects.using("other").bulk_create([Product(pk=product.pk, sku="b", views=9)])

    product.save(using="other")
    product.save(using="other")
    over_the_other = sent()
    product.save(using="default")
    product.save()
    product.refresh_from_db(using="other")
    product.views = 3
    product.save(using="other")

    assert [{"views": (None, 1)}] == over_the_other
    assert [{"views": (None, 1)}, {"views": (1, 3)}] == sent()


@pytest.mark.django_db(databases=["default", "other"], transaction=True)
def test_the_transaction_of_the_right_database(receiving: Receiving, sent: Sent) -> None:
    """A save stands or falls with the transaction of its own database, whatever becomes of another's (H33)."""
    product = loaded_product(receiving, "other")
    with suppress(Undo), transaction.atomic(using="default"):
        product.views = 2
        product.save()
        raise Undo
    product.save()
    with transaction.atomic(using="default"), suppress(Undo), transaction.atomic(using="other"):
        product.views = 3
        product.save()
        raise Undo
    product.save()

    assert [{"views": (1, 2)}, {"views": (2, 3)}] == sent()


@each_database
def test_an_instance_in_another_thread(alias: str, receiving: Receiving, sent: Sent) -> None:
    """An instance that a thread saved, on its own connection, counts as that thread's transaction ended (H36)."""
    product = loaded_product(receiving, alias)

    def save(views: int, fails: bool) -> None:
        with closing(connections[alias]), suppress(Undo), transaction.atomic(using=alias):
            product.views = views
            product.save()
            if fails:
                raise Undo

    with ThreadPoolExecutor(1) as thread:
        thread.submit(save, 2, True).result()
    rolled_back = sent()
    product.save()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(save, 3, False).result()
    product.save()

    assert [] == rolled_back
    assert [{"views": (1, 2)}, {"views": (2, 3)}] == sent()


@each_database
def test_threads_at_once(alias: str, receiving: Receiving, sent: Sent) -> None:
    """Saves of several instances in several threads do not mix."""
    receiving(post_save, sender=Product, changed=["views"], created=False)
    products = [Product.objects.using(alias).create(sku=str(number)) for number in range(4)]

    def work(product: Product) -> None:
        with closing(connections[alias]):
            for views in (1, 1, 2):
                product.views = views * 10 + int(product.sku)
                product.save()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, products))

    expected = [pair for number in range(4) for pair in ((0, 10 + number), (10 + number, 20 + number))]
    assert sorted(expected) == sorted(pairs["views"] for pairs in sent())
