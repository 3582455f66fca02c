"""The threads that publish, each with a connection to the broker of its own, lent to one caller at a time.

To RabbitMQ a caller may publish in its own thread, without waiting for a confirm, when a connection for that is there.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from django.db import close_old_connections
from kombu import Connection

from .ahead import Ahead, Doubt, NotReady, may_go_ahead
from .breaker import Breaker
from .broker import connection_for, may_be_renewed
from .exceptions import PublishError, PublishTimeout

logger = logging.getLogger(__name__)

Publish = Callable[[Any], Any]  # given a kombu Producer

MOST_DOUBTS = 10_000  # kept until somebody does something about them; of more, the relay's probe will tell
MOST_LINES = 10  # of an app; Celery keeps as many connections in its own pool


class Line:
    """One thread and its connection to the broker; over another one callers may publish by themselves."""

    def __init__(self, app: Celery, doubts: deque[Doubt] | None = None) -> None:
        """Start the thread; it connects when there is something to publish.

        Args:
            app: whose broker it is.
            doubts: where to say of which messages that were not waited for the broker may not have.
        """
        self.app = app
        self.left = False  # whether nobody waits for it any more
        self.doubts: deque[Doubt] = deque() if doubts is None else doubts
        self._work: queue.SimpleQueue[tuple[Publish, Future[None]] | None] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._producer: Any = None
        self._ahead: Ahead | None = None
        self._tried_ahead = False  # whether there is, or can be, no other one
        self._wants_ahead = False
        self._undeclared: Any = None  # what a message that could not go ahead has to have declared
        threading.Thread(target=self._run, name="django-celery-signals-publisher", daemon=True).start()

    def submit(self, publish: Publish) -> Future[None]:
        """Begin one publication and return what will become of it; it sees the caller's context variables."""
        done: Future[None] = Future()
        context = contextvars.copy_context()
        self._work.put((lambda producer: context.run(publish, producer), done))
        return done

    def at_once(self, publish: Publish, doubt: Doubt) -> bool:
        """Publish in the caller's own thread, if that ends in time by itself.

        Returns:
            False when it does not, or did not succeed; then the thread has to do it.
        """
        ahead, self._wants_ahead = self._ahead, True
        if ahead is None:
            return False
        try:
            ahead.publish(publish, doubt)
        except NotReady as error:
            self._undeclared = error.entity
            return False
        except BaseException as error:
            self._give_up(ahead)
            if isinstance(error, SoftTimeLimitExceeded) or not isinstance(error, Exception):  # the caller's own
                raise
            logger.debug("The connection is given up: %r", error)
            return False
        self.doubts.extend(ahead.doubts(broken=False))
        return True

    def _give_up(self, ahead: Ahead) -> None:
        self._ahead, self._tried_ahead = None, False
        self.doubts.extend(ahead.doubts(broken=True))
        ahead.close()

    def settle(self, until: float) -> None:
        """Wait for what went ahead and is not confirmed, but not longer than until some moment."""
        if self._ahead is not None:
            self._ahead.settle(until)

    def leave(self) -> None:
        """End the thread, once it comes back from what it is doing."""
        self.left = True
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            publish, done = work
            if done.set_running_or_notify_cancel():
                self._settle(publish, done)
        self._close()
        if self._ahead is not None:
            self._give_up(self._ahead)

    def _settle(self, publish: Publish, done: Future[None]) -> None:
        error: BaseException | None = None
        try:
            self._publish(publish)
        except BaseException as raised:  # handed to the caller, whatever it is
            error = raised
            self._close()
        with suppress(Exception):  # to databases, of listeners to Celery's signals; no request ends in this thread
            close_old_connections()
        if error is not None:
            done.set_exception(error)
            return
        self._declared()
        done.set_result(None)
        if self._wants_ahead and not self._tried_ahead and not self.left:
            self._get_ahead()

    def _declared(self) -> None:
        """Note what is known to be there by now, so that the next message to it can go ahead."""
        entity, self._undeclared = self._undeclared, None
        if entity is not None and self._ahead is not None:
            self._ahead.producer.know(entity)

    def _publish(self, publish: Publish) -> None:
        """Publish; over a kept connection that turns out to be dead, once more over a new one."""
        kept = self._connection
        if kept is None:
            self._connect()
            publish(self._producer)
            return
        try:
            publish(self._producer)
        except Exception as error:
            self._close()
            if self.left or not may_be_renewed(kept, error):
                raise
            self._connect()
            publish(self._producer)

    def _connect(self) -> None:
        self._connection = connection_for(self.app)
        self._producer = self.app.amqp.Producer(self._connection, auto_declare=False)
        self._tried_ahead = self._ahead is not None

    def _get_ahead(self) -> None:
        """Connect once more, for those who do not wait; the broker has just answered."""
        self._tried_ahead = True
        try:
            if self._connection is not None and may_go_ahead(self._connection):
                self._ahead = Ahead(self.app)
        except Exception as error:
            logger.info("Every message will be waited for, there is no other connection: %r", error)

    def _close(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.release()
            except Exception as error:
                logger.debug("Closing the publisher's connection failed: %r", error)


class Lines:
    """The lines of one app. Callers one after the other share a line; more are opened for callers at the same time."""

    def __init__(self, app: Celery) -> None:
        """Begin without a line."""
        self.app = app
        self.breaker = Breaker()  # the app's own: another app may have another broker
        self.idle: list[Line] = []
        self.doubts: deque[Doubt] = deque(maxlen=MOST_DOUBTS)
        self._closed = False
        self._free = threading.BoundedSemaphore(MOST_LINES)

    @contextmanager
    def line(self, timeout: float) -> Iterator[Line]:
        """Lend a line to nobody else for a while.

        Args:
            timeout: seconds to wait, at most, while all are lent.

        When the caller gives up, with whatever exception, the line is left behind.

        Raises:
            PublishTimeout: when none came back in that time.
            PublishError: when a thread cannot be started.
        """
        if not self._free.acquire(timeout=timeout):
            raise PublishTimeout(f"The broker is slow: {MOST_LINES} other messages of this process wait for it.")
        try:
            line = self._take()
            try:
                yield line
            except BaseException:  # it may still be publishing
                line.leave()
                raise
            self.idle.append(line)
        finally:
            self._free.release()
        if self._closed:
            self.close()

    def _take(self) -> Line:
        try:
            return self.idle.pop()  # the one used last, so that a single caller has a single connection
        except IndexError:
            pass
        try:
            return Line(self.app, self.doubts)
        except RuntimeError as error:
            raise PublishError(f"No thread can be started that would publish: {error}.") from error

    def take_doubts(self) -> list[Doubt]:
        """Return of which messages the broker may not have, so that the caller does something about them."""
        found: list[Doubt] = []
        with suppress(IndexError):
            while True:
                found.append(self.doubts.popleft())
        return found

    def settle(self, until: float) -> None:
        """Wait for what went ahead and is not confirmed, before the process ends."""
        for line in self.idle:
            line.settle(until)

    def close(self) -> None:
        """Let go of every connection, also of those that are lent, as soon as they come back."""
        self._closed = True
        while self.idle:
            self.idle.pop().leave()
