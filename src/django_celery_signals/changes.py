"""What ``changed=`` needs: the last loaded or saved values of the watched fields, kept only on models that use it.

The values hang on the instance, so they live as long as it does. A save inside a transaction counts only while it may
still be committed: when the transaction or its savepoint rolls back, the values from before count again, and saving
once more sends.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django.db import connections, models, transaction
from django.db.models.signals import post_init, post_save, pre_save

_ATTRIBUTE = "_django_celery_signals_values"
_UID = "django_celery_signals.changes"
_watched: dict[type[models.Model], set[str]] = {}  # model -> attnames

Changes = dict[str, tuple[Any, Any]]


class _Token:
    """Held only by Django's list of commit hooks: alive while the save may still commit, gone once it rolled back."""

    __slots__ = ("__weakref__", "values")

    def __init__(self, values: Values) -> None:
        self.values = values

    def __call__(self) -> None:
        self.values.commit()


@dataclass(slots=True, eq=False)
class Values:
    """Watched values as of one load or save."""

    fields: dict[str, Any]
    before: Values | None = None  # what counts again when this save rolls back
    token: weakref.ref[_Token] | None = None  # None: nothing can take these values back any more
    changes: Changes = field(default_factory=dict)  # what this save changed

    def standing(self) -> Values:
        """Return the newest values that have not been rolled back."""
        values = self
        while values.before is not None and values.token is not None and values.token() is None:
            values = values.before
        return values

    def commit(self) -> None:
        """Make these values final."""
        self.before = self.token = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Let instances be copied and pickled, as caches do: the copy starts from the values standing now."""
        return Values, (self.standing().fields,)


def watch(model: type[models.Model], names: Iterable[str]) -> None:
    """Begin to keep the values of some fields on every instance of a model that is loaded or saved from now on.

    Raises:
        django.core.exceptions.FieldDoesNotExist: for a name that is no field of the model.
    """
    if model not in _watched:
        _watched[model] = set()
        post_init.connect(_on_init, sender=model, dispatch_uid=_UID)
        pre_save.connect(_before_save, sender=model, dispatch_uid=_UID)
        post_save.connect(_after_save, sender=model, dispatch_uid=_UID)
        _follow_refresh(model)
    _watched[model].update(attname(model, name) for name in names)


def is_watched(model: Any, names: Iterable[str]) -> bool:
    """Tell whether a model's watched fields include all of some names."""
    return model in _watched and {attname(model, name) for name in names} <= _watched[model]


def attname(model: type[models.Model], name: str) -> str:
    """Return the attribute that holds a field's value, ``customer_id`` for ``customer``."""
    return str(getattr(model._meta.get_field(name), "attname", name))


def changes_of(instance: models.Model, names: Iterable[str]) -> Changes:
    """Return what the save that is just being signalled changed, of some fields: name -> (old, new)."""
    values = instance.__dict__.get(_ATTRIBUTE)
    made = values.changes if values is not None else {}
    by_name = ((name, attname(type(instance), name)) for name in names)
    return {name: made[key] for name, key in by_name if key in made}


def _is_expression(value: Any) -> bool:
    return hasattr(value, "resolve_expression")


def _loaded(instance: models.Model, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the watched values that an instance has, copied where they could be changed in place."""
    watched = _watched[type(instance)]
    if names is not None:
        watched = watched.intersection(attname(type(instance), name) for name in names)
    held = instance.__dict__
    return {name: _copied(held[name]) for name in watched if name in held}


def _copied(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, (list, dict, set, bytearray)) else value


def _on_init(instance: models.Model, **_: Any) -> None:
    instance.__dict__[_ATTRIBUTE] = Values(_loaded(instance))


def _before_save(instance: models.Model, **_: Any) -> None:
    """Note the expressions, for newer versions of Django replace them by their values while saving."""
    last = _standing(instance)
    last.changes = {name: (None, value) for name, value in _loaded(instance).items() if _is_expression(value)}
    if instance._state.adding:  # made by hand, perhaps over an existing row: nothing is known of that row's values
        last.fields = {}


def _standing(instance: models.Model) -> Values:
    values: Values = instance.__dict__.setdefault(_ATTRIBUTE, Values({}))
    standing = values.standing()
    instance.__dict__[_ATTRIBUTE] = standing
    return standing


def _after_save(instance: models.Model, created: bool, using: str, update_fields: Any, **_: Any) -> None:
    last = _standing(instance)
    now, expressions = _loaded(instance, update_fields), last.changes
    changes = {
        name: (None if created else last.fields.get(name), value)
        for name, value in now.items()
        if created or name in expressions or _differs(last.fields, name, value)
    }
    values = Values({**last.fields, **now}, changes=changes)
    instance.__dict__[_ATTRIBUTE] = values
    _forget_on_rollback(values, last, using)


def _differs(fields: dict[str, Any], name: str, value: Any) -> bool:
    return name not in fields or _is_expression(value) or bool(fields[name] != value)


def _forget_on_rollback(values: Values, last: Values, using: str) -> None:
    if not connections[using].in_atomic_block:
        return
    token = _Token(values)
    values.before, values.token = last, weakref.ref(token)
    transaction.on_commit(token, using=using)


def _follow_refresh(model: type[models.Model]) -> None:
    """Let ``refresh_from_db`` of a watched model renew the values: Django sends no signal for it."""
    original = model.refresh_from_db

    @functools.wraps(original)
    def refresh_from_db(self: models.Model, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) in _watched and _ATTRIBUTE in self.__dict__:
            fields = kwargs.get("fields", args[1] if len(args) > 1 else None)
            standing = _standing(self)
            standing.fields = {**standing.fields, **_loaded(self, fields)}

    model.refresh_from_db = refresh_from_db  # type: ignore[method-assign]
