"""What ``changed=`` needs: the last loaded or saved values of the watched fields, kept only on models that use it.

The values hang on the instance, so they live as long as it does. A save inside a transaction counts only while it may
still be committed: when the transaction or its savepoint rolls back, the values from before count again, and saving
once more sends. Where nothing is known of a row, everything counts as changed.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import DEFAULT_DB_ALIAS, connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.fields.files import FieldFile
from django.db.models.signals import post_save

from .codec.fields import is_expression
from .codec.instances import as_instance
from .exceptions import ConnectError
from .values import Fate, Values

_VALUES = "_django_celery_signals_values"
_UID = "django_celery_signals.changes"
_NOTHING = object()  # known of a field, or held by an instance
_watched: dict[type[models.Model], frozenset[str]] = {}  # model -> attnames

Changes = dict[str, tuple[Any, Any]]  # name -> (old, new)


def watch(model: Any, names: Iterable[str], place: str) -> None:
    """Begin to keep the values of some fields on every instance of a model that is loaded or saved from now on.

    Args:
        model: the sender.
        names: the fields, by name or by attribute.
        place: what to call the declaration in an error.

    Raises:
        ConnectError: for a sender that is no model, or a name that is no column of it that saves write.
    """
    if not isinstance(model, type) or not issubclass(model, models.Model):
        raise ConnectError(f"{place}: changed= compares the saved values of a model, but the sender is {model!r}.")
    attnames = frozenset(_checked(model, name, place) for name in names)
    if model not in _watched:
        _follow_loads(model)
        _follow_refreshes(model)
        _follow_saves(model)
        post_save.connect(_after_save, sender=model, dispatch_uid=_UID)
    _watched[model] = _watched.get(model, frozenset()) | attnames


def _checked(model: type[models.Model], name: str, place: str) -> str:
    columns = [field for field in model._meta.concrete_fields if not field.generated]
    for field in columns:
        if name in (field.name, field.attname):
            return str(field.attname)
    known = ", ".join(field.name for field in columns)
    raise ConnectError(f"{place}: changed= names {name!r}, but {model._meta.label} has only the columns {known}.")


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


# What is kept ----------------------------------------------------------------------------------------------------


def _known(instance: models.Model) -> Values:
    """Return what is known of the row that an instance stands for."""
    held, keys = instance.__dict__, instance._meta.pk_fields
    nothing = Values((instance._state.db, *(held.get(key.attname) for key in keys)), {})
    standing: Values = held.get(_VALUES, nothing).standing()
    return standing if standing.row == nothing.row else nothing


def _loaded(instance: models.Model, names: Iterable[str]) -> dict[str, Any]:
    """Return the values that an instance has, copied where they could be changed in place."""
    held = instance.__dict__
    return {name: _copied(held[name]) for name in names if name in held}


def _copied(value: Any) -> Any:
    if isinstance(value, FieldFile):  # renames itself when a file is saved
        return value.name
    return copy.deepcopy(value) if isinstance(value, (list, dict, set, bytearray)) else value


def _among(model: type[models.Model], names: Iterable[str] | None) -> frozenset[str]:
    """Return the watched fields among some, which are given by name or by attribute; None: all of them."""
    if names is None:
        return _watched[model]
    given = set(names)
    return frozenset(one for one in _watched[model] if not given.isdisjoint((one, model._meta.get_field(one).name)))


# Loading and saving ----------------------------------------------------------------------------------------------


def _follow_loads(model: type[models.Model]) -> None:
    original = model.from_db.__func__  # type: ignore[attr-defined]

    @functools.wraps(original)
    def from_db(cls: type[models.Model], *args: Any, **kwargs: Any) -> models.Model:
        instance: models.Model = original(cls, *args, **kwargs)
        if type(instance) in _watched:
            _keep_loaded(instance, None)
        return instance

    model.from_db = classmethod(from_db)  # type: ignore[assignment]


def _follow_refreshes(model: type[models.Model]) -> None:
    """Follow ``refresh_from_db()``, which also loads deferred fields: Django sends no signal for it."""
    original = model.refresh_from_db

    @functools.wraps(original)
    def refresh_from_db(self: models.Model, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) in _watched:
            _keep_loaded(self, kwargs.get("fields", args[1] if len(args) > 1 else None))

    model.refresh_from_db = refresh_from_db  # type: ignore[method-assign]


def _keep_loaded(instance: models.Model, names: Iterable[str] | None) -> None:
    known, loaded = _known(instance), _loaded(instance, _among(type(instance), names))
    instance.__dict__[_VALUES] = replace(known, fields={**known.fields, **loaded})


@dataclass(slots=True, eq=False)
class _Saving:
    """A save in flight. Its receivers may save the same instance again: that is another one."""

    instance: models.Model
    expressions: frozenset[str]  # of before: newer versions of Django replace them by their values while saving
    changes: Changes | None = None  # None: not compared yet


_saving: ContextVar[_Saving | None] = ContextVar("django_celery_signals.saving", default=None)


def _follow_saves(model: type[models.Model]) -> None:
    original = model.save_base

    @functools.wraps(original)
    def save_base(self: models.Model, *args: Any, **kwargs: Any) -> None:
        watched, held = _watched.get(type(self), frozenset()), self.__dict__
        expressions = frozenset(name for name in watched if is_expression(held.get(name)))
        token = _saving.set(_Saving(self, expressions) if watched else None)
        try:
            original(self, *args, **kwargs)
        finally:
            _saving.reset(token)

    model.save_base = save_base  # type: ignore[method-assign]


def _in_flight(instance: models.Model) -> _Saving | None:
    saving = _saving.get()
    return saving if saving is not None and saving.instance is instance else None


def _after_save(instance: Any, **sent: Any) -> None:
    instance = as_instance(instance)
    if _in_flight(instance) is not None:
        settle(instance, sent)
    elif instance is not None:  # sent by hand, or by loaddata, which calls Django's own save_base(): not followed
        instance.__dict__.pop(_VALUES, None)


def settle(instance: models.Model, sent: Mapping[str, Any]) -> None:
    """Compare, given the arguments of ``post_save``, unless that is done.

    Receivers that were connected before the model was watched come before :func:`_after_save`.
    """
    saving = _in_flight(instance)
    if saving is None or saving.changes is not None:
        return
    known, names = _known(instance), _among(type(instance), sent.get("update_fields"))
    saving.changes = _compare(instance, {} if sent.get("created") else known.fields, names, saving.expressions)
    others = {name: value for name, value in known.fields.items() if name not in names}
    values = Values(known.row, {**others, **_loaded(instance, names)})
    instance.__dict__[_VALUES] = _until_committed(values, known, connections[instance._state.db or DEFAULT_DB_ALIAS])


def _until_committed(values: Values, known: Values, connection: BaseDatabaseWrapper) -> Values:
    if not connection.in_atomic_block:  # with autocommit off nobody tells of the commit, so nothing is known
        return values if connection.autocommit else Values(values.row, {})
    fate, savepoints = known.fate, frozenset(connection.savepoint_ids)
    if fate is None or fate.is_committed or not savepoints <= fate.savepoints:
        fate = Fate.of(connection)
    return replace(values, fate=fate, before=known.outliving(savepoints))


def changes_of(instance: models.Model, names: Iterable[str]) -> Changes:
    """Return what the save that is just being signalled changed, of some fields; sent by hand, it is everything."""
    if not is_watched(type(instance), names := tuple(names)):
        return {}
    saving, keys = _in_flight(instance), {name: attname(type(instance), name) for name in names}
    made = _compare(instance, {}, keys.values()) if saving is None else saving.changes or {}
    return {name: made[key] for name, key in keys.items() if key in made}


def _compare(
    instance: models.Model, known: dict[str, Any], names: Iterable[str], expressions: frozenset[str] = frozenset()
) -> Changes:
    now = _loaded(instance, names)
    return {
        # Django defers a field whose new value it cannot know. F() of it says just that.
        name: (known.get(name), now.get(name, models.F(name)))
        for name in names
        if name in expressions or _differ(known.get(name, _NOTHING), now.get(name, _NOTHING))
    }


def _differ(old: Any, new: Any) -> bool:
    try:
        return old is not new and bool(old != new)
    except Exception:  # an array, for one, gives no plain answer
        return True
