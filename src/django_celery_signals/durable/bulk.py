"""Publish many messages at once, as fast as the transport allows, and learn of each whether the broker has it.

RabbitMQ: confirms in a pipeline, and ``mandatory``, for it confirms also what it has no queue for. Redis: one round
trip for a batch. Elsewhere one by one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from celery import Celery
from kombu import Connection

from .. import conf
from ..broker import connection_for, is_outage
from ..exceptions import PublishError, PublishTimeout
from ..handover import Message, apply, taken

logger = logging.getLogger(__name__)

IDLE = 20.0  # seconds for which an unused connection is kept
WINDOW = 500  # messages on their way to RabbitMQ without a confirm

Outcomes = list[Exception | None]  # one for each message; None: the broker has it


class Bulk:
    """A connection to the broker for many messages."""

    def __init__(self, app: Celery) -> None:
        """Begin without a connection."""
        self.app = app
        self._connection: Connection | None = None
        self._producer: Any = None
        self._used_at = 0.0

    def publish(self, messages: Sequence[Message]) -> Outcomes:
        """Publish messages; an error of one does not stop the others, an outage ends it.

        What is lost on the way or comes back is reported as an error, and so is what nobody knows of: whether it
        arrived or not, the delivery may be published again.
        """
        try:
            outcomes = self._publish(messages)
        except Exception as raised:
            logger.warning("The broker did not take a batch: %r", raised)
            outcomes = [raised] * len(messages)
        self._used_at = time.monotonic()
        if any(outcomes):
            self.close()
        for message, error in zip(messages, outcomes, strict=True):
            if error is None:
                taken(message)
        return outcomes

    def _publish(self, messages: Sequence[Message]) -> Outcomes:
        if self.app.conf.task_always_eager:
            return [_outcome(self.app, message, None) for message in messages]
        if self._connection is None:
            self._connect()
        if isinstance(self._producer, Confirms):
            return self._producer.publish(self.app, messages)
        if hasattr(self._producer, "batch"):
            with self._producer.batch():
                return _one_by_one(self.app, messages, self._producer)
        return _one_by_one(self.app, messages, self._producer)

    def _connect(self) -> None:
        self._connection = connection = connection_for(self.app, confirms=False)
        self._producer = self.app.amqp.Producer(connection, auto_declare=False)
        if connection.transport.driver_type == "amqp":
            self._producer = Confirms(connection, self._producer)

    def rest(self) -> None:
        """Let go of a connection that nobody has used for a while, before the broker misses its heartbeats."""
        if self._connection is not None and time.monotonic() - self._used_at > IDLE:
            self.close()

    def close(self) -> None:
        """Let go of the connection, and of what was declared in it: a queue may be gone."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.release()
            except Exception as error:
                logger.debug("Closing the relay's connection failed: %r", error)


def _one_by_one(app: Celery, messages: Iterable[Message], producer: Any) -> Outcomes:
    outcomes: Outcomes = []
    for message in messages:
        outage = next((error for error in outcomes if error is not None and is_outage(error)), None)
        outcomes.append(outage or _outcome(app, message, producer))
    return outcomes


def _outcome(app: Celery, message: Message, producer: Any, **options: Any) -> Exception | None:
    try:
        apply(message, app.tasks[message.receiver], producer, **options)
    except Exception as error:
        return error
    return None


class Confirms:
    """A channel of RabbitMQ's that does not wait for one confirm before it sends the next message."""

    def __init__(self, connection: Connection, producer: Any) -> None:
        """Ask the broker for confirms, and listen."""
        self.connection, self.producer = connection, producer
        channel = producer.channel
        channel.confirm_select()
        channel.events["basic_ack"].add(self._acked)
        channel.events["basic_nack"].add(self._nacked)
        channel.events["basic_return"].add(self._returned)
        self._send, channel.basic_publish = channel.basic_publish, self._counted
        self._tag = 0  # of the last message; the broker counts every one of a channel, Celery's own events, too
        self._open: dict[int, int] = {}  # tag of a message without a confirm -> its place among the messages
        self._outcomes: Outcomes = []
        self._places: dict[str, int] = {}  # id of a message -> its place

    def publish(self, app: Celery, messages: Sequence[Message]) -> Outcomes:
        """Publish messages and wait for their confirms."""
        self._outcomes = [None] * len(messages)
        self._places = {message.event_id: place for place, message in enumerate(messages)}
        for place, message in enumerate(messages):
            tag = self._tag + 1
            self._open[tag] = place
            error = _outcome(app, message, self.producer, mandatory=True)
            if error is not None:
                self._open.pop(tag, None)
                self._outcomes[place] = error
                if is_outage(error):
                    return self._unknown(messages[place:], error)
            if len(self._open) >= WINDOW:
                self._wait(WINDOW // 2)
        self._wait(0)
        return self._outcomes

    def _wait(self, most: int) -> None:
        """Read confirms until no more than so many are missing.

        Raises:
            PublishTimeout: when the broker is silent.
        """
        until = time.monotonic() + conf.get().PUBLISH_TIMEOUT
        while len(self._open) > most:
            before = len(self._open)
            try:
                self.connection.drain_events(timeout=max(0.01, until - time.monotonic()))
            except TimeoutError as error:
                raise PublishTimeout(f"The broker has not confirmed {before} messages.") from error
            if len(self._open) < before:
                until = time.monotonic() + conf.get().PUBLISH_TIMEOUT

    def _unknown(self, rest: Sequence[Message], error: Exception) -> Outcomes:
        """Report what was not confirmed before the connection broke, and what was not even sent."""
        for place in (*self._open.values(), *(self._places[message.event_id] for message in rest)):
            self._outcomes[place] = error
        return self._outcomes

    def _counted(self, *args: Any, **options: Any) -> Any:
        self._tag += 1
        return self._send(*args, **options)

    def _acked(self, tag: int, multiple: bool) -> None:
        self._settled(tag, multiple)

    def _nacked(self, tag: int, multiple: bool) -> None:
        for place in self._settled(tag, multiple):
            self._outcomes[place] = PublishError("The broker refused the message: its queue is full.")

    def _settled(self, tag: int, multiple: bool) -> list[int]:
        """Return the places of the messages that a confirm is about, which are open no more."""
        tags = [one for one in self._open if one <= tag] if multiple else [tag]
        return [self._open.pop(one) for one in tags if one in self._open]

    def _returned(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        place = self._places.get(message.properties.get("correlation_id"))
        if place is not None:
            self._outcomes[place] = PublishError(
                f"The broker has no queue for the message (exchange {exchange!r}, routing key {routing_key!r})."
            )
