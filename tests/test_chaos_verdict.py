"""The chaos rig's verdict: each fault in what was noted shows in its own column, and in no other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos.cells import ALL
from chaos.ledger import Ledger, Run, Writer, read
from chaos.recovery import Happened
from chaos.rig import Options, Rig, Role
from chaos.verdict import COLUMNS, Site, Verdict, judge

RUN = Run(name="1-1", attempt=0, started=10.0, ended=11.0)


def happening(number: int, kind: str = "free", key: int | None = None, place: int | None = None) -> dict[str, Any]:
    return {"number": number, "kind": kind, "key": key, "place": place}


def effect(number: int, **columns: Any) -> dict[str, Any]:
    row = {"number": number, "kind": "free", "key": None, "place": None, "stands_for": 1, "seen": None}
    return {**row, "run": f"run of {number}", **columns}


def left(number: int, *, given_up: bool = False, error: str = "") -> dict[str, Any]:
    return {"number": number, "given_up": given_up, "error": error}


def peace() -> tuple[Ledger, Site]:
    """Return what is noted when nothing goes wrong: some of each kind, and one that was rolled back."""
    rows = [
        *(happening(number) for number in (1, 2)),
        *(happening(2 + place, "ordered", 7, place) for place in (1, 2)),
        *(happening(4 + place, "folded", 9, place) for place in (1, 2, 3)),
    ]
    effects = [
        *(effect(number) for number in (1, 2)),
        *(effect(2 + place, kind="ordered", key=7, place=place, seen=place - 1) for place in (1, 2)),
        effect(5, kind="folded", key=9, place=1, seen=0),
        effect(7, kind="folded", key=9, place=3, stands_for=2, seen=1),
    ]
    ledger = Ledger(attempted=dict.fromkeys(range(1, 9), 8.0), rolled_back={8})
    ledger.committed = dict.fromkeys(range(1, 8), 9.0)
    for number in (1, 2, 3, 4, 5, 7):
        ledger.runs[number] = [replace(RUN, name=f"run of {number}")]
    return ledger, Site(happenings={row["number"]: row for row in rows}, effects=effects, left=[])


def found(verdict: Verdict) -> dict[str, int]:
    """Return the columns that are not zero."""
    return {name: count for name in COLUMNS if (count := getattr(verdict, name))}


def lose(ledger: Ledger, site: Site) -> None:
    _drop(site, 1)


def _drop(site: Site, number: int) -> None:
    site.effects[:] = [effect for effect in site.effects if effect["number"] != number]


def lose_folded(ledger: Ledger, site: Site) -> None:
    site.effects[-1]["stands_for"] = 1


def forget(ledger: Ledger, site: Site) -> None:
    del site.happenings[1]
    del ledger.runs[1]
    _drop(site, 1)


def haunt(ledger: Ledger, site: Site) -> None:
    ledger.runs[8] = [RUN]


def look_for(ledger: Ledger, site: Site) -> None:
    site.left.append(left(8, given_up=True, error="InstanceMissing"))


def say_and_do(ledger: Ledger, site: Site) -> None:
    ledger.rolled_back.add(1)
    del ledger.committed[1]


def repeat(ledger: Ledger, site: Site) -> None:
    site.effects.append(effect(2))


def repeat_folded(ledger: Ledger, site: Site) -> None:
    site.effects[-1]["stands_for"] = 3


def invert(ledger: Ledger, site: Site) -> None:
    site.effects[2]["seen"] = 2


def overlap(ledger: Ledger, site: Site) -> None:
    site.effects[3]["seen"] = 0


def stick(ledger: Ledger, site: Site) -> None:
    _drop(site, 2)
    site.left.append(left(2))


def stick_folded(ledger: Ledger, site: Site) -> None:
    """One delivery is left, into which another is folded."""
    _drop(site, 7)
    site.left.append(left(7))


def fail(ledger: Ledger, site: Site) -> None:
    _drop(site, 2)
    site.left.append(left(2, given_up=True, error="ValueError"))


def quarantine(ledger: Ledger, site: Site) -> None:
    _drop(site, 2)
    site.left.append(left(2, given_up=True, error="WorkerLost"))


def fail_late(ledger: Ledger, site: Site) -> None:
    """What is left has its effect: it excuses nothing else."""
    site.left.append(left(4, given_up=True, error="ValueError"))


def cut_off(ledger: Ledger, site: Site) -> None:
    ledger.runs[2].insert(0, replace(RUN, ended=None))


def run_again(ledger: Ledger, site: Site) -> None:
    ledger.runs[2].append(replace(RUN, ended=None))


FAULTS = {
    lose: {"lost": 1},
    lose_folded: {"lost": 1},
    forget: {"lost": 1},
    haunt: {"ghosts": 1},
    look_for: {"ghosts": 1},
    say_and_do: {"ghosts": 1},
    repeat: {"duplicate_effects": 1},
    repeat_folded: {"duplicate_effects": 1},
    invert: {"order_inversions": 1},
    overlap: {"overlaps": 1},
    stick: {"stuck": 1},
    stick_folded: {"stuck": 1},
    fail: {"failed": 1},
    quarantine: {"quarantined": 1},
    fail_late: {"failed": 1},
    cut_off: {"duplicate_runs": 1},
    run_again: {"duplicate_runs": 1, "needless_runs": 1},
}


def test_peace() -> None:
    """When nothing goes wrong every column is zero, with a bound on what was not seen."""
    verdict = judge(*peace(), [])

    assert {} == found(verdict)
    bounds = {column: verdict.bound(column) for column in ("lost", "ghosts", "overlaps")}
    assert (7, {"lost": 3 / 7, "ghosts": 3.0, "overlaps": 3 / 4}) == (verdict.committed, bounds)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault(fault: Any) -> None:
    """Whatever goes wrong is counted once, in its own column."""
    ledger, site = peace()
    fault(ledger, site)

    verdict = judge(ledger, site, [])

    assert FAULTS[fault] == found(verdict)
    assert [None] * len(FAULTS[fault]) == [verdict.bound(column) for column in FAULTS[fault]]


@pytest.mark.parametrize(
    "second", [fault for fault in FAULTS if fault not in (lose, forget, say_and_do)], ids=lambda fault: fault.__name__
)
def test_two_faults(second: Any) -> None:
    """Nothing that goes wrong hides what goes wrong elsewhere."""
    ledger, site = peace()
    second(ledger, site)
    lose(ledger, site)

    assert Counter({"lost": 1}) + Counter(FAULTS[second]) == Counter(found(judge(ledger, site, [])))


def test_duplicate_beside_a_loss_of_its_key() -> None:
    """A run that is counted twice makes up for none that is lost."""
    ledger, site = peace()
    site.effects.append(effect(5, kind="folded", key=9, place=1, seen=3))
    site.effects[5]["stands_for"] = 1

    assert {"lost": 1, "duplicate_effects": 1} == found(judge(ledger, site, []))


def test_what_was_asked_for() -> None:
    """A run that raised on purpose is no duplicate of the one that follows; one that was taken back is told apart."""
    ledger, site = peace()
    ledger.runs[1].insert(0, replace(RUN, raised=True))
    ledger.runs[2].insert(0, RUN)

    verdict = judge(ledger, site, [])

    assert {"duplicate_runs": 1} == found(verdict)
    assert (0, 1) == (verdict.killed_runs, verdict.undone_runs)


def fault(name: str, began: float, ended: float, **facts: Any) -> Happened:
    return Happened(name=name, began=began, ended=ended, **{"since": ended, **facts})


def test_recovery() -> None:
    """What was open at a fault is timed from its end; what was over before, came later, or has an order, is not."""
    ledger, site = peace()
    ledger.committed |= {1: 12.0}  # after the fault
    ledger.runs[2] = [Run(name="early", attempt=0, started=3.0, ended=4.0)]
    for number in (10, 11):
        site.happenings[number] = happening(number)
    del site.happenings[8 - 1]
    ledger.committed |= {10: 9.0}
    ledger.attempted |= {11: 9.0}  # its sender died after the commit
    ledger.runs |= {10: [Run(name="late", attempt=0, started=15.0, ended=17.0)], 11: [RUN]}

    verdict = judge(ledger, site, [fault("worker killed", 9.5, 10.0), fault("broker cut", 1.0, 20.0, hit=False)])

    recovery = verdict.recovery["worker killed"].open
    assert recovery is not None
    assert (2, 1.0, 7.0, 7.0) == (recovery.count, recovery.p50, recovery.p99, recovery.most)
    assert ({"worker killed": 1, "broker cut": 1}, {"worker killed": 1}) == (verdict.tried, verdict.faults)
    assert ["worker killed"] == list(verdict.recovery)


def test_recovery_of_what_was_cut_off() -> None:
    """Runs that a fault has cut off are timed by themselves, of whatever kind they are."""
    ledger, site = peace()
    ledger.runs[4].insert(0, Run(name="cut", attempt=0, started=5.0))
    ledger.runs[2].insert(0, Run(name="cut long ago", attempt=0, started=1.0))
    ledger.runs[2].insert(1, Run(name="and again", attempt=0, started=2.0))

    verdict = judge(ledger, site, [fault("worker killed", 5.5, 5.5), fault("worker stopped", 3.0, 6.0, since=3.0)])

    killed, stopped = (verdict.recovery[name].cut for name in ("worker killed", "worker stopped"))
    assert killed is not None
    assert stopped is not None
    assert (2, 5.5, 5.5) == (killed.count, killed.p50, killed.most)
    assert (2, 8.0) == (stopped.count, stopped.most)


def test_ledger(tmp_path: Path) -> None:
    """What was written is read; the half line of a process that was killed is none."""
    sender, receiver = Writer(tmp_path, "sender"), Writer(tmp_path, "receiver")
    for word, number in (("attempt", 1), ("committed", 1), ("attempt", 2), ("rolled_back", 2), ("attempt", 3)):
        sender.write(word, number, safely=True)
    for words in (
        *(("start", 1, 0, "a"), ("raised", 1, 0, "a"), ("start", 1, 1, "b"), ("end", 1, 1, "b")),
        *(("start", 4, 0, "c"), ("start", 5, 0, "d")),
    ):
        receiver.write(*words)
    with next(tmp_path.glob("receiver-*")).open("a") as file:
        file.write("end 5 0 d")

    ledger = read(tmp_path)

    assert ({1, 2, 3}, {1}, {2}) == (ledger.attempted.keys(), ledger.committed.keys(), ledger.rolled_back)
    runs = [(run.attempt, run.ended is not None, run.raised) for run in ledger.runs[1]]
    assert [(0, True, True), (1, True, False)] == runs
    assert [None, None] == [run.ended for number in (4, 5) for run in ledger.runs[number]]


def test_deaths(tmp_path: Path) -> None:
    """A process that ended by itself is told with its last words; those that Celery itself has ended are told apart."""
    rig = Rig(options=Options(cell=ALL[0], events=1, seed=1), folder=tmp_path)
    role = Role(name="worker-0", command=list)
    before = "Unrecoverable error: of one before it\n"
    celery = "CRITICAL: Unrecoverable error: ValueError('file descriptor is None')"
    verdict = Verdict()
    for text in ("", "ready\nthe end\n", f"{celery}\nThe relay has ended.\n"):
        rig.log(role).write_text(before + text)
        role.said = len(before)
        verdict.died.append(rig.last_words(role))

    assert ["", "the end", celery] == verdict.died
    assert (2, 1) == (verdict.deaths, verdict.celerys_deaths)
