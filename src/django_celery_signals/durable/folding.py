"""Let the newest sending of a key stand for those that waited with it: what they become, and the statements for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import reduce
from itertools import accumulate, takewhile
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import Error, transaction
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal

from .. import names
from ..codec.core import TAG
from ..codec.instances import line_of
from ..envelope import Envelope, Reader
from ..exceptions import DecodeError
from ..wire import dump, parse
from .deliveries import deliveries
from .lease import Lease
from .outbox import identity_of
from .rows import HEAVIEST, State
from .trouble import is_conflict

logger = logging.getLogger(__name__)

MOST = 500  # deliveries that one run stands for; the next run of the key has the rest

# What the parts of a payload raise that no envelope writes.
_DAMAGED = (AttributeError, LookupError, TypeError, ValueError, ValidationError)


def fold(older: Envelope, newer: Envelope) -> Envelope:
    """Return what two sendings of a key become, of which the receiver has seen neither to its end.

    It is the newer one, with its identity and all its arguments, but for what adds up: ``created`` is true if it was
    in one of them, ``update_fields`` has the names of both, unless one saved all, and each of ``event.changes`` goes
    from the first old value to the last new one. Nothing adds up for two different instances of a key. A delete
    supersedes what was before it, and what follows, unless that saves the row anew.
    """
    event = replace(newer.event, coalesced=older.event.coalesced + newer.event.coalesced + 1)
    if _row(older) != _row(newer) or _is_of(newer, pre_delete, post_delete):
        return replace(newer, event=event)
    if _is_of(older, pre_delete, post_delete):
        stands = newer if _is_of(newer, pre_save, post_save) else older
        return replace(stands, event=replace(stands.event, coalesced=event.coalesced))
    changes = {**_loose(older.changes), **newer.changes}
    for name in _loose(older.changes).keys() & newer.changes.keys():
        changes[name] = [older.changes[name][0], newer.changes[name][1]]
    return replace(newer, event=event, kwargs=_added(older.kwargs, newer.kwargs), changes=changes)


def _is_of(envelope: Envelope, *signals: Signal) -> bool:
    return names.find_signal(*envelope.signal_names) in signals


def _row(envelope: Envelope) -> tuple[Any, ...] | None:
    """Return what tells which row a sending's instance is, as any of the classes it has."""
    node = envelope.kwargs.get("instance")
    if not isinstance(node, dict) or node.get(TAG) != "obj":
        return None
    entry = envelope.objects[node["v"]]
    model, pk = apps.get_model(entry["model"]), Reader(envelope).value(entry["pk"])
    fields: Any = model._meta.pk_fields
    parts = zip(fields, pk if isinstance(pk, tuple) else (pk,), strict=True)
    return line_of(model)[-1], *(field.to_python(part) for field, part in parts)  # "5" and 5 are one


def _loose(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes that do not refer to the envelope's table of instances, as no field of Django's does."""
    return {name: pair for name, pair in changes.items() if not _refers(pair)}


def _refers(node: Any) -> bool:
    if isinstance(node, dict):
        return node.get(TAG) == "obj" or any(map(_refers, node.values()))
    return isinstance(node, list) and any(map(_refers, node))


def _added(older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    kwargs = dict(newer)
    created = [given["created"] for given in (older, newer) if type(given.get("created")) is bool]
    if created:
        kwargs["created"] = any(created)
    fields = [given["update_fields"] for given in (older, newer) if "update_fields" in given]
    if fields and all(field is None or _are_names(field) for field in fields):
        every = [set(field["v"]) for field in fields if field is not None]
        united = sorted(set().union(*every))
        kwargs["update_fields"] = {TAG: "frozenset", "v": united} if len(every) == len(fields) else None
    return kwargs


def _are_names(node: Any) -> bool:
    """Tell whether some JSON is what becomes of a set of names."""
    is_set = isinstance(node, dict) and node.get(TAG) in ("set", "frozenset")
    return is_set and all(isinstance(name, str) for name in node["v"])


def fold_in(lease: Lease, known: Any) -> Envelope:
    """Fold what waits behind an opened delivery into it, and return its envelope.

    In a transaction of its own, after the opening has succeeded: a copy of the message, which opens nothing, would
    otherwise delete what waits, and nobody would run it.

    Args:
        lease: on the opened delivery.
        known: the delivery.

    Raises:
        DecodeError: when the delivery's own payload is damaged, or erased.
        django.db.Error: when the database does not answer; all is folded then, or nothing.
    """
    envelope = parse(known.payload)
    is_followed = known.folds and getattr(known, "followed", True)  # a message may have come without the question
    followers = deliveries(lease.using).followers(known.lane, MOST) if is_followed else ()
    if not followers:
        return envelope
    # The head itself need not be the oldest: one that was parked and is retried, or was committed late, is older.
    readable = _read(lease, followers)
    early = _early(lease, followers)
    # Behind one that cannot be folded, or may not yet, they wait for their turn.
    folded = list(takewhile(lambda row: row.pk in readable and row.pk not in early, followers))
    if not folded:
        return envelope
    rows = sorted((known, *folded), key=lambda row: row.pk)
    try:
        together = reduce(fold, (readable.get(row.pk, envelope) for row in rows))
    except _DAMAGED as error:  # one of them, which will say so in its own run
        logger.warning("Delivery %s of %r runs alone, what waits cannot be folded: %r", lease.pk, lease.using, error)
        return envelope
    options = {name: value for name, value in rows[-1].options.items() if name != "expires"}
    if (expires := _latest([row.options.get("expires") for row in rows])) is not None:
        options["expires"] = expires
    if not _write(lease, known, folded, {**identity_of(together), "options": options, "payload": dump(together)}):
        return envelope
    logger.debug("Delivery %s of %r stands for %d more.", lease.pk, lease.using, len(folded))
    return together


def _early(lease: Lease, followers: Sequence[Any]) -> set[int]:
    """Return the keys of those whose countdown is not over; what is debounced has none of its own."""
    counting = [row for row in followers if row.options.get("countdown") and "debounce" not in row.options]
    ages = deliveries(lease.using).ages(counting)
    return {row.pk for row, age in zip(counting, ages, strict=True) if age < row.options["countdown"]}


def _latest(moments: Sequence[str | None]) -> str | None:
    """Return the expiry of several deliveries together: not before the last of them, and never if one has none."""
    known = [moment for moment in moments if moment is not None]
    return max(known, key=datetime.fromisoformat) if len(known) == len(moments) else None


def _read(lease: Lease, followers: Sequence[Any]) -> dict[int, Envelope]:
    """Return the envelopes of those that may be folded, by the keys of their rows: of so many as memory is for."""
    weights = zip(followers, accumulate(row.size or 0 for row in followers), strict=True)
    ids = [row.pk for row, weight in weights if row.folds and (weight <= HEAVIEST or row is followers[0])]
    found = deliveries(lease.using).filter(pk__in=ids).values_list("pk", "payload") if ids else ()
    return {pk: envelope for pk, payload in found if (envelope := _readable(payload)) is not None}


def _readable(payload: str | None) -> Envelope | None:
    try:
        return parse(payload or "")
    except DecodeError:
        return None


def _write(lease: Lease, known: Any, folded: Sequence[Any], columns: dict[str, Any]) -> bool:
    """Write the folded delivery and delete the others, if all of them are still what they were."""
    others = deliveries(lease.using).filter(pk__in=[row.pk for row in folded], state=State.READY, slot=None)
    try:
        with transaction.atomic(using=lease.using):
            if lease.row().update(**columns) and others.erase() == len(folded):
                vars(known).update(columns)
                return True
            transaction.set_rollback(True, using=lease.using)
    except Error as error:
        if not is_conflict(error):
            raise
    return False
