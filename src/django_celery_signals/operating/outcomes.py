"""What happens in the worker, in words: how a receiver runs, and what its errors lead to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..connected import Connected
from ..durable.failing import hooks
from ..keys import takes_turns
from ..policy import LONGEST_PAUSE, most_retries
from .phrases import either, function_name, key_in_words, seconds


def runs(one: Connected) -> Iterable[str]:
    """Say how it runs."""
    if one.task.atomic:
        yield "in a transaction: what it writes to the event's database is committed as a whole, or not at all."
    else:
        yield "in no transaction (atomic=False): what it writes before an error stays, and is written again by a retry."
    if one.task.batch:
        yield f"It is given a list of up to {one.task.most_together} events at once (batch=True, chunk_size=)."
    elif one.task.most_together > 1:
        yield f"Where many wait, up to {one.task.most_together} come in one message; each runs by itself (chunk_size=)."
    for name, result in LIMITS.items():
        if limit := getattr(one.task, name, None):
            yield f"{result.format(limit)} ({name}=)."


LIMITS = {
    "soft_time_limit": "After {:g} seconds it is interrupted by SoftTimeLimitExceeded",
    "time_limit": "After {:g} seconds its process is killed",
    "rate_limit": "Each worker begins {} at most",
}


def fails(one: Connected) -> Iterable[str]:
    """Say what an error leads to."""
    yield _retries(one)


def given_up(one: Connected) -> Iterable[str]:
    """Say what becomes of it after the last error."""
    if one.guarantee != "durable":
        yield "it is lost, and Celery logs the error."
        return
    yield "the delivery is kept, with its traceback, for manage.py signals list-failed, retry and discard."
    if called := hooks.get(one.receiver):
        yield f"This is told to {either(map(function_name, called), 'and')} (@task.on_failed)."


def behind(one: Connected) -> Iterable[str]:
    """Say what that means for those of its key."""
    if takes_turns(one.options, one.task):
        later = f"later sendings about {key_in_words(one) if one.options.key is None else 'the same key'}"
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
    if limit == 0:
        return "is not tried again (max_retries=0)."
    if not named and one.guarantee != "durable":
        return "is not tried again, unless the receiver asks for it (self.retry(), RetryAfter)."
    errors = f"{either(error.__name__ for error in named)} (autoretry_for=) " if named else ""
    times = "without end" if limit is None else "once" if limit == 1 else f"up to {limit} times"
    pauses = _pauses(one.task, limit, options.get("countdown")) if named else _growing(limit, 1, LONGEST_PAUSE)
    others = " Any other error fails at once." if named else ""
    return f"{errors}is tried again {times} (max_retries=), {pauses}.{others}"


def _growing(limit: int | None, first: int, longest: int) -> str:
    """Return pauses that double; of a single one there is no row."""
    if limit == 1:
        return f"after about {seconds(min(first, longest))}"
    return f"after {first}, {first * 2}, {first * 4}, ... at most {longest} seconds"


def _pauses(task: Any, limit: int | None, countdown: float | None) -> str:
    """Return when Celery lets a task run again that names the errors which are worth it."""
    backoff = getattr(task, "retry_backoff", False)
    if not backoff:
        each = "" if limit == 1 else " each time"
        return f"after {seconds(task.default_retry_delay if countdown is None else countdown)}{each}"
    first, longest = int(max(1, backoff)), getattr(task, "retry_backoff_max", LONGEST_PAUSE)
    return f"{_growing(limit, first, longest)} (retry_backoff=)"


def kept(one: Connected) -> Iterable[str]:
    """Say how long it is kept after success."""
    if one.task.retain:
        yield f"{seconds(one.task.retain)} after it has succeeded, as done (retain=)."


def former_names(one: Connected) -> Iterable[str]:
    """Say what else reaches the task."""
    if one.task.former_names:
        yield f"what was sent to {either(one.task.former_names, 'and')} (former_names=)."
