"""Make a task out of a function, and know a task, its function and its class without asking Celery for it.

A shared task is a proxy; to look through it makes Celery choose an app, which at import time may be too early.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery import Task, shared_task
from celery.local import PromiseProxy, Proxy

from .bridge import Spelling, target_of
from .exceptions import ConnectError
from .options import NAMES, RUNNING_NAMES, refuse
from .parameters import Body
from .task import ReceiverTask, check_running


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A task that was made out of a function."""

    name: str
    place: tuple[str, str]  # the function's file and qualified name
    module: str
    spec: Any  # of that module; another one when it is loaded again
    body: Body
    base: type
    options: Mapping[str, Any]  # of running
    task: Any


_by_name: dict[str, Declared] = {}
_by_place: dict[tuple[str, str], Declared] = {}
_by_task: dict[int, Declared] = {}

# Celery's own options: most are no attributes of its Task, or are often misspelled.
_CELERYS = [
    *("acks_late", "autoretry_for", "bind", "default_retry_delay", "dont_autoretry_for", "ignore_result"),
    *("max_retries", "rate_limit", "reject_on_worker_lost", "retry_backoff", "retry_backoff_max", "retry_jitter"),
    *("retry_kwargs", "soft_time_limit", "time_limit", "track_started"),
]
_WORDS = (*NAMES, *RUNNING_NAMES, "sender", "dispatch_uid", "signal_name", "subclasses", *_CELERYS)


def make_task(function: Any, given: dict[str, Any]) -> Any:
    """Make a function a shared task.

    Args:
        function: what the receiver runs.
        given: running options, and any option of a Celery task.

    Raises:
        ConnectError: for what Celery cannot make a task of, an option that cannot be, and a name that is taken.
    """
    # Of anything else, also a lambda, Celery cannot make a task; its error would say so much later, and not what to do.
    if not (inspect.isfunction(function) or inspect.ismethod(function)) or function.__name__ == "<lambda>":
        raise ConnectError(
            f"receiver_task decorates a function or a task; {function!r} is neither. Write one with def that calls it."
        )
    where = f"receiver_task({function.__name__})"
    check_options(given, where)
    # One file imported as two modules ("shop.receivers" and "site.shop.receivers") would receive everything twice.
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    place = (file or function.__module__, function.__qualname__)
    known = _by_place.get(place)
    if known is not None and known.module != function.__module__ and "name" not in given:
        return known.task
    named = {"name": f"{function.__module__}.{function.__name__}", "base": ReceiverTask, **given}
    other = _by_name.get(named["name"])
    if other is not None:
        if _is_made_again(function, other):
            return other.task
        _check_name(other, function, place, where)
    made = Declared(
        name=named["name"],
        place=place,
        module=function.__module__,
        spec=_spec_of(function),
        body=(function, bool(given.get("bind"))),
        base=named["base"],
        options={name: given[name] for name in RUNNING_NAMES if name in given},
        task=shared_task(**named)(function),
    )
    _by_name[made.name] = _by_place[place] = _by_task[id(made.task)] = made
    return made.task


def _is_made_again(function: Any, known: Declared) -> bool:
    """Tell whether a function is one that was made before, inside another function that is called again."""
    code = _code_of(function)
    has_own_values = bool(code.co_freevars) or inspect.ismethod(function)  # those of the factory, or of an object
    return code is _code_of(known.body[0]) and not has_own_values


def _check_name(known: Declared, function: Any, place: tuple[str, str], where: str) -> None:
    """Refuse a name that is taken: Celery keeps the first function of a name, so a second would never run."""
    is_same_place = known.place == place or (known.module, known.place[1]) == (function.__module__, place[1])
    is_loaded_again = known.spec is None or known.spec is not _spec_of(function)
    is_closure = _code_of(function) is _code_of(known.body[0])
    if not is_same_place or is_closure or not is_loaded_again:
        raise ConnectError(
            f"{where}: the task name {known.name!r} is taken by {known.place[1]} of {known.place[0]}, so this function "
            "would never run. Give it a name of its own: @receiver_task(..., name=...)."
        )


def _code_of(function: Any) -> Any:
    return inspect.unwrap(function).__code__


def _spec_of(function: Any) -> Any:
    return getattr(sys.modules.get(function.__module__), "__spec__", None)


def check_options(given: Mapping[str, Any], where: str) -> None:
    """Check the options of a task to be made: Celery would keep any other word as well, and nobody would look at it.

    Args:
        given: options as written in the decorator.
        where: what to call the place in an error.

    Raises:
        ConnectError: for a value that cannot be, and for a word that is almost an option.
    """
    base = given.get("base")
    if base is not None and not (isinstance(base, type) and issubclass(base, ReceiverTask)):
        raise ConnectError(f"{where}: base={base!r} must be a subclass of ReceiverTask.")
    check_running(given, where)
    for name, value in given.items():
        refuse(name, value, where)
        close = difflib.get_close_matches(name, _WORDS, n=1, cutoff=0.8)
        if close and name not in _WORDS and not hasattr(base or Task, name):
            raise ConnectError(f"{where}: unknown option {name}=. Did you mean {close[0]}=?")


# What is known of a task -----------------------------------------------------------------------------------------


def is_task(thing: Any) -> bool:
    """Tell whether something is a task, or one of the methods that call one."""
    return type(thing) is Proxy or isinstance(thing, (Task, Spelling)) or isinstance(_owner(thing), Task)


def _owner(thing: Any) -> Any:
    return getattr(thing, "__self__", thing)  # of the delay of an ordinary task


def name_of(task: Any) -> str:
    """Return a task's name, for any spelling of it.

    Raises:
        ConnectError: for what is no receiver task, with the remedy.
    """
    known = _by_task.get(id(task))
    if known is not None and known.task is task:
        return known.name
    if isinstance(task, Spelling):
        return str(task.__self__.name)
    owner = _owner(task)
    if isinstance(owner, Task) and not isinstance(owner, ReceiverTask):
        raise ConnectError(
            f"The task {owner.name!r} is not a ReceiverTask. Declare it with @shared_task(base=ReceiverTask), or give "
            "the whole project Celery(..., task_cls='django_celery_signals:ReceiverTask')."
        )
    if not isinstance(task, Task):
        remedy = (
            "Decorate it: @receiver_task(signal, sender=...)" if inspect.isroutine(task) else "Give the task itself"
        )
        raise ConnectError(f"{task!r} is not a Celery task. {remedy}.")
    if not issubclass(type(task), Proxy) or issubclass(type(task), PromiseProxy):  # a shared task is every app's
        target_of(str(task.name)).app = task.app
    return str(task.name)


def running_option(name: str, cls: type, option: str) -> Any:
    """Return a running option of a task, given its class, on which it is declared where the task was not made here."""
    declared = _by_name[name].options if name in _by_name else {}
    return declared[option] if option in declared else getattr(cls, option, None)


def body_and_class(task: Any, name: str) -> tuple[Body | None, type]:
    """Return the function a task runs and whether it is given the task itself first, and the task's class."""
    if name in _by_name:
        return _by_name[name].body, _by_name[name].base
    real = getattr(task.call, "__self__", None) if isinstance(task, Spelling) else task
    return (None, ReceiverTask) if real is None else ((real.run, False), real.__class__)
