"""How fast a process sends to a receiver whose deliveries can be put together."""

from __future__ import annotations

import time

from celery import Celery

RATE = 10  # deliveries a second of one receiver that a process publishes itself; what comes on top the relay packs


class Pace:
    """Counts, second by second. Threads may miscount one another, which does no harm."""

    def __init__(self) -> None:
        """Begin with nothing sent."""
        self._seconds: dict[str, tuple[int, int]] = {}  # by the receiver: which second, and how many in it

    def is_quick(self, receiver: str) -> bool:
        """Count a sending, and tell whether there have been more than ``RATE`` in this second."""
        now = int(time.monotonic())
        second, count = self._seconds.get(receiver, (now, 0))
        count = count + 1 if second == now else 1
        self._seconds[receiver] = now, count
        return count > RATE


pace = Pace()


def most_together(app: Celery, receiver: str) -> int:
    """Return how many deliveries one message of a receiver may refer to; 1, also when it is an ordinary task now."""
    return int(getattr(app.tasks[receiver], "most_together", 1))
