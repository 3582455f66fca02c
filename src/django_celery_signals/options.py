"""The sending options: what a connection may say, and the checks of that."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from asgiref.sync import iscoroutinefunction

from . import conf
from .conf import is_positive
from .exceptions import ConnectError


class _Hashed:
    __slots__ = ("_hash",)
    _hash: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendingOptions(_Hashed):
    """How the sendings of one connection are chosen and sent; None: as the task says, else the default."""

    guarantee: str | None = None  # "durable", "on_commit" or "immediate"
    when: Callable[..., Any] | None = None  # given the arguments it names; a false result sends nothing
    changed: tuple[str, ...] | None = None  # send a save only when it changed one of these fields
    created: bool | None = None  # send only what was (not) created
    action: tuple[str, ...] | None = None  # patterns of m2m_changed's action, such as "post_*"
    key: Callable[..., Any] | None = None  # given the arguments it names; says what it is about, else the instance
    coalesce: bool | None = None  # let the newest of a key that wait stand for all of them
    debounce: float | None = None  # seconds without another of the key before they do
    max_wait: float | None = None  # seconds that the first of them waits, at most
    instance: str | None = None  # "fetch": again in the worker; "snapshot": as at the sending
    raw: bool | None = None  # also send what loaddata saves
    queue: str | None = None
    priority: int | None = None
    countdown: float | None = None  # seconds
    expires: float | timedelta | datetime | None = None  # seconds from the sending, or a moment
    exclude: tuple[Any, ...] | None = None  # senders not to send for, beside sender=None
    family: type | None = None  # set by connect(subclasses=True): only this class and its subclasses

    def __post_init__(self) -> None:
        """Make the hash once, for every sending asks for it."""
        object.__setattr__(self, "_hash", hash(tuple(getattr(self, one.name) for one in fields(self))))

    def __hash__(self) -> int:
        return self._hash

    @property
    def folds(self) -> bool:
        """Whether newer sendings may stand for older ones; ``debounce=`` says so, too."""
        return self.debounce is not None if self.coalesce is None else self.coalesce


NOTHING = SendingOptions()  # said of a connection
NAMES = tuple(one.name for one in fields(SendingOptions) if one.name != "family")
RUNNING_NAMES = ("atomic", "on_missing", "former_names", "retain", "ordered", "on_failure", "chunk_size", "batch")

# Words a declaration might say in vain, and why.
REFUSED = {
    "weak": "is not needed: what is connected stays connected, whoever holds it. Leave it out",
    "eta": "would be one moment for all sendings. Use countdown=, in seconds",
}


def read(given: dict[str, Any], where: str) -> SendingOptions:
    """Check options and return them typed.

    Args:
        given: the options as written.
        where: what to call the place in an error.

    Raises:
        ConnectError: for an unknown name, a running option, or a value that cannot be.
    """
    for name in given:
        if name in RUNNING_NAMES:
            raise ConnectError(
                f"{where}: {name}= belongs to the task, for a worker knows only that. "
                f"Write it in the decorator: @receiver_task(..., {name}=...)."
            )
        refuse(name, given[name], where)
        if name not in NAMES:
            raise ConnectError(f"{where}: unknown option {name}=. Sending options are {', '.join(NAMES)}.")
    values: dict[str, Any] = {
        name: _several(value) if name in _SEVERAL else value for name, value in given.items() if value is not None
    }
    for name, value in values.items():
        accepts, wanted = _RULES[name]
        if not accepts(value):
            raise ConnectError(f"{where}: {name}={given[name]!r} cannot be; it must be {wanted}.")
    return SendingOptions(**values)


def refuse(name: str, value: Any, where: str) -> None:
    """Refuse a word that would be in vain.

    Raises:
        ConnectError: saying why, and what to do instead.
    """
    if name in REFUSED:
        raise ConnectError(f"{where}: {name}={value!r} {REFUSED[name]}.")


_SEVERAL = ("changed", "action", "exclude")


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (value,)


def _is_sender(value: Any) -> bool:
    return is_hashable(value) and (not isinstance(value, str) or value.count(".") == 1)


def _is_coroutine_function(value: Any) -> bool:
    return iscoroutinefunction(value) or iscoroutinefunction(type(value).__call__)


def is_hashable(value: Any) -> bool:
    """Tell whether a value can be told apart from others by its hash."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _are_names(value: Any) -> bool:
    return bool(value) and all(isinstance(item, str) for item in value)


def _is_asked(value: Any) -> bool:
    return callable(value) and is_hashable(value) and not _is_coroutine_function(value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "guarantee": (lambda value: value in conf.GUARANTEE_NAMES, " or ".join(map(repr, conf.GUARANTEE_NAMES))),
    "when": (_is_asked, "a function, and no coroutine function"),
    "key": (_is_asked, "a function of the sending's arguments, such as lambda instance: instance.customer_id"),
    "coalesce": (lambda value: isinstance(value, bool), "True or False"),
    "debounce": (is_positive, "a number of seconds greater than zero"),
    "max_wait": (is_positive, "a number of seconds greater than zero"),
    "changed": (_are_names, "a list of field names"),
    "created": (lambda value: isinstance(value, bool), "True or False"),
    "action": (_are_names, "one or more patterns such as 'post_*'"),
    "instance": (lambda value: value in ("fetch", "snapshot"), "'fetch' or 'snapshot'"),
    "raw": (lambda value: isinstance(value, bool), "True or False"),
    "queue": (lambda value: isinstance(value, str) and bool(value), "the name of a queue"),
    "priority": (lambda value: type(value) is int and 0 <= value <= 255, "a whole number, 0 to 255"),
    "countdown": (is_positive, "a number of seconds greater than zero"),
    "expires": (
        lambda value: (
            is_positive(value) or (isinstance(value, timedelta) and value > timedelta()) or isinstance(value, datetime)
        ),
        "seconds greater than zero, a timedelta or a datetime",
    ),
    "exclude": (lambda value: all(map(_is_sender, value)), "senders, by class or as 'app.Model'"),
}


@lru_cache(maxsize=4096)
def merged(own: SendingOptions, task: Any) -> SendingOptions:
    """Fill what a connection leaves open with the values declared on its task."""
    return merged_with_class(own, type(task), str(task.name))


def merged_with_class(own: SendingOptions, cls: type, name: str) -> SendingOptions:
    """Do the same for a task of which only the class is there yet."""
    # getattr_static: a function among a class's attributes would come back as a bound method.
    declared = {option: inspect.getattr_static(cls, option, None) for option in NAMES if getattr(own, option) is None}
    declared = {option: value for option, value in declared.items() if value is not None and option not in _CELERY}
    return replace(own, **_as_dict(read(declared, f"task {name}"))) if declared else own


_CELERY = ("queue", "priority", "expires")  # also options of Celery's own tasks, which apply_async() applies itself


def _as_dict(options: SendingOptions) -> dict[str, Any]:
    return {name: value for name in NAMES if (value := getattr(options, name)) is not None}


def of_family(options: SendingOptions, sender: Any, where: str) -> SendingOptions:
    """Return the options for a sender together with its subclasses.

    Raises:
        ConnectError: for a sender that can have none, and for what is kept per model.
    """
    if not isinstance(sender, type):
        raise ConnectError(f"{where}: subclasses=True needs a class as its sender, but got {sender!r}.")
    if options.changed:
        raise ConnectError(f"{where}: changed= keeps values per model; list the models instead of subclasses=True.")
    return replace(options, family=sender)
