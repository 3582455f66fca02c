"""What the options of a connection mean, in words."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db.models.signals import ModelSignal, post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal

from ..bridge import SNAPSHOT_SIGNALS
from ..connected import Connected
from ..contradictions import M2M_ACTIONS
from ..durable.failing import hooks
from ..durable.routes import queue_of
from ..keys import MAX_WAIT, takes_turns
from ..parameters import never_sends
from ..policy import LONGEST_PAUSE, most_retries
from ..senders import label_of


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
    told = ((fact.label, " ".join(fact.words(one))) for fact in FACTS)
    return [(label, text) for label, text in told if text]


def either(words: Iterable[str], last: str = "or") -> str:
    """Return "a, b or c"."""
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


def seconds(value: float) -> str:
    """Return a duration in words."""
    return f"{value:g} {'second' if value == 1 else 'seconds'}"


def function_name(function: Any) -> str:
    """Return where a function is found; of a lambda its line, for it has no name."""
    while isinstance(function, partial):
        function = function.func
    if getattr(function, "__name__", "") == "<lambda>":
        return f"{function.__module__}.<lambda>:{function.__code__.co_firstlineno}"
    if not hasattr(function, "__qualname__"):  # an object that can be called
        return f"{type(function).__module__}.{type(function).__qualname__}"
    return f"{function.__module__}.{function.__qualname__}"


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
    return _OCCASIONS.get(one.signal) or ("each time" if never_sends(one.signal, "action") else _EACH_ACTION)


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
_EACH_ACTION = f"{_actions(M2M_ACTIONS)}, so twice for each change (choose by action=)"
_OCCASIONS: dict[Signal, str] = {
    **dict.fromkeys((pre_save, post_save), "each time, when it is created and when it is updated"),
    **dict.fromkeys((pre_delete, post_delete), "each time"),
}


# What it is given ----------------------------------------------------------------------------------------------------

_MISSING = {
    "discard": "If the row is gone by then, nothing runs: the event is dropped, with a line in the log.",
    "retry": "If the row is gone by then, the run is tried again, for it may come (on_missing='retry').",
    "fail": "If the row is gone by then, the run fails with InstanceMissing (on_missing='fail').",
}


def _given(one: Connected) -> Iterable[str]:
    if one.options.instance == "snapshot":
        yield "the values as they were when the signal was sent (instance='snapshot')."
    elif one.signal in SNAPSHOT_SIGNALS:
        reason = "not written yet" if one.signal is pre_save else "deleted"
        yield f"the values as they were when the signal was sent, for the row is {reason}."
    elif isinstance(one.signal, ModelSignal):
        yield f"the row as it is when the worker reads it. {_MISSING[one.task.on_missing]}"
    else:
        yield f"what was sent; model instances are read again by the worker. {_MISSING[one.task.on_missing]}"


# How it gets to the worker -------------------------------------------------------------------------------------------


def _guarantee(one: Connected) -> Iterable[str]:
    yield one.guarantee


def _queue(one: Connected) -> Iterable[str]:
    priority = one.task.priority if one.options.priority is None else one.options.priority
    yield queue_in_words(one) + (f", with priority {priority}" if priority is not None else "")


def queue_in_words(one: Connected) -> str:
    """Return the queue of a connection's messages."""
    return queue_of(one.app, one.receiver, {"queue": one.options.queue}) or "(by its route)"


def _starts(one: Connected) -> Iterable[str]:
    own, countdown = one.options, one.options.countdown
    turns = [*_turns(one)]
    if countdown is not None:
        where = "its row waits" if one.guarantee == "durable" else "its message waits in a worker"
        yield f"{seconds(countdown)} after the sending at the earliest (countdown=); until then {where}."
    elif own.debounce is None:
        yield "as soon as a worker is free" + (
            ", after the commit." if one.guarantee in ("durable", "on_commit") else "."
        )
    yield from turns
    expires = one.task.expires if own.expires is None else own.expires
    if expires is not None:
        yield f"If no worker has started it {_deadline(expires)}, it is dropped (expires=)."


def _turns(one: Connected) -> Iterable[str]:
    if not takes_turns(one.options, one.task):
        return
    key = _key(one)
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


def _key(one: Connected) -> str:
    if one.options.key is not None:
        return f"the same key, which is what {function_name(one.options.key)} returns (key=),"
    return f"the same {label_of(one.sender_class)}" if _sends_itself(one) else "the same instance"


def _sends_itself(one: Connected) -> bool:
    return one.signal in (pre_save, post_save, pre_delete, post_delete) and one.sender_class is not None


def _deadline(expires: Any) -> str:
    if isinstance(expires, datetime):
        return f"by {expires.isoformat(sep=' ')}"
    return f"{seconds(expires.total_seconds() if isinstance(expires, timedelta) else expires)} after the sending"


# What happens in the worker ------------------------------------------------------------------------------------------


def _runs(one: Connected) -> Iterable[str]:
    if one.task.atomic:
        yield "in a transaction: what it writes to the event's database is committed as a whole, or not at all."
    else:
        yield "in no transaction (atomic=False): what it writes before an error stays, and is written again by a retry."
    if one.task.batch:
        yield f"It is given a list of up to {one.task.most_together} events at once (batch=True, chunk_size=)."
    elif one.task.most_together > 1:
        yield f"Where many wait, up to {one.task.most_together} come in one message; each runs by itself (chunk_size=)."


def _fails(one: Connected) -> Iterable[str]:
    yield _retries(one)


def _failed(one: Connected) -> Iterable[str]:
    if one.guarantee != "durable":
        yield "it is lost, and Celery logs the error."
        return
    yield "the delivery is kept with its traceback, for manage.py signals list-failed, retry and discard."
    if called := hooks.get(one.receiver):
        yield f"{either(map(function_name, called), 'and')} is called (@task.on_failed)."


def _behind(one: Connected) -> Iterable[str]:
    if takes_turns(one.options, one.task):
        later = f"later sendings about {_key(one)}"
        yield f"{later} {_BEHIND[one.task.blocks_key]}."
    elif one.task.after_failure is not None:
        yield f"no other waits for its turn, so on_failure={one.task.after_failure!r} changes nothing."


_BEHIND = {
    True: "wait until someone retries or discards what was given up (on_failure='block')",
    False: "go on without what was given up (on_failure='park')",
}


def _retries(one: Connected) -> str:
    named = getattr(one.task, "autoretry_for", ()) or ()
    options = (getattr(one.task, "retry_kwargs", None) or {}) if named else {}
    limit = options.get("max_retries", one.task.max_retries) if named else most_retries(one.task)
    if limit == 0 or not (named or one.guarantee == "durable"):
        return "is not tried again, unless the receiver asks for it (self.retry(), RetryAfter)."
    errors = f"such as {either(error.__name__ for error in named)} (autoretry_for=) " if named else ""
    times = "without end" if limit is None else "once" if limit == 1 else f"up to {limit} times"
    pauses = (
        _pauses(one.task, options.get("countdown")) if named else f"after 1, 2, 4, ... at most {LONGEST_PAUSE} seconds"
    )
    others = " Any other error fails at once." if named else ""
    return f"{errors}is tried again {times} (max_retries=), {pauses}.{others}"


def _pauses(task: Any, countdown: float | None) -> str:
    """Return when Celery lets a task run again that names the errors which are worth it."""
    backoff = getattr(task, "retry_backoff", False)
    if not backoff:
        return f"after {seconds(task.default_retry_delay if countdown is None else countdown)} each time"
    first, longest = int(max(1, backoff)), getattr(task, "retry_backoff_max", LONGEST_PAUSE)
    return f"after {first}, {first * 2}, {first * 4}, ... at most {longest} seconds (retry_backoff=)"


def _kept(one: Connected) -> Iterable[str]:
    if one.task.retain:
        yield f"{seconds(one.task.retain)} after it has succeeded, as done (retain=)."


def _names(one: Connected) -> Iterable[str]:
    if one.task.former_names:
        yield f"what was sent to {either(one.task.former_names, 'and')} (former_names=)."


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
    Fact(label="runs", options=("atomic", "batch", "chunk_size"), words=_runs),
    Fact(label="an error", options=("autoretry_for", "max_retries"), words=_fails),
    Fact(label="if given up", options=(), words=_failed),
    Fact(label="behind it", options=("on_failure",), words=_behind),
    Fact(label="kept", options=("retain",), words=_kept),
    Fact(label="also takes", options=("former_names",), words=_names),
)
