"""Django's settings for processes of durable deliveries: those of the tests, and what a test gives them."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.settings import *  # noqa: F403 - as settings are extended
from tests.settings import DATABASE_ROUTERS, DATABASES, DJANGO_CELERY_SIGNALS, INSTALLED_APPS

# In the environment: {"settings": the library's, "apps": further ones, "alias": of the only database with deliveries,
# "ports": {alias: of a peer in front of it}, "sqlite_timeout": seconds, "keep": seconds for which connections are kept}
GIVEN = "DCS_TESTS_DURABLE"

_given = json.loads(os.environ.get(GIVEN, "{}"))


class OnlyOne:
    """Keep deliveries in the test's database only: no other is there."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return db == _given.get("alias") if app_label == "django_celery_signals" else None


DJANGO_CELERY_SIGNALS = {**DJANGO_CELERY_SIGNALS, "LEASE": 1, **_given.get("settings", {})}
INSTALLED_APPS = [*INSTALLED_APPS, *_given.get("apps", [])]
DATABASE_ROUTERS = [*DATABASE_ROUTERS, OnlyOne()]
DATABASES["default"]["OPTIONS"]["timeout"] = _given.get("sqlite_timeout", 20)
for _database in DATABASES.values():
    _database["CONN_MAX_AGE"] = _given.get("keep", 0)
for _alias, _port in _given.get("ports", {}).items():
    DATABASES[_alias] |= {"HOST": "127.0.0.1", "PORT": _port}
