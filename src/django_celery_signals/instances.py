"""Model instances: by reference, to be fetched again, or as a snapshot of their loaded fields. Never a query to encode.

An entry of the envelope's table of instances is ``{"model", "pk", "db"}`` for a reference, and has ``"fields"`` beside
them for a snapshot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, ObjectDoesNotExist
from django.db import connections, models
from django.db.models.fields.files import FieldFile
from django.utils.functional import LazyObject

from . import conf
from .codec import TAG, Decoder, Encoder, Unencodable, exactly, register, register_transparent
from .exceptions import DecodeError, DetachedInstance, InstanceMissing, NotCarried

Entry = dict[str, Any]

#: A field whose name holds one of these words never travels in a snapshot; ``SENSITIVE_FIELDS`` names more.
SENSITIVE_WORDS = re.compile("password|passwd|passphrase|secret|token|api_?key|private_key|credential")


class InstanceEncoder(Encoder):
    """An encoder for one sending, which decides for each instance whether it travels by reference."""

    def __init__(self, replace: Callable[[Unencodable], Any], *, snapshot: bool, users_too: bool) -> None:
        """Begin with nothing seen.

        Args:
            replace: as for :class:`~.codec.Encoder`.
            snapshot: whether every instance travels as a snapshot: its row is gone, not yet there, or not wanted.
            users_too: whether snapshots of the user model hold more than the primary key.
        """
        super().__init__(replace)
        self.snapshot, self.users_too = snapshot, users_too

    def index(self, instance: models.Model) -> int:
        """Return the place of an instance in the table, entering it when it is new.

        Two objects of one row are one entry while their loaded fields agree. When they differ, one of them is an
        earlier or unsaved state, which a reference would lose: both become snapshots.
        """
        if id(instance) in self.seen:
            return self.seen[id(instance)][0]
        entry = self._entry(instance)
        identity = None if "fields" in entry and entry["fields"]["adding"] else _identity(instance)
        twin_at, twin = (self.seen.get(identity) if identity else None) or _NOBODY
        if twin_at is not None and _agree(instance, twin):
            self.seen[id(instance)] = (twin_at, instance)
            return twin_at
        if twin_at is not None:
            self.objects[twin_at].setdefault("fields", self._fields(twin))
            entry.setdefault("fields", self._fields(instance))
        self.objects.append(entry)
        self.seen[id(instance)] = (len(self.objects) - 1, instance)
        if identity:
            self.seen.setdefault(identity, self.seen[id(instance)])
        return len(self.objects) - 1

    def _entry(self, instance: models.Model) -> Entry:
        cls = type(instance)
        try:
            installed = apps.get_model(cls._meta.label) is cls
        except LookupError:
            installed = False
        if not installed:
            raise Unencodable(instance, "its class is not the installed model of that name")
        entry = {"model": cls._meta.label, "pk": self._pk(instance), "db": instance._state.db}
        if self.snapshot or instance._state.adding or is_detached(instance) or not _has_pk(instance):
            entry["fields"] = self._fields(instance)
        elif deferred := instance.get_deferred_fields():
            entry["deferred"] = sorted(deferred)
        return entry

    def _pk(self, instance: models.Model) -> Any:
        fields = type(instance)._meta.pk_fields
        parts = [self._value(field, instance, getattr(instance, field.attname)) for field in fields]
        return {TAG: "tuple", "v": parts} if isinstance(instance.pk, tuple) else parts[0]

    def _fields(self, instance: models.Model) -> Entry:
        """Return what a snapshot holds: values, and the names of what was left out or is not known."""
        cls, loaded = type(instance), instance.__dict__
        values: dict[str, Any] = {}
        forbidden, unset = [], []
        only_pk = not self.users_too and is_user(cls)
        for field in cls._meta.concrete_fields:
            name = field.attname
            if is_sensitive(cls, field) or (only_pk and not _is_pk(cls, field)):
                forbidden.append(name)
            elif name not in loaded:
                continue  # deferred: stays deferred
            elif isinstance(loaded[name], models.expressions.DatabaseDefault):
                unset.append(name)
            elif not hasattr(loaded[name], "resolve_expression"):  # F() and the like: only the database knows
                values[name] = self._value(field, instance, loaded[name])
        return {"values": values, "forbidden": forbidden, "unset": unset, "adding": instance._state.adding}

    def _value(self, field: models.Field[Any, Any], instance: models.Model, value: Any) -> Any:
        if isinstance(value, FieldFile):
            value = value.name
        replace, self.replace = self.replace, _refuse  # an inner value without a JSON form is the field's to carry, too
        try:
            return self.strictly(value)
        except Unencodable as error:
            self.replace = replace
            return self._by_field(field, instance, value, error)
        finally:
            self.replace = replace

    def _by_field(self, field: models.Field[Any, Any], instance: models.Model, value: Any, error: Unencodable) -> Any:
        """Let the field itself put its value into text, as it does for fixtures."""
        label = type(instance)._meta.label
        try:
            if isinstance(field, models.JSONField):
                text = json.dumps(value, cls=field.encoder)
            else:
                text = field.value_to_string(instance)
        except Exception:  # a field class of the project's own may raise anything
            return self.replace(error)
        return {TAG: "field", "v": [label, field.attname, text]}


def _refuse(error: Unencodable) -> Any:
    raise error


_NOBODY: tuple[int | None, Any] = (None, None)


def _identity(instance: models.Model) -> tuple[Any, ...] | None:
    try:
        hash(instance.pk)
    except TypeError:
        return None
    return (type(instance), instance.pk, instance._state.db)


def _agree(one: models.Model, other: models.Model) -> bool:
    names = [field.attname for field in type(one)._meta.concrete_fields]
    return all(one.__dict__.get(name) == other.__dict__.get(name) for name in names)


def _has_pk(instance: models.Model) -> bool:
    pk = instance.pk
    return pk is not None and not (isinstance(pk, tuple) and None in pk)


def _is_pk(cls: type[models.Model], field: models.Field[Any, Any]) -> bool:
    return field.primary_key or field in cls._meta.pk_fields


def is_user(cls: type[models.Model]) -> bool:
    """Tell whether a class is the project's user model, of which no personal data travels unasked."""
    try:
        return issubclass(cls, get_user_model())
    except ImproperlyConfigured:
        return False


def is_sensitive(cls: type[models.Model], field: models.Field[Any, Any]) -> bool:
    """Tell whether a field's value must not travel in a snapshot."""
    if SENSITIVE_WORDS.search(field.name.lower()) and not _is_pk(cls, field):
        return True
    given = conf.get().SENSITIVE_FIELDS
    metas = filter(None, (getattr(base, "_meta", None) for base in cls.__mro__))
    own = {field.name, field.attname, *(f"{meta.label}.{field.name}" for meta in metas)}
    return not own.isdisjoint(given)


def as_instance(value: Any) -> models.Model | None:
    """Return a model instance, out of lazy objects that hold one already; anything else is None. Evaluates nothing."""
    while issubclass(type(value), LazyObject):
        value = value._wrapped
    return value if issubclass(type(value), models.Model) else None


register_transparent(models.Model, lambda value, encoder: {TAG: "obj", "v": encoder.index(value)})  # type: ignore[attr-defined]
register("instance", tag="obj", encode=lambda v, _: v, decode=lambda p, d: d.instance(p))


def _from_field(payload: Any, _: Decoder) -> Any:
    label, attname, text = payload
    field = next(f for f in apps.get_model(label)._meta.concrete_fields if f.attname == attname)
    if isinstance(field, models.JSONField):
        return json.loads(text, cls=field.decoder)
    return getattr(field, "output_field", field).to_python(text)


register("field", tag="field", encode=lambda v, _: v, decode=_from_field)
register(
    FieldFile,
    tag="fieldfile",
    encode=lambda v, e: [e.strictly(v.instance), v.field.name, v.name],
    decode=lambda p, d: _file(d.decode(p[0]), p[1], p[2]),
    subclasses=True,
)


def _file(instance: models.Model, field_name: str, name: str | None) -> FieldFile:
    field: Any = type(instance)._meta.get_field(field_name)
    file: FieldFile = field.attr_class(instance, field, name)
    return file


# Back to instances -----------------------------------------------------------------------------------------------


def instance_from(entry: Any, decoder: Decoder) -> models.Model:
    """Make the instance of an entry: fetch the row it refers to, or rebuild the snapshot.

    Raises:
        InstanceMissing: when the row is gone.
        DecodeError: when the entry is not what an encoder writes.
        django.db.Error: when the database does not answer; that is not "gone".
    """
    if not isinstance(entry, dict) or not {"model", "pk", "db"} <= entry.keys():
        raise DecodeError("The envelope holds an instance without model, pk or db.")
    model = apps.get_model(str(entry["model"]))
    alias = entry["db"]
    if alias is not None and alias not in connections.settings:
        raise DecodeError(f"The envelope names the database alias {alias!r:.80}, which DATABASES does not have.")
    if "fields" in entry:
        return rebuild(model, alias, entry["fields"], decoder)
    return fetch(model, decoder.decode(entry["pk"]), alias, entry.get("deferred", ()))


def fetch(model: type[models.Model], pk: Any, alias: str | None, deferred: Any = ()) -> models.Model:
    """Fetch a row again, past any manager that would hide it, from the very database it was sent from."""
    known = {field.attname for field in model._meta.concrete_fields}
    try:
        return models.QuerySet(model, using=alias).defer(*known.intersection(deferred)).get(pk=pk)
    except ObjectDoesNotExist:
        raise InstanceMissing(
            f"{model._meta.label} pk={pk!r} no longer exists in the database {alias!r}. The task's on_missing= says "
            "what happens then; instance='snapshot' carries the values instead."
        ) from None


def rebuild(model: type[models.Model], alias: str | None, snapshot: Any, decoder: Decoder) -> models.Model:
    """Build an instance from a snapshot, unsaved or saved as it was, and detach it from its row.

    Fields that the model has gained since are deferred, fields it has lost are ignored.
    """
    nodes, unset = exactly(snapshot["values"], dict), set(snapshot["unset"])
    known = [field for field in model._meta.concrete_fields if field.attname in nodes or field.attname in unset]
    values = {field.attname: decoder.decode(nodes[field.attname]) for field in known if field.attname in nodes}
    instance = model.from_db(
        alias,
        [field.attname for field in known],
        [values[field.attname] if field.attname in values else field.get_default() for field in known],
    )
    instance._state.adding = bool(snapshot["adding"])
    detach(instance, frozenset(snapshot["forbidden"]))
    return instance


def detach(instance: models.Model, forbidden: frozenset[str]) -> None:
    """Make an instance refuse to be written, and to load the fields that were left out on purpose.

    The methods are shadowed on the instance, so that its class stays exactly the sender's; it can still be pickled.
    """
    for method in ("save", "save_base", "delete"):
        instance.__dict__[method] = partial(_refuse_to_write, type(instance)._meta.label)
    instance.__dict__["refresh_from_db"] = partial(_refresh, instance, forbidden)


def _refuse_to_write(label: str, *args: Any, **kwargs: Any) -> Any:
    raise DetachedInstance(
        f"This {label} is a snapshot from the moment its signal was sent; saving or deleting it could resurrect or "
        f"overwrite a row. Fetch the row first: {label.rpartition('.')[2]}.objects.get(pk=instance.pk)."
    )


def _refresh(instance: models.Model, forbidden: frozenset[str], *args: Any, **kwargs: Any) -> None:
    fields = kwargs.get("fields", args[1] if len(args) > 1 else None)
    if withheld := forbidden.intersection(fields or ()):
        raise NotCarried(
            f"{type(instance)._meta.label}.{min(withheld)} was left out of the snapshot because it is sensitive. Fetch "
            "the row to read it, or rename the field, or, for the user model, ask for instance='snapshot'."
        )
    type(instance).refresh_from_db(instance, *args, **kwargs)


def is_detached(instance: models.Model) -> bool:
    """Tell whether an instance is only a snapshot."""
    return "save_base" in instance.__dict__
