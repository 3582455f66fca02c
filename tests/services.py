"""The real services the suite runs against: where they are, and which of them answer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from urllib.parse import unquote, urlsplit

import kombu
import psycopg
import pymysql
import redis

TIMEOUT = 3  # seconds a service has to answer
ABSENT = "DCS_TESTS_ABSENT"  # tells child processes what their parent found out


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A server that some of the tests need."""

    name: str
    variable: str  # the environment variable with its URL
    default: str
    log_in: Callable[[str], None]

    @property
    def url(self) -> str:
        return os.environ.get(self.variable) or self.default

    def find_absence(self) -> str | None:
        """Return why the service cannot be used, or None if it answers."""
        try:
            self.log_in(self.url)
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            return f"{self.name} does not answer at {_without_password(self.url)} ({self.variable}): {reason[-1]}"
        return None


def mariadb_arguments(url: str) -> dict[str, object]:
    """Return what ``pymysql.connect()`` takes."""
    parts = urlsplit(url)
    return {
        "host": parts.hostname,
        "port": parts.port or 3306,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
    }


def _log_in_to_postgres(url: str) -> None:
    psycopg.connect(url, connect_timeout=TIMEOUT).close()


def _log_in_to_mariadb(url: str) -> None:
    pymysql.connect(connect_timeout=TIMEOUT, **mariadb_arguments(url)).close()


def _log_in_to_rabbitmq(url: str) -> None:
    with kombu.Connection(url, connect_timeout=TIMEOUT) as connection:
        connection.connect()


def _log_in_to_redis(url: str) -> None:
    with redis.Redis.from_url(url, socket_connect_timeout=TIMEOUT, socket_timeout=TIMEOUT) as client:
        client.ping()


SERVICES = {
    service.name: service
    for service in (
        Service(
            name="postgres",
            variable="POSTGRES_URL",
            default="postgresql://postgres@127.0.0.1:5432/postgres",
            log_in=_log_in_to_postgres,
        ),
        Service(
            name="mariadb",
            variable="MARIADB_URL",
            default="mysql://root@127.0.0.1:3306/mysql",
            log_in=_log_in_to_mariadb,
        ),
        Service(
            name="rabbitmq",
            variable="RABBITMQ_URL",
            default="amqp://guest:guest@127.0.0.1:5672//",
            log_in=_log_in_to_rabbitmq,
        ),
        Service(
            name="redis",
            variable="REDIS_URL",
            default="redis://127.0.0.1:6379/0",
            log_in=_log_in_to_redis,
        ),
    )
}


@cache
def absent() -> dict[str, str]:
    """Return the services that cannot be used, with the reasons. They are asked once per run."""
    if ABSENT not in os.environ:
        reasons = {name: service.find_absence() for name, service in SERVICES.items()}
        os.environ[ABSENT] = json.dumps({name: reason for name, reason in reasons.items() if reason})
    return json.loads(os.environ[ABSENT])


def are_required() -> bool:
    """In CI, a service that is missing is a failure. At home, its tests are skipped."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host).geturl()
