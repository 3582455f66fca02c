"""Crash points: named places in the library's code at which a process of a test's kills or stops itself, once.

Only processes that a test has started have them: they import :mod:`tests.durable_roles`, which calls ``install()``.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django_celery_signals import dispatch, execution
from django_celery_signals.durable import bulk
from django_celery_signals.durable.deliveries import DeliveryQuerySet
from django_celery_signals.durable.hold import Held
from django_celery_signals.durable.turns import TurnQuerySet
from tests.waiting import wait_until

VARIABLE = "DCS_TESTS_CRASHES"  # has the plan, in the environment of those processes

SENDER = ("inserted", "committed", "handed over")
RELAY = ("claimed", "halfway", "published", "marked")
WORKER = ("opened", "in the body", "after the body", "completed", "over")
TURN_TAKEN, TURN_PASSED = "turn taken", "turn passed"  # by a sender, by a worker: committed, but not yet published


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashes:
    """Which points a process dies or stops at, and the files that say that it has done so."""

    folder: Path
    points: Sequence[str]
    by: signal.Signals = signal.SIGKILL

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to crash here."""
        self.folder.mkdir(exist_ok=True)
        plan = {"folder": str(self.folder), "points": list(self.points), "by": self.by.value}
        return {VARIABLE: json.dumps(plan)}

    def happened(self) -> dict[str, int]:
        """Return the ids of the processes that have crashed, by the place: the point, and who was there if many are."""
        files = self.folder.glob("*") if self.folder.exists() else []
        return {file.name: int(text) for file in files if (text := file.read_text())}

    def wait_for(self, *places: str, timeout: float = 30) -> None:
        """Return as soon as processes have crashed at these places."""
        wait_until(lambda: set(places) <= self.happened().keys(), timeout=timeout, what=f"crashes {', '.join(places)}")

    def resume(self) -> None:
        """Let go on what has stopped."""
        for pid in self.happened().values():
            os.kill(pid, signal.SIGCONT)


def reached(point: str, held: Held | None = None) -> None:
    """Crash, if the plan says so and nobody has crashed here before.

    Args:
        point: where the process is.
        held: the delivery that is under way; only that of an event that names the point crashes, once per receiver.
    """
    plan = json.loads(os.environ.get(VARIABLE, "{}"))
    if point not in plan.get("points", ()) or (held is not None and f'"{point}"' not in held.known.payload):
        return
    place = point if held is None else f"{held.task.name.rpartition('.')[2]} {point}"
    try:
        with (Path(plan["folder"]) / place).open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return
    signal.pthread_kill(threading.get_ident(), plan["by"])  # the whole process; in this thread at once
    while plan["by"] == signal.SIGKILL:
        time.sleep(1)


def install() -> None:
    """Put the points into the library's functions."""
    _after(dispatch, "insert", "inserted")
    _around(dispatch, "publish_or_leave", "committed", "handed over")
    _after(DeliveryQuerySet, "claim", "claimed", only_if=lambda claimed: claimed.rows)
    _after(bulk, "apply", "halfway")
    _after(bulk.Bulk, "publish", "published")
    _after(DeliveryQuerySet, "mark", "marked")
    _after(TurnQuerySet, "take_turn", TURN_TAKEN, only_if=bool)
    _after(TurnQuerySet, "pass_turn", TURN_PASSED, only_if=lambda row: row is not None)
    _after(execution, "opened", "opened", only_if=bool, held_of=lambda args, result: result)
    _around(Held, "complete", "after the body", "completed", held_of=lambda args, result: args[0])
    _after(execution, "_run", "over", held_of=lambda args, result: args[3])


def _nobody(args: Any, result: Any) -> None:
    return None


def _after(
    owner: Any,
    name: str,
    point: str,
    *,
    only_if: Callable[[Any], Any] = lambda result: True,
    held_of: Callable[[Any, Any], Any] = _nobody,
) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if only_if(result):
            reached(point, held_of(args, result))
        return result

    setattr(owner, name, wrapper)


def _around(owner: Any, name: str, before: str, after: str, *, held_of: Callable[[Any, Any], Any] = _nobody) -> None:
    _after(owner, name, after, held_of=held_of)
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        reached(before, held_of(args, None))
        return original(*args, **kwargs)

    setattr(owner, name, wrapper)
