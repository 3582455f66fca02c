"""What sends many events at once, or none, with real rows: one suite for every database."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.db import DatabaseError, IntegrityError, connections, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Model
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete
from django.dispatch import Signal
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st

from django_celery_signals import Event, batched, connect, deliveries, disconnect, send_saved
from django_celery_signals.durable import batch
from django_celery_signals.durable.rows import State
from django_celery_signals.wire import parse
from tests.brokers import Broker
from tests.delivering import states
from tests.elsewhere import elsewhere, execute
from tests.lanes import Boom, Stage
from tests.notes import notes_of
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Country, Customer, Order, Tag

bell = Signal()

each_kind = each_database("default", "postgres", "mariadb")

TABLE = "django_celery_signals_delivery"


@pytest.fixture
def stage(alias: str, broker: Broker, celery_app: Celery, receiving: Receiving) -> Stage:
    return Stage(alias=alias, app=celery_app, receiving=receiving)


@contextmanager
def plainly(*signals: Signal) -> Iterator[list[dict[str, Any]]]:
    """Tell what plain receivers are called with."""
    told: list[dict[str, Any]] = []

    def note(instance: Model, **kwargs: Any) -> None:
        told.append({**kwargs, "instance": instance, "pk": instance.pk})

    with ExitStack() as stack:
        for signal in signals:
            signal.connect(note)
            stack.callback(signal.disconnect, note)
        yield told


def saved_tags(alias: str) -> list[str]:
    """Return what a receiver of the tags that there are would have been sent."""
    keys = Tag.objects.using(alias).order_by("pk").values_list("pk", flat=True)
    return [f"post_save shop.Tag pk={pk} created" for pk in keys]


def summaries(alias: str) -> list[str]:
    """Return what was sent, in order."""
    return list(deliveries(alias).order_by("pk").values_list("summary", flat=True))


def rung(alias: str) -> list[Any]:
    """Return the numbers that were sent, in order."""
    payloads = deliveries(alias).order_by("pk").values_list("payload", flat=True)
    return [parse(payload).kwargs["number"] for payload in payloads]


def ring(alias: str, *numbers: int) -> None:
    for number in numbers:
        bell.send(sender=None, using=alias, number=number)


def statements(queries: CaptureQueriesContext) -> list[str]:
    """Return the first words of the statements about deliveries."""
    return [query["sql"].split()[0] for query in queries if TABLE in query["sql"]]


def most_inserts(alias: str, count: int) -> int:
    """Return how many statements so many deliveries may take: SQLite bounds the values of one."""
    fields = deliveries(alias).model._meta.concrete_fields
    size = min(batch.SIZE, connections[alias].ops.bulk_batch_size(fields, range(count)))
    return math.ceil(count / batch.SIZE) * math.ceil(batch.SIZE / size) + 1


# An import -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "in_transaction"), [(1200, False), (501, True)])
@each_kind
def test_an_import(stage: Stage, count: int, in_transaction: bool) -> None:
    """Each of many saves is sent, with few statements; others see all of it after the commit, and nothing before."""
    alias, visible = stage.alias, []
    stage.receiving(post_save, sender=Tag, guarantee="durable")

    def look() -> None:
        visible.append(elsewhere(lambda: (Tag.objects.using(alias).count(), deliveries(alias).count())))

    with CaptureQueriesContext(connections[alias]) as queries:
        with transaction.atomic(using=alias) if in_transaction else nullcontext():
            with batched(alias):
                for number in range(count):
                    Tag.objects.using(alias).create(name=f"{number}")
                look()
            if in_transaction:
                look()
        look()

    assert [(0, 0)] * (1 + in_transaction) + [(count, count)] == visible
    assert saved_tags(alias) == summaries(alias)
    words = statements(queries)
    assert {"INSERT"} == set(words)
    assert most_inserts(alias, count) >= len(words)
    assert count == stage.relay()
    assert [str(row.event_id) for row in stage.rows().order_by("pk")] == [
        message.headers["id"] for message in stage.take()
    ]


def by_the_block(alias: str, fill: Callable[[], None]) -> None:
    with suppress(Boom), batched(alias):
        fill()
        raise Boom


def by_the_transaction_around(alias: str, fill: Callable[[], None]) -> None:
    with suppress(Boom), transaction.atomic(using=alias):
        with batched(alias):
            fill()
        raise Boom


def by_an_error_that_is_swallowed(alias: str, fill: Callable[[], None]) -> None:
    with batched(alias):
        fill()
        with suppress(IntegrityError):
            clash(alias)


def by_the_commit(alias: str, fill: Callable[[], None]) -> None:
    """Write what MariaDB refuses at once, and the others when the transaction ends."""

    @batched(alias)
    def act() -> None:
        fill()
        Order.objects.using(alias).create(customer_id=10**6)

    with pytest.raises(IntegrityError):
        act()


def clash(alias: str) -> None:
    """Break a rule of the database."""
    Country.objects.using(alias).create(code="at")
    Country.objects.using(alias).create(code="at")


ROLLBACKS = [by_the_block, by_the_transaction_around, by_an_error_that_is_swallowed, by_the_commit]


@pytest.mark.parametrize("end", ROLLBACKS)
@each_kind
def test_an_import_that_is_rolled_back(stage: Stage, end: Callable[..., None]) -> None:
    """What is rolled back, by whatever, has sent nothing, also what was written before the end of the block."""
    stage.receiving(post_save, sender=Tag, guarantee="durable")
    stage.receiving(bell, guarantee="durable")
    written: list[int] = []

    def fill() -> None:
        Tag.objects.using(stage.alias).create(name="ghost")
        ring(stage.alias, *range(batch.SIZE))
        written.append(deliveries(stage.alias).count())

    end(stage.alias, fill)
    Tag.objects.using(stage.alias).create(name="later")

    assert [batch.SIZE] == written
    assert 1 == len(summaries(stage.alias))
    assert saved_tags(stage.alias) == summaries(stage.alias)


# Savepoints ----------------------------------------------------------------------------------------------------------


def in_a_savepoint(alias: str, act: Callable[[], None]) -> None:
    with suppress(Boom), transaction.atomic(using=alias):
        act()


def in_one_that_is_rolled_back(alias: str, act: Callable[[], None]) -> None:
    with suppress(Boom), transaction.atomic(using=alias):
        act()
        raise Boom


def in_one_that_is_marked(alias: str, act: Callable[[], None]) -> None:
    with suppress(Boom), transaction.atomic(using=alias):
        act()
        transaction.set_rollback(True, using=alias)


def in_one_that_meets_an_error(alias: str, act: Callable[[], None]) -> None:
    with suppress(Boom, IntegrityError), transaction.atomic(using=alias):
        act()
        clash(alias)


def without_a_savepoint(alias: str, act: Callable[[], None]) -> None:
    with transaction.atomic(using=alias, savepoint=False):
        act()


def in_a_batch(alias: str, act: Callable[[], None]) -> None:
    with suppress(Boom), batched(alias):
        act()


def by_hand(alias: str, act: Callable[[], None]) -> None:
    savepoint = connections[alias].savepoint()
    act()
    connections[alias].savepoint_commit(savepoint)


def by_hand_and_left(alias: str, act: Callable[[], None]) -> None:
    connections[alias].savepoint()
    act()


def by_hand_and_back(alias: str, act: Callable[[], None]) -> None:
    savepoint = connections[alias].savepoint()
    act()
    connections[alias].savepoint_rollback(savepoint)


def by_hand_and_back_twice(alias: str, act: Callable[[], None]) -> None:
    savepoint = connections[alias].savepoint()
    for _ in range(2):
        act()
        connections[alias].savepoint_rollback(savepoint)


def by_hand_after_an_error(alias: str, act: Callable[[], None]) -> None:
    savepoint = connections[alias].savepoint()
    act()
    with suppress(DatabaseError):
        execute(alias, "SELECT * FROM nowhere")
    connections[alias].savepoint_rollback(savepoint)


BLOCKS = [
    *(in_a_savepoint, in_one_that_is_rolled_back, in_one_that_is_marked, in_one_that_meets_an_error),
    *(without_a_savepoint, in_a_batch),
    *(by_hand, by_hand_and_left, by_hand_and_back, by_hand_and_back_twice, by_hand_after_an_error),
]
PROGRAMS = st.recursive(
    st.sampled_from(["save"] * 5 + ["raise"]),
    lambda steps: st.tuples(st.sampled_from(BLOCKS), st.lists(steps, min_size=1, max_size=5)),
    max_leaves=12,
)


def perform(alias: str, program: Any) -> None:
    """Do what a program says: a step, or a block with steps."""
    if program == "save":
        Tag.objects.using(alias).create(name="a tag")
    elif program == "raise":
        raise Boom
    else:
        block, steps = program
        block(alias, lambda: [perform(alias, step) for step in steps])


@each_kind
def test_what_is_there_was_sent(stage: Stage) -> None:
    """However blocks, savepoints and errors are nested: each row that is there was sent, in its turn, and no other."""
    alias, around = stage.alias, st.sampled_from([nullcontext, transaction.atomic, batched])
    stage.receiving(post_save, sender=Tag, guarantee="durable")

    @of_hypothesis(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
    @given(around=around, size=st.sampled_from([batch.SIZE, 3, 1]), steps=st.lists(PROGRAMS, min_size=1, max_size=4))
    def check(around: Any, size: int, steps: list[Any]) -> None:
        Tag.objects.using(alias).all().delete()
        deliveries(alias).erase()
        with pytest.MonkeyPatch.context() as patch, suppress(Boom), around(alias):
            patch.setattr(batch, "SIZE", size)
            perform(alias, "save")
            perform(alias, (in_a_batch, steps))
            perform(alias, (without_a_savepoint, ["save"]))
        assert saved_tags(alias) == summaries(alias)

    check()


@pytest.mark.parametrize("undo", [in_one_that_is_rolled_back, by_hand_after_an_error])
@each_kind
def test_a_large_savepoint_that_is_rolled_back(stage: Stage, undo: Callable[..., None]) -> None:
    """A savepoint takes its own sendings along and no others, also when it has more of them than one statement."""
    alias, many, written = stage.alias, range(batch.SIZE + 50), []
    stage.receiving(bell, guarantee="durable")

    def go_on() -> None:
        ring(alias, *many)
        written.append(deliveries(alias).count())

    with batched(alias):
        undo(alias, go_on)
        ring(alias, 1)
        undo(alias, go_on)
        ring(alias, 2)

    assert [batch.SIZE, 0] == written
    assert [1, 2] == rung(alias)


# What the database does not take -------------------------------------------------------------------------------------


@contextmanager
def refusing(alias: str) -> Iterator[None]:
    """Let the database take no delivery for a queue of that name."""
    if connections[alias].vendor == "sqlite":
        on = f"BEFORE INSERT ON {TABLE} WHEN NEW.queue = 'refused'"
        make = f"CREATE TRIGGER refused {on} BEGIN SELECT RAISE(ABORT, 'refused'); END"
        drop = "DROP TRIGGER refused"
    else:
        make = f"ALTER TABLE {TABLE} ADD CONSTRAINT refused CHECK (queue <> 'refused')"
        drop = f"ALTER TABLE {TABLE} DROP CONSTRAINT refused"
    execute(alias, make)
    try:
        yield
    finally:
        execute(alias, drop)


@pytest.mark.parametrize("before", [batch.SIZE + 100, batch.SIZE - 1], ids=["at the end", "when it is sent"])
@pytest.mark.parametrize("in_transaction", [False, True])
@each_kind
def test_one_that_the_database_refuses(stage: Stage, in_transaction: bool, before: int) -> None:
    """When one delivery is refused the block raises that in the end, and is undone with what was written before."""
    alias, last = stage.alias, Signal()
    stage.receiving(bell, guarantee="durable")
    stage.receiving(last, guarantee="durable", queue="refused")

    @batched(alias)
    def act() -> None:
        Tag.objects.using(alias).create(name="ghost")
        ring(alias, *range(before))
        with suppress(IntegrityError):
            last.send(sender=None, using=alias, number=-1)

    with refusing(alias), transaction.atomic(using=alias) if in_transaction else nullcontext():
        ring(alias, 1)
        with pytest.raises(DatabaseError) as caught:
            act()
        ring(alias, 2)

    assert f"manage.py migrate --database={alias}" in notes_of(caught.value)[0]
    assert ([1, 2], 0) == (rung(alias), Tag.objects.using(alias).count())


# Deleting ------------------------------------------------------------------------------------------------------------


@each_kind
def test_deleting_through_a_queryset(stage: Stage) -> None:
    """Deleting many rows, and those that go with them, sends for each as Django does, and is written together."""
    alias, found, every = stage.alias, [], 100

    def note(signal: Signal, instance: Any) -> None:
        found.append((signal, type(instance), instance.pk, str(getattr(instance, "status", instance))))

    stage.receiving([pre_delete, post_delete], note, sender=[Customer, Order], guarantee="durable")
    customers = [Customer.objects.using(alias).create(name=name) for name in "abc"]
    orders = [Order(customer=customer, status=f"{at}") for customer in customers for at in range(every)]
    Order.objects.using(alias).bulk_create(orders)
    with plainly(pre_delete, post_delete) as told, CaptureQueriesContext(connections[alias]) as queries, batched(alias):
        Customer.objects.using(alias).all().delete()
        left = (Customer.objects.using(alias).count(), Order.objects.using(alias).count())

    told = [one for one in told if one["sender"] in (Customer, Order)]
    assert ((0, 0), 2 * 3 * (1 + every)) == (left, len(told))
    words = {pre_delete: "pre_delete", post_delete: "post_delete"}
    assert [f"{words[one['signal']]} {one['sender']._meta.label} pk={one['pk']}" for one in told] == summaries(alias)
    assert most_inserts(alias, len(told)) >= statements(queries).count("INSERT") > 1
    assert {"INSERT"} == set(statements(queries))

    stage.rows().exclude(pk__in=list(stage.rows().order_by("pk").values_list("pk", flat=True)[::50])).erase()
    chosen = told[::50]
    assert len(chosen) == stage.relay() == stage.work()
    assert [
        (one["signal"], one["sender"], one["pk"], str(getattr(one["instance"], "status", one["instance"])))
        for one in chosen
    ] == found


# send_saved() --------------------------------------------------------------------------------------------------------


def new_ones(alias: str) -> list[Customer]:
    return [Customer(name=name) for name in "cab"]


def old_ones(alias: str) -> list[Customer]:
    """Return customers that have changed since they were written."""
    customers = [Customer.objects.using(alias).create(name="old", email=f"{name}@example.com") for name in "cab"]
    for customer in customers:
        customer.name = "new"
    return customers


def bulk_create(alias: str, customers: list[Customer]) -> int:
    return send_saved(Customer.objects.using(alias).bulk_create(customers), created=True)


def bulk_update(alias: str, customers: list[Customer]) -> int:
    Customer.objects.using(alias).bulk_update(customers, ["name"])
    return send_saved(customers, created=False, update_fields=["name"])


def update(alias: str, customers: list[Customer]) -> int:
    chosen = Customer.objects.using(alias).filter(pk__in=[customer.pk for customer in customers]).order_by("pk")
    chosen.update(name="new")
    return send_saved(chosen, created=False, update_fields=["name"])


WRITES = {"bulk_create": (new_ones, bulk_create), "bulk_update": (old_ones, bulk_update), "update": (old_ones, update)}


@pytest.mark.parametrize(("prepare", "write"), WRITES.values(), ids=WRITES)
@each_kind
def test_what_was_written_in_bulk(stage: Stage, prepare: Any, write: Any) -> None:
    """Receivers, plain ones too, are given of each row what they would be given of its save, and they find the row."""
    alias = stage.alias
    told: list[list[Any]] = []
    seen: list[list[Any]] = []

    def note(instance: Customer, event: Event, **kwargs: Any) -> None:
        row = Customer.objects.using(kwargs["using"]).get(pk=instance.pk)
        assert instance == row
        seen[-1].append({**kwargs, "row": (row.name, row.email), "instance": (instance.name, instance.email)})
        assert (f"shop.Customer:{row.pk}", 0) == (event.key, event.coalesced)

    def save(alias: str, customers: list[Customer]) -> int:
        for customer in customers:
            customer.save(using=alias, update_fields=None if customer._state.adding else ["name"])
        return len(customers)

    for act in (save, write):
        seen.append([])
        customers = prepare(alias)
        task = stage.receiving(post_save, note, sender=Customer, guarantee="durable", ordered=True)
        with plainly(post_save) as kwargs, transaction.atomic(using=alias):
            assert 3 == act(alias, customers)
            assert 0 == elsewhere(lambda: stage.rows().count())
            assert 3 == stage.rows(receiver=task.name, lane__isnull=False).count()
        told.append([{name: one[name] for name in one if name not in ("instance", "pk")} for one in kwargs])
        assert [one["instance"] for one in kwargs] == list(Customer.objects.using(alias).order_by("pk"))[-3:]
        stage.relay()
        assert 3 == stage.work()
        stage.receiving.end()

    assert told[0] == told[1]
    assert seen[0] == seen[1]
    assert 3 == len(seen[1])


@each_kind
def test_what_was_written_in_bulk_and_rolled_back(stage: Stage) -> None:
    """What is sent for rows that are rolled back is rolled back with them, and with nothing else."""
    alias = stage.alias
    stage.receiving(post_save, sender=Tag, guarantee="durable")

    def write(name: str, *, keep: bool) -> None:
        with transaction.atomic(using=alias):
            assert 2 == send_saved(Tag.objects.using(alias).bulk_create([Tag(name=name), Tag(name=name)]), created=True)
            transaction.set_rollback(not keep, using=alias)

    with transaction.atomic(using=alias):
        write("kept", keep=True)
        write("ghost", keep=False)
        write("kept", keep=True)
    write("ghost", keep=False)

    assert ["kept"] * 4 == list(Tag.objects.using(alias).values_list("name", flat=True))
    assert saved_tags(alias) == summaries(alias)


@each_kind
def test_without_keys_nothing_is_sent(stage: Stage) -> None:
    """Objects of which the database told no keys are refused before one is sent; read again, they can be sent."""
    alias = stage.alias
    stage.receiving(post_save, sender=Tag, guarantee="durable")
    known = Tag.objects.using(alias).bulk_create([Tag(name="known")])
    unknown = Tag.objects.using(alias).bulk_create([Tag(name="new"), Tag(name="new")], ignore_conflicts=True)

    with plainly(post_save) as told, pytest.raises(ValueError, match=r"has no primary key.* read them again, and send"):
        send_saved([*known, *unknown], created=True)

    assert ([], []) == (told, summaries(alias))
    assert 2 == send_saved(Tag.objects.using(alias).filter(name="new").order_by("pk"), created=True)
    assert saved_tags(alias)[1:] == summaries(alias)


# Keys ----------------------------------------------------------------------------------------------------------------


@each_kind
def test_keys_of_a_batch(stage: Stage) -> None:
    """Of a batch nothing has its turn before a relay looks; then each key goes on by itself, in its order."""
    alias = stage.alias
    stage.receive(ordered=True)
    with batched(alias):
        stage.send("a", 1)
        stage.send("b", 11)
        in_one_that_is_rolled_back(alias, lambda: stage.send("a", -1))
        in_a_savepoint(alias, lambda: stage.send("a", 2, 3))
        by_hand_and_back(alias, lambda: stage.send("b", -2))
        stage.send("b", 12)
        stage.send(None, 21, 22)
    stage.send("a", 4)

    waiting = {(State.READY, None, None, 0)}
    assert waiting == set(stage.rows().values_list("state", "slot", "sent_at", "sends"))
    assert [] == stage.take()
    assert 4 == stage.relay()
    assert ["a", "b"] == sorted(stage.rows(slot__isnull=False).values_list("key", flat=True))
    assert 8 == stage.work()
    assert [[1, 2, 3, 4], [11, 12], [21, 22]] == [
        [number for number in stage.seen if number in range(first, first + 10)] for first in (0, 10, 20)
    ]
    assert {} == states(alias)


@pytest.mark.parametrize("kept", [True, False])
@each_kind
def test_a_receiver_that_sends_a_batch_to_its_own_key(stage: Stage, kept: bool) -> None:
    """What a receiver sends in a batch about its own key follows it at once, after those that wait already."""
    stage.receive(ordered=True)

    def send_more(number: int) -> None:
        if number == 1:
            with suppress(Boom), batched(stage.alias):
                stage.send("a", 3, 4)
                if not kept:
                    raise Boom

    stage.body = send_more
    stage.send("a", 1, 2)

    assert [1, 2, 3, 4][: 4 if kept else 2] == [*range(1, 1 + stage.work())] == stage.seen
    assert {} == states(stage.alias)


@each_kind
def test_a_batch_behind_one_that_runs(stage: Stage) -> None:
    """What is sent in batches while one of its key is under way waits for that, and for no relay."""
    stage.receive(ordered=True)
    stage.send("a", 1)
    [message] = stage.take()
    for numbers in ([2, 3], [4]):
        with batched(stage.alias):
            stage.send("a", *numbers)

    assert ([], 0) == (stage.take(), stage.relay())
    stage.run(message)
    assert 3 == stage.work()
    assert ([1, 2, 3, 4], {}) == (stage.seen, states(stage.alias))


@each_kind
def test_coalescing_in_a_batch(stage: Stage) -> None:
    """Of a batch each key is one run, of the newest that was not rolled back, with what was sent before and after."""
    alias, runs = stage.alias, []

    def index(instance: Tag, created: bool, event: Event) -> None:
        runs.append((instance.name, created, event.coalesced))

    stage.receiving(post_save, index, sender=Tag, guarantee="durable", coalesce=True)
    first = Tag.objects.using(alias).create(name="first")
    assert 1 == stage.work()
    with batched(alias):
        second = Tag.objects.using(alias).create(name="second")
        for number in range(5):
            for tag in (first, second):
                tag.name = f"{tag.name[0]}{number}"
                tag.save()
        in_one_that_is_rolled_back(alias, second.save)
        Tag.objects.using(alias).bulk_update([first], ["name"])
        send_saved([first], created=False, update_fields=["name"])
    first.save()

    assert 2 == stage.relay() == stage.work()
    assert [("first", True, 0), ("s4", True, 5), ("f4", False, 6)] == runs
    assert {} == states(alias)


@pytest.mark.parametrize("begin", [transaction.atomic, batched])
@each_kind
def test_saves_and_their_m2m_changes(stage: Stage, begin: Any) -> None:
    """For one receiver of both, a save and the changes of its tags are one event, of each object of a transaction."""
    alias, runs = stage.alias, []

    def index(instance: Order, event: Event, created: bool = False) -> None:
        tags = sorted(instance.tags.values_list("name", flat=True))
        runs.append((instance.status, tags, event.key, event.coalesced))

    task = stage.receiving(post_save, index, sender=Order, guarantee="durable", coalesce=True)
    connect(m2m_changed, task, sender="shop.Order.tags", guarantee="durable", coalesce=True)
    stage.receiving.undo.append(lambda: disconnect(m2m_changed, task, sender="shop.Order.tags"))
    customer = Customer.objects.using(alias).create(name="Ada")
    tags = [Tag.objects.using(alias).create(name=name) for name in "abc"]
    orders = []
    with begin(using=alias):
        for number in range(4):
            orders.append(Order.objects.using(alias).create(customer=customer, status=f"{number}"))
            orders[-1].tags.set(tags[:number])
        orders[3].tags.remove(tags[0])

    stage.relay()
    assert 4 == stage.work()
    expected = [("0", [], 0), ("1", ["a"], 2), ("2", ["a", "b"], 2), ("3", ["b", "c"], 4)]
    assert runs == [(*run[:2], f"shop.Order:{order.pk}", run[2]) for order, run in zip(orders, expected, strict=True)]
    assert {} == states(alias)


# muted() -------------------------------------------------------------------------------------------------------------


MIGRATION = """
from contextlib import nullcontext

from django.db import migrations, models

from django_celery_signals import muted, send_saved
from tests.shop.models import Tag


def fill_in(apps, schema_editor):
    using = schema_editor.connection.alias
    with {block}:
        apps.get_model("shop", "Tag").objects.using(using).create(name="historical")
        tag = Tag.objects.using(using).create(name="saved")
        tag.save(update_fields=["name"])
        send_saved(Tag.objects.using(using).bulk_create([Tag(name="bulk")]), created=True)
        tag.delete()


class Migration(migrations.Migration):
    fields = [("id", models.BigAutoField(primary_key=True)), ("name", models.CharField(max_length=50))]
    operations = [
        migrations.SeparateDatabaseAndState(state_operations=[migrations.CreateModel("Tag", fields)]),
        migrations.RunPython(fill_in, migrations.RunPython.noop),
    ]
"""


@pytest.mark.parametrize("block", ["muted()", "nullcontext()"])
@each_kind
def test_a_data_migration(
    stage: Stage, block: str, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that is muted sends to no receiver in a worker, under any guarantee; plain ones hear of all."""
    package = f"shop_migrations_{stage.alias}_{block.partition('(')[0]}"
    (tmp_path / package).mkdir()
    for name, text in (("__init__", ""), ("0001_fill_in", MIGRATION.format(block=block))):
        (tmp_path / package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    settings.MIGRATION_MODULES = {**settings.MIGRATION_MODULES, "shop": package}
    for guarantee in ("durable", "on_commit", "immediate"):
        stage.receiving([post_save, post_delete], guarantee=guarantee)

    def migrate(name: str | None) -> None:
        MigrationExecutor(connections[stage.alias]).migrate([("shop", name)])

    with plainly(post_save, post_delete) as told:
        migrate("0001_fill_in")
    try:
        sent = (0, 0) if block == "muted()" else (4 + 4 + 3, 4)  # the relay publishes what send_saved() sends durably
        assert sent == (len(stage.take()), stage.rows().count())
        heard = [(one["signal"], one["sender"].__module__) for one in told if one["sender"].__name__ == "Tag"]
        of_shop = "tests.shop.models"
        assert [(post_save, "__fake__"), *[(post_save, of_shop)] * 3, (post_delete, of_shop)] == heard
        assert ["historical", "bulk"] == list(
            Tag.objects.using(stage.alias).order_by("pk").values_list("name", flat=True)
        )
    finally:
        migrate(None)
