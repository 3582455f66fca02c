"""Forget what deliveries hold about an object."""

from __future__ import annotations

import json
from functools import reduce
from operator import or_

from django.apps import apps
from django.db.models import Model, Q

from ..codec.instances import InstanceEncoder
from .deliveries import deliveries
from .relay import keeping

BATCH = 1000  # rows of one statement


def forget(instance: Model) -> int:
    """Delete every delivery that carries an object or refers to it, in every database; return how many.

    Also those that wait: their receivers will not run. What a running receiver does is rolled back if it is atomic.
    Copies in other objects' values, such as a name in a text, are not found.

    Args:
        instance: a saved object.

    Raises:
        ValueError: for one without a primary key, which nothing refers to.
    """
    if instance.pk is None:
        raise ValueError(f"forget({instance!r}): it has no primary key, so no delivery can be told to be about it.")
    pk = InstanceEncoder(_keep, snapshot=False, users_too=False).pk_of(instance)
    family = [model for model in apps.get_models(include_auto_created=True) if _are_kin(model, type(instance))]
    nodes = [json.dumps({"model": model._meta.label, "pk": pk}, separators=(",", ":")) for model in family]
    return sum(_forget(alias, [node[:-1] + "," for node in nodes]) for alias in keeping())


def _are_kin(one: type[Model], other: type[Model]) -> bool:
    """Tell whether a row can be an object of both: a parent and its child, a model and its proxy."""
    one, other = one._meta.concrete_model or one, other._meta.concrete_model or other
    return issubclass(one, other) or issubclass(other, one)


def _keep(error: object) -> object:
    return None


def _forget(using: str, nodes: list[str]) -> int:
    about = reduce(or_, (Q(payload__contains=node) for node in nodes))
    found = deliveries(using).filter(about).values_list("pk", "payload").iterator(chunk_size=BATCH)
    # SQLite's LIKE takes capital letters for small ones.
    ids = [pk for pk, payload in found if any(node in payload for node in nodes)]
    batches = (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))
    return sum(deliveries(using).filter(pk__in=batch).erase() for batch in batches)
