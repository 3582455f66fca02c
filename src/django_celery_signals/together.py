"""The worker's side of a message that refers to several deliveries of a receiver, as the relay packs them.

Each runs in a savepoint of one transaction, with instances that were fetched together; those that succeed are completed
in one statement, and each of the others has its own outcome, as if it had run alone. Whatever is no single one's, an
error of the commit, a lost connection, a deadlock by which MariaDB ends the whole transaction, gives all of them back,
to be run one by one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from operator import attrgetter
from typing import Any

from celery.exceptions import Ignore, Retry
from django.db import Error, close_old_connections, transaction

from . import policy
from .alike import alike
from .codec.fetching import Fetched
from .context import is_required, restored
from .durable.hold import Held
from .durable.reference import read_chunk
from .durable.savepoints import savepoints
from .durable.together import All, Later, PutOff, complete_together, give_back, kept, opened_together, shield
from .event import Event, running
from .exceptions import ContextLost, DecodeError, RetryAfter
from .execution import arguments, attempt, nodes, read, run
from .plurals import quantity
from .signals import receiver_started, tell
from .wire import objects_in

logger = logging.getLogger(__name__)


def execute_together(task: Any, carried: Any) -> None:
    """Run a receiver for the deliveries that a message refers to.

    Returns nothing, and raises for none of them: what became of each is in its row, in the log and in our signals.
    """
    close_old_connections()
    holds = opened_together(task, read_chunk(carried, (task.name, *(task.former_names or ()))))
    if not holds:
        return
    with kept(holds):
        if task.batch:
            _all_at_once(task, holds)
        elif task.atomic:
            _in_savepoints(task, holds)
        else:
            _one_by_one(task, holds)


# Each by itself --------------------------------------------------------------------------------------------------


def _one_by_one(task: Any, holds: Sequence[Held]) -> None:
    """Run each, and note at once how it ended: there is no transaction that could take anything back."""
    try:
        for one, run_it in _each(task, list(map(Later, holds))):
            with _alone(task, one):
                run_it()
    except Exception as error:
        _give_back(task, [hold for hold in holds if not hold.lease.ending], error)


def _in_savepoints(task: Any, holds: Sequence[Held]) -> None:
    try:
        with transaction.atomic(using=holds[0].lease.using):
            later = _run_each(task, holds)
            complete_together(task, [one.hold for one in later if one.is_done])
    except Exception as error:
        _give_back(task, holds, error)
        return
    for one in later:
        with _its_request(task, one.hold):
            _log(task, one.settle())


def _run_each(task: Any, holds: Sequence[Held]) -> list[Later]:
    """Run each in a savepoint of the transaction there is."""
    with savepoints(holds[0].lease.using) as savepoint:
        later = [Later(hold, savepoint) for hold in holds]
        for one, run_it in _each(task, later):
            _in_savepoint(task, one, run_it)
    return later


def _each(task: Any, later: Sequence[Later]) -> Iterator[tuple[Later, Callable[[], None]]]:
    """Yield each, and what runs it."""
    fetched = _fetched(task, [one.hold for one in later])
    with alike() as surrounded:
        for one in later:
            yield one, partial(surrounded, _around(one), run, task, one, fetched)


def _in_savepoint(task: Any, one: Later, run_it: Callable[[], None]) -> None:
    """Run one; an error is its own, unless the transaction has not survived it.

    Raises:
        Exception: when all are to run again.
    """
    connection: Any = one.hold.connection
    used, hooks = connection.connection, len(connection.run_on_commit)
    with _its_request(task, one.hold):
        try:
            run_it()
        except PutOff:
            if one.spoils or not _survives(connection, used):
                raise
    shield(connection, hooks, one.context, one.around)


def _around(one: Later) -> dict[str, Any]:
    """Return what surrounded a sending; of what cannot be read nothing, and it will say so in its own run."""
    with suppress(DecodeError):
        return one.hold.envelope().context
    return {}


def _survives(connection: Any, used: Any) -> bool:
    if connection.needs_rollback or connection.connection is not used:
        return False
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Error:
        return False
    return True


def _fetched(task: Any, holds: Sequence[Held]) -> Fetched:
    """Fetch what the receiver asks for; what cannot be read will say so in its own run."""
    entries: list[Any] = []
    for hold in holds:
        with suppress(DecodeError, KeyError, IndexError, RecursionError, TypeError):
            envelope = hold.envelope()
            if is_required(envelope.context) and not task.batch:  # of a tenant, whose tables are not there yet
                continue
            found = objects_in(list(nodes(task, envelope).values()), envelope.objects, set())
            entries.extend(envelope.objects[index] for index in found)
    return Fetched(entries)


@contextmanager
def _its_request(task: Any, hold: Held) -> Iterator[None]:
    """Let the receiver see its own delivery in ``self.request``, as if it had come alone."""
    request, known = vars(task.request), hold.known
    before = request.copy()
    lineage = {"root_id": known.options.get("root_id") or known.event_id, "parent_id": known.options.get("parent_id")}
    request.update(id=known.event_id, retries=known.attempts, hold=hold, **lineage)
    try:
        yield
    finally:
        request.update(before)
        for name in request.keys() - before.keys():  # such as what a retry() in this run has left for itself
            del request[name]


@contextmanager
def _alone(task: Any, one: Later) -> Iterator[None]:
    """Do so, and note at once what has become of it by then.

    Raises:
        Exception: when it and those that are left are to run again.
    """
    with _its_request(task, one.hold):
        try:
            yield
        except PutOff:
            if one.spoils:
                raise
        _log(task, one.settle())


def _log(task: Any, outcome: Exception | None) -> None:
    """Say what Celery says of a task that ends like this."""
    if isinstance(outcome, Retry):
        logger.info("%s: one of several runs again: %s", task.name, outcome)
    elif outcome is not None and not isinstance(outcome, Ignore):
        logger.error("%s: one of several failed: %r", task.name, outcome, exc_info=outcome)


# All at once -----------------------------------------------------------------------------------------------------


def _all_at_once(task: Any, holds: Sequence[Held]) -> None:
    """Call the receiver once, with all events whose arguments can be had; when it fails, each runs alone."""
    try:
        with _shared_context(holds):
            _call_with_those_that_are_ready(task, holds)
    except Exception as error:
        _give_back(task, [hold for hold in holds if not hold.lease.ending], error)


def _call_with_those_that_are_ready(task: Any, holds: Sequence[Held]) -> None:
    ready: list[tuple[Held, Event]] = []
    fetched = _fetched(task, holds)
    for one in map(Later, holds):
        with _alone(task, one):
            ready.append((one.hold, _event(task, one, fetched)))
    if ready:
        _call_with(task, *zip(*ready, strict=True))


def _event(task: Any, one: Later, fetched: Fetched) -> Event:
    """Return the event as the receiver gets it.

    Raises:
        PutOff: when there is none, for a reason that is to be noted.
    """
    envelope = read(one)
    kwargs, event = arguments(task, envelope, one, fetched)
    if one.is_expired():
        raise one.discard(event, "its expires= is over")
    tell(receiver_started, task.name, event=event)
    return kwargs["events"][0]  # type: ignore[no-any-return]


def _call_with(task: Any, holds: Sequence[Held], events: Sequence[Event]) -> None:
    started = time.monotonic()
    every = All(task, holds)
    task.request.update(hold=every)
    try:
        with running(max(events, key=attrgetter("depth"))):  # what it sends has come so far
            attempt(task, events[0], {"events": list(events)}, every)
    except Exception as error:
        _give_back(task, holds, error)
        return
    finally:
        task.request.update(hold=None)
    for hold, event in zip(holds, events, strict=True):
        hold.succeeded(event, time.monotonic() - started)


def _shared_context(holds: Sequence[Held]) -> AbstractContextManager[None]:
    """Restore what surrounded the sendings, if it was the same.

    Raises:
        ContextLost: if it was not, and a receiver must not run without it.
    """
    contexts: list[dict[str, Any]] = []
    for hold in holds:
        with suppress(DecodeError):  # what cannot be read will say so for itself
            contexts.append(hold.envelope().context)
    if all(one == contexts[0] for one in contexts):
        return restored(contexts[0]) if contexts else nullcontext()
    if any(map(is_required, contexts)):
        raise ContextLost("Deliveries with different contexts cannot be given to a receiver together.")
    return nullcontext()


def _give_back(task: Any, holds: Sequence[Held], error: Exception) -> None:
    seconds = error.seconds if isinstance(error, RetryAfter) else 0.0
    if isinstance(error, Retry):
        seconds = policy.seconds_until(error.when)
    logger.warning(
        *("%s: %s will run again, one by one, for together there was %r.", task.name, quantity(len(holds)), error),
        exc_info=error,
    )
    give_back(holds, seconds)
