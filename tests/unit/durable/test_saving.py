"""The gap of autocommit: a save and its deliveries are committed together; where that cannot be, somebody says so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from celery import Celery
from django.db import IntegrityError, connection, connections, transaction
from django.db.models import Model
from django.db.models.signals import ModelSignal, post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from django_celery_signals import connect, deliveries, disconnect
from django_celery_signals.durable import saving
from django_celery_signals.durable.deliveries import State
from tests.drain import run, take
from tests.making import Tasks
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Customer, Invoice, Order, Product, RushOrder, Stamped, Tag

bell = Signal()

durable_by_default = override_settings(DJANGO_CELERY_SIGNALS={})
open_gap = override_settings(DJANGO_CELERY_SIGNALS={"ATOMIC_SAVES": False})


class Boom(Exception):
    """What receivers raise here."""


@pytest.fixture(autouse=True)
def met_for_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model has been made atomic yet, and nobody has been warned; afterwards it is as before."""
    monkeypatch.setattr(saving, "_atomic", [])
    monkeypatch.setattr(saving, "_told", set())
    for model in (Customer, Invoice, Order, Product, RushOrder, Stamped, Tag):
        monkeypatch.setattr(model, "save_base", Model.save_base)


@contextmanager
def receiver_of(signal: ModelSignal, sender: type[Model], function: Any) -> Iterator[None]:
    """Connect a plain function for a while."""
    signal.connect(function, sender=sender, weak=False)
    try:
        yield
    finally:
        signal.disconnect(function, sender=sender)


@contextmanager
def looking_at_blocks(signal: ModelSignal, sender: type[Model], alias: str = "default") -> Iterator[list[bool]]:
    """Collect whether a transaction is open when a signal is sent."""
    blocks: list[bool] = []

    def look(**kwargs: Any) -> None:
        blocks.append(connections[alias].in_atomic_block)

    with receiver_of(signal, sender, look):
        yield blocks


def fail(**kwargs: Any) -> None:
    raise Boom


# Closed -----------------------------------------------------------------------------------------------------------


@each_database
def test_a_save_that_fails_leaves_no_ghost(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """In autocommit, what pre_save wrote for a save that the database then refuses is taken back with it (H34, H41)."""
    receiving(pre_save, sender=Product, guarantee="durable")
    products = Product.objects.using(alias)
    products.create(sku="A1")

    with pytest.raises(IntegrityError):
        products.create(sku="A1")

    assert 1 == len(deliveries(alias)) == len(take(celery_app)) == products.count()


@each_database
def test_a_failing_sibling_takes_the_save_back(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """When another receiver of post_save raises, neither the row nor its delivery stays (H34)."""
    receiving(post_save, sender=Tag, guarantee="durable")

    with receiver_of(post_save, Tag, fail), pytest.raises(Boom):
        Tag.objects.using(alias).create(name="red")

    assert not Tag.objects.using(alias).exists()
    assert [] == list(deliveries(alias)) == take(celery_app)


@each_database
def test_a_save_to_several_tables_is_one(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A crash before the post_save of a child model takes along the parent's row, which Django commits first (H11)."""
    receiving(post_save, sender=RushOrder, guarantee="durable")
    customer = Customer.objects.using(alias).create(name="Ada")

    with receiver_of(post_save, RushOrder, fail), pytest.raises(Boom):
        RushOrder.objects.using(alias).create(customer=customer, courier="Bo")

    assert not Order.objects.using(alias).exists()
    assert [] == list(deliveries(alias)) == take(celery_app)


@each_database
def test_a_save_that_succeeds_is_published_after_it(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A save outside of a transaction is delivered as any other (H34)."""
    seen: list[str] = []
    receiving(post_save, lambda instance: seen.append(instance.name), sender=Tag, guarantee="durable")

    with looking_at_blocks(post_save, Tag, alias) as blocks:
        Tag.objects.using(alias).create(name="red")
    [message] = take(celery_app)
    run(celery_app, message)

    assert ([True], ["red"], []) == (blocks, seen, list(deliveries(alias)))


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_the_block_is_on_the_database_of_the_save(receiving: Receiving) -> None:
    """``save(using=...)`` opens the transaction there and nowhere else."""
    receiving(post_save, sender=Tag, guarantee="durable")

    with looking_at_blocks(post_save, Tag, "other") as there, looking_at_blocks(post_save, Tag) as here:
        Tag(name="red").save(using="other")

    assert ([True], [False]) == (there, here)


class ToOther:
    """Writes to another database than the default."""

    def db_for_write(self, model: type[Model], **hints: Any) -> str:
        return "other"


@override_settings(DATABASE_ROUTERS=[ToOther()])
@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_the_block_is_where_a_router_says(receiving: Receiving) -> None:
    """A call of ``save_base`` that names no database is a save on the one that the routers choose."""
    receiving(post_save, sender=Tag, guarantee="durable")

    with looking_at_blocks(post_save, Tag, "other") as there:
        Tag(name="red").save_base()

    assert [True] == there
    assert 1 == Tag.objects.using("other").count() == len(deliveries("other"))


@each_database
def test_a_transaction_of_the_callers_is_left_alone(alias: str, receiving: Receiving) -> None:
    """Inside a transaction a save is Django's own: no savepoint, and an error that is caught costs nothing else."""
    receiving(post_save, sender=Tag, guarantee="durable")

    with transaction.atomic(using=alias):
        with CaptureQueriesContext(connections[alias]) as queries:
            Tag.objects.using(alias).create(name="red")
        with receiver_of(post_save, Tag, fail), suppress(Boom):
            Tag.objects.using(alias).create(name="blue")

    assert ["INSERT", "INSERT"] == [query["sql"].split()[0] for query in queries]
    assert 2 == Tag.objects.using(alias).count() == len(deliveries(alias))


@pytest.mark.django_db(transaction=True)
def test_a_connection_without_autocommit_is_left_alone(
    receiving: Receiving, celery_app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """With autocommit off everything waits for the caller's commit, so there is no gap, and no block to break (H40)."""
    receiving(post_save, sender=Product, guarantee="durable")
    connection.set_autocommit(False)
    try:
        Product.objects.create(sku="A1")
        with pytest.raises(IntegrityError):
            Product.objects.create(sku="A1")
        Product.objects.create(sku="B2")
        connection.commit()
    finally:
        connection.set_autocommit(True)

    assert ["A1", "B2"] == list(Product.objects.order_by("sku").values_list("sku", flat=True))
    assert [State.READY, State.READY] == [row.state for row in deliveries("default")]
    assert "" == caplog.text


# Left open --------------------------------------------------------------------------------------------------------


@each_database
@open_gap
def test_a_project_can_refuse(alias: str, receiving: Receiving, caplog: pytest.LogCaptureFixture) -> None:
    """Without ATOMIC_SAVES a save in autocommit is Django's own, with the gap, and the warning says so (H34)."""
    task = receiving([pre_save, post_save], sender=Product, guarantee="durable")
    products = Product.objects.using(alias)

    with receiver_of(post_save, Product, fail), suppress(Boom):
        products.create(sku="A1")
    with suppress(IntegrityError):
        products.create(sku="A1")

    assert 1 == products.count()
    assert 3 == len(deliveries(alias))  # pre_save, post_save, and the ghost
    assert 2 == caplog.text.count(f"{task.name} was sent")


@pytest.mark.django_db(transaction=True)
def test_a_sending_outside_of_a_transaction_is_warned_of_once(
    receiving: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    """A durable sending that nothing holds together with its cause is warned of, once per receiver and signal (H34)."""
    receiving(bell, guarantee="on_commit")
    first, second = receiving(bell, guarantee="durable"), receiving(bell, guarantee="durable")
    unnamed = Signal()
    connect(unnamed, first, guarantee="durable")

    try:
        for _ in range(3):
            with transaction.atomic():
                bell.send(sender=None)
        inside = caplog.text
        for _ in range(3):
            bell.send(sender=None)
            unnamed.send(sender=None)
    finally:
        disconnect(unnamed, first)

    assert "" == inside
    assert [
        (logging.WARNING, first.name, "bell"),
        (logging.WARNING, second.name, "bell"),
        (logging.WARNING, first.name, "an unnamed signal"),
    ] == [(record.levelno, *record.args) for record in caplog.records if record.name == saving.logger.name]
    assert "Send inside transaction.atomic()" in caplog.text


@pytest.mark.parametrize("spelling", ["delay", "apply_async", "delay_on_commit"])
@durable_by_default
@pytest.mark.django_db(transaction=True)
def test_the_literal_line_is_healed_by_its_first_save(
    spelling: str, tasks: Tasks, celery_app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """``post_save.connect(task.delay, sender=M)`` meets the model at its first save; the later ones are atomic (H1)."""
    task = tasks.shared()
    post_save.connect(getattr(task, spelling), sender=Tag)
    try:
        with looking_at_blocks(post_save, Tag) as blocks:
            for name in ("first", "second", "third"):
                Tag.objects.create(name=name)
    finally:
        post_save.disconnect(task.delay, sender=Tag)

    assert [False, True, True] == blocks
    assert [Tag] == saving.models()
    assert 3 == len(take(celery_app)) == len(deliveries("default"))
    assert 1 == caplog.text.count("outside of a transaction")


@pytest.mark.django_db(transaction=True)
def test_a_receiver_of_every_model_heals_each(receiving: Receiving) -> None:
    """With ``sender=None`` each model's first save is met outside of a transaction, and no later one."""
    receiving(post_save, guarantee="durable")

    with looking_at_blocks(post_save, Tag) as tags, looking_at_blocks(post_save, Customer) as customers:
        for name in ("first", "second"):
            Tag.objects.create(name=name)
            Customer.objects.create(name=name)

    assert ([False, True], [False, True], [Tag, Customer]) == (tags, customers, saving.models())


@pytest.mark.django_db(transaction=True)
def test_an_abstract_model_has_no_saves(tasks: Tasks) -> None:
    """Of an abstract sender's subclasses each is met at its first save."""
    task = tasks.shared()
    connect(post_save, task, sender=Stamped, subclasses=True, guarantee="durable")
    try:
        before = saving.models()
        with looking_at_blocks(post_save, Invoice) as blocks:
            Invoice.objects.create(number="1")
            Invoice.objects.create(number="2")
    finally:
        disconnect(post_save, task, sender=Stamped, subclasses=True)

    assert ([], [False, True], [Invoice]) == (before, blocks, saving.models())


# Which models -----------------------------------------------------------------------------------------------------


@durable_by_default
@pytest.mark.parametrize(
    ("signal", "options", "expected"),
    [
        (post_save, {}, [Tag]),
        (pre_save, {}, [Tag]),
        ([pre_save, post_save], {"guarantee": "durable"}, [Tag]),
        (post_save, {"guarantee": "on_commit"}, []),
        (post_save, {"guarantee": "immediate"}, []),
        (pre_delete, {}, []),
        (post_delete, {}, []),
        (bell, {}, []),
    ],
    ids=["default", "pre_save", "both", "on_commit", "immediate", "pre_delete", "post_delete", "custom"],
)
def test_models_with_durable_receivers_of_saves(
    signal: Any, options: dict[str, Any], expected: list[Any], receiving: Receiving
) -> None:
    """Connecting a durable receiver of a model's saves makes these atomic, before the first is sent (H34)."""
    receiving(signal, sender=Tag, **options)

    assert expected == saving.models()
    assert (Tag in expected) is (Tag.save_base is not Model.save_base)


def test_the_task_may_say_it(tasks: Tasks) -> None:
    """A guarantee that is declared on the task counts as well."""
    task = tasks.shared(guarantee="durable")
    connect(post_save, task, sender="shop.Tag")
    disconnect(post_save, task, sender=Tag)

    assert [Tag] == saving.models()


def test_the_projects_other_guarantee(receiving: Receiving) -> None:
    """Where the project's guarantee is another one, a receiver that names none changes nothing."""
    receiving(post_save, sender=Tag)

    assert [] == saving.models()


@pytest.mark.django_db(transaction=True)
def test_a_models_own_method_is_kept(monkeypatch: pytest.MonkeyPatch, receiving: Receiving) -> None:
    """A model's own ``save_base`` is called as before, with all it is given, and once, however many receivers."""
    calls: list[Any] = []

    def save_base(self: Tag, *args: Any, **options: Any) -> str:
        calls.append((self, args, options, connection.in_atomic_block))
        return "saved"

    save_base.alters_data = True  # type: ignore[attr-defined]
    monkeypatch.setattr(Tag, "save_base", save_base)
    for _ in range(2):
        receiving(post_save, sender=Tag, guarantee="durable")
    tag = Tag(name="red")

    answer = tag.save_base(False, using="default", force_insert=True)  # type: ignore[func-returns-value]

    assert "saved" == answer
    assert [(tag, (False,), {"using": "default", "force_insert": True}, True)] == calls
    assert Tag.save_base.alters_data  # type: ignore[attr-defined]
    assert "save_base" == Tag.save_base.__name__


@pytest.mark.django_db(transaction=True)
def test_sqlite_without_the_lock(
    monkeypatch: pytest.MonkeyPatch, receiving: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    """On SQLite whose transactions begin without the lock, saves stay as they are: one that reads first would fail."""
    inside: list[bool] = []
    receiving(post_save, sender=Tag, guarantee="durable")

    def look(sender: Any, **kwargs: Any) -> None:
        inside.append(connection.in_atomic_block)

    pre_save.connect(look, sender=Tag)
    try:
        Tag.objects.create(name="red")
        monkeypatch.setitem(connection.settings_dict, "OPTIONS", {})
        Tag.objects.create(name="blue")
    finally:
        pre_save.disconnect(look, sender=Tag)

    assert [True, False] == inside
    assert "the SQLite database 'default' has no transaction_mode IMMEDIATE (dcs.W001" in caplog.text
    assert "connect receivers of saves" not in caplog.text


def test_where_saves_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is asked about the database that it is written to."""
    monkeypatch.setitem(connections["other"].settings_dict, "OPTIONS", {})

    assert saving.late_database(Tag) is None
    with override_settings(DATABASE_ROUTERS=[ToOther()]):
        assert "other" == saving.late_database(Tag)
