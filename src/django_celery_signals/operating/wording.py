"""What the options of a connection mean, in words."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models.signals import ModelSignal, m2m_changed, post_save, pre_save
from django.dispatch import Signal

from ..bridge import SNAPSHOT_SIGNALS, check_signal
from ..connected import Connected
from ..contradictions import M2M_ACTIONS
from ..dispatch import AUDIT
from ..durable.routes import queue_of
from ..exceptions import ConnectError
from ..keys import MAX_WAIT, takes_turns
from ..senders import label_of
from .outcomes import LIMITS, behind, fails, former_names, given_up, kept, runs
from .phrases import either, function_name, key_in_words, seconds

GUARANTEES = {
    "durable": "what is sent is kept as a row, the delivery, in the sender's database until the receiver has "
    "succeeded. It is written in the sender's transaction: what is committed reaches the receiver, whatever crashes; "
    "what is rolled back does not. The receiver runs at least once; what it writes to that database in a transaction "
    "(atomic=True) is committed exactly once.",
    "on_commit": "the message goes to the broker once, after the commit, and never after a rollback. What the broker "
    "or a worker then loses is lost.",
    "immediate": "the message goes to the broker at once, also for what is rolled back later. When the broker does not "
    "take it, whoever sent the signal gets the error.",
    AUDIT: "the message goes to the broker at once, so that it survives the rollback that often comes with this "
    "signal. When the broker does not take it, it is lost, and that is logged.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing to say of a connection."""

    label: str
    options: tuple[str, ...]  # that it speaks of
    words: Callable[[Connected], Iterable[str]]  # sentences; none: there is nothing to say


def facts_of(one: Connected) -> list[tuple[str, str]]:
    """Return what there is to know of a connection, each text behind its label."""
    if one.task is None:
        missing = (
            f"the Celery app {one.app.main!r} has no task of this name, so nothing is sent. Import its module where "
            "every process does, such as receivers.py or tasks.py of an installed app."
        )
        return [("missing", missing)]
    try:
        check_signal(one.signal, one.receiver)
    except ConnectError as error:  # of a plain connect(), which asks nothing
        return [("refused", f"each time the signal is sent, by an error: {error}")]
    told = ((fact.label, [*fact.words(one)]) for fact in FACTS)
    return [(label, " ".join([said[0], *map(_begun, said[1:])])) for label, said in told if said]


def _begun(sentence: str) -> str:
    return f"{sentence[0].upper()}{sentence[1:]}"


# Which sendings ----------------------------------------------------------------------------------------------------


def _sent(one: Connected) -> Iterable[str]:
    own = one.options
    asked = "" if own.when is None else f", but only if {function_name(own.when)} returns true (when=)"
    yield f"{_occasion(one)}{asked}."
    if own.family is not None:
        yield f"Also what subclasses of {label_of(own.family)} send (subclasses=True)."
    if own.exclude:
        excluded = (entry if isinstance(entry, str) else label_of(entry) for entry in own.exclude)
        yield f"Not what {either(excluded)} sends (exclude=)."
    if own.raw:
        yield "Also what loaddata saves from fixtures (raw=True)."


def _occasion(one: Connected) -> str:
    own = one.options
    if own.action is not None:
        return f"{_actions(own.action)} (action=)"
    if own.created is True:
        return "when it is created (created=True)"
    fields = own.changed or ()
    changed = f" with a new {'value of ' if fields[1:] else ''}{either(fields)} (changed=)" if fields else ""
    if own.created is False:
        return f"when it is updated{changed}, not when it is created (created=False)"
    if changed:
        return f"when it is created, or updated{changed}"
    return _OCCASIONS.get(one.signal, "each time")


def _actions(patterns: Iterable[str]) -> str:
    """Return what ``m2m_changed`` calls "pre_add" and so on; the patterns, where they are about another signal."""
    found = [name for name in M2M_ACTIONS if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not found:
        return f"when the action is {either(patterns)}"
    parts = []
    for when, word in (("pre", "before"), ("post", "after")):
        verbs = [_VERBS[name.partition("_")[2]] for name in found if name.startswith(when)]
        parts += [f"{word} objects are {either(verbs)}"] if verbs else []
    return f"{either(parts, 'and')}"


_VERBS = {"add": "added", "remove": "removed", "clear": "cleared"}
_OCCASIONS: dict[Signal, str] = {
    **dict.fromkeys((pre_save, post_save), "each time: when it is created, and when it is updated"),
    m2m_changed: f"{_actions(M2M_ACTIONS)}, so twice for each change (choose by action=)",
}


# What it is given ----------------------------------------------------------------------------------------------------

_MISSING = {
    "discard": "gone by then, nothing runs: the event is dropped, with a line in the log (on_missing=).",
    "retry": "gone by then, the run is tried again, for it may come (on_missing='retry').",
    "fail": "gone by then, the run fails with InstanceMissing (on_missing='fail').",
}


def _given(one: Connected) -> Iterable[str]:
    if one.options.instance == "snapshot":
        yield "the values as they were when the signal was sent (instance='snapshot')."
    elif one.signal in SNAPSHOT_SIGNALS:
        reason = "not written yet" if one.signal is pre_save else "deleted"
        yield f"the values as they were when the signal was sent, for the row is {reason}."
    elif isinstance(one.signal, ModelSignal):
        yield f"the row as it is when the worker reads it. If it is {_MISSING[one.task.on_missing]}"
    else:
        yield "what was sent; model instances in it are read again by the worker."
        yield f"If the row of one is {_MISSING[one.task.on_missing]}"


# How it gets to the worker -------------------------------------------------------------------------------------------


def _guarantee(one: Connected) -> Iterable[str]:
    yield one.guarantee


def _queue(one: Connected) -> Iterable[str]:
    priority = one.task.priority if one.options.priority is None else one.options.priority
    yield queue_in_words(one) + (f", with priority {priority}" if priority is not None else "")


def queue_in_words(one: Connected) -> str:
    """Return the queue of a connection's messages."""
    return queue_of(one.app, one.task, one.receiver, {"queue": one.options.queue}) or "(by its route)"


def _starts(one: Connected) -> Iterable[str]:
    own, countdown = one.options, one.options.countdown
    turns = [*_turns(one)]
    if countdown is not None:
        where = "its row waits" if one.guarantee == "durable" else "its message waits in a worker"
        yield f"{seconds(countdown)} after the sending at the earliest (countdown=); until then {where}."
    elif own.debounce is None:
        after = "after the commit, " if one.guarantee in ("durable", "on_commit") else ""
        yield f"{after}as soon as a worker is free."
    yield from turns
    expires = one.task.expires if own.expires is None else own.expires
    if expires is not None:
        yield f"If no worker has started it {_deadline(expires)}, it is dropped (expires=)."


def _turns(one: Connected) -> Iterable[str]:
    if not takes_turns(one.options, one.task):
        return
    key = key_in_words(one)
    if one.options.debounce is not None:
        longest = one.options.max_wait or MAX_WAIT * one.options.debounce
        yield (
            f"after {seconds(one.options.debounce)} without another sending about {key} (debounce=), but at most "
            f"{seconds(longest)} after the first of them (max_wait=). One run stands for all of them, and is given the "
            "newest."
        )
    elif one.options.folds:
        yield f"One run stands for all sendings about {key} that wait by then, and is given the newest (coalesce=True)."
    if one.task.ordered:
        yield f"Sendings about {key} run one at a time, the oldest first (ordered=True); all others run beside them."


def _deadline(expires: Any) -> str:
    if isinstance(expires, datetime):
        return f"by {expires.isoformat(sep=' ')}"
    return f"{seconds(expires.total_seconds() if isinstance(expires, timedelta) else expires)} after the sending"


FACTS = (
    Fact(label="sent", options=("action", "created", "changed", "when", "family", "exclude", "raw"), words=_sent),
    Fact(label="given", options=("instance", "on_missing"), words=_given),
    Fact(label="guarantee", options=("guarantee",), words=_guarantee),
    Fact(label="queue", options=("queue", "priority"), words=_queue),
    Fact(
        label="starts",
        options=("countdown", "debounce", "max_wait", "coalesce", "key", "ordered", "expires"),
        words=_starts,
    ),
    Fact(label="runs", options=("atomic", "batch", "chunk_size", *LIMITS), words=runs),
    Fact(label="an error", options=("autoretry_for", "max_retries"), words=fails),
    Fact(label="if given up", options=(), words=given_up),
    Fact(label="behind it", options=("on_failure",), words=behind),
    Fact(label="kept", options=("retain",), words=kept),
    Fact(label="also takes", options=("former_names",), words=former_names),
)
