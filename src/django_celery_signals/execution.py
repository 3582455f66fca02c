"""The worker's side of an event: open, read, fetch, restore the context, call the receiver, settle the outcome."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

from asgiref.sync import async_to_sync
from celery._state import _task_stack  # type: ignore[attr-defined]
from django.db import InterfaceError, OperationalError, close_old_connections, connections, transaction
from django.db.models import Model

from . import names, policy
from .carried import Carried
from .codec.core import Decoder
from .codec.fetching import instance_from
from .context import of_receiver, restored
from .durable import reference
from .durable.hold import Held, opened
from .durable.together import All, Later
from .envelope import Envelope, Reader
from .event import Event, check_depth, running
from .exceptions import (
    ContextLost,
    DecodeError,
    Discard,
    Fail,
    InstanceMissing,
    LoopDetected,
    ReceiverFailed,
    RetryAfter,
    UnknownVersion,
)
from .parameters import parameters
from .signals import receiver_started, tell

logger = logging.getLogger(__name__)

UNKNOWN_VERSION_WAIT, UNKNOWN_VERSION_TRIES = 60, 60  # seconds, times: a deploy may be under way

Hold = Carried | Held
Source = Callable[[Any, Decoder], Model]


def execute(task: Any, carried: Any) -> None:
    """Run a receiver for the event that a message carries, or that it refers to.

    Returns nothing whatever the receiver returns: no result is worth storing, and none need be serialisable.
    """
    if not task.request.is_eager:
        close_old_connections()
    hold = _open(task, carried)
    if hold is None:
        return
    with hold:
        run(task, hold)


def run(task: Any, hold: Hold | Later, instance: Source = instance_from) -> None:
    """Run a receiver for an event that this process holds.

    Args:
        task: the receiver.
        hold: of the event.
        instance: makes a model instance of its entry in the envelope.

    Raises:
        Exception: what Celery is told when it did not succeed; all is noted then.
    """
    envelope = read(hold)
    with running(envelope.event), surrounded(task, envelope, hold):
        kwargs, event = arguments(task, envelope, hold, instance)
        with running(event):
            _run(task, event, kwargs, hold)


def call(task: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Call a task's function; run it to its end when it is a coroutine function."""
    if inspect.iscoroutinefunction(getattr(task, "_orig_run", None)):
        # Celery's autoretry_for calls this one, and would see a coroutine but never what that raises.
        task._orig_run = partial(_to_its_end, task, task._orig_run)
    return _to_its_end(task, task.run, *args, **kwargs)


def _to_its_end(task: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    result = function(*args, **kwargs)
    if task.request.called_directly or not inspect.isawaitable(result):
        return result
    return async_to_sync(_awaited, force_new_loop=True)(result, task, task.request)


async def _awaited(result: Any, task: Any, request: Any) -> Any:
    """Await in the loop's own thread, where Celery does not know which task is running unless it is told."""
    _task_stack.push(task)
    task.request_stack.push(request)
    try:
        return await result
    finally:
        task.request_stack.pop()
        _task_stack.pop()


# Open ------------------------------------------------------------------------------------------------------------


def _open(task: Any, carried: Any) -> Hold | None:
    """Take over what a message carries; None for a copy of a message that has been taken over already."""
    if not isinstance(carried, Mapping):
        return Carried(task, carried)
    return opened(task, reference.read(carried, (task.name, *(task.former_names or ()))))


def read(hold: Hold | Later) -> Envelope:
    """Read the envelope; settle it here when that cannot be done, or when it is the last of an endless chain."""
    try:
        envelope = hold.envelope()
        check_depth(envelope.event)
        return envelope
    except UnknownVersion as error:
        outcome = hold.again(None, error, UNKNOWN_VERSION_WAIT, UNKNOWN_VERSION_TRIES)
    except DecodeError as error:
        outcome = hold.fail(None, error)
    except LoopDetected as error:
        outcome = hold.fail(envelope.event, error)
    raise outcome


@contextmanager
def surrounded(task: Any, envelope: Envelope, hold: Hold | Later) -> Iterator[None]:
    """Restore what surrounded the sending; settle it here when the receiver must not run without what is missing."""
    block, outcome = restored(envelope.context), None
    try:
        block.__enter__()
    except ContextLost as error:
        outcome = hold.rerun(envelope.event, error) if error.may_pass else hold.fail(envelope.event, error)
    if outcome is not None:
        raise outcome
    try:
        yield
    finally:
        block.__exit__(None, None, None)


# Read ------------------------------------------------------------------------------------------------------------


def arguments(
    task: Any, envelope: Envelope, hold: Hold | Later, instance: Source = instance_from
) -> tuple[dict[str, Any], Event]:
    """Read what the receiver asks for, fetching its instances; settle it here when a row is gone or cannot be had."""
    reader = Reader(envelope, instance)
    try:
        context = of_receiver(envelope.context)
        event = hold.event(envelope.event, changes=reader.changes(), context=context)
        if task.atomic:
            connections[event.using].ensure_connection()
        return _wanted(task, envelope, reader, event), event
    except InstanceMissing as error:
        outcome = _missing(task, envelope.event, error, hold)
    except DecodeError as error:
        outcome = hold.fail(envelope.event, error)
    except (OperationalError, InterfaceError) as error:
        # "The row is gone" and "the database is down" are different things: the second is tried again.
        outcome = hold.rerun(envelope.event, error)
    except Exception as error:
        outcome = hold.raised(envelope.event, error)
    raise outcome


def _wanted(task: Any, envelope: Envelope, reader: Reader, event: Event) -> dict[str, Any]:
    named, takes_all, _ = wanted_by(task)
    kwargs = {name: reader.value(node) for name, node in nodes(task, envelope).items()}
    if takes_all or "sender" in named:
        kwargs["sender"] = reader.value(envelope.sender)
    if takes_all or "signal" in named:
        kwargs["signal"] = names.find_signal(*envelope.signal_names)
    if task.batch:
        return {"events": [replace(event, kwargs=kwargs)]}
    if "event" in named:
        kwargs.setdefault("event", event)
    return kwargs


def nodes(task: Any, envelope: Envelope) -> dict[str, Any]:
    """Return the JSON of those arguments of a sending that a receiver asks for."""
    named, takes_all, reserved = wanted_by(task)
    if takes_all:
        return {name: node for name, node in envelope.kwargs.items() if name not in reserved}
    return {name: envelope.kwargs[name] for name in named - reserved if name in envelope.kwargs}


@cache
def wanted_by(task: Any) -> tuple[frozenset[str], bool, frozenset[str]]:
    """Return the names a receiver takes, whether it takes all others, and those only Celery may fill (``self``)."""
    if task.batch:  # of each of its events, whatever was sent
        return frozenset(), True, frozenset()
    named, takes_all = parameters(task.run)
    function = inspect.getattr_static(type(task), "run")  # of a bound task a method, whose first parameter is the task
    reserved = [] if isinstance(function, staticmethod) else list(inspect.signature(function).parameters)[:1]
    return frozenset(named), takes_all, frozenset(reserved)


# Run -------------------------------------------------------------------------------------------------------------


def _run(task: Any, event: Event, kwargs: dict[str, Any], hold: Hold | Later) -> None:
    """Call the receiver, and translate what it raises into Celery's terms."""
    if hold.is_expired():
        raise hold.discard(event, "its expires= is over")
    tell(receiver_started, task.name, event=event)
    started = time.monotonic()
    try:
        attempt(task, event, kwargs, hold)
    except Exception as error:
        outcome = _outcome(task, event, error, hold)
    else:
        hold.succeeded(event, time.monotonic() - started)
        return
    raise outcome


class _ConnectionLost(Exception):
    """Inner signal: the database went away under an atomic receiver, and all that it did there went with it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def attempt(task: Any, event: Event, kwargs: dict[str, Any], hold: Hold | Later | All) -> None:
    """Call the receiver and note that it succeeded; in one transaction, if it is atomic."""
    if not task.atomic:
        call(task, **kwargs)
        hold.complete()
        return
    connection = connections[event.using]
    used, block = connection.connection, hold.savepoint if isinstance(hold, Later) else transaction.atomic
    try:
        with block(using=event.using):
            call(task, **kwargs)
            hold.complete()
    except (OperationalError, InterfaceError) as error:
        if connection.connection is used and connection.is_usable():  # Django may have connected again already
            raise
        raise _ConnectionLost(error) from error


# Settle ----------------------------------------------------------------------------------------------------------


def _outcome(task: Any, event: Event, error: Exception, hold: Hold | Later) -> Exception:
    """Do what an error asks for, and return what Celery is told."""
    if isinstance(error, Discard):
        return hold.discard(event, str(error))
    if isinstance(error, RetryAfter):
        return hold.again(event, error, error.seconds)
    if isinstance(error, InstanceMissing):  # of what is fetched when it is used: the user of a request
        return _missing(task, event, error, hold)
    if isinstance(error, Fail):
        failed = ReceiverFailed(f"{task.name} failed for good: {error}").with_traceback(error.__traceback__)
        return hold.fail(event, failed)
    if isinstance(error, _ConnectionLost):
        return hold.rerun(event, error.error)
    return hold.raised(event, error)


def _missing(task: Any, event: Event, error: InstanceMissing, hold: Hold | Later) -> Exception:
    if task.on_missing == "retry":
        return hold.again(event, error, policy.pause(task.request.retries, policy.LONGEST_WAIT))
    if task.on_missing == "discard":
        return hold.discard(event, str(error))
    return hold.fail(event, error)
