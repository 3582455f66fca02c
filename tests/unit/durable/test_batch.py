"""Batches: what a block sends is written together, at its end, and only what its savepoints leave standing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from django.db import DatabaseError, Error, InternalError, connections, transaction
from django.db.models.signals import post_save
from django.dispatch import Signal
from django.test.utils import CaptureQueriesContext

from django_celery_signals import Relay, batched
from django_celery_signals.durable import batch as module
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.texts import GIVEN, LINEAGE, MOMENTS
from django_celery_signals.event import new_event, running
from django_celery_signals.wire import ARGUMENT, parse
from tests.drain import take
from tests.elsewhere import elsewhere, execute
from tests.notes import notes_of
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Tag

bell = Signal()

each_kind = each_database("default", "postgres", "mariadb")

TABLE = "django_celery_signals_delivery"


class Boom(Exception):
    """What blocks raise here."""


@pytest.fixture
def ring(receiving: Receiving) -> Callable[..., None]:
    """Sends numbers to a durable receiver."""
    receiving(bell, guarantee="durable")

    def ring(alias: str, *numbers: int) -> None:
        for number in numbers:
            bell.send(sender=None, using=alias, number=number)

    return ring


def rung(alias: str) -> list[Any]:
    """Return the numbers that are written, in the order of their rows."""
    payloads = deliveries(alias).order_by("pk").values_list("payload", flat=True)
    return [parse(payload).kwargs.get("number") for payload in payloads]


def inserts(queries: CaptureQueriesContext) -> int:
    return len([query for query in queries if query["sql"].startswith("INSERT") and TABLE in query["sql"]])


# What is written, and when -------------------------------------------------------------------------------------------


@each_kind
def test_batch(alias: str, celery_app: Celery, ring: Any) -> None:
    """Outside of a transaction, a block is one: its deliveries are written at its end, and are the relay's."""
    with CaptureQueriesContext(connections[alias]) as queries, batched(alias):
        ring(alias, *range(5))
        inside = (rung(alias), elsewhere(lambda: rung(alias)))

    assert ([], []) == inside
    assert [0, 1, 2, 3, 4] == rung(alias)
    assert 1 == inserts(queries)
    assert {(State.READY, None, 0)} == set(deliveries(alias).values_list("state", "sent_at", "sends"))
    assert 5 == deliveries(alias).filter(due_at__lte=In(0), created_at__gt=In(-20)).count()
    assert 5 == len(set(deliveries(alias).values_list("token", flat=True)))
    assert [] == take(celery_app)
    assert 5 == Relay(app=celery_app, databases=[alias]).once() == len(take(celery_app))


@each_kind
def test_batch_in_a_transaction(alias: str, ring: Any) -> None:
    """Within a transaction it is a part of that: written at its own end, committed or rolled back with the whole."""
    seen = []
    for commits in (True, False):
        with transaction.atomic(using=alias):
            with batched(alias):
                ring(alias, 1, 2)
            seen.append(rung(alias))
            ring(alias, 3)
            transaction.set_rollback(not commits, using=alias)

    assert [[1, 2], [1, 2, 3, 1, 2]] == seen
    assert [1, 2, 3] == rung(alias)


@each_kind
@pytest.mark.parametrize("in_transaction", [True, False])
def test_block_that_fails(alias: str, ring: Any, in_transaction: bool) -> None:
    """A block that raises is rolled back with all that it sent, and leaves nothing behind for the next."""
    with transaction.atomic(using=alias) if in_transaction else nullcontext():
        with suppress(Boom), batched(alias):
            Tag.objects.using(alias).create(name="ghost")
            ring(alias, 1, 2)
            raise Boom
        ring(alias, 3)
    with batched(alias):
        ring(alias, 4)

    assert ([3, 4], 0) == (rung(alias), Tag.objects.using(alias).count())


@each_kind
def test_nothing_sent(alias: str) -> None:
    """A block that sends nothing writes nothing."""
    with CaptureQueriesContext(connections[alias]) as queries, batched(alias):
        pass

    assert 0 == inserts(queries)


@each_kind
def test_of_many_statements(alias: str, ring: Any) -> None:
    """Many deliveries are written by some statements of as many as the database takes, in the order of sending."""
    count = module.SIZE + 20
    with CaptureQueriesContext(connections[alias]) as queries, batched(alias):
        ring(alias, *range(count))

    assert list(range(count)) == rung(alias)
    fields = len((*GIVEN, *MOMENTS))
    size = connections[alias].features.max_query_params // fields if alias == "default" else module.SIZE
    assert math.ceil(module.SIZE / size) + math.ceil(20 / size) == inserts(queries)


@each_kind
def test_what_caused_them(alias: str, ring: Any) -> None:
    """Each of a batch says what caused it, also beside what nothing did; the statements are as large as they may be."""
    cause = new_event("tests.nobody", "", "rang", alias)
    with CaptureQueriesContext(connections[alias]) as queries, batched(alias):
        ring(alias, 0)
        with running(cause):
            ring(alias, *range(1, module.SIZE))

    found = list(deliveries(alias).order_by("pk").values_list("depth", "parent_id", "root_id"))
    assert found == [(0, None, None)] + [(1, cause.id, cause.id)] * (module.SIZE - 1)
    fields = len((*GIVEN, *LINEAGE, *MOMENTS))
    size = connections[alias].features.max_query_params // fields if alias == "default" else module.SIZE
    assert math.ceil(module.SIZE / size) == inserts(queries)


@each_kind
def test_columns(alias: str, receiving: Receiving) -> None:
    """Deliveries of different receivers are written together, each with all that is asked of it."""
    tasks = [
        receiving(bell, guarantee="durable", queue="slow", countdown=60),
        receiving(bell, guarantee="durable", ordered=True, key=lambda number: number),
        receiving(bell, guarantee="durable", debounce=5, key=lambda number: number, countdown=7),
    ]
    with CaptureQueriesContext(connections[alias]) as queries, batched(alias):
        bell.send(sender=None, using=alias, number=1)

    assert 1 == inserts(queries)
    found = [deliveries(alias).get(receiver=task.name) for task in tasks]
    asked = [{"queue": "slow"}, {}, {"countdown": 7, "debounce": 5, "max_wait": 75}]
    assert asked == [row.options for row in found]
    assert [(None, False), ("1", False), ("1", True)] == [(row.key, row.folds) for row in found]
    assert [False, True, True] == [row.lane is not None for row in found]
    assert [None] * 3 == [row.slot for row in found]
    assert [60, 0, 7] == [round((row.due_at - row.created_at).total_seconds()) for row in found]


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_other_databases(celery_app: Celery, ring: Any) -> None:
    """What is sent in the transactions of another database is written at once, and published as ever."""
    with batched("other"):
        ring("default", 1)
        ring("other", 2)
        assert ([1], []) == (rung("default"), rung("other"))

    assert ([1], [2]) == (rung("default"), rung("other"))
    assert ["default"] == [message.kwargs[ARGUMENT]["alias"] for message in take(celery_app)]


@each_database("postgres", "mariadb")
def test_other_threads(alias: str, ring: Any, celery_app: Celery) -> None:
    """A batch is one thread's: what another sends meanwhile is written and published as ever."""
    with batched(alias):
        ring(alias, 1)
        elsewhere(lambda: ring(alias, 2))
        assert [2] == elsewhere(lambda: rung(alias))

    assert [2, 1] == rung(alias)
    assert 1 == len(take(celery_app))


@each_kind
def test_one_object_for_several_blocks(alias: str, ring: Any) -> None:
    """One object may be entered again within itself, and by other threads: each is over when its own block is."""
    block = batched(alias)
    with block:
        ring(alias, 1)
        with block:
            ring(alias, 2)
        assert connections[alias].in_atomic_block
        assert [] == rung(alias)

    assert ([1, 2], False) == (rung(alias), connections[alias].in_atomic_block)

    def other() -> None:
        with block:
            ring(alias, 3)

    elsewhere(other)
    assert [1, 2, 3] == rung(alias)


def test_what_cannot_be_decorated() -> None:
    """A coroutine function has no transaction of its own, and a generator's body runs when the call is over."""

    async def act() -> None: ...

    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"batched\(\) cannot decorate .*act\(\), a coroutine .* sync_to_async\(\)"):
        batched()(act)
    with pytest.raises(TypeError, match=r"batched\(\) cannot decorate .*rows\(\), a generator .* inside of it"):
        batched()(rows)


@each_kind
def test_decorator(alias: str, ring: Any) -> None:
    """A function may be such a block, at each of its calls."""

    @batched(alias)
    def act(*numbers: int) -> int:
        ring(alias, *numbers)
        return len(rung(alias))

    assert [0, 2] == [act(1, 2), act(3)]
    assert [1, 2, 3] == rung(alias)


@each_database("default")
def test_eager(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """With task_always_eager each is written by itself, for its receiver runs after the commit, in this process."""
    celery_app.conf.task_always_eager = True
    seen: list[int] = []
    receiving(bell, lambda number: seen.append(number), guarantee="durable")

    with batched(alias):
        bell.send(sender=None, using=alias, number=1)
        assert ([], [1]) == (seen, rung(alias))
    assert ([1], []) == (seen, rung(alias))


@each_kind
def test_saves(alias: str, receiving: Receiving) -> None:
    """Saves, and what deletes many rows at once, cost one INSERT for all that they send."""
    receiving(post_save, sender=Tag, guarantee="durable")
    with CaptureQueriesContext(connections[alias]) as queries, batched(alias):
        for name in "abc":
            Tag.objects.using(alias).create(name=name)

    assert (1, 3) == (inserts(queries), deliveries(alias).count())


# Blocks within blocks ------------------------------------------------------------------------------------------------


@each_kind
def test_nested(alias: str, ring: Any) -> None:
    """A block within another joins it: everything is written at the end of the outer one."""
    with CaptureQueriesContext(connections[alias]) as queries, batched(alias):
        ring(alias, 1)
        with batched(alias):
            ring(alias, 2)
        ring(alias, 3)
        assert [] == rung(alias)

    assert ([1, 2, 3], 1) == (rung(alias), inserts(queries))


@each_kind
def test_nested_that_fails(alias: str, ring: Any) -> None:
    """A block within another that raises takes its own sendings along, and no others."""
    with batched(alias):
        ring(alias, 1)
        with suppress(Boom), batched(alias):
            ring(alias, 2)
            raise Boom
        ring(alias, 3)

    assert [1, 3] == rung(alias)


# Savepoints ----------------------------------------------------------------------------------------------------------


def run(alias: str, ring: Any, script: str) -> None:
    """Do what a script says: ``( )`` is a savepoint, ``( !)`` one that is rolled back, ``[ ]`` a block that has none,
    and every digit is sent."""
    blocks: list[Any] = []
    for at, word in enumerate(script):
        if word in "([":
            blocks.append(transaction.atomic(using=alias, savepoint=word == "("))
            blocks[-1].__enter__()
        elif word in ")]":
            error = Boom() if script[at - 1] == "!" else None
            blocks.pop().__exit__(type(error) if error else None, error, None)
        elif word.isdigit():
            ring(alias, int(word))


SCRIPTS = [
    "1(2)3",
    "1(2!)3",
    "(1!)2",
    "(1)2(3!)",
    "1(2(3!)4)5",
    "1(2(3)4!)5",
    "1(2(3!)4!)5",
    "((1)(2!)3)(4!)(5)",
    "(1[2]3!)4",
    "(1[2]3)4",
    "(1!)(2)",
    "(1!)(2!)(3)4",
    "1(((2)3)4!)5",
]


@each_kind
@pytest.mark.parametrize("size", [500, 2, 1])
@pytest.mark.parametrize("script", SCRIPTS)
def test_savepoints(alias: str, ring: Any, script: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A savepoint that is rolled back takes its own sendings along, and no others, whenever they are written."""
    with transaction.atomic(using=alias):
        run(alias, ring, script)
    expected = rung(alias)
    deliveries(alias).erase()

    monkeypatch.setattr(module, "SIZE", size)
    with batched(alias):
        run(alias, ring, script)

    assert expected == rung(alias)


@each_kind
@pytest.mark.parametrize("ending", ["commits", "is rolled back"])
def test_savepoint_by_hand(alias: str, ring: Any, ending: str) -> None:
    """So does a savepoint that somebody has made and rolled back by hand."""
    with batched(alias):
        ring(alias, 1)
        savepoint = connections[alias].savepoint()
        ring(alias, 2)
        if ending == "commits":
            transaction.savepoint_commit(savepoint, using=alias)
        else:
            transaction.savepoint_rollback(savepoint, using=alias)
        ring(alias, 3)

    assert ([1, 2, 3] if ending == "commits" else [1, 3]) == rung(alias)


@each_kind
def test_block_in_a_savepoint(alias: str, ring: Any) -> None:
    """A block within a savepoint is written in it, and rolled back with it."""
    with transaction.atomic(using=alias):
        for number in (1, 2, 3):
            with transaction.atomic(using=alias):
                with batched(alias):
                    ring(alias, number)
                assert number in rung(alias)
                transaction.set_rollback(number == 2, using=alias)

    assert [1, 3] == rung(alias)


@each_kind
def test_written_early(alias: str, ring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has become much is written at once, unless a savepoint might take others' sendings along."""
    monkeypatch.setattr(module, "SIZE", 2)
    seen = []
    with batched(alias):
        ring(alias, 1)
        with transaction.atomic(using=alias):
            ring(alias, 2, 3)
            seen.append(rung(alias))
        ring(alias, 4)
        seen.append(rung(alias))
        with transaction.atomic(using=alias):
            ring(alias, 5, 6, 7)
            seen.append(rung(alias))

    assert [[], [1, 2, 3], [1, 2, 3]] == seen
    assert [1, 2, 3, 4, 5, 6, 7] == rung(alias)


# Hooks and errors ----------------------------------------------------------------------------------------------------


@each_kind
def test_written_early_by_weight(alias: str, ring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large payloads are written as soon as they weigh much, and no statement is too large for the database."""
    weight = len(large(alias, ring, 0))
    monkeypatch.setattr(module, "WEIGHT", int(weight * 2.5))
    seen = []
    with CaptureQueriesContext(connections[alias]) as queries, batched(alias):
        for number in range(1, 8):
            ring(alias, number)
            seen.append(len(rung(alias)) - 1)

    assert [0, 0, 3, 3, 3, 6, 6] == seen
    assert [0, 1, 2, 3, 4, 5, 6, 7] == rung(alias)
    assert 5 == inserts(queries)  # of 2, 1, 2, 1 and 1


def large(alias: str, ring: Any, number: int) -> str:
    """Send a number by itself, and return its payload."""
    ring(alias, number)
    return str(deliveries(alias).latest("pk").payload)


@each_kind
def test_one_that_is_too_large(alias: str, ring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload that weighs more than a statement may is written by itself."""
    monkeypatch.setattr(module, "WEIGHT", 1)
    with CaptureQueriesContext(connections[alias]) as queries, batched(alias):
        ring(alias, 1, 2, 3)

    assert ([1, 2, 3], 3) == (rung(alias), inserts(queries))


@each_kind
def test_savepoint_that_is_older(alias: str, ring: Any) -> None:
    """A rollback by hand to a savepoint from before the block takes all that the block has sent."""
    with transaction.atomic(using=alias):
        savepoint = connections[alias].savepoint()
        batch = module.Batch(connections[alias])
        module._batches[id(connections[alias])] = batch
        try:
            with connections[alias].execute_wrapper(batch.watch):
                ring(alias, 1)
                connections[alias].savepoint()
                ring(alias, 2)
                transaction.savepoint_rollback(savepoint, using=alias)
                ring(alias, 3)
            batch.close()
        finally:
            del module._batches[id(connections[alias])]

    assert [3] == rung(alias)


@each_kind
def test_savepoints_by_hand_within_one_another(alias: str, ring: Any) -> None:
    """To release a savepoint is to release those within it; to roll it back, they are gone."""
    with batched(alias):
        for ends in (transaction.savepoint_commit, transaction.savepoint_rollback):
            ring(alias, 1)
            outer = connections[alias].savepoint()
            ring(alias, 2)
            connections[alias].savepoint()
            ring(alias, 3)
            ends(outer, using=alias)
            ring(alias, 4)

    assert [1, 2, 3, 4, 1, 4] == rung(alias)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("savepoint s", [("s", 0)]),
        (' SAVEPOINT "s1" ; ', [("s1", 0)]),
        ("SAVEPOINT `S1` /*traceparent='00-1'*/", [("s1", 0)]),
        ("/* of\nthe */ -- request\nSAVEPOINT/**/S -- here", [("s", 0)]),
        ("SELECT 'SAVEPOINT s'", []),
        ("ROLLBACK", []),
        (b"SAVEPOINT s", []),
        (object(), []),
    ],
    ids=["small", "quoted", "comment", "comments", "text", "whole", "bytes", "composed"],
)
def test_what_is_a_savepoint(sql: Any, expected: list[Any]) -> None:
    """A savepoint is found in whatever statement makes one, and in no other."""
    batch = module.Batch(connections["default"])

    assert "done" == batch.watch(lambda sql, *args: "done", sql, None, False, {})
    assert expected == batch._savepoints


@each_kind
@pytest.mark.parametrize("sql", ["ROLLBACK TO s", "rollback TO SAVEPOINT S", "ROLLBACK/**/TO S -- so"])
def test_spellings_of_a_rollback(alias: str, ring: Any, sql: str) -> None:
    """A savepoint is the same however it is spelled, and whatever tracing adds."""
    with batched(alias), connections[alias].cursor() as cursor:
        ring(alias, 1)
        cursor.execute("SAVEPOINT s /*traceparent='00-1'*/")
        ring(alias, 2)
        cursor.execute(sql)
        ring(alias, 3)

    assert [1, 3] == rung(alias)


@pytest.mark.parametrize("word", ["WORK", "TRANSACTION"])
def test_words_that_say_nothing(word: str) -> None:
    """Some databases have one more word for it."""
    batch = module.Batch(connections["default"])
    for sql in ("SAVEPOINT a", "SAVEPOINT b", f"ROLLBACK {word} TO a"):
        batch.watch(lambda sql, *args: None, sql, None, False, {})
    assert [("a", 0)] == batch._savepoints


@each_kind
def test_comments_of_tracing(alias: str, ring: Any) -> None:
    """What an outer wrapper adds to every statement hides no savepoint."""

    def comment(execute: Any, sql: str, *args: Any) -> Any:
        return execute(f"{sql} /*traceparent='00-1'*/", *args)

    with connections[alias].execute_wrapper(comment), batched(alias):
        ring(alias, 1)
        with suppress(Boom), transaction.atomic(using=alias):
            ring(alias, 2)
            raise Boom

    assert [1] == rung(alias)


def test_savepoint_that_is_refused() -> None:
    """A statement that fails has made no savepoint."""
    batch = module.Batch(connections["default"])

    def refuse(*args: Any) -> None:
        raise DatabaseError

    with pytest.raises(DatabaseError):
        batch.watch(refuse, "SAVEPOINT s", None, False, {})
    assert [] == batch._savepoints


@each_database("default", "mariadb")
def test_error_that_is_swallowed(alias: str, ring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the database has not taken is not lost where the error is swallowed: it is tried again, at the end."""
    monkeypatch.setattr(module, "SIZE", 3)
    failing, insert = [True], module.insert

    def insert_or_fail(rows: Any, connection: Any, own: Any) -> None:
        if failing:
            raise DatabaseError("lock wait timeout")
        insert(rows, connection, own)

    monkeypatch.setattr(module, "insert", insert_or_fail)
    with batched(alias):
        ring(alias, 1, 2)
        for number in (3, 4):
            with suppress(DatabaseError):
                ring(alias, number)
        failing.clear()

    assert [1, 2, 3, 4] == rung(alias)


@each_database("default", "postgres", "mariadb")
@pytest.mark.parametrize("further", [[], [3], [3, 4, 5]], ids=len)
def test_time_limit_just_behind_the_insert(
    alias: str, ring: Any, monkeypatch: pytest.MonkeyPatch, further: list[int]
) -> None:
    """What was written is written by nobody once more, though the error is swallowed: the block fails, and says why."""
    monkeypatch.setattr(module, "SIZE", 2)
    insert = module.insert

    def insert_and_end(*args: Any) -> None:
        insert(*args)
        raise SoftTimeLimitExceeded

    with pytest.raises(InternalError, match="was cut off") as raised, batched(alias):  # noqa: PT012
        ring(alias, 1)
        with monkeypatch.context() as patch:
            patch.setattr(module, "insert", insert_and_end)
            with suppress(SoftTimeLimitExceeded):
                ring(alias, 2)
        for number in further:
            with suppress(Error):
                ring(alias, number)

    assert isinstance(raised.value.__cause__, SoftTimeLimitExceeded)
    assert [] == rung(alias)


@each_kind
def test_hooks_of_others(alias: str, ring: Any) -> None:
    """Whatever else is to be done after the commit is done, in its order, and nothing of a batch is left there."""
    called: list[int] = []

    def hook(number: int) -> None:
        transaction.on_commit(lambda: called.append(number), using=alias)

    with transaction.atomic(using=alias):
        hook(1)
        with batched(alias):
            hook(2)
            ring(alias, 1)
            hook(3)
            with transaction.atomic(using=alias):
                ring(alias, 2)
                hook(4)
                transaction.set_rollback(True, using=alias)
        hook(5)
        kept = len(connections[alias].run_on_commit)

    assert ([1, 2, 3, 5], 4) == (called, kept)
    assert [1] == rung(alias)


@each_kind
@pytest.mark.parametrize("is_nested", [True, False])
def test_transaction_that_is_broken(alias: str, ring: Any, is_nested: bool) -> None:
    """A block that can only be rolled back writes nothing, and raises nothing of its own."""
    with transaction.atomic(using=alias) if is_nested else nullcontext():
        with batched(alias):
            ring(alias, 1)
            with suppress(Boom), transaction.atomic(using=alias, savepoint=False):
                raise Boom
        ring(alias, 2)

    assert [2] == rung(alias)


@each_kind
def test_table_that_is_not_there(alias: str, ring: Any) -> None:
    """What the database does not take is raised at the end of the block, with the remedy; the next block is another."""

    @batched(alias)
    def act() -> None:
        Tag.objects.using(alias).create(name="ghost")
        ring(alias, 1, 2)

    execute(alias, f"ALTER TABLE {TABLE} RENAME TO elsewhere")
    try:
        with pytest.raises(DatabaseError) as caught:
            act()
    finally:
        execute(alias, f"ALTER TABLE elsewhere RENAME TO {TABLE}")
    with batched(alias):
        ring(alias, 3)

    [note] = notes_of(caught.value)
    assert f"manage.py migrate --database={alias}" in note
    assert ([3], 0) == (rung(alias), Tag.objects.using(alias).count())
    assert {} == module._batches
