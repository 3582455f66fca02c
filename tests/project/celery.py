"""The Celery app of the tests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from celery import Celery
from kombu import pools

from django_celery_signals.publisher import publisher
from tests import run

# A process started by a test gets that test's Celery settings here.
GIVEN_SETTINGS = "DCS_TESTS_CELERY"

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

app = Celery("tests")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
# Not in Django's settings: there, Celery 5.5 would prefer them to what a test changes.
app.conf.update(
    broker_url="memory://",
    broker_connection_retry_on_startup=True,
    task_default_queue=run.NAME,
    accept_content=["json"],
)
if GIVEN_SETTINGS in os.environ:
    app.conf.update(json.loads(os.environ[GIVEN_SETTINGS]))


def configure(changes: Mapping[str, Any]) -> None:
    """Change settings of the app, and forget the connections made with the old ones."""
    app.conf.update(changes)
    disconnect()


def disconnect() -> None:
    """Close the app's connections to its broker, and forget its queues."""
    pools.reset()
    publisher().close()
    app._pool = None
    app.__dict__.pop("amqp", None)
