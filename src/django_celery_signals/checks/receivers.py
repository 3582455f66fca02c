"""What can be said of receivers before the first signal: whether they are there, can be called, mean what they say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

from celery import Task
from django.core.checks import CheckMessage, Error, Warning

from .. import contradictions, names
from ..bridge import check_signal
from ..connected import ANY, Connected, connected, plain, signals
from ..exceptions import ConnectError
from ..keys import takes_turns
from ..options import SendingOptions
from ..parameters import check_batch, check_parameters
from ..task import SPELLINGS

_FILTERS = ("when", "changed", "created", "action", "raw")
_TIMES = ("countdown", "debounce")
_LATE = ("acks_late", "reject_on_worker_lost")
# Seconds after which kombu's transports give a message to another worker, unless its options say otherwise.
_VISIBILITY = {"redis": 3600.0, "rediss": 3600.0, "sentinel": 3600.0, "sqs": 1800.0}


def check_registered(**_: Any) -> list[CheckMessage]:
    """Name the receivers whose tasks their app does not have."""
    return [
        Error(
            f"{name} is connected to a signal, but the Celery app {app.main!r} of this process has no task of that "
            "name: what is sent to it is not published, and its deliveries wait.",
            hint="Import the task's module where every process does: name it receivers.py or tasks.py in an installed "
            "app, or add it to DJANGO_CELERY_SIGNALS['AUTODISCOVER'].",
            id="dcs.E001",
        )
        for name, app in {one.receiver: one.app for one in connected() if one.task is None}.items()
    ]


def check_callable(**_: Any) -> list[CheckMessage]:
    """Name the receivers that can never be called by what they are connected to."""
    return list(_refused(_check_call, "dcs.E002", "Change the function as said, or connect it to another signal."))


def check_asynchronous(**_: Any) -> list[CheckMessage]:
    """Name the receivers of signals that can have none in a worker."""
    hint = "Connect a plain function, which Django calls at once; it may call the task with what it has found out."
    return list(_refused(lambda one: check_signal(one.signal, one.receiver), "dcs.E003", hint))


def check_options(**_: Any) -> list[CheckMessage]:
    """Name the connections whose options contradict their task's, or their signal."""
    return list(_refused(_check_contradictions, "dcs.E004", "Change or leave out one of the options."))


def _refused(check: Callable[[Connected], None], number: str, hint: str) -> Iterator[CheckMessage]:
    """Yield what a check raises; ``connect()`` and ``receiver_task()`` raise the same, a plain ``connect()`` cannot."""
    for one in connected():
        try:
            check(one)
        except ConnectError as error:
            yield Error(str(error), hint=hint, id=number)


def _check_call(one: Connected) -> None:
    if one.task is None:
        return
    body = (one.task.run, False)
    if one.task.batch:
        check_batch(one.receiver, body)
    else:
        check_parameters(one.signal, one.receiver, body, also=frozenset({"event"}))


def _check_contradictions(one: Connected) -> None:
    if one.task is None:
        return
    where, together = f"receiver {one.receiver}", {name: getattr(one.task, name) for name in ("batch", "chunk_size")}
    contradictions.check_turns(one.options, one.task.ordered, one.signal, one.guarantee, where)
    contradictions.check_together(one.options, together, one.signal, one.guarantee, where)
    contradictions.check_against_signal(one.options, one.signal, [None if one.sender == ANY else one.sender], where)


def check_ordinary(**_: Any) -> list[CheckMessage]:
    """Warn of ordinary Celery tasks, which are called with a signal that no message of theirs can carry."""
    return [
        Warning(
            f"{name} is an ordinary Celery task, whose {spelling}() is connected to {signal}: Celery puts the signal "
            "itself into the message, which its JSON cannot carry, so the first sending fails with an EncodeError.",
            hint="Give it base=ReceiverTask, as in @shared_task(base=ReceiverTask), or all tasks: "
            "Celery(..., task_cls='django_celery_signals:ReceiverTask').",
            id="dcs.W015",
        )
        for name, spelling, signal in dict.fromkeys(_ordinary())
    ]


def _ordinary() -> Iterator[tuple[str, str, str]]:
    """Yield the tasks that are none of ours and are connected by one of Celery's methods, with that and the signal."""
    for signal in signals():
        for one in plain(signal):
            task, spelling = getattr(one.receiver, "__self__", None), getattr(one.receiver, "__name__", "")
            if isinstance(task, Task) and spelling in SPELLINGS:
                yield str(task.name), spelling, names.short_name(names.signal_name(signal)) or "a signal"


def check_turns(**_: Any) -> list[CheckMessage]:
    """Warn of receivers that say what a failure does to a key that they do not have."""
    every = [one for one in connected() if one.task is not None]
    tasks = {one.receiver: one.task for one in every}
    keyed = {one.receiver for one in every if takes_turns(one.options, one.task)}
    return [
        Warning(
            f"{name} says on_failure={task.after_failure!r}, which is about the key of a delivery that fails, "
            "but it takes no turns, so its deliveries have no keys.",
            hint="Give it ordered=True, or connect it with coalesce=True; or leave on_failure= out.",
            id="dcs.W002",
        )
        for name, task in tasks.items()
        if name not in keyed and task.after_failure is not None
    ]


def check_duplicates(**_: Any) -> list[CheckMessage]:
    """Warn of receivers that are sent the same event twice."""
    return [
        Warning(
            f"{one.receiver} is connected twice to {_name_of(one)}, for sender {one.sender} and for {other.sender}"
            f"{_uids(one, other)}, so it is sent some events twice.",
            hint="Connect it once; or let when=, created=, changed=, action= or exclude= tell both connections apart.",
            id="dcs.W003",
        )
        for group in _by_receiver().values()
        for one, other in combinations(group, 2)
        if _are_same(one, other)
    ]


def _by_receiver() -> dict[tuple[Any, str], list[Connected]]:
    found: defaultdict[tuple[Any, str], list[Connected]] = defaultdict(list)
    for one in connected():
        found[one.signal, one.receiver].append(one)
    return found


def _are_same(one: Connected, other: Connected) -> bool:
    """Tell whether two connections of a receiver certainly send the same; reminders at two times are meant."""
    return (
        (one.sender_id == other.sender_id or _covers(one, other) or _covers(other, one))
        and all(getattr(one.options, name) == getattr(other.options, name) for name in _TIMES)
        and not (_filters(one.options) and _filters(other.options) and _filters(one.options) != _filters(other.options))
    )


def _covers(one: Connected, other: Connected) -> bool:
    """Tell whether the first is sent whatever the second's sender sends."""
    family, excluded = one.options.family, one.options.exclude or ()
    if other.sender_class in excluded or other.sender in excluded:
        return False
    if family is None:
        return one.sender == ANY
    return other.sender_class is not None and issubclass(other.sender_class, family)


def _filters(options: SendingOptions) -> dict[str, Any]:
    return {name: value for name in _FILTERS if (value := getattr(options, name)) is not None}


def _uids(one: Connected, other: Connected) -> str:
    uids = [repr(uid) for uid in (one.uid, other.uid) if uid is not None]
    return f" (dispatch_uid {', '.join(uids)})" if uids else ""


def _name_of(one: Connected) -> str:
    return names.short_name(one.signal_name) or "a signal"


def check_acks_late(**_: Any) -> list[CheckMessage]:
    """Warn of durable receivers whose messages stay with the broker while they run."""
    durable = [one for one in connected() if one.task is not None and one.guarantee == "durable"]
    late = {word: {one.receiver for one in durable if getattr(one.task, word)} for word in _LATE}
    return [
        Warning(
            f"{word}=True of {', '.join(sorted(names))}: a durable delivery's row brings it back when a worker dies; "
            "the message that stays with the broker meanwhile only adds redeliveries, RabbitMQ's consumer timeout "
            "and Redis' visibility timeout.",
            hint=f"Leave CELERY_TASK_{word.upper()} out, or say {word}=False at the task.",
            id="dcs.W006",
        )
        for word, names in late.items()
        if names
    ]


def check_visibility(**_: Any) -> list[CheckMessage]:
    """Warn of receivers that wait in a worker for longer than Redis or SQS let a message be away."""
    return [
        Warning(
            f"{one.receiver} waits in a worker for {waits:g} seconds ({word}), longer than the broker's visibility "
            f"timeout, {limit:g} seconds: the broker hands its message to another worker again and again, and it runs "
            "several times.",
            hint="Connect it with guarantee='durable', which publishes when it is due; or raise "
            f"CELERY_BROKER_TRANSPORT_OPTIONS = {{'visibility_timeout': {int(waits * 2)}}}.",
            id="dcs.W008",
        )
        for one in connected()
        if one.task is not None and one.guarantee != "durable" and (limit := _visibility_timeout(one)) is not None
        for word, waits in _waits(one)
        if waits >= limit
    ]


def _visibility_timeout(one: Connected) -> float | None:
    """Return the seconds after which the broker gives a message to another worker; None: it waits for ever."""
    connection = one.app.connection_for_read()
    usual = _VISIBILITY.get(str(connection.transport_cls))
    return None if usual is None else float((connection.transport_options or {}).get("visibility_timeout", usual))


def _waits(one: Connected) -> Iterator[tuple[str, float]]:
    """Yield how long its messages may wait in a worker, and what says so."""
    if one.options.countdown is not None:
        yield "countdown=", float(one.options.countdown)
    if getattr(one.task, "autoretry_for", None):
        if factor := float(getattr(one.task, "retry_backoff", None) or 0):
            most, longest = one.task.max_retries, float(getattr(one.task, "retry_backoff_max", None) or 600)
            yield "retry_backoff=", longest if most is None else min(longest, factor * 2.0 ** min(most - 1, 60))
        else:
            yield "default_retry_delay=", float(one.task.default_retry_delay)


CHECKS = [
    *(check_registered, check_callable, check_asynchronous, check_options),
    *(check_ordinary, check_turns, check_duplicates, check_acks_late, check_visibility),
]
