"""Make a contender's process ready: Django, its database and its tables, and the Celery app."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import django
from celery import Celery
from django.conf import settings

if settings.SYSTEM == "outbox":
    from django_celery_outbox import OutboxCelery as App
else:
    App = Celery

app: Any = App("benchmarks")
app.config_from_object("django.conf:settings", namespace="CELERY")


def make_ready() -> None:
    """Load Django, and make the database and its tables."""
    from django.core.management import call_command
    from django.db import connection

    app.set_default()
    django.setup()
    if connection.vendor != "sqlite":
        with suppress(Exception), connection._nodb_cursor() as cursor:  # it is there already
            cursor.execute(f"CREATE DATABASE {settings.DATABASES['default']['NAME']}")
    call_command("migrate", run_syncdb=True, verbosity=0)
    app.finalize()
