"""``list``: what is connected."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import OutputWrapper

from .. import conf
from ..connected import Connected, connected
from ..durable import saving
from ..durable.routes import queue_of
from ..names import short_name
from ..options import NAMES, RUNNING_NAMES
from ..senders import label_of
from ..task import ReceiverTask
from .finding import did_you_mean, is_named, itself, sender_name, shown_name
from .phrases import function_name, late_in_words
from .tables import write_table, write_text
from .wording import queue_in_words
from .words import Options, Word

HEADINGS = ("SIGNAL", "SENDER", "RECEIVER", "QUEUE", "GUARANTEE", "OPTIONS")
_CELERYS = (
    "autoretry_for",
    "max_retries",
    "retry_backoff",
    "expires",
    "priority",
)  # of Celery's, which say when it runs


_DEFAULTS = {"raw": False, "coalesce": False, "instance": "fetch"}  # of the others: None


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one array of objects, with everything, for programs")
    parser.add_argument("--signal", help="name of the signal: post_save, or with its module, shop.signals:paid")
    parser.add_argument("--receiver", help="name of the task, or its last part")
    parser.add_argument("--sender", help="label of the sender, such as shop.Order; '*': what is connected to every one")


def _list(options: Options, out: OutputWrapper) -> None:
    """Show one row for each connection; those of which nothing but Django knows are among them."""
    every = connected()
    found = [one for one in every if all(has(one, options[name]) for name, has in _FILTERS.items() if options[name])]
    if options["json"]:
        out.write(json.dumps([*map(_facts, found)], indent=2))
        return
    if found:
        write_table(out, HEADINGS, map(_row, found), plain=bool(options.get("no_color")))
    else:
        write_text(out, _nothing(options, every))
    for line in _atomic_saves():
        write_text(out, line)


def _atomic_saves() -> Iterator[str]:
    """Say which models' saves are atomic, and of which they would be but for their database."""
    if not conf.get().ATOMIC_SAVES:
        yield "models whose saves are atomic: none (ATOMIC_SAVES)"
        return
    late = {model._meta.label: saving.late_database(model) for model in saving.models()}
    yield f"models whose saves are atomic: {', '.join(sorted(name for name in late if late[name] is None)) or 'none'}"
    for alias in sorted({alias for alias in late.values() if alias is not None}):
        yield f"not atomic: {', '.join(sorted(name for name in late if late[name] == alias))}. {late_in_words(alias)}"


def _has_sender(one: Connected, label: str) -> bool:
    known = [one.sender, _sender(one)] + ([label_of(one.sender_class)] if one.sender_class is not None else [])
    return label.lower() in map(str.lower, known)


def _sender(one: Connected) -> str:
    return sender_name(one.sender_class, one.sender)


_FILTERS: dict[str, Callable[[Connected, str], bool]] = {
    "signal": lambda one, text: is_named(one.signal, text),
    "receiver": lambda one, text: text in (one.receiver, one.receiver.rpartition(".")[2]),
    "sender": _has_sender,
}


def _nothing(options: Options, every: list[Connected]) -> str:
    known = {
        "signal": {shown_name(one.signal_name) for one in every},
        "receiver": {one.receiver for one in every} | {one.receiver.rpartition(".")[2] for one in every},
        "sender": {_sender(one) for one in every},
    }
    given = {name: options[name] for name in _FILTERS if options[name]}
    if not given:
        return "No task is connected to a signal in this process."
    close = "".join(did_you_mean(text, itself(known[name])) for name, text in given.items() if text not in known[name])
    return f"Nothing is connected with {', '.join(f'{name} {text!r}' for name, text in given.items())}.{close}"


# For people ----------------------------------------------------------------------------------------------------------


def _row(one: Connected) -> tuple[str, ...]:
    differing = " ".join(f"{name}={_short(value)}" for name, value in _differing(one))
    return shown_name(one.signal_name), _sender(one), one.receiver, queue_in_words(one), one.guarantee, differing


def _differing(one: Connected) -> Iterator[tuple[str, Any]]:
    """Yield the options that are not as they are by default, but for those that have a column."""
    if one.uid is not None:
        yield "dispatch_uid", one.uid
    if one.task is None:
        yield "task", "missing"
    for name in NAMES:
        value = getattr(one.options, name)
        if name not in ("guarantee", "queue") and value not in (None, _DEFAULTS.get(name)):
            yield name, value
    yield from _differing_of_task(one)


def _differing_of_task(one: Connected) -> Iterator[tuple[str, Any]]:
    own = {name for name in (*RUNNING_NAMES, *_CELERYS) if getattr(one.options, name, None) is None}
    for name in (*RUNNING_NAMES, *_CELERYS):
        value = _of_task(one.task, name)
        if one.task is not None and name in own and value != _of_task(ReceiverTask, name) and value != ():
            yield name, value


def _of_task(task: Any, name: str) -> Any:
    """Return a running option; ``on_failure`` has another name on the task, for Celery has a method of that one."""
    return getattr(task, "after_failure" if name == "on_failure" else name, None)


def _short(value: Any) -> str:
    if callable(value) and not isinstance(value, type):
        return function_name(value).rpartition(".")[2]
    if isinstance(value, (tuple, list)):
        return ",".join(map(_short, value))
    plain = _plain(value)
    return f"{plain:g}" if isinstance(plain, float) else str(plain)


# For programs --------------------------------------------------------------------------------------------------------


def _facts(one: Connected) -> dict[str, Any]:
    """Return everything that is known of a connection, under names that stay; what is not known is null."""
    family, known = one.options.family, (*RUNNING_NAMES, *_CELERYS)
    return {
        "signal": short_name(one.signal_name) or None,
        "signal_name": one.signal_name,
        "sender": _sender(one) if family is None else label_of(family),
        "subclasses": family is not None,
        "receiver": one.receiver,
        "dispatch_uid": None if one.uid is None else str(one.uid),
        "guarantee": one.guarantee,
        "queue": queue_of(one.app, one.task, one.receiver, {"queue": one.options.queue}),
        "options": {name: _plain(getattr(one.options, name)) for name in NAMES},
        "running_options": one.task and {name: _plain(_of_task(one.task, name)) for name in known},
        "atomic_saves": _are_atomic(one),
    }


def _are_atomic(one: Connected) -> bool:
    """Tell whether what sends it is saved in a transaction, together with its deliveries."""
    model: Any = one.sender_class
    can_be = conf.get().ATOMIC_SAVES and model in saving.models() and saving.is_save(one.signal, model)
    return can_be and saving.late_database(model) is None


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: a function or a class by its name, a duration in seconds."""
    if isinstance(value, (tuple, list)):
        return [*map(_plain, value)]
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, type):
        return label_of(value)
    return function_name(value) if callable(value) else value


WORDS = [
    Word(
        name="list",
        help="show what is connected, and the models whose saves are atomic for it",
        teaches="Show one row for each connection, however it was made: signal, sender, receiver, queue, guarantee, "
        "and the options that differ from their defaults; then the models whose saves are atomic because of "
        "ATOMIC_SAVES. A terminal is shown what fits its width, a pipe everything. Examples: manage.py signals list "
        "--sender shop.Order; manage.py signals list --json",
        add_arguments=_add_arguments,
        run=_list,
        checks=False,  # what they complain of can be seen here
    )
]
