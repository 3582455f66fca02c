"""The documentation is true: its code runs, and everything public is in it."""

from __future__ import annotations

import ast
import logging
import logging.config
import re
import sys
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.signals import worker_init
from django.apps import apps
from django.core import mail
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db import connection, transaction
from django.db.migrations.state import ProjectState
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal
from django.test.utils import CaptureQueriesContext, isolate_apps
from opentelemetry import propagate, trace
from opentelemetry.context import attach, detach
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

import django_celery_signals
from django_celery_signals import (
    Relay,
    conf,
    context,
    deliveries,
    disconnect,
    exceptions,
    options,
    signals,
)
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import State
from django_celery_signals.event import Event
from django_celery_signals.management.commands.signals import Command
from django_celery_signals.observing import logs, opentelemetry, prometheus
from tests import shop
from tests.docs.pages import PROMPT, ROOT, block_with, blocks, page_of
from tests.drain import Published, drain, run, take
from tests.lanes import Stage, step
from tests.receiving import Receiving
from tests.saying import shown
from tests.shop import models
from tests.shop.models import Customer, Order, Tag, User

PACKAGE = ROOT / "src" / "django_celery_signals"
REFERENCE = page_of("docs/reference.md")
TROUBLES = page_of("docs/troubleshooting.md")
RECIPES = page_of("docs/recipes.md")
README = page_of("README.md")
TESTING = page_of("docs/testing.md")
CONTEXT = page_of("docs/context.md")
OBSERVABILITY = page_of("docs/observability.md")


# What Python, Django, Celery and the databases say; docs/troubleshooting.md has the remedies, test_troubles.py says it.
OTHERS = [
    "cannot create weak reference to 'Proxy' object",
    "Signal receivers must accept keyword arguments (**kwargs).",
    "Object of type … is not JSON serializable",
    "kombu.exceptions.EncodeError",
    "Refusing to deserialize",
    "got an unexpected keyword argument 'signal'",
    "got an unexpected keyword argument '__event__'",
    "Received unregistered task of type",
    "no such table: django_celery_signals_…",
    'relation "django_celery_signals_delivery" does not exist',
    "no such table",
    "relation … does not exist",
    "current transaction is aborted",
    "You can't execute queries until the end of the 'atomic' block",
    "deadlock detected",
    "Deadlock found when trying to get lock",
    "Lost connection to MySQL server",
    "server has gone away",
    "prepared statement … does not exist",
    "SynchronousOnlyOperation",
    "AppRegistryNotReady",
    "matching query does not exist",
    "WorkerLostError",
    "Connection refused",
    "PRECONDITION_FAILED … timed out",
]


MODELS = {"Customer": 4, "Tag": 2, "Order": 5}  # which the README shows -> fields, with the key


def repeated(app: Celery) -> Published:
    """Let what has failed be due, and return the message that the relay publishes of it."""
    deliveries("default").filter(state=State.READY).update(due_at=In(-1))
    assert 1 == Relay(app=app, databases=["default"]).once()
    [message] = take(app)
    return message


@pytest.mark.django_db(transaction=True)
def test_first_example(page: Any, celery_app: Celery) -> None:
    """The README's first receiver keeps the customer's total in a worker, and is a plain function in a unit test."""
    page(block_with(README, "@receiver_task(post_save, sender=Order)\ndef update_spending"), "shop.receivers")
    ada = Customer.objects.create(name="Ada")
    Order.objects.create(customer=ada, total=30)
    Order.objects.create(customer=ada, total=12)
    assert Customer.objects.get(pk=ada.pk).spent == 0
    assert deliveries("default").count() == 2
    drain(celery_app)
    assert Customer.objects.get(pk=ada.pk).spent == 42
    assert deliveries("default").count() == 0

    by_hand = page(block_with(README, "update_spending(sender=Order, instance=order)"), "shop.tests")
    assert Customer.objects.get(pk=by_hand["order"].customer_id).spent == 20


@pytest.mark.django_db
def test_in_tests(page: Any, celery_app: Celery, django_capture_on_commit_callbacks: Any) -> None:
    """Where nothing commits, the README's receiver runs in the test's process as the README says (H46)."""
    celery_app.conf.update(task_always_eager=True, task_eager_propagates=True)
    page(block_with(README, "@receiver_task(post_save, sender=Order)\ndef update_spending"), "shop.receivers")
    ada = Customer.objects.create(name="Ada")
    with django_capture_on_commit_callbacks(execute=True):
        Order.objects.create(customer=ada, total=30)
    assert (Customer.objects.get(pk=ada.pk).spent, deliveries("default").count()) == (30, 0)


@pytest.mark.django_db
def test_readme_in_tests(page: Any, celery_app: Celery) -> None:
    """The README's test passes, in a transaction that is never committed."""
    page(block_with(README, "@receiver_task(post_save, sender=Order)\ndef update_spending"), "shop.receivers")

    page(block_with(README, "from django_celery_signals.testing import"), "shop.tests")


@pytest.mark.django_db
def test_testing_page(page: Any, celery_app: Celery) -> None:
    """The tests of the page about tests pass, and would fail without the receiver."""
    code = page(block_with(README, "@receiver_task(post_save, sender=Order)\ndef update_spending"), "shop.receivers")
    cases = page(block_with(TESTING, "class SpendingTests"), "shop.tests")["SpendingTests"]

    def failed() -> list[str]:
        found = []
        for name in unittest.defaultTestLoader.getTestCaseNames(cases):
            with transaction.atomic():
                case = cases(name)
                case.setUp()
                try:
                    getattr(case, name)()
                except AssertionError:
                    found.append(name)
                transaction.set_rollback(True)
        return found

    assert [] == failed()
    disconnect(post_save, code["update_spending"], sender=Order)
    assert ["test_an_order_is_sent", "test_what_comes_of_it", "test_what_is_sent"] == failed()


@pytest.mark.django_db(transaction=True)
def test_first_example_without_a_worker(page: Any) -> None:
    """The README's receiver as it was before works as well, in the request."""
    update = page(block_with(README, "@receiver(post_save, sender=Order)"), "shop.receivers")["update_spending"]
    ada = Customer.objects.create(name="Ada")
    Order.objects.create(customer=ada, total=30)
    assert post_save.disconnect(update, sender=Order)
    assert Customer.objects.get(pk=ada.pk).spent == 30


def test_installed_apps(page: Any) -> None:
    """The README's settings name the app, and a broker that the library knows."""
    code = page(block_with(README, "INSTALLED_APPS"))
    assert code["INSTALLED_APPS"] == ["django_celery_signals"]
    assert "redis" == Celery(broker=code["CELERY_BROKER_URL"], set_as_current=False).connection().transport_cls


def test_models_block(page: Any) -> None:
    """The models that the README shows are those that its examples are run with: each field is one of the shop's."""
    with isolate_apps("tests.shop"):
        code = page(block_with(README, "class Customer(models.Model)"), "tests.shop.page")
        shown = {name: code[name]._meta.local_fields + code[name]._meta.local_many_to_many for name in MODELS}

    for name, fields_shown in shown.items():
        for field in fields_shown:
            _, kind, _, given = field.deconstruct()
            _, real, _, known = getattr(models, name)._meta.get_field(field.name).deconstruct()
            assert (kind, given) == (real, {key: known[key] for key in given})
    assert MODELS == {name: len(found) for name, found in shown.items()}


def test_only_the_decorator_changes() -> None:
    """The first example's two versions differ in one import and one decorator line."""
    before, after = (block.splitlines() for block in blocks(README)[:2])
    different = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert different == [
        ("from django.dispatch import receiver", "from django_celery_signals import receiver_task"),
        ("@receiver(post_save, sender=Order)", "@receiver_task(post_save, sender=Order)"),
    ]


@pytest.mark.django_db(transaction=True)
def test_literal_line(page: Any, celery_app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's literal line of 2011 runs the task in a worker."""
    code = page(block_with(README, "post_save.connect(index_order.delay, sender=Order)"))
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"))
    drain(celery_app)
    assert capsys.readouterr().out == f"Order {order.pk} is to be indexed\n"
    assert post_save.disconnect(code["index_order"].delay, sender=Order) is True


@pytest.mark.django_db(transaction=True)
def test_mail_example(page: Any, celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's e-mail carries the event's id as its Message-ID, at every attempt the same (H47)."""
    send = EmailMessage.send

    def send_and_break(message: EmailMessage) -> None:
        send(message)
        if len(mail.outbox) == 1:
            raise ConnectionResetError

    monkeypatch.setattr(EmailMessage, "send", send_and_break)
    page(block_with(README, "EmailMessage("))
    Order.objects.create(customer=Customer.objects.create(name="Ada", email="ada@example.org"))
    [message] = take(celery_app)
    run(celery_app, message)

    ids = [sent.extra_headers["Message-ID"] for sent in mail.outbox]
    assert ids == [f"<{message.headers['id']}@shop.example>"] * 2
    assert mail.outbox[0].to == ["ada@example.org"]
    assert deliveries("default").count() == 0


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_command_line(page: Any, celery_app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's failed delivery is listed as it says there, and runs after it was retried."""
    (listing, listed), (retrying, retried) = PROMPT.findall(README)
    receivers = page(
        block_with(README, "@receiver_task(post_save, sender=Order)\ndef update_spending"), "shop.receivers"
    )
    orders = receivers["Customer"].objects
    receivers["Customer"] = {}  # what the function asks for its `objects`
    Order.objects.create(customer=orders.create(name="Ada"), total=20)
    celery_app.tasks["shop.receivers.update_spending"].max_retries = 0
    drain(celery_app)

    call_command(*listing.split())
    said = capsys.readouterr().out
    assert words_of(listed) == words_of(said)
    receivers["Customer"] = Customer
    call_command(*retrying.split())
    assert capsys.readouterr().out.startswith(retried)  # and nothing in the other databases
    run(celery_app, repeated(celery_app))
    assert Customer.objects.get().spent == 20


def test_explained(page: Any, celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reference shows of explain is what it says of the README's receiver, on a terminal."""
    page(block_with(README, "@receiver_task(post_save, sender=Order)\ndef update_spending"), "shop.receivers")
    celery_app.conf.task_default_queue = "celery"
    prompt = re.compile(r"^\$ python manage\.py signals (explain .*)\n([^`]*)^```", re.MULTILINE)
    [(command, answer)] = prompt.findall(REFERENCE)

    said = shown(monkeypatch, 100, *command.split())
    assert answer == re.sub(r"Saves through .*?\n\n", "", said, flags=re.DOTALL)  # which only the tests' shop has


def words_of(line: str) -> list[str]:
    """Return the words of a line that are the same whenever and wherever it is written."""
    error = re.sub(r"\S+Error in", "an error in", line)
    return re.sub(r"\d+(?:[-:]\d+)*", "0", error).split()


@pytest.mark.django_db(transaction=True)
def test_options_example(page: Any, celery_app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's options choose the sendings, the queue, and the many-to-many actions."""
    page(block_with(README, "def tell_customer"))
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"), total=200)
    order.save()
    order.status = Order.Status.PAID
    order.save()
    order.status = Order.Status.SENT
    order.save()
    drain(celery_app)
    assert (
        capsys.readouterr().out == f"Order {order.pk} went from new to paid\nOrder {order.pk} went from paid to sent\n"
    )
    tag = Tag.objects.create(name="gift")
    order.tags.add(tag)
    drain(celery_app)
    assert capsys.readouterr().out == f"post_add on order {order.pk}: {{{tag.pk}}}\n"


@pytest.mark.django_db(transaction=True)
def test_keys_block(page: Any, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference's customer is booked on one by one, in the order of the commits."""
    pay = page(block_with(REFERENCE, "def book("))["pay"]
    ada, bob = Customer.objects.create(name="Ada"), Customer.objects.create(name="Bob")
    for customer, amount in [(ada, 1), (bob, 2), (ada, 3), (ada, 4)]:
        pay(customer, amount)

    assert (4, 2) == (stage.rows().count(), stage.waiting())
    assert 4 == stage.work()
    keys = {customer: f"shop.Customer:{customer.pk}" for customer in (ada, bob)}
    said = capsys.readouterr().out.splitlines()
    assert [f"{keys[ada]}: {amount}" for amount in (1, 3, 4)] == [line for line in said if line.startswith(keys[ada])]
    assert f"{keys[bob]}: 2" in said


@pytest.mark.django_db(transaction=True)
def test_reindexing(page: Any, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's orders are indexed once for all their changes, and again for what comes while they are."""
    code = page(block_with(RECIPES, "def reindex("))
    with transaction.atomic():
        order = Order.objects.create(customer=Customer.objects.create(name="Ada"))
        order.tags.add(Tag.objects.create(name="gift"))
        order.save()
    assert 1 == stage.work()
    assert f"index order {order.pk} for 3 changes\n" == capsys.readouterr().out

    heard = []

    def hear_and_save(text: str) -> None:
        heard.append(text)
        del code["print"]
        order.save()

    code["print"] = hear_and_save
    order.save()
    assert 2 == stage.work()
    said = f"index order {order.pk} for 1 changes"
    assert ([said], f"{said}\n") == (heard, capsys.readouterr().out)

    pk = order.pk
    with transaction.atomic():
        order.save()
        order.delete()
    assert 1 == stage.work()
    assert f"remove order {pk}\n" == capsys.readouterr().out


def inserts(queries: CaptureQueriesContext) -> int:
    """Return with how many statements deliveries were written."""
    return sum('INSERT INTO "django_celery_signals_delivery"' in query["sql"] for query in queries)


@pytest.mark.django_db(transaction=True)
def test_sending_many(page: Any, stage: Stage) -> None:
    """The recipes' imports and updates send for each row, and write their deliveries together."""
    seen: list[tuple[int, bool, Any]] = []

    def note(instance: Order, created: bool, update_fields: Any) -> None:
        seen.append((instance.pk, created, update_fields))

    stage.receiving(post_save, note, sender=Order)
    ada = Customer.objects.create(name="Ada")
    orders = [Order(customer=ada, status="paid", total=number) for number in range(7)]
    run_import = page(block_with(RECIPES, "def import_orders("))["import_orders"]
    with CaptureQueriesContext(connection) as queries:
        assert 7 == run_import(orders, size=3)
    assert 3 == inserts(queries)
    assert 7 == stage.relay() == stage.work()
    assert [(order.pk, True, None) for order in Order.objects.order_by("pk")] == sorted(seen)

    seen.clear()
    mark_as_sent = page(block_with(RECIPES, "def mark_as_sent("))["mark_as_sent"]
    with CaptureQueriesContext(connection) as queries:
        mark_as_sent(ada)
    assert 1 == inserts(queries)
    assert {"sent"} == set(Order.objects.values_list("status", flat=True))
    assert 7 == stage.relay() == stage.work()
    assert [(order.pk, False, {"status"}) for order in Order.objects.order_by("pk")] == sorted(seen)


@pytest.mark.django_db(transaction=True)
def test_cancelling(page: Any, stage: Stage) -> None:
    """The recipe's saves and deletions are sent one by one, and written together."""
    seen: list[str] = []

    def note(signal: Any, instance: Order) -> None:
        seen.append(f"{signal is post_save} {instance.total}")

    stage.receiving([post_save, post_delete], note, sender=Order, instance="snapshot", on_missing="fail")
    ada = Customer.objects.create(name="Ada")
    Order.objects.bulk_create(Order(customer=ada, total=total) for total in (0, 5))
    cancel = page(block_with(RECIPES, "def cancel_all("))["cancel_all"]
    with CaptureQueriesContext(connection) as queries:
        cancel(ada)
    assert 1 == inserts(queries)
    assert 3 == stage.relay() == stage.work()
    assert ["False 0.00", "True 0.00", "True 5.00"] == sorted(seen)


@pytest.mark.django_db(transaction=True)
def test_audit_log(page: Any, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's log has the changes of an order in their order, though one of its entries fails for a while."""
    code = page(block_with(RECIPES, "def audit("), "shop.audits")
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"), total=3)
    order.status = "paid"
    order.save()
    order.save()  # changes nothing
    key = f"shop.Order:{order.pk}"
    order.delete()
    stage.app.tasks["shop.audits.audit"].max_retries = 0
    code["print"] = lambda text: 1 / 0
    assert 1 == stage.work()
    assert [2] == [row.behind for row in deliveries("default").blocked()]
    del code["print"]
    assert 1 == deliveries("default").failed().retry()
    assert (1, 3) == (stage.relay(), stage.work())
    assert [
        f"{key}: status None -> new",
        f"{key}: total None -> 3",
        f"{key}: status new -> paid",
        f"{key} was deleted",
    ] == capsys.readouterr().out.splitlines()


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_orders_of_their_own(stage: Stage) -> None:
    """As the guarantees say, a key has an order in each database, and a new one under a new name of its receiver."""
    stage.receive(ordered=True)
    stage.send("a", 1, 2)
    assert (1, 1) == (len(stage.take()), stage.waiting())
    step.send(sender=None, using="other", key="a", number=3)
    assert 1 == len(stage.take())
    stage.receiving.end()
    stage.receive(ordered=True)
    stage.send("a", 4)
    assert (1, 1) == (len(stage.take()), stage.waiting())


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_blocked_key(page: Any, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """What the commands say of a blocked key is what the troubleshooting page shows."""
    code = page(block_with(RECIPES, "def audit("), "shop.receivers")
    stage.app.tasks["shop.receivers.audit"].max_retries = 0
    code["print"] = {}.__getitem__
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"))
    assert 1 == stage.work()
    for total in range(1, 5):
        order.total = total
        order.save()
    rows = stage.rows(state=State.FAILED)
    rows.update(summary=rows.get().summary.removesuffix(" created"))
    (looking, seen), (retrying, retried) = PROMPT.findall(TROUBLES)

    call_command(*looking.split())
    assert list(map(words_of, seen.splitlines())) == list(map(words_of, capsys.readouterr().out.splitlines()[:4]))
    call_command(*retrying.replace("default:17", f"default:{rows.get().pk}").split())
    assert retried == capsys.readouterr().out
    del code["print"]
    assert (1, 5) == (stage.relay(), stage.work())


@pytest.mark.django_db(transaction=True)
def test_migration_without_events(page: Any, stage: Stage) -> None:
    """The recipe's data migration writes, and sends nothing to a worker."""
    Customer.objects.create(name="Ada")
    stage.receiving(post_save, sender=Customer)
    operation = page(block_with(RECIPES, "class Migration("))["Migration"].operations[0]
    with connection.schema_editor() as editor:
        operation.database_forwards("shop", editor, ProjectState.from_apps(apps), ProjectState.from_apps(apps))
    assert ("ada@shop.example", 0) == (Customer.objects.get().email, stage.rows().count())


@pytest.mark.django_db(transaction=True)
def test_turns_example(page: Any, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's log has each change in its order, and its index one run for all of them, when they have ceased."""
    page(block_with(README, "def log_status"))
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"))
    for status in ("paid", "sent"):
        order.status = status
        order.save()
    assert 3 == stage.work()
    steps = ["None -> new", "new -> paid", "paid -> sent"]
    assert [f"Order {order.pk}: {step}" for step in steps] == capsys.readouterr().out.splitlines()

    assert (3, 0) == (stage.rows().count(), stage.relay())
    stage.rows().update(due_at=In(-1), created_at=In(-2))
    assert 1 == stage.relay() == stage.work()
    assert f"Order {order.pk}: 3 changes, one run\n" == capsys.readouterr().out


NAMES_OF_MANY = """
from django.db.models.signals import post_save
from django_celery_signals import receiver_task

from shop.models import Article, Order

"""


@pytest.mark.django_db(transaction=True)
def test_chunk_block(page: Any, stage: Stage, settings: Any) -> None:
    """The reference's orders are weighed one by one, many of them in one message."""
    weighed: list[tuple[int, Any]] = []

    def of(pk: int) -> Any:
        return SimpleNamespace(update=lambda weight: weighed.append((pk, weight)))

    code = page(NAMES_OF_MANY + block_with(REFERENCE, "def weigh"))
    code["Order"], code["weight_of"] = SimpleNamespace(objects=SimpleNamespace(filter=of)), lambda order: order.total
    ada, settings.DJANGO_CELERY_SIGNALS = Customer.objects.create(name="Ada"), {"FAST_PATH_LIMIT": 0}
    orders = [Order.objects.create(customer=ada, total=number) for number in range(20)]

    assert (20, 10) == (stage.relay(), stage.work())
    assert [(order.pk, order.total) for order in orders] == sorted(weighed)
    assert 0 == stage.rows().count()


@pytest.mark.django_db(transaction=True)
def test_batch_block(page: Any, stage: Stage) -> None:
    """The reference's articles are indexed all at once, a second after they were saved."""
    indexed: list[list[str]] = []
    code = page(NAMES_OF_MANY + block_with(REFERENCE, "def index(events)"))
    code["search"] = SimpleNamespace(bulk=lambda documents: indexed.append(list(documents)))
    code["document"] = lambda article: article.title
    for title in "abc":
        models.Article.objects.create(title=title)

    assert (0, 3) == (stage.relay(), stage.rows().count())
    stage.rows().update(due_at=In(-1))
    assert (3, 1) == (stage.relay(), stage.work())
    assert ([["a", "b", "c"]], 0) == (indexed, stage.rows().count())


def test_settings_block(page: Any) -> None:
    """The reference lists every setting with its default."""
    given = page(block_with(REFERENCE, "DJANGO_CELERY_SIGNALS = {"))["DJANGO_CELERY_SIGNALS"]
    assert conf.read(given) == conf.Settings()
    assert set(given) == {field.name for field in fields(conf.Settings)}


def test_codec_block(page: Any) -> None:
    """The reference's example of a type that travels runs."""
    code = page(block_with(REFERENCE, "register_codec("))
    assert code["Money"](1, "EUR").currency == "EUR"


class Bound:
    """What structlog has of context variables."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get_contextvars(self) -> dict[str, Any]:
        return dict(self.values)

    @contextmanager
    def bound_contextvars(self, **values: Any) -> Iterator[None]:
        before, self.values = self.values, {**self.values, **values}
        yield
        self.values = before


@contextmanager
def schema_context(name: str) -> Iterator[None]:
    """Do what django-tenants does."""
    connection.schema_name = name  # type: ignore[attr-defined]
    yield
    connection.schema_name = "public"  # type: ignore[attr-defined]


@pytest.mark.django_db(transaction=True)
def test_context_blocks(
    page: Any, celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch, rf: Any
) -> None:
    """What the page about context carries arrives, and the page says how a receiver sees it."""
    monkeypatch.setattr(context, "_carriers", dict(context._carriers))
    monkeypatch.setitem(sys.modules, "django_tenants", ModuleType("django_tenants"))
    monkeypatch.setitem(sys.modules, "django_tenants.utils", SimpleNamespace(schema_context=schema_context))
    bound = Bound()
    monkeypatch.setitem(sys.modules, "structlog", SimpleNamespace(contextvars=bound))
    request_id = page(block_with(CONTEXT, "# a middleware sets it"), "shop.ids")["request_id"]
    page(block_with(CONTEXT, "def in_schema"), "shop.tenants")
    users = page(block_with(CONTEXT, "def remember_user"), "shop.users")
    page(block_with(CONTEXT, "def bound"), "shop.logs")
    bell, seen = Signal(), []

    def ring(event: Event) -> None:
        seen.append(event.context)
        seen.append((request_id.get(), connection.schema_name, users["user_id"].get(), bound.values))  # type: ignore[attr-defined]

    receiving(bell, ring)
    request, token = rf.get("/"), request_id.set("7f3a")
    request.user = User(pk=5)
    with schema_context("acme"), bound.bound_contextvars(path="/"):
        users["remember_user"](lambda request: bell.send(sender=None))(request)
    request_id.reset(token)
    drain(celery_app)

    here = {"request_id": "7f3a", "tenant": "acme", "user": "5", "structlog": {"path": "/"}}
    assert {"language": "en", "timezone": "UTC", **here} == seen[0]
    assert ("7f3a", "acme", "5", {"path": "/"}) == seen[1]
    assert (None, "public", None, {}) == (
        *(request_id.get(None), connection.schema_name, users["user_id"].get(), bound.values),  # type: ignore[attr-defined]
    )


@pytest.mark.django_db(transaction=True)
def test_failure_block(page: Any, celery_app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference's example of what fails knows its fence, and tells somebody in the end."""
    code = page(block_with(REFERENCE, ".on_failed"), "shop.exports")
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"))
    [message] = take(celery_app)
    run(celery_app, message)
    said = rf"to the warehouse: order {order.pk}, event {message.headers['id']}, fence \d{{16}}\n"
    assert re.fullmatch(said, capsys.readouterr().out)

    celery_app.tasks["shop.exports.export_order"].max_retries = 0
    code["print"] = lambda text: 1 / 0
    Order.objects.create(customer=order.customer)
    drain(celery_app)
    assert [sent.subject for sent in mail.outbox] == ["An order was not exported"]
    assert "ZeroDivisionError" in mail.outbox[0].body


def test_prometheus_block(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app of the page counts in the process that it is loaded in, and serves from the main process of a worker."""
    served: list[tuple[Any, ...]] = []
    monkeypatch.setattr(prometheus, "serve", lambda *args: served.append(args))
    config = page(block_with(OBSERVABILITY, "prometheus.connect()"), "shop.apps")["ShopConfig"]
    try:
        config("shop", shop).ready()
        worker_init.send(sender=None)
        signals.tell(signals.event_lost, "tests.nobody")
        found = {metric.name for metric in REGISTRY.collect() if metric.samples}
    finally:
        prometheus.disconnect()
        worker_init.disconnect(vars(sys.modules["shop.apps"])["serve_metrics"])

    assert [(9808, "0.0.0.0")] == served
    assert f"{prometheus.PREFIX}_lost" in found


@pytest.mark.django_db(transaction=True)
def test_opentelemetry_block(
    page: Any, celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the page's line a trace goes on in the worker."""
    monkeypatch.setattr(context, "_carriers", dict(context._carriers))
    monkeypatch.setattr(opentelemetry, "_registered", [])
    page(block_with(OBSERVABILITY, "opentelemetry.connect()"), "shop.traces")
    headers = {"traceparent": f"00-{1:032x}-{2:016x}-01"}
    bell, seen = Signal(), []
    receiving(bell, lambda event: seen.append((event.context["otel"], trace.get_current_span().get_span_context())))
    token = attach(propagate.extract(headers))
    try:
        bell.send(sender=None)
    finally:
        detach(token)
        drain(celery_app)
        opentelemetry.disconnect()

    [(carried, span)] = seen
    assert (headers, 1) == (carried, span.trace_id)


def test_logs_blocks(page: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What the page connects is written where its settings say."""
    said = page(block_with(OBSERVABILITY, "LOGGING = {"), "shop.settings")["LOGGING"]
    events = logging.getLogger("django_celery_signals.events")
    page(block_with(OBSERVABILITY, "logs.connect()"), "shop.receivers")
    try:
        logging.config.dictConfig(said)
        signals.tell(signals.receiver_discarded, "tests.nobody")
    finally:
        logs.disconnect()
        events.handlers.clear()
        events.setLevel(logging.NOTSET)

    assert "Event discarded by tests.nobody\n" == capsys.readouterr().err


def test_every_metric_is_documented() -> None:
    """The table of metrics has every metric with its labels, and no other."""
    counted, asked = CollectorRegistry(auto_describe=True), prometheus.Deliveries().describe()
    prometheus.connect(counted)
    try:
        metrics = [prometheus._connected[counted], *asked]
    finally:
        prometheus.disconnect(counted)
    own = [metric for metric in vars(metrics[0]).values() if isinstance(metric, (Counter, Histogram))]
    names = {f"{metric._name}{'_total' * isinstance(metric, Counter)}": metric._labelnames for metric in own}
    names |= {family.name: tuple(family._labelnames) for family in metrics[1:]}
    rows = re.findall(r"^\| `(django_celery_signals_\w+)` \| (.*?) \|", OBSERVABILITY, re.MULTILINE)

    assert names == {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def test_every_block_is_run() -> None:
    """Every Python code block of README and docs is run by one of these tests.

    Those of the tutorial are files, which test_tutorial writes, all of them, and a project then runs.
    """
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    known = re.findall(r"block_with\([A-Z]+, \"((?:[^\"\\]|\\.)*)\"\)", source)
    marks = [mark.encode().decode("unicode_escape") for mark in known]
    pages = [README, *(path.read_text() for path in (ROOT / "docs").rglob("*.md") if path.name != "tutorial.md")]
    every = [block for text in pages for block in blocks(text)]
    assert [block for block in every if not any(mark in block for mark in marks)] == []


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(list(options.NAMES), id="sending options"),
        pytest.param(list(options.RUNNING_NAMES), id="running options"),
        pytest.param([field.name for field in fields(conf.Settings)], id="settings"),
        pytest.param([field.name for field in fields(Event)], id="event"),
        pytest.param([name for name, value in vars(signals).items() if value in signals.LIFECYCLE], id="signals"),
        pytest.param([name for name in django_celery_signals.__all__ if name != "Event"], id="public names"),
    ],
)
def test_everything_is_documented(names: list[str]) -> None:
    """The reference names every option, setting, field, signal and public name."""
    assert names
    assert [name for name in names if not re.search(rf"`{name}[`(]", REFERENCE)] == []


@pytest.mark.parametrize("verb", ["failed", "blocked", "behind", "retry", "discard"])
def test_every_verb_is_documented(verb: str) -> None:
    """The reference has what people do with deliveries, and it can be done."""
    assert callable(getattr(deliveries("default"), verb))
    assert f".{verb}()`" in REFERENCE


def words_of_command() -> dict[str, list[str]]:
    """Return the words of ``manage.py signals``, and the options of each, by the command's own parser."""
    parser = Command().create_parser("manage.py", "signals")
    (words,) = [action for action in parser._actions if action.dest == "word"]
    return {
        word: [name for action in inner._actions for name in action.option_strings if name not in ("-h", "--help")]
        for word, inner in words.choices.items()  # type: ignore[union-attr]
    }


@pytest.mark.parametrize("word", words_of_command())
def test_every_command_is_documented(word: str) -> None:
    """The reference has every word of the command, with its options, or with the filters that are listed below."""
    (line,) = re.findall(rf"^`manage\.py signals {word}( .*)?`$", REFERENCE, re.MULTILINE)
    filters = re.findall(r"`(--\w+)`", REFERENCE.partition("\nFilters: ")[2].partition("\n\n")[0])
    known = [*re.findall(r"--[\w-]+", line), *(filters if "filters" in line else [])]

    assert sorted(words_of_command()[word]) == sorted(known)


def test_every_check_is_documented() -> None:
    """The reference names every check by its id, and no other."""
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert set(re.findall(r"\"(dcs\.[EWI]\d+)\"", source)) == set(re.findall(r"`(dcs\.[EWI]\d+)`", REFERENCE))


def texts() -> Iterator[str]:
    """Yield every text of the library's code; what is filled in later is an ellipsis."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            words = [part.value if isinstance(part, ast.Constant) else "…" for part in parts]
            if all(isinstance(word, str) for word in words):
                yield re.sub(r"%[a-z]", "…", "".join(words))


def test_messages_are_quoted() -> None:
    """The headings of the troubleshooting page quote what the library says, or what others are known to say."""
    headings = re.findall(r"^## (.*)$", TROUBLES, re.MULTILINE)
    quoted = [quote for heading in headings for quote in re.findall(r"`([^`]+)`", heading)]
    own = "\n".join(texts())
    parts = {quote: [part.strip() for part in quote.split("…") if part.strip()] for quote in quoted}

    assert set(OTHERS) == {quote for quote in quoted if not all(part in own for part in parts[quote])}


def test_error_tree() -> None:
    """The errors' docstring draws every error there is."""
    drawn = exceptions.__doc__ or ""
    own = [
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and value.__module__ == exceptions.__name__
    ]
    assert [name for name in own if name not in drawn] == []


@pytest.mark.parametrize(
    "path", ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
)
def test_links(path: str) -> None:
    """Every relative link of a page leads to a file."""
    text = (ROOT / path).read_text()
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [target for target in targets if not ((ROOT / path).parent / target).exists()] == []


def test_guarantees_are_held() -> None:
    """Every test that a page names exists, and every line of the guarantees, promised or not, names one."""
    page = page_of("docs/guarantees.md")
    tests = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    promises = re.findall(r"^\| (?!promise|`guarantee=`|---).*$", page, re.MULTILINE)
    others = re.findall(r"^- \*\*.*(?:\n  .*)*", page, re.MULTILINE)

    pages = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    assert set() == set(re.findall(r"`(test_\w+)`", pages)) - tests
    assert [] == [line for line in [*promises, *others] if "`test_" not in line]
