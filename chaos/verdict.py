"""The verdict: the ledger and the database side by side, each difference in a column of its own."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .ledger import Ledger
from .recovery import Happened, Recovery, recoveries

COLUMNS = (
    "lost",
    "ghosts",
    "duplicate_effects",
    "order_inversions",
    "overlaps",
    "stuck",
    "failed",
    "quarantined",
    "needless_runs",
    "duplicate_runs",
)

#: The last words of a worker that Celery itself has ended: it found the broker again just when a child had died, and
#: asked for the file that was the way to it. https://github.com/celery/celery/issues/9250 and, for the words since
#: kombu 5.7, https://github.com/celery/kombu/pull/2623
CELERYS_OWN = re.compile(r"Unrecoverable error: .*(file descriptor is None|no attribute 'fileno')")


@dataclass(kw_only=True)
class Verdict:
    """The numbers of a cell."""

    committed: int = 0
    lost: int = 0  # committed, and its receiver has committed no effect, is not open and was not given up
    ghosts: int = 0  # rolled back, and a receiver was run for it, or looked for it
    duplicate_effects: int = 0  # effects of one event beyond the first
    order_inversions: int = 0  # runs of a key that began when a later one was done
    overlaps: int = 0  # runs of a key that began when the one before was not done
    stuck: int = 0  # deliveries that are open at the end
    failed: int = 0  # given up for an error
    quarantined: int = 0  # given up because its workers died
    needless_runs: int = 0  # runs that began when the event's effect was there
    duplicate_runs: int = 0  # runs beyond the first and those that were asked for
    killed_runs: int = 0  # runs that began and were cut off
    undone_runs: int = 0  # runs that came to their end, and what they did was taken back
    died: list[str] = field(default_factory=list)  # processes that nobody ended, with exit code or minus the signal
    tried: dict[str, int] = field(default_factory=dict)  # faults, whether or not they met anything
    faults: dict[str, int] = field(default_factory=dict)  # those that did
    of: dict[str, int] = field(default_factory=dict)  # how many could have been counted in a column
    recovery: dict[str, Recovery] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def deaths(self) -> int:
        """How many processes ended though nobody had ended them, nor Celery."""
        return sum(CELERYS_OWN.search(words) is None for words in self.died)

    @property
    def celerys_deaths(self) -> int:
        """How many workers Celery has ended by a fault of its own."""
        return len(self.died) - self.deaths

    def bound(self, column: str) -> float | None:
        """Return the upper bound, at 95 %, of a rate of which nothing was seen: three of so many."""
        many = self.of.get(column, self.committed)
        return 3 / many if many and not getattr(self, column) else None

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {**asdict(self), "bounds": {name: self.bound(name) for name in COLUMNS}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the database holds at the end."""

    happenings: dict[int, dict[str, Any]]
    effects: list[dict[str, Any]]  # in the order of their ids
    left: list[dict[str, Any]]  # what the system has not done: open, or given up


def judge(ledger: Ledger, site: Site, happened: Sequence[Happened]) -> Verdict:
    """Compare."""
    verdict = Verdict(committed=len(site.happenings))
    verdict.of = {"ghosts": len(ledger.attempted.keys() - site.happenings.keys())}
    _left(verdict, site)
    _effects(verdict, ledger, site)
    _ghosts(verdict, ledger, site)
    _order(verdict, site)
    _runs(verdict, ledger, site)
    verdict.tried = dict(Counter(fault.name for fault in happened))
    verdict.faults = dict(Counter(fault.name for fault in happened if fault.hit))
    began = {number: ledger.committed.get(number, ledger.attempted.get(number)) for number in site.happenings}
    verdict.recovery = recoveries(ledger.runs, began, site.happenings, happened)
    return verdict


def _left(verdict: Verdict, site: Site) -> None:
    left = [row for row in site.left if row["number"] in site.happenings]  # the others are ghosts
    given_up = [row["error"] for row in left if row["given_up"]]
    verdict.stuck = len(left) - len(given_up)
    verdict.quarantined = given_up.count("WorkerLost")
    verdict.failed = len(given_up) - verdict.quarantined


def _effects(verdict: Verdict, ledger: Ledger, site: Site) -> None:
    """Count what has no effect, and what has several."""
    left = {row["number"] for row in site.left}  # of each, one column only
    folded = {number for number, row in site.happenings.items() if row["kind"] == "folded"}
    counts = Counter(effect["number"] for effect in site.effects if effect["kind"] != "folded")
    verdict.duplicate_effects = sum(count - 1 for count in counts.values())
    verdict.lost = len(site.happenings.keys() - folded - counts.keys() - left)
    verdict.lost += len(ledger.committed.keys() - site.happenings.keys())  # by the database itself
    places, done = _by_key(site.happenings[number] for number in folded), _by_key(_of_kind(site, "folded"))
    for key, rows in places.items():
        covered = Counter(place for effect in done[key] for place in _covers(effect))
        verdict.duplicate_effects += sum(count - 1 for count in covered.values())
        missing = {row["place"] for row in rows} - covered.keys()
        verdict.lost += len(missing - _excused(missing, [row["place"] for row in rows if row["number"] in left]))


def _covers(effect: dict[str, Any]) -> range:
    """Return the places that a coalesced run stands for: its own, and those before it."""
    return range(effect["place"] - effect["stands_for"] + 1, effect["place"] + 1)


def _excused(missing: set[int], left: Sequence[int]) -> set[int]:
    """Return which of the places without an effect are those of deliveries that are left, or folded into them."""
    excused = set()
    for place in left:
        while place in missing:
            excused.add(place)
            place -= 1
    return excused


def _ghosts(verdict: Verdict, ledger: Ledger, site: Site) -> None:
    """Count what was never committed, and has been seen; what the ledger knows better is counted with it."""
    ran = {number for number, runs in ledger.runs.items() if runs}
    seen = ran | {row["number"] for row in (*site.effects, *site.left)}
    verdict.ghosts = len(seen - site.happenings.keys()) + len(ledger.rolled_back & site.happenings.keys())


def _order(verdict: Verdict, site: Site) -> None:
    """Compare what each run of a key saw when it began with the one before it: that, and nothing else."""
    keyed = _by_key(effect for effect in site.effects if effect["place"] is not None)
    for effects in keyed.values():
        first = {effect["place"]: effect for effect in reversed(effects)}  # of several of one event
        last = 0
        for place, effect in sorted(first.items()):
            verdict.order_inversions += effect["seen"] > place
            verdict.overlaps += effect["seen"] < last
            last = place
    verdict.of |= dict.fromkeys(("order_inversions", "overlaps"), sum(map(len, keyed.values())))


def _runs(verdict: Verdict, ledger: Ledger, site: Site) -> None:
    """Count the runs that were not needed, and say why they came."""
    kept = {effect["run"] for effect in site.effects}
    for runs in ledger.runs.values():
        asked = sum(run.raised for run in runs)
        verdict.duplicate_runs += max(0, len(runs) - asked - 1)
        verdict.needless_runs += sum(run.name in kept for run in runs[:-1])
        verdict.killed_runs += sum(run.ended is None for run in runs)
        verdict.undone_runs += sum(run.ended is not None and not run.raised and run.name not in kept for run in runs)


def _of_kind(site: Site, kind: str) -> Iterator[dict[str, Any]]:
    return (effect for effect in site.effects if effect["kind"] == kind)


def _by_key(rows: Any) -> defaultdict[int, list[dict[str, Any]]]:
    keys: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["key"] is not None:
            keys[row["key"]].append(row)
    return keys
