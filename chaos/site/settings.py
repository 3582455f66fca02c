"""Settings of the project under test; the rig gives the addresses of the servers."""

from __future__ import annotations

import json
import os
from typing import Any

GIVEN = "CHAOS_SITE"  # in the environment: JSON

CHAOS: dict[str, Any] = json.loads(os.environ.get(GIVEN, "{}"))

SECRET_KEY = "chaos"  # noqa: S105 - of a project that lives for minutes
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SYSTEMS = {
    "ours": ["django_celery_signals"],
    "outbox": ["django_celery_outbox"],
    "events": ["django.contrib.auth", "django.contrib.contenttypes", "django_domain_events"],
}
CHAOS.setdefault("system", "ours")
INSTALLED_APPS = [*SYSTEMS[CHAOS["system"]], "chaos.site"]

IDLE = CHAOS.get("idle", 60)

_ENGINES: dict[str, dict[str, Any]] = {
    "postgres": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        # A machine that is gone says nothing: without a bound a process waits for it for ever.
        "OPTIONS": {
            "connect_timeout": 5,
            "options": f"-c idle_in_transaction_session_timeout={IDLE}s",
            "tcp_user_timeout": 8000,
        },
    },
    "mariadb": {
        "ENGINE": "django.db.backends.mysql",
        "NAME": "chaos",
        "USER": "root",
        "OPTIONS": {
            "connect_timeout": 5,
            "read_timeout": 60,
            "write_timeout": 60,
            "ssl_disabled": True,  # or PyMySQL reads all of the system's certificates for every connection
            "init_command": f"SET SESSION idle_transaction_timeout = {IDLE}",
        },
    },
    "sqlite": {
        "ENGINE": "django.db.backends.sqlite3",
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    },
}
_database = CHAOS.get("database", "sqlite")
if _database == "mariadb":
    import pymysql

    pymysql.version_info = (2, 2, 7, "final", 0)  # what Django asks of mysqlclient
    pymysql.install_as_MySQLdb()
DATABASES = {
    "default": {
        **_ENGINES[_database],
        "HOST": "" if _database == "sqlite" else "127.0.0.1",
        "PORT": CHAOS.get("database_port", ""),
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
    }
}
if _database == "sqlite":
    DATABASES["default"]["NAME"] = CHAOS.get("file", ":memory:")

DJANGO_CELERY_SIGNALS = {
    "STRICT": True,
    "EMBED_RELAY": CHAOS.get("embedded", False),
    "LEASE": CHAOS.get("lease", 30),
    **CHAOS.get("library", {}),
}

DJANGO_DOMAIN_EVENTS = {"LEASE_SECONDS": CHAOS.get("lease", 30), "POLL_SECONDS": 0.2, "WARN_OUTSIDE_ATOMIC": False}
CELERY_OUTBOX_APP = "chaos.site.app"

QUEUE = "chaos"
CELERY_BROKER_URL = CHAOS.get("broker", "memory://")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # a broker that is away for long is part of the game
CELERY_BROKER_TRANSPORT_OPTIONS = (
    {"socket_timeout": 10, "socket_connect_timeout": 5, "visibility_timeout": 30}
    if "redis" in CELERY_BROKER_URL
    else {"confirm_publish": True}
)
CELERY_BROKER_HEARTBEAT = 10
CELERY_TASK_DEFAULT_QUEUE = QUEUE
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_DB_REUSE_MAX = 1000
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "loggers": {"django_celery_signals": {"handlers": ["stderr"], "level": "INFO"}},
}
