"""What a worker tells monitors about an event that it holds: the summary, never a field's value."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

from .wire import ARGUMENT, summary_of


class EventRequest(Request):
    """A worker's record of a message; of one that carries an event, ``celery inspect`` shows the summary."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Read a message; under Celery's first protocol it comes without a description."""
        super().__init__(*args, **options)
        sealed = self.kwargs.get(ARGUMENT) if isinstance(self.kwargs, dict) else None
        self._carries_event = sealed is not None
        if self._carries_event and self.kwargsrepr != "{}":
            self._argsrepr, self._kwargsrepr = summary_of(sealed), "{}"

    def info(self, safe: bool = False) -> Any:
        """Return what ``celery inspect active``, ``reserved`` and ``scheduled`` show."""
        return super().info(safe=safe or self._carries_event)
