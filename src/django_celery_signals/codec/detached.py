"""Instances that are only snapshots: they refuse to be written, and to load what was left out on purpose.

The methods are shadowed on the instance, so that its class stays exactly the sender's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import models

from ..exceptions import DetachedInstance, NotCarried

# The two below are what bulk_create(), bulk_update() and a call by way of the class, Model.save_base(instance), run.
_WRITING = ("save", "save_base", "delete", "_prepare_related_fields_for_save", "_save_table")
_SHADOWED = frozenset({*_WRITING, "refresh_from_db", "__reduce_ex__"})


def detach(instance: models.Model, forbidden: frozenset[str]) -> None:
    """Make an instance refuse to be written, and to load the forbidden fields. Its copies do, too.

    Args:
        instance: a snapshot.
        forbidden: the attnames of the fields that were left out of it.
    """
    held = instance.__dict__
    for method in _WRITING:
        held[method] = partial(_refuse_to_write, type(instance)._meta.label)
    held["refresh_from_db"] = partial(_refresh, instance, forbidden)
    held["__reduce_ex__"] = partial(_reduce, instance, forbidden)


def is_detached(instance: models.Model) -> bool:
    """Tell whether an instance is only a snapshot."""
    return "save_base" in instance.__dict__


def forbidden_of(instance: models.Model) -> frozenset[str]:
    """Return the attnames of the fields that were left out of a snapshot; none of any other instance."""
    forbidden: frozenset[str] = instance.__dict__["refresh_from_db"].args[1] if is_detached(instance) else frozenset()
    return forbidden


def _refuse_to_write(label: str, *args: Any, **kwargs: Any) -> Any:
    raise DetachedInstance(
        f"This {label} is a snapshot from the moment its signal was sent; saving or deleting it could resurrect or "
        f"overwrite a row. Fetch the row first: {label.rpartition('.')[2]}.objects.get(pk=instance.pk)."
    )


def _refresh(instance: models.Model, forbidden: frozenset[str], *args: Any, **kwargs: Any) -> None:
    asked = set(kwargs.get("fields", args[1] if len(args) > 1 else None) or ())
    cls = type(instance)
    for field in cls._meta.concrete_fields:
        if field.attname in forbidden and not asked.isdisjoint((field.name, field.attname)):
            raise NotCarried(
                f"{cls._meta.label}.{field.name} was left out of the snapshot because it is sensitive. Fetch the row "
                "to read it, or rename the field, or, for the user model, ask for instance='snapshot'."
            )
    if not args:
        kwargs.setdefault("using", instance._state.db)  # not a replica, which may not have the row yet
    cls.refresh_from_db(instance, *args, **kwargs)


def _reduce(instance: models.Model, forbidden: frozenset[str], protocol: Any) -> tuple[Any, ...]:
    """Copy or pickle without the shadows, which would go on serving the original; the copy gets its own."""
    reduced: Any = type(instance).__reduce__(instance)
    make, args, state = reduced
    return _made_again, (make, args, forbidden), {key: item for key, item in state.items() if key not in _SHADOWED}


def _made_again(make: Any, args: tuple[Any, ...], forbidden: frozenset[str]) -> Any:
    instance = make(*args)
    detach(instance, forbidden)
    return instance
