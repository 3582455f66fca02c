"""Messages that are not waited for: what becomes of them is heard later, and what may be lost is told."""

from __future__ import annotations

import ssl
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from django_celery_signals import ahead as module
from django_celery_signals import conf
from django_celery_signals.ahead import Ahead, Doubt, Hasty, NotReady
from django_celery_signals.exceptions import PublishTimeout
from tests.brokers import Broker
from tests.parameters import each_broker
from tests.waiting import wait_until


class Channel:
    """RabbitMQ's, as far as it matters here: it numbers messages, and confirms when it is told to."""

    def __init__(self) -> None:
        self.events: dict[str, set[Any]] = defaultdict(set)
        self.sent: list[str] = []
        self.heard: list[Any] = []  # what the broker has said, and nobody has read yet

    def confirm_select(self) -> None:
        self.confirms = True

    def basic_publish(self, message: str) -> None:
        if message == "broken":
            raise OSError("The connection is gone.")
        self.sent.append(message)

    def says(self, event: str, *what: Any) -> None:
        for listener in self.events[event]:
            listener(*what)


class Connection:
    """Reads what the broker says."""

    transport_options: Any = None

    def __init__(self) -> None:
        self.channel = Channel()

    def release(self) -> None:
        raise OSError("It is too broken to be closed.")

    def drain_events(self, timeout: float) -> None:
        if not self.channel.heard:
            raise TimeoutError
        self.channel.says(*self.channel.heard.pop(0))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Sending:
    """Publishes texts, and tells of which there are doubts."""

    def __init__(self, app: Celery, connection: Connection) -> None:
        self.channel = connection.channel
        self.ahead = Ahead(app)

    def __call__(self, text: str) -> None:
        self.ahead.publish(lambda producer: producer.channel.basic_publish(text), Doubt(text, lambda texts: None))

    def doubted(self, *, broken: bool = False) -> list[str]:
        return [doubt.about for doubt in self.ahead.doubts(broken=broken)]


@pytest.fixture
def sending(celery_app: Celery, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Sending:
    connection = Connection()
    monkeypatch.setattr(module, "connection_for", lambda app, **_: connection)
    monkeypatch.setattr(module, "Hasty", lambda connection: connection)
    return Sending(celery_app, connection)


def late() -> float:
    return conf.get().PUBLISH_TIMEOUT + 0.1


def test_nothing_is_waited_for(sending: Sending) -> None:
    """Messages go out one after the other, with the broker's confirms still to come."""
    for text in "abc":
        sending(text)

    assert ["a", "b", "c"] == sending.channel.sent
    assert sending.channel.confirms
    assert [] == sending.doubted()


@pytest.mark.parametrize("confirms", [[(1, False), (2, False), (3, False)], [(2, True), (3, False)], [(3, True)]])
def test_what_is_confirmed_is_in_no_doubt(sending: Sending, confirms: list[tuple[int, bool]]) -> None:
    """One by one, or several at once: when the connection breaks, nothing is put back that the broker has."""
    for text in "abc":
        sending(text)
    for confirm in confirms:
        sending.channel.says("basic_ack", *confirm)

    assert [] == sending.doubted(broken=True)


def test_of_a_broken_connection_all_that_is_open_is_in_doubt(sending: Sending) -> None:
    """Whether it has arrived nobody knows; it is told once."""
    for text in "abc":
        sending(text)
    sending.channel.says("basic_ack", 2, False)

    assert [] == sending.doubted()
    assert ["a", "c"] == sending.doubted(broken=True)
    assert [] == sending.doubted(broken=True)


def test_what_is_refused_is_told(sending: Sending) -> None:
    """A full queue refuses a message: that one is lost, and the connection is as good as ever."""
    for text in "abc":
        sending(text)
    sending.channel.says("basic_nack", 2, False)

    assert ["b"] == sending.doubted()
    sending.channel.says("basic_nack", 3, True)
    assert ["a", "c"] == sending.doubted()


def test_a_silent_broker(sending: Sending, clock: SimpleNamespace) -> None:
    """A broker that confirms nothing in time is found out by the next message, which is not sent there."""
    sending("a")
    clock.now += late()
    with pytest.raises(PublishTimeout, match="silent"):
        sending("b")

    assert ["a"] == sending.channel.sent
    assert ["a"] == sending.doubted(broken=True)


def test_a_sender_that_was_away(sending: Sending, clock: SimpleNamespace) -> None:
    """The confirm has long been there, and was only not read."""
    sending("a")
    sending.channel.heard.append(("basic_ack", 1, False))
    clock.now += late()
    sending("b")

    assert ["a", "b"] == sending.channel.sent
    assert ["b"] == sending.doubted(broken=True)


def test_a_failure_is_its_callers(sending: Sending) -> None:
    """Of a message that could not be sent the caller knows; it is in no doubt."""
    sending("a")
    with pytest.raises(OSError, match="gone"):
        sending("broken")

    assert ["a"] == sending.doubted(broken=True)


def test_a_message_that_goes_another_way(sending: Sending) -> None:
    """What a task's own apply_async() sends elsewhere has no number here."""
    sending.ahead.publish(lambda producer: None, Doubt("elsewhere", lambda texts: None))
    sending("a")

    assert ["a"] == sending.doubted(broken=True)


def test_other_messages_of_the_channel_count(sending: Sending) -> None:
    """Celery's own events, say, which are not ours to look after."""
    sending("a")
    sending.channel.basic_publish("an event")
    sending("b")
    sending.channel.says("basic_ack", 3, False)

    assert ["a"] == sending.doubted(broken=True)


def test_a_connection_that_is_too_broken_to_be_closed(sending: Sending) -> None:
    """Nobody need know."""
    sending.ahead.close()


# At RabbitMQ -------------------------------------------------------------------------------------------------------


@each_broker("rabbitmq")
def test_what_is_not_declared_is_not_waited_for(broker: Broker, celery_app: Celery) -> None:
    """A queue that is not known to be there has to be declared first, by somebody who may wait."""
    ahead, queue = Ahead(celery_app), celery_app.amqp.queues[broker.queue]

    def publish(producer: Any) -> None:
        producer.publish("text", routing_key=broker.queue, declare=[queue])

    with pytest.raises(NotReady) as refused:
        ahead.publish(publish, Doubt(1, print))
    assert queue is refused.value.entity
    assert 0 == broker.message_count()

    ahead.producer.declare_now(queue)
    ahead.publish(publish, Doubt(2, print))

    wait_until(lambda: broker.message_count() == 1, what="the message")
    assert [2] == [doubt.about for doubt in ahead.doubts(broken=True)]
    ahead.close()


@each_broker("rabbitmq")
def test_what_vanishes_is_declared_each_time(broker: Broker, celery_app: Celery) -> None:
    """A queue that goes with its last worker is never known to be there."""
    ahead, name = Ahead(celery_app), broker.queue_named("vanishing")
    producer: Any = ahead.producer
    queue = Queue(name, auto_delete=True, channel=producer.channel)

    producer.declare_now(queue)

    with pytest.raises(NotReady):
        producer.maybe_declare(queue)
    ahead.close()


@each_broker("rabbitmq")
@pytest.mark.parametrize(
    ("given", "bounded"), [({}, True), ({"write_timeout": None}, False), ({"write_timeout": 60}, False)]
)
def test_who_may_hang(broker: Broker, celery_app: Celery, given: dict[str, Any], bounded: bool) -> None:
    """Where the project lets a write take longer than PUBLISH_TIMEOUT, or for ever, only a thread is safe."""
    celery_app.conf.broker_transport_options = given
    ahead = Ahead(celery_app)

    assert bounded == ahead.is_bounded()
    ahead.close()


@each_broker("rabbitmq")
def test_other_sockets(broker: Broker, celery_app: Celery) -> None:
    """TLS tries a write again that the system has ended, and greenlets have their own."""
    ahead = Ahead(celery_app)
    transport: Any = ahead._connection.connection.transport
    plain, transport.sock = transport.sock, ssl.SSLObject.__new__(ssl.SSLObject)

    assert not ahead.is_bounded()
    transport.sock = plain
    ahead.close()


@each_broker("memory")
def test_a_transport_without_confirms(broker: Broker, celery_app: Celery) -> None:
    """What cannot be had is an error of whoever wants it."""
    with pytest.raises(AttributeError):
        Ahead(celery_app)


def test_hasty_is_told_apart() -> None:
    """Whoever is given it sees that nothing may be waited for."""
    assert Hasty.is_hasty
