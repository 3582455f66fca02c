"""Publish to RabbitMQ without waiting for its confirms, and learn of them later."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Connection, Producer

from . import conf
from .broker import connection_for
from .exceptions import PublishTimeout


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is to be done about a message that the broker may not have."""

    about: Any  # what is known of the message
    act: Callable[[list[Any]], None]  # given that of all such messages at once


class NotReady(Exception):
    """This message cannot be published without waiting for something; nothing was sent."""

    def __init__(self, entity: Any = None) -> None:
        """Keep what has to be declared first, if it is that."""
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

    is_hasty = True  # what is to be published without a template would be the project's code, which may take its time

    def __init__(self, connection: Connection) -> None:
        """Begin with nothing declared."""
        super().__init__(connection, auto_declare=False)
        self._known: set[tuple[type, str]] = set()

    def maybe_declare(self, entity: Any, retry: bool = False, **policy: Any) -> bool:
        """Declare nothing, and refuse what was not declared yet.

        Raises:
            NotReady: with what is to be declared.
        """
        if (type(entity), entity.name) not in self._known:
            raise NotReady(entity)
        return False

    def declare_now(self, entity: Any) -> None:
        """Declare something, and wait for the broker; what may vanish by itself is to be declared each time."""
        super().maybe_declare(entity)
        if entity.can_cache_declaration:
            self._known.add((type(entity), entity.name))


class Ahead:
    """A connection whose messages are not waited for."""

    def __init__(self, app: Celery) -> None:
        """Connect.

        Raises:
            Exception: when the broker is not there, or confirms nothing.
        """
        self._connection = connection_for(app, confirms=False)
        self._connection.transport_options = {**(self._connection.transport_options or {}), "confirm_publish": False}
        self._refused: list[Doubt] = []
        try:
            self.producer = Hasty(self._connection)
            self._unconfirmed = Unconfirmed(self.producer.channel, lambda known: self._refused.append(known[1]))
        except BaseException:
            self.close()
            raise

    def is_bounded(self) -> bool:
        """Tell whether a write ends in time when the broker reads nothing: if the system sees to it.

        It does not for greenlets, whose sockets are another library's, nor for TLS, which tries again by itself.
        """
        options: dict[str, Any] = self._connection.transport_options or {}
        timeout: Any = options.get("write_timeout")  # the project's own, or ours
        amqp: Any = self._connection.connection
        is_short = timeout is not None and timeout <= conf.get().PUBLISH_TIMEOUT
        return is_short and type(amqp.transport.sock).__module__ == "socket"

    def publish(self, publish: Callable[[Any], Any], doubt: Doubt) -> None:
        """Publish; what is sent fits into the socket's buffer, or is refused in time.

        Args:
            publish: given a ``kombu.Producer``, sends a message with it.
            doubt: what to do when the broker turns out not to have it, which :meth:`doubts` tells.

        Raises:
            NotReady: when that would have to be waited for; nothing is sent then.
            PublishTimeout: when the broker has not confirmed one within ``PUBLISH_TIMEOUT``; nothing is sent then.
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
        if self._unconfirmed.last < number:  # the task's own apply_async() may have gone another way
            self._unconfirmed.open.pop(number, None)

    def _listen(self) -> None:
        """Hear what the broker has said, if it has been waited for; each publication reads what one other caused."""
        if not self._is_silent():
            return
        with suppress(TimeoutError):
            while True:
                self._connection.drain_events(timeout=0)
        if self._is_silent():
            raise PublishTimeout("The broker is silent: it has not confirmed what it was sent a while ago.")

    def _is_silent(self) -> bool:
        oldest = next(iter(self._unconfirmed.open.values()), None)
        return oldest is not None and time.monotonic() - oldest[0] > conf.get().PUBLISH_TIMEOUT

    def doubts(self, *, broken: bool) -> list[Doubt]:
        """Return what is to be done about messages that the broker has refused; of a broken connection, about all."""
        found, self._refused = self._refused, []
        if broken:
            found += [doubt for _, doubt in self._unconfirmed.open.values()]
            self._unconfirmed.open.clear()
        return found

    def close(self) -> None:
        """Let go of the connection."""
        with suppress(Exception):  # what is broken may be too broken to be closed
            self._connection.release()
