"""Hand one message to the broker in bounded time, and tell what became of it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery
from django.db.backends.base.base import BaseDatabaseWrapper

from . import conf
from .ahead import Doubt
from .broker import is_eager
from .exceptions import PublishError, PublishTimeout
from .publisher import publisher
from .signals import event_lost, event_sent, tell
from .template import Template, apply_plainly, template_for

logger = logging.getLogger(__name__)

#: What this process has done since it started: ``sent`` and ``lost`` events.
counts: Counter[str] = Counter()
_counts_lock = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_counts_lock=threading.Lock()))  # the parent may hold it


#: Where messages go instead of the broker, while a test has put something here.
held: list[Message] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One event on its way to the broker, and how it is to be sent."""

    app: Celery  # whose broker it is for
    receiver: str  # name of the task
    event_id: str
    signal_name: str
    summary: str  # what was sent, in words
    body: Any  # what the broker carries: the signed envelope, or a delivery's reference
    options: dict[str, Any]  # of apply_async
    using: str | None = None  # alias of the database that the sending belongs to
    lane: str | None = None  # where it waits for its turn, when it is published only then
    parts: Sequence[tuple[str, str]] = ()  # of several deliveries, the event's id and the signal's name of each
    is_probed: bool = True  # whether a loss is found out soon


class Patience:
    """How long the messages of one commit wait for a slow broker, all together.

    Each may take ``free`` seconds without being counted, so that a large transaction on a healthy broker loses nothing.
    """

    __slots__ = ("count", "free", "lanes", "left")

    def __init__(self, free: float = 0.05) -> None:
        """Begin with ``PUBLISH_TIMEOUT`` seconds."""
        self.left, self.free = conf.get().PUBLISH_TIMEOUT, free
        self.count = 0  # messages that share it
        self.lanes: dict[str, Any] = {}  # of which one has asked for its turn; None: it is there for certain

    @contextmanager
    def spent(self) -> Iterator[float]:
        """Give the seconds that the next message may take, and count what it took."""
        if self.left <= 0:
            raise PublishTimeout("The broker is slow: the messages of this commit have waited PUBLISH_TIMEOUT already.")
        started = time.monotonic()
        try:
            yield self.left + self.free
        finally:
            self.left -= max(0.0, time.monotonic() - started - self.free)


class Hook:
    """What Django calls for one message after the commit; it shares the patience of its transaction's other hooks."""

    def __init__(
        self,
        receiver: str,
        make: Callable[[], Message],
        patience: Patience,
        act: Callable[[Message, Patience], None],
    ) -> None:
        """Keep what to do, and what makes the message then: before the commit nobody may know of which row it is."""
        self.make, self.patience, self.act = make, patience, act
        self.__qualname__ = f"the publication for {receiver}"  # in Django's log when it raises

    def __call__(self) -> None:
        self.act(self.make(), self.patience)


def patience_of(connection: BaseDatabaseWrapper, act: Callable[[Message, Patience], None]) -> Patience | None:
    """Return the patience of the last hook of a kind that waits for the same commit."""
    hooks = (entry[1] for entry in reversed(connection.run_on_commit))
    return next((hook.patience for hook in hooks if isinstance(hook, Hook) and hook.act is act), None)


def publish(message: Message, patience: Patience | None = None, doubt: Doubt | None = None) -> None:
    """Hand a message to the broker and wait for it, in bounded time.

    Args:
        message: what to publish.
        patience: how long to wait, at most; ``PUBLISH_TIMEOUT`` unless told.
        doubt: what to do when the broker turns out not to have it; given, its confirm need not be waited for.

    Raises:
        PublishError: when the broker did not take it.
    """
    app = message.app
    task: Any = app.tasks.get(message.receiver)
    if task is None:
        raise PublishError(
            f"The Celery app {app.main!r} has no task {message.receiver!r}; import its module in this process."
        )
    if is_eager(app):
        apply(message, task)  # runs the receiver, for as long as that takes
    elif held is not None:
        held.append(message)
    else:
        with (patience or Patience()).spent() as timeout:
            template = template_for(app, task, message.options)
            if template is None:
                doubt = None  # Celery publishes, with whatever listens to it, and that may take its time
            send = partial(apply, message, task, template=template)
            publisher().publish(app, send, timeout, doubt)
    taken(message)


def apply(message: Message, task: Any, producer: Any = None, template: Template | None = None, **options: Any) -> None:
    """Give a message to Celery, once.

    Args:
        message: what to publish.
        task: what it is for.
        producer: of kombu; Celery's own unless told.
        template: of its messages, if it has been asked for already.
        options: further ones of ``apply_async``.
    """
    if template is None and producer is not None:
        template = template_for(message.app, task, message.options)
    if template is None:
        apply_plainly(task, message.body, producer, {**options, **message.options}, message.summary)
    else:
        body, filled = template.filled(message.app, message.body, message.options, message.summary)
        template.publish(producer, body, {**filled, **options})


def taken(message: Message) -> None:
    """Count and tell that the broker has a message, or was handed it where its confirm is not waited for."""
    for event_id, signal_name in message.parts or ((message.event_id, message.signal_name),):
        _count("sent")
        tell(event_sent, message.receiver, event_id=event_id, signal_name=signal_name, using=message.using)


def publish_or_lose(message: Message, patience: Patience | None = None) -> None:
    """Publish; when that fails the event is lost: logged, counted and told, not raised."""
    try:
        with told(message):
            publish(message, patience)
    except PublishError as error:
        lost(message, error)


@contextmanager
def told(message: Message) -> Iterator[None]:
    """Tell of the loss when the wait is interrupted from outside, by a time limit or the end of the process."""
    try:
        yield
    except PublishError:
        raise
    except BaseException as error:
        if not is_eager(message.app):  # that one is the receiver's own
            lost(message, error)
        raise


def lost(message: Message, error: BaseException) -> None:
    """Log, count and tell that a message was not taken and nobody else has it."""
    lose(message.receiver, message.signal_name, message.summary, error, event_id=message.event_id)


def lose(receiver: str, signal_name: str, summary: str, error: BaseException, *, event_id: str) -> None:
    """Log, count and tell that an event will not arrive.

    Args:
        receiver: name of the task it was for.
        signal_name: of what was sent.
        summary: what was sent, in words.
        error: the reason.
        event_id: of the event.
    """
    logger.error("Event lost: %s will not get %r (event %s): %s", receiver, summary, event_id, error)
    _count("lost")
    tell(event_lost, receiver, event_id=event_id, signal_name=signal_name, summary=summary, error=error)


def _count(what: str) -> None:
    with _counts_lock:
        counts[what] += 1
