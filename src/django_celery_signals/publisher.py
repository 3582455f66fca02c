"""Hand messages to the broker in bounded time, whatever the broker does.

Daemon threads publish; the caller waits for one, but never longer than it said, or for none where it need not know how
it ends. Some transports wait for minutes on a peer that accepts and never answers, and no option of theirs bounds the
whole; leaving the thread behind does. After a failure a circuit breaker refuses at once for a while, so that a dead
broker costs the next requests little.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from concurrent.futures import wait

from celery import Celery

from . import conf
from .ahead import Doubt
from .broker import is_outage
from .exceptions import PublishError, PublishTimeout
from .lines import Lines, Publish

#: The share of PUBLISH_TIMEOUT that a broker must have had before its silence is an outage: the rest of a commit's
#: patience, or of the wait for a line, may be too little for any broker.
ENOUGH = 0.9


class Publisher:
    """Publishes what is waited for in the order of the calls of a thread, each in bounded time."""

    def __init__(self) -> None:
        """Begin without a line."""
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._lines: dict[int, Lines] = {}

    def publish(self, app: Celery, publish: Publish, timeout: float | None = None, doubt: Doubt | None = None) -> None:
        """Run one publication, and wait until the broker has the message, unless there is a doubt to be kept instead.

        Args:
            app: the Celery app whose broker it is for.
            publish: given a ``kombu.Producer``, sends the message with it.
            timeout: seconds to wait, at most; ``PUBLISH_TIMEOUT`` unless told.
            doubt: what to do when the broker turns out not to have it, later and in another call; given, RabbitMQ's
                confirm need not be waited for.

        Raises:
            PublishTimeout: after that time; whether the message arrived is unknown.
            PublishError: when the broker refuses it, or refused another one a moment ago.
        """
        lines, began = self.lines(app), time.monotonic()
        is_trial = lines.breaker.check()
        timeout = conf.get().PUBLISH_TIMEOUT if timeout is None else timeout
        try:
            # A write into a socket's buffer would be no trial.
            went, error = self._outcome(lines, publish, began, timeout, None if is_trial else doubt)
        finally:
            if doubt is not None:
                _act(lines)
        if went:
            return
        if error is None:
            lines.breaker.succeeded()
            return
        cause = f"{type(error).__name__}: {error}"
        if is_outage(error):
            lines.breaker.failed(began, cause)
        else:
            lines.breaker.succeeded()  # whatever is wrong with the message, the broker is there
        raise PublishError(f"The broker did not take the message: {cause}") from error

    def _outcome(
        self, lines: Lines, publish: Publish, began: float, timeout: float, doubt: Doubt | None
    ) -> tuple[bool, BaseException | None]:
        """Return whether a message went ahead, and else what its publication raised, if anything."""
        with lines.line(timeout) as line:
            left = began + timeout - time.monotonic()
            if doubt is not None and line.at_once(publish, doubt):
                return True, None
            done = line.submit(publish)
            wait([done], began + timeout - time.monotonic())
            if done.done():
                return False, done.exception()
            done.cancel()
            message = f"The broker did not take the message within {round(timeout, 2):g} s."
            if left >= ENOUGH * conf.get().PUBLISH_TIMEOUT:
                lines.breaker.failed(began, message)
            raise PublishTimeout(message)

    def lines(self, app: Celery) -> Lines:
        """Return the lines of an app."""
        with self._lock:
            lines = self._lines.get(id(app))
            if lines is None or lines.app is not app:
                lines = self._lines[id(app)] = Lines(app)
            return lines

    def settle(self) -> None:
        """Wait a moment for what went ahead and is not confirmed."""
        for lines in self._lines.values():
            lines.settle(time.monotonic() + conf.get().PUBLISH_TIMEOUT)

    def close(self) -> None:
        """Let go of every connection; the next publication opens a new one."""
        with self._lock:
            for lines in self._lines.values():
                lines.close()
            self._lines.clear()


def _act(lines: Lines) -> None:
    """Do what is to be done about messages that went ahead, and keep what cannot be done now."""
    doubts = lines.take_doubts()
    for act in {doubt.act for doubt in doubts}:
        rest = act([doubt.about for doubt in doubts if doubt.act is act])
        lines.doubts.extend(Doubt(about, act) for about in rest)


_publisher = Publisher()
_inherited: list[Publisher] = []  # kept, for their end would close sockets that the parent process uses


def publisher() -> Publisher:
    """Return this process's publisher. A forked child has its parent's locks and sockets, but not its threads."""
    global _publisher
    if _publisher.pid != os.getpid():
        _inherited.append(_publisher)
        _publisher = Publisher()
    return _publisher


@atexit.register
def _settle() -> None:
    if _publisher.pid == os.getpid():
        _publisher.settle()
