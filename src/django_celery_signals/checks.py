"""System checks: what a project should know before it finds out."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Info, Warning, register
from django.db import connections

from . import conf, receivers
from .durable import saving
from .durable.relay import keeping


def register_checks() -> None:
    """Add the checks to those of ``manage.py check``."""
    register(check_sqlite, "django_celery_signals")
    register(check_atomic_saves, "django_celery_signals", deploy=True)


def check_atomic_saves(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Name the models whose saves are atomic for the sake of their durable receivers."""
    models = saving.models() if conf.get().ATOMIC_SAVES else []
    if not models:
        return []
    return [
        Info(
            f"Saves of {', '.join(sorted(model._meta.label for model in models))} are atomic, for durable receivers "
            "are connected: a plain receiver of theirs that raises now rolls the save back.",
            hint="Nothing need be done. DJANGO_CELERY_SIGNALS = {'ATOMIC_SAVES': False} leaves the saves as Django "
            "makes them, with a gap in which a dying process loses events.",
            id="dcs.I001",
        )
    ]


def check_sqlite(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Warn of SQLite databases whose transactions take the lock too late."""
    if not _is_durable_used():
        return []
    return [
        Warning(
            f"The SQLite database {alias!r} keeps deliveries, but its transactions begin without the lock: a receiver "
            "that reads before it writes fails with 'database is locked' whenever another process wrote meanwhile, "
            "and saves are not made atomic for their receivers.",
            hint=f"DATABASES[{alias!r}]['OPTIONS'] = {{'transaction_mode': 'IMMEDIATE'}}",
            id="dcs.W001",
        )
        for alias in keeping()
        if not saving.locks_at_once(connections[alias])
    ]


def _is_durable_used() -> bool:
    given = {connection.options.guarantee for connection in receivers.connections()}
    return "durable" in given or conf.default_guarantee() == "durable"
