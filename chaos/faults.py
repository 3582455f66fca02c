"""The faults, each from its beginning to its end; what comes of them is the verdict's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from . import outages
from .points import RELAY, SENDER, TWICE, WORKER, arm, disarm, who
from .rig import Rig, Role

PATIENCE = 4.0  # seconds for a process to come to a crash point


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


def storm(rig: Rig) -> None:
    """Kill one process after the other, every one to three seconds."""
    for _ in range(8):
        _kill(rig, rig.chance.choice(("sender", "relay", "worker")))
        rig.wait(rig.chance.uniform(1, 3))


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


# Sent ----------------------------------------------------------------------------------------------------------------


def published_twice(rig: Rig) -> None:
    """Publish everything twice, as senders do that were not sure."""
    (rig.points / TWICE).touch()
    rig.wait(5)
    (rig.points / TWICE).unlink()


def late_commit(rig: Rig) -> None:
    """Let a transaction on the busy key commit late."""
    number = str(rig.next_incarnation() << 32)
    late = Role(name=f"late-{number}", command=lambda: rig.python("-m", "chaos.site.roles", "late", number, "3"))
    rig.roles.append(late)
    rig.start(late)
    late.is_wanted = False  # a second time
    rig.wait(5)


EVERYWHERE: dict[str, Fault] = {
    "sender killed": kill_sender,
    "relay killed": kill_relay,
    "worker killed": kill_worker,
    "child killed": kill_child,
    "killed again and again": storm,
    **{f"died {point}": _die_at(point) for point in (*SENDER, *RELAY, *WORKER)},
    "worker stopped": stop_worker,
    "relay stopped": stop_relay,
    "paused before commit": pause_before_commit,
    "rolling restart": rolling_restart,
    "broker away": outages.broker_away,
    "broker wiped": outages.broker_wiped,
    "broker lost the half": outages.broker_loses_some,
    "probe lost": outages.probe_lost,
    "published twice": published_twice,
    "broker repeated": outages.broker_repeats,
    "broker cut": outages.cut("broker"),
    "broker slow": outages.slow("broker", 0.05),
    "broker silent": outages.silent("broker"),
}
#: What needs a server, or several writers.
SERVED: dict[str, Fault] = {
    "stopped with a lock": stop_with_a_lock,
    "database restarted": outages.database_restarted,
    "database away": outages.database_away,
    "database cut": outages.cut("database"),
    "commit cut": outages.commit_cut,
    "database slow": outages.slow("database", 0.01),
    "database silent": outages.silent("database"),
    "late commit": late_commit,
}
#: What needs to know nothing of the system.
PEERS = (
    *("sender killed", "relay killed", "worker killed", "child killed", "killed again and again"),
    *("worker stopped", "rolling restart"),
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
    """Return those of the faults asked for that a cell can have.

    Raises:
        ValueError: when there are none.
    """
    asked = rig.options.faults or tuple(EVERYWHERE | SERVED)
    able = [name for name in asked if name not in SERVED or "database" in rig.servers]
    if not able:
        raise ValueError(f"{rig.options.cell.name} has no server of a database for {', '.join(asked)}; choose others.")
    return able
