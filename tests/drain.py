"""Look at what was published, and run it as a worker would, in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.result import EagerResult
from kombu import Queue

from django_celery_signals.wire import ARGUMENT
from tests.brokers import Broker
from tests.waiting import wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One Celery message, as it lay in the queue."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    args: list[Any]
    kwargs: dict[str, Any]

    @property
    def task(self) -> str:
        return str(self.headers["task"])

    @property
    def sealed(self) -> str:
        """The signed envelope; a KeyError for a message that no signal sent."""
        return str(self.kwargs[ARGUMENT])

    @property
    def body(self) -> dict[str, Any]:
        """The envelope's JSON, unverified."""
        return dict(json.loads(self.sealed.rpartition(":")[0]))


def take(app: Celery, queue: str | None = None) -> list[Published]:
    """Take every message out of a queue in memory, by default the default one, oldest first."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        return list(_messages(channel, queue or app.conf.task_default_queue))


def _messages(channel: Any, queue: str) -> Iterator[Published]:
    channel.queue_declare(queue)
    while (message := channel.basic_get(queue, no_ack=True)) is not None:
        args, kwargs, _ = message.decode()
        yield Published(headers=dict(message.headers), properties=dict(message.properties), args=args, kwargs=kwargs)


def waiting(broker: Broker, queue: str | None = None) -> Iterator[Published]:
    """Take what lies in a queue of a test's own place at a broker, by default in the default one."""
    name = queue or broker.queue
    with broker.connection() as connection, connection.channel() as channel:
        while broker.message_count(name) and (message := Queue(name)(channel).get(no_ack=True)):
            args, kwargs, _ = message.decode()
            yield Published(headers=message.headers, properties=message.properties, args=args, kwargs=kwargs)


def arrived(broker: Broker, count: int = 1, queue: str | None = None) -> list[Published]:
    """Take messages until so many have arrived; then there must be no more."""
    messages: list[Published] = []
    wait_until(lambda: messages.extend(waiting(broker, queue)) or len(messages) >= count, what=f"{count} messages")
    assert count == len(messages) + len(list(waiting(broker, queue)))
    return messages


def run(app: Celery, message: Published) -> EagerResult[Any]:
    """Run one message through Celery's own tracer and the library's worker side."""
    task = app.tasks[message.task]
    return task.apply(
        tuple(message.args),
        message.kwargs,
        task_id=message.headers["id"],
        retries=message.headers["retries"],
        throw=False,
    )


def drain(app: Celery, queue: str | None = None) -> list[EagerResult[Any]]:
    """Run what waits, and what that sends in turn, until nothing waits."""
    results: list[EagerResult[Any]] = []
    while messages := take(app, queue):
        results += [run(app, message) for message in messages]
    return results
