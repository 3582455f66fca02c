"""What can be said of the project's settings, Django's and Celery's, without asking a database."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Info, Warning
from django.db import connections

from .. import conf
from ..broker import is_fallback, project_app
from ..connected import connected
from ..durable import saving
from ..durable.relay import keeping

_OTHER_NAMES = ("CELERY_SIGNALS", "DJANGO_SIGNALS")


def check_app(**_: Any) -> list[CheckMessage]:
    """Warn of a process that does not know the project's Celery app."""
    if not is_fallback(project_app()) or not connected():
        return []
    return [
        Warning(
            "Receivers are connected, but no Celery app is configured in this process: messages would go to "
            "amqp://guest@localhost, whatever the project's broker is.",
            hint="Import the app in the project's __init__.py: from .celery import app as celery_app",
            id="dcs.W004",
        )
    ]


def check_results(**_: Any) -> list[CheckMessage]:
    """Warn of stored failures, which nobody asks for; of results each message of an event says that there are none."""
    stored = [one.receiver for one in connected() if one.task is not None and one.task.store_errors_even_if_ignored]
    if not stored or is_fallback(app := project_app()) or not app.conf.result_backend:
        return []
    return [
        Warning(
            f"Each failure of {', '.join(sorted(set(stored)))} is also stored in the result backend, where nobody asks "
            "for it: no sender has the id of what it sent. Deliveries keep the cause of a failure themselves.",
            hint="Leave CELERY_TASK_STORE_ERRORS_EVEN_IF_IGNORED out, or say store_errors_even_if_ignored=False at the "
            "task.",
            id="dcs.W005",
        )
    ]


def check_names(**_: Any) -> list[CheckMessage]:
    """Warn of settings that look like the library's, and that nobody reads."""
    return [
        Warning(
            f"The setting {name} looks like {conf.NAME}, but is not read.",
            hint=f"Rename it to {conf.NAME}."
            if isinstance(getattr(settings, name), Mapping)
            else f"Write {conf.NAME} = {{{name.removeprefix(conf.NAME + '_')!r}: ...}}.",
            id="dcs.W012",
        )
        for name in dir(settings)
        if name != conf.NAME and _is_meant(name)
    ]


def _is_meant(name: str) -> bool:
    known = conf.Settings.__dataclass_fields__
    if name.startswith(f"{conf.NAME}_"):
        return name.removeprefix(f"{conf.NAME}_") in known
    close = name in _OTHER_NAMES or difflib.get_close_matches(name, [conf.NAME], cutoff=0.85)
    return bool(close) and isinstance(getattr(settings, name), Mapping)


def check_sqlite(**_: Any) -> list[CheckMessage]:
    """Warn of SQLite databases whose transactions take the lock too late."""
    return [
        Warning(
            f"The SQLite database {alias!r} keeps deliveries, but its transactions begin without the lock: a receiver "
            "that reads before it writes fails with 'database is locked' whenever another process wrote meanwhile, "
            "and saves are not made atomic for their receivers.",
            hint=f"DATABASES[{alias!r}]['OPTIONS'] = {{'transaction_mode': 'IMMEDIATE'}}",
            id="dcs.W001",
        )
        for alias in used()
        if not saving.locks_at_once(connections[alias])
    ]


def check_autocommit(**_: Any) -> list[CheckMessage]:
    """Warn of databases that leave all transactions to the project."""
    return [
        Warning(
            f"DATABASES[{alias!r}] has AUTOCOMMIT off, so Django cannot tell when a sending is committed: its delivery "
            "is left to the relay, which begins and ends transactions of its own there.",
            hint="Leave AUTOCOMMIT out, and use transaction.atomic() or ATOMIC_REQUESTS.",
            id="dcs.W013",
        )
        for alias in used()
        if not connections[alias].settings_dict["AUTOCOMMIT"]
    ]


def used() -> list[str]:
    """Return the databases that keep deliveries, if any receiver is durable."""
    return keeping() if any(one.guarantee == "durable" for one in connected()) else []


# With --deploy ---------------------------------------------------------------------------------------------------


def check_atomic_saves(**_: Any) -> list[CheckMessage]:
    """Name the models whose saves are atomic for the sake of their durable receivers."""
    every = saving.models() if conf.get().ATOMIC_SAVES else []
    models = [model for model in every if saving.late_database(model) is None]
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


def check_reuse(**_: Any) -> list[CheckMessage]:
    """Warn of workers that connect to the database anew for each receiver."""
    app = project_app()
    if not connected() or is_fallback(app):
        return []
    closing = [] if app.conf.get("CELERY_DB_REUSE_MAX") else ["CELERY_DB_REUSE_MAX = 1000"]
    closing += [
        f"DATABASES[{alias!r}]['CONN_MAX_AGE'] = 600"
        for alias in used()
        if connections[alias].settings_dict["CONN_MAX_AGE"] == 0 and not _has_pool(alias)
    ]
    if not closing:
        return []
    message = "A worker's database connection is closed after every task, so each receiver connects anew."
    return [Warning(message, hint="; ".join(closing), id="dcs.W007")]


def _has_pool(alias: str) -> bool:
    """Tell whether Django keeps the connections to a database in a pool, and then refuses to let them grow old."""
    return bool(connections[alias].settings_dict["OPTIONS"].get("pool"))


CHECKS = [check_app, check_results, check_names, check_sqlite, check_autocommit]
DEPLOY_CHECKS = [check_atomic_saves, check_reuse]
