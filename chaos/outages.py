"""Faults of brokers and databases, and of the network before them."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .points import LONG
from .rig import QUEUE, Rig

PROBED = 14.0  # seconds after which a queue that stands still has been probed
#: What a client sends to commit, and nothing else: PyMySQL, and psycopg.
COMMIT = re.compile(rb"(^.{3}\x00\x03COMMIT|Q.{4}COMMIT\x00)$", re.DOTALL)


# The broker ------------------------------------------------------------------------------------------------------


def broker_away(rig: Rig) -> bool:
    """Kill the broker, and start it again after some seconds, with what it had."""
    _down(rig, "broker", 6)
    return True


def broker_wiped(rig: Rig) -> bool:
    """Lose all that the broker has."""
    rig.broker.wipe()
    return True


def broker_loses_some(rig: Rig) -> bool:
    """Lose the half of what waits in the broker."""
    with _a_queue(rig):
        return rig.broker.lose_some(QUEUE) > 0


def probe_lost(rig: Rig) -> bool:
    """Lose messages, and the probe that would tell of it: the next one has to."""
    with _a_queue(rig):
        rig.wait(PROBED)
        lost = rig.broker.lose_some(QUEUE, b"django_celery_signals.probe")
        rig.broker.lose_some(QUEUE)
        return lost > 0


def broker_repeats(rig: Rig) -> bool:
    """Let the broker have everything twice, as brokers do that were not sure."""
    with _a_queue(rig):
        return rig.broker.repeat(QUEUE) > 0


@contextmanager
def _a_queue(rig: Rig) -> Iterator[None]:
    """Stop the workers, so that something waits in the broker."""
    for role in rig.of("worker"):
        rig.signal(role, signal.SIGSTOP)
    try:
        time.sleep(1.5)
        yield
    finally:
        for role in rig.of("worker"):
            rig.signal(role, signal.SIGCONT)


# The network -----------------------------------------------------------------------------------------------------


def slow(use: str, seconds: float) -> Callable[[Rig], bool]:
    """Return a fault that holds back all that goes to and from a server."""

    def hold_back(rig: Rig) -> bool:
        rig.proxies[use].delay(seconds)
        rig.wait(5)
        rig.proxies[use].heal()
        return True

    return hold_back


def silent(use: str) -> Callable[[Rig], bool]:
    """Return a fault by which a server takes everything and answers nothing, for longer than a lease."""

    def say_nothing(rig: Rig) -> bool:
        rig.proxies[use].be_silent()
        rig.wait(rig.options.lease + 3)
        rig.proxies[use].heal()
        return True

    return say_nothing


def cut(use: str) -> Callable[[Rig], bool]:
    """Return a fault that breaks off all connections to a server."""

    def break_off(rig: Rig) -> bool:
        return rig.proxies[use].cut() > 0

    return break_off


# The database ----------------------------------------------------------------------------------------------------


def database_restarted(rig: Rig) -> bool:
    """Kill the database, and start it again."""
    _down(rig, "database", 5)
    return True


def database_away(rig: Rig) -> bool:
    """Keep the database away for a minute, or two leases, under receivers that end only when it is back."""
    (rig.points / LONG).touch()
    rig.wait(3)
    _down(rig, "database", max(60, 2 * rig.options.lease))
    rig.wait(3)
    (rig.points / LONG).unlink()
    return True


def commit_cut(rig: Rig) -> bool:
    """Break off a connection right after its COMMIT was sent: nobody knows how that ended. Several times."""
    proxy, hits = rig.proxies["database"], 0
    for _ in range(5):
        proxy.cut_after(COMMIT)
        rig.wait(0.4)
        hits += proxy.has_cut()
    proxy.heal()
    return hits > 0


def _down(rig: Rig, use: str, seconds: float) -> None:
    """Keep a server away, so that connections are refused, or accepted and ended, as a balancer before it does."""
    if rig.chance.random() < 0.5:
        rig.proxies[use].refuse()
    rig.servers[use].stop()
    rig.wait(seconds)
    rig.servers[use].start()
    rig.proxies[use].heal()
