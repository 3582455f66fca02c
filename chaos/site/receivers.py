"""What receivers do, of whatever system: note the run past the database, misbehave now and then, commit one effect."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from pathlib import Path

from celery import current_task
from django.conf import settings
from django.db.models import F

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


class Raised(Exception):
    """What a receiver raises for the sake of the test."""


@functools.cache
def ledger() -> Writer:
    """Return this process's file; a child of a worker has its own."""
    return Writer(FOLDER, "receiver")


os.register_at_fork(after_in_child=ledger.cache_clear)


def receive(instance: Happening, stands_for: int = 1) -> None:
    """Do the work."""
    number, began = instance.pk, time.time()
    chance = random.Random(f"{SEED} {number}")
    fate, pause = chance.random(), chance.random() * settings.CHAOS["linger"]
    ledger().write("start", number, _attempt())
    crashes.reached("in the body")
    if FAULTS and fate < 0.02 and _is_first(number):
        if fate < 0.01:
            os.kill(os.getpid(), signal.SIGKILL)
        ledger().write("raised", number, _attempt())
        raise Raised(f"{number} is to be run again")
    if 0.02 < fate < 0.02 + OFTEN_LONG or crashes.asked(LONG):
        time.sleep(LEASE * 1.6)  # without a lock, or all others would soon wait for this one
    Tally.objects.filter(pk=number % TALLIES + 1).update(runs=F("runs") + 1)
    crashes.reached("with a lock")
    time.sleep(pause)
    Effect.objects.create(
        number=number,
        kind=instance.kind,
        key=instance.key,
        place=instance.place,
        stands_for=stands_for,
        began=began,
        ended=time.time(),
    )
    ledger().write("end", number, _attempt())
    crashes.reached("after the body")


def _attempt() -> int:
    return current_task.request.retries if current_task else 0  # django-domain-events runs no tasks


def _is_first(number: int) -> bool:
    try:
        (FOLDER / f"fate-{number}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
