"""The guarantees, side by side: what happens between a sending and the broker."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from . import conf
from .envelope import Envelope
from .exceptions import PublishError, PublishTimeout
from .publisher import publisher
from .signals import event_lost, event_sent, tell
from .wire import seal

logger = logging.getLogger(__name__)

AUDIT = "audit"  # the guarantee of signals that must survive a rollback, when none was asked for
ARGUMENT = "__event__"  # the one keyword argument of a message that carries an envelope

#: What this process has done since it started: ``sent`` and ``lost`` events.
counts: Counter[str] = Counter()
_counts_lock = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_counts_lock=threading.Lock()))  # the parent may hold it


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An envelope on its way, and how it is to be sent."""

    app: Celery  # whose broker it is for
    envelope: Envelope
    body: str  # what the broker carries of it
    options: dict[str, Any]  # of apply_async


def dispatch(app: Celery, envelope: Envelope, guarantee: str, options: dict[str, Any]) -> None:
    """Send an envelope under a guarantee.

    Args:
        app: the Celery app that has the receiver.
        envelope: what to send, as it was at the sending.
        guarantee: a key of :data:`GUARANTEES`.
        options: of ``apply_async``: queue, priority, countdown, expires.

    Raises:
        PublishError: under ``"immediate"``, when the broker does not take the message.
    """
    GUARANTEES[guarantee](Message(app=app, envelope=envelope, body=seal(envelope), options=_absolute(options)))


def immediate(message: Message) -> None:
    """Publish now, inside whatever transaction there is: it may be a ghost, and it raises when the broker is away."""
    try:
        publish(message)
    except PublishError as error:
        _lost(message, error)
        raise


def on_commit(message: Message) -> None:
    """Publish after the outermost commit of the sending's database; nothing on rollback, never an error."""
    using = message.envelope.event.using
    connection = connections[using]
    if connection.in_atomic_block:
        # Robust: a failing one stops neither the others nor the request. But an eager receiver's error is for the test.
        transaction.on_commit(Hook(message, connection), using=using, robust=not _errors_propagate(message.app))
        return
    if not _autocommits(connection):
        raise transaction.TransactionManagementError(
            f"{message.envelope.event.receiver}: autocommit is off on {using!r} and no atomic() block is open, so "
            "Django cannot tell when this sending commits. Open an atomic() block, or connect the receiver with "
            "guarantee='immediate'."
        )
    publish_or_lose(message)


def _autocommits(connection: BaseDatabaseWrapper) -> bool:
    """Tell it without asking the database: that would open a connection, and a coroutine must not."""
    return bool(connection.settings_dict["AUTOCOMMIT"] if connection.connection is None else connection.autocommit)


class Patience:
    """How long the messages of one commit wait for a slow broker, all together.

    Each may take ``FREE`` seconds without being counted, so that a large transaction on a healthy broker loses nothing.
    """

    FREE = 0.05
    __slots__ = ("left",)

    def __init__(self) -> None:
        """Begin with ``PUBLISH_TIMEOUT`` seconds."""
        self.left = conf.get().PUBLISH_TIMEOUT

    @contextmanager
    def spent(self) -> Iterator[float]:
        """Give the seconds that the next message may take, and count what it took."""
        if self.left <= 0:
            raise PublishTimeout("The broker is slow: the messages of this commit have waited PUBLISH_TIMEOUT already.")
        started = time.monotonic()
        try:
            yield self.left + self.FREE
        finally:
            self.left -= max(0.0, time.monotonic() - started - self.FREE)


class Hook:
    """What Django calls for one message after the commit; it shares the patience of its transaction's other hooks."""

    def __init__(self, message: Message, connection: BaseDatabaseWrapper) -> None:
        """Take over the patience of the last hook that waits for the same commit, if there is one."""
        before = (entry[1] for entry in reversed(connection.run_on_commit))
        self.message = message
        self.patience: Patience = next((hook.patience for hook in before if isinstance(hook, Hook)), None) or Patience()
        self.__qualname__ = f"the publication for {message.envelope.event.receiver}"  # in Django's log when it raises

    def __call__(self) -> None:
        publish_or_lose(self.message, self.patience)


def publish_or_lose(message: Message, patience: Patience | None = None) -> None:
    """Publish; when that fails the event is lost: logged, counted and told, not raised."""
    try:
        publish(message, patience)
    except PublishError as error:
        _lost(message, error)


def publish(message: Message, patience: Patience | None = None) -> None:
    """Hand a message to the broker and wait for it, in bounded time.

    Args:
        message: what to publish.
        patience: how long to wait, at most; ``PUBLISH_TIMEOUT`` unless told.

    Raises:
        PublishError: when the broker did not take it.
    """
    app, event = message.app, message.envelope.event
    task: Any = app.tasks.get(event.receiver)
    if task is None:
        raise PublishError(
            f"The Celery app {app.main!r} has no task {event.receiver!r}; import its module in this process."
        )
    options = {**_lineage(app, task), **message.options, "argsrepr": message.envelope.summary}

    def send(producer: Any = None) -> None:
        task.apply_async(kwargs={ARGUMENT: message.body}, producer=producer, retry=False, **options)

    if app.conf.task_always_eager:
        send()  # runs the receiver, for as long as that takes
    else:
        with (patience or Patience()).spent() as timeout, _told(message):
            publisher().publish(app, send, timeout)
    _count("sent")
    tell(event_sent, event.receiver, event_id=event.id, signal_name=event.signal_name)


@contextmanager
def _told(message: Message) -> Iterator[None]:
    """Tell of the loss when the wait is interrupted from outside, by a time limit or the end of the process."""
    try:
        yield
    except PublishError:
        raise
    except BaseException as error:
        _lost(message, error)
        raise


def lose(receiver: str, signal_name: str, summary: str, error: BaseException, *, event_id: str | None = None) -> None:
    """Log, count and tell that an event will not arrive.

    Args:
        receiver: name of the task it was for.
        signal_name: of what was sent.
        summary: what was sent, in words.
        error: the reason.
        event_id: unless the event was refused before it had one.
    """
    logger.error("Event lost: %s will not get %r (event %s): %s", receiver, summary, event_id or "without id", error)
    _count("lost")
    tell(event_lost, receiver, event_id=event_id, signal_name=signal_name, summary=summary, error=error)


GUARANTEES: dict[str, Callable[[Message], None]] = {
    "immediate": immediate,
    "on_commit": on_commit,
    AUDIT: publish_or_lose,
}


def _lost(message: Message, error: BaseException) -> None:
    event = message.envelope.event
    lose(event.receiver, event.signal_name, message.envelope.summary, error, event_id=event.id)


def _count(what: str) -> None:
    with _counts_lock:
        counts[what] += 1


def _absolute(options: dict[str, Any]) -> dict[str, Any]:
    """Fix a relative expiry at the sending: a late commit or a retry must not start it anew."""
    expires = options.get("expires")
    if isinstance(expires, (int, float)):
        expires = timedelta(seconds=expires)
    return {**options, "expires": datetime.now(UTC) + expires} if isinstance(expires, timedelta) else options


def _lineage(app: Celery, task: Any) -> dict[str, Any]:
    """Return what Celery derives from the running task; the publisher's thread runs none."""
    parent: Any = app.current_worker_task
    if not parent:
        return {}
    lineage = {"root_id": parent.request.root_id or parent.request.id, "parent_id": parent.request.id}
    if app.conf.task_inherit_parent_priority and task.priority is None:
        lineage["priority"] = (parent.request.delivery_info or {}).get("priority")
    return lineage


def _errors_propagate(app: Celery) -> bool:
    return bool(app.conf.task_always_eager and app.conf.task_eager_propagates)
