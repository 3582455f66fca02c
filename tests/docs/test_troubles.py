"""The page about troubles: what others say is said as it stands there, and the remedy is one."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from billiard.pool import Pool
from celery import Celery, shared_task
from celery.worker.consumer.consumer import UNKNOWN_TASK_ERROR
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, IntegrityError, OperationalError, ProgrammingError, connections, transaction
from django.db.models.signals import post_save
from django.db.transaction import TransactionManagementError
from django.dispatch import Signal
from kombu.exceptions import ContentDisallowed, EncodeError
from kombu.serialization import dumps, loads

from django_celery_signals import DeliveryRefused, PublishError
from django_celery_signals.durable.rows import State
from django_celery_signals.durable.trouble import is_transient
from django_celery_signals.models import Delivery
from tests.docs.pages import ROOT, block_with, page_of
from tests.elsewhere import execute
from tests.lanes import Stage
from tests.parameters import each_database
from tests.project.celery import configure
from tests.receiving import Receiving
from tests.shop.models import Customer, Order, Tag

TROUBLES = page_of("docs/troubleshooting.md")
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def ordinary(celery_app: Celery) -> Iterator[Callable[..., Any]]:
    """Make a function an ordinary shared task; connect it, or not."""
    made: list[Any] = []

    def make(function: Any, **options: Any) -> Any:
        task = shared_task(name=f"tests.docs.ordinary_{len(made)}", **options)(function)
        made.append(task)
        return task

    yield make
    for task in made:
        post_save.disconnect(task.delay, sender=Tag)
        celery_app._tasks.pop(task.name, None)  # type: ignore[attr-defined]


def function_of(*names: str) -> Any:
    """Return a function with these parameters."""
    space: dict[str, Any] = {}
    exec(f"def function({', '.join(names)}): pass", space)
    return space["function"]


def quoted(words: str) -> bool:
    """Tell whether a heading of the page has some words."""
    return any(words in heading for heading in re.findall(r"^## (.*)$", TROUBLES, re.MULTILINE))


def said(error: BaseException, words: str) -> bool:
    """Tell whether an error says what a heading of the page says of it."""
    return quoted(words) and words in f"{type(error).__name__}: {error}"


def test_weak_reference(ordinary: Any) -> None:
    """Django cannot hold a shared task weakly."""
    task = ordinary(function_of("tag"))
    with pytest.raises(TypeError) as error:
        post_save.connect(task, sender=Tag)
    assert said(error.value, "cannot create weak reference to 'Proxy' object")


def test_keyword_arguments(ordinary: Any, settings: Any) -> None:
    """In debug mode Django looks at the proxy's signature first."""
    settings.DEBUG = True
    with pytest.raises(ValueError, match="Signal receivers must accept") as error:
        post_save.connect(ordinary(function_of("tag")), sender=Tag)
    assert said(error.value, "Signal receivers must accept keyword arguments (**kwargs).")


@pytest.mark.django_db
def test_not_serializable(ordinary: Any) -> None:
    """An ordinary task that is connected, or called with an instance, is given what JSON does not know."""
    post_save.connect(ordinary(function_of("**kwargs")).delay, sender=Tag)
    with pytest.raises(EncodeError) as error:
        Tag.objects.create(name="red")
    assert re.fullmatch(r"Object of type \w+ is not JSON serializable", str(error.value))
    assert quoted("Object of type … is not JSON serializable")
    assert quoted("kombu.exceptions.EncodeError")

    with pytest.raises(EncodeError, match="Object of type Customer is not JSON serializable"):
        ordinary(function_of("customer")).delay(Customer(name="Ada"))


@pytest.mark.django_db
def test_unexpected_arguments(ordinary: Any) -> None:
    """An ordinary task with parameters of its own is refused the signal's, and what an event carries."""
    task = ordinary(function_of("tag_pk"))
    post_save.connect(task.delay, sender=Tag)
    with pytest.raises(TypeError) as error:
        Tag.objects.create(name="red")
    assert said(error.value, "got an unexpected keyword argument 'signal'")

    result = task.apply(kwargs={"__event__": {}})
    assert said(result.result, "got an unexpected keyword argument '__event__'")


def test_refused_content() -> None:
    """A worker that takes JSON refuses what was pickled."""
    kind, encoding, body = dumps({}, serializer="pickle")
    with pytest.raises(ContentDisallowed) as error:
        loads(body, kind, encoding, accept=["json"])
    assert said(error.value, "Refusing to deserialize")


def test_words_of_celery() -> None:
    """What Celery's worker and its pool say is what the page quotes."""
    assert quoted("Received unregistered task of type")
    assert "Received unregistered task of type" in UNKNOWN_TASK_ERROR
    assert quoted("`WorkerLostError`")
    assert "WorkerLostError" == WorkerLostError.__name__
    source = Path(sys.modules[Pool.__module__].__file__ or "").read_text()
    assert "Worker exited prematurely" in TROUBLES
    assert "Worker exited prematurely" in source


@pytest.mark.django_db(transaction=True)
def test_matching_query(celery_app: Celery, receiving: Receiving, stage: Stage, settings: Any) -> None:
    """A row that the receiver looks for by itself, and that is gone, is an error like any other."""
    settings.DJANGO_CELERY_SIGNALS = {}
    placed = Signal()

    def confirm(order_pk: int) -> None:
        Order.objects.get(pk=order_pk)

    receiving(placed, confirm)
    placed.send(sender=Order, order_pk=5)
    [message] = stage.take()
    assert "RETRY" == stage.run(message)
    row = stage.rows().get()
    assert (State.READY, 1) == (row.state, row.attempts)
    assert quoted("matching query does not exist")
    assert "Order matching query does not exist." == row.error_message


TABLES = {
    "sqlite": "no such table: {}",
    "postgresql": 'relation "{}" does not exist',
    "mysql": ".{}' doesn't exist",
}


@each_database
def test_words_of_a_missing_table(alias: str) -> None:
    """Each database says of a missing table what the page quotes."""
    words = TABLES[connections[alias].vendor]
    with pytest.raises(DatabaseError) as error, transaction.atomic(using=alias):
        execute(alias, "SELECT * FROM nothing_of_that_name")

    assert isinstance(error.value, (OperationalError, ProgrammingError))
    assert words.format("nothing_of_that_name") in str(error.value)
    assert (
        words.format("django_celery_signals_") in TROUBLES or words.format("django_celery_signals_delivery") in TROUBLES
    )


@each_database("postgres")
def test_aborted(alias: str, receiving: Receiving) -> None:
    """On PostgreSQL an error that is caught within a transaction makes the rest of it fail, a sending too."""
    bell = Signal()
    receiving(bell, guarantee="durable")

    def go_on() -> None:
        with transaction.atomic(using=alias):
            with suppress(DatabaseError), connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1 / 0")
            bell.send(sender=None, using=alias)

    with pytest.raises(DatabaseError) as error:
        go_on()
    assert said(error.value, "current transaction is aborted")


@each_database("postgres")
@pytest.mark.parametrize("swallowed", [False, True])
def test_delivery_that_is_refused(alias: str, swallowed: bool, receiving: Receiving) -> None:
    """On PostgreSQL it is what comes next that fails, and the note says why; if that is swallowed, the block does."""
    bell = Signal()
    receiving(bell, guarantee="durable")
    table = Delivery._meta.db_table

    def send() -> None:
        with transaction.atomic(using=alias):
            Tag.objects.using(alias).create(name="a")
            bell.send(sender=None, using=alias)
            with suppress(DatabaseError) if swallowed else nullcontext():
                Tag.objects.using(alias).create(name="b")

    execute(alias, f"ALTER TABLE {table} ADD CONSTRAINT dcs_none CHECK (false) NOT VALID")
    try:
        with pytest.raises(DeliveryRefused if swallowed else IntegrityError) as error:
            send()
    finally:
        execute(alias, f"ALTER TABLE {table} DROP CONSTRAINT dcs_none")

    assert swallowed == ("The transaction was rolled back" in str(error.value))
    cause: Any = error.value.__cause__
    assert "django_celery_signals was writing the delivery for" in cause.__notes__[0]
    assert [] == list(Tag.objects.using(alias).all())
    assert quoted("django_celery_signals was writing the delivery for")


@pytest.mark.django_db(transaction=True)
def test_broken_block(receiving: Receiving) -> None:
    """An error that is caught within an atomic block makes Django refuse the rest of it, a sending too."""
    bell = Signal()
    receiving(bell, guarantee="durable")
    Tag.objects.create(pk=1, name="red")

    def go_on() -> None:
        with transaction.atomic():
            with suppress(IntegrityError):
                Tag(pk=1).save(force_insert=True)
            bell.send(sender=None)

    with pytest.raises(TransactionManagementError) as error:
        go_on()
    assert said(error.value, "You can't execute queries until the end of the 'atomic' block")
    assert quoted("`TransactionManagementError`")


@pytest.mark.django_db(transaction=True)
def test_savepoint(page: Any, receiving: Receiving, stage: Stage, settings: Any) -> None:
    """With the page's savepoint the transaction goes on after the error, and so does a sending."""
    named = page(block_with(TROUBLES, "def named(name)"))["named"]
    bell = Signal()
    receiving(bell)
    first = Tag.objects.create(pk=1, name="red")
    with transaction.atomic():
        assert first == named("red")
        bell.send(sender=None)
    assert 1 == stage.rows().count()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("40P01", "deadlock detected"),
        (1213, "Deadlock found when trying to get lock"),
        (2013, "Lost connection to MySQL server"),
        (2006, "server has gone away"),
    ],
)
def test_words_of_the_moment(code: Any, text: str) -> None:
    """Deadlocks and lost connections are known by their numbers, and run again."""
    error, cause = OperationalError(text), Exception(*([code] if type(code) is int else []), text)
    cause.sqlstate = code  # type: ignore[attr-defined]
    error.__cause__ = cause

    assert quoted(f"`{text}`")
    assert is_transient(error)


def test_locked(tmp_path: Path) -> None:
    """On SQLite a transaction that has read and then writes fails at once; one that begins with the lock does not."""
    one, other = (sqlite3.connect(tmp_path / "db", timeout=20, isolation_level=None) for _ in range(2))
    one.execute("PRAGMA journal_mode = WAL")
    one.execute("CREATE TABLE numbers (number)")
    other.execute("BEGIN")
    other.execute("SELECT * FROM numbers").fetchall()
    one.execute("INSERT INTO numbers VALUES (1)")  # after which the other could only write what it has not seen
    began = time.monotonic()
    with pytest.raises(sqlite3.OperationalError) as error:
        other.execute("INSERT INTO numbers VALUES (2)")
    assert time.monotonic() - began < 10  # its timeout is 20
    other.execute("ROLLBACK")
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO numbers VALUES (2)")
    other.execute("COMMIT")
    one.close()
    other.close()
    assert said(error.value, "database is locked")


@pytest.mark.django_db(transaction=True)
def test_from_a_coroutine(receiving: Receiving) -> None:
    """A durable sending straight from a coroutine is refused by Django; asend() is not."""
    bell = Signal()
    receiving(bell, guarantee="durable")

    async def send() -> None:
        bell.send(sender=None)

    with pytest.raises(SynchronousOnlyOperation) as error:
        asyncio.run(send())
    assert said(error.value, "SynchronousOnlyOperation")
    assert "You cannot call this from an async context" in str(error.value)
    assert "You cannot call this from an async context" in TROUBLES


def test_too_early() -> None:
    """A model that is imported before django.setup() is refused; a receiver whose sender is named is not."""
    names = "from django.db.models.signals import post_save\nfrom django_celery_signals import receiver_task\n"
    receiver = "@receiver_task(post_save, sender='shop.Order')\ndef note(instance): ...\n"
    refused, taken = (
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            capture_output=True,
            text=True,
            check=False,
        )
        for code in ("import tests.shop.models", names + receiver)
    )
    assert "AppRegistryNotReady: Apps aren't loaded yet." in refused.stderr
    assert quoted("AppRegistryNotReady")
    assert "Apps aren't loaded yet." in TROUBLES
    assert (0, "") == (taken.returncode, taken.stderr)


def test_refused_connection(receiving: Receiving, settings: Any) -> None:
    """A broker that is away raises PublishError under "immediate", with the system's words."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        configure({"broker_url": f"amqp://127.0.0.1:{free.getsockname()[1]}//"})
    bell = Signal()
    receiving(bell, guarantee="immediate")
    with pytest.raises(PublishError) as error:
        bell.send(sender=None)
    assert said(error.value, "Connection refused")


def slugs(text: str) -> set[str]:
    """Return the anchors that GitHub, and Sphinx like it, give the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES)
def test_anchors(path: str) -> None:
    """Every link into a page leads to a heading there."""
    text = page_of(path)
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", text)
    lost = [
        (page, anchor)
        for page, anchor in links
        if anchor not in slugs(((ROOT / path).parent / page).read_text() if page else text)
    ]
    assert [] == lost


def test_every_heading_is_listed() -> None:
    """The table of contents of the page has each of its headings once."""
    contents, _, _ = TROUBLES.partition("\n## ")
    headings = re.findall(r"^## (.*)$", TROUBLES, re.MULTILINE)
    listed = re.findall(r"^- \[(.*?)\]\(#", contents, re.MULTILINE | re.DOTALL)

    assert sorted(headings) == sorted(" ".join(one.split()) for one in listed)
