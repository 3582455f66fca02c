"""Model instances on their way back: fetched again, those of several envelopes together, or rebuilt from a snapshot."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.apps import apps
from django.core.exceptions import ObjectDoesNotExist
from django.db import connections, models, router

from ..exceptions import DecodeError, InstanceMissing
from .core import Decoder, exactly
from .detached import detach
from .instances import line_of
from .standins import Unavailable

FRESH = 1.0  # seconds for which a row that was fetched beforehand counts as just fetched


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
    told = (values.keys() - absent.keys()) | unset
    known = [name for name in fields if name in told]
    made = [values[name] if name in values else fields[name].get_default() for name in known]
    instance = model.from_db(alias, known, made)
    instance.__dict__.update(absent)  # only now: the descriptors of fields, such as a foreign key's, compare values
    instance._state.adding = bool(snapshot["adding"])
    detach(instance, frozenset(snapshot["forbidden"]))
    return instance


class Fetched:
    """Instances that were fetched together, for several envelopes: with one query for each model and database.

    Each is given out once, and soon. Whoever refers to the same row later, be it as another class of it, gets it as it
    is then, for who had it first may have changed it meanwhile; and so does who comes when what was fetched is old.
    """

    def __init__(self, entries: Iterable[Any]) -> None:
        """Fetch what can be fetched together; the rest is fetched when it is asked for, and says then what is wrong.

        Args:
            entries: of the envelopes' tables of instances.

        Raises:
            django.db.Error: when the database does not answer.
        """
        keys: defaultdict[tuple[type[models.Model], str], set[Any]] = defaultdict(set)
        self._entries = list(entries)  # kept, so that they are what tells a place
        self._places = {id(entry): place for entry in self._entries if (place := _place(entry)) is not None}
        for place in self._places.values():
            keys[place[:2]].add(place[2])
        self._until, self._given = time.monotonic() + FRESH, set[Any]()
        self._found: dict[tuple[type[models.Model], str, Any], models.Model] = {
            (model, alias, pk): instance
            for (model, alias), pks in keys.items()
            for pk, instance in _plain(model, alias).in_bulk(list(pks)).items()
        }

    def __call__(self, entry: Any, decoder: Decoder) -> models.Model:
        """Make the instance of an entry, as :func:`instance_from` does."""
        place = self._places.get(id(entry)) or _place(entry)
        if place is None:
            return instance_from(entry, decoder)
        row = _row(place)
        found = self._found.pop(place, None) if row not in self._given and time.monotonic() < self._until else None
        self._given.add(row)
        return instance_from(entry, decoder) if found is None else found


def _row(place: tuple[type[models.Model], str, Any]) -> tuple[Any, ...]:
    """Return what tells a row, of whichever class it is."""
    model, alias, pk = place
    return line_of(model)[-1], alias, pk


def _plain(model: type[models.Model], alias: str) -> models.QuerySet[Any]:
    """Return a model's rows past any manager that would hide some."""
    return models.QuerySet(model, using=alias)


def _place(entry: Any) -> tuple[type[models.Model], str, Any] | None:
    """Return where the row of an entry is, if it is to be fetched whole, and by a key that equals what is fetched."""
    if type(entry) is not dict or not {"model", "pk", "db"} <= entry.keys() or {"fields", "deferred"} & entry.keys():
        return None
    try:
        model, pk = apps.get_model(str(entry["model"])), _keys.decode(entry["pk"])
    except (DecodeError, LookupError, ValueError):
        return None
    field: Any = model._meta.pk
    while field.remote_field is not None:
        field = field.target_field
    is_plain = isinstance(field, _PLAIN.get(type(pk), ())) and type(entry["db"]) is str
    return (model, entry["db"], pk) if is_plain and entry["db"] in connections.settings else None


_keys = Decoder([], instance_from)
_PLAIN: dict[type, Any] = {int: models.IntegerField, str: models.CharField, UUID: models.UUIDField}
