"""The rig's brokers, which can be wiped, and made to lose or to repeat messages."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from .servers import Server, free_port, program, tried


class Broker(Server):
    """A broker."""

    def url(self, port: int) -> str:
        """Return Celery's address of it, at a port of a proxy."""
        raise NotImplementedError

    def wipe(self) -> None:
        """Lose everything, queues as well."""
        raise NotImplementedError

    def lose_some(self, queue: str, about: bytes = b"") -> None:
        """Lose the half of a queue, or what is about something."""
        raise NotImplementedError

    def repeat(self, queue: str) -> None:
        """Have every message of a queue twice."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Redis(Broker):
    """Redis, which keeps what it has over a restart."""

    def url(self, port: int) -> str:
        """Return Celery's address of it, at a port of a proxy."""
        return f"redis://127.0.0.1:{port}/0"

    def prepare(self) -> None:
        """Find it."""
        self._program = program("redis-server")

    def command(self) -> Sequence[str]:
        """Return what to execute."""
        kept = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        return [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), *kept]

    def answers(self) -> bool:
        """Tell whether it can be used."""
        return tried(lambda: self.client().ping())

    def client(self) -> Any:
        """Return a connection past the proxy."""
        import redis

        return redis.Redis(port=self.port, socket_timeout=5)

    def wipe(self) -> None:
        """Lose everything."""
        self.client().flushall()

    def lose_some(self, queue: str, about: bytes = b"") -> None:
        """Lose the half of a queue, or what is about something."""
        client = self.client()
        if not about:
            client.ltrim(queue, 0, max(0, client.llen(queue) // 2 - 1))
        for message in client.lrange(queue, 0, -1) if about else ():
            if about in message:
                client.lrem(queue, 1, message)

    def repeat(self, queue: str) -> None:
        """Have every message of a queue twice."""
        client = self.client()
        if messages := client.lrange(queue, 0, -1):
            client.rpush(queue, *messages)


@dataclass(kw_only=True)
class RabbitMQ(Broker):
    """RabbitMQ, a node with a name of its own."""

    distribution: int = field(default_factory=free_port)

    def url(self, port: int) -> str:
        """Return Celery's address of it, at a port of a proxy."""
        return f"amqp://guest:guest@127.0.0.1:{port}//"

    def prepare(self) -> None:
        """Find it, and leave out its plugins."""
        self._program = program("rabbitmq-server", "/usr/lib/rabbitmq/bin", "/usr/lib/rabbitmq/lib/*/sbin")
        (self.folder / "plugins").write_text("[].")
        (self.folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\nloopback_users = none\n")

    def environment(self) -> Mapping[str, str]:
        """Return where everything is."""
        return {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"chaos{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self.distribution),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }

    def command(self) -> Sequence[str]:
        """Return what to execute."""
        return [self._program]

    def answers(self) -> bool:
        """Tell whether it can be used."""
        return tried(lambda: self._connection().close())

    def _connection(self) -> Any:
        import amqp

        connection = amqp.Connection(host=f"127.0.0.1:{self.port}", userid="guest", password="guest", connect_timeout=5)
        connection.connect()
        return connection

    def wipe(self) -> None:
        """Lose everything, queues as well."""
        self.stop()
        shutil.rmtree(self.folder / "mnesia", ignore_errors=True)
        self.start()

    def lose_some(self, queue: str, about: bytes = b"") -> None:
        """Lose the half of a queue, or what is about something."""
        with closing(self._connection()) as connection:
            channel = connection.channel()
            count = channel.queue_declare(queue, passive=True).message_count
            for _ in range(count if about else count // 2):
                message = channel.basic_get(queue, no_ack=True)
                if about and message is not None and about.decode() not in str(message.headers):
                    channel.basic_publish(message, routing_key=queue)

    def repeat(self, queue: str) -> None:
        """Have every message of a queue twice."""
        with closing(self._connection()) as connection:
            channel = connection.channel()
            for _ in range(channel.queue_declare(queue, passive=True).message_count):
                if (message := channel.basic_get(queue, no_ack=True)) is not None:
                    channel.basic_publish(message, routing_key=queue)
                    channel.basic_publish(message, routing_key=queue)


BROKERS: dict[str, type[Broker]] = {"redis": Redis, "rabbitmq": RabbitMQ}
