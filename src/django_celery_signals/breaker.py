"""The circuit breaker: after a failure of the broker, refuse at once for a while."""

from __future__ import annotations

import logging
import threading
import time

from .exceptions import PublishError

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds for which the open breaker refuses; doubled at each failure
MOST_OF_COST = 15  # ... but never longer than so many times what the failed try cost: a refused connection costs little


class Breaker:
    """Refuses for a while after a failure; then lets one caller try, and closes when that succeeds."""

    def __init__(self) -> None:
        """Begin closed."""
        self._lock = threading.Lock()
        self._pause = 0.0
        self._opened_at = self._open_until = 0.0
        self._cause = ""

    def check(self) -> bool:
        """Let the caller try; of several callers after a pause, only the first may.

        Returns:
            Whether this is such a trial, on whose outcome others wait.

        Raises:
            PublishError: while it is open, naming what opened it.
        """
        with self._lock:
            now = time.monotonic()
            if now < self._open_until:
                raise PublishError(
                    f"The broker failed a moment ago ({self._cause}) and is left alone for another "
                    f"{self._open_until - now:.1f} s (circuit breaker)."
                )
            if self._pause:
                self._open_until = now + self._pause
            return self._pause > 0

    def is_open(self) -> bool:
        """Tell whether it refuses now; unlike :meth:`check`, without taking the turn to try."""
        return time.monotonic() < self._open_until

    def failed(self, began: float, cause: str) -> None:
        """Open, for twice as long as the last time; when it was closed, say so, once for an outage.

        Args:
            began: when the failed publication did; one that began before the breaker opened tells nothing new.
            cause: what went wrong, in words.
        """
        with self._lock:
            if began < self._opened_at:
                return
            was_closed = not self._pause
            self._opened_at, self._cause = time.monotonic(), cause
            longest = min(LONGEST_PAUSE, MOST_OF_COST * (self._opened_at - began))
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), longest)
            self._open_until = self._opened_at + self._pause
        if was_closed:
            logger.warning(
                "The broker takes no messages (%s). Durable deliveries wait in their table until it does.", cause
            )

    def succeeded(self) -> None:
        """Close."""
        with self._lock:
            self._pause = self._open_until = 0.0
