"""What is counted, and the last line that tells it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django_celery_signals.signals import event_lost, event_sent


@dataclass(slots=True, weakref_slot=True)
class Tally:
    """What happened in a demonstration."""

    saved: int = 0
    sent: set[str] = field(default_factory=set)  # ids of events the broker took
    refused: set[str | None] = field(default_factory=set)  # ids of events it did not take
    received: set[str] = field(default_factory=set)  # ids of events the worker has a receipt for
    failed: int = 0
    mismatches: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Return how many events no worker received."""
        return len((self.sent | self.refused) - self.received)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what this process sends."""
        event_sent.connect(self._on_sent)
        event_lost.connect(self._on_lost)
        try:
            yield
        finally:
            event_sent.disconnect(self._on_sent)
            event_lost.disconnect(self._on_lost)

    def _on_sent(self, event_id: str, **kwargs: Any) -> None:
        self.sent.add(event_id)

    def _on_lost(self, event_id: str | None, **kwargs: Any) -> None:
        self.refused.add(event_id)

    def succeeded(self) -> bool:
        """Tell whether everything is as promised."""
        return not (self.lost or self.failed or self.mismatches)

    def __str__(self) -> str:
        return (
            f"demo: saved={self.saved} sent={len(self.sent)} received={len(self.sent & self.received)} "
            f"lost={self.lost} failed={self.failed} mismatches={len(self.mismatches)}"
        )
