"""Traces with OpenTelemetry: a receiver's run belongs to the trace of its sending. Needs ``opentelemetry-api``.

The trace's context travels as what else surrounds a sending does (``register_context``). In the worker a span surrounds
the run, and what it says of an error is its type, unless more is asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from celery.signals import task_postrun
from django.dispatch import Signal

from ..context import follows, register_context
from ..durable.failure import type_name
from ..event import Event, current_event
from ..signals import receiver_discarded, receiver_failed, receiver_started, receiver_succeeded
from . import needing

with needing("opentelemetry", extra="opentelemetry"):
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context, attach, detach
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider

SYSTEM = "django_celery_signals"
MOST_PENDING = 1000  # spans that wait for their outcome in one thread

Relation = Literal["parent", "link"]


@dataclass(slots=True, kw_only=True)
class _Options:
    """What ``connect`` was told."""

    tracer: trace.Tracer
    relation: Relation
    record_messages: bool


@dataclass(slots=True, kw_only=True)
class _Run:
    """A span, and what is known of its run."""

    span: Span
    event_id: str | None  # None: of several events together
    started: int = 0  # events
    is_settled: bool = False
    ended_at: int = 0  # nanoseconds since 1970


class _Pending(threading.local):
    """Runs whose outcome is told when those that came in the same message have ended."""

    def __init__(self) -> None:
        self.runs: dict[str | None, _Run] = {}


_options: list[_Options] = []  # one, if connected
_registered: list[str] = []  # the carrier, which cannot be taken back
_running: ContextVar[_Run | None] = ContextVar("otel_run", default=None)
_pending = _Pending()


def connect(
    *, relation: Relation = "parent", record_messages: bool = False, tracer_provider: TracerProvider | None = None
) -> None:
    """Let traces travel, and let every run have a span; call it where both the web process and the worker import it.

    Args:
        relation: "parent": a run's span is a child of the span that sent, in its trace; "link": it is linked to that,
            and the worker's current span is its parent, if there is one.
        record_messages: whether spans have the messages and tracebacks of errors, which may hold values that were sent.
        tracer_provider: OpenTelemetry's own unless told.

    Raises:
        ValueError: for another relation, and where a carrier is called "otel" already.
    """
    if relation not in ("parent", "link"):
        raise ValueError(f'connect(relation={relation!r}): it must be "parent" or "link".')
    if not _registered:
        register_context("otel", capture=_captured, restore=_restored)
        _registered.append("otel")
    tracer = trace.get_tracer(SYSTEM, tracer_provider=tracer_provider)
    _options[:] = [_Options(tracer=tracer, relation=relation, record_messages=record_messages)]
    for signal, listener in _listeners().items():
        signal.connect(listener)
    task_postrun.connect(_end_pending, dispatch_uid=f"{__name__}.end_pending")


def disconnect() -> None:
    """Let runs have no span from now on, for tests; the context goes on travelling."""
    for signal, listener in _listeners().items():
        signal.disconnect(listener)
    task_postrun.disconnect(dispatch_uid=f"{__name__}.end_pending")
    _end_pending()
    _options.clear()


def _listeners() -> dict[Signal, Callable[..., None]]:
    return {
        receiver_started: _started,
        receiver_succeeded: _succeeded,
        receiver_failed: _failed,
        receiver_discarded: _discarded,
    }


# The context -----------------------------------------------------------------------------------------------------


def _captured() -> dict[str, str]:
    """Return it as W3C's headers; empty where there is no trace, for the run shall have a span all the same."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


@contextmanager
def _restored(headers: dict[str, str]) -> Iterator[None]:
    context, run = propagate.extract(headers), None
    for options in [] if follows.get() else _options:
        context, run = _begun(options, context, current_event())
    token, mine = attach(context), _running.set(run)
    try:
        yield
    finally:
        _running.reset(mine)
        detach(token)
        if run is not None:
            _leave(run)


def _begun(options: _Options, sending: Context, event: Event | None) -> tuple[Context, _Run]:
    """Begin a span; return the context in which the receiver runs, which has the baggage of the sending."""
    here, there = trace.get_current_span(), trace.get_current_span(sending)
    parent, linked = (there, here) if options.relation == "parent" else (here, there)
    span = options.tracer.start_span(
        f"{event.receiver if event else SYSTEM} process",
        context=trace.set_span_in_context(parent, sending),
        kind=SpanKind.CONSUMER,
        attributes=_attributes(event),
        links=[Link(linked.get_span_context())] if linked.get_span_context().is_valid else [],
    )
    return trace.set_span_in_context(span, sending), _Run(span=span, event_id=event.id if event else None)


def _attributes(event: Event | None) -> dict[str, str]:
    found: dict[str, str] = {"messaging.system": SYSTEM, "messaging.operation.type": "process"}
    if event is not None:
        found |= {"messaging.message.id": event.id, f"{SYSTEM}.receiver": event.receiver}
        found |= {f"{SYSTEM}.signal_name": event.signal_name, f"{SYSTEM}.using": event.using}
    return found


def _leave(run: _Run) -> None:
    """End the span, unless its outcome is still to be told."""
    if run.is_settled:
        run.span.end()
        return
    if len(_pending.runs) >= MOST_PENDING:
        _end_pending()
    run.ended_at = time.time_ns()
    _pending.runs[run.event_id] = run


def _end_pending(**_: Any) -> None:
    """End the spans of runs of which nothing is told, for all that came in a message runs again."""
    while _pending.runs:
        run = _pending.runs.popitem()[1]
        run.span.end(run.ended_at)


# What becomes of it ----------------------------------------------------------------------------------------------


def _started(sender: str, event: Event, **_: Any) -> None:
    if (run := _running.get()) is None:
        return
    run.started += 1
    run.span.update_name(f"{sender} process")
    run.span.set_attribute(f"{SYSTEM}.receiver", sender)
    if run.event_id is None:
        run.span.set_attribute("messaging.batch.message_count", run.started)


def _succeeded(event: Event, **_: Any) -> None:
    _settle(event, "succeeded")


def _discarded(event: Event, **_: Any) -> None:
    _settle(event, "discarded")


def _failed(event: Event | None, error: Exception, will_retry: bool, **_: Any) -> None:
    _settle(event, "will_retry" if will_retry else "failed", error)


def _settle(event: Event | None, outcome: str, error: Exception | None = None) -> None:
    run = _run_of(event)
    if run is None:
        return
    run.is_settled = True
    run.span.set_attribute(f"{SYSTEM}.outcome", outcome)
    if error is not None:
        _note(run.span, error)
    if run.ended_at:
        if _pending.runs.get(run.event_id) is run:
            del _pending.runs[run.event_id]
        run.span.end(run.ended_at)


def _run_of(event: Event | None) -> _Run | None:
    """Return the run that goes on, or the one that was left with its outcome untold."""
    run = _running.get()
    if event is None or (run is not None and run.event_id in (event.id, None)):
        return run
    return _pending.runs.pop(event.id, None)


def _note(span: Span, error: Exception) -> None:
    """Note an error: its type, and no more unless that was asked for."""
    [options], description = _options, type_name(error)
    span.set_attribute("error.type", description)
    if options.record_messages:
        span.record_exception(error)
        description = f"{description}: {error}"
    span.set_status(Status(StatusCode.ERROR, description))
