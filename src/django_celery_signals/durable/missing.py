"""Which of the library's tables a database lacks."""

from __future__ import annotations

from django.apps import apps
from django.db import connections


def missing_tables(alias: str) -> list[str]:
    """Return the names of the tables that are not there."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        there = connection.introspection.table_names(cursor)
    tables = [str(model._meta.db_table) for model in apps.get_app_config("django_celery_signals").get_models()]
    return sorted(set(tables) - set(there))
