"""The chaos rig's verdict: each fault in what was noted shows in its own column, and in no other."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from chaos.faults import Happened
from chaos.ledger import Ledger, Run, Writer, read
from chaos.verdict import COLUMNS, Site, Verdict, judge

RUN = Run(pid=1, attempt=0, started=10.0, ended=11.0)


def happening(kind: str = "free", key: int | None = None, place: int | None = None) -> dict[str, Any]:
    return {"kind": kind, "key": key, "place": place}


def effect(number: int, **columns: Any) -> dict[str, Any]:
    row = {"number": number, "kind": "free", "key": None, "place": None, "stands_for": 1, "began": 10.0, "ended": 11.0}
    return {**row, **columns}


def peace() -> tuple[Ledger, Site]:
    """Return what is noted when nothing goes wrong: two of each kind, and one that was rolled back."""
    happenings = {
        1: happening(),
        2: happening(),
        3: happening("ordered", 7, 1),
        4: happening("ordered", 7, 2),
        5: happening("folded", 9, 1),
        6: happening("folded", 9, 2),
    }
    effects = [
        effect(1),
        effect(2),
        effect(3, kind="ordered", key=7, place=1),
        effect(4, kind="ordered", key=7, place=2, began=11.0, ended=12.0),
        effect(6, kind="folded", key=9, place=2, stands_for=2),
    ]
    ledger = Ledger(attempted={1, 2, 3, 4, 5, 6, 7}, rolled_back={7})
    ledger.committed = dict.fromkeys(happenings, 9.0)
    for number in (1, 2, 3, 4, 6):
        ledger.runs[number] = [RUN]
    return ledger, Site(happenings=happenings, effects=effects, left=[])


def found(verdict: Verdict) -> dict[str, int]:
    """Return the columns that are not zero."""
    return {name: count for name in COLUMNS if (count := getattr(verdict, name))}


def lose(ledger: Ledger, site: Site) -> None:
    site.effects.pop(0)


def lose_folded(ledger: Ledger, site: Site) -> None:
    site.effects[-1]["stands_for"] = 1


def forget(ledger: Ledger, site: Site) -> None:
    del site.happenings[1]
    del ledger.runs[1]
    site.effects.pop(0)


def haunt(ledger: Ledger, site: Site) -> None:
    ledger.runs[7] = [RUN]


def repeat(ledger: Ledger, site: Site) -> None:
    site.effects.append(effect(1))


def repeat_folded(ledger: Ledger, site: Site) -> None:
    site.effects[-1]["stands_for"] = 3


def invert(ledger: Ledger, site: Site) -> None:
    site.effects[2:4] = [
        {**site.effects[3], "began": 10.0, "ended": 11.0},
        {**site.effects[2], "began": 11.0, "ended": 12.0},
    ]


def overlap(ledger: Ledger, site: Site) -> None:
    site.effects[3]["began"] = 10.9


def stick(ledger: Ledger, site: Site) -> None:
    lose(ledger, site)
    site.left.append({"given_up": False, "error": None})


def fail(ledger: Ledger, site: Site) -> None:
    lose(ledger, site)
    site.left.append({"given_up": True, "error": "ValueError"})


def quarantine(ledger: Ledger, site: Site) -> None:
    lose(ledger, site)
    site.left.append({"given_up": True, "error": "WorkerLost"})


def run_again(ledger: Ledger, site: Site) -> None:
    ledger.runs[1] = [RUN, RUN]


FAULTS = {
    lose: "lost",
    lose_folded: "lost",
    forget: "lost",
    haunt: "ghosts",
    repeat: "duplicate_effects",
    repeat_folded: "duplicate_effects",
    invert: "order_inversions",
    overlap: "overlaps",
    stick: "stuck",
    fail: "failed",
    quarantine: "quarantined",
    run_again: "duplicate_runs",
}


def test_peace() -> None:
    """When nothing goes wrong every column is zero, with a bound on what was not seen."""
    verdict = judge(*peace(), [])

    assert {} == found(verdict)
    assert (6, 0.5) == (verdict.committed, verdict.bound("lost"))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault(fault: Any) -> None:
    """Whatever goes wrong is counted once, in its own column."""
    ledger, site = deepcopy(peace())
    fault(ledger, site)

    verdict = judge(ledger, site, [])

    assert {FAULTS[fault]: 1} == found(verdict)
    assert verdict.bound(FAULTS[fault]) is None


def test_what_was_asked_for() -> None:
    """A run that raised on purpose is no duplicate of the one that follows, nor is one that was cut off a success."""
    ledger, site = peace()
    ledger.runs[1] = [Run(pid=1, attempt=0, started=9.0, ended=9.5, raised=True), RUN]
    ledger.runs[2] = [Run(pid=1, attempt=0, started=9.0), RUN]

    verdict = judge(ledger, site, [])

    assert {"duplicate_runs": 1} == found(verdict)
    assert 1 == verdict.killed_runs


def test_recovery() -> None:
    """What was open at a fault is timed from its end; what was over before, came later, or has an order, is not."""
    ledger, site = peace()
    ledger.committed |= {1: 12.0}  # after the fault
    ledger.runs[2] = [Run(pid=1, attempt=0, started=3.0, ended=4.0)]  # before it
    ledger.runs[8] = [Run(pid=1, attempt=0, started=15.0, ended=17.0)]
    ledger.committed |= {8: 9.0, 9: 9.0}
    ledger.runs[9] = [RUN]
    site.happenings.update({8: happening(), 9: happening()})

    verdict = judge(ledger, site, [Happened(name="worker killed", began=9.5, ended=10.0)])

    recovery = verdict.recovery["worker killed"]
    assert (2, 1.0, 7.0, 7.0) == (recovery.count, recovery.p50, recovery.p99, recovery.most)
    assert {"worker killed": 1} == verdict.faults


def test_ledger(tmp_path: Path) -> None:
    """What was written is read; the half line of a process that was killed is none."""
    sender, receiver = Writer(tmp_path, "sender"), Writer(tmp_path, "receiver")
    for word, number in (("attempt", 1), ("committed", 1), ("attempt", 2), ("rolled_back", 2), ("attempt", 3)):
        sender.write(word, number, safely=True)
    for word, number, attempt in (
        *(("start", 1, 0), ("raised", 1, 0), ("start", 1, 1), ("end", 1, 1)),
        *(("start", 4, 0), ("start", 5, 0)),
    ):
        receiver.write(word, number, attempt)
    with next(tmp_path.glob("receiver-*")).open("a") as file:
        file.write("end 5")

    ledger = read(tmp_path)

    assert ({1, 2, 3}, {1}, {2}) == (ledger.attempted, ledger.committed.keys(), ledger.rolled_back)
    runs = [(run.attempt, run.ended is not None, run.raised) for run in ledger.runs[1]]
    assert [(0, True, True), (1, True, False)] == runs
    assert [None, None] == [run.ended for number in (4, 5) for run in ledger.runs[number]]
