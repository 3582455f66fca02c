"""Where the crash points are in the library's code."""

from __future__ import annotations

import functools
from typing import Any

from chaos.points import TWICE
from django_celery_signals import dispatch, execution, handover
from django_celery_signals.durable import bulk, hold
from django_celery_signals.durable.deliveries import DeliveryQuerySet
from django_celery_signals.durable.hold import Held

from .crashes import asked, reached


def _around(owner: Any, name: str, before: str = "", after: str = "", found: str = "") -> None:
    """Put points before a function, after it, and after it where it has returned something."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if before:
            reached(before)
        result = original(*args, **kwargs)
        if after:
            reached(after)
        if found and result is not None:
            reached(found)
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


def install() -> None:
    """Put the points into the library's functions."""
    _twice(handover, "apply")
    _twice(bulk, "apply")
    _around(dispatch, "insert", after="inserted")
    _around(dispatch, "publish_or_leave", before="committed", after="handed over")
    _around(DeliveryQuerySet, "claim", found="claimed")
    _around(bulk.Bulk, "publish", found="published")
    _around(DeliveryQuerySet, "mark", found="marked")
    _around(execution, "opened", found="opened")
    _around(hold, "fold_in", found="folded")
    _around(Held, "complete", after="completed")
    _around(hold, "publish_next", before="before the next")
    _around(execution, "_run", after="over")
