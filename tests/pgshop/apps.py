from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.contrib.postgres.signals import get_hstore_oids, register_type_handlers
from django.db import connections
from django.db.models.signals import pre_migrate


class PgShopConfig(AppConfig):
    name = "tests.pgshop"
    label = "pgshop"

    def ready(self) -> None:
        pre_migrate.connect(create_extensions, sender=self, dispatch_uid="tests.pgshop")


def create_extensions(*, using: str, **kwargs: Any) -> None:
    """Create the extension of ``HStoreField`` before the tables that need it."""
    connection = connections[using]
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS hstore")
    get_hstore_oids.cache_clear()  # it remembers that the extension was absent
    register_type_handlers(connection)
