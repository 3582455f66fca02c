"""One round: faults after faults while senders send, then peace until nothing is open, then the verdict."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from . import ledger
from .faults import Happened, inject, names_for
from .rig import ROOT, Options, Rig, running
from .verdict import Site, Verdict, judge

START = 20  # events that are committed before the first fault
VISIBILITY = 30.0  # seconds after which Redis gives a message again that nobody has acknowledged

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
    verdict.seconds = round(time.monotonic() - began, 1)
    return verdict


def _torment(rig: Rig, show: Show) -> list[Happened]:
    """Inject faults, each as often as the others, until so many events are committed and each was there once."""
    names, happened, committed = names_for(rig), [], 0
    waiting: list[str] = []
    while committed < START:
        rig.keep_running()
        show("beginning", committed, rig.options.events)
        time.sleep(0.5)
        committed = ledger.committed_so_far(rig.ledger)
    while committed < rig.options.events or len(happened) < len(names):
        if not waiting:
            waiting = rig.chance.sample(names, len(names))
        name = waiting.pop()
        show(name, committed, rig.options.events)
        happened.append(inject(rig, name))
        rig.wait(rig.chance.uniform(*rig.options.calm))
        committed = ledger.committed_so_far(rig.ledger)
    return happened


def _end(rig: Rig, show: Show) -> None:
    """Heal all, stop sending, and wait until nothing is open."""
    rig.heal()
    rig.stop(*rig.of("sender"))
    patience = rig.options.patience or 4 * rig.options.lease + 60
    last, since = (-1, -1), time.monotonic()
    while time.monotonic() - since < patience:
        rig.keep_running()
        left, effects = _ask(rig, "count")
        show("settling", left, 0)
        # Of a peer's, what is no row any more may still be in the broker.
        if not left and (rig.options.system == "ours" or time.monotonic() - since > 2 * VISIBILITY):
            break
        if (left, effects) != last:
            last, since = (left, effects), time.monotonic()
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
