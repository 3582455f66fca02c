"""Settings of the flights project; the environment chooses database and broker."""

from __future__ import annotations

import os
from pathlib import Path

from .database import parse

BASE_DIR = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("FLIGHTS_HOME", BASE_DIR / "var"))  # of the database file and the message folders
SPOOL = HOME / "spool"
SPOOL.mkdir(parents=True, exist_ok=True)

SECRET_KEY = os.environ.get("SECRET_KEY", "insecure, good enough for an example on your own machine")
DEBUG = os.environ.get("FLIGHTS_DEBUG") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
USE_TZ = True
USE_THOUSAND_SEPARATOR = True
TIME_ZONE = "America/New_York"
ROOT_URLCONF = "config.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_celery_signals",
    "flights",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
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

DATABASES = {"default": parse(os.environ.get("DATABASE_URL", f"sqlite://{HOME / 'flights.sqlite3'}"))}

DJANGO_CELERY_SIGNALS = {
    "STRICT": True,  # an argument that cannot travel is an error here, not a stand-in
    # Seconds after which a receiver whose worker is dead begins again. The default of 25 suits a site, where a process
    # that is stopped for a while must not count as dead; the demonstration kills one, and its reader waits.
    "LEASE": 10,
}

CELERY_BROKER_URL = os.environ.get("BROKER_URL", "filesystem://")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("FLIGHTS_QUEUE", "flights")
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_DB_REUSE_MAX = 1000  # tasks that one database connection serves; without it, each opens its own
if CELERY_BROKER_URL.startswith("filesystem:"):
    CELERY_BROKER_TRANSPORT = "config.spool:Transport"
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(SPOOL),
        "data_folder_out": str(SPOOL),
        "control_folder": str(HOME / "control"),
        "polling_interval": 0.02,  # seconds between two looks into an empty folder
    }
    CELERY_WORKER_PREFETCH_MULTIPLIER = 0  # unlimited: at a limit, Celery's loop for such transports pauses for seconds
