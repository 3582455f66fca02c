"""The worker's side of an event: verify, read, fetch, restore the context, call the receiver, settle the outcome."""

from __future__ import annotations

import inspect
import logging
import random
import time
import zoneinfo
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, tzinfo
from functools import cache, partial
from typing import Any

from asgiref.sync import async_to_sync
from celery._state import _task_stack  # type: ignore[attr-defined]
from celery.exceptions import Ignore, Reject, Retry
from django.db import InterfaceError, OperationalError, close_old_connections, connections, transaction
from django.utils import timezone, translation

from . import names
from .envelope import Envelope, Reader
from .event import Event, running
from .exceptions import DecodeError, Discard, Fail, InstanceMissing, ReceiverFailed, RetryAfter, UnknownVersion
from .parameters import parameters
from .signals import receiver_discarded, receiver_failed, receiver_started, receiver_succeeded, tell
from .wire import unseal

logger = logging.getLogger(__name__)

UNKNOWN_VERSION_WAIT, UNKNOWN_VERSION_TRIES = 60, 60  # seconds, times: a deploy may be under way
DATABASE_TRIES, LONGEST_WAIT = 10, 60  # times; seconds between them: 1, 2, 4, ... with jitter


def execute(task: Any, sealed: str) -> None:
    """Run a receiver for the event that a message carries.

    Returns nothing whatever the receiver returns: no result is worth storing, and none need be serialisable.
    """
    if not task.request.is_eager:
        close_old_connections()
    envelope = _open(task, sealed)
    with running(envelope.event), _context_of(envelope):
        kwargs, event = _arguments(task, envelope)
        with running(event):
            _run(task, event, kwargs)


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


def _open(task: Any, sealed: str) -> Envelope:
    """Verify and read the envelope, and that it is addressed to this task: a signature cannot be sent elsewhere."""
    try:
        envelope = unseal(sealed)
        if envelope.event.receiver not in (task.name, *(task.former_names or ())):
            raise DecodeError(f"The envelope is addressed to {envelope.event.receiver!r:.120}, not to {task.name!r}.")
        return envelope
    except UnknownVersion as error:
        outcome = _retry(task, None, error, UNKNOWN_VERSION_WAIT, UNKNOWN_VERSION_TRIES)
    except DecodeError as error:
        outcome = _reject(task, None, error)
    raise outcome


@contextmanager
def _context_of(envelope: Envelope) -> Iterator[None]:
    """Restore the sending's language and time zone for as long as the receiver runs."""
    with ExitStack() as stack:
        language, zone = envelope.context.get("language"), envelope.context.get("timezone")
        stack.enter_context(translation.override(language if isinstance(language, str) else None))
        if isinstance(zone, str):
            stack.enter_context(_zone(zone))
        yield


@contextmanager
def _zone(name: str) -> Iterator[None]:
    try:
        zone: tzinfo | None = zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        zone = _offset(name)
    with timezone.override(zone) if zone is not None else nullcontext():
        yield


def _offset(name: str) -> tzinfo | None:
    """Return the zone of a name such as ``UTC+05:30``, which Python gives to a bare offset; None of any other."""
    try:
        return datetime.strptime(name, "UTC%z").tzinfo
    except ValueError:
        return None


# Read ------------------------------------------------------------------------------------------------------------


def _arguments(task: Any, envelope: Envelope) -> tuple[dict[str, Any], Event]:
    """Read what the receiver asks for, fetching its instances; settle it here when a row is gone or cannot be had."""
    reader = Reader(envelope)
    try:
        event = replace(envelope.event, changes=reader.changes())
        if task.atomic:
            connections[event.using].ensure_connection()
        return _wanted(task, envelope, reader, event), event
    except InstanceMissing as error:
        outcome = _missing(task, envelope.event, error)
    except DecodeError as error:
        outcome = _reject(task, envelope.event, error)
    except (OperationalError, InterfaceError) as error:
        # "The row is gone" and "the database is down" are different things: the second is tried again.
        outcome = _retry(task, envelope.event, error, _wait(task), DATABASE_TRIES)
    except Exception as error:
        outcome = _failed(task, envelope.event, error)
    raise outcome


def _wanted(task: Any, envelope: Envelope, reader: Reader, event: Event) -> dict[str, Any]:
    named, takes_all, reserved = wanted_by(task)
    nodes = envelope.kwargs if takes_all else {name: envelope.kwargs[name] for name in named if name in envelope.kwargs}
    kwargs = {name: reader.value(node) for name, node in nodes.items() if name not in reserved}
    if takes_all or "sender" in named:
        kwargs["sender"] = reader.value(envelope.sender)
    if takes_all or "signal" in named:
        kwargs["signal"] = names.find_signal(*envelope.signal_names)
    if "event" in named:
        kwargs.setdefault("event", event)
    return kwargs


@cache
def wanted_by(task: Any) -> tuple[frozenset[str], bool, frozenset[str]]:
    """Return the names a receiver takes, whether it takes all others, and those only Celery may fill (``self``)."""
    named, takes_all = parameters(task.run)
    function = inspect.getattr_static(type(task), "run")  # of a bound task a method, whose first parameter is the task
    reserved = [] if isinstance(function, staticmethod) else list(inspect.signature(function).parameters)[:1]
    return frozenset(named), takes_all, frozenset(reserved)


# Run -------------------------------------------------------------------------------------------------------------


def _run(task: Any, event: Event, kwargs: dict[str, Any]) -> None:
    """Call the receiver, and translate what it raises into Celery's terms."""
    tell(receiver_started, task.name, event=event)
    started = time.monotonic()
    try:
        _call(task, event, kwargs)
    except Exception as error:
        outcome = _outcome(task, event, error)
    else:
        tell(receiver_succeeded, task.name, event=event, runtime=time.monotonic() - started)
        return
    raise outcome


def _outcome(task: Any, event: Event, error: Exception) -> Exception:
    if isinstance(error, Discard):
        return _discarded(task, event, str(error))
    if isinstance(error, RetryAfter):
        return _retry(task, event, error, error.seconds)
    if isinstance(error, InstanceMissing):  # of what is fetched when it is used: the user of a request
        return _missing(task, event, error)
    if isinstance(error, Fail):
        return _failed(task, event, ReceiverFailed(f"{task.name} failed for good: {error}"))
    if isinstance(error, Retry):
        return _failed(task, event, error, will_retry=True)
    if isinstance(error, _ConnectionLost):
        return _retry(task, event, error.error, _wait(task), DATABASE_TRIES)
    return error if isinstance(error, (Ignore, Reject)) else _failed(task, event, error)


class _ConnectionLost(Exception):
    """Inner signal: the database went away under an atomic receiver, and all that it did there went with it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _call(task: Any, event: Event, kwargs: dict[str, Any]) -> None:
    if not task.atomic:
        call(task, **kwargs)
        return
    connection = connections[event.using]
    used = connection.connection
    try:
        with transaction.atomic(using=event.using):
            call(task, **kwargs)
    except (OperationalError, InterfaceError) as error:
        if connection.connection is used and connection.is_usable():  # Django may have connected again already
            raise
        raise _ConnectionLost(error) from error


# Settle ----------------------------------------------------------------------------------------------------------


def _failed(task: Any, event: Event | None, error: Exception, *, will_retry: bool = False) -> Exception:
    tell(receiver_failed, task.name, event=event, error=getattr(error, "exc", None) or error, will_retry=will_retry)
    return error


def _discarded(task: Any, event: Event, reason: str) -> Ignore:
    logger.info("%s discarded event %s: %s", task.name, event.id, reason)
    tell(receiver_discarded, task.name, event=event, reason=reason)
    return Ignore(reason)


def _reject(task: Any, event: Event | None, error: DecodeError) -> Exception:
    """End a message that can never be read: to the dead-letter exchange where it is not acknowledged yet."""
    logger.error("%s cannot read its event: %s", task.name, error)
    _failed(task, event, error)
    return Reject(error, requeue=False) if task.acks_late and not task.request.is_eager else error


def _missing(task: Any, event: Event, error: InstanceMissing) -> Exception:
    if task.on_missing == "retry":
        return _retry(task, event, error, _wait(task))
    if task.on_missing == "discard":
        return _discarded(task, event, str(error))
    return _failed(task, event, error)


def _wait(task: Any) -> float:
    longest: int = min(2**task.request.retries, LONGEST_WAIT)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def _retry(task: Any, event: Event | None, error: Exception, seconds: float, tries: int | None = None) -> Exception:
    """Send the message again for later; return Celery's Retry, or ``error`` when that was the last try."""
    try:
        retry = task.retry(exc=error, countdown=seconds, max_retries=tries, throw=False)
    except RetryAfter as last:  # to Celery it is an Ignore, by which the event would end in silence
        return _failed(task, event, ReceiverFailed(f"{task.name} asked for more than max_retries: {last}"))
    except Exception as last:
        return _failed(task, event, last)
    return _failed(task, event, retry, will_retry=True)
