"""The end of a delivery that is given up: the row stays, with the reason; hooks and listeners are told."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from django.db import IntegrityError, transaction

from .. import conf
from ..event import Event
from ..parameters import accepted
from ..signals import delivery_failed, tell
from .clock import In
from .deliveries import DeliveryQuerySet
from .failure import described
from .rows import State

logger = logging.getLogger(__name__)

DAY = 86_400  # seconds

Hook = Callable[..., Any]

#: What ``@task.on_failed`` decorates, by the name of the task.
hooks: defaultdict[str, list[Hook]] = defaultdict(list)


def give_up(
    row: DeliveryQuerySet, known: Any, error: Exception, event: Event | None, *, task: Any = None, **counts: Any
) -> bool:
    """Mark a delivery as failed, with whatever the receiver's hooks write to its database in the same transaction.

    Args:
        row: the delivery, behind the fence of whoever has it.
        known: the same, as it was read.
        error: the reason.
        event: what the receiver would have got, if it could be read.
        task: the receiver, if it is known here; its name may be another than at the sending. Without one, or when it
            says so, the delivery blocks its key.
        counts: further columns to change.

    Returns:
        False, when somebody else has it; then nothing has changed.
    """
    parked = {} if task is None or task.blocks_key else {"slot": None}
    changes = {**described(error, known.receiver), **counts, **parked}
    called = hooks.get(known.receiver if task is None else str(task.name), [])
    try:
        if not _fail(row, changes, called, event=event, error=error):
            return False
    except IntegrityError:  # of a constraint that the database checks only now, at the commit
        logger.exception("What on_failed of %s wrote cannot be; the delivery is failed all the same.", known.receiver)
        if not _fail(row, changes, []):
            return False
    logger.error(
        *("Delivery failed: %s will not get %r (delivery %s of %r): %s: %s", known.receiver, known.summary),
        *(known.pk, row.db, type(error).__name__, error),
    )
    facts = {"event_id": known.event_id, "signal_name": known.signal, "summary": known.summary}
    tell(delivery_failed, known.receiver, **facts, error=error, using=row.db, delivery_id=known.pk)
    return True


def _fail(row: DeliveryQuerySet, changes: dict[str, Any], called: list[Hook], **facts: Any) -> bool:
    with transaction.atomic(using=row.db):
        kept = {"due_at": In(conf.get().FAILED_PAYLOAD_DAYS * DAY), "finished_at": In(0), "claim": None}
        if not row.update(state=State.FAILED, **kept, **changes):
            return False
        for hook in called:
            _call(hook, row.db, facts)
    return True


def _call(hook: Hook, using: str, facts: dict[str, Any]) -> None:
    try:
        with transaction.atomic(using=using):
            hook(**accepted(hook, facts))
    except Exception:
        logger.exception("%s.%s raised; the delivery is failed all the same.", hook.__module__, hook.__qualname__)
