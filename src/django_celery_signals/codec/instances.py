"""Model instances: by reference, to be fetched again, or as a snapshot of their loaded fields. Never a query to encode.

An entry of the envelope's table of instances is ``{"model", "pk", "db"}`` for a reference, and has ``"fields"`` beside
them for a snapshot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.files import File
from django.db import models
from django.db.models.fields.related_descriptors import ForeignKeyDeferredAttribute
from django.db.models.query_utils import DeferredAttribute
from django.utils.functional import LazyObject

from .. import conf
from .core import TAG, Encoder, Unencodable, register, register_transparent
from .detached import forbidden_of, is_detached
from .fields import Field, is_equal, is_expression, is_installed, to_text

Entry = dict[str, Any]

#: A field whose name holds one of these words never travels in a snapshot; ``SENSITIVE_FIELDS`` names more.
SENSITIVE_WORDS = re.compile(
    "password|passwd|passphrase|secret|token|api_?key|private_?key|credential|session_?(?:key|data|id)"
)


class InstanceEncoder(Encoder):
    """An encoder for one sending, which decides for each instance whether it travels by reference."""

    def __init__(self, replace: Callable[[Unencodable], Any], *, snapshot: bool, users_too: bool) -> None:
        """Begin with nothing seen.

        Args:
            replace: as for :class:`~.core.Encoder`.
            snapshot: whether every instance travels as a snapshot: its row is gone, not yet there, or not wanted.
            users_too: whether snapshots of the user model hold more than the primary key.
        """
        super().__init__(replace)
        self.snapshot, self.users_too = snapshot, users_too
        self.rows: dict[tuple[Any, ...], list[tuple[int, models.Model]]] = {}  # row -> what is in the table of it
        self._first: tuple[models.Model, Entry] | None = None  # in the table, and not in ``rows`` yet

    def index(self, instance: models.Model) -> int:
        """Return the place of an instance in the table, entering it when it is new.

        Two objects of one row are one entry while they are alike. When their values differ, one of them is an earlier
        or unsaved state, which a reference would lose: both become snapshots, except of users.
        """
        if id(instance) not in self.seen:
            self.seen[id(instance)] = (self._enter(instance), instance)
        return self.seen[id(instance)][0]

    def _enter(self, instance: models.Model) -> int:
        entry = self._entry(instance)
        if not self.objects:  # most are alone
            self._first = instance, entry
            self.objects.append(entry)
            return 0
        if self._first is not None:
            self._twins(*self._first).append((0, self._first[0]))
            self._first = None
        twins = self._twins(instance, entry)
        for at, twin in twins:
            if not _agree(instance, twin) and (self.users_too or not is_user(type(instance))):  # would hold less
                self._hold(entry, instance)
                self._hold(self.objects[at], twin)
        for at, _ in twins:
            if json.dumps(self.objects[at]) == json.dumps(entry):  # tells True from 1
                return at
        self.objects.append(entry)
        twins.append((len(self.objects) - 1, instance))
        return len(self.objects) - 1

    def _twins(self, instance: models.Model, entry: Entry) -> list[tuple[int, models.Model]]:
        is_row = entry["pk"] is not None and not instance._state.adding
        return self.rows.setdefault(_row(instance, entry), []) if is_row else []

    def _entry(self, instance: models.Model) -> Entry:
        cls = type(instance)
        if not is_installed(cls):
            raise Unencodable(instance, "its class is not the installed model of that name")
        plain = None if self.snapshot else _plain_key(instance)
        entry: Entry = {"model": cls._meta.label, "pk": plain, "db": instance._state.db}
        if plain is not None:
            return entry
        if self.snapshot or instance._state.adding or is_detached(instance) or not has_pk(instance):
            self._hold(entry, instance)
        elif deferred := instance.get_deferred_fields():
            entry["deferred"] = sorted(deferred)
        return {**entry, "pk": self._pk(instance, entry)}

    def _hold(self, entry: Entry, instance: models.Model) -> None:
        """Make an entry a snapshot, if it is none yet."""
        if "fields" not in entry:
            entry["fields"] = self._fields(instance)

    def pk_of(self, instance: models.Model) -> Any:
        """Return the JSON by which a reference names a row."""
        return self._pk(instance, {})

    def _pk(self, instance: models.Model, entry: Entry) -> Any:
        if not has_pk(instance):
            return None
        if secret := next((field.name for field in type(instance)._meta.pk_fields if _is_secret_key(field)), None):
            raise Unencodable(instance, f"its primary key {secret!r} is a secret, by its name")
        replace, self.replace = self.replace, _refuse  # a stand-in finds no row
        fields = type(instance)._meta.pk_fields
        try:
            parts = [self.of_field(field, instance, getattr(instance, field.attname)) for field in fields]
        except Unencodable as error:
            if "fields" in entry:
                return None
            raise Unencodable(instance, f"its primary key cannot be carried: {error.reason}") from error
        finally:
            self.replace = replace
        return {TAG: "tuple", "v": parts} if len(parts) > 1 else parts[0]

    def _fields(self, instance: models.Model) -> Entry:
        """Return what a snapshot holds: values, and the names of what was left out or is not known."""
        cls, loaded, withheld = type(instance), instance.__dict__, forbidden_of(instance)
        values: dict[str, Any] = {}
        forbidden, unset = [], []
        only_pk = not self.users_too and is_user(cls)
        for field in cls._meta.concrete_fields:
            name, is_pk = field.attname, _is_pk(cls, field)
            if is_sensitive(cls, field) or (only_pk and not is_pk) or (name in withheld and name not in loaded):
                forbidden.append(name)
            elif name not in loaded:
                continue  # deferred: stays deferred
            elif type(loaded[name]) is models.expressions.DatabaseDefault:
                unset.append(name)
            elif is_pk or not is_expression(loaded[name]):  # F() and the like, of which only the database knows
                values[name] = self.of_field(field, instance, loaded[name])  # without a pk, nothing could be loaded
        return {"values": values, "forbidden": forbidden, "unset": unset, "adding": instance._state.adding}

    def of_field(self, field: Field, instance: models.Model, value: Any) -> Any:
        """Return the JSON of a value that a field of an instance has, or had."""
        if isinstance(field, models.FileField) and issubclass(type(value), File):
            value = value.name
        replace, self.replace = self.replace, _refuse  # an inner value without a JSON form is the field's to carry, too
        try:
            return self.strictly(value)
        except Unencodable as error:
            self.replace = replace
            return self._by_field(field, instance, value, error)
        finally:
            self.replace = replace

    def _by_field(self, field: Field, instance: models.Model, value: Any, error: Unencodable) -> Any:
        """Let the field itself put its value into text, as it does for fixtures, if it reads the same from there."""
        try:
            text = to_text(field, instance, value)
        except Exception:  # a field class of the project's own may raise anything
            text = None
        if text is None:
            return self.replace(error)
        return {TAG: "field", "v": [type(instance)._meta.label, field.attname, text]}


def _plain_key(instance: models.Model) -> int | None:
    """Return the number by which a whole row that is there can be fetched again; None where there is more to say."""
    cls, held = type(instance), instance.__dict__
    key, columns = _shape(cls, len(cls._meta.concrete_fields))
    pk = held.get(key)
    is_plain = type(pk) is int and pk.bit_length() < 64 and not instance._state.adding
    return pk if is_plain and held.keys() >= columns and not is_detached(instance) else None


@lru_cache(maxsize=1024)
def _shape(cls: type[models.Model], fields: int) -> tuple[str, frozenset[str]]:
    """Return where instances hold their one key, empty where they have several or it is secret, and their columns.

    Of a class with so many fields: one may be given to it later.
    """
    keys: Any = cls._meta.pk_fields
    is_single = len(keys) == 1 and keys[0].descriptor_class in _AS_HELD and not _is_secret_key(keys[0])
    return keys[0].attname if is_single else "", frozenset(field.attname for field in cls._meta.concrete_fields)


#: Descriptors of fields whose value is what the instance holds.
_AS_HELD = (DeferredAttribute, ForeignKeyDeferredAttribute)


def _refuse(error: Unencodable) -> Any:
    raise error


def _agree(one: models.Model, other: models.Model) -> bool:
    """Tell whether two objects of a row, perhaps of a parent's and a child's class, are equal in what both hold."""
    mine, others = one.__dict__, other.__dict__
    names = (field.attname for field in type(one)._meta.concrete_fields)
    return all(is_equal(mine[name], others[name]) for name in names if name in mine and name in others)


def _row(instance: models.Model, entry: Entry) -> tuple[Any, ...]:
    """Identify a row, also where a proxy or a child is another class of it."""
    model: Any = type(instance)._meta.concrete_model
    pk = entry["pk"]
    key = (type(pk), pk) if type(pk) in (int, str) else json.dumps(pk)
    return (model, *model._meta.get_parent_list())[-1], key, entry["db"]


def has_pk(instance: models.Model) -> bool:
    """Tell whether an object has a primary key, and all of it."""
    parts = [getattr(instance, field.attname) for field in type(instance)._meta.pk_fields]
    return not any(part is None or is_expression(part) for part in parts)


def _is_pk(cls: type[models.Model], field: Field) -> bool:
    return field.primary_key or field in cls._meta.pk_fields


def line_of(model: type[models.Model]) -> list[Any]:
    """Return a model and the parents whose keys are its key as well."""
    line: list[Any] = [model._meta.concrete_model]
    while (link := line[-1]._meta.pk.remote_field) is not None and link.parent_link:
        line.append(link.model)
    return line


def is_user(cls: type[models.Model]) -> bool:
    """Tell whether a class is the project's user model, of which no personal data travels unasked."""
    try:
        return issubclass(cls, get_user_model())
    except ImproperlyConfigured:
        return False


def is_named_secret(field: Field) -> bool:
    """Tell whether a field's name says that its value is a secret."""
    return SENSITIVE_WORDS.search(field.name.lower()) is not None


def _is_secret_key(field: Any) -> bool:
    """Tell whether a primary key is a secret; a number or another model's key is none for its name alone."""
    while field.remote_field is not None:
        field = field.target_field
    return is_named_secret(field) and not isinstance(field, models.IntegerField)


def is_sensitive(cls: type[models.Model], field: Field) -> bool:
    """Tell whether a field's value must not travel in a snapshot."""
    if is_named_secret(field) and not _is_pk(cls, field):
        return True
    given = conf.get().SENSITIVE_FIELDS
    metas = filter(None, (getattr(base, "_meta", None) for base in cls.__mro__))
    names = (field.name, field.attname)
    own = {*names, *(f"{meta.label}.{name}" for meta in metas for name in names)}
    return not own.isdisjoint(given)


def as_instance(value: Any) -> models.Model | None:
    """Return a model instance, out of lazy objects that hold one already; anything else is None. Evaluates nothing."""
    while issubclass(type(value), LazyObject):
        value = value._wrapped
    return value if issubclass(type(value), models.Model) else None


register_transparent(models.Model, lambda value, encoder: {TAG: "obj", "v": encoder.index(value)})  # type: ignore[attr-defined]
register("instance", tag="obj", encode=lambda v, _: v, decode=lambda p, d: d.instance(p))
