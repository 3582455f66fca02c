"""The verdict: the ledger and the database side by side, each difference in a column of its own."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .faults import Happened
from .ledger import Ledger

COLUMNS = (
    "lost",
    "ghosts",
    "duplicate_effects",
    "order_inversions",
    "overlaps",
    "stuck",
    "failed",
    "quarantined",
    "duplicate_runs",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How long the events that were open at a fault took after its end, in seconds."""

    count: int
    p50: float
    p99: float
    most: float


@dataclass(kw_only=True)
class Verdict:
    """The numbers of a cell."""

    committed: int = 0
    lost: int = 0  # committed, and its receiver has committed no effect, is not open and was not given up
    ghosts: int = 0  # rolled back, and a receiver was run for it
    duplicate_effects: int = 0  # effects of one event beyond the first
    order_inversions: int = 0  # effects of a key that stand behind one of a later place
    overlaps: int = 0  # effects of a key whose runs overlapped in time
    stuck: int = 0  # deliveries that are open at the end
    failed: int = 0  # given up for an error
    quarantined: int = 0  # given up because its workers died
    duplicate_runs: int = 0  # runs beyond the first and those that were asked for
    killed_runs: int = 0  # runs that began and were cut off: the bound of the duplicates
    faults: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, Recovery] = field(default_factory=dict)
    seconds: float = 0.0

    def bound(self, column: str) -> float | None:
        """Return the upper bound, at 95 %, of a rate of which nothing was seen: three of so many."""
        return 3 / self.committed if self.committed and not getattr(self, column) else None

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {**asdict(self), "bounds": {name: self.bound(name) for name in COLUMNS}}


def judge(ledger: Ledger, site: Site, happened: Sequence[Happened]) -> Verdict:
    """Compare."""
    effects = site.effects
    given_up, stuck = ([row for row in site.left if row["given_up"] is so] for so in (True, False))
    verdict = Verdict(committed=len(site.happenings), stuck=len(stuck))
    verdict.quarantined = sum(row["error"] == "WorkerLost" for row in given_up)
    verdict.failed = len(given_up) - verdict.quarantined

    counts = Counter(effect["number"] for effect in effects)
    alone = {number for number, row in site.happenings.items() if row["kind"] != "folded"}
    verdict.duplicate_effects = sum(count - 1 for count in counts.values()) + _twice_folded(site)
    excused = len(stuck) + len(given_up)  # of each, one column only
    verdict.lost = max(0, len(alone - counts.keys()) + _lost_folded(site) - excused)
    verdict.lost += len(ledger.committed.keys() - site.happenings.keys())  # by the database itself
    ran = {number for number, runs in ledger.runs.items() if runs}
    verdict.ghosts = len((ran | counts.keys()) - site.happenings.keys())
    verdict.order_inversions, verdict.overlaps = _order(effects)
    for runs in ledger.runs.values():
        asked = sum(run.raised for run in runs)
        verdict.duplicate_runs += max(0, len(runs) - asked - 1)
        verdict.killed_runs += sum(run.ended is None for run in runs)
    verdict.faults = dict(Counter(fault.name for fault in happened))
    verdict.recovery = _recoveries(ledger, happened, {n for n, row in site.happenings.items() if row["kind"] == "free"})
    return verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the database holds at the end."""

    happenings: dict[int, dict[str, Any]]
    effects: list[dict[str, Any]]  # in the order of their ids
    left: list[dict[str, Any]]  # what the system has not done: open, or given up


def _folded(site: Site) -> Iterable[int]:
    """Yield, for each key, how many more sendings its runs stood for than were committed."""
    sent = Counter(row["key"] for row in site.happenings.values() if row["kind"] == "folded")
    stood: Counter[int] = Counter()
    for effect in site.effects:
        if effect["kind"] == "folded":
            stood[effect["key"]] += effect["stands_for"]
    return (stood[key] - count for key, count in sent.items())


def _twice_folded(site: Site) -> int:
    return sum(max(0, more) for more in _folded(site))


def _lost_folded(site: Site) -> int:
    return sum(max(0, -more) for more in _folded(site))


def _order(effects: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return how many effects of a key are behind a later one, and how many overlapped the one before."""
    keys: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    seen: set[int] = set()
    for effect in effects:
        if effect["key"] is not None and effect["number"] not in seen:
            keys[effect["key"]].append(effect)
            seen.add(effect["number"])
    inversions = overlaps = 0
    for of_key in keys.values():
        highest, end = 0, 0.0
        for effect in of_key:
            if effect["place"] is not None:
                inversions += effect["place"] < highest
                highest = max(highest, effect["place"])
            overlaps += effect["began"] < end
            end = max(end, effect["ended"])
    return inversions, overlaps


def _recoveries(ledger: Ledger, happened: Sequence[Happened], free: set[int]) -> dict[str, Recovery]:
    """Return, for each fault, how long what was open at its beginning took after its end.

    Of those without an order: the others also wait for one another.
    """
    spans = sorted(
        (committed, max(run.ended for run in ledger.runs[number] if run.ended is not None))
        for number, committed in ledger.committed.items()
        if number in free and any(run.ended is not None and not run.raised for run in ledger.runs.get(number, ()))
    )
    taken: defaultdict[str, list[float]] = defaultdict(list)
    for fault in happened:
        taken[fault.name] += [
            max(0.0, ended - fault.ended)
            for committed, ended in spans
            if committed <= fault.ended and ended >= fault.began
        ]
    return {name: _quantiles(seconds) for name, seconds in sorted(taken.items()) if seconds}


def _quantiles(seconds: list[float]) -> Recovery:
    seconds.sort()

    def at(part: float) -> float:
        return round(seconds[min(len(seconds) - 1, math.ceil(part * len(seconds)) - 1)], 2)

    return Recovery(count=len(seconds), p50=at(0.5), p99=at(0.99), most=round(seconds[-1], 2))
