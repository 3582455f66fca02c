"""Fetch the instances of several envelopes together."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.apps import apps
from django.db import connections, models

from ..exceptions import DecodeError
from .core import Decoder
from .instances import instance_from, line_of

FRESH = 1.0  # seconds for which a row that was fetched beforehand counts as just fetched


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
        for place in filter(None, map(_place, entries)):
            keys[place[:2]].add(place[2])
        self._until, self._given = time.monotonic() + FRESH, set[Any]()
        self._found: dict[tuple[type[models.Model], str, Any], models.Model] = {
            (model, alias, pk): instance
            for (model, alias), pks in keys.items()
            for pk, instance in _plain(model, alias).in_bulk(list(pks)).items()
        }

    def __call__(self, entry: Any, decoder: Decoder) -> models.Model:
        """Make the instance of an entry, as :func:`instance_from` does."""
        place = _place(entry)
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
