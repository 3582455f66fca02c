"""Retry and discard, as ``manage.py signals`` does it, in steps, each with its entries in the admin's log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import transaction

from ..durable.deliveries import DeliveryQuerySet, deliveries
from ..durable.rows import STEP, State
from ..plurals import quantity
from .bounds import COUNTED, Count, counted
from .places import place_of

LOGGED = 1000  # deliveries of one action that have an entry each; of the others each step has one
MOST_LOCKED = 500  # blocked keys of which it is counted how many wait for them


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """What people do with failed deliveries."""

    name: str  # as in an address, and of the command
    done: str  # "retried"
    flag: int  # what the log calls it
    able: Callable[[DeliveryQuerySet], DeliveryQuerySet]  # which of the failed ones it can be done with
    work: Callable[[DeliveryQuerySet], int]


RETRY = Verb(
    name="retry",
    done="retried",
    flag=CHANGE,
    able=lambda rows: rows.filter(payload__isnull=False),
    work=lambda rows: rows.retry(),
)
DISCARD = Verb(
    name="discard",
    done="discarded",
    flag=DELETION,
    able=lambda rows: rows,
    work=lambda rows: rows.discard(),
)
VERBS = {verb.name: verb for verb in (RETRY, DISCARD)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Deliveries that somebody chose, before anything is done with them."""

    able: Count  # with which it can be done
    lost: Count  # failed ones that have no payload any more
    others: Count  # that have not failed
    behind: Count  # that wait behind those of them that block their keys


def look_at(rows: DeliveryQuerySet, verb: Verb) -> Chosen:
    """Count what was chosen, before it is changed."""
    failed, able = rows.failed(), verb.able(rows.failed())
    lost = failed.filter(payload__isnull=True) if verb is RETRY else failed.none()
    every, given_up = counted(rows), counted(failed)
    return Chosen(
        able=counted(able),
        lost=counted(lost),
        others=Count(number=every.number - given_up.number, more=every.more),
        behind=waiting_behind(able),
    )


def waiting_behind(rows: DeliveryQuerySet) -> Count:
    """Count what waits behind failed deliveries that block their keys; of very many of them, behind the newest."""
    blocking = rows.failed().filter(slot__isnull=False).order_by("-pk")
    slots = list(blocking.values_list("slot", flat=True)[: MOST_LOCKED + 1])
    waiting = deliveries(rows.db).filter(state=State.READY, slot=None, lane__in=slots[:MOST_LOCKED])
    found = counted(waiting) if slots else Count(number=0, more=False)
    return Count(number=found.number, more=found.more or len(slots) > MOST_LOCKED)


def change(rows: DeliveryQuerySet, verb: Verb, user_id: Any) -> Count:
    """Do it with the failed deliveries among some, the newest first, and log it; return how many it was done with.

    What another process has its hands on at the moment is left alone. The log's entries are written with each step, in
    its transaction where the log is in the same database, and before it where it is in another.
    """
    able, done, last = verb.able(rows.failed()).order_by("-pk"), 0, None
    for _ in range(0, COUNTED, STEP):
        part = able if last is None else able.filter(pk__lt=last)
        ids = list(part.values_list("pk", flat=True)[:STEP])
        if not ids:
            return Count(number=done, more=False)
        done += _step(rows.db, ids, verb, user_id, each=done < LOGGED)
        last = ids[-1]
    return Count(number=done, more=able.filter(pk__lt=last).exists())


def _step(alias: str, ids: Sequence[int], verb: Verb, user_id: Any, *, each: bool) -> int:
    everywhere = deliveries(alias)
    with transaction.atomic(using=alias), verb.able(everywhere.failed()).filter(pk__in=ids).held(len(ids)) as held:
        mine = verb.able(everywhere.failed()).filter(pk__in=held)
        found = list(mine.order_by("-pk").only("summary", "receiver", "state"))
        if not found:
            return 0
        _log(alias, found, verb, user_id, each=each)
        return verb.work(mine)


def _log(alias: str, rows: Sequence[Any], verb: Verb, user_id: Any, *, each: bool) -> None:
    kind = ContentType.objects.get_for_model(deliveries(alias).model)
    common = {"user_id": user_id, "content_type": kind, "action_flag": verb.flag}
    if each:
        entries = [
            LogEntry(
                object_id=place_of(alias, row.pk),
                object_repr=f"{row.summary} -> {row.receiver}"[:200],
                change_message=f"{verb.done.capitalize()} {place_of(alias, row.pk)}: {row.summary} for {row.receiver}.",
                **common,
            )
            for row in rows
        ]
    else:
        message = _in_words(alias, rows, verb)
        entries = [LogEntry(object_id=None, object_repr=message[:200], change_message=message, **common)]
    LogEntry.objects.bulk_create(entries)


def _in_words(alias: str, rows: Sequence[Any], verb: Verb) -> str:
    first, last = place_of(alias, rows[-1].pk), place_of(alias, rows[0].pk)
    receivers = ", ".join(f"{name} ({count})" for name, count in Counter(row.receiver for row in rows).most_common())
    return f"{verb.done.capitalize()} {quantity(len(rows))} between {first} and {last}: {receivers}."
