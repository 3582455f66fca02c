"""The faults, each from its beginning to its end; what comes of them is the verdict's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .points import RELAY, SENDER, TWICE, WORKER, arm, disarm, who
from .rig import Rig, Role

PATIENCE = 4.0  # seconds for a process to come to a crash point
PROBED = 14.0  # seconds after which a queue that stands still has been probed


@dataclass(kw_only=True)
class Happened:
    """A fault that was injected."""

    name: str
    began: float  # seconds of the clock
    ended: float


Fault = Callable[[Rig], None]


def inject(rig: Rig, name: str) -> Happened:
    """Do one."""
    began = time.time()
    FAULTS[name](rig)
    return Happened(name=name, began=began, ended=time.time())


# Killed ----------------------------------------------------------------------------------------------------------


def _kill(rig: Rig, kind: str) -> None:
    if roles := rig.of(kind):
        rig.signal(rig.chance.choice(roles), signal.SIGKILL)


def kill_sender(rig: Rig) -> None:
    """Kill a sender wherever it is."""
    _kill(rig, "sender")


def kill_relay(rig: Rig) -> None:
    """Kill a relay wherever it is."""
    _kill(rig, "relay")


def kill_worker(rig: Rig) -> None:
    """Kill a worker and its children, with all that they hold."""
    _kill(rig, "worker")


def kill_child(rig: Rig) -> None:
    """Kill one child of a worker, as the kernel does when memory is short."""
    if children := _children(rig.chance.choice(rig.of("worker"))):
        os.kill(rig.chance.choice(children), signal.SIGKILL)


def _children(role: Role) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(role.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def _die_at(point: str) -> Fault:
    def die(rig: Rig) -> None:
        """Let the next process that comes to a place in the code die there."""
        arm(rig.points, point, signal.SIGKILL)
        until = time.monotonic() + PATIENCE
        while who(rig.points, point) is None and time.monotonic() < until:
            rig.keep_running()
            time.sleep(0.05)
        disarm(rig.points, point)
        (rig.points / f"{point}.taken").unlink(missing_ok=True)

    return die


# Stopped ---------------------------------------------------------------------------------------------------------


def stop_worker(rig: Rig) -> None:
    """Stop a worker and its children past the lease, and let them go on."""
    _stop(rig, rig.chance.choice(rig.of("worker")), rig.options.lease + 3)


def stop_relay(rig: Rig) -> None:
    """Stop a relay past the time for which it has what it claimed, and let it go on."""
    _stop(rig, rig.chance.choice(rig.of("relay")), rig.options.lease + 3)


def _stop(rig: Rig, role: Role, seconds: float) -> None:
    rig.signal(role, signal.SIGSTOP)
    rig.wait(seconds)
    rig.signal(role, signal.SIGCONT)


def stop_with_a_lock(rig: Rig) -> None:
    """Stop one child of a worker, past the lease, while it has the lock of a row that others need."""
    point = "with a lock"
    arm(rig.points, point, signal.SIGSTOP)
    rig.wait(PATIENCE)
    if disarm(rig.points, point) or (pid := who(rig.points, point)) is None:
        return
    rig.wait(rig.options.lease + 3)
    os.kill(pid, signal.SIGCONT)
    (rig.points / f"{point}.taken").unlink(missing_ok=True)


def pause_before_commit(rig: Rig) -> None:
    """Stop a child of a worker for a second when it has completed a delivery and not committed. Several times."""
    point = "completed"
    for _ in range(4):
        arm(rig.points, point, signal.SIGSTOP)
        rig.wait(1)
        if not disarm(rig.points, point) and (pid := who(rig.points, point)) is not None:
            os.kill(pid, signal.SIGCONT)
        (rig.points / f"{point}.taken").unlink(missing_ok=True)


def rolling_restart(rig: Rig) -> None:
    """Restart every process, one after the other, as a deploy does."""
    for role in rig.roles:
        if role.is_running() and role.popen is not None:
            os.kill(role.pid, signal.SIGTERM)
            try:
                role.popen.wait(30)
            except subprocess.TimeoutExpired:
                rig.clear(role)
        rig.wait(0.5)


# The broker ------------------------------------------------------------------------------------------------------


def broker_away(rig: Rig) -> None:
    """Kill the broker, and start it again after some seconds, with what it had."""
    rig.servers["broker"].stop()
    rig.wait(6)
    rig.servers["broker"].start()


def broker_wiped(rig: Rig) -> None:
    """Lose all that the broker has."""
    rig.servers["broker"].wipe()  # type: ignore[attr-defined]


def broker_loses_some(rig: Rig) -> None:
    """Lose the half of what waits in the broker."""
    with _a_queue(rig) as queue:
        rig.servers["broker"].lose_some(queue)  # type: ignore[attr-defined]


def probe_lost(rig: Rig) -> None:
    """Lose messages, and the probe that would tell of it: the next one has to."""
    with _a_queue(rig) as queue:
        rig.wait(PROBED)
        rig.servers["broker"].lose_some(queue)  # type: ignore[attr-defined]
        rig.servers["broker"].lose_some(queue, b"django_celery_signals.probe")  # type: ignore[attr-defined]


def published_twice(rig: Rig) -> None:
    """Publish everything twice, as senders do that were not sure."""
    (rig.points / TWICE).touch()
    rig.wait(5)
    (rig.points / TWICE).unlink()


def broker_repeats(rig: Rig) -> None:
    """Let the broker have everything twice, as brokers do that were not sure."""
    with _a_queue(rig) as queue:
        rig.servers["broker"].repeat(queue)  # type: ignore[attr-defined]


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


def _slow(use: str, seconds: float) -> Fault:
    def slow(rig: Rig) -> None:
        """Hold back all that goes to and from a server."""
        rig.proxies[use].delay(seconds)
        rig.wait(5)
        rig.proxies[use].heal()

    return slow


def _silent(use: str) -> Fault:
    def silent(rig: Rig) -> None:
        """Let a server take everything and answer nothing."""
        rig.proxies[use].be_silent()
        rig.wait(6)
        rig.proxies[use].heal()

    return silent


def _cut(use: str) -> Fault:
    def cut(rig: Rig) -> None:
        """Break off all connections to a server."""
        rig.proxies[use].cut()

    return cut


# The database ----------------------------------------------------------------------------------------------------


def database_restarted(rig: Rig) -> None:
    """Kill the database, and start it again."""
    _database_down(rig, 5)


def database_away(rig: Rig) -> None:
    """Keep the database away for two leases, with receivers under way."""
    _database_down(rig, 2 * rig.options.lease)


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


def late_commit(rig: Rig) -> None:
    """Let a transaction on the busy key commit late."""
    number = str(rig.next_incarnation() << 32)
    late = Role(name=f"late-{number}", command=lambda _: rig.python("-m", "chaos.site.roles", "late", number, "3"))
    rig.roles.append(late)
    rig.start(late)
    late.is_wanted = False  # a second time
    rig.wait(5)


EVERYWHERE: dict[str, Fault] = {
    "sender killed": kill_sender,
    "relay killed": kill_relay,
    "worker killed": kill_worker,
    "child killed": kill_child,
    **{f"died {point}": _die_at(point) for point in (*SENDER, *RELAY, *WORKER)},
    "worker stopped": stop_worker,
    "relay stopped": stop_relay,
    "paused before commit": pause_before_commit,
    "rolling restart": rolling_restart,
    "broker away": broker_away,
    "broker wiped": broker_wiped,
    "broker lost the half": broker_loses_some,
    "probe lost": probe_lost,
    "published twice": published_twice,
    "broker repeated": broker_repeats,
    "broker cut": _cut("broker"),
    "broker slow": _slow("broker", 0.05),
    "broker silent": _silent("broker"),
}
#: What needs a server, or several writers.
SERVED: dict[str, Fault] = {
    "stopped with a lock": stop_with_a_lock,
    "database restarted": database_restarted,
    "database away": database_away,
    "database cut": _cut("database"),
    "commit cut": commit_cut,
    "database slow": _slow("database", 0.01),
    "database silent": _silent("database"),
    "late commit": late_commit,
}
#: What needs to know nothing of the system.
PEERS = (
    *("sender killed", "relay killed", "worker killed", "child killed", "worker stopped", "rolling restart"),
    *("broker away", "broker wiped", "broker lost the half", "broker cut", "broker slow", "broker silent"),
    *("database restarted", "database cut", "commit cut", "database slow", "database silent"),
)
#: A round of a minute.
SHORT = (
    *("sender killed", "worker killed", "died published", "died before the next", "worker stopped"),
    *("broker wiped", "published twice", "commit cut", "database restarted", "late commit"),
)
#: Only when asked for.
FAULTS = EVERYWHERE | SERVED | {"nothing": lambda rig: None}


def names_for(rig: Rig) -> list[str]:
    """Return the faults that a cell can have."""
    if rig.options.faults:
        return list(rig.options.faults)
    if rig.options.system != "ours":  # the places are in this library's code
        return list(PEERS)
    return [*EVERYWHERE, *(SERVED if "database" in rig.servers else ())]
