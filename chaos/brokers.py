"""The rig's brokers, which can be wiped, and made to lose or to repeat messages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue, or are with a worker as far as it tells."""
        raise NotImplementedError

    def lose_some(self, queue: str, about: bytes = b"") -> int:
        """Lose the half of a queue, or what is about something; return how many messages that were."""
        raise NotImplementedError

    def repeat(self, queue: str) -> int:
        """Have every message of a queue twice; return how many there were."""
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

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue, or are with a worker."""
        client = self.client()
        counts: list[int] = [client.hlen("unacked"), *(client.llen(name) for name in _lists(queue))]
        return sum(counts)

    def lose_some(self, queue: str, about: bytes = b"") -> int:
        """Lose the half of a queue, or what is about something; return how many messages that were."""
        client, lost = self.client(), 0
        for name in _lists(queue):
            messages = client.lrange(name, 0, -1)
            chosen = [message for message in messages if about in message] if about else messages[::2]
            lost += sum(client.lrem(name, 1, message) for message in chosen)
        return lost

    def repeat(self, queue: str) -> int:
        """Have every message of a queue twice; return how many there were."""
        client, count = self.client(), 0
        for name in _lists(queue):
            if messages := client.lrange(name, 0, -1):
                client.rpush(name, *messages)
                count += len(messages)
        return count


def _lists(queue: str) -> list[str]:
    """Return where kombu keeps the messages of a queue: one list for each of its priorities."""
    return [queue, *(f"{queue}\x06\x16{priority}" for priority in (3, 6, 9))]


@dataclass(kw_only=True)
class RabbitMQ(Broker):
    """RabbitMQ, a node with a name of its own."""

    distribution: int = field(default_factory=free_port)
    names: int = field(default_factory=free_port)

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
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
            # A register of names of its own, which ends with it.
            "ERL_EPMD_PORT": str(self.names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "1",
        }

    def command(self) -> Sequence[str]:
        """Return what to execute."""
        return [self._program]

    def end(self) -> None:
        """End it, and the register of names that it has started."""
        super().end()
        self.run(program("epmd"), "-port", str(self.names), "-kill", check=False)

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

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue; it does not tell which are with a worker."""
        with self._queue(queue) as (_, count):
            return count

    def lose_some(self, queue: str, about: bytes = b"") -> int:
        """Lose the half of a queue, or what is about something; return how many messages that were."""
        lost = 0
        with self._queue(queue) as (channel, count):
            for _ in range(count if about else count // 2):
                message = channel.basic_get(queue, no_ack=True)
                if about and message is not None and about.decode() not in str(message.headers):
                    channel.basic_publish(message, routing_key=queue)
                else:
                    lost += message is not None
        return lost

    def repeat(self, queue: str) -> int:
        """Have every message of a queue twice; return how many there were."""
        with self._queue(queue) as (channel, count):
            for _ in range(count):
                if (message := channel.basic_get(queue, no_ack=True)) is not None:
                    channel.basic_publish(message, routing_key=queue)
                    channel.basic_publish(message, routing_key=queue)
            return count

    @contextmanager
    def _queue(self, queue: str) -> Iterator[tuple[Any, int]]:
        """Give a channel, and how many messages wait; none where there is no such queue."""
        from amqp import NotFound

        with closing(self._connection()) as connection:
            try:
                count = connection.channel().queue_declare(queue, passive=True).message_count
            except NotFound:
                count = 0
            yield connection.channel(), count


BROKERS: dict[str, type[Broker]] = {"redis": Redis, "rabbitmq": RabbitMQ}
