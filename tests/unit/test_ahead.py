"""Messages that are not waited for: what becomes of them is heard later, and what may be lost is told."""

from __future__ import annotations

import socket
import ssl
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import ChannelError
from celery import Celery
from kombu import Connection as ConnectionOfKombu
from kombu import Queue

from django_celery_signals import ahead as module
from django_celery_signals import conf
from django_celery_signals.ahead import Ahead, Doubt, Hasty, NotReady, may_go_ahead
from django_celery_signals.broker import connection_for
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
    """Reads what the broker says, from a socket that is readable when there is something."""

    transport_options: Any = None

    def __init__(self) -> None:
        self.channel = Channel()
        self.ours, self.brokers = socket.socketpair()
        self.connection = SimpleNamespace(
            client_properties={"capabilities": {"connection.blocked": True}},
            transport=SimpleNamespace(sock=self.ours),
        )

    def collect(self) -> None:
        raise OSError("It is too broken to be closed.")

    def hear(self, *what: Any) -> None:
        self.channel.heard.append(what)
        self.brokers.send(b"x")

    def drain_events(self, timeout: float) -> None:
        self.ours.recv(1)
        if not self.channel.heard:
            raise TimeoutError("That is a part of something.")
        self.channel.says(*self.channel.heard.pop(0))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Sending:
    """Publishes texts, and tells of which there are doubts."""

    def __init__(self, app: Celery, connection: Connection) -> None:
        self.connection, self.channel = connection, connection.channel
        self.ahead = Ahead(app)

    def __call__(self, text: str) -> None:
        self.ahead.publish(lambda producer: producer.channel.basic_publish(text), Doubt(text, list))

    def doubted(self, *, broken: bool = False) -> list[str]:
        return [doubt.about for doubt in self.ahead.doubts(broken=broken)]


@pytest.fixture
def sending(celery_app: Celery, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sending]:
    connection = Connection()
    monkeypatch.setattr(module, "connection_for", lambda app, **_: connection)
    monkeypatch.setattr(module, "Hasty", lambda connection: connection)
    yield Sending(celery_app, connection)
    connection.ours.close()
    connection.brokers.close()


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
    sending.connection.hear("basic_ack", 1, False)
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


def test_a_part_of_what_the_broker_says(sending: Sending, clock: SimpleNamespace) -> None:
    """What has come in part is not waited for; a broker that never says the rest is silent."""
    sending("a")
    sending.connection.brokers.send(b"x")
    sending("b")

    assert ["a", "b"] == sending.channel.sent
    sending.connection.brokers.send(b"x")
    clock.now += late()
    with pytest.raises(PublishTimeout, match="silent"):
        sending("c")


def test_no_room_for_more(sending: Sending) -> None:
    """What does not fit into the socket's buffer would have to be waited for."""
    sending("a")
    sending.connection.ours.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sending.connection.ours.send(b"x" * 65536)

    with pytest.raises(PublishTimeout, match="slow"):
        sending("b")
    assert ["a"] == sending.doubted(broken=True)


def test_a_channel_that_the_broker_closes(sending: Sending) -> None:
    """It stays closed: to open it again would have to be waited for."""
    with pytest.raises(ChannelError):
        sending.channel.open()


@pytest.mark.parametrize("confirmed", [True, False])
def test_the_end_of_a_process(sending: Sending, clock: SimpleNamespace, confirmed: bool) -> None:
    """What is not confirmed is waited for, until some moment."""
    sending("a")
    if confirmed:
        sending.connection.hear("basic_ack", 1, False)
    else:
        sending.connection.drain_events = lambda timeout: vars(clock).update(now=clock.now + 1)  # type: ignore[assignment]

    sending.ahead.settle(clock.now + 5)

    assert ([] if confirmed else ["a"]) == sending.doubted(broken=True)
    assert 1000.0 + 5 * (not confirmed) == clock.now


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
        ahead.publish(publish, Doubt(1, list))
    assert queue is refused.value.entity
    assert 0 == broker.message_count()

    with broker.connection() as connection:
        queue.bind(connection.default_channel).declare()
    ahead.producer.know(queue)
    ahead.publish(publish, Doubt(2, list))

    wait_until(lambda: broker.message_count() == 1, what="the message")
    assert [2] == [doubt.about for doubt in ahead.doubts(broken=True)]
    ahead.close()


def test_what_vanishes_is_never_known(celery_app: Celery) -> None:
    """A queue that goes with its last worker has to be declared each time."""
    producer, queue = Hasty(ConnectionOfKombu("memory://")), Queue("vanishing", auto_delete=True)

    producer.know(queue)

    with pytest.raises(NotReady):
        producer.maybe_declare(queue)


@each_broker("rabbitmq")
@pytest.mark.parametrize(
    "given", [{}, {"write_timeout": None}, {"write_timeout": 60}, {"confirm_publish": False}], ids=str
)
def test_who_may_hang(broker: Broker, celery_app: Celery, given: dict[str, Any]) -> None:
    """Where the project lets a write take longer than PUBLISH_TIMEOUT, or wants no confirms, only a thread is safe."""
    celery_app.conf.broker_transport_options = given

    with connection_for(celery_app) as connection:
        assert (not given) == may_go_ahead(connection)


@each_broker("rabbitmq")
def test_other_sockets(broker: Broker, celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS tries a write again that the system has ended, greenlets have their own, and some systems cannot be asked."""
    with connection_for(celery_app) as connection:
        transport: Any = connection.connection.transport
        plain, transport.sock = transport.sock, ssl.SSLObject.__new__(ssl.SSLObject)
        assert not may_go_ahead(connection)
        transport.sock = plain
        assert may_go_ahead(connection)
        monkeypatch.delattr(module.select, "poll")
        assert not may_go_ahead(connection)


@each_broker("memory")
def test_a_transport_without_confirms(broker: Broker, celery_app: Celery) -> None:
    """Nothing goes ahead there; who tries it all the same is told."""
    with connection_for(celery_app) as connection:
        assert not may_go_ahead(connection)
    with pytest.raises(AttributeError):
        Ahead(celery_app)
