"""Where the crash points are in the library's code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from chaos.points import TWICE
from django_celery_signals import dispatch, execution, handover
from django_celery_signals.durable import batch, bulk, hold
from django_celery_signals.durable.deliveries import DeliveryQuerySet
from django_celery_signals.durable.hold import Held

from .crashes import asked, reached


def install() -> None:
    """Put the points into the library's functions."""
    _twice(handover, "apply")
    _twice(bulk, "apply")
    _around(dispatch, "insert", after="inserted")
    _around(batch, "insert", after="inserted")
    _around(dispatch, "publish_or_leave", before="committed", after="handed over")
    _around(DeliveryQuerySet, "claim", after="claimed", met=lambda claimed: claimed.rows)
    _around(bulk.Bulk, "publish", after="published", met=len)
    _around(DeliveryQuerySet, "mark", after="marked", met=bool)
    _around(execution, "opened", after="opened", met=bool)
    _around(hold, "fold_in", after="folded", met=lambda envelope: envelope.event.coalesced)
    _around(Held, "complete", after="completed")
    _around(hold, "publish_next", before="before the next", after="over")


def _around(
    owner: Any, name: str, before: str = "", after: str = "", met: Callable[[Any], Any] = lambda result: True
) -> None:
    """Put points before a function, and after it where it has done what is meant, as its result tells."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if before:
            reached(before)
        result = original(*args, **kwargs)
        if after and met(result):
            reached(after)
        return result

    setattr(owner, name, wrapper)


def _twice(owner: Any, name: str) -> None:
    """Publish everything twice, as long as the rig says so."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if asked(TWICE):
            original(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)
