"""Faults of brokers and databases, and of the network before them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .points import LONG
from .rig import Rig

PROBED = 14.0  # seconds after which a queue that stands still has been probed

# The broker ------------------------------------------------------------------------------------------------------


def broker_away(rig: Rig) -> None:
    """Kill the broker, and start it again after some seconds, with what it had."""
    rig.broker.stop()
    rig.wait(6)
    rig.broker.start()


def broker_wiped(rig: Rig) -> None:
    """Lose all that the broker has."""
    rig.broker.wipe()


def broker_loses_some(rig: Rig) -> None:
    """Lose the half of what waits in the broker."""
    with _a_queue(rig) as queue:
        rig.broker.lose_some(queue)


def probe_lost(rig: Rig) -> None:
    """Lose messages, and the probe that would tell of it: the next one has to."""
    with _a_queue(rig) as queue:
        rig.wait(PROBED)
        rig.broker.lose_some(queue)
        rig.broker.lose_some(queue, b"django_celery_signals.probe")


def broker_repeats(rig: Rig) -> None:
    """Let the broker have everything twice, as brokers do that were not sure."""
    with _a_queue(rig) as queue:
        rig.broker.repeat(queue)


@contextmanager
def _a_queue(rig: Rig) -> Iterator[str]:
    """Stop the workers, so that something waits in the broker."""
    for role in rig.of("worker"):
        rig.signal(role, signal.SIGSTOP)
    try:
        time.sleep(1.5)
        yield "chaos"
    finally:
        for role in rig.of("worker"):
            rig.signal(role, signal.SIGCONT)


def slow(use: str, seconds: float) -> Callable[[Rig], None]:
    def hold_back(rig: Rig) -> None:
        """Hold back all that goes to and from a server."""
        rig.proxies[use].delay(seconds)
        rig.wait(5)
        rig.proxies[use].heal()

    return hold_back


def silent(use: str) -> Callable[[Rig], None]:
    def say_nothing(rig: Rig) -> None:
        """Let a server take everything and answer nothing."""
        rig.proxies[use].be_silent()
        rig.wait(6)
        rig.proxies[use].heal()

    return say_nothing


def cut(use: str) -> Callable[[Rig], None]:
    def break_off(rig: Rig) -> None:
        """Break off all connections to a server."""
        rig.proxies[use].cut()

    return break_off


# The database ----------------------------------------------------------------------------------------------------


def database_restarted(rig: Rig) -> None:
    """Kill the database, and start it again."""
    _database_down(rig, 5)


def database_away(rig: Rig) -> None:
    """Keep the database away for a minute, or two leases, under receivers that take longer than one."""
    (rig.points / LONG).touch()
    rig.wait(3)
    (rig.points / LONG).unlink()
    _database_down(rig, max(60, 2 * rig.options.lease))


def _database_down(rig: Rig, seconds: float) -> None:
    rig.servers["database"].stop()
    rig.wait(seconds)
    rig.servers["database"].start()


def commit_cut(rig: Rig) -> None:
    """Break off a connection right after its COMMIT was sent: nobody knows how that ended. Several times."""
    for _ in range(5):
        rig.proxies["database"].cut_after(b"COMMIT")
        rig.wait(0.4)
    rig.proxies["database"].heal()
