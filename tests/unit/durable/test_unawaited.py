"""An INSERT that nobody waits for is in the transaction all the same, and what the database refuses is raised."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DataError, Error, InterfaceError, InternalError, OperationalError, connections, transaction
from django.db.backends import postgresql, utils
from django.test.utils import CaptureQueriesContext

from django_celery_signals import batched
from django_celery_signals.durable import batch, unawaited
from django_celery_signals.durable import client as module
from django_celery_signals.durable.deliveries import deliveries
from django_celery_signals.durable.unawaited import Answer
from django_celery_signals.durable.writing import New, insert
from django_celery_signals.exceptions import DeliveryRefused
from tests.elsewhere import elsewhere, execute, other_transaction
from tests.notes import notes_of
from tests.parameters import each_database
from tests.shop.models import Tag
from tests.ways import WAYS, able_to_leave, tags

ALIAS = "postgres"
each_of_psycopg = each_database(ALIAS)
REFUSED = 10**6  # a state, which is a small number


class Boom(Exception):
    """What a sender raises here."""


def a_row(receiver: str = "tests.nobody", **changed: Any) -> New:
    """Return a delivery to be written."""
    given: dict[str, Any] = {
        "event_id": "5",
        "receiver": receiver,
        "signal": "m:s",
        "summary": "",
        "queue": "q",
        "state": 0,
        "token": 1,
        "sends": 0,
        "options": {},
        "payload": "{}",
        "due_in": 0.5,
        **changed,
    }
    return New(**given)


def write(alias: str, *rows: New) -> None:
    """Write rows, one after the other."""
    for row in rows:
        insert([row], connections[alias])


def begin(alias: str) -> None:
    """Begin the transaction in earnest, as the save does that a signal tells of."""
    execute(alias, "SELECT 1")


def written(alias: str) -> list[str]:
    """Return the receivers of what others can see."""
    return elsewhere(lambda: list(deliveries(alias).order_by("pk").values_list("receiver", flat=True)))


def is_under_way(alias: str) -> bool:
    """Tell whether a statement has been sent for which nobody has waited."""
    return connections[alias].connection.info.transaction_status.name == "ACTIVE"


@contextmanager
def in_a_transaction(alias: str) -> Iterator[Any]:
    """Open a transaction that has begun, and give its connection."""
    with transaction.atomic(using=alias):
        begin(alias)
        yield connections[alias]


@contextmanager
def refused(error: type[Exception] | tuple[type[Exception], ...] = DataError) -> Iterator[pytest.ExceptionInfo[Any]]:
    """Expect what is within to raise, wherever it does."""
    with pytest.raises(error) as raised:
        yield raised


# What is written -----------------------------------------------------------------------------------------------------


@each_of_psycopg
def test_sender_does_not_wait(alias: str) -> None:
    """The sender goes on while the database cannot execute its INSERT yet; the commit waits."""
    row = a_row()
    table = deliveries(alias).model._meta.db_table

    with other_transaction(alias, lambda: execute(alias, f"LOCK TABLE {table}")) as other, in_a_transaction(alias):
        write(alias, row)
        assert is_under_way(alias)
        other.commit()

    assert ["tests.nobody"] == written(alias)
    assert deliveries(alias).get().pk == row.pk


@each_of_psycopg
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_to_use_the_connection_then(alias: str, way: Callable[..., None]) -> None:
    """Whatever the connection is used for next waits first."""
    kept: list[Any] = []

    with able_to_leave(alias), in_a_transaction(alias) as connection:
        for name in ("a", "b"):
            row = a_row(name)
            write(alias, row)
            assert is_under_way(alias)
            way(connection, name, kept)
            assert not is_under_way(alias)
            assert row.pk

    assert (["a", "b"], ["a", "b"]) == (written(alias), tags(alias))


@each_of_psycopg
def test_many_one_after_the_other(alias: str) -> None:
    """Each waits for the one before; each has its own key; the client's own lock is in its place again."""
    rows = [a_row(f"tests.{number}") for number in range(20)]

    with in_a_transaction(alias) as connection:
        lock = connection.connection.lock
        write(alias, *rows)

    assert [row.receiver for row in rows] == written(alias)
    assert sorted(row.pk or 0 for row in rows) == [row.pk for row in rows]
    assert lock is connection.connection.lock


VALUES: dict[str, dict[str, Any]] = {
    "all": {
        "summary": "ü 100 % {due_at} '\\",
        "key": "%s",
        "lane": "f" * 32,
        "folds": True,
        "token": 2**60,
        "sends": 4,
        "options": {"priority": 3, "é": [None, {"a": "'"}]},
        "payload": "€\n\\'",
        "due_in": -5,
    },
    "bare": {"due_in": None, "queue": ""},
    "caused": {"depth": 3, "parent_id": "%s", "root_id": "r" * 36},
    "large": {"payload": "é" * 2_000_000},
}


@each_of_psycopg
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_same_row_as_one_that_is_waited_for(alias: str, values: dict[str, Any]) -> None:
    """What is said as text arrives as the type of its column."""
    one, other = a_row(**values), a_row(**values)

    with in_a_transaction(alias) as connection:
        write(alias, one)
        with connection.execute_wrapper(lambda execute, *args: execute(*args)):
            write(alias, other)
    assert (Answer, int) == (type(one.written), type(other.written))

    moments = ("due_at", "sent_at", "created_at")
    first, second = deliveries(alias).order_by("pk").values()
    assert (one.pk, other.pk) == (first.pop("id"), second.pop("id"))
    for moment in moments:
        early, late = first.pop(moment), second.pop(moment)
        assert (early is None) == (late is None)
        assert early is None or abs((late - early).total_seconds()) < 5
    assert first == second


# Many at once --------------------------------------------------------------------------------------------------------


@contextmanager
def in_a_batch(alias: str, monkeypatch: pytest.MonkeyPatch, size: int = 2) -> Iterator[Any]:
    """Open a transaction that has begun, and a batch that writes when it has so many."""
    monkeypatch.setattr(batch, "SIZE", size)
    with batched(alias):
        begin(alias)
        yield connections[alias]


def put(alias: str, *rows: New) -> None:
    """Give rows to the batch."""
    for row in rows:
        found = batch.batch_on(connections[alias])
        assert found is not None
        found.add(row)


@each_of_psycopg
def test_batch_does_not_wait(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent next is put together while the database cannot yet execute the INSERT of those before."""
    table = deliveries(alias).model._meta.db_table

    with (
        other_transaction(alias, lambda: execute(alias, f"LOCK TABLE {table}")) as other,
        in_a_batch(alias, monkeypatch),
    ):
        put(alias, a_row("tests.1"))
        assert not is_under_way(alias)
        put(alias, a_row("tests.2"), a_row("tests.3"))
        assert is_under_way(alias)
        other.commit()

    assert ["tests.1", "tests.2", "tests.3"] == written(alias)


@each_of_psycopg
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_same_rows_as_those_that_are_waited_for(
    alias: str, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    """Values that are listed, and those that are said once, arrive as the types of their columns."""
    others = {"event_id": "6", "summary": "s", "token": 2, "folds": False, "payload": "%"}

    with in_a_batch(alias, monkeypatch) as connection:
        for around in (nullcontext(), wrapped(connection)):
            with around:
                put(alias, a_row(**values), a_row(**{**values, **others}))

    rows = list(deliveries(alias).order_by("pk").values())
    for row in rows:
        for name in ("id", "due_at", "sent_at", "created_at"):
            row[name] = row[name] is None
    assert rows[:2] == rows[2:]


@each_of_psycopg
def test_batch_that_is_watched_by_somebody_else(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch's own look at statements hides nothing from the others who look."""
    with in_a_batch(alias, monkeypatch) as connection, wrapped(connection):
        put(alias, a_row(), a_row())
        assert not is_under_way(alias)


@each_of_psycopg
def test_batch_within_a_transaction(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a savepoint there: what is refused is raised at once, and takes no more than the batch along."""
    with in_a_transaction(alias):
        Tag.objects.using(alias).create(name="a")
        with refused() as raised, in_a_batch(alias, monkeypatch):
            put(alias, a_row(), a_row(state=REFUSED))
            pytest.fail("It was not raised.")
        Tag.objects.using(alias).create(name="b")

    assert ["tests.nobody"] == notes(raised.value)
    assert (["a", "b"], []) == (tags(alias), written(alias))


@each_of_psycopg
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_refused_in_a_batch(alias: str, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Whether others follow or not, the block raises, nothing of it is committed, and the next one is another."""
    followed: list[int] = []

    with refused() as raised, in_a_batch(alias, monkeypatch):
        Tag.objects.using(alias).create(name="a")
        transaction.on_commit(lambda: followed.append(1), using=alias)
        put(alias, a_row(state=REFUSED), *(a_row() for _ in range(count - 1)))

    assert ["tests.nobody"] == notes(raised.value)
    assert ([], [], []) == (followed, tags(alias), written(alias))
    with in_a_batch(alias, monkeypatch):
        put(alias, a_row())
    assert ["tests.nobody"] == written(alias)


@each_of_psycopg
@pytest.mark.parametrize("use", [begin, lambda alias: put(alias, a_row(), a_row())], ids=["statement", "sending"])
def test_refused_in_a_batch_and_swallowed(
    alias: str, monkeypatch: pytest.MonkeyPatch, use: Callable[[str], None]
) -> None:
    """Whoever meets the error first may swallow it; the block raises all the same, and nothing is committed."""
    with refused((DataError, DeliveryRefused)), in_a_batch(alias, monkeypatch):
        Tag.objects.using(alias).create(name="a")
        put(alias, a_row(state=REFUSED), a_row())
        for _ in range(2):
            with suppress(Error):
                use(alias)

    assert ([], []) == (tags(alias), written(alias))


@each_of_psycopg
def test_batch_with_a_savepoint(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent in one that is rolled back goes, and what was written before without a wait stays."""
    with in_a_batch(alias, monkeypatch):
        put(alias, a_row("tests.1"), a_row("tests.2"), a_row("tests.3"))
        with suppress(Boom), transaction.atomic(using=alias):
            put(alias, a_row("tests.4"), a_row("tests.5"))
            raise Boom
        put(alias, a_row("tests.6"))

    assert ["tests.1", "tests.2", "tests.3", "tests.6"] == written(alias)


# What is refused -----------------------------------------------------------------------------------------------------


def notes(error: Any) -> list[str]:
    """Return for which receivers an error says that something was written."""
    return [note.partition(" for ")[2].partition(" to the database")[0] for note in notes_of(error)]


@each_of_psycopg
def test_refused_at_the_next_statement(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is raised where the connection is used next, and says what it was about, as does the log."""
    with refused() as raised, in_a_transaction(alias):
        write(alias, a_row(state=REFUSED))
        begin(alias)

    assert "22003" == raised.value.__cause__.sqlstate
    assert ["tests.nobody"] == notes(raised.value)
    assert ["tests.nobody to the database 'postgres'"] == re.findall(r"delivery for (.*?)\. If", caplog.text)
    assert [] == written(alias)


@each_of_psycopg
def test_refused_at_the_commit(alias: str) -> None:
    """A transaction that has nothing else to say fails at its end, and what was to follow it does not."""
    followed: list[str] = []

    with refused(), in_a_transaction(alias) as connection:
        client = connection.connection
        lock = client.lock
        Tag.objects.using(alias).create(name="a")
        transaction.on_commit(lambda: followed.append("a"), using=alias)
        write(alias, a_row(state=REFUSED))

    assert ([], [], []) == (followed, tags(alias), written(alias))
    assert (client, lock) == (connection.connection, client.lock)
    assert "rollback" not in vars(client)
    write(alias, a_row())
    assert ["tests.nobody"] == written(alias)


def by_a_statement(connection: Any) -> None:
    begin(connection.alias)


def by_a_savepoint(connection: Any) -> None:
    with transaction.atomic(using=connection.alias):
        Tag.objects.using(connection.alias).create(name="b")


def by_the_client(connection: Any) -> None:
    connection.connection.execute("SELECT 1")


def by_a_finalizer(connection: Any) -> None:
    def act() -> Iterator[None]:
        try:
            yield
        finally:  # as one over a cursor closes that
            begin(connection.alias)

    acting = act()
    next(acting)  # it ends with this function


def by_nobody(connection: Any) -> None:
    pass


def by_a_save(connection: Any) -> None:
    Tag.objects.using(connection.alias).create(name="b")


def by_a_sending(connection: Any) -> None:
    write(connection.alias, a_row())


def by_a_block(connection: Any) -> None:
    with transaction.atomic(using=connection.alias, savepoint=False):
        begin(connection.alias)


MARKING = (by_a_save, by_a_sending, by_a_block)
SWALLOWED = (by_a_statement, by_a_savepoint, by_the_client, by_a_finalizer, by_nobody, *MARKING)


@each_of_psycopg
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("handling", [False, True])
@pytest.mark.parametrize("use", SWALLOWED, ids=lambda use: use.__name__)
def test_refused_and_swallowed(alias: str, use: Callable[[Any], None], handling: bool) -> None:
    """Whoever swallows the error, with a savepoint of his own or without, the block fails."""
    if not handling:
        swallow(alias, use)
        return
    try:
        raise Boom
    except Boom:  # in which a sender may be, and write that down
        swallow(alias, use)


def swallow(alias: str, use: Callable[[Any], None]) -> None:
    """Have something refused, and swallow it."""
    followed: list[str] = []
    marks = use in MARKING

    with refused(DeliveryRefused if marks else DataError) as raised, in_a_transaction(alias) as connection:
        Tag.objects.using(alias).create(name="a")
        transaction.on_commit(lambda: followed.append("a"), using=alias)
        write(alias, a_row(state=REFUSED))
        for _ in range(2):
            with suppress(Error, psycopg.Error):
                use(connection)

    assert ([], [], []) == (followed, tags(alias), written(alias))
    assert ["tests.nobody"] == notes(raised.value)
    assert connection.get_autocommit()
    assert "rollback" not in vars(connection.connection)
    with in_a_transaction(alias):
        write(alias, a_row())
    assert ([], ["tests.nobody"]) == (followed, written(alias))


@each_of_psycopg
def test_refused_while_errors_of_others_are_handled(alias: str) -> None:
    """An error that was there before the sending tells nobody of this one."""
    try:
        raise Boom
    except Boom:
        with refused(DeliveryRefused), in_a_transaction(alias) as connection:
            try:
                raise LookupError
            except LookupError:
                write(alias, a_row(state=REFUSED))
            with suppress(Error):
                by_a_save(connection)

    assert [] == written(alias)


@each_of_psycopg
def test_refused_within_a_savepoint(alias: str) -> None:
    """There it is raised at once, and the savepoint takes no more than itself along."""
    with in_a_transaction(alias):
        write(alias, a_row("tests.first"))
        with suppress(Boom, DataError), transaction.atomic(using=alias):
            Tag.objects.using(alias).create(name="a")
            with pytest.raises(DataError) as raised:
                write(alias, a_row("tests.second", state=REFUSED))
            raise raised.value
        write(alias, a_row("tests.last"))

    assert ["tests.second"] == notes(raised.value)
    assert (["tests.first", "tests.last"], []) == (written(alias), tags(alias))


@each_of_psycopg
def test_refused_behind_a_savepoint_by_hand(alias: str) -> None:
    """Nobody sees such a savepoint: the transaction is lost, and says so."""
    with refused(), in_a_transaction(alias):
        Tag.objects.using(alias).create(name="a")
        savepoint = connections[alias].savepoint()
        write(alias, a_row(state=REFUSED))
        with pytest.raises(DataError):
            transaction.savepoint_commit(savepoint, using=alias)
        transaction.savepoint_rollback(savepoint, using=alias)

    assert ([], []) == (tags(alias), written(alias))


@each_of_psycopg
def test_refused_and_taken_back_on_purpose(alias: str) -> None:
    """Who rolls back anyway need not know what would have been refused."""
    with in_a_transaction(alias):
        write(alias, a_row(state=REFUSED))
        transaction.set_rollback(True, using=alias)

    assert [] == written(alias)


@each_of_psycopg
def test_refused_when_the_next_is_written(alias: str) -> None:
    """It is said for which receiver the refused one was."""
    with refused() as raised, in_a_transaction(alias):
        write(alias, a_row("tests.first", state=REFUSED), a_row("tests.second"))

    assert ["tests.first"] == notes(raised.value)


@each_of_psycopg
@pytest.mark.parametrize("state", [0, REFUSED])
def test_taken_back(alias: str, state: int) -> None:
    """What the sender raises is what is raised, and the same connection can be used."""
    with refused(Boom), in_a_transaction(alias) as connection:
        client = connection.connection
        write(alias, a_row(state=state))
        raise Boom

    assert client is connection.connection
    assert "rollback" not in vars(client)
    write(alias, a_row())
    assert ["tests.nobody"] == written(alias)


@each_of_psycopg
def test_taken_back_to_a_savepoint(alias: str) -> None:
    """What was written before and behind a savepoint stays."""
    with in_a_transaction(alias):
        write(alias, a_row("tests.first"))
        with suppress(Boom), transaction.atomic(using=alias):
            write(alias, a_row("tests.second"))
            raise Boom
        write(alias, a_row("tests.last"))

    assert ["tests.first", "tests.last"] == written(alias)


@each_of_psycopg
def test_row_that_a_trigger_prevents(alias: str) -> None:
    """It is an error of the database's, not one of Python's: for Django a COMMIT may fail with no other."""
    table = deliveries(alias).model._meta.db_table
    execute(alias, "CREATE FUNCTION dcs_none() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    execute(alias, f"CREATE TRIGGER dcs_none BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION dcs_none()")
    try:
        with refused() as raised, in_a_transaction(alias):
            write(alias, a_row())
    finally:
        execute(alias, "DROP FUNCTION dcs_none CASCADE")

    assert "a trigger" in str(raised.value)
    assert connections[alias].get_autocommit()


# Where it is waited for ----------------------------------------------------------------------------------------------


@contextmanager
def with_attribute(thing: Any, name: str, value: Any) -> Iterator[None]:
    """Change something for a while."""
    had, before = name in vars(thing), getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        if had:
            setattr(thing, name, before)
        else:
            delattr(thing, name)


@contextmanager
def of_class(thing: Any, cls: type) -> Iterator[None]:
    """Make something another class's for a while."""
    before, thing.__class__ = type(thing), cls
    yield
    thing.__class__ = before


def wrapped(connection: Any) -> AbstractContextManager[Any]:
    return connection.execute_wrapper(lambda execute, *args: execute(*args))  # type: ignore[no-any-return]


def captured(connection: Any) -> AbstractContextManager[Any]:
    return CaptureQueriesContext(connection)


@contextmanager
def shared(connection: Any) -> Iterator[None]:
    connection.inc_thread_sharing()
    yield
    connection.dec_thread_sharing()


def another_cursor(connection: Any) -> AbstractContextManager[Any]:
    cursor = connection.cursor
    return with_attribute(connection, "cursor", lambda: cursor())


def another_backend(connection: Any) -> AbstractContextManager[Any]:
    base = type(connection)
    return of_class(connection, type("Other", (base,), {"create_cursor": lambda *given: base.create_cursor(*given)}))


def another_client(connection: Any) -> AbstractContextManager[Any]:
    return of_class(connection.connection, type("Other", (type(connection.connection),), {}))


def another_factory(connection: Any) -> AbstractContextManager[Any]:
    factory = connection.connection.cursor_factory
    return with_attribute(connection.connection, "cursor_factory", type("Other", (factory,), {"__module__": "other"}))


def traced(connection: Any) -> AbstractContextManager[Any]:
    execute = utils.CursorWrapper.execute
    return with_attribute(utils.CursorWrapper, "execute", lambda *args, **kwargs: execute(*args, **kwargs))


def another_rollback(connection: Any) -> AbstractContextManager[Any]:
    return with_attribute(connection.connection, "rollback", connection.connection.rollback)


def a_savepoint(connection: Any) -> AbstractContextManager[Any]:
    return transaction.atomic(using=connection.alias)


def a_clients_block(connection: Any) -> AbstractContextManager[Any]:
    return connection.connection.transaction()  # type: ignore[no-any-return]


def a_pipeline(connection: Any) -> AbstractContextManager[Any]:
    return connection.connection.pipeline()  # type: ignore[no-any-return]


@contextmanager
def another_encoding(connection: Any) -> Iterator[None]:
    execute(connection.alias, "SET LOCAL client_encoding TO 'LATIN1'")
    yield


def a_client_without_lock(connection: Any) -> AbstractContextManager[Any]:
    return with_attribute(unawaited, "takes_its_lock", lambda connection: False)


def no_psycopg(connection: Any) -> AbstractContextManager[Any]:
    return with_attribute(unawaited, "Database", None)


WATCHED = (
    *(wrapped, captured, shared, a_savepoint, another_rollback, another_cursor, another_backend, another_client),
    *(another_factory, traced, a_pipeline, another_encoding, a_client_without_lock, no_psycopg, a_clients_block),
)


@each_of_psycopg
@pytest.mark.parametrize("watch", WATCHED, ids=lambda watch: watch.__name__)
def test_where_it_is_waited_for(alias: str, watch: Callable[[Any], AbstractContextManager[Any]]) -> None:
    """Whoever has a hand in a connection's statements sees this one, too."""
    row = a_row()

    with in_a_transaction(alias) as connection, watch(connection):
        write(alias, row)
        assert isinstance(row.written, int)

    assert ["tests.nobody"] == written(alias)


@each_of_psycopg
def test_first_statement_of_a_transaction(alias: str) -> None:
    """It is the one that begins it; past the client it would be committed by itself."""
    row = a_row()
    with in_a_transaction(alias) as connection:  # which may have to be tried once
        assert module.takes_its_lock(connection)

    with suppress(Boom), transaction.atomic(using=alias):
        write(alias, row)
        raise Boom

    assert isinstance(row.written, int)
    assert [] == written(alias)


@each_of_psycopg
@pytest.mark.parametrize("block", [nullcontext, partial(transaction.atomic, using=ALIAS, savepoint=False)])
@pytest.mark.parametrize("autocommit", [True, False])
def test_outside_of_a_block_that_commits(alias: str, autocommit: bool, block: Any) -> None:
    """Of what commits then nobody tells."""
    connection, row = connections[alias], a_row()
    begin(alias)
    connection.set_autocommit(autocommit)
    try:
        begin(alias)
        with nullcontext() if autocommit else block():
            write(alias, row)
        connection.commit() if not autocommit else None
    finally:
        connection.set_autocommit(True)

    assert isinstance(row.written, int)
    assert ["tests.nobody"] == written(alias)


@each_of_psycopg
def test_transaction_that_is_broken(alias: str) -> None:
    """It is refused at once, as Django refuses any statement."""
    with in_a_transaction(alias) as connection:
        connection.needs_rollback = True
        with pytest.raises(transaction.TransactionManagementError):
            write(alias, a_row())

    with refused(Error), in_a_transaction(alias):
        with suppress(Error):
            execute(alias, "SELECT 1 / 0")
        write(alias, a_row())

    assert [] == written(alias)


@each_of_psycopg
@pytest.mark.parametrize(
    ("payload", "error"), [("a\0b", (ValueError, DataError)), ("\ud800", UnicodeEncodeError)], ids=["zero", "torn"]
)
def test_text_that_no_database_keeps(alias: str, payload: str, error: Any) -> None:
    """The client refuses it, at once."""
    with pytest.raises(error), in_a_transaction(alias):
        write(alias, a_row(payload=payload))

    assert [] == written(alias)


class Without(ModuleType):
    """Django's backend where there is no client for it, or one that is too old."""

    def __getattr__(self, name: str) -> Any:
        raise ImproperlyConfigured


def of_another_client() -> ModuleType:
    """Return Django's backend where it is another client's, such as psycopg2's."""
    module = ModuleType("another")
    vars(module).update(Database=ModuleType("client"))
    return module


@pytest.mark.parametrize("backend", [Without("without"), of_another_client()], ids=lambda backend: backend.__name__)
def test_without_psycopg(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project without it, or with one that is built differently, waits."""
    connection = connections[ALIAS]  # which Django makes of the backend there is
    monkeypatch.setitem(sys.modules, "django.db.backends.postgresql.base", backend)
    monkeypatch.setattr(postgresql, "base", backend)
    spec = spec_from_file_location("django_celery_signals.durable._copy", unawaited.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = module_from_spec(spec)
    spec.loader.exec_module(copy)

    assert copy.executed(connection, "", [], print) is None


# What comes in between -----------------------------------------------------------------------------------------------


@each_of_psycopg
def test_key_before_the_connection_was_used(alias: str) -> None:
    """Who asks for the key waits, as a test does that runs what is to follow a commit."""
    row = a_row()

    with in_a_transaction(alias):
        write(alias, row)
        assert row.pk
        assert not is_under_way(alias)

    assert deliveries(alias).get().pk == row.pk


@each_of_psycopg
def test_answer_that_is_lost(alias: str) -> None:
    """Who goes past psycopg takes the answer along; the row is there, and its key is not known."""
    row = a_row()

    with in_a_transaction(alias) as connection:
        write(alias, row)
        connection.connection.pgconn.exec_(b"SELECT 1")

    with pytest.raises(InterfaceError, match="past psycopg"):
        row.pk  # noqa: B018
    assert ["tests.nobody"] == written(alias)


def cut_off(client: Any, error: Exception, *, heard: bool) -> AbstractContextManager[Any]:
    """Interrupt a client's first wait, before or after it has heard the server."""
    wait, errors = client.wait, iter([error])

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        for one in errors:
            if heard:
                wait(*args, **kwargs)
            raise one
        return wait(*args, **kwargs)

    return with_attribute(client, "wait", interrupted)


@each_of_psycopg
def test_time_limit_after_the_refusal_was_heard(alias: str) -> None:
    """Who swallows the time limit commits nothing, and is told."""
    with refused(InternalError) as raised, in_a_transaction(alias) as connection:
        write(alias, a_row(state=REFUSED))
        with cut_off(connection.connection, Boom("time is up"), heard=True), suppress(Boom):
            begin(alias)

    assert ["tests.nobody"] == notes(raised.value)
    assert [] == written(alias)


@each_of_psycopg
def test_time_limit_after_the_answer_was_heard(alias: str) -> None:
    """The row is there, and its key is not known."""
    row = a_row()

    with in_a_transaction(alias) as connection:
        write(alias, row)
        with cut_off(connection.connection, Boom("time is up"), heard=True), suppress(Boom):
            begin(alias)

    with pytest.raises(InterfaceError, match="time limit"):
        row.pk  # noqa: B018
    assert ["tests.nobody"] == written(alias)


@each_of_psycopg
@pytest.mark.parametrize("heard", [False, True])
def test_time_limit_at_the_commit(alias: str, heard: bool) -> None:
    """Nothing is committed, and what comes next is in a transaction of its own."""
    connection: Any = connections[alias]
    connection.ensure_connection()

    with ExitStack() as limit, refused(Boom), in_a_transaction(alias):
        write(alias, a_row())
        limit.enter_context(cut_off(connection.connection, Boom("time is up"), heard=heard))

    assert [] == written(alias)
    assert connection.get_autocommit()
    with in_a_transaction(alias):
        write(alias, a_row("tests.next"))
    assert ["tests.next"] == written(alias)


@each_of_psycopg
def test_time_limit_while_it_is_waited_for(alias: str) -> None:
    """Whoever is interrupted leaves the wait to the next."""
    row = a_row()

    with in_a_transaction(alias) as connection:
        write(alias, row)
        with cut_off(connection.connection, Boom("time is up"), heard=False):
            with pytest.raises(Boom):
                begin(alias)
            assert is_under_way(alias)
            begin(alias)

    assert deliveries(alias).get().pk == row.pk


def close(alias: str, closed_by: str) -> None:
    """Send something in a transaction whose connection is closed."""
    with suppress(Error), in_a_transaction(alias) as connection:
        write(alias, a_row())
        connection.close() if closed_by == "Django" else connection.connection.close()
        with pytest.raises(Error):
            begin(alias)


@each_of_psycopg
@pytest.mark.parametrize("closed_by", ["Django", "the client"])
def test_connection_that_is_closed(alias: str, closed_by: str) -> None:
    """Nothing is committed, and who uses the connection is told."""
    elsewhere(lambda: close(alias, closed_by))

    assert [] == written(alias)


def lose(alias: str, when: str) -> None:
    """Send something in a transaction whose connection the server ends."""
    table = deliveries(alias).model._meta.db_table
    locking = other_transaction(alias, lambda: execute(alias, f"LOCK TABLE {table}"))

    with locking if when == "meanwhile" else nullcontext(), in_a_transaction(alias) as connection:
        pid = connection.connection.info.backend_pid
        end_it = partial(execute, alias, f"SELECT pg_terminate_backend({pid}, 5000)")
        if when == "before":
            elsewhere(end_it)
        write(alias, a_row())
        if when == "afterwards":
            assert connection.connection.pgconn.get_result()
        if when != "before":
            elsewhere(end_it)


@each_of_psycopg
@pytest.mark.parametrize("when", ["before", "meanwhile", "afterwards"])
def test_connection_that_is_lost(alias: str, when: str) -> None:
    """What the database has not committed is gone, and the commit says so."""
    with pytest.raises(OperationalError):
        elsewhere(lambda: lose(alias, when))

    assert [] == written(alias)


@each_of_psycopg
def test_notification_meanwhile(alias: str) -> None:
    """What the database says meanwhile is heard by whoever listens."""
    heard: list[str] = []
    execute(alias, "LISTEN dcs")
    connections[alias].connection.add_notify_handler(lambda told: heard.append(told.payload))

    with in_a_transaction(alias):
        write(alias, a_row())
        elsewhere(partial(execute, alias, "NOTIFY dcs, 'a'"))
    begin(alias)
    connections[alias].close()

    assert ["a"] == heard
