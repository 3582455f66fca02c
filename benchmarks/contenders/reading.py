"""Read what a delivery carries: its envelope, and in that the snapshot of an instance."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from benchmarks.contenders.sending import _an_order, _receive, _rows
from benchmarks.site.ready import make_ready

Work = Callable[[int], dict[str, float]]


def _payload() -> str:
    make_ready()
    order = _an_order()
    _receive(instance="snapshot")
    payload: str = _rows(order).payload
    return payload


def _timed(read: Callable[[], Any], rebuild: Callable[[], Any]) -> Work:
    """Return what reads so many envelopes with their snapshots, and makes as many instances of one that is read."""

    def work(count: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        for figure, act in {"envelope": read, "snapshot": rebuild}.items():
            began = time.perf_counter()
            for _ in range(count):
                act()
            figures[figure] = (time.perf_counter() - began) / count
        return figures

    return work


def least() -> Work:
    """The JSON alone, and Django's ``from_db()`` with values that are there already: with less there is no instance."""
    payload = _payload()
    from benchmarks.site.models import Order

    order = Order.objects.get()
    names = [field.attname for field in Order._meta.concrete_fields]
    values = [getattr(order, name) for name in names]

    def rebuild() -> Order:
        return Order.from_db("default", names, values)

    return _timed(lambda: (json.loads(payload), rebuild()), rebuild)


def ours() -> Work:
    """The envelope, checked, and the instance with all of its values of their types, detached from its row."""
    payload = _payload()
    from django_celery_signals.envelope import Reader
    from django_celery_signals.wire import parse

    envelope = parse(payload)

    def read() -> Any:
        found = parse(payload)
        return Reader(found).value(found.kwargs["instance"])

    return _timed(read, lambda: Reader(envelope).value(envelope.kwargs["instance"]))
