from __future__ import annotations

from typing import Any


class PostgresOnly:
    """Keep the tables of this app to the alias that can hold them."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return db == "postgres" if app_label == "pgshop" else None
