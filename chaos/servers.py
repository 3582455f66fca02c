"""Databases and brokers of the rig's own: on free ports, with data folders of their own, to be killed and wiped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 90.0  # seconds for a server to begin to answer
FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")  # where PostgreSQL's programs are, past the path


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def program(name: str, *folders: str) -> str:
    """Return the path of a server's program.

    Raises:
        FileNotFoundError: saying what is to be installed.
    """
    for folder in folders:
        for found in sorted(Path("/").glob(folder.lstrip("/")), reverse=True):
            if (found / name).exists():
                return str(found / name)
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if path is None:
        raise FileNotFoundError(
            f"The rig starts its own servers and needs {name}; install it, as from Debian's packages."
        )
    return path


@dataclass(kw_only=True)
class Server:
    """A server process, and its folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    user: str | None = None  # whom it runs as, when the rig is root and the server refuses that
    _popen: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """Return what to execute."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Return what it needs beside the rig's own environment."""
        return {}

    def prepare(self) -> None:
        """Make what the first start needs."""

    def answers(self) -> bool:
        """Tell whether it can be used."""
        raise NotImplementedError

    def begin(self) -> None:
        """Make it and start it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.user:
            shutil.chown(self.folder, self.user)
        self.prepare()
        self.start()

    def start(self) -> None:
        """Start it again, with the data that it had."""
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._popen = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                user=self.user,
                start_new_session=True,
            )
        until = time.monotonic() + PATIENCE
        while not self.answers():
            if self._popen.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.command()[0]} does not answer; see {log.name}")
            time.sleep(0.1)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it at once, as a power cut of its machine would end its processes."""
        if self._popen is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, how)
        self._popen.wait()
        self._popen = None

    def run(self, *command: str) -> None:
        """Execute one of the server's own tools."""
        environment = {**os.environ, **self.environment()}
        subprocess.run(command, cwd=self.folder, env=environment, user=self.user, check=True, capture_output=True)


def tried(act: Callable[[], Any]) -> bool:
    """Tell whether something can be done."""
    try:
        act()
    except Exception:
        return False
    return True


def _other_user(name: str) -> str | None:
    return name if os.getuid() == 0 else None


@dataclass(kw_only=True)
class Postgres(Server):
    """PostgreSQL. Without fsync: its processes are killed here, not the machine."""

    user: str | None = field(default_factory=lambda: _other_user("postgres"))

    def prepare(self) -> None:
        """Make a cluster and a database."""
        self._program = program("postgres", *FOLDERS)
        data = str(self.folder / "data")
        self.run(program("initdb", *FOLDERS), "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync")

    def command(self) -> Sequence[str]:
        """Return what to execute."""
        given = {"listen_addresses": "127.0.0.1", "fsync": "off", "max_connections": "300", "deadlock_timeout": "200ms"}
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        return [self._program, "-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder), *options]

    def answers(self) -> bool:
        """Tell whether it can be used."""
        import psycopg  # only where it is needed

        url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        return tried(lambda: psycopg.connect(url, connect_timeout=2).close())


@dataclass(kw_only=True)
class MariaDB(Server):
    """MariaDB. It writes each commit to the system, and not to the disk, for the same reason."""

    user: str | None = field(default_factory=lambda: _other_user("mysql"))

    def prepare(self) -> None:
        """Make the system's tables."""
        self._program = program("mariadbd", "/usr/sbin")
        self.run(
            program("mariadb-install-db", "/usr/bin"),
            *("--no-defaults", f"--datadir={self.folder / 'data'}", "--auth-root-authentication-method=normal"),
            *("--skip-test-db", *([f"--user={self.user}"] if self.user else [])),
        )

    def command(self) -> Sequence[str]:
        """Return what to execute."""
        return [
            self._program,
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            "--innodb-flush-log-at-trx-commit=2",
            "--max-connections=300",
            "--skip-log-bin",
        ]

    def answers(self) -> bool:
        """Tell whether it can be used."""
        import pymysql

        return tried(lambda: pymysql.connect(host="127.0.0.1", port=self.port, user="root", connect_timeout=2).close())


@dataclass(kw_only=True)
class Redis(Server):
    """Redis, which keeps what it has over a restart."""

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
class RabbitMQ(Server):
    """RabbitMQ, a node with a name of its own."""

    distribution: int = field(default_factory=free_port)

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
        connection = self._connection()
        try:
            channel = connection.channel()
            count = channel.queue_declare(queue, passive=True).message_count
            for _ in range(count if about else count // 2):
                message = channel.basic_get(queue, no_ack=True)
                if about and message is not None and about.decode() not in str(message.headers):
                    channel.basic_publish(message, routing_key=queue)
        finally:
            connection.close()

    def repeat(self, queue: str) -> None:
        """Have every message of a queue twice."""
        connection = self._connection()
        try:
            channel = connection.channel()
            for _ in range(channel.queue_declare(queue, passive=True).message_count):
                if (message := channel.basic_get(queue, no_ack=True)) is not None:
                    for _ in range(2):
                        channel.basic_publish(message, routing_key=queue)
        finally:
            connection.close()


def broker_url(kind: str, port: int) -> str:
    """Return Celery's address of a broker."""
    if kind == "redis":
        return f"redis://127.0.0.1:{port}/0"
    return f"amqp://guest:guest@127.0.0.1:{port}//"


KINDS: dict[str, type[Server]] = {"postgres": Postgres, "mariadb": MariaDB, "redis": Redis, "rabbitmq": RabbitMQ}
