"""Build the message of one delivery, up to what the broker's client is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.site.ready import app, make_ready

Work = Callable[[int], None]
REFERENCE = {"alias": "default", "id": 1_000_000, "token": 2**60, "receiver": "benchmarks.notify"}
OPTIONS = {"task_id": "5d0b9c62-3a3f-4b8e-9d61-0c0f3f9f1c11", "retries": 0, "expires": None}
SUMMARY = "post_save benchmarks_site.Order pk=1 created"


def _task() -> Any:
    make_ready()
    from django_celery_signals import ReceiverTask

    @app.task(base=ReceiverTask, name="benchmarks.notify")
    def notify(**_: Any) -> None: ...

    app.finalize()
    return app.tasks["benchmarks.notify"]


def ours() -> Work:
    """A template that is filled in."""
    from django_celery_signals.template import template_for

    task = _task()

    def work(count: int) -> None:
        for _ in range(count):
            template: Any = template_for(app, task, OPTIONS)
            template.filled(app, REFERENCE, OPTIONS, SUMMARY)

    return work


class _Nowhere:
    """A channel whose socket leads nowhere."""

    connection = None
    is_open = True

    def prepare_message(self, *args: Any) -> Any:
        return args

    def basic_publish(self, *args: Any, **options: Any) -> None: ...


def by_apply_async() -> Work:
    """Celery's ``apply_async()``, whose channel leads nowhere."""
    from kombu import Producer

    from django_celery_signals.template import apply_plainly

    task = _task()

    class Nowhere(Producer):
        connection = app.connection_for_write()

        def maybe_declare(self, *args: Any, **options: Any) -> None: ...

        def revive(self, channel: Any) -> None: ...

    producer = Nowhere(_Nowhere(), auto_declare=False)

    def work(count: int) -> None:
        for _ in range(count):
            apply_plainly(task, REFERENCE, producer, OPTIONS, SUMMARY)

    return work


def least() -> Work:
    """A copy of a dictionary and the JSON of the body: with less there is no message."""
    headers = {str(number): None for number in range(19)}

    def work(count: int) -> None:
        for _ in range(count):
            message = headers.copy()
            message["id"] = message["root_id"] = OPTIONS["task_id"]
            json.dumps([[], {"__event__": REFERENCE}, {"callbacks": None, "errbacks": None, "chain": None}])

    return work
