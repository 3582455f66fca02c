"""Close the gap of autocommit: a save and the deliveries it causes are committed together, or not at all.

Outside of a transaction Django commits a save before it sends ``post_save``, and what ``pre_save`` causes before the
save itself. A process that dies in between would lose an event, and a save that fails would leave a ghost.
"""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any

from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model
from django.db.models.signals import post_save, pre_save
from django.dispatch import Signal

from .. import conf
from ..names import short_name, signal_name

logger = logging.getLogger(__name__)

_told: set[tuple[str, Any]] = set()


def models() -> list[type[Model]]:
    """Return the models whose saves have become atomic."""
    return list(_atomic)


_atomic: list[type[Model]] = []


def is_in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether what is written now is committed later."""
    return connection.in_atomic_block or not autocommits(connection)


def autocommits(connection: BaseDatabaseWrapper) -> bool:
    """Tell it without asking the database: that would open a connection, and a coroutine must not."""
    return bool(connection.settings_dict["AUTOCOMMIT"] if connection.connection is None else connection.autocommit)


def locks_at_once(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether a transaction may read first and write later: on SQLite only one that begins with the lock."""
    mode = connection.settings_dict["OPTIONS"].get("transaction_mode")
    return connection.vendor != "sqlite" or str(mode).upper() in ("IMMEDIATE", "EXCLUSIVE")


def late_database(model: type[Model]) -> str | None:
    """Return the database that a model is written to, if its saves stay as they are there; None: they can be atomic."""
    alias = str(router.db_for_write(model))
    return None if locks_at_once(connections[alias]) else alias


def is_save(signal: Signal, sender: Any) -> bool:
    """Tell whether a model's saves send a signal."""
    return signal in (pre_save, post_save) and isinstance(sender, type) and issubclass(sender, Model)


def make_atomic(sender: type[Model]) -> None:
    """Put the saves of a model with a durable receiver into a transaction, where there is none."""
    if sender in _atomic or sender._meta.abstract:
        return
    _atomic.append(sender)
    original = sender.save_base

    @wraps(original)
    def save_base(self: Model, *args: Any, **options: Any) -> Any:
        using = options.get("using") or router.db_for_write(type(self), instance=self)
        connection = connections[using]
        if not conf.get().ATOMIC_SAVES or is_in_transaction(connection) or not locks_at_once(connection):
            return original(self, *args, **options)
        with transaction.atomic(using=using, savepoint=False):
            return original(self, *args, **options)

    sender.save_base = save_base  # type: ignore[method-assign]


def mind_the_gap(receiver: str, signal: Signal, sender: Any, connection: BaseDatabaseWrapper) -> None:
    """Say once that a durable sending outside of a transaction is committed apart from what caused it.

    A model that no ``connect`` with a ``sender=`` has named is met here first; its later saves are atomic.
    """
    if is_in_transaction(connection):
        return
    if is_save(signal, sender):
        make_atomic(sender)
    if (receiver, id(signal)) in _told:
        return
    _told.add((receiver, id(signal)))
    is_late = is_save(signal, sender) and conf.get().ATOMIC_SAVES and not locks_at_once(connection)
    name = short_name(signal_name(signal)) or "an unnamed signal"
    logger.warning(_GAP + (_LATE if is_late else _OPEN), receiver, name, *([connection.alias] if is_late else []))


_GAP = (
    "%s was sent %s outside of a transaction: the delivery is committed by itself, so a process that dies just before "
    "loses the event, and it stays if the work around it fails. "
)
_OPEN = (
    "Send inside transaction.atomic(), as with ATOMIC_REQUESTS; connect receivers of saves by receiver_task() or "
    "connect() with a sender=. (Said once.)"
)
_LATE = (
    "Saves are not made atomic there, for the SQLite database %r has no transaction_mode IMMEDIATE (dcs.W001, whose "
    "hint is the fix). (Said once.)"
)
