"""Settings of the project that is measured; the contest gives the addresses of the servers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

GIVEN: dict[str, Any] = json.loads(os.environ.get("BENCHMARKS_SITE", "{}"))

SYSTEMS = {
    "ours": ["django_celery_signals"],
    "plain": [],
    "outbox": ["django_celery_outbox"],
    "events": ["django.contrib.auth", "django.contrib.contenttypes", "django_domain_events"],
    "jaiminho": ["jaiminho"],
}
SYSTEM = GIVEN.get("system", "ours")

SECRET_KEY = "benchmarks"  # noqa: S105 - of a project that lives for minutes
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [*SYSTEMS[SYSTEM], "benchmarks.site"]

_DATABASE = GIVEN.get("database", "postgres")
if _DATABASE == "mariadb":
    import pymysql

    pymysql.version_info = (2, 2, 7, "final", 0)  # what Django asks of mysqlclient
    pymysql.install_as_MySQLdb()
_ENGINES: dict[str, dict[str, Any]] = {
    "postgres": {"ENGINE": "django.db.backends.postgresql", "USER": "postgres", "HOST": "127.0.0.1"},
    "mariadb": {
        "ENGINE": "django.db.backends.mysql",
        "USER": "root",
        "HOST": "127.0.0.1",
        "OPTIONS": {"ssl_disabled": True},
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
_NAME = f"benchmarks_{SYSTEM}{GIVEN.get('suffix', '')}"
DATABASES = {
    "default": {
        **_ENGINES[_DATABASE],
        "NAME": str(Path(GIVEN.get("folder", ""), f"{_NAME}.sqlite3")) if _DATABASE == "sqlite" else _NAME,
        "PORT": GIVEN.get(_DATABASE, ""),
        "CONN_MAX_AGE": None,
    }
}

DJANGO_CELERY_SIGNALS = {"EMBED_RELAY": False, **GIVEN.get("library", {})}

_BROKER = GIVEN.get("broker", "rabbitmq")
_URLS = {"rabbitmq": "amqp://guest:guest@127.0.0.1:{}//", "redis": "redis://127.0.0.1:{}/0"}
CELERY_BROKER_URL = _URLS[_BROKER].format(GIVEN.get(_BROKER, 0))
CELERY_TASK_DEFAULT_QUEUE = _NAME
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False  # workers of several contenders run beside one another
if (_REUSE := GIVEN.get("reuse", 1000)) is not None:
    CELERY_DB_REUSE_MAX = _REUSE
if GIVEN.get("confirm_publish"):
    CELERY_BROKER_TRANSPORT_OPTIONS = {"confirm_publish": True}

# As its documentation says for all of them to be kept, and in their order.
JAIMINHO_CONFIG = {"PUBLISH_STRATEGY": "keep-order", "DELETE_AFTER_SEND": True}
CELERY_OUTBOX_APP = "benchmarks.site.ready.app"
if "transport" in GIVEN:
    CELERY_BROKER_TRANSPORT_OPTIONS = GIVEN["transport"]
