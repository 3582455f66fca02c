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
from dataclasses import dataclass, field, replace
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import DEFAULT_DB_ALIAS, connections, models, transaction
from django.db.models.fields.files import FieldFile
from django.db.models.signals import post_init, post_save, pre_save

from .exceptions import ConnectError

_ATTRIBUTE = "_django_celery_signals_values"
_SAVING = "_django_celery_signals_saving"
_SAVES = "_django_celery_signals_saves"
_UID = "django_celery_signals.changes"
_watched: dict[type[models.Model], set[str]] = {}  # model -> attnames

Changes = dict[str, tuple[Any, Any]]


class Fate:
    """Whether the transaction of a save committed or rolled back; shared by all copies of the instance."""

    __slots__ = ("hook", "is_committed")

    def __init__(self, using: str) -> None:
        """Follow the transaction that is open on a database."""
        self.is_committed = False
        hook = _Hook(self)
        self.hook = weakref.ref(hook)
        transaction.on_commit(hook, using=using)

    @property
    def is_rolled_back(self) -> bool:
        return not self.is_committed and self.hook() is None


class _Hook:
    """Held only by Django's list of commit hooks: alive while the save may still commit, gone once it rolled back."""

    __slots__ = ("__weakref__", "fate")

    def __init__(self, fate: Fate) -> None:
        self.fate = fate

    def __call__(self) -> None:
        self.fate.is_committed = True


@dataclass(slots=True, eq=False)
class Values:
    """Watched values as of one load or save. Never changed afterwards, for the copies of an instance share them."""

    fields: dict[str, Any]
    before: Values | None = None  # what counts again when this save rolls back
    fate: Fate | None = None  # None: nothing can take these values back
    changes: Changes = field(default_factory=dict)  # what this save changed

    def standing(self) -> Values:
        """Return the newest values that have not been rolled back."""
        values = self
        while values.before is not None and values.fate is not None and values.fate.is_rolled_back:
            values = values.before
        if values.fate is not None and values.fate.is_committed:
            values.before = None  # final; and a long-lived instance would keep every save of its life
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        """Let instances be copied and pickled, as caches do: the copy starts from the values standing now."""
        return Values, (self.standing().fields,)


def watch(model: Any, names: Iterable[str], place: str) -> None:
    """Begin to keep the values of some fields on every instance of a model that is loaded or saved from now on.

    Args:
        model: the sender.
        names: the fields, by name or by attribute.
        place: what to call the declaration in an error.

    Raises:
        ConnectError: for a sender that is no model, or a name that is no column of it.
    """
    if not isinstance(model, type) or not issubclass(model, models.Model):
        raise ConnectError(f"{place}: changed= compares the saved values of a model, but the sender is {model!r}.")
    attnames = {_checked(model, name, place) for name in names}
    if model not in _watched:
        _watched[model] = set()
        post_init.connect(_on_init, sender=model, dispatch_uid=_UID)
        pre_save.connect(_before_save, sender=model, dispatch_uid=_UID)
        post_save.connect(_after_save, sender=model, dispatch_uid=_UID)
        _follow_refresh(model)
        _follow_saves(model)
    _watched[model] |= attnames


def _checked(model: type[models.Model], name: str, place: str) -> str:
    try:
        field: Any = model._meta.get_field(name)
    except FieldDoesNotExist:
        field = None
    if not getattr(field, "concrete", False):
        columns = ", ".join(field.name for field in model._meta.concrete_fields)
        raise ConnectError(f"{place}: changed= names {name!r}, but {model._meta.label} has only the columns {columns}.")
    return str(field.attname)


def is_watched(model: type[models.Model], names: Iterable[str]) -> bool:
    """Tell whether a model's watched fields include all of some names."""
    try:
        return model in _watched and all(attname(model, name) in _watched[model] for name in names)
    except FieldDoesNotExist:
        return False


def attname(model: type[models.Model], name: str) -> str:
    """Return the attribute that holds a field's value, ``customer_id`` for ``customer``."""
    field: Any = model._meta.get_field(name)
    return str(field.attname)


def changes_of(instance: models.Model, names: Iterable[str]) -> Changes:
    """Return what the save that is just being signalled changed, of some fields: name -> (old, new)."""
    saves, values = instance.__dict__.get(_SAVES), instance.__dict__.get(_ATTRIBUTE)
    made = saves[-1] if saves else values.changes if values is not None else {}
    by_name = ((name, attname(type(instance), name)) for name in names)
    return {name: made[key] for name, key in by_name if key in made}


def settle(instance: models.Model, sent: dict[str, Any]) -> None:
    """Look at a save now, for a receiver that comes before :func:`_after_save`: connected before the model was watched.

    Args:
        instance: what is being saved.
        sent: the arguments of ``post_save``.
    """
    if isinstance(instance.__dict__.get(_SAVING), _Saving):
        _after_save(**sent)
        instance.__dict__[_SAVING] = _SETTLED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saving:
    """What is known before a save only."""

    expressions: frozenset[str]  # newer versions of Django replace them by their values while saving
    is_new: bool  # made by hand, perhaps over an existing row: nothing is known of that row's values


_SETTLED = "settled"  # instead of a _Saving


class _Saves(list[Changes]):
    """What the saves in flight have changed, the innermost last. A pickled instance is not being saved."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Saves, ()


def _on_init(instance: models.Model, **_: Any) -> None:
    instance.__dict__[_ATTRIBUTE] = Values(_loaded(instance))


def _before_save(instance: models.Model, **_: Any) -> None:
    held = instance.__dict__
    expressions = frozenset(name for name in _watched_of(instance) if _is_expression(held.get(name)))
    held[_SAVING] = _Saving(expressions=expressions, is_new=instance._state.adding)


def _after_save(
    instance: models.Model, created: bool = False, using: str | None = None, update_fields: Any = None, **_: Any
) -> None:
    """Compare. A post_save that is sent by hand may lack all arguments but the instance, and the pre_save before it."""
    note = instance.__dict__.pop(_SAVING, None)
    if note == _SETTLED:
        return
    last, now = _standing(instance), _loaded(instance, update_fields)
    known = {} if note and note.is_new else last.fields
    changes = {
        name: (None if created else known.get(name), value)
        for name, value in now.items()
        if created or (note and name in note.expressions) or _differs(known, name, value)
    }
    values = Values({**known, **now}, changes=changes)
    using = using or instance._state.db or DEFAULT_DB_ALIAS
    if connections[using].in_atomic_block:
        values.before, values.fate = (last if known is last.fields else Values(known)), Fate(using)
    instance.__dict__[_ATTRIBUTE] = values
    if saves := instance.__dict__.get(_SAVES):
        saves[-1] = changes


def _standing(instance: models.Model) -> Values:
    values: Values = instance.__dict__.get(_ATTRIBUTE) or Values({})
    return values.standing()


def _watched_of(instance: models.Model) -> set[str]:
    return _watched.get(type(instance), set())


def _loaded(instance: models.Model, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the watched values that an instance has, copied where they could be changed in place."""
    watched, held, meta = _watched_of(instance), instance.__dict__, type(instance)._meta
    if names is not None:
        watched = {name for name in watched if not {name, meta.get_field(name).name}.isdisjoint(names)}
    return {name: _copied(held[name]) for name in watched if name in held}


def _copied(value: Any) -> Any:
    if isinstance(value, FieldFile):  # renames itself when a file is saved
        return value.name
    return copy.deepcopy(value) if isinstance(value, (list, dict, set, bytearray)) else value


def _is_expression(value: Any) -> bool:
    return hasattr(value, "resolve_expression")


def _differs(known: dict[str, Any], name: str, value: Any) -> bool:
    return name not in known or _is_expression(value) or bool(known[name] != value)


def _follow_refresh(model: type[models.Model]) -> None:
    """Let ``refresh_from_db`` of a watched model renew the values: Django sends no signal for it."""
    original = model.refresh_from_db

    @functools.wraps(original)
    def refresh_from_db(self: models.Model, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) in _watched:
            fields = kwargs.get("fields", args[1] if len(args) > 1 else None)
            standing = _standing(self)
            self.__dict__[_ATTRIBUTE] = replace(standing, fields={**standing.fields, **_loaded(self, fields)})

    model.refresh_from_db = refresh_from_db  # type: ignore[method-assign]


def _follow_saves(model: type[models.Model]) -> None:
    """Keep what is known of a save apart from another save of the same object, by one of its receivers."""
    original = model.save_base

    @functools.wraps(original)
    def save_base(self: models.Model, *args: Any, **kwargs: Any) -> None:
        held = self.__dict__
        saves, outer = held.setdefault(_SAVES, _Saves()), held.get(_SAVING)
        saves.append({})
        try:
            original(self, *args, **kwargs)
        finally:
            saves.pop()
            held[_SAVING] = outer
            for name in (_SAVES, _SAVING):
                if not held[name]:
                    del held[name]

    model.save_base = save_base  # type: ignore[method-assign]
