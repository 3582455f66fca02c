"""What receivers do, of whatever system: note the run past the database, misbehave now and then, commit one effect."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from celery import current_task
from django.conf import settings
from django.db.models import F, Max

from chaos.ledger import Writer
from chaos.points import LONG

from . import crashes
from .models import Effect, Happening, Tally

FOLDER = Path(settings.CHAOS.get("ledger", "."))
SEED, LEASE = settings.CHAOS.get("seed", 0), settings.CHAOS.get("lease", 30)
FAULTS = settings.CHAOS.get("receiver_faults", True)  # whether one of a hundred raises, and one kills its process
OFTEN_LONG = settings.CHAOS.get("long", 0.0)  # the part of the runs that take longer than a lease
ATOMIC = settings.CHAOS.get("atomic", True)
TALLIES = 20
LONGEST = 180.0  # seconds for which a receiver waits at most, while all are to take long


class Raised(Exception):
    """What a receiver raises for the sake of the test."""


@functools.cache
def ledger() -> Writer:
    """Return this process's file; a child of a worker has its own."""
    return Writer(FOLDER, "receiver")


os.register_at_fork(after_in_child=ledger.cache_clear)


def receive(number: int, instance: Callable[[], Happening], stands_for: int = 1) -> None:
    """Do the work.

    Args:
        number: of the event; noted before anything else.
        instance: returns what happened; called when the run is noted.
        stands_for: events, of a coalesced run.
    """
    run = f"{os.getpid()}-{time.time_ns()}"

    def note(word: str) -> None:
        ledger().write(word, number, _attempt(), run)

    note("start")
    happening = instance()
    chance = random.Random(f"{SEED} {number}")
    fate, pause, is_late = chance.random(), chance.random() * settings.CHAOS["linger"], chance.random() < 0.5
    crashes.reached("in the body")
    # Once it has worked, all is to be undone; without a transaction nothing is.
    late = ATOMIC and is_late
    if not late:
        _misbehave(number, fate, note)
    if 0.02 < fate < 0.02 + OFTEN_LONG:
        time.sleep(LEASE * 1.6)  # without a lock, or all others would soon wait for this one
    until = time.monotonic() + LONGEST
    while crashes.asked(LONG) and time.monotonic() < until:
        time.sleep(0.2)
    seen = None
    if happening.key is not None:
        seen = Effect.objects.filter(key=happening.key).aggregate(last=Max("place"))["last"] or 0
    Tally.objects.filter(pk=number % TALLIES + 1).update(runs=F("runs") + 1)
    crashes.reached("with a lock")
    time.sleep(pause)
    Effect.objects.create(
        number=number,
        run=run,
        kind=happening.kind,
        key=happening.key,
        place=happening.place,
        stands_for=stands_for,
        seen=seen,
    )
    if late:
        _misbehave(number, fate, note)
    note("end")
    crashes.reached("after the body")


def _misbehave(number: int, fate: float, note: Callable[[str], None]) -> None:
    """Raise once, or kill this process once, if that is the event's fate."""
    if not FAULTS or fate >= 0.02 or not _is_first(number):
        return
    if fate < 0.01:
        os.kill(os.getpid(), signal.SIGKILL)
    note("raised")
    raise Raised(f"{number} is to be run again")


def _attempt() -> int:
    return current_task.request.retries if current_task else 0  # django-domain-events runs no tasks


def _is_first(number: int) -> bool:
    try:
        (FOLDER / f"fate-{number}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
