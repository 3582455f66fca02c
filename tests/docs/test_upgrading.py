"""The page about upgrading: what the code of before has sent, and what the code of after does with it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from celery import Celery
from django.core.management import call_command
from django.db import connection, transaction
from django.db.migrations import AddField, AddIndex, AlterField, AlterModelOptions, CreateModel, RemoveIndex
from django.db.migrations.loader import MigrationLoader
from django.db.models import F, Value
from django.db.models.functions import Replace
from django.db.models.signals import post_save
from django.dispatch import Signal

from django_celery_signals import ReceiverTask, connect, declaring, disconnect, names
from django_celery_signals.checks.databases import check_rows
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.rows import State
from tests.docs.pages import PROMPT, block_with, page_of
from tests.drain import Published, take
from tests.lanes import Stage
from tests.shop.models import Customer, Order

UPGRADING = page_of("docs/upgrading.md")
APP = "django_celery_signals"
SPENDING, BOOK, NOTIFY = "shop.receivers.update_spending", "shop.receivers.book", "shop.receivers.notify"

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass(kw_only=True)
class Code:
    """The code of before and what it has sent; then it ends, and another version is deployed."""

    stage: Stage
    app: Celery
    undo: list[Callable[[], Any]] = field(default_factory=list)
    messages: list[Published] = field(default_factory=list)  # that are in the broker

    def declare(
        self, name: str, signal: Signal, function: Callable[..., Any], *, sender: Any = None, **options: Any
    ) -> Any:
        """Declare a receiver under a name, with options of sending and of running."""
        function.__name__ = "receiver"
        declaring._by_name.pop(name, None)  # what a page has declared
        own = {
            option: options.pop(option) for option in ("guarantee", "key", "queue", "countdown") if option in options
        }
        task = self.app.task(name=name, base=ReceiverTask, **options)(function)
        connect(signal, task, sender=sender, **own)
        self.undo.append(lambda: disconnect(signal, task, sender=sender))
        self.undo.append(lambda: self.app._tasks.pop(name, None))  # type: ignore[attr-defined]
        return task

    def send(self, act: Callable[[], Any]) -> None:
        """Send twice: one message gets into the broker, and one row is left to the relay."""
        act()
        self.messages = self.stage.take()
        act()
        self.stage.take()
        newest = self.stage.rows().latest("pk").pk
        self.stage.rows(pk=newest).update(state=State.READY, due_at=In(-1))
        assert (1, 2) == (len(self.messages), self.stage.rows().count())

    def end(self) -> None:
        """Stop it: what is sent from now on is another version's."""
        while self.undo:
            self.undo.pop()()

    def arrive(self) -> list[str]:
        """Let the workers of now run what was sent before; return what becomes of the tasks."""
        states = [self.stage.run(message) for message in self.messages]
        self.stage.relay()
        return states + [self.stage.run(message) for message in self.stage.take()]


@pytest.fixture
def code(stage: Stage, celery_app: Celery, settings: Any) -> Iterator[Code]:
    settings.DJANGO_CELERY_SIGNALS = {}
    made = Code(stage=stage, app=celery_app)
    yield made
    made.end()
    for name in (SPENDING, BOOK, NOTIFY):
        declaring._by_name.pop(name, None)


def saved() -> None:
    with transaction.atomic():
        customer = Customer.objects.first() or Customer.objects.create(name="Ada")
        Order.objects.create(customer=customer)


def missing() -> list[str]:
    """Return what ``manage.py check --database`` says of the rows' receivers."""
    return [message.msg for message in check_rows(["default"])]


@pytest.mark.parametrize("way", ["former names", "name"])
def test_renamed(page: Any, code: Code, capsys: pytest.CaptureFixture[str], way: str) -> None:
    """Rows and messages of the old name run the function of the new one, or the one that has kept the name."""
    blocks = {
        "former names": block_with(UPGRADING, "former_names=["),
        "name": block_with(UPGRADING, "sender=Order, name="),
    }
    code.declare(SPENDING, post_save, lambda instance: None, sender=Order)
    code.send(saved)
    code.end()
    code.declare(NOTIFY, Signal(), lambda: None)  # what else there is
    [warning] = missing()
    assert f"for {SPENDING}, but the Celery app has no such task" in warning

    page(blocks[way], "shop.spending")
    assert [] == missing()
    assert ["SUCCESS"] * 2 == code.arrive()
    said = f"the spending of customer {Customer.objects.get().pk} is refreshed\n"
    assert (2 * said, 0) == (capsys.readouterr().out, code.stage.rows().count())


def test_moved(page: Any, code: Code) -> None:
    """What is left of a receiver is counted by the name that it had, and nothing is in the end."""
    code.declare(SPENDING, post_save, lambda instance: None, sender=Order)
    code.send(saved)
    code.end()
    count = block_with(UPGRADING, "filter(receiver=")
    assert 2 == page(count, "shop.left")["left"]

    page(block_with(UPGRADING, "former_names=["), "shop.moved")
    code.arrive()
    assert 0 == page(count, "shop.left")["left"]


def test_nothing_is_left(code: Code, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing is under way the command says what the page shows."""
    [(words, answer)] = [found for found in PROMPT.findall(UPGRADING) if "status" in found[0]]
    call_command(*words.split(), database=["default"])

    assert answer == capsys.readouterr().out


def test_a_parameter_more(page: Any, code: Code, capsys: pytest.CaptureFixture[str]) -> None:
    """A row of before runs a function that has one parameter more, with a default."""
    paid = Signal()
    code.declare(BOOK, paid, lambda order_id, amount: None)
    code.send(lambda: paid.send(sender=None, order_id=5, amount=20))
    code.end()
    page(block_with(UPGRADING, "def book(order_id, amount, currency="), "shop.receivers")

    assert ["SUCCESS"] * 2 == code.arrive()
    assert 2 * "order 5: 20 EUR\n" == capsys.readouterr().out


def test_a_parameter_that_is_required(code: Code) -> None:
    """A row that does not have what the function requires is tried again, and says what is missing."""
    paid = Signal()
    code.declare(BOOK, paid, lambda order_id: None)
    code.send(lambda: paid.send(sender=None, order_id=5))
    code.end()
    code.declare(BOOK, paid, lambda order_id, currency: None)

    assert ["RETRY"] * 2 == code.arrive()
    row = code.stage.rows().first()
    assert (State.READY, 1) == (row.state, row.attempts)
    assert "missing 1 required positional argument: 'currency'" in row.error_message


def test_what_is_the_senders(code: Code) -> None:
    """Queue and countdown are those of the sending; how often it is tried is what the code of the run says."""
    bell, tries = Signal(), []

    def fail() -> None:
        tries.append(True)
        raise ValueError

    code.declare(NOTIFY, bell, fail, countdown=60, queue="mail", max_retries=5)
    bell.send(sender=None)
    code.end()
    code.declare(NOTIFY, bell, fail, max_retries=0)
    assert 0 == code.stage.relay()
    code.stage.relay_later()
    [message] = take(code.app, "mail")
    code.stage.run(message)

    assert (1, State.FAILED) == (len(tries), code.stage.rows().get().state)


def test_a_new_receiver_that_is_paused(code: Code, capsys: pytest.CaptureFixture[str]) -> None:
    """Deliveries of a paused receiver wait where nobody knows its task, without being tried, and run after that."""
    [(pausing, answer)] = [found for found in PROMPT.findall(UPGRADING) if "pause" in found[0]]
    bell, seen = Signal(), []
    code.declare(NOTIFY, bell, lambda number: seen.append(number))
    call_command(*pausing.split(), database=["default"])
    assert answer == capsys.readouterr().out
    code.send(lambda: bell.send(sender=None, number=5))
    task = code.app._tasks.pop(NOTIFY)  # type: ignore[attr-defined]  # as in a relay of the code of before
    assert 0 == code.stage.relay()
    code.app._tasks[NOTIFY] = task  # type: ignore[attr-defined]
    assert {0} == {row.reruns for row in code.stage.rows()}

    code.stage.run(code.messages[0])  # which a worker of the new code has got
    assert ([], {State.PAUSED}) == (seen, {row.state for row in code.stage.rows()})
    call_command("signals", "resume", NOTIFY, database=["default"])
    assert (2, 2) == (code.stage.relay(), code.stage.work())
    assert [5, 5] == seen


def test_removed(page: Any, code: Code) -> None:
    """A stub of the receiver's name ends what is still under way."""
    bell = Signal()
    code.declare(NOTIFY, bell, lambda: None)
    code.send(lambda: bell.send(sender=None))
    code.end()
    page(block_with(UPGRADING, "def notify(**kwargs)"), "shop.receivers")

    assert ["IGNORED"] * 2 == code.arrive()
    assert 0 == code.stage.rows().count()


def test_what_waits_and_is_not_wanted(page: Any, code: Code) -> None:
    """What waits for a receiver can be deleted; what runs and what has failed stays, and so does another receiver's."""
    bell = Signal()
    for name in (NOTIFY, BOOK):
        code.declare(name, bell, lambda: None)
    for _ in range(6):
        bell.send(sender=None)
    rows = code.stage.rows(receiver=NOTIFY)
    for state, pk in zip(State, rows.values_list("pk", flat=True), strict=True):
        rows.filter(pk=pk).update(state=state)
    page(block_with(UPGRADING, "state__in=waiting"), "shop.cleaning")

    assert {State.RUNNING, State.FAILED, State.DONE} == {row.state for row in rows.all()}
    assert 6 == code.stage.rows(receiver=BOOK).count()


def test_a_model_that_was_renamed(page: Any, code: Code) -> None:
    """A row about a model that is gone fails and is kept; rewritten by the migration, it runs, and so does a retry."""
    seen: list[Any] = []
    code.declare(SPENDING, post_save, lambda sender, instance: seen.append((sender, instance)), sender=Order)
    code.send(saved)
    code.stage.rows().update(payload=Replace(F("payload"), Value('"shop.Order"'), Value('"shop.Bill"')))
    assert "FAILURE" == code.stage.run(code.messages[0])
    [row] = code.stage.rows(state=State.FAILED)
    assert ("django_celery_signals.exceptions.DecodeError", True) == (row.error_type, bool(row.payload))

    migration = page(block_with(UPGRADING, "def rewrite("), "shop.migrations.rename_bill")
    with connection.schema_editor() as editor:
        migration["Migration"].operations[0].code(None, editor)
    call_command("signals", "retry", "--error", "DecodeError", "--database", "default")
    assert (2, 2) == (code.stage.relay(), code.stage.work())
    assert [(Order, order) for order in Order.objects.order_by("pk")] == sorted(seen, key=lambda found: found[1].pk)


def test_a_signal_that_has_moved(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the old module still has the signal it is found; else the receiver gets one that says which it was."""
    paid, seen = Signal(), []
    old, new = ModuleType("shop.signals_of_before"), ModuleType("shop.events_of_now")
    old.paid = paid  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, old.__name__, old)
    code.declare(BOOK, paid, lambda signal: seen.append(signal))
    code.send(lambda: paid.send(sender=None))
    assert "shop.signals_of_before:paid" == json.loads(code.stage.rows().first().payload)["signal"]

    monkeypatch.setitem(sys.modules, new.__name__, new)
    new.paid = old.paid = Signal()  # type: ignore[attr-defined]
    assert "SUCCESS" == code.stage.run(code.messages[0])
    monkeypatch.delitem(sys.modules, old.__name__)
    code.messages = []
    assert ["SUCCESS"] == code.arrive()
    assert (new.paid, names.UnknownSignal) == (seen[0], type(seen[1]))
    assert "shop.signals_of_before:paid" in repr(seen[1])


@pytest.mark.parametrize(("was", "now"), [("durable", "on_commit"), ("on_commit", "durable"), ("durable", "immediate")])
def test_another_guarantee(code: Code, was: str, now: str) -> None:
    """What was sent under one guarantee is run when the receiver has another."""
    bell, seen = Signal(), []
    code.declare(NOTIFY, bell, lambda number: seen.append(number), guarantee=was)
    bell.send(sender=None, number=1)
    code.end()
    code.declare(NOTIFY, bell, lambda number: seen.append(number), guarantee=now)
    bell.send(sender=None, number=2)

    assert (2, [1, 2], 0) == (code.stage.work(), seen, code.stage.rows().count())


def test_another_key(code: Code) -> None:
    """Deliveries with the old key go on in their order, and those with the new one in theirs, beside them."""
    step, seen = Signal(), []

    def declare(key: Callable[..., Any]) -> None:
        code.declare(BOOK, step, lambda number: seen.append(number), key=key, ordered=True)

    declare(lambda number: "a")
    for number in (1, 2, 3):
        step.send(sender=None, number=number)
    code.end()
    declare(lambda number: "b")
    for number in (11, 12):
        step.send(sender=None, number=number)
    first = code.stage.take()
    assert 2 == len(first)
    for message in first:
        code.stage.run(message)
    assert [1, 11] == seen
    code.stage.work()

    assert ([1, 2, 3], [11, 12]) == ([one for one in seen if one < 10], [one for one in seen if one > 10])


def test_another_queue(page: Any, code: Code) -> None:
    """A queue that the connection named stays that of the row; one of a route is looked up when it is published."""
    bell = Signal()
    count = block_with(UPGRADING, "options__queue=")
    code.declare(NOTIFY, bell, lambda: None, queue="mail", countdown=60)
    code.declare(BOOK, bell, lambda: None, countdown=60)
    bell.send(sender=None)
    code.end()
    code.declare(NOTIFY, bell, lambda: None, queue="newsletter")
    code.declare(BOOK, bell, lambda: None)
    code.app.conf.task_routes = {BOOK: {"queue": "books"}}
    code.app.__dict__.pop("amqp", None)
    assert 1 == page(count, "shop.left")["left"]

    assert 2 == code.stage.relay_later()
    assert [[NOTIFY], [], [BOOK]] == [
        [message.task for message in take(code.app, queue)] for queue in ("mail", "newsletter", "books")
    ]


def test_what_a_row_holds(code: Code) -> None:
    """A row's payload is plain JSON of the library's own, of version 1, and names what it is about as the page says."""
    code.declare(SPENDING, post_save, lambda instance: None, sender=Order)
    code.send(saved)
    row = code.stage.rows().first()
    body = json.loads(row.payload)

    assert (SPENDING, SPENDING, 1) == (row.receiver, body["receiver"], body["version"])
    assert ("django.db.models.signals:post_save", "shop.Order") == (body["signal"], body["objects"][0]["model"])
    assert {"instance", "created", "raw", "using", "update_fields"} == {name for name, _ in body["kwargs"]}


def test_what_migrations_change() -> None:
    """Since the first one, no migration has changed a column of the table of deliveries; new ones need no value."""
    numbers = ("0002_pause", "0003_minute", "0004_permissions", "0005_lineage")
    operations = {number: import_module(f"{APP}.migrations.{number}").Migration.operations for number in numbers}
    found = {
        number: [(type(one), getattr(one, "name", None) or getattr(one, "model_name", None)) for one in own]
        for number, own in operations.items()
    }
    assert {
        "0002_pause": [
            (CreateModel, "Pause"),
            (AlterField, "state"),
            (RemoveIndex, "dcs_delivery_failed"),
            (AddIndex, "delivery"),
        ],
        "0003_minute": [(CreateModel, "Minute")],
        "0004_permissions": [(AlterModelOptions, "delivery")],
        "0005_lineage": [
            (AddField, "depth"),
            (AddField, "parent_id"),
            (AddField, "root_id"),
            (AddIndex, "delivery"),
            (AddIndex, "delivery"),
        ],
    } == found
    there = {name for app, name in MigrationLoader(None).disk_migrations if app == APP}
    assert {"0001_initial", *numbers} == there
    added = [one.field for one in operations["0005_lineage"] if isinstance(one, AddField)]
    assert [True] * 3 == [one.null or one.has_db_default() for one in added]
    indexes = {one.index.name for own in operations.values() for one in own if isinstance(one, AddIndex)}
    assert indexes == set(re.findall(r"`(dcs_delivery_\w+)`", UPGRADING))
    with connection.schema_editor(collect_sql=True) as editor:  # what it says of the column is which states there are
        state = MigrationLoader(connection).project_state((APP, "0001_initial"))
        after = state.clone()
        operation = operations["0002_pause"][1]
        operation.state_forwards(APP, after)
        operation.database_forwards(APP, editor, state, after)
    assert [] == [line for line in editor.collected_sql if "ALTER" in line]
