"""Metrics for Prometheus: what this process sends and runs, and how deliveries stand. Needs ``prometheus_client``.

Labels are names of receivers and aliases of databases, and no more: nothing of what was sent, and of no error's text.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from wsgiref.simple_server import WSGIServer

from celery.signals import worker_process_shutdown
from django.db import Error, connections
from django.dispatch import Signal

from ..durable.deliveries import deliveries
from ..durable.pauses import paused
from ..durable.relay import keeping
from ..event import Event
from ..signals import (
    delivery_failed,
    event_lost,
    event_sent,
    receiver_discarded,
    receiver_failed,
    receiver_started,
    receiver_succeeded,
)
from ..statistics.upkeep import waiting
from . import needing

with needing("prometheus_client", extra="prometheus"):
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, start_http_server
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
    from prometheus_client.registry import Collector

PREFIX = "django_celery_signals"
MOST_FAILED = 10_000  # that are counted
RUN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)  # seconds
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600)

# No child is forked while another thread counts: it would inherit the locks of prometheus_client, locked for ever.
_counting = threading.RLock()  # a signal's handler may count while its own thread does
os.register_at_fork(before=_counting.acquire, after_in_parent=_counting.release, after_in_child=_counting.release)


# Counts ----------------------------------------------------------------------------------------------------------


class Metrics:
    """What one process counts, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register them."""
        self._registry, receiver = registry, ("receiver",)
        self.sent = self._counter("sent", "Messages that the broker took, for each publication")
        self.lost = self._counter("lost", "Events that will not arrive, of receivers that are not durable")
        self.succeeded = self._counter("succeeded", "Runs that returned")
        self.failed = self._counter("failed", "Runs that raised", "will_retry")
        self.discarded = self._counter("discarded", "Events that were dropped on purpose")
        self.given_up = self._counter("given_up", "Durable deliveries that were given up")
        run, wait = "Seconds of runs that returned", "Seconds from the sending to the start of a run"
        self.run = Histogram(f"{PREFIX}_run_seconds", run, receiver, registry=registry, buckets=RUN_BUCKETS)
        self.wait = Histogram(f"{PREFIX}_wait_seconds", wait, receiver, registry=registry, buckets=WAIT_BUCKETS)
        self.listeners: dict[Signal, Callable[..., None]] = {
            event_sent: self._sent,
            event_lost: self._lost,
            receiver_started: self._started,
            receiver_succeeded: self._succeeded,
            receiver_failed: self._failed,
            receiver_discarded: self._discarded,
            delivery_failed: self._given_up,
        }

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, ("receiver", *labels), registry=self._registry)

    def unregister(self) -> None:
        """Take them out of the registry."""
        counters = (self.sent, self.lost, self.succeeded, self.failed, self.discarded, self.given_up)
        for metric in (*counters, self.run, self.wait):
            self._registry.unregister(metric)

    def _sent(self, sender: str, **_: Any) -> None:
        with _counting:
            self.sent.labels(sender).inc()

    def _lost(self, sender: str, **_: Any) -> None:
        with _counting:
            self.lost.labels(sender).inc()

    def _started(self, sender: str, event: Event, **_: Any) -> None:
        seconds = (datetime.now(UTC) - event.sent_at).total_seconds()
        with _counting:
            self.wait.labels(sender).observe(max(0.0, seconds))  # the clocks of two machines differ

    def _succeeded(self, sender: str, runtime: float, **_: Any) -> None:
        with _counting:
            self.succeeded.labels(sender).inc()
            self.run.labels(sender).observe(runtime)

    def _failed(self, sender: str, will_retry: bool, **_: Any) -> None:
        with _counting:
            self.failed.labels(sender, "true" if will_retry else "false").inc()

    def _discarded(self, sender: str, **_: Any) -> None:
        with _counting:
            self.discarded.labels(sender).inc()

    def _given_up(self, sender: str, **_: Any) -> None:
        with _counting:
            self.given_up.labels(sender).inc()


_connected: dict[CollectorRegistry, Metrics] = {}


def connect(registry: CollectorRegistry = REGISTRY) -> None:
    """Let this process count; call it in all that send or run, once or more often.

    Args:
        registry: in which the metrics are registered.
    """
    if registry in _connected:
        return
    metrics = _connected[registry] = Metrics(registry)
    for signal, listener in metrics.listeners.items():
        signal.connect(listener, weak=False)
    if _is_shared():
        worker_process_shutdown.connect(_child_ends, dispatch_uid=f"{__name__}.child_ends")


def disconnect(registry: CollectorRegistry = REGISTRY) -> None:
    """Undo it, for tests."""
    if (metrics := _connected.pop(registry, None)) is not None:
        for signal, listener in metrics.listeners.items():
            signal.disconnect(listener)
        metrics.unregister()


def _is_shared() -> bool:
    """Tell whether processes add up their figures in files."""
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))


def _child_ends(pid: int, **_: Any) -> None:
    mark_process_dead(pid)


# How deliveries stand --------------------------------------------------------------------------------------------

_GAUGES = {
    "oldest_due_seconds": ("Seconds for which the oldest delivery has waited that could run", ()),
    "waiting": ("Deliveries that could run, as far as they are counted", ()),
    "failed": ("Deliveries that were given up and are kept, as far as they are counted", ()),
    "paused": ("1 for each receiver that is paused", ("receiver",)),
    "up": ("Whether the database answered", ()),
}
Sample = tuple[str, tuple[str, ...], float]  # which of them, its labels, its value


class Deliveries(Collector):
    """Asks every database how its deliveries stand, whenever it is scraped: a few short queries, by indexes.

    The answers are the same wherever it is asked, so register it in one place. A database that does not answer has no
    sample but ``up``, which is 0.
    """

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics without a sample, so that to register them asks no database."""
        yield from _families().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics."""
        families = _families()
        for alias in keeping():
            for name, labels, value in _standing(alias):
                families[name].add_metric(labels, value)
        yield from families.values()


def _families() -> dict[str, GaugeMetricFamily]:
    return {
        name: GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=("database", *labels))
        for name, (text, labels) in _GAUGES.items()
    }


def _standing(alias: str) -> list[Sample]:
    try:
        with _leaving_as_found(alias):
            return [*_samples(alias), ("up", (alias,), 1)]
    except Error:
        return [("up", (alias,), 0)]


def _samples(alias: str) -> Iterator[Sample]:
    rows = deliveries(alias)
    yield "oldest_due_seconds", (alias,), rows.lag()
    yield "waiting", (alias,), waiting(alias)
    yield "failed", (alias,), rows.failed().order_by()[:MOST_FAILED].count()
    for receiver in paused(alias):
        yield "paused", (alias, receiver), 1


@contextmanager
def _leaving_as_found(alias: str) -> Iterator[None]:
    """Close the connection if it was opened here: a server's thread ends after each scrape, a request's does not."""
    connection = connections[alias]
    was_open = connection.connection is not None
    try:
        yield
    finally:
        if not was_open:
            connection.close()


# Serve -----------------------------------------------------------------------------------------------------------


def serve(
    port: int, address: str = "127.0.0.1", *, registry: CollectorRegistry = REGISTRY, deliveries: bool = True
) -> tuple[WSGIServer, threading.Thread]:
    """Serve the metrics, in a thread of this process; where ``PROMETHEUS_MULTIPROC_DIR`` is set, those of all.

    Args:
        port: to listen at.
        address: to listen at; "0.0.0.0" for all there are.
        registry: whose metrics are served, where processes do not share theirs.
        deliveries: whether to ask the databases how deliveries stand, which one place should do.

    Returns:
        The server, and its thread: ``shutdown()`` and ``server_close()`` end it.

    Raises:
        OSError: when the port is taken.
        ValueError: when ``PROMETHEUS_MULTIPROC_DIR`` is no folder.
    """
    served = CollectorRegistry()
    if _is_shared():
        MultiProcessCollector(served)
    else:
        served.register(registry)
    if deliveries:
        served.register(Deliveries())
    return start_http_server(port, address, registry=served)
