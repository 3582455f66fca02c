"""System checks: what a project should know before it finds out."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Info, Warning, register
from django.db import connections

from . import conf, receivers
from .broker import project_app
from .durable import saving
from .durable.relay import keeping
from .keys import takes_turns
from .options import merged


def register_checks() -> None:
    """Add the checks to those of ``manage.py check``."""
    register(check_sqlite, "django_celery_signals")
    register(check_turns, "django_celery_signals")
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


def check_turns(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Warn of receivers that say what a failure does to a key that they do not have."""
    tasks: Any = project_app().tasks
    connected: dict[str, bool] = {}  # by the receiver, whether one of its connections has keys
    for one in receivers.connections():
        task = tasks.get(one.receiver)
        has_keys = task is None or takes_turns(merged(one.options, task), task)
        connected[one.receiver] = has_keys or connected.get(one.receiver, False)
    return [
        Warning(
            f"{name} says on_failure={tasks[name].after_failure!r}, which is about the key of a delivery that fails, "
            "but it takes no turns, so its deliveries have no keys.",
            hint="Give it ordered=True, or connect it with coalesce=True; or leave on_failure= out.",
            id="dcs.W002",
        )
        for name, has_keys in connected.items()
        if not has_keys and tasks[name].after_failure is not None
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
