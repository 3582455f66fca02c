"""Publishing many messages: what became of each is known, and no message suffers from another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import AccessRefused, ChannelError, NotFound, ResourceLocked
from celery import Celery
from celery.exceptions import QueueNotFound
from django.test import override_settings
from kombu.exceptions import KombuError, OperationalError
from kombu.messaging import Producer

from django_celery_signals import PublishError, PublishTimeout
from django_celery_signals.broker import is_outage
from django_celery_signals.durable import bulk as module
from django_celery_signals.durable.bulk import Bulk
from django_celery_signals.handover import Message
from django_celery_signals.signals import event_sent
from tests.drain import take
from tests.making import Tasks
from tests.project.celery import configure
from tests.receiving import hearing

SHORT = override_settings(DJANGO_CELERY_SIGNALS={"PUBLISH_TIMEOUT": 0.2})


@pytest.fixture
def bulk(celery_app: Celery) -> Iterator[Bulk]:
    bulk = Bulk(celery_app)
    yield bulk
    bulk.close()


@pytest.fixture
def message(celery_app: Celery, tasks: Tasks) -> Callable[..., Message]:
    """Makes a message for a receiver of the test's own."""
    task = tasks.shared()

    def message(name: str, **options: Any) -> Message:
        return Message(
            app=celery_app,
            receiver=task.name,
            event_id=name,
            signal_name="shop:bell",
            summary="bell",
            body={"name": name},
            options={"task_id": name, **options},
        )

    return message


def kinds(outcomes: list[Exception | None]) -> list[type | None]:
    return [None if outcome is None else type(outcome) for outcome in outcomes]


# Any transport -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [True, False])
def test_messages_arrive(
    celery_app: Celery,
    bulk: Bulk,
    message: Callable[..., Message],
    batches: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the broker took is told, in the order of the messages, with and without kombu's batches."""
    if not batches:
        monkeypatch.delattr(Producer, "batch", raising=False)
    with hearing(event_sent) as heard:
        outcomes = bulk.publish([message("one"), message("two")])

    assert [None, None] == outcomes
    assert ["one", "two"] == [sent.headers["id"] for sent in take(celery_app)]
    assert ["one", "two"] == [facts["event_id"] for facts in heard]


def test_error_of_one_message(celery_app: Celery, bulk: Bulk, message: Callable[..., Message]) -> None:
    """A message that cannot be published stops no other; afterwards a new connection is made."""
    configure({"task_create_missing_queues": False})
    with hearing(event_sent) as heard:
        outcomes = bulk.publish([message("one"), message("two", queue="nowhere"), message("three")])

    assert [None, QueueNotFound, None] == kinds(outcomes)
    assert ["one", "three"] == [facts["event_id"] for facts in heard]
    assert bulk._connection is None
    assert [None] == bulk.publish([message("four")])


def test_outage(bulk: Bulk, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage nothing more is tried, and the error is that of every message that was not."""
    error, tried = OperationalError("away"), []

    def apply(message: Message, *args: Any) -> None:
        tried.append(message.event_id)
        if message.event_id == "two":
            raise error

    monkeypatch.setattr(module, "apply", apply)

    assert [None, error, error, error] == bulk.publish([message(name) for name in ("one", "two", "three", "four")])
    assert ["one", "two"] == tried


def test_slow_broker(bulk: Bulk, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that has taken too long leaves the rest for later, which is no outage."""
    monkeypatch.setattr(module, "LONGEST", -1)

    outcomes = bulk.publish([message("one"), message("two")])

    assert [PublishError, PublishError] == kinds(outcomes)
    assert not any(map(is_outage, filter(None, outcomes)))


def test_eager(
    celery_app: Celery, bulk: Bulk, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where tasks run eagerly there is no connection."""
    configure({"task_always_eager": True})
    given: list[Any] = []
    monkeypatch.setattr(module, "apply", lambda message, task, producer: given.append((message.event_id, producer)))

    assert [None] == bulk.publish([message("one")])
    assert [("one", None)] == given
    assert bulk._connection is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AccessRefused("wrong password"), "AccessRefused"),
        (ImportError("no such transport"), "ImportError: no such transport"),
        (ConnectionRefusedError("refused"), "refused"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_connection(
    bulk: Bulk, message: Callable[..., Message], error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever keeps the relay from connecting is an outage of all messages, and no fault of theirs."""

    def connection_for(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(module, "connection_for", connection_for)

    outcomes = bulk.publish([message("one"), message("two")])

    assert 2 == len([outcome for outcome in outcomes if outcome is not None and is_outage(outcome)])
    assert words in str(outcomes[0])


def test_batch_that_fails_as_a_whole(
    celery_app: Celery, bulk: Bulk, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that breaks when it is sent off is an outage of all its messages, in the words of what broke it."""

    @contextmanager
    def batch(self: Any) -> Iterator[None]:
        yield
        raise KombuError("delivery is uncertain") from ConnectionError("cut off")

    monkeypatch.setattr(Producer, "batch", batch, raising=False)
    monkeypatch.setattr(module, "apply", lambda *args: None)

    outcomes = bulk.publish([message("one"), message("two")])

    assert [OperationalError, OperationalError] == kinds(outcomes)
    assert "ConnectionError: cut off" == str(outcomes[0])


def test_connection_is_kept_for_a_while(
    bulk: Bulk, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection serves many batches, and is let go when nobody has used it for a while."""
    bulk.rest()
    bulk.publish([message("one")])
    connection = bulk._connection
    bulk.rest()
    bulk.publish([message("two")])

    assert connection is bulk._connection
    monkeypatch.setattr(module, "IDLE", -1)
    bulk.rest()
    assert bulk._connection is None
    assert not connection.connected  # type: ignore[union-attr]


def test_connection_that_cannot_be_closed(bulk: Bulk) -> None:
    """A broken connection is let go all the same."""

    def release() -> None:
        raise OSError("broken")

    bulk._connection = SimpleNamespace(release=release)  # type: ignore[assignment]
    bulk.close()

    assert bulk._connection is None


# RabbitMQ ------------------------------------------------------------------------------------------------------------


class Channel:
    """As much of a channel of RabbitMQ's as is used."""

    def __init__(self, rabbit: Rabbit) -> None:
        self.rabbit, self.tag = rabbit, 0
        self.events: dict[str, set[Any]] = {"basic_ack": set(), "basic_nack": set(), "basic_return": set()}
        self.confirms = False

    def confirm_select(self) -> None:
        self.confirms = True

    def open(self) -> None:
        self.confirms, self.tag = False, 0

    def basic_publish(self, message: Any, **options: Any) -> None:
        self.tag += 1
        self.rabbit.published.append(message)
        if self.confirms:
            self.rabbit.react(self, self.tag, message)

    def tell(self, event: str, *facts: Any) -> None:
        """Let the broker say something."""
        self.rabbit.frames.append(lambda: [listener(*facts) for listener in self.events[event]])

    def close(self, error: Exception) -> None:
        """Let the broker close the channel: what is said of the others is lost."""
        self.rabbit.frames.clear()
        self.rabbit.frames.append(lambda: self._closed(error))

    def _closed(self, error: Exception) -> None:
        self.open()
        raise error


class Rabbit:
    """A connection to a broker that does as the test says with each message; a frame is read at each drain."""

    transport = SimpleNamespace(driver_name="py-amqp")

    def __init__(self) -> None:
        self.connection = SimpleNamespace(client_properties={"capabilities": {"connection.blocked": True}})
        self.published: list[Any] = []
        self.frames: deque[Callable[[], Any]] = deque()
        self.transport_options: Any = None
        self.drained = self.channels = 0
        self.react: Callable[[Channel, int, Any], None] = lambda channel, tag, name: channel.tell(
            "basic_ack", tag, False
        )

    def channel(self) -> Channel:
        self.channels += 1
        return Channel(self)

    def drain_events(self, timeout: float) -> None:
        self.drained += 1
        if not self.frames:
            raise TimeoutError("silent")
        self.frames.popleft()()

    def release(self) -> None: ...


class RabbitProducer:
    def __init__(self, connection: Rabbit, auto_declare: bool) -> None:
        self.channel = connection.channel()

    def revive(self, channel: Channel) -> None:
        self.channel = channel


@pytest.fixture
def rabbit(celery_app: Celery, bulk: Bulk, monkeypatch: pytest.MonkeyPatch) -> Rabbit:
    """A broker of the test's own; what is published there is the name of the message."""
    rabbit = Rabbit()

    def apply(message: Message, task: Any, producer: Any, *, mandatory: bool) -> None:
        producer.channel.basic_publish(message.event_id)

    monkeypatch.setattr(module, "connection_for", lambda app, confirms: rabbit)
    monkeypatch.setattr(celery_app.amqp, "Producer", RabbitProducer)
    monkeypatch.setattr(module, "apply", apply)
    return rabbit


def test_reads_only_when_told(rabbit: Rabbit, bulk: Bulk, message: Callable[..., Message]) -> None:
    """The client does not read before each write, to hear of a broker without memory: the write tells of it."""
    assert [None] == bulk.publish([message("one")])

    assert {"capabilities": {}} == rabbit.connection.client_properties


def numbered(message: Callable[..., Message], count: int) -> list[Message]:
    return [message(str(number)) for number in range(count)]


def ack(channel: Channel, tag: int) -> None:
    channel.tell("basic_ack", tag, False)


def test_confirms_in_a_row(
    bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more messages than a window are on their way without a confirm, and none waits for its own."""
    monkeypatch.setattr(module, "WINDOW", 4)
    under_way: list[int] = []

    def react(channel: Channel, tag: int, name: str) -> None:
        ack(channel, tag)
        under_way.append(len(rabbit.frames))

    rabbit.react = react

    assert [None] * 10 == bulk.publish(numbered(message, 10))
    assert [1, 2, 3, 4, 3, 4, 3, 4, 3, 4] == under_way


def test_confirm_of_many(bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message]) -> None:
    """One confirm may be about all messages up to one, and about such as were confirmed before."""

    def react(channel: Channel, tag: int, name: str) -> None:
        {"1": lambda: ack(channel, tag), "3": lambda: channel.tell("basic_ack", tag, True)}.get(name, str)()

    rabbit.react = react

    outcomes = bulk.publish(numbered(message, 4))

    assert [None] * 4 == outcomes
    assert 2 == rabbit.drained


def test_refusals(bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message]) -> None:
    """What is refused, one by one or many at once, is an error of its own; the neighbours arrive."""

    def react(channel: Channel, tag: int, name: str) -> None:
        if name in "03":
            ack(channel, tag)
        if name in "24":
            channel.tell("basic_nack", tag, name == "2")

    rabbit.react = react

    outcomes = bulk.publish(numbered(message, 5))

    assert [None, PublishError, PublishError, None, PublishError] == kinds(outcomes)
    assert "queue is full" in str(outcomes[1])


def test_messages_without_a_queue(bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message]) -> None:
    """What comes back is an error although it is confirmed; what comes back of others' is nobody's error."""

    def react(channel: Channel, tag: int, name: str) -> None:
        if name in "12":
            owner = SimpleNamespace(properties={"correlation_id": "1"} if name == "1" else {})
            channel.tell("basic_return", NotFound("no route"), "exchange", "key", owner)
        ack(channel, tag)

    rabbit.react = react

    outcomes = bulk.publish(numbered(message, 3))

    assert [None, PublishError, None] == kinds(outcomes)
    assert "no queue for the message (exchange 'exchange', routing key 'key')" in str(outcomes[1])


@SHORT
def test_silence(bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message]) -> None:
    """A message of which the broker says nothing is an outage; what it has confirmed before is not repeated."""
    rabbit.react = lambda channel, tag, name: None if name == "1" else ack(channel, tag)

    outcomes = bulk.publish(numbered(message, 3))

    assert [None, PublishTimeout, None] == kinds(outcomes)
    assert "has not confirmed 1 messages" in str(outcomes[1])
    assert bulk._connection is None


class Clock:
    """Time that passes only when the broker says something."""

    def __init__(self, rabbit: Rabbit, seconds: float) -> None:
        self.now, self.seconds, self.drain = 0.0, seconds, rabbit.drain_events
        self.waited = 0.0

    def monotonic(self) -> float:
        return self.now

    def drain_events(self, timeout: float) -> None:
        step = min(self.seconds - self.waited, timeout)
        self.now, self.waited = self.now + step, self.waited + step
        if self.waited < self.seconds:
            raise TimeoutError
        self.waited = 0.0
        self.drain(timeout)


@SHORT
@pytest.mark.parametrize(("noise", "expected"), [(0, [None] * 4), (1, [PublishTimeout] * 4)])
def test_patience(
    bulk: Bulk,
    rabbit: Rabbit,
    message: Callable[..., Message],
    noise: int,
    expected: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow broker has PUBLISH_TIMEOUT for each confirm anew, but not if it talks of other things meanwhile."""
    clock = Clock(rabbit, 0.15)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(rabbit, "drain_events", clock.drain_events)

    def react(channel: Channel, tag: int, name: str) -> None:
        for _ in range(noise):
            channel.tell("basic_return", NotFound(), "", "", SimpleNamespace(properties={}))
        ack(channel, tag)

    rabbit.react = react

    assert expected == kinds(bulk.publish(numbered(message, 4)))


def test_meanwhile(
    celery_app: Celery, bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever publishes many may do something else before each message, while it waits for the confirms, and after each
    that the project was told of."""
    now = [0.0]
    drain = rabbit.drain_events
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait(timeout: float) -> None:
        now[0] += timeout
        if now[0] < 2:
            raise TimeoutError
        drain(timeout)

    monkeypatch.setattr(rabbit, "drain_events", wait)
    rabbit.react = lambda channel, tag, name: ack(channel, tag)
    moments: list[float] = []

    assert [None] * 2 == bulk.publish([message("0"), message("1")], meanwhile=lambda: moments.append(now[0]))
    assert [0, 0, 0, 0.5, 1, 1.5, 2, 2.5, 2.5] == moments


@pytest.mark.parametrize("swallowed", [False, True])
def test_message_that_breaks_the_channel(
    bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message], swallowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message for which the broker closes the channel is found, also where the error was swallowed on the way."""

    def react(channel: Channel, tag: int, name: str) -> None:
        if name != "2":
            ack(channel, tag)
        elif swallowed:
            channel.open()
        else:
            channel.close(NotFound("no exchange"))
            channel.confirms = False

    rabbit.react = react

    outcomes = bulk.publish(numbered(message, 5))

    assert [None, None, ChannelError if swallowed else NotFound, None, None] == kinds(outcomes)
    assert 3 == rabbit.channels
    assert list("01201234" if swallowed else "0123401234") == rabbit.published


def test_error_that_celery_takes_for_an_outage(
    bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the channel in the guise of an outage is that of its message only."""

    def apply(message: Message, task: Any, producer: Any, *, mandatory: bool) -> None:
        producer.channel.basic_publish(message.event_id)
        if message.event_id == "1":
            producer.channel.open()
            raise OperationalError("locked") from ResourceLocked("locked")

    monkeypatch.setattr(module, "apply", apply)

    assert [None, ResourceLocked, None] == kinds(bulk.publish(numbered(message, 3)))


def test_outage_among_messages(
    bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the connection breaks, what is confirmed stays so, and the rest is unknown or not tried."""
    error = OperationalError("cut off")

    def apply(message: Message, task: Any, producer: Any, *, mandatory: bool) -> None:
        if message.event_id == "3":
            raise error
        producer.channel.basic_publish(message.event_id)

    monkeypatch.setattr(module, "apply", apply)
    monkeypatch.setattr(module, "WINDOW", 2)

    assert [None, None, error, error, error] == bulk.publish(numbered(message, 5))
    assert ["0", "1", "2"] == rabbit.published


def test_outage_while_the_message_is_sought(
    bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the connection breaks after the channel, all that is not confirmed is unknown."""
    error = OperationalError("cut off")

    def channel() -> Any:
        raise error

    def react(channel_: Channel, tag: int, name: str) -> None:
        channel_.close(NotFound("no exchange"))
        monkeypatch.setattr(rabbit, "channel", channel)

    rabbit.react = react

    assert [error, error] == bulk.publish(numbered(message, 2))


def test_search_that_takes_too_long(
    bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search for the message that breaks the channel ends with the batch's time, and blames nobody."""
    clock = Clock(rabbit, 1.0)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(rabbit, "drain_events", clock.drain_events)
    monkeypatch.setattr(module, "LONGEST", 1.5)
    rabbit.react = lambda channel, tag, name: channel.close(NotFound("no exchange"))

    outcomes = bulk.publish(numbered(message, 3))

    assert [NotFound, PublishError, PublishError] == kinds(outcomes)
    assert "is slow" in str(outcomes[1])


def test_batch_that_takes_too_long(
    bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has not been begun when the batch's time is over is left for later."""
    clock = Clock(rabbit, 1.0)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(rabbit, "drain_events", clock.drain_events)
    monkeypatch.setattr(module, "LONGEST", 1.5)
    monkeypatch.setattr(module, "WINDOW", 1)

    outcomes = bulk.publish(numbered(message, 4))

    assert [None, None, PublishError, PublishError] == kinds(outcomes)
    assert ["0", "1"] == rabbit.published


def test_messages_that_go_another_way(
    bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is not published, or in its task's own way, is not waited for, and does not shift the others."""

    def apply(message: Message, task: Any, producer: Any, *, mandatory: bool) -> None:
        name = message.event_id
        if name in "15":
            raise TypeError("before")
        if name not in "26":
            producer.channel.basic_publish(name)
        if name == "3":
            raise TypeError("after")

    monkeypatch.setattr(module, "apply", apply)

    for last in (5, 6, 7):  # the last message of a batch is waited for, if it was published
        expected = [None, TypeError, None, TypeError, None, TypeError, None]
        assert expected[:last] == kinds(bulk.publish(numbered(message, last)))


def test_options_of_the_project(bulk: Bulk, rabbit: Rabbit, message: Callable[..., Message]) -> None:
    """The project's own transport options hold, but for the one that makes each publication wait."""
    rabbit.transport_options = {"confirm_publish": True, "heartbeat": 7}
    bulk.publish([message("one")])

    assert {"confirm_publish": False, "heartbeat": 7} == rabbit.transport_options
