"""Publish to RabbitMQ without waiting for its confirms, and learn of them later."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from amqp.exceptions import ChannelError
from celery import Celery
from kombu import Connection, Producer

from . import conf
from .broker import connection_for
from .exceptions import PublishTimeout


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is to be done about a message that the broker may not have."""

    about: Any  # what is known of the message
    act: Callable[[list[Any]], list[Any]]  # given that of all such messages at once; returns those for later


class NotReady(Exception):
    """This message cannot be published without waiting for a declaration; nothing was sent."""

    def __init__(self, entity: Any) -> None:
        """Keep what has to be declared."""
        super().__init__()
        self.entity = entity


class Unconfirmed:
    """What was published in a channel and is not confirmed yet; RabbitMQ numbers the messages of a channel."""

    def __init__(self, channel: Any, refused: Callable[[Any], None]) -> None:
        """Ask for confirms, and listen.

        Args:
            channel: of py-amqp.
            refused: called with what is known of a message that the broker does not take.
        """
        channel.confirm_select()
        channel.events["basic_ack"].add(self._acked)
        channel.events["basic_nack"].add(self._nacked)
        self._send, channel.basic_publish = channel.basic_publish, self._counted
        self._refused = refused
        self.last = 0  # number of the last message: every one counts, Celery's own events as well
        self.open: dict[int, Any] = {}  # number -> what is known of the message, the oldest first

    def _counted(self, *args: Any, **options: Any) -> Any:
        self.last += 1
        return self._send(*args, **options)

    def _acked(self, number: int, multiple: bool) -> None:
        self._settled(number, multiple)

    def _nacked(self, number: int, multiple: bool) -> None:
        for known in self._settled(number, multiple):
            self._refused(known)

    def _settled(self, number: int, multiple: bool) -> list[Any]:
        numbers = [one for one in self.open if one <= number] if multiple else [number]
        return [self.open.pop(one) for one in numbers if one in self.open]


class Hasty(Producer):
    """A producer that asks the broker for nothing, for it would have to wait for the answer."""

    def __init__(self, connection: Connection) -> None:
        """Begin with nothing declared."""
        super().__init__(connection, auto_declare=False)
        self._known: set[tuple[type, str]] = set()

    def maybe_declare(self, entity: Any, retry: bool = False, **policy: Any) -> bool:
        """Declare nothing, and refuse what is not known to be there.

        Raises:
            NotReady: with what is to be declared.
        """
        if (type(entity), entity.name) not in self._known:
            raise NotReady(entity)
        return False

    def know(self, entity: Any) -> None:
        """Note that somebody else has declared something; what may vanish by itself is never known to be there."""
        if entity.can_cache_declaration:
            self._known.add((type(entity), entity.name))


def read_when_told(connection: Connection) -> None:
    """Keep py-amqp from reading before each write, to hear that the broker has no memory: writes tell as well."""
    amqp: Any = connection.connection
    amqp.client_properties.get("capabilities", {}).pop("connection.blocked", None)


def may_go_ahead(connection: Connection) -> bool:
    """Tell whether messages may go ahead to the broker of an open connection, and a write to it ends in time.

    The system sees to that, but not for greenlets, whose sockets are another library's, nor for TLS, which tries again
    by itself; and not if the project says otherwise, or wants no confirms.
    """
    if connection.transport.driver_name != "py-amqp" or not hasattr(select, "poll"):
        return False
    options: dict[str, Any] = connection.transport_options or {}
    amqp: Any = connection.connection
    timeout: Any = options.get("write_timeout")
    is_short = timeout is not None and timeout <= conf.get().PUBLISH_TIMEOUT
    return is_short and bool(options.get("confirm_publish")) and type(amqp.transport.sock).__module__ == "socket"


class Ahead:
    """A connection whose messages are not waited for."""

    def __init__(self, app: Celery) -> None:
        """Connect.

        Raises:
            Exception: when the broker is not there.
        """
        self._connection = connection_for(app, confirms=False)
        self._connection.transport_options = {**(self._connection.transport_options or {}), "confirm_publish": False}
        self._refused: list[Doubt] = []
        try:
            self.producer = Hasty(self._connection)
            self._take_over(self.producer.channel)
        except BaseException:
            self.close()
            raise

    def _take_over(self, channel: Any) -> None:
        """Have the client wait for nothing: read only what has come, and leave closed what the broker closes."""
        read_when_told(self._connection)
        self._unconfirmed = Unconfirmed(channel, lambda known: self._refused.append(known[1]))
        channel.open = _stay_closed
        self._poll = select.poll()
        amqp: Any = self._connection.connection
        self._poll.register(amqp.transport.sock, select.POLLIN | select.POLLOUT)

    def publish(self, publish: Callable[[Any], Any], doubt: Doubt) -> None:
        """Publish, if there is room for it in the socket's buffer.

        Args:
            publish: given a ``kombu.Producer``, sends a message with it.
            doubt: what to do when the broker turns out not to have it, which :meth:`doubts` tells.

        Raises:
            NotReady: when something has to be declared before; nothing is sent then.
            PublishTimeout: when there is no room, or the broker has not confirmed one within ``PUBLISH_TIMEOUT``;
                nothing is sent then.
            Exception: of the publication.
        """
        self._listen()
        number = self._unconfirmed.last + 1
        self._unconfirmed.open[number] = time.monotonic(), doubt
        try:
            publish(self.producer)
        except BaseException:  # the caller knows of it
            self._unconfirmed.open.pop(number, None)
            raise

    def _listen(self) -> None:
        """Hear what the broker has said."""
        while (events := self._events()) & ~select.POLLOUT:
            if not self._read():
                break
        if not events & select.POLLOUT:
            raise PublishTimeout("The broker is slow: what it was sent before has not left yet.")
        oldest = next(iter(self._unconfirmed.open.values()), None)
        if oldest is not None and time.monotonic() - oldest[0] > conf.get().PUBLISH_TIMEOUT:
            raise PublishTimeout("The broker is silent: it has not confirmed what it was sent a while ago.")

    def _events(self) -> int:
        return sum(events for _, events in self._poll.poll(0))

    def _read(self) -> bool:
        """Read what has come; tell whether there was something whole, rather than the beginning of it."""
        try:
            self._connection.drain_events(timeout=0.001)
        except TimeoutError:
            return False
        return True

    def settle(self, until: float) -> None:
        """Wait for what is not confirmed: a process that ends with something unread may take back what it has sent."""
        with suppress(Exception):
            while self._unconfirmed.open and time.monotonic() < until:
                self._read()

    def doubts(self, *, broken: bool) -> list[Doubt]:
        """Return what is to be done about messages that the broker has refused; of a broken connection, about all."""
        found, self._refused = self._refused, []
        if broken:
            found += [doubt for _, doubt in self._unconfirmed.open.values()]
            self._unconfirmed.open.clear()
        return found

    def close(self) -> None:
        """Let go of the connection without a goodbye, which a silent broker would not answer."""
        with suppress(Exception):  # what is broken may be too broken to be closed
            self._connection.collect()


def _stay_closed() -> None:
    raise ChannelError("The broker has closed the channel.")
