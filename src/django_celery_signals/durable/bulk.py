"""Publish many messages at once, as fast as the transport allows, and learn of each whether the broker has it.

RabbitMQ: confirms in a pipeline, and ``mandatory``, for it confirms also what it has no queue for. Redis: one round
trip for a batch. Elsewhere one by one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from amqp.exceptions import ChannelError
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from .. import conf
from ..ahead import Unconfirmed, read_when_told
from ..broker import connection_for, is_eager, is_outage
from ..exceptions import PublishError, PublishTimeout
from ..handover import Message, apply, taken

logger = logging.getLogger(__name__)

IDLE = 20.0  # seconds for which an unused connection is kept
WINDOW = 500  # messages on their way to RabbitMQ without a confirm
GLANCE = 0.5  # seconds of waiting for confirms, before the caller may do something else
LONGEST = 8.0  # seconds after which a batch leaves its rest for later: a relay that is told to stop has to end

Outcomes = list[Exception | None]  # one for each message; None: the broker has it


class Bulk:
    """A connection to the broker for many messages."""

    def __init__(self, app: Celery) -> None:
        """Begin without a connection."""
        self.app = app
        self._connection: Connection | None = None
        self._producer: Any = None
        self._used_at = 0.0

    def publish(self, messages: Sequence[Message], meanwhile: Callable[[], None] = lambda: None) -> Outcomes:
        """Publish messages; an error of one does not stop the others, an outage ends it.

        What is lost on the way or comes back is reported as an error, and so is what nobody knows of: whether it
        arrived or not, the delivery may be published again.

        Args:
            messages: what to publish.
            meanwhile: called again and again until that is done; raises nothing.
        """
        try:
            outcomes = self._publish(messages, meanwhile)
        except Exception as raised:  # of the connection or the whole batch: no message is to blame
            outcomes = [raised if is_outage(raised) else OperationalError(_in_words(raised))] * len(messages)
        self._used_at = time.monotonic()
        if any(outcomes):
            self.close()
        for message, error in zip(messages, outcomes, strict=True):
            if error is None:
                taken(message)  # tells the project, which may take its time
            meanwhile()
        return outcomes

    def _publish(self, messages: Sequence[Message], meanwhile: Callable[[], None]) -> Outcomes:
        if is_eager(self.app):
            return [_outcome(self.app, message, None) for message in messages]
        if self._connection is None:
            self._connect()
        if isinstance(self._producer, Confirms):
            return self._producer.publish(self.app, messages, meanwhile)
        if hasattr(self._producer, "batch"):  # since kombu 5.7
            with self._producer.batch():
                return _one_by_one(self.app, messages, self._producer, meanwhile)
        return _one_by_one(self.app, messages, self._producer, meanwhile)

    def _connect(self) -> None:
        self._connection = connection = connection_for(self.app, confirms=False)
        self._producer = self.app.amqp.Producer(connection, auto_declare=False)
        if connection.transport.driver_name == "py-amqp":
            # Whatever the project asks for elsewhere: a publication that waits for its confirm would take it away.
            connection.transport_options = {**(connection.transport_options or {}), "confirm_publish": False}
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


def _in_words(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}"


def _one_by_one(app: Celery, messages: Sequence[Message], producer: Any, meanwhile: Callable[[], None]) -> Outcomes:
    outcomes: Outcomes = []
    until = time.monotonic() + LONGEST
    end: Exception | None = None
    for message in messages:
        meanwhile()
        if end is None and time.monotonic() > until:
            end = _slowness()
        outcomes.append(end or _outcome(app, message, producer))
        if outcomes[-1] is not None and is_outage(outcomes[-1]):
            end = outcomes[-1]
    return outcomes


def _outcome(app: Celery, message: Message, producer: Any, **options: Any) -> Exception | None:
    try:
        apply(message, app.tasks[message.receiver], producer, **options)
    except Exception as error:
        return error
    return None


def _slowness() -> PublishError:
    return PublishError(f"The broker is slow: after {LONGEST:g} s the rest of the batch is left for later.")


class Confirms:
    """A channel of RabbitMQ's that does not wait for one confirm before it sends the next message."""

    def __init__(self, connection: Connection, producer: Any) -> None:
        """Ask the broker for confirms, and listen."""
        self.connection, self.producer = connection, producer
        self._outcomes: Outcomes = []
        self._meanwhile: Callable[[], None] = lambda: None
        self._places: dict[str, int] = {}  # id of a message -> its place among the messages
        self._listen(producer.channel)
        read_when_told(connection)

    def _listen(self, channel: Any) -> None:
        self._unconfirmed = Unconfirmed(channel, self._refused)  # of each message its place
        channel.events["basic_return"].add(self._returned)
        self._open_again, channel.open = channel.open, self._reopened
        self._is_broken = False

    def publish(self, app: Celery, messages: Sequence[Message], meanwhile: Callable[[], None]) -> Outcomes:
        """Publish messages and wait for their confirms."""
        self._outcomes, self._meanwhile = [None] * len(messages), meanwhile
        self._places = {message.event_id: place for place, message in enumerate(messages)}
        places = deque(range(len(messages)))
        end: Exception = _slowness()
        try:
            self._in_a_row(app, messages, places, time.monotonic() + LONGEST)
        except Exception as error:
            end = error
        for place in (*self._unconfirmed.open.values(), *places):  # which nobody knows of, or nobody has tried
            self._outcomes[place] = end
        return self._outcomes

    def _in_a_row(self, app: Celery, messages: Sequence[Message], places: deque[int], until: float) -> None:
        """Publish without a wait, as long as the channel holds; then one by one.

        Raises:
            Exception: of an outage. What is open or among the places then is not known.
        """
        try:
            while places and time.monotonic() < until:
                self._hand_over(app, messages, places.popleft())
                if len(self._unconfirmed.open) >= WINDOW:
                    self._wait(WINDOW // 2)
            self._wait(0)
        except ChannelError:
            places.extendleft(reversed(self._unconfirmed.open.values()))
            self._renew()
            self._singly(app, messages, places, until)

    def _singly(self, app: Celery, messages: Sequence[Message], places: deque[int], until: float) -> None:
        """Wait for each confirm: a message that breaks the channel is not named, and takes others along."""
        while places and time.monotonic() < until:
            place = places.popleft()
            try:
                self._hand_over(app, messages, place)
                self._wait(0)
            except ChannelError as error:
                self._outcomes[place] = error
                self._renew()

    def _hand_over(self, app: Celery, messages: Sequence[Message], place: int) -> None:
        """Publish a message; an error that is only its own is its outcome.

        Raises:
            Exception: any other.
        """
        self._meanwhile()
        number = self._unconfirmed.last + 1
        self._unconfirmed.open[number] = place
        error = _outcome(app, messages[place], self.producer, mandatory=True)
        if self._is_broken:
            raise (error and _of_channel(error)) or ChannelError("The broker has closed the channel.")
        if error is not None and is_outage(error):
            raise error
        if error is not None or self._unconfirmed.last < number:  # the task's own apply_async() may go another way
            self._unconfirmed.open.pop(number, None)
            self._outcomes[place] = error

    def _renew(self) -> None:
        channel = self.connection.channel()
        self.producer.revive(channel)
        self._listen(channel)

    def _wait(self, most: int) -> None:
        """Read confirms until no more than so many are missing.

        Raises:
            PublishTimeout: when the broker is silent.
        """
        until = time.monotonic() + conf.get().PUBLISH_TIMEOUT
        while len(self._unconfirmed.open) > most:
            before = len(self._unconfirmed.open)
            self._meanwhile()
            try:
                self.connection.drain_events(timeout=max(0.01, min(GLANCE, until - time.monotonic())))
            except TimeoutError as error:
                if time.monotonic() >= until:
                    raise PublishTimeout(f"The broker has not confirmed {before} messages.") from error
            if len(self._unconfirmed.open) < before:
                until = time.monotonic() + conf.get().PUBLISH_TIMEOUT

    def _reopened(self) -> Any:
        """Note that the broker has closed the channel: opened again it confirms nothing. Some swallow the error."""
        self._is_broken = True
        return self._open_again()

    def _refused(self, place: int) -> None:
        self._outcomes[place] = PublishError("The broker refused the message: its queue is full.")

    def _returned(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        place = self._places.get(message.properties.get("correlation_id"))
        if place is not None:
            self._outcomes[place] = PublishError(
                f"The broker has no queue for the message (exchange {exchange!r}, routing key {routing_key!r})."
            )


def _of_channel(error: Exception) -> Exception | None:
    """Return the error by which the broker closed the channel, if it is one; Celery makes an outage of some."""
    return next((one for one in (error, error.__cause__) if isinstance(one, ChannelError)), None)
