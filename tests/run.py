"""The name and the belongings of one run of the suite, so that runs side by side never meet.

Whatever a run creates outside of itself carries its name: databases, the folder of the SQLite files, queues and keys.
All of it is removed when the run ends. What a killed run left is removed by the next one on the same machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import redis

from tests.services import SERVICES, absent, mariadb_arguments

_MACHINE = f"dcs_tests_{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]}"

# Set by the first process of a run, inherited by all others.
NAME = os.environ.setdefault("DCS_TESTS_RUN", f"{_MACHINE}_{os.getpid()}_{secrets.token_hex(3)}")
FOLDER = Path(tempfile.gettempdir()) / NAME


def begin() -> None:
    """Make the run's folder, and remove what killed runs left."""
    _remove(_is_left)
    FOLDER.mkdir(exist_ok=True)


def end() -> None:
    """Remove everything that carries the run's name."""
    _remove(lambda name: name.startswith(NAME))


def _is_left(name: str) -> bool:
    found = re.match(rf"{_MACHINE}_(\d+)_", name)
    return found is not None and not _is_alive(int(found[1]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(condition: Callable[[str], bool]) -> None:
    for folder in FOLDER.parent.glob(f"{_MACHINE}_*"):
        if condition(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    for service, remove in _REMOVERS.items():
        if service not in absent():
            remove(SERVICES[service].url, condition)


def _remove_postgres_databases(url: str, condition: Callable[[str], bool]) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute("SELECT datname FROM pg_database").fetchall()
        for (name,) in rows:
            if condition(name):
                connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _remove_mariadb_databases(url: str, condition: Callable[[str], bool]) -> None:
    with _mariadb_cursor(url) as cursor:
        cursor.execute("SHOW DATABASES")
        for (name,) in cursor.fetchall():
            if condition(name):
                cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")


def _remove_redis_keys(url: str, condition: Callable[[str], bool]) -> None:
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(match=f"{_MACHINE}_*", count=1000):
            if condition(key.decode(errors="replace")):
                client.delete(key)


@contextmanager
def _mariadb_cursor(url: str) -> Iterator[Any]:
    connection = pymysql.connect(**mariadb_arguments(url))
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


_REMOVERS = {
    "postgres": _remove_postgres_databases,
    "mariadb": _remove_mariadb_databases,
    "redis": _remove_redis_keys,
}
