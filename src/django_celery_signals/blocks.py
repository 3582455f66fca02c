"""What a block of code sends: nothing, or the signals that Django leaves out where it writes many rows at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from django.db import router
from django.db.models import Model, QuerySet
from django.db.models.signals import post_save

from .codec.instances import has_pk
from .durable.batch import SIZE, batched

_muted: ContextVar[bool] = ContextVar("django_celery_signals.muted", default=False)


@contextmanager
def muted() -> Iterator[None]:
    """Send nothing to receivers in workers from within a block, such as a data migration's; also a decorator.

    Plain receivers are called as ever. It holds for the block's own thread or task, and for what that awaits.
    """
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


def is_muted() -> bool:
    """Tell whether nothing is to be sent."""
    return _muted.get()


def send_saved(objs: Iterable[Model], *, created: bool, update_fields: Iterable[str] | None = None) -> int:
    """Send ``post_save`` for objects that ``bulk_create()``, ``bulk_update()`` or ``QuerySet.update()`` has written.

    To all receivers, also plain ones, and in the order of the objects, as if each had been saved; the durable
    deliveries are written in one batch. Do it in the transaction that wrote them::

        with transaction.atomic():
            send_saved(Order.objects.bulk_create(orders), created=True)

    Args:
        objs: instances that have rows, or a QuerySet, which is read in parts.
        created: whether the rows are new.
        update_fields: names of the fields that were written; None: all.

    Returns:
        How many were sent.

    Raises:
        ValueError: for an object without a primary key or a row, before anything of a list is sent.
        TypeError: for what is no model instance.
    """
    saved = objs.iterator(chunk_size=SIZE) if isinstance(objs, QuerySet) else _checked(list(objs))
    names = None if update_fields is None else frozenset(update_fields)
    count = 0
    with ExitStack() as batches:
        opened: set[str] = set()
        for instance in saved:
            using = _alias_of(instance)
            if using not in opened:
                batches.enter_context(batched(using))
                opened.add(using)
            post_save.send(
                type(instance), instance=instance, created=created, update_fields=names, raw=False, using=using
            )
            count += 1
    return count


def _checked(instances: list[Model]) -> list[Model]:
    for instance in instances:
        _alias_of(instance)
    return instances


def _alias_of(instance: Model) -> str:
    """Return the database to which an object is written.

    Raises:
        ValueError: when it has none.
        TypeError: for what is no model instance.
    """
    if not isinstance(instance, Model):
        raise TypeError(f"send_saved() sends for model instances, not for {instance!r:.120}. Use no values().")
    if not has_pk(instance):
        raise ValueError(
            f"send_saved(): {instance!r:.120} has no primary key, so no receiver could find it. Some databases, and "
            "bulk_create(ignore_conflicts=True), do not tell the keys of new rows: read them again, and send for these."
        )
    if instance._state.adding or instance._state.db is None:
        raise ValueError(
            f"send_saved(): {instance!r:.120} was never saved. Send for what bulk_create() returns, after it."
        )
    return str(router.db_for_write(type(instance), instance=instance))  # it may have been read from a replica
