"""Hand messages to the broker in bounded time, whatever the broker does.

One daemon thread per process publishes, on a connection of its own; the caller waits for it, but never longer than it
said. Some transports wait for minutes on a peer that accepts and never answers, and no option of theirs
bounds the whole; leaving the thread behind does. After a failure a circuit breaker refuses at once for a while, so
that a dead broker costs a request nothing more.
"""

from __future__ import annotations

import contextvars
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from amqp.exceptions import ConnectionError as AMQPConnectionError
from celery import Celery, current_app
from celery._state import _get_active_apps  # type: ignore[attr-defined]
from celery.loaders.default import Loader as FallbackLoader
from kombu import Connection
from kombu.exceptions import OperationalError

from . import conf
from .exceptions import PublishError, PublishTimeout

logger = logging.getLogger(__name__)

Publish = Callable[[Any], Any]  # given a kombu Producer

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds for which the open breaker refuses; doubled at each failure


def project_app() -> Celery:
    """Return the project's Celery app, also in threads started before it was loaded.

    A ``@shared_task`` touched too early makes Celery fall back to an unconfigured app, which then stays the default of
    every thread but the one that loads the project's own. Publishing there would go to ``amqp://localhost``.
    """
    app: Celery = current_app._get_current_object()  # type: ignore[attr-defined]
    if isinstance(app.loader, FallbackLoader):
        others: list[Celery] = [other for other in _get_active_apps() if not isinstance(other.loader, FallbackLoader)]
        if len(others) == 1:
            return others[0]
    return app


class Breaker:
    """Refuses for a while after a failure; then lets one caller try, and closes when that succeeds."""

    def __init__(self) -> None:
        """Begin closed."""
        self._lock = threading.Lock()
        self._pause = 0.0
        self._open_until = 0.0

    def allows(self) -> bool:
        """Tell whether to try now; of several callers after a pause, only the first may."""
        with self._lock:
            now = time.monotonic()
            if now < self._open_until:
                return False
            if self._pause:
                self._open_until = now + self._pause
            return True

    def failed(self) -> None:
        """Open, for twice as long as the last time."""
        with self._lock:
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            self._open_until = time.monotonic() + self._pause

    def succeeded(self) -> None:
        """Close."""
        with self._lock:
            self._pause = self._open_until = 0.0


class Line:
    """One thread and its connection to the broker."""

    def __init__(self, app: Celery) -> None:
        """Start the thread; it connects when there is something to publish."""
        self.app = app
        self._left = threading.Lock()  # taken, and kept, by the first who leaves
        self._work: queue.SimpleQueue[tuple[Publish, Future[None]]] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._producer: Any = None
        self.thread = threading.Thread(target=self._run, name="django-celery-signals-publisher", daemon=True)
        self.thread.start()

    def submit(self, publish: Publish) -> Future[None]:
        """Queue one publication and return what will become of it; it sees the caller's context variables."""
        done: Future[None] = Future()
        context = contextvars.copy_context()
        self._work.put((lambda producer: context.run(publish, producer), done))
        return done

    @property
    def is_this_thread(self) -> bool:
        """Whether the caller runs inside a publication of this line, as a listener to Celery's own signals does."""
        return threading.current_thread() is self.thread

    @property
    def left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._left.locked()

    def leave(self) -> bool:
        """End the thread, once it comes back from what it is doing; what is queued behind that is not published.

        Returns whether the caller is the first to leave.
        """
        is_first = self._left.acquire(blocking=False)
        self._work.put((lambda _: None, Future()))  # wakes a thread that waits for work
        return is_first

    def _run(self) -> None:
        while not self.left:
            publish, done = self._work.get()
            if self._wanted(done):
                self._settle(publish, done)
        self._close()

    def _wanted(self, done: Future[None]) -> bool:
        return not self.left and done.set_running_or_notify_cancel()

    def _settle(self, publish: Publish, done: Future[None]) -> None:
        try:
            self._publish(publish)
        except BaseException as error:  # handed to the caller, whatever it is
            self._close()
            done.set_exception(error)
        else:
            done.set_result(None)

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
            if self.left or not _is_of_connection(kept, error):
                raise
            self._connect()
            publish(self._producer)

    def _connect(self) -> None:
        self._connection = connection_for(self.app)
        self._producer = self.app.amqp.Producer(self._connection, auto_declare=False)

    def _close(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.release()
            except Exception as error:
                logger.debug("Closing the publisher's connection failed: %r", error)


def _is_of_connection(connection: Connection, error: Exception) -> bool:
    """Tell whether a new connection may help. Celery makes an OperationalError of most such errors."""
    errors = (*connection.recoverable_connection_errors, *connection.recoverable_channel_errors)
    return isinstance(error, (OperationalError, *errors))


def connection_for(app: Celery) -> Connection:
    """Return a new connection that tries each of the broker's hosts once, and fails in time where the transport can."""
    timeout = conf.get().PUBLISH_TIMEOUT
    connection = app.connection_for_write(connect_timeout=timeout)
    once = {"max_retries": max(len(connection.alt) - 1, 0), "interval_start": 0, "interval_step": 0, "interval_max": 0}
    bounded: dict[str, Any] = {}
    if connection.transport_cls in ("amqp", "amqps", "pyamqp"):
        bounded = {"confirm_publish": True}  # sent means: the broker has it, not: it is in a socket's buffer
    elif connection.transport_cls in ("redis", "rediss", "sentinel"):
        bounded = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    connection.transport_options = {**bounded, **(connection.transport_options or {}), **once}
    return connection


def is_outage(error: BaseException) -> bool:
    """Tell whether an error speaks of the broker rather than of the message. Celery translates most that do."""
    return isinstance(error, (OperationalError, OSError, AMQPConnectionError))


def _run_here(app: Celery, publish: Publish) -> BaseException | None:
    """Publish from within a publication, whose thread cannot wait for itself; return what went wrong."""
    try:
        with connection_for(app) as connection:
            publish(app.amqp.Producer(connection, auto_declare=False))
    except Exception as error:
        return error
    return None


class Publisher:
    """Publishes on a line per app, in the order of the calls of a thread, each in bounded time."""

    def __init__(self) -> None:
        """Begin without a line."""
        self._lock = threading.Lock()
        self._lines: dict[int, Line] = {}
        self.breaker = Breaker()

    def publish(self, app: Celery, publish: Publish, timeout: float | None = None) -> None:
        """Run one publication and wait until the broker has the message.

        Args:
            app: the Celery app whose broker it is for.
            publish: given a ``kombu.Producer``, sends the message with it.
            timeout: seconds to wait, at most; ``PUBLISH_TIMEOUT`` unless told.

        Raises:
            PublishTimeout: after that time; whether the message arrived is unknown.
            PublishError: when the broker refuses it, or refused another one a moment ago.
        """
        if not self.breaker.allows():
            raise PublishError("The broker failed a moment ago and is left alone for a while (circuit breaker).")
        timeout = conf.get().PUBLISH_TIMEOUT if timeout is None else timeout
        line = self._line(app)
        error = _run_here(app, publish) if line.is_this_thread else self._wait(line, line.submit(publish), timeout)
        if error is None:
            self.breaker.succeeded()
            return
        if is_outage(error):
            self.breaker.failed()
        else:
            self.breaker.succeeded()  # whatever is wrong with the message, the broker is there
        raise PublishError(f"The broker did not take the message: {type(error).__name__}: {error}") from error

    def _wait(self, line: Line, done: Future[None], timeout: float) -> BaseException | None:
        try:
            return done.exception(timeout)
        except FutureTimeout:
            done.cancel()
            if line.leave():  # of all that wait behind one hanging publication, one tells the breaker
                self.breaker.failed()
            raise PublishTimeout(f"The broker did not take the message within {round(timeout, 2):g} s.") from None

    def close(self) -> None:
        """Let go of every connection; the next publication opens a new one."""
        with self._lock:
            for line in self._lines.values():
                line.leave()
            self._lines.clear()

    def _line(self, app: Celery) -> Line:
        with self._lock:
            line = self._lines.get(id(app))
            if line is None or line.left or line.app is not app:
                line = self._lines[id(app)] = Line(app)
            return line


_publisher = Publisher()
_inherited: list[Publisher] = []  # kept, for their end would close sockets that the parent process uses


def publisher() -> Publisher:
    """Return this process's publisher."""
    return _publisher


def _begin_anew() -> None:
    """Give a forked child a publisher of its own: it has the parent's locks and sockets, but not its threads."""
    global _publisher
    _inherited.append(_publisher)
    _publisher = Publisher()


os.register_at_fork(after_in_child=_begin_anew)
