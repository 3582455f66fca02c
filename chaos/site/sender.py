"""The sender, the late transaction, and the beginning."""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.db import Error, connection, transaction

from chaos.ledger import Writer

from .models import Counter, Happening, Tally
from .receivers import TALLIES
from .systems import system

logger = logging.getLogger("chaos.sender")

KEYS, FOLDED_KEYS = 1000, 100
MANY = 50  # happenings of an import


class Sender:
    """Commits happenings until it is told to stop, and notes each before and after."""

    def __init__(self, incarnation: int) -> None:
        """Begin; no other sender ever has the same incarnation."""
        self.ledger = Writer(Path(settings.CHAOS["ledger"]), "sender")
        self.chance = random.Random(f"{settings.CHAOS['seed']} {incarnation}")
        self.next = incarnation << 32
        self.stopped = False

    def run(self) -> None:
        """Send."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopped", True))
        print("sending", flush=True)
        count = 0
        while not self.stopped:
            began = time.monotonic()
            try:
                self.send()
                count += 1
                if count % 25 == 0:
                    self.let_them_catch_up()
            except Error as error:
                logger.warning("The sender met %r", error)
                connection.close()
                time.sleep(0.2)
            time.sleep(max(0.0, settings.CHAOS["pause"] - (time.monotonic() - began)))

    def let_them_catch_up(self) -> None:
        """Wait while more is open than the workers can do soon."""
        while not self.stopped and system().open_count() > settings.CHAOS["most_open"]:
            time.sleep(0.2)

    def send(self) -> None:
        """Commit one happening, or roll one back, in one of the ways of real projects."""
        way = self.chance.random()
        if way < 0.04:
            self.attempt(self.roll_back)
        elif way < 0.08:
            self.attempt(self.roll_back_a_part)
        elif way < 0.15:
            self.attempt(lambda number: self.save(number, "free", None))  # in autocommit
        elif way < 0.15 + settings.CHAOS["imports"]:
            self.import_many()
        else:
            self.attempt(self.commit)

    def import_many(self) -> None:
        """Save many in one transaction, as an import does, of which a savepoint with some is rolled back.

        In the order of their keys, or two imports would lock crosswise.
        """
        kinds = sorted((self.kind() for _ in range(MANY)), key=lambda kind: kind[1] or 0)
        numbers = range(self.next + 1, self.next + 1 + MANY)
        bad = range(self.chance.randrange(MANY), MANY)[: self.chance.choice((0, 0, 5))]
        self.next += MANY
        for number in numbers:
            self.ledger.write("attempt", number, safely=number == numbers[-1])
        rows = [(number, *kind) for number, kind in zip(numbers, kinds, strict=True)]
        with transaction.atomic(), system().together():
            for row in rows[: bad.start]:
                self.save(*row)
            with transaction.atomic():
                for row in rows[bad.start : bad.stop]:
                    self.save(*row)
                transaction.set_rollback(True)
            for row in rows[bad.stop :]:
                self.save(*row)
        for place, number in enumerate(numbers):
            word = "rolled_back" if place in bad else "committed"
            self.ledger.write(word, number, safely=number == numbers[-1])

    def attempt(self, act: Callable[[int], bool | None]) -> None:
        """Do something with a new number, and note what became of it."""
        self.next += 1
        number = self.next
        self.ledger.write("attempt", number, safely=True)
        done = act(number)
        self.ledger.write("rolled_back" if done is False else "committed", number, safely=True)

    def commit(self, number: int) -> None:
        """Save in a transaction."""
        with transaction.atomic():
            self.save(number, *self.kind())

    def roll_back(self, number: int) -> bool:
        """Save in a transaction that is rolled back."""
        with transaction.atomic():
            self.save(number, *self.kind())
            transaction.set_rollback(True)
        return False

    def roll_back_a_part(self, number: int) -> None:
        """Save in a transaction, of which a savepoint with another save is rolled back."""
        self.next += 1
        ghost = self.next
        self.ledger.write("attempt", ghost)
        with transaction.atomic():
            with transaction.atomic():
                self.save(ghost, "free", None)
                transaction.set_rollback(True)
            self.save(number, *self.kind())
        self.ledger.write("rolled_back", ghost)

    def kind(self) -> tuple[str, int | None]:
        """Return what it is, and its key."""
        kind = self.chance.choice(("free", "ordered", "folded")) if system().ORDERS else "free"
        if kind == "free":
            return kind, None
        busy = self.chance.random() < settings.CHAOS["busy"]
        if kind == "ordered":
            return kind, 0 if busy else self.chance.randrange(KEYS)
        return kind, KEYS + (0 if busy else self.chance.randrange(FOLDED_KEYS))

    def save(self, number: int, kind: str, key: int | None) -> None:
        """Save, at the next place of the key."""
        place = None
        if key is not None:
            counter = Counter.objects.select_for_update().get(key=key)
            counter.last += 1
            counter.save(update_fields=["last"])
            place = counter.last
        Happening.objects.create(number=number, kind=kind, key=key, place=place)


def late(number: int, seconds: float) -> None:
    """Send something free, and something on the busy key without its lock, and commit late: others overtake the ids."""

    ledger = Writer(Path(settings.CHAOS["ledger"]), "sender")
    numbers = (number, number + 1)
    for one in numbers:
        ledger.write("attempt", one, safely=True)
    with transaction.atomic():
        Happening.objects.create(number=number, kind="late", key=0)
        Happening.objects.create(number=number + 1, kind="free")
        time.sleep(seconds)
    for one in numbers:
        ledger.write("committed", one, safely=True)


def prepare() -> None:
    """Make the tables, and the rows that are there from the beginning."""

    call_command("migrate", run_syncdb=True, verbosity=0)
    Counter.objects.bulk_create([Counter(key=key) for key in range(KEYS + FOLDED_KEYS)])
    Tally.objects.bulk_create([Tally(pk=pk + 1) for pk in range(TALLIES)])
