"""A place of one test's own at a broker."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from amqp.exceptions import ChannelError
from kombu import Connection
from kombu.transport import memory

from tests import run
from tests.services import SERVICES


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where one test's messages go; nobody else's are there."""

    name: str  # "memory", "filesystem", "rabbitmq", "quorum" (RabbitMQ with queues of that type) or "redis"
    url: str
    queue: str  # the default queue, unique to the test
    options: dict[str, Any]  # the transport's
    clear: Callable[[Broker], None]
    further_queues: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        """Return the Celery settings that lead here. They can be written as JSON."""
        return {
            "broker_url": self.url,
            "broker_transport_options": self.options,
            "task_default_queue": self.queue,
            "control_exchange": f"{self.queue}_control",
            "event_exchange": f"{self.queue}_events",
            "worker_enable_remote_control": False,
            **({"task_default_queue_type": "quorum"} if self.name == "quorum" else {}),
            **({"broker_transport": "tests.spool:Transport"} if self.name == "filesystem" else {}),
        }

    def queue_named(self, name: str) -> str:
        """Return the name of a further queue that nobody else uses."""
        queue = f"{self.queue}_{name}"
        if queue not in self.further_queues:
            self.further_queues.append(queue)
        return queue

    def connection(self) -> Connection:
        """Return a new connection, to look at what was published."""
        transport = self.settings().get("broker_transport")
        return Connection(self.url, transport=transport, transport_options=self.options)

    def message_count(self, queue: str | None = None) -> int:
        """Return how many messages wait in a queue, by default in the default one."""
        with self.connection() as connection, connection.channel() as channel:
            passive = self.name in (
                "rabbitmq",
                "quorum",
            )  # the others lose nothing by a declaration, and Redis needs it to count
            try:
                return int(channel.queue_declare(queue or self.queue, passive=passive).message_count)
            except ChannelError:  # there is no such queue yet
                return 0


def make(name: str, folder: Path) -> Broker:
    """Return a new place at the broker of that name. ``filesystem`` keeps its files in the folder."""
    queue = f"{run.NAME}_{secrets.token_hex(4)}"
    url, options, clear = _MAKERS[name](queue, folder)
    return Broker(name=name, url=url, queue=queue, options=options, clear=clear)


def forget_memory() -> None:
    """Empty the broker that lives in this process."""
    memory.Transport.global_state.clear()
    memory.Channel.queues.clear()
    memory.Channel.events.clear()


def _memory(queue: str, folder: Path) -> tuple[str, dict[str, Any], Callable[[Broker], None]]:
    return "memory://", {"polling_interval": 0.01}, lambda broker: forget_memory()


def _filesystem(queue: str, folder: Path) -> tuple[str, dict[str, Any], Callable[[Broker], None]]:
    messages, control = folder / "messages", folder / "control"
    messages.mkdir()
    control.mkdir()
    options = {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "polling_interval": 0.05,
    }
    return "filesystem://", options, lambda broker: None  # pytest removes the folder


def _rabbitmq(queue: str, folder: Path) -> tuple[str, dict[str, Any], Callable[[Broker], None]]:
    return SERVICES["rabbitmq"].url, {}, _clear_rabbitmq


def _redis(queue: str, folder: Path) -> tuple[str, dict[str, Any], Callable[[Broker], None]]:
    return SERVICES["redis"].url, {"global_keyprefix": f"{queue}:"}, _clear_redis


def _clear_rabbitmq(broker: Broker) -> None:
    names = [broker.queue, *broker.further_queues]
    control = f"{broker.queue}_control.pidbox"
    with broker.connection() as connection, connection.channel() as channel:
        for name in names:  # RabbitMQ does not mind when it does not exist
            channel.queue_delete(name)
        for name in [*names, control, f"reply.{control}", f"{broker.queue}_events"]:
            channel.exchange_delete(name)


def _clear_redis(broker: Broker) -> None:
    with redis.Redis.from_url(broker.url) as client:
        for key in client.scan_iter(match=f"{broker.queue}*", count=1000):
            client.delete(key)


_MAKERS = {
    "memory": _memory,
    "filesystem": _filesystem,
    "rabbitmq": _rabbitmq,
    "quorum": _rabbitmq,
    "redis": _redis,
}
