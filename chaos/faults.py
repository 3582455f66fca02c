"""The faults, each from its beginning to its end; what comes of them is the verdict's."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from . import outages
from .points import RELAY, SENDER, TWICE, WORKER, arm, disarm, who
from .recovery import Happened
from .rig import Rig, Role
from .servers import children

PATIENCE = 4.0  # seconds for a process to come to a crash point
LATE = 20.0  # seconds for the late transaction to begin and to end, on a machine that is busy
GRACE = 2.0  # seconds for which a relay of the library has what it has claimed

Fault = Callable[[Rig], bool]  # tells whether it met anything


def inject(rig: Rig, name: str) -> Happened:
    """Do one."""
    began = time.time()
    hit = FAULTS[name](rig)
    ended = time.time()
    return Happened(name=name, began=began, ended=ended, since=began if name in AT_ONCE else ended, hit=hit)


# Killed ----------------------------------------------------------------------------------------------------------


def _kill(kind: str) -> Fault:
    def kill(rig: Rig) -> bool:
        """Kill a process and its children, with all that they hold."""
        running = [role for role in rig.of(kind) if role.is_running()]
        if running:
            rig.signal(rig.chance.choice(running), signal.SIGKILL)
        return bool(running)

    return kill


def kill_child(rig: Rig) -> bool:
    """Kill one child of a worker, as the kernel does when memory is short."""
    found = children(rig.chance.choice(rig.of("worker")).pid)
    return bool(found) and _send(rig.chance.choice(found), signal.SIGKILL)


def storm(rig: Rig) -> bool:
    """Kill one process after the other, every one to three seconds."""
    hits = 0
    for _ in range(8):
        hits += _kill(rig.chance.choice(("sender", "relay", "worker")))(rig)
        rig.wait(rig.chance.uniform(1, 3))
    return hits > 0


def _send(pid: int, number: signal.Signals) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _die_at(point: str) -> Fault:
    def die(rig: Rig) -> bool:
        """Let the next process that comes to a place in the code die there."""
        return _meet(rig, point, signal.SIGKILL, PATIENCE) is not None

    return die


def _meet(rig: Rig, point: str, how: signal.Signals, seconds: float) -> int | None:
    """Wait for a process to die or stop at a point, and return which did."""
    arm(rig.points, point, how)
    until = time.monotonic() + seconds
    while who(rig.points, point) is None and time.monotonic() < until:
        rig.keep_running()
        time.sleep(0.05)
    return disarm(rig.points, point)


# Stopped ---------------------------------------------------------------------------------------------------------


def stop_worker(rig: Rig) -> bool:
    """Stop a worker and its children past the lease, and let them go on."""
    role = rig.chance.choice(rig.of("worker"))
    was_running = role.is_running()
    rig.signal(role, signal.SIGSTOP)
    rig.wait(rig.options.lease + 3)
    rig.signal(role, signal.SIGCONT)
    return was_running


def _stop_at(point: str, seconds: Callable[[Rig], float], patience: float = PATIENCE) -> Fault:
    def stop(rig: Rig) -> bool:
        """Stop the next process that comes to a place in the code, and let it go on."""
        if (pid := _meet(rig, point, signal.SIGSTOP, patience)) is None:
            return False
        rig.wait(seconds(rig))
        _send(pid, signal.SIGCONT)
        return True

    return stop


def pause_before_commit(rig: Rig) -> bool:
    """Stop a child of a worker for a second when it has completed a delivery and not committed. Several times."""
    pause = _stop_at("completed", lambda rig: 1.0, patience=1.0)
    return sum(pause(rig) for _ in range(4)) > 0


def rolling_restart(rig: Rig) -> bool:
    """Restart every process, one after the other, as a deploy does."""
    for role in rig.roles:
        rig.stop(role, timeout=30)
        role.is_wanted = True
        rig.wait(0.5)
    return True


# Sent ------------------------------------------------------------------------------------------------------------


def published_twice(rig: Rig) -> bool:
    """Publish everything twice, as senders do that were not sure."""
    (rig.points / TWICE).touch()
    rig.wait(5)
    (rig.points / TWICE).unlink()
    return True


def late_commit(rig: Rig) -> bool:
    """Let a transaction on the busy key commit late."""
    number = str(rig.next_incarnation() << 32)
    late = Role(name=f"late-{number}", command=lambda: rig.python("-m", "chaos.site.roles", "late", number, "3"))
    rig.start(late)
    until = time.monotonic() + LATE
    while late.is_running() and time.monotonic() < until:
        rig.wait(0.5)
    rig.clear(late)
    return late.ended() == 0


EVERYWHERE: dict[str, Fault] = {
    "sender killed": _kill("sender"),
    "relay killed": _kill("relay"),
    "worker killed": _kill("worker"),
    "child killed": kill_child,
    "killed again and again": storm,
    **{f"died {point}": _die_at(point) for point in (*SENDER, *RELAY, *WORKER)},
    "worker stopped": stop_worker,
    "stopped in the body": _stop_at("in the body", lambda rig: rig.options.lease + 3),
    "relay stopped": _stop_at("published", lambda rig: GRACE + 3),
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
    # Longer than the database lets a transaction do nothing: it takes the lock away.
    "stopped with a lock": _stop_at("with a lock", lambda rig: rig.idle + 3),
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
#: A round of a minute or two.
SHORT = (
    *("sender killed", "worker killed", "died published", "died before the next", "worker stopped"),
    *("broker wiped", "published twice", "commit cut", "database restarted", "late commit"),
)
FAULTS = EVERYWHERE | SERVED | {"nothing": lambda rig: True}  # the last only when asked for
#: What need not end before things can go on.
AT_ONCE = ("worker stopped", "stopped in the body", "relay stopped", "stopped with a lock", "paused before commit")
LOCKS = ("stopped with a lock",)  # without a transaction there is none


def names_for(rig: Rig) -> list[str]:
    """Return those of the faults asked for that a cell can have.

    Raises:
        ValueError: when there are none.
    """
    asked = rig.options.faults or tuple(EVERYWHERE | SERVED)
    able = [
        name
        for name in asked
        if (name not in SERVED or "database" in rig.servers) and (name not in LOCKS or rig.options.cell.atomic)
    ]
    if not able:
        raise ValueError(f"{rig.options.cell.name} cannot have {', '.join(asked)}: it has no server or no locks.")
    return able
