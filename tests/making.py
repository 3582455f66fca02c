"""Tasks that live as long as one test, made in every way there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from celery import Celery, shared_task
from django.dispatch import Signal

from django_celery_signals import ReceiverTask, disconnect, receiver_task
from tests.receiving import ignore

KINDS = ("shared", "of_app", "bound", "by_class", "of_task_cls", "declared")

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """Makes tasks in every way there is, and takes them out of the app again."""

    app: Celery
    names: list[str] = field(default_factory=list)
    others: list[Celery] = field(default_factory=list)

    def another_app(self, **options: Any) -> Celery:
        """Make a second app the current one, until the test ends: an app that stays open takes every shared task."""
        self.others.append(Celery("project", broker="memory://", **options))
        self.others[-1].conf.task_default_queue = self.app.conf.task_default_queue
        return self.others[-1]

    def name(self) -> str:
        self.names.append(f"tests.made_{next(_numbers)}")
        return self.names[-1]

    def shared(self, function: Callable[..., Any] = ignore, **options: Any) -> Any:
        if function.__name__ == "<lambda>":  # Celery makes a signature out of the name
            function.__name__ = "receiver"
        return shared_task(base=ReceiverTask, name=self.name(), **options)(function)

    def of_app(self) -> Any:
        return self.app.task(base=ReceiverTask, name=self.name())(ignore)

    def bound(self) -> Any:
        def bound(self: Any, **kwargs: Any) -> None: ...

        return self.shared(bound, bind=True)

    def by_class(self) -> Any:
        name_of_class = self.name()

        class ByClass(ReceiverTask):
            name = name_of_class

            def run(self, **kwargs: Any) -> None: ...

        return self.app.register_task(ByClass())

    def of_task_cls(self) -> Any:
        app = self.another_app(task_cls="django_celery_signals:ReceiverTask")
        return app.task(name=self.name())(ignore)

    def declared(self) -> Any:
        signal = Signal()
        task = receiver_task(signal, name=self.name())(ignore)
        disconnect(signal, task)
        return task

    def end(self) -> None:
        """Forget the tasks, and close the apps that were made for them."""
        for name in self.names:
            self.app._tasks.pop(name, None)
        for other in self.others:
            other.close()
