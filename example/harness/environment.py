"""A place of its own for a demonstration: files, tables and a queue that nothing else uses."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.core.management.color import no_style
from django.db import connection


@contextmanager
def home() -> Iterator[Path]:
    """Give a fresh directory, and point the project's settings and the processes to come to it."""
    with TemporaryDirectory(prefix="flights-") as directory:
        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
        os.environ["FLIGHTS_HOME"] = directory
        os.environ["FLIGHTS_QUEUE"] = f"flights-{uuid.uuid4().hex[:8]}"
        yield Path(directory)


def make_tables() -> None:
    """Migrate, and empty the tables of an earlier demonstration in the same database."""
    call_command("migrate", verbosity=0)
    apps_with_tables = [apps.get_app_config(label) for label in ("flights", "django_celery_signals")]
    tables = [model._meta.db_table for app in apps_with_tables for model in app.get_models(include_auto_created=True)]
    for statement in connection.ops.sql_flush(no_style(), tables, reset_sequences=True):
        with connection.cursor() as cursor:
            cursor.execute(statement)


def delete_queue() -> None:
    """Remove the queue and its exchange from the broker; the filesystem's go with the directory."""
    from config.celery import app

    name = settings.CELERY_TASK_DEFAULT_QUEUE
    with app.connection_for_write() as broker, suppress(*broker.connection_errors, *broker.channel_errors):
        broker.default_channel.queue_delete(name)
        if broker.transport.driver_type == "amqp":
            broker.default_channel.exchange_delete(name)
        if broker.transport.driver_type == "redis":
            client = broker.default_channel.client
            client.delete(*(f"_kombu.binding{kind}.{name}" for kind in ("", "_permanent")))
