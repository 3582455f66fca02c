"""What is filled in is the message that ``apply_async`` publishes, byte for byte; else Celery publishes itself."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from typing import Any

import amqp
import pytest
from celery import Celery, Task, signals
from celery.app.amqp import AMQP
from kombu import Connection, Exchange, Producer, Queue, serialization
from kombu.exceptions import OperationalError
from kombu.transport import pyamqp

from django_celery_signals import ReceiverTask
from django_celery_signals.handover import Message, apply
from django_celery_signals.template import apply_plainly, template_for
from tests.making import Tasks
from tests.project.celery import configure, disconnect
from tests.receiving import ignore

# Of Celery 6: a task's queue, priority and the like belong to its routes; until then they are honoured.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")

REFERENCE = {"alias": "default", "id": 2**40, "token": 2**60, "receiver": "shop.notify"}
DURABLE = {"task_id": "an-id", "retries": 3, "expires": None}


class Channel:
    """Takes messages as py-amqp's channel does, and puts into bytes what would be sent."""

    def __init__(self) -> None:
        self.declared: list[Any] = []
        self.sent: list[tuple[Any, ...]] = []
        self.connection = None

    prepare_message = pyamqp.Channel.prepare_message

    def basic_publish(self, message: Any, **options: Any) -> None:
        body = message.body.encode() if isinstance(message.body, str) else message.body
        given = {name: value for name, value in options.items() if value}  # as py-amqp would without it
        self.sent.append((message._serialize_properties(), message.properties, body, given))


class Recording(Producer):
    """A producer whose channel keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(Channel(), auto_declare=False)

    @property
    def connection(self) -> Any:
        return Connection("amqp://")

    def revive(self, channel: Any) -> None: ...

    def maybe_declare(self, entity: Any, retry: bool = False, **policy: Any) -> None:
        self.channel.declared.append(entity)


@pytest.fixture
def make(celery_app: Celery, tasks: Tasks) -> Callable[..., Any]:
    """Makes the tasks of a test, as the app has them."""
    return lambda *args, **options: celery_app.tasks[tasks.shared(*args, **options).name]


def message(app: Celery, task: Any, body: Any = REFERENCE, **options: Any) -> Message:
    return Message(
        app=app,
        receiver=task.name,
        event_id="an-id",
        signal_name="shop:sold",
        summary="sold",
        body=body,
        options=options,
    )


def published(publish: Callable[[Any], Any]) -> tuple[list[Any], list[Any]]:
    producer = Recording()
    publish(producer)
    return producer.channel.sent, producer.channel.declared


TASKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with limits": {"time_limit": 60, "soft_time_limit": 50},
    "with a queue": {"queue": "slow"},
    "with priority": {"priority": 3},
    "compressed": {"compression": "gzip"},
    "kept in memory": {"delivery_mode": 1},
    "kept in memory, by its name": {"delivery_mode": "transient"},
    "with a shadow": {"shadow": "another"},
    "to an exchange": {"exchange": Exchange("ex", "topic"), "routing_key": "a.b"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "durable": DURABLE,
    "again": {**DURABLE, "retries": 0},
    "to a queue": {**DURABLE, "queue": "fast"},
    "with priority": {**DURABLE, "priority": 9},
    "with no priority": {**DURABLE, "priority": None},
    "within another": {**DURABLE, "root_id": "the-root", "parent_id": "the-parent"},
    "with a root": {**DURABLE, "root_id": "the-root"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("declared", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("mandatory", [True, False])
def test_is_what_celery_publishes(
    celery_app: Celery, make: Callable[..., Any], declared: dict[str, Any], options: dict[str, Any], mandatory: bool
) -> None:
    """Every header, every property, the body, the way and what is declared are Celery's."""
    task = make(**declared)
    extra = {"mandatory": True} if mandatory else {}

    celerys = published(lambda producer: apply_plainly(task, REFERENCE, producer, {**extra, **options}, "sold"))
    assert template_for(celery_app, task, options) is not None
    ours = published(lambda producer: apply(message(celery_app, task, **options), task, producer, **extra))

    assert ours == celerys


@pytest.mark.parametrize("routes", [{}, {"tests.*": {"queue": "routed", "priority": 5}}], ids=["none", "routed"])
@pytest.mark.parametrize("body", [REFERENCE, 'signed "text" \N{SNOWMAN}:x', {}], ids=["reference", "envelope", "empty"])
def test_whatever_the_body(celery_app: Celery, make: Callable[..., Any], body: Any, routes: dict[str, Any]) -> None:
    """A signed envelope is carried as well, and Celery's routes are followed."""
    configure({"task_routes": routes, "task_queues": [Queue("routed", Exchange("ex", "topic"), routing_key="a.b")]})
    try:
        task = make()

        celerys = published(lambda producer: apply_plainly(task, body, producer, DURABLE, "sold"))
        ours = published(lambda producer: apply(message(celery_app, task, body, **DURABLE), task, producer))

        assert ours == celerys
    finally:
        disconnect()


def test_properties_are_written_once(
    celery_app: Celery, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What messages have in common is not written anew for each, unless someone has a hand in the publication."""
    task, producer = make(), Recording()
    publish = functools.wraps(Producer.publish)(lambda *args, **options: Producer.publish(*args, **options))
    kinds = []
    monkeypatch.setattr(producer.channel, "basic_publish", lambda message, **_: kinds.append(type(message)))
    apply(message(celery_app, task, **DURABLE), task, producer)
    monkeypatch.setattr(Recording, "publish", publish, raising=False)  # as a tool that traces does
    apply(message(celery_app, task, **DURABLE), task, producer)
    monkeypatch.undo()
    monkeypatch.setattr(producer, "publish", publish.__get__(producer), raising=False)
    monkeypatch.setattr(producer.channel, "basic_publish", lambda message, **_: kinds.append(type(message)))
    apply(message(celery_app, task, **DURABLE), task, producer)

    assert kinds[0] is not amqp.Message
    assert [amqp.Message] * 2 == kinds[1:]


@pytest.mark.parametrize("method", ["publish", "_publish"])
def test_what_wraps_kombu_is_called(
    celery_app: Celery, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A tool that traces may wrap either of kombu's methods."""
    original, called = getattr(Producer, method), []

    @functools.wraps(original)
    def traced(*args: Any, **options: Any) -> Any:
        called.append(method)
        return original(*args, **options)

    monkeypatch.setattr(Producer, method, traced)
    task, producer = make(), Recording()
    apply(message(celery_app, task, **DURABLE), task, producer)

    assert ([method], 1) == (called, len(producer.channel.sent))


def test_headers_that_are_added_on_the_way(
    celery_app: Celery, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool that wraps the client's method may add headers to the message that it is given."""
    task, producer, written = make(), Recording(), []

    def traced(message: Any, **_: Any) -> None:
        message.properties["application_headers"]["trace"] = "1"
        written.append((message._serialize_properties(), amqp.Message(**message.properties)._serialize_properties()))

    monkeypatch.setattr(producer.channel, "basic_publish", traced)
    apply(message(celery_app, task, **DURABLE), task, producer)

    ((ours, celerys),) = written
    assert b"trace" in ours
    assert celerys == ours


def test_a_serializer_without_an_encoding(celery_app: Celery, make: Callable[..., Any]) -> None:
    """Celery itself publishes what it makes: to say that something is UTF-8 would be another message."""
    serialization.register(
        "tests-bare", json.dumps, json.loads, content_type="application/x-bare", content_encoding=None
    )
    try:
        task = make(serializer="tests-bare")
        assert template_for(celery_app, task, DURABLE) is None
        celerys = published(lambda producer: apply_plainly(task, REFERENCE, producer, DURABLE, "sold"))
        ours = published(lambda producer: apply(message(celery_app, task, **DURABLE), task, producer))
    finally:
        serialization.unregister("tests-bare")

    assert ours == celerys


def test_routes_that_cannot_be_read(
    celery_app: Celery, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no template; what is wrong Celery says when it publishes."""
    task = make()

    def fail(amqp: Any) -> Any:
        raise ValueError("task_routes")

    monkeypatch.setattr(AMQP, "router", property(fail))

    assert template_for(celery_app, task, DURABLE) is None


def test_another_way_to_write(celery_app: Celery, make: Callable[..., Any]) -> None:
    """A client that writes the properties in its own way has all that it needs for that."""
    task, producer = make(), Recording()
    apply(message(celery_app, task, **DURABLE), task, producer)
    ((written, properties, body, _),) = producer.channel.sent

    assert written == amqp.Message(body, **properties)._serialize_properties()


def test_an_id_that_is_too_long(celery_app: Celery, make: Callable[..., Any]) -> None:
    """AMQP takes 255 bytes; the error is the client's own."""
    task, options = make(), {**DURABLE, "task_id": "x" * 256}
    with pytest.raises(Exception, match=r"\S") as celerys:
        apply_plainly(task, REFERENCE, Recording(), options, "sold")
    with pytest.raises(Exception, match=r"\S") as ours:
        apply(message(celery_app, task, **options), task, Recording())

    assert (type(celerys.value), str(celerys.value)) == (type(ours.value), str(ours.value))


def test_without_an_id(celery_app: Celery, make: Callable[..., Any]) -> None:
    """Celery gives an id to what has none, a new one to each."""
    task, producer = make(), Recording()

    for _ in range(2):
        apply(message(celery_app, task), task, producer)

    ids = {properties["correlation_id"] for _, properties, _, _ in producer.channel.sent}
    assert len(ids) == 2
    assert ids == {properties["application_headers"]["id"] for _, properties, _, _ in producer.channel.sent}


def test_is_declared_once_in_a_channel(celery_app: Celery, make: Callable[..., Any]) -> None:
    """A queue is declared before the first message of a channel, and again after a failure."""
    task, producer = make(), Recording()

    for _ in range(3):
        apply(message(celery_app, task, **DURABLE), task, producer)
    assert len(producer.channel.declared) == 1

    producer.channel = Channel()
    apply(message(celery_app, task, **DURABLE), task, producer)
    assert len(producer.channel.declared) == 1


def test_what_vanishes_is_declared_each_time(celery_app: Celery, make: Callable[..., Any]) -> None:
    """A queue that goes with its last worker is declared before every message, as Celery does."""
    configure({"task_queues": [Queue("vanishing", auto_delete=True)]})
    try:
        task, producer = make(queue="vanishing"), Recording()
        for _ in range(3):
            apply(message(celery_app, task, **DURABLE), task, producer)
        assert len(producer.channel.declared) == 3
    finally:
        disconnect()


def test_a_broker_that_says_goodbye(
    celery_app: Celery, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that the broker has closed knows its connection no more; the error is Celery's all the same."""
    task, producer = make(), Recording()

    def close(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(Recording, "connection", None)
        raise amqp.exceptions.ConnectionForced("The broker shuts down.")

    monkeypatch.setattr(producer.channel, "basic_publish", close)

    with pytest.raises(OperationalError, match="shuts down"):
        apply(message(celery_app, task, **DURABLE), task, producer)


def test_an_error_is_celerys(celery_app: Celery, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a broken connection Celery makes an error of its own, by which an outage is told."""
    task, producer = make(), Recording()

    def break_down(*_: Any, **__: Any) -> None:
        raise amqp.exceptions.ConnectionForced("gone")

    monkeypatch.setattr(producer.channel, "basic_publish", break_down)

    with pytest.raises(OperationalError, match="gone"):
        apply(message(celery_app, task, **DURABLE), task, producer)


@pytest.mark.parametrize(
    "options", [{"countdown": 5}, {"expires": 60}, {**DURABLE, "headers": {"a": "b"}}], ids=lambda options: str(options)
)
def test_no_template_for_what_differs(celery_app: Celery, make: Callable[..., Any], options: dict[str, Any]) -> None:
    """What is computed from the time of publication, or is unknown here, is left to Celery."""
    assert template_for(celery_app, make(), options) is None


def test_a_task_that_expires(celery_app: Celery, make: Callable[..., Any]) -> None:
    """A task's own expiry counts from each publication, unless the message says otherwise."""
    task = make(expires=60)

    assert template_for(celery_app, task, {"task_id": "an-id"}) is None
    assert template_for(celery_app, task, DURABLE) is not None


@pytest.mark.parametrize("signal", [signals.before_task_publish, signals.after_task_publish, signals.task_sent])
def test_a_listener_is_heard(celery_app: Celery, make: Callable[..., Any], signal: Any) -> None:
    """Who listens to Celery's signals of a publication, as tracing does, may change what is published."""
    task = make()
    assert template_for(celery_app, task, DURABLE) is not None

    def listen(**_: Any) -> None: ...

    signal.connect(listen)
    try:
        assert template_for(celery_app, task, DURABLE) is None
    finally:
        signal.disconnect(listen)
    assert template_for(celery_app, task, DURABLE) is not None


def test_a_listener_may_change_the_headers(celery_app: Celery, make: Callable[..., Any]) -> None:
    """A header of a listener's arrives."""
    task = make()

    def trace(headers: dict[str, Any], **_: Any) -> None:
        headers["traceparent"] = "00-1-2-01"

    signals.before_task_publish.connect(trace)
    vars(celery_app.amqp).pop("send_task_message", None)  # Celery 5.5 looks at the list of listeners there was
    try:
        sent, _ = published(lambda producer: apply(message(celery_app, task, **DURABLE), task, producer))
    finally:
        signals.before_task_publish.disconnect(trace)
    assert sent[0][1]["application_headers"]["traceparent"] == "00-1-2-01"


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrap(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return wrap


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Task, "apply_async"), (Task, "shadow_name"), (Celery, "send_task"), (ReceiverTask, "apply_async")],
)
def test_what_is_wrapped_is_called(
    celery_app: Celery, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """What monitoring has wrapped around Celery's own functions is left in place."""
    task = make()
    assert template_for(celery_app, task, DURABLE) is not None

    monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))

    assert template_for(celery_app, task, DURABLE) is None


def test_a_patched_task_or_app(celery_app: Celery, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """So is what is set on one task, or on the app."""
    task = make()

    with monkeypatch.context() as patch:
        patch.setattr(task, "apply_async", wrapped(task.apply_async))
        assert template_for(celery_app, task, DURABLE) is None
    with monkeypatch.context() as patch:
        patch.setattr(celery_app, "send_task", wrapped(celery_app.send_task))
        assert template_for(celery_app, task, DURABLE) is None


def test_a_tasks_own_way(celery_app: Celery, tasks: Tasks) -> None:
    """A project's own ``apply_async`` is called for each message."""
    calls = []

    class Own(ReceiverTask):
        abstract = True

        def apply_async(self, *args: Any, **options: Any) -> Any:
            calls.append(options["task_id"])
            return super().apply_async(*args, **options)

    task = celery_app.tasks[celery_app.task(base=Own, name=tasks.name())(ignore).name]
    published(lambda producer: apply(message(celery_app, task, **DURABLE), task, producer))

    assert calls == ["an-id"]


@pytest.mark.parametrize(
    "settings",
    [
        {"task_routes": [lambda name, args, kwargs, options, task=None, **_: {"queue": "any"}]},
        {"task_send_sent_event": True},
        {"task_always_eager": True},
        {"task_protocol": 1},
        {"task_serializer": "pickle"},
        {"task_queues": [], "task_create_missing_queues": False},
    ],
    ids=["a router", "events", "eager", "an old protocol", "no text", "no queue"],
)
def test_settings_by_which_there_is_none(
    celery_app: Celery, make: Callable[..., Any], settings: dict[str, Any]
) -> None:
    """A router of the project's may look at the message, and not every protocol has headers."""
    configure(settings)
    try:
        task = make(**({"queue": "unknown"} if "task_create_missing_queues" in settings else {}))
        assert template_for(celery_app, task, DURABLE) is None
    finally:
        disconnect()


def test_within_a_running_task(celery_app: Celery, make: Callable[..., Any]) -> None:
    """Of a running task Celery takes the ids, and perhaps the priority, that were not given."""
    outer = make()
    found = []

    def look(**_: Any) -> None:
        found.append(template_for(celery_app, outer, DURABLE))
        found.append(template_for(celery_app, outer, {**DURABLE, "root_id": "a", "parent_id": "b"}))

    inner = make(look)
    inner.apply()

    assert found[0] is None
    assert found[1] is not None


def test_after_a_fork(celery_app: Celery, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process has a name of its own, which a message tells as its origin."""
    task = make()
    parent = template_for(celery_app, task, DURABLE)
    monkeypatch.setattr(os, "getpid", lambda: 77)

    assert template_for(celery_app, task, DURABLE) is not parent
