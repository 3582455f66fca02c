"""What is read of the table of minutes: figures over time, and rates of the last minutes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db.models import F, Max, Sum

from . import table

MOST_POINTS = 500  # more than that nobody sees on a screen
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440)  # minutes that people count in


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What happened: sums, or rates per minute."""

    sent: float = 0
    succeeded: float = 0
    failed: float = 0
    retried: float = 0
    discarded: float = 0
    runtime: float = 0.0  # seconds, of the runs that succeeded; each of several run at once has the time of all


@dataclass(frozen=True, slots=True, kw_only=True)
class Point(Figures):
    """The sums of some minutes, and the highest of what was noted in them."""

    at: datetime  # when they begin, in UTC
    lag: float | None = None  # seconds; None: nobody noted it, or it is of one receiver
    waiting: int | None = None  # the same


def series(
    using: str, since: datetime, until: datetime, receiver: str | None = None, step_minutes: int = 1
) -> list[Point]:
    """Return the figures of a time, in steps; one query finds them by their key.

    Args:
        using: alias of the database.
        since: the first moment; the step that it is in is the first.
        until: the moment after the last; the step that is before it is the last.
        receiver: name of the task; of all receivers unless told.
        step_minutes: minutes of each point.

    Raises:
        ValueError: for a step below 1, or for more than ``MOST_POINTS`` points.
    """
    if step_minutes < 1:
        raise ValueError(f"series: step_minutes={step_minutes!r} must be at least 1.")
    first = math.floor(since.timestamp() / 60) // step_minutes * step_minutes
    starts = range(first, math.ceil(until.timestamp() / 60), step_minutes)
    if len(starts) > MOST_POINTS:
        raise ValueError(
            f"series: from {since} to {until} there are {len(starts)} steps of {step_minutes} minutes, more than "
            f"{MOST_POINTS}. step_for() returns a step that fits."
        )
    rows = table.minutes(using).filter(
        receiver=receiver or table.EVERY_RECEIVER, minute__gte=first, minute__lt=starts.stop
    )
    found = _summed(rows.annotate(start=F("minute") - F("minute") % step_minutes), "start", table.SUMS, table.GAUGES)
    return [Point(at=datetime.fromtimestamp(start * 60, UTC), **found.get(start, {})) for start in starts]


def _summed(rows: Any, by: str, sums: Sequence[str], gauges: Sequence[str] = ()) -> dict[Any, dict[str, Any]]:
    """Return sums, and the highest of what is no sum, by the value of a column."""
    wanted = {f"{name}_": Sum(name) for name in sums} | {f"{name}_": Max(name) for name in gauges}
    found = rows.order_by().values(by).annotate(**wanted)
    return {row[by]: {name: row[f"{name}_"] for name in (*sums, *gauges)} for row in found}


def step_for(since: datetime, until: datetime) -> int:
    """Return the shortest step, of those that people count in, by which a time has few enough points."""
    wanted = (until - since).total_seconds() / 60 / (MOST_POINTS - 1)
    return next((step for step in STEPS if step >= wanted), math.ceil(wanted / STEPS[-1]) * STEPS[-1])


def rates(using: str, minutes: int = 5) -> dict[str, Figures]:
    """Return the figures per minute of each receiver that had any, and of all as that of the empty name.

    Args:
        using: alias of the database.
        minutes: of how many minutes, before the one that it is, which is not over.

    Raises:
        ValueError: for less than one minute.
    """
    if minutes < 1:
        raise ValueError(f"rates: minutes={minutes!r} must be at least 1.")
    now = table.this_minute()
    rows = table.minutes(using).filter(minute__gte=now - minutes, minute__lt=now)
    found = _summed(rows, "receiver", table.SUMS)
    return {
        receiver: Figures(**{name: value / minutes for name, value in sums.items()}) for receiver, sums in found.items()
    }
