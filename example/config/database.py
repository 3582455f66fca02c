"""``DATABASE_URL`` to Django's ``DATABASES`` entry."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

ENGINES = {
    "sqlite": "django.db.backends.sqlite3",
    "postgres": "django.db.backends.postgresql",
    "postgresql": "django.db.backends.postgresql",
    "mariadb": "django.db.backends.mysql",
    "mysql": "django.db.backends.mysql",
}
SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",  # DEFERRED, the default, fails at once when a reader goes on to write
    "timeout": 30,  # seconds that a process waits for the others' transactions
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}
MAX_AGE = 600  # seconds that a connection is kept; the default, 0, makes a worker open one for each receiver


def parse(url: str) -> dict[str, Any]:
    """Return the settings of the database a URL names, such as ``postgres://user:password@host:5432/name``.

    Raises:
        ValueError: for a scheme that is not one of ``ENGINES``.
    """
    parts = urlsplit(url)
    engine = ENGINES.get(parts.scheme)
    if engine is None:
        raise ValueError(f"DATABASE_URL begins with {parts.scheme!r}; it may begin with {', '.join(ENGINES)}.")
    if parts.scheme == "sqlite":
        return {"ENGINE": engine, "NAME": unquote(parts.path), "OPTIONS": SQLITE_OPTIONS, "CONN_MAX_AGE": MAX_AGE}
    if parts.scheme in ("mariadb", "mysql"):
        use_pymysql()
    return {
        "ENGINE": engine,
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "CONN_MAX_AGE": MAX_AGE,
    }


def use_pymysql() -> None:
    """Let PyMySQL, which needs no compiler, stand in for mysqlclient where that is not installed."""
    try:
        import MySQLdb  # noqa: F401
    except ImportError:
        import pymysql

        pymysql.install_as_MySQLdb()
