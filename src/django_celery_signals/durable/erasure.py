"""Forget what deliveries hold about an object."""

from __future__ import annotations

import json
import re
from copy import copy
from functools import reduce
from itertools import product
from operator import or_
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db.models import Model, Q

from ..codec.core import Unencodable
from ..codec.instances import InstanceEncoder, line_of
from ..keys import key_of
from .deliveries import deliveries
from .relay import keeping
from .rows import STEP


def forget(instance: Model) -> int:
    """Delete every delivery that carries an object, refers to it or has it as its key; return how many.

    In every database. Also those that wait: their receivers will not run. What a running receiver does is rolled back
    if it is atomic, and the next of its key may begin meanwhile. Copies in other objects' values, such as a name in a
    text, are not found, nor an object in a ``key=`` of several parts that stands behind its 200th character.

    Args:
        instance: a saved object.

    Raises:
        ValueError: for one without a primary key, which nothing refers to.
    """
    if instance.pk is None:
        raise ValueError(f"forget({instance!r}): it has no primary key, so no delivery can be told to be about it.")
    labels = [
        model._meta.label for model in apps.get_models(include_auto_created=True) if _share_a_row(model, instance)
    ]
    entries = [{"model": label, "pk": key} for label, key in product(labels, _keys(instance))]
    nodes = {json.dumps(entry, separators=(",", ":"))[:-1] + "," for entry in entries}
    key = key_of(instance)
    return sum(_forget(alias, nodes, key) for alias in keeping()) if nodes or key else 0


def _share_a_row(model: type[Model], instance: Model) -> bool:
    """Tell whether an object's row may also be a model's: a parent's or a child's of the same key, a proxy's."""
    one, other = line_of(model), line_of(type(instance))
    return one[0] in other or other[0] in one


def _keys(instance: Model) -> list[Any]:
    """Return the JSON of a primary key in every form it may have been sent in: Customer(pk="5") can be saved, too."""
    fields: Any = type(instance)._meta.pk_fields
    forms = [_forms(field, getattr(instance, field.attname)) for field in fields]
    return [key for values in product(*forms) if (key := _key(instance, fields, values)) is not None]


def _forms(field: Any, value: Any) -> list[Any]:
    try:
        read = field.to_python(value)
    except ValidationError:  # it is none of this field's, or an expression
        return [value]
    return [value, read, str(read)]


def _key(instance: Model, fields: Any, values: tuple[Any, ...]) -> Any:
    """Return the JSON of one form; None, when nothing refers to the object, for its key cannot be carried."""
    twin = copy(instance)
    for field, value in zip(fields, values, strict=True):
        setattr(twin, field.attname, value)
    try:
        return InstanceEncoder(repr, snapshot=False, users_too=False).pk_of(twin)
    except Unencodable:
        return None


def _forget(using: str, nodes: set[str], key: str | None) -> int:
    about = reduce(or_, (Q(payload__contains=node) for node in sorted(nodes)), Q(key__contains=key) if key else Q())
    found = deliveries(using).filter(about).values_list("pk", "payload", "key").iterator(chunk_size=STEP)
    # SQLite's LIKE takes capital letters for small ones. A key of several parts has each of them in quotes.
    named = re.compile(rf'(?:^|"){re.escape(key)}(?:$|\\|")' if key else "(?!)")
    ids = [
        pk
        for pk, payload, own in found
        if named.search(own or "") or any(node in payload for node in nodes if payload is not None)
    ]
    dropped = sum(rows.drop() for rows in deliveries(using).in_steps(ids))
    # A run may have folded one into another meanwhile, of which it was not known that it is about the object.
    return dropped + _forget(using, nodes, key) if dropped else 0
