"""The rig's databases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .servers import Server, program, tried

FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")  # where PostgreSQL's programs are, past the path


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

    def begin(self) -> None:
        """Make it, start it, and make a database."""
        super().begin()
        with self._connection() as connection:
            connection.cursor().execute("CREATE DATABASE chaos CHARACTER SET utf8mb4")

    def answers(self) -> bool:
        """Tell whether it can be used."""
        return tried(lambda: self._connection().close())

    def _connection(self) -> Any:
        import pymysql

        return pymysql.connect(host="127.0.0.1", port=self.port, user="root", connect_timeout=2)


DATABASES: dict[str, type[Server]] = {"postgres": Postgres, "mariadb": MariaDB}
