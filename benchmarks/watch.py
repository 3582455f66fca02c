"""A stopwatch for contenders. Told to, it also says how much of the time PostgreSQL's and the broker's clients had.

What is left of it is Python's: Django, Celery, the library, the contender itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

PARTS = "BENCHMARKS_PARTS"  # environment variable: set, parts are told
_spent: defaultdict[str, float] = defaultdict(float)  # seconds, by part
_inside = threading.local()


@contextmanager
def watch(figures: dict[str, float], count: int) -> Iterator[None]:
    """Put the seconds of a block, for each of so many, into the figures."""
    _spent.clear()
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    figures["each"] = seconds / count
    if PARTS in os.environ:
        parts = {name: _spent[name] for name in ("database", "broker")}
        figures.update(
            {name: spent / count for name, spent in {**parts, "rest": seconds - sum(parts.values())}.items()}
        )


def watch_parts() -> None:
    """Count from now on what the clients do: their own work, and the wait for an answer."""
    if PARTS not in os.environ:
        return
    import amqp
    import psycopg
    import redis
    from kombu.transport import redis as kombus

    from django_celery_signals.properties import Properties

    for cls, method, part in (
        (psycopg.Connection, "wait", "database"),
        (Properties, "publish", "broker"),  # which writes what the client would
        (amqp.Channel, "basic_publish", "broker"),
        (amqp.Channel, "_basic_publish", "broker"),
        (amqp.Connection, "drain_events", "broker"),
        (kombus.Channel, "_put", "broker"),
        (redis.Redis, "execute_command", "broker"),
        (redis.client.Pipeline, "execute", "broker"),
    ):
        setattr(cls, method, _counted(getattr(cls, method), part))


def _counted(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if getattr(_inside, "part", None) is not None:  # which counts it already
            return function(*args, **options)
        _inside.part, began = part, time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            _spent[part] += time.perf_counter() - began
            _inside.part = None

    return call
