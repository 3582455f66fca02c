"""Publish to RabbitMQ without waiting for its confirms, and learn of them later."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from . import conf
from .exceptions import PublishTimeout

Doubt = Callable[[], None]  # what is to be done about a message that may be lost


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


class Ahead:
    """A channel whose messages are not waited for."""

    def __init__(self, producer: Any) -> None:
        """Begin.

        Args:
            producer: of kombu, with a channel of its own.
        """
        self._producer = producer
        self._refused: list[Doubt] = []
        self._unconfirmed = Unconfirmed(producer.channel, lambda known: self._refused.append(known[1]))

    def publish(self, publish: Callable[[Any], Any], doubt: Doubt) -> None:
        """Publish; what is sent fits into the socket's buffer, or is refused in time.

        Args:
            publish: given a ``kombu.Producer``, sends a message with it.
            doubt: what to do when the broker turns out not to have it, which :meth:`doubts` tells.

        Raises:
            PublishTimeout: when the broker has not confirmed one within ``PUBLISH_TIMEOUT``; nothing is sent then.
            Exception: of the publication.
        """
        self._listen()
        number = self._unconfirmed.last + 1
        self._unconfirmed.open[number] = time.monotonic(), doubt
        try:
            publish(self._producer)
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
                self._producer.connection.drain_events(timeout=0)
        if self._is_silent():
            raise PublishTimeout("The broker is silent: it has not confirmed what it was sent a while ago.")

    def _is_silent(self) -> bool:
        oldest = next(iter(self._unconfirmed.open.values()), None)
        return oldest is not None and time.monotonic() - oldest[0] > conf.get().PUBLISH_TIMEOUT

    def doubts(self, *, broken: bool) -> list[Doubt]:
        """Return what is to be done about messages that the broker has refused; of a broken channel, about all."""
        found, self._refused = self._refused, []
        if broken:
            found += [doubt for _, doubt in self._unconfirmed.open.values()]
            self._unconfirmed.open.clear()
        return found
