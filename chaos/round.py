"""One round: faults after faults while senders send, then peace until nothing is open, then the verdict."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import ledger
from .faults import inject, names_for
from .recovery import Happened
from .rig import QUEUE, ROOT, Options, Rig, running
from .verdict import Site, Verdict, judge

START = 20  # events that are committed before the first fault
TRIES = 6  # times that a fault is injected which has met nothing yet
LONGEST = 1800.0  # seconds for a round to begin, and for it to end

Show = Callable[[str, int, int], None]  # what happens, how much is done, of how much


def play(options: Options, show: Show) -> Verdict:
    """Play a round, from the first server to the verdict.

    Args:
        options: what is asked for.
        show: told of the progress.
    """
    began = time.monotonic()
    with running(options) as rig:
        happened = _torment(rig, show)
        _end(rig, show)
        verdict = judge(ledger.read(rig.ledger), _site(rig), happened)
        verdict.died = rig.deaths
    verdict.seconds = round(time.monotonic() - began, 1)
    return verdict


def _torment(rig: Rig, show: Show) -> list[Happened]:
    """Inject faults, all about equally often, until so many events are committed and each has met something."""
    names, committed = names_for(rig), 0
    happened: list[Happened] = []
    waiting: list[str] = []
    until = time.monotonic() + LONGEST
    while committed < START:
        if time.monotonic() > until:
            raise TimeoutError(f"Nothing is committed; see the logs in {rig.folder}, with CHAOS_KEEP=1")
        rig.keep_running()
        show("beginning", committed, rig.options.events)
        time.sleep(0.5)
        committed = ledger.committed_so_far(rig.ledger)
    while True:
        if committed >= rig.options.events:  # what has met something need not come again
            names = [name for name in names if not _is_done(name, happened)]
            waiting = [name for name in waiting if name in names]
            if not names:
                return happened
        waiting = waiting or rig.chance.sample(names, len(names))
        name = waiting.pop()
        show(name, committed, rig.options.events)
        happened.append(inject(rig, name))
        rig.wait(rig.chance.uniform(*rig.options.calm))
        committed = ledger.committed_so_far(rig.ledger)


def _is_done(name: str, happened: Sequence[Happened]) -> bool:
    """Tell whether a fault has met something, or has had its tries."""
    hits = [fault.hit for fault in happened if fault.name == name]
    return any(hits) or len(hits) >= TRIES


def _end(rig: Rig, show: Show) -> None:
    """Heal all, stop sending, and wait until nothing is open, in the broker as well, or nothing happens any more."""
    rig.heal()
    rig.stop(*rig.of("sender"))
    patience = rig.options.patience or 4 * rig.options.lease + 60
    last, since = (-1, -1, -1), time.monotonic()
    until = since + LONGEST
    while time.monotonic() < min(since + patience, until):
        rig.keep_running()
        left, effects = _ask(rig, "count")
        waiting = rig.broker.waiting(QUEUE)
        show("settling", left, 0)
        if not left and not waiting:
            break
        if (left, effects, waiting) != last:
            last, since = (left, effects, waiting), time.monotonic()
        time.sleep(1)
    rig.stop(*rig.roles)


def _site(rig: Rig) -> Site:
    found = _ask(rig, "look")
    return Site(
        happenings={row["number"]: row for row in found["happenings"]},
        effects=found["effects"],
        left=found["left"],
    )


def _ask(rig: Rig, what: str) -> Any:
    """Ask the database, past the proxy, in a process that has the site's settings."""
    command, environment = rig.python("-m", "chaos.collect", what), rig.environment(directly=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, text=True)
    return json.loads(done.stdout)
