"""Receivers that live as long as one test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from django.dispatch import Signal

from django_celery_signals import disconnect, receiver_task

_numbers = itertools.count(1)


def ignore(**kwargs: Any) -> None:
    """Take whatever comes and do nothing: for tests that look only at what is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiving:
    """Declares receivers, and takes them back at the end of the test."""

    app: Celery
    undo: list[Callable[[], Any]] = field(default_factory=list)

    def __call__(
        self,
        signal: Signal | list[Signal],
        function: Callable[..., Any] = ignore,
        *,
        sender: Any = None,
        **options: Any,
    ) -> Any:
        """Connect a function as ``@receiver_task`` does, under a task name of its own; return the task."""
        if function.__name__ == "<lambda>":  # Celery makes a signature out of the name
            function.__name__ = "receiver"
        name = f"tests.receiving.{function.__name__}_{next(_numbers)}"
        task = receiver_task(signal, sender=sender, name=name, **options)(function)
        self.undo.append(lambda: self.app._tasks.pop(name, None))
        place = {name: options[name] for name in ("dispatch_uid", "subclasses") if name in options}
        self.undo.append(lambda: disconnect(signal, task, sender=sender, **place))
        return self.app.tasks[name]

    def end(self) -> None:
        """Disconnect and forget what was declared."""
        while self.undo:
            self.undo.pop()()


@contextmanager
def hearing(signal: Signal) -> Iterator[list[dict[str, Any]]]:
    """Listen to a signal of the library's own; what it says is added to the list."""
    heard: list[dict[str, Any]] = []

    def listener(sender: Any, signal: Signal, **facts: Any) -> None:
        heard.append({"receiver": sender, **facts})

    signal.connect(listener)
    try:
        yield heard
    finally:
        signal.disconnect(listener)
