"""Hand messages to the broker in bounded time, whatever the broker does.

Daemon threads publish; the caller waits for one, but never longer than it said. Some transports wait for minutes on a
peer that accepts and never answers, and no option of theirs bounds the whole; leaving the thread behind does. After a
failure a circuit breaker refuses at once for a while, so that a dead broker costs a request nothing more.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout

from celery import Celery

from . import conf
from .broker import is_outage
from .exceptions import PublishError, PublishTimeout
from .lines import Line, Lines, Publish

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds for which the open breaker refuses; doubled at each failure


class Breaker:
    """Refuses for a while after a failure; then lets one caller try, and closes when that succeeds."""

    def __init__(self) -> None:
        """Begin closed."""
        self._lock = threading.Lock()
        self._pause = 0.0
        self._opened_at = self._open_until = 0.0

    def allows(self) -> bool:
        """Tell whether to try now; of several callers after a pause, only the first may."""
        with self._lock:
            now = time.monotonic()
            if now < self._open_until:
                return False
            if self._pause:
                self._open_until = now + self._pause
            return True

    def failed(self, began: float) -> None:
        """Open, for twice as long as the last time.

        Args:
            began: when the failed publication did; one that began before the breaker opened tells nothing new.
        """
        with self._lock:
            if began < self._opened_at:
                return
            self._opened_at = time.monotonic()
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            self._open_until = self._opened_at + self._pause

    def succeeded(self) -> None:
        """Close."""
        with self._lock:
            self._pause = self._open_until = 0.0


class Publisher:
    """Publishes in the order of the calls of a thread, each in bounded time."""

    def __init__(self) -> None:
        """Begin without a line."""
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._lines: dict[int, Lines] = {}
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
        began = time.monotonic()
        with self.lines(app).line(timeout) as line:
            error = self._wait(line, publish, began, timeout)
        if error is None:
            self.breaker.succeeded()
            return
        if is_outage(error):
            self.breaker.failed(began)
        else:
            self.breaker.succeeded()  # whatever is wrong with the message, the broker is there
        raise PublishError(f"The broker did not take the message: {type(error).__name__}: {error}") from error

    def _wait(self, line: Line, publish: Publish, began: float, timeout: float) -> BaseException | None:
        done = line.submit(publish)
        try:
            return done.exception(began + timeout - time.monotonic())
        except FutureTimeout:
            done.cancel()
            self.breaker.failed(began)
            raise PublishTimeout(f"The broker did not take the message within {round(timeout, 2):g} s.") from None

    def lines(self, app: Celery) -> Lines:
        """Return the lines of an app."""
        with self._lock:
            lines = self._lines.get(id(app))
            if lines is None or lines.app is not app:
                lines = self._lines[id(app)] = Lines(app)
            return lines

    def close(self) -> None:
        """Let go of every connection; the next publication opens a new one."""
        with self._lock:
            for lines in self._lines.values():
                lines.close()
            self._lines.clear()


_publisher = Publisher()
_inherited: list[Publisher] = []  # kept, for their end would close sockets that the parent process uses


def publisher() -> Publisher:
    """Return this process's publisher. A forked child has its parent's locks and sockets, but not its threads."""
    global _publisher
    if _publisher.pid != os.getpid():
        _inherited.append(_publisher)
        _publisher = Publisher()
    return _publisher
