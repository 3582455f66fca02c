"""Django's settings for the tests: one process, every database as an alias."""

from __future__ import annotations

import json
import os
from typing import Any

import dj_database_url
import django
import pymysql

from tests import run
from tests.services import SERVICES, absent

pymysql.install_as_MySQLdb()

# A process started by a test gets the names of that test's databases here, as {alias: name}.
GIVEN_DATABASES = "DCS_TESTS_DATABASES"


def _sqlite(alias: str) -> dict[str, Any]:
    file = str(run.FOLDER / f"{alias}.sqlite3")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": file,
        "TEST": {"NAME": file, "DEPENDENCIES": []},  # any alias can be tested without the default
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;",
        },
    }


def _server(alias: str, **more: Any) -> dict[str, Any]:
    config = dj_database_url.parse(SERVICES[alias].url)
    return {**config, "TEST": {"NAME": f"{run.NAME}_{alias}", "DEPENDENCIES": []}, **more}


def _databases() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"default": _sqlite("default"), "other": _sqlite("other")}
    if "postgres" not in absent():
        found["postgres"] = _server("postgres")
    if "mariadb" not in absent():
        found["mariadb"] = _server("mariadb", OPTIONS={"charset": "utf8mb4"})
    if GIVEN_DATABASES not in os.environ:
        return found
    given = json.loads(os.environ[GIVEN_DATABASES])
    return {alias: {**config, "NAME": given[alias]} for alias, config in found.items() if alias in given}


DATABASES = _databases()
DATABASE_ROUTERS = ["tests.pgshop.router.PostgresOnly"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
DEBUG = False
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
ROOT_URLCONF = "tests.urls"
WSGI_APPLICATION = "tests.project.wsgi.application"
MEDIA_ROOT = str(run.FOLDER / "media")
STATIC_URL = "/static/"
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "django_celery_signals",
    "tests.shop",
    "tests.pgshop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
# The shop has no migrations, and a table without migrations cannot point at one that has them.
MIGRATION_MODULES = {"admin": None, "contenttypes": None, "auth": None, "sessions": None}

AUTH_USER_MODEL = "shop.User"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# Most tests are about what a message carries, not about the table; those of "durable" say so.
DJANGO_CELERY_SIGNALS: dict[str, Any] = {"GUARANTEE": "on_commit", "EMBED_RELAY": False}
