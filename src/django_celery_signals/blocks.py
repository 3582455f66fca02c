"""What a block of code sends: nothing, or the signals that Django leaves out where it writes many rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.db import router
from django.db.models import Model, QuerySet
from django.db.models.signals import post_save

from .codec.instances import has_pk
from .durable.batch import SIZE, batched, refuse_generators

F = TypeVar("F", bound=Callable[..., Any])

# Of each block around, the names of its receivers; None: all of them.
_muted: ContextVar[tuple[frozenset[str] | None, ...]] = ContextVar("django_celery_signals.muted", default=())


class muted:
    """Send nothing to receivers in workers from within a block, such as a data migration's; also a decorator.

    Plain receivers are called as ever. It holds for the block's own thread or task, and for what that awaits. It
    decorates functions and coroutine functions.
    """

    def __init__(self, *receivers: Any) -> None:
        """Choose whom nothing is sent to.

        Args:
            receivers: tasks, or their names; none: all.
        """
        self._names = frozenset(name_of(one) for one in receivers) or None

    def __enter__(self) -> None:
        """Begin the block."""
        _muted.set((*_muted.get(), self._names))

    def __exit__(self, *_: object) -> None:
        """End it."""
        left = list(_muted.get())
        if self._names in left:  # perhaps in another context than it began in
            left.remove(self._names)
        _muted.set(tuple(left))

    def __call__(self, function: F) -> F:
        """Make each call of a function a block.

        Raises:
            TypeError: for a generator function, whose body runs when the call is long over.
        """
        refuse_generators(function, "muted()")

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        @wraps(function)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await function(*args, **kwargs)

        return cast(F, wait if iscoroutinefunction(function) else call)


def is_muted(receiver: str) -> bool:
    """Tell whether nothing is to be sent to a receiver."""
    around = _muted.get()
    return bool(around) and any(names is None or receiver in names for names in around)


def name_of(receiver: Any) -> str:
    """Return the name of a receiver's task.

    Raises:
        TypeError: for what is neither a task nor a name.
    """
    name = receiver if isinstance(receiver, str) else getattr(receiver, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"{receiver!r:.120} is no receiver: give its task, or the name of that.")
    return name


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
        ValueError: for an object without a primary key or a row, and for a field that it does not have; of a list
            before anything is sent.
        TypeError: for what is no model instance, and for one text as ``update_fields``.
    """
    names = _as_names(update_fields)
    saved = objs.iterator(chunk_size=SIZE) if isinstance(objs, QuerySet) else _checked(list(objs), names)
    count = 0
    with ExitStack() as batches:
        opened: set[str] = set()
        for instance in saved:
            using = _alias_of(instance, names)
            if using not in opened:
                batches.enter_context(batched(using))
                opened.add(using)
            post_save.send(
                type(instance), instance=instance, created=created, update_fields=names, raw=False, using=using
            )
            count += 1
    return count


def _as_names(fields: Iterable[str] | None) -> frozenset[str] | None:
    if isinstance(fields, str):
        raise TypeError(f"send_saved(): update_fields={fields!r} must be a list of names: update_fields=[{fields!r}].")
    return None if fields is None else frozenset(fields)


def _checked(instances: list[Model], fields: frozenset[str] | None) -> list[Model]:
    for instance in instances:
        _alias_of(instance, fields)
    return instances


def _alias_of(instance: Model, fields: frozenset[str] | None) -> str:
    """Return the database to which some fields of an object are written.

    Raises:
        ValueError: when it has none, or one of the fields is not its own.
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
    if fields is not None and (unknown := fields - _columns_of(type(instance))):
        raise ValueError(
            f"send_saved(): update_fields= names {min(unknown)!r}, which is no column of {instance._meta.label}'s; "
            f"there are {', '.join(field.name for field in instance._meta.concrete_fields)}."
        )
    return str(router.db_for_write(type(instance), instance=instance))  # it may have been read from a replica


@cache
def _columns_of(model: type[Model]) -> frozenset[str]:
    fields = model._meta.concrete_fields
    return frozenset(field.name for field in fields) | frozenset(field.attname for field in fields)
