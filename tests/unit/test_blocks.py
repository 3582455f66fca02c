"""What a block sends: nothing at all, or post_save for what was written in bulk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from contextvars import copy_context
from typing import Any

import pytest
from celery import Celery
from django.db import connection, migrations, transaction
from django.db.migrations.state import ProjectState
from django.db.models import F
from django.db.models.signals import post_save
from django.dispatch import Signal
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from django_celery_signals import connect, deliveries, muted, send_saved
from django_celery_signals.blocks import is_muted
from django_celery_signals.durable import batch
from tests.drain import take
from tests.making import Tasks
from tests.receiving import Receiving
from tests.shop.models import Country, Customer, Order, OrderLine, Parcel, Tag

bell = Signal()


@pytest.fixture
def at_once(settings: Any) -> None:
    """Messages leave without waiting for a database."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate"}


@pytest.fixture
def saved() -> Iterator[list[dict[str, Any]]]:
    """What plain receivers are told of saves."""
    told: list[dict[str, Any]] = []

    def note(**kwargs: Any) -> None:
        told.append(kwargs)

    post_save.connect(note)
    yield told
    post_save.disconnect(note)


# Nothing -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
def test_muted(tasks: Tasks, celery_app: Celery) -> None:
    """Within the block nothing is sent to receivers in workers, however it is nested or ends; afterwards it is."""
    signal, task = Signal(), tasks.shared()
    connect(signal, task)
    plain: list[int] = []

    def note(number: int, **kwargs: Any) -> None:
        plain.append(number)

    signal.connect(note)
    with muted():
        signal.send(sender=None, number=1)
        with suppress(ZeroDivisionError), muted():
            raise ZeroDivisionError
        signal.send(sender=None, number=2)
        task(signal=signal, sender=None, number=3)
        assert is_muted("tests.anybody")
    signal.send(sender=None, number=4)

    assert [1, 2, 4] == plain
    assert [[["number", 4]]] == [message.body["kwargs"] for message in take(celery_app)]
    assert not is_muted("tests.anybody")


@pytest.mark.usefixtures("at_once")
def test_muted_function(tasks: Tasks, celery_app: Celery) -> None:
    """A function may be such a block, at each of its calls."""
    signal = Signal()
    connect(signal, tasks.shared())

    @muted()
    def act() -> str:
        signal.send(sender=None)
        return "done"

    assert ["done", "done"] == [act(), act()]
    signal.send(sender=None)
    assert 1 == len(take(celery_app))


@pytest.mark.usefixtures("at_once")
def test_muted_coroutine_function(tasks: Tasks, celery_app: Celery) -> None:
    """So may a coroutine function, for as long as it is awaited."""
    signal = Signal()
    connect(signal, tasks.shared())

    @muted()
    async def act() -> str:
        await asyncio.sleep(0)
        signal.send(sender=None)
        return "done"

    async def both() -> list[str]:
        done = await asyncio.gather(act(), act())
        signal.send(sender=None)
        return done

    assert ["done", "done"] == asyncio.run(both())
    assert 1 == len(take(celery_app))


def test_block_that_ends_elsewhere() -> None:
    """A block may begin in one context and end in another, as some frameworks' do: that one is none the worse."""
    block = muted()
    copy_context().run(block.__enter__)
    block.__exit__()

    assert not is_muted("tests.anybody")


def test_one_block_for_several() -> None:
    """One object may be entered again within itself, and by other threads: each is over when its own block is."""
    block, entered, go_on = muted(), threading.Event(), threading.Event()

    def other() -> bool:
        with block:
            entered.set()
            go_on.wait(10)
        return is_muted("tests.anybody")

    with ThreadPoolExecutor(1) as thread:
        with block, block:
            result = thread.submit(other)
            assert entered.wait(10)
        assert not is_muted("tests.anybody")
        go_on.set()
        assert result.result() is False


def test_muted_generator() -> None:
    """A generator's body runs when the call is over, so it cannot be muted by it."""

    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"muted\(\) cannot decorate .*rows\(\), a generator .* with muted\(\): inside"):
        muted()(rows)


def test_muted_is_ones_own() -> None:
    """A block is silent for its own thread or task and what that awaits, and for nobody beside it."""
    seen: dict[str, bool] = {}

    async def look(name: str) -> None:
        seen[name] = is_muted("tests.anybody")

    async def act() -> None:
        with muted():
            await look("awaited")
            await asyncio.to_thread(lambda: seen.update(thread_of_it=is_muted("tests.anybody")))
            await asyncio.create_task(look("task of it"))
        await look("afterwards")

    async def both() -> None:
        await asyncio.gather(act(), look("beside it"))

    asyncio.run(both())
    with muted():
        thread = threading.Thread(target=lambda: seen.update(thread=is_muted("tests.anybody")))
        thread.start()
        thread.join()

    silent = {"awaited", "thread_of_it", "task of it"}
    assert dict.fromkeys(silent, True) | dict.fromkeys({"afterwards", "beside it", "thread"}, False) == seen


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_muted", [True, False])
def test_muted_migration(is_muted: bool, receiving: Receiving, celery_app: Celery) -> None:
    """A data migration that imports the models themselves sends nothing from within the block."""
    receiving(post_save, sender=Tag, guarantee="durable")

    def forwards(apps: Any, schema_editor: Any) -> None:
        with muted() if is_muted else nullcontext():
            Tag.objects.create(name="new")

    operation = migrations.RunPython(forwards)
    with connection.schema_editor() as editor:
        operation.database_forwards("shop", editor, ProjectState(), ProjectState())

    sent = 0 if is_muted else 1
    assert (1, sent, sent) == (Tag.objects.count(), deliveries("default").count(), len(take(celery_app)))


# post_save -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_send_saved(receiving: Receiving, saved: list[dict[str, Any]], celery_app: Celery) -> None:
    """Each object is told as if it had been saved, to plain receivers too, in order; deliveries cost one INSERT."""
    receiving(post_save, sender=Tag, guarantee="durable")

    with transaction.atomic():
        tags = Tag.objects.bulk_create([Tag(name=name) for name in "cab"])
        with CaptureQueriesContext(connection) as queries:
            assert 3 == send_saved(tags, created=True)

    assert ["SAVEPOINT", "INSERT", "RELEASE"] == [query["sql"].split()[0] for query in queries]
    facts = {"signal": post_save, "sender": Tag, "created": True, "update_fields": None, "raw": False}
    assert [{**facts, "instance": tag, "using": "default"} for tag in tags] == saved
    found = [row.summary for row in deliveries("default").order_by("pk")]
    assert [f"post_save shop.Tag pk={tag.pk} created" for tag in tags] == found
    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
def test_send_saved_of_an_update(receiving: Receiving, saved: list[dict[str, Any]]) -> None:
    """After an update it says which fields were written, as a save of these fields would."""
    receiving(post_save, sender=Tag, guarantee="durable")
    tags = [Tag.objects.create(name=name) for name in "ab"]
    saved.clear()
    deliveries("default").erase()

    assert 2 == send_saved(tags, created=False, update_fields=(name for name in ["name"]))

    assert [(False, frozenset({"name"}))] * 2 == [(one["created"], one["update_fields"]) for one in saved]
    assert {'{"$":"frozenset","v":["name"]}'} == {
        text[text.index('{"$":"frozenset"') :].partition("}")[0] + "}"
        for text in deliveries("default").values_list("payload", flat=True)
    }


@pytest.mark.django_db(transaction=True)
def test_send_saved_of_a_queryset(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QuerySet is read in parts, and never all of it at once."""
    receiving(post_save, sender=Tag, guarantee="durable")
    Tag.objects.bulk_create([Tag(name=f"{number}") for number in range(5)])
    monkeypatch.setattr("django_celery_signals.blocks.SIZE", 2)
    rows = Tag.objects.order_by("-pk")

    assert 5 == send_saved(rows, created=False)

    assert rows._result_cache is None
    assert [tag.pk for tag in rows] == [
        int(row.summary.removeprefix("post_save shop.Tag pk=")) for row in deliveries("default").order_by("pk")
    ]


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_send_saved_in_two_databases(receiving: Receiving, saved: list[dict[str, Any]]) -> None:
    """Every object is told in the database that has it, whichever comes first, and several models at once."""
    receiving(post_save, guarantee="durable")
    objects: list[Any] = [
        Tag.objects.using("other").create(name="b"),
        Country.objects.create(code="at", name="Austria"),
        Parcel.objects.using("other").create(),
    ]
    for alias in ("default", "other"):
        deliveries(alias).erase()
    saved.clear()

    assert 3 == send_saved(iter(objects), created=True)

    assert ["other", "default", "other"] == [one["using"] for one in saved]
    assert (1, 2) == (deliveries("default").count(), deliveries("other").count())


class FromReplicas:
    """Sends all writes to one database, whichever an object was read from."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@override_settings(DATABASE_ROUTERS=["tests.unit.test_blocks.FromReplicas"])
def test_send_saved_of_what_a_replica_told(receiving: Receiving, saved: list[dict[str, Any]]) -> None:
    """What was read from a replica is told in the database where it is written (H48)."""
    receiving(post_save, sender=Tag, guarantee="durable")
    Tag.objects.using("other").bulk_create([Tag(name="a")])

    assert 1 == send_saved(Tag.objects.using("other").all(), created=False)

    assert ["default"] == [one["using"] for one in saved]
    assert (1, 0) == (deliveries("default").count(), deliveries("other").count())


@pytest.mark.django_db(transaction=True)
def test_send_nothing_saved() -> None:
    """Of nothing, nothing is sent, and no transaction is opened."""
    with CaptureQueriesContext(connection) as queries:
        assert [0, 0] == [send_saved([], created=True), send_saved(Tag.objects.none(), created=True)]
    assert 0 == len(queries)


@pytest.mark.django_db(transaction=True)
def test_send_saved_of_more_than_a_batch(receiving: Receiving) -> None:
    """However many there are, they are written in parts."""
    receiving(post_save, sender=Tag, guarantee="durable")
    Tag.objects.bulk_create([Tag(name=f"{number}") for number in range(batch.SIZE + 1)])

    assert batch.SIZE + 1 == send_saved(Tag.objects.order_by("pk"), created=True)
    assert batch.SIZE + 1 == deliveries("default").count()


@pytest.mark.django_db(transaction=True)
def test_muted_send_saved(receiving: Receiving, saved: list[dict[str, Any]]) -> None:
    """In a block that is muted, plain receivers alone are told."""
    receiving(post_save, sender=Tag, guarantee="durable")
    with muted():
        tags = Tag.objects.bulk_create([Tag(name="a")])
        assert 1 == send_saved(tags, created=True)

    assert (1, 0) == (len(saved), deliveries("default").count())


@pytest.mark.django_db(transaction=True)
def test_receiver_that_fails(receiving: Receiving) -> None:
    """A plain receiver that raises takes all of it back, as it would a save."""
    receiving(post_save, sender=Tag, guarantee="durable")
    tags = Tag.objects.bulk_create([Tag(name="a"), Tag(name="b")])

    def fail(instance: Tag, **kwargs: Any) -> None:
        if instance.name == "b":
            raise ZeroDivisionError

    post_save.connect(fail, sender=Tag)
    try:
        with pytest.raises(ZeroDivisionError):
            send_saved(tags, created=True)
    finally:
        post_save.disconnect(fail, sender=Tag)
    assert 0 == deliveries("default").count()


NO_KEY = r"send_saved\(\): .* has no primary key.*bulk_create\(ignore_conflicts=True\).*read them again"
NEVER_SAVED = r"send_saved\(\): .* was never saved\. Send for what bulk_create\(\) returns, after it\."
NO_INSTANCE = r"send_saved\(\) sends for model instances, not for .*\. Use no values\(\)\."


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("objects", "error", "message"),
    [
        ([Tag(name="new")], ValueError, NO_KEY),
        ([Tag(pk=F("pk"))], ValueError, NO_KEY),
        ([OrderLine(order_id=5)], ValueError, NO_KEY),
        ([Tag(pk=5, name="new")], ValueError, NEVER_SAVED),
        ([Parcel()], ValueError, NEVER_SAVED),
        ([{"pk": 5}], TypeError, NO_INSTANCE),
        ([5], TypeError, NO_INSTANCE),
        ([Tag], TypeError, NO_INSTANCE),
    ],
    ids=lambda value: type(value[0]).__name__ if isinstance(value, list) else "",
)
def test_what_was_never_saved(objects: Any, error: Any, message: str, saved: list[Any], receiving: Receiving) -> None:
    """An object without a primary key or a row is refused with what to do, before anything is sent."""
    receiving(post_save, sender=Tag, guarantee="durable")
    tags = Tag.objects.bulk_create([Tag(name="old")])

    with pytest.raises(error, match=message):
        send_saved([*tags, *objects], created=True)

    assert ([], 0) == (saved, deliveries("default").count())


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ("name", TypeError, r"update_fields='name' must be a list of names: update_fields=\['name'\]\."),
        (
            ["name", "nmae"],
            ValueError,
            r"update_fields= names 'nmae', which is no column of shop\.Tag's; there are id,",
        ),
        (["orders"], ValueError, "update_fields= names 'orders'"),
    ],
)
def test_fields_that_are_none(fields: Any, error: Any, message: str, saved: list[Any]) -> None:
    """A name that is no field's, or a text instead of a list, is refused before anything is sent."""
    tags = Tag.objects.bulk_create([Tag(name="a")])

    with pytest.raises(error, match=message):
        send_saved(tags, created=False, update_fields=fields)
    assert [] == saved


@pytest.mark.django_db(transaction=True)
def test_names_of_fields(saved: list[Any]) -> None:
    """A foreign key has two names, as for ``save()``."""
    orders = Order.objects.bulk_create([Order(customer=Customer.objects.create(name="Ada"))])
    saved.clear()

    assert 1 == send_saved(orders, created=False, update_fields=["customer", "customer_id"])
    assert [{"customer", "customer_id"}] == [one["update_fields"] for one in saved]


@pytest.mark.django_db(transaction=True)
def test_values_of_a_queryset(receiving: Receiving) -> None:
    """A QuerySet of values is refused, too."""
    Tag.objects.create(name="a")
    with pytest.raises(TypeError, match=NO_INSTANCE):
        send_saved(Tag.objects.values(), created=True)  # type: ignore[arg-type]


@pytest.mark.django_db(transaction=True)
def test_what_was_bulk_created_without_keys(receiving: Receiving) -> None:
    """What the database does not tell the keys of is refused; read again, it can be sent."""
    receiving(post_save, sender=Tag, guarantee="durable")
    tags = Tag.objects.bulk_create([Tag(name="a")], ignore_conflicts=True)

    with pytest.raises(ValueError, match=NO_KEY):
        send_saved(tags, created=True)
    assert 1 == send_saved(Tag.objects.filter(name="a"), created=True)


@pytest.mark.django_db(transaction=True)
def test_keys_of_what_was_saved(receiving: Receiving) -> None:
    """What is sent has the key that a save has, and takes turns with it."""
    receiving(post_save, sender=Tag, guarantee="durable", ordered=True)
    tag = Tag.objects.create(name="a")
    send_saved([tag], created=False)

    lanes = deliveries("default").values_list("key", "lane")
    assert (2, 1) == (len(lanes), len(set(lanes)))
    assert {f"shop.Tag:{tag.pk}"} == {key for key, _ in lanes}
