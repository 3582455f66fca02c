"""How long what was open at a fault took."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .ledger import Run


@dataclass(kw_only=True)
class Happened:
    """A fault that was injected."""

    name: str
    began: float  # seconds of the clock
    ended: float
    since: float  # from when on recovery counts: the beginning, where nothing has to come back first
    hit: bool = True  # whether it met anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How long events took after a fault, in seconds."""

    open: Spread | None  # what was committed and not done
    cut: Spread | None  # what was being run, and was cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The quantiles of some times, in seconds."""

    count: int
    p50: float
    p99: float
    most: float


def recoveries(
    runs: Mapping[int, Sequence[Run]],
    began: Mapping[int, float | None],
    happenings: Mapping[int, Mapping[str, object]],
    happened: Sequence[Happened],
) -> dict[str, Recovery]:
    """Return, for each kind of fault, how long its events took.

    Args:
        runs: of each event, in order.
        began: when it was committed or, if the sender could not note that, begun.
        happenings: the events. Of those that were open, only those without a key are timed: the others also wait for
            one another.
        happened: the faults.
    """
    done = {
        number: ends[-1]
        for number, of in runs.items()
        if (ends := [run.ended for run in of if run.ended is not None and not run.raised])
    }
    free = sorted(
        (at, done[number])
        for number, at in began.items()
        if at is not None and number in done and happenings[number]["kind"] == "free"
    )
    starts = [at for at, _ in free]
    open_: defaultdict[str, list[float]] = defaultdict(list)
    cut: defaultdict[str, list[float]] = defaultdict(list)
    for fault in happened:
        if not fault.hit:
            continue
        known = free[: bisect_right(starts, fault.ended)]
        open_[fault.name] += [max(0.0, end - fault.since) for _, end in known if end >= fault.began]
        cut[fault.name] += [
            max(0.0, done[number] - fault.since)
            for number, of in runs.items()
            if number in done and _cut_off(of, fault.began, fault.ended)
        ]
    names = sorted(open_.keys() | cut.keys())
    return {name: Recovery(open=_spread(open_[name]), cut=_spread(cut[name])) for name in names}


def _cut_off(runs: Sequence[Run], began: float, ended: float) -> bool:
    """Tell whether a run was cut off in a span of time: it began before its end, and the next one after its start."""
    return any(run.ended is None and run.started <= ended and after.started >= began for run, after in pairwise(runs))


def _spread(seconds: list[float]) -> Spread | None:
    if not seconds:
        return None
    seconds.sort()

    def at(part: float) -> float:
        return round(seconds[min(len(seconds) - 1, math.ceil(part * len(seconds)) - 1)], 2)

    return Spread(count=len(seconds), p50=at(0.5), p99=at(0.99), most=round(seconds[-1], 2))
