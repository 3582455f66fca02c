"""Model instances: by reference, to be fetched again, or as a snapshot of their loaded fields. Never a query to encode.

An entry of the envelope's table of instances is ``{"model", "pk", "db"}`` for a reference, and has ``"fields"`` beside
them for a snapshot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, ObjectDoesNotExist
from django.core.files import File
from django.db import connections, models, router
from django.utils.functional import LazyObject

from .. import conf
from ..exceptions import DecodeError, InstanceMissing
from .core import TAG, Decoder, Encoder, Unencodable, exactly, register, register_transparent
from .detached import detach, forbidden_of, is_detached
from .fields import Field, is_equal, is_expression, to_text
from .standins import Unavailable

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
        is_row = entry["pk"] is not None and not instance._state.adding
        twins = self.rows.setdefault(_row(instance, entry), []) if is_row else []
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

    def _entry(self, instance: models.Model) -> Entry:
        cls = type(instance)
        label = cls._meta.app_label
        if label not in apps.app_configs or apps.all_models[label].get(str(cls._meta.model_name)) is not cls:
            raise Unencodable(instance, "its class is not the installed model of that name")
        entry: Entry = {"model": cls._meta.label, "pk": None, "db": instance._state.db}
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
    alias = alias or router.db_for_write(model)  # not for_read: a replica may lag behind
    try:
        rows: models.QuerySet[Any] = models.QuerySet(model, using=alias)
        instance: models.Model = rows.defer(*known.intersection(deferred)).get(pk=pk)
    except ObjectDoesNotExist:
        raise InstanceMissing(
            f"{model._meta.label} pk={pk!r} no longer exists in the database {alias!r}. The task's on_missing= says "
            "what happens then; instance='snapshot' carries the values instead."
        ) from None
    return instance


def rebuild(model: type[models.Model], alias: str | None, snapshot: Any, decoder: Decoder) -> models.Model:
    """Build an instance from a snapshot, unsaved or saved as it was, and detach it from its row.

    Fields that the model has gained since are deferred, fields it has lost are ignored.
    """
    nodes, unset = exactly(snapshot["values"], dict), set(snapshot["unset"])
    fields = {field.attname: field for field in model._meta.concrete_fields}
    values = {name: decoder.decode(nodes[name]) for name in fields if name in nodes}
    absent = {name: value for name, value in values.items() if type(value) is Unavailable}
    known = [name for name in fields if name in values.keys() - absent.keys() or name in unset]
    made = [values[name] if name in values else fields[name].get_default() for name in known]
    instance = model.from_db(alias, known, made)
    instance.__dict__.update(absent)  # only now: the descriptors of fields, such as a foreign key's, compare values
    instance._state.adding = bool(snapshot["adding"])
    detach(instance, frozenset(snapshot["forbidden"]))
    return instance
