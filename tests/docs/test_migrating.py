"""The page about migrating: what it shows as before and as after runs the same task with the same argument."""

from __future__ import annotations

import copyreg
import difflib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery._state import _get_active_apps, _on_app_finalizers
from celery.utils import uuid
from django.db import transaction
from django.db.models.signals import ModelSignal, post_save
from kombu.serialization import loads

from django_celery_signals import ReceiverTask, bridge, connections, deliveries, disconnect
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.probe import TASK as PROBE
from django_celery_signals.durable.rows import State
from tests.docs.pages import block_with, blocks, page_of
from tests.drain import Published, take
from tests.holding import Outcome, trace
from tests.lanes import Stage
from tests.project.celery import disconnect as forget_connections
from tests.receiving import Receiving
from tests.saying import shown
from tests.shop.models import Customer, Order

MIGRATING = page_of("docs/migrating.md")
CONFIRM = "shop.tasks.confirm_order"


class Deploy:
    """A version of the project's code, and then another, in one process."""

    def __init__(self, page: Any, app: Celery) -> None:
        self.page, self.app = page, app
        self.receiver: Any = None
        self.shared = set(_on_app_finalizers)  # which every app takes shared tasks from

    def tasks(self, code: str) -> dict[str, Any]:
        """Load a version of shop/tasks.py in the place of the one before."""
        self.end()
        return self.page(code, "shop.tasks")  # type: ignore[no-any-return]

    def receivers(self, code: str) -> None:
        """Load a version of shop/receivers.py."""
        self.receiver = self.page(code, "shop.receivers")["order_saved"]

    def end(self) -> None:
        """Undo what the version before has connected, and forget its tasks."""
        if self.receiver is not None:
            assert post_save.disconnect(self.receiver, sender=Order)
            self.receiver = None
        for made in [one for one in connections() if one.receiver.startswith("shop.")]:
            disconnect(made.signal, bridge.Spelling(bridge.send, bridge.target_of(made.receiver)), sender=made.sender)
        _on_app_finalizers.intersection_update(self.shared)
        bridge._targets.pop(CONFIRM, None)  # which knows the app that it was last spelled with
        for app in list(_get_active_apps()):
            for name in [name for name in app._tasks if name.startswith("shop.")]:
                del app._tasks[name]

    def sent(self, queue: str = "mail") -> Published:
        """Return the one message that is in a queue."""
        [message] = take(self.app, queue)
        return message

    def run(self, message: Published) -> Outcome:
        """Run a message as a worker with this version does."""
        return trace(self.app, message.task, message.headers["id"], message.kwargs, 0, tuple(message.args))


@pytest.fixture
def deploy(page: Any, celery_app: Celery) -> Iterator[Deploy]:
    celery_app.conf.task_routes = {CONFIRM: {"queue": "mail"}}
    celery_app.__dict__.pop("amqp", None)
    made = Deploy(page, celery_app)
    yield made
    made.end()


def before(deploy: Deploy) -> None:
    deploy.tasks(block_with(MIGRATING, "# shop/tasks.py, before"))
    deploy.receivers(block_with(MIGRATING, "# shop/receivers.py, before"))


def after(deploy: Deploy) -> None:
    deploy.tasks(block_with(MIGRATING, "# shop/tasks.py, after"))
    deploy.receivers(block_with(MIGRATING, "# shop/receivers.py, after"))


def later(deploy: Deploy) -> None:
    deploy.tasks(block_with(MIGRATING, "# shop/tasks.py, later"))


def placed() -> Order:
    with transaction.atomic():
        return Order.objects.create(customer=Customer.objects.create(name="Ada"))


def confirmed(*orders: Order) -> str:
    return "".join(f"order {order.pk} is confirmed\n" for order in orders)


@pytest.mark.django_db(transaction=True)
def test_from_on_commit(deploy: Deploy, capsys: pytest.CaptureFixture[str]) -> None:
    """In all versions the same task runs in the same queue with the same argument; an old message is still run."""
    before(deploy)
    first = placed()
    old = deploy.sent()
    assert (CONFIRM, [first.pk], {}) == (old.task, old.args, old.kwargs)

    after(deploy)
    second = placed()
    second.save()  # which the receiver's own condition leaves out
    new = deploy.sent()
    assert (CONFIRM, "mail", 1) == (new.task, deliveries("default").get().queue, deliveries("default").count())
    assert ["SUCCESS"] * 2 == [deploy.run(message).state for message in (old, new)]
    assert (confirmed(first, second), 0) == (capsys.readouterr().out, deliveries("default").count())

    third = placed()
    between = deploy.sent()
    later(deploy)
    fourth = placed()
    last = deploy.sent()
    assert (CONFIRM, CONFIRM) == (between.task, last.task)
    assert ["SUCCESS"] * 3 == [deploy.run(message).state for message in (old, between, last)]
    assert (confirmed(first, third, fourth), 0) == (capsys.readouterr().out, deliveries("default").count())


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("version", [before, after, later])
def test_nothing_for_what_is_rolled_back(deploy: Deploy, version: Any) -> None:
    """None of the versions sends anything for an order that is rolled back."""
    version(deploy)
    with transaction.atomic():
        placed()
        transaction.set_rollback(True)

    assert ([], 0) == (take(deploy.app, "mail"), deliveries("default").count())


@pytest.mark.django_db(transaction=True)
def test_new_message_at_an_old_worker(
    deploy: Deploy, celery_app: Celery, receiving: Receiving, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker of the old form fails on a new message; the row stays, and runs once it is sent again."""
    after(deploy)
    order = placed()
    message = deploy.sent()
    before(deploy)
    outcome = deploy.run(message)
    assert ("FAILURE", State.SENT) == (outcome.state, deliveries("default").get().state)
    assert "got an unexpected keyword argument '__event__'" in str(outcome.error)
    assert "got an unexpected keyword argument '__event__'" in MIGRATING

    after(deploy)
    deliveries("default").update(state=State.READY, due_at=In(-1))  # as the relay does, after its probe has arrived
    assert 1 == Stage(alias="default", app=celery_app, receiving=receiving).relay()
    assert "SUCCESS" == deploy.run(deploy.sent()).state
    assert (confirmed(order), 0) == (capsys.readouterr().out, deliveries("default").count())


@pytest.mark.django_db(transaction=True)
def test_call_elsewhere(deploy: Deploy, capsys: pytest.CaptureFixture[str]) -> None:
    """A call of the task that comes from no signal remains one, in the task's queue and without a row."""
    code = deploy.tasks(block_with(MIGRATING, "# shop/tasks.py, after"))
    order = placed()
    code["confirm_order"].delay(order.pk)
    message = deploy.sent()

    assert ([order.pk], 0) == (message.args, deliveries("default").count())
    deploy.run(message)
    assert confirmed(order) == capsys.readouterr().out


@pytest.mark.django_db(transaction=True)
def test_from_delay_on_commit(deploy: Deploy) -> None:
    """delay_on_commit() sends what delay() in on_commit() does."""
    deploy.tasks(block_with(MIGRATING, "# shop/tasks.py, before"))
    deploy.receivers(block_with(MIGRATING, "# shop/receivers.py, with delay_on_commit()"))
    order = placed()

    message = deploy.sent()
    assert (CONFIRM, [order.pk]) == (message.task, message.args)


def test_what_is_explained(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of the page says what the new signal leads to."""
    [words] = re.findall(r"`manage\.py signals (explain\s[^`]*)`", MIGRATING)
    after(deploy)

    assert "confirm_order" in shown(monkeypatch, 100, *words.split())


@pytest.mark.parametrize("file", ["tasks", "receivers"])
def test_what_changes(file: str) -> None:
    """In the receiver one line and an import change; at the task its decorator, the class, and a signal."""
    old, new = (block_with(MIGRATING, f"# shop/{file}.py, {word}").splitlines() for word in ("before", "after"))
    changes = [line for line in difflib.ndiff(old, new) if line[0] in "+-" and line[2:] and "#" not in line]
    code = [line[2:] for line in changes if "import" not in line]

    assert {
        "tasks": [
            "@receiver_task(order_placed)",
            "@shared_task(base=ReceiverTask, atomic=False, max_retries=3)",
            "@shared_task(max_retries=3)",
            "order_placed = Signal()",
        ],
        "receivers": [
            "        order_placed.send(sender=sender, order_pk=instance.pk)",
            "        transaction.on_commit(lambda: confirm_order.delay(instance.pk))",
        ],
    }[file] == sorted(code)


def test_the_search(tmp_path: Path) -> None:
    """The page's search finds the line to be changed in each form of it, and the receiver around it."""
    forms = [block for block in blocks(MIGRATING) if block.startswith("# shop/receivers.py")]
    forms.append(
        "@receiver(post_save)\ndef saved(**kwargs):\n    on_commit(\n        lambda: confirm_order.delay(5)\n    )\n"
    )
    (tmp_path / "receivers.py").write_text("".join(forms))
    [commands] = re.findall(r"^```shell\n(grep .*?)^```", MIGRATING, re.DOTALL | re.MULTILINE)
    lines, around = (
        subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for command in commands.splitlines()
    )
    code = [line.split(":", 2)[2].strip() for line in lines.splitlines()]

    assert [
        "transaction.on_commit(lambda: confirm_order.delay(instance.pk))",
        "# shop/receivers.py, with delay_on_commit()",
        "confirm_order.delay_on_commit(instance.pk)",
        "on_commit(",
        "lambda: confirm_order.delay(5)",
    ] == code
    assert 4 == around.count("@receiver(")


@pytest.mark.django_db(transaction=True)
def test_from_the_recipe(deploy: Deploy, celery_app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe of 2011 and what it has become run the same task; a pickled message is run by either."""
    was = deploy.tasks(block_with(MIGRATING, "# shop/tasks.py, as of 2011"))
    try:
        first = placed()
        assert post_save.disconnect(was["index_order"].delay, sender=Order)
        with celery_app.connection_for_read() as connection, connection.channel() as channel:
            raw = channel.basic_get(celery_app.conf.task_default_queue, no_ack=True)
            args, kwargs, _ = loads(raw.body, raw.content_type, raw.content_encoding, accept=[raw.content_type])
    finally:
        copyreg.dispatch_table.pop(ModelSignal, None)
    old = Published(headers=dict(raw.headers), properties={}, args=list(args), kwargs=kwargs)
    assert (post_save, first) == (kwargs["signal"], kwargs["instance"])

    today = deploy.tasks(block_with(MIGRATING, "# shop/tasks.py, today"))
    second = placed()
    assert post_save.disconnect(today["index_order"].delay, sender=Order)
    new = deploy.sent(celery_app.conf.task_default_queue)
    assert ("shop.tasks.index_order", "shop.tasks.index_order") == (old.task, new.task)
    assert ["SUCCESS"] * 2 == [deploy.run(message).state for message in (old, new)]
    assert f"Order {first.pk} is indexed\nOrder {second.pk} is indexed\n" == capsys.readouterr().out
    assert 0 == deliveries("default").count()


class OutboxCelery(Celery):
    """What django-celery-outbox does with a call of a task, but that its table is a list here."""

    rows: list[dict[str, Any]]

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        task_id = uuid()
        self.rows.append({"name": name, "args": list(args or ()), "kwargs": dict(kwargs or {}), "task_id": task_id})
        return self.AsyncResult(task_id)

    def relay(self) -> None:
        """Publish the rows as its relay does."""
        for row in self.rows:
            Celery.send_task(self, **row)
        self.rows.clear()


@pytest.mark.django_db(transaction=True)
def test_from_outbox(
    page: Any, deploy: Deploy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the other outbox still holds, and then publishes, is run by the task that is connected here."""
    monkeypatch.setitem(sys.modules, "django_celery_outbox", SimpleNamespace(OutboxCelery=OutboxCelery))
    OutboxCelery.rows = []
    there = {"broker_url": "memory://", "task_routes": {CONFIRM: {"queue": "mail"}}}
    outbox = page(block_with(MIGRATING, "# proj/celery.py, before"), "proj.celery")["app"]
    try:
        outbox.conf.update(there)
        before(deploy)
        first = placed()
        assert ([CONFIRM], [[first.pk]]) == tuple([row[it] for row in outbox.rows] for it in ("name", "args"))

        deploy.end()
        plain = page(block_with(MIGRATING, "# proj/celery.py, after"), "proj.celery")["app"]
        plain.conf.update(there)
        deploy.app = plain
        after(deploy)
        second = placed()
        outbox.relay()
        new, old = take(plain, "mail")
        assert [CONFIRM, CONFIRM] == [new.task, old.task]
        assert isinstance(plain.tasks[CONFIRM], ReceiverTask)
        assert ["SUCCESS"] * 2 == [deploy.run(message).state for message in (old, new)]
        assert confirmed(first, second) == capsys.readouterr().out
        deploy.end()
        plain.close()
    finally:
        outbox.close()
        forget_connections()


def test_what_the_outbox_leaves_out(page: Any, deploy: Deploy) -> None:
    """What is excluded while both are in use are the tasks of the page, and the probe."""
    excluded = page(block_with(MIGRATING, "CELERY_OUTBOX_EXCLUDE_TASKS = ["), "proj.settings")
    after(deploy)

    assert [CONFIRM, PROBE] == excluded["CELERY_OUTBOX_EXCLUDE_TASKS"]
    assert {CONFIRM, PROBE} <= set(deploy.app.tasks)
