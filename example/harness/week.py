"""The week: its rows, and a life for them, in which flights are saved, corrected, tagged, deleted and rolled back."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random

from django.db import transaction
from flights.models import Airport, Carrier, Flight, Tag

Row = dict[str, str]

DATA = Path(__file__).resolve().parent.parent / "data"
FLIGHTS = DATA / "flights-2013-02-05-to-11.csv.gz"
BATCH = 30  # flights saved in one transaction
EDITS = 5  # times that one flight of each batch is saved again
TAGS = ["snow", "vip", "night", "long-haul"]


class ChangedMind(Exception):
    """Raised to roll a transaction back."""


def read(limit: int) -> list[Row]:
    """Return the first rows of the week."""
    with gzip.open(FLIGHTS, "rt", newline="") as file:
        return list(islice(csv.DictReader(file), limit))


def prepare(rows: list[Row]) -> None:
    """Make what flights refer to; in bulk, which sends no signal."""
    names = dict(csv.reader((DATA / "airports.csv").read_text().splitlines()))
    codes = {code for row in rows for code in (row["origin"], row["dest"])}
    Airport.objects.bulk_create(Airport(code=code, name=names.get(code, "")) for code in sorted(codes))
    airlines = csv.DictReader((DATA / "airlines.csv").read_text().splitlines())
    Carrier.objects.bulk_create(Carrier(code=row["carrier"], name=row["name"]) for row in airlines)
    Tag.objects.bulk_create(Tag(name=name) for name in TAGS)


def flight_of(row: Row) -> Flight:
    """Return the unsaved flight of a row."""
    hour = datetime.fromisoformat(row["time_hour"])
    return Flight(
        carrier_id=row["carrier"],
        number=int(row["flight"]),
        tailnum="" if row["tailnum"] == "NA" else row["tailnum"],
        origin_id=row["origin"],
        dest_id=row["dest"],
        scheduled=hour + timedelta(minutes=int(row["minute"])),
        dep_delay=number(row["dep_delay"]),
        arr_delay=number(row["arr_delay"]),
        air_time=number(row["air_time"]),
        distance=int(row["distance"]),
    )


def number(text: str) -> int | None:
    """Return a number, or None where the source has none."""
    return None if text == "NA" else int(text)


class Week:
    """Plays the week; the same way each time."""

    def __init__(self, rows: list[Row]) -> None:
        """Take the rows to play."""
        self.rows = rows
        self.saved = 0  # calls of save() that were committed
        self._random = Random(2013)
        self._later: list[Callable[[list[Flight]], None]] = [
            self._correct,
            self._edit,
            self._tag,
            self._regret,
            self._delete,
            self._tag_from_the_other_side,
            self._regret_a_part,
        ]

    def play(self) -> Iterator[int]:
        """Save all flights, batch by batch, change some of each batch right after, and yield how many were loaded."""
        for start in range(0, len(self.rows), BATCH):
            flights = [flight_of(row) for row in self.rows[start : start + BATCH]]
            with transaction.atomic():
                self._save(flights)
            self.saved += len(flights)
            for change in self._later:
                change(flights)
            yield min(start + BATCH, len(self.rows))
        self._change_tags()

    def _save(self, flights: list[Flight]) -> None:
        for flight in flights:
            flight.save()

    def _some(self, flights: list[Flight], count: int) -> list[Flight]:
        return self._random.sample(flights, min(count, len(flights)))

    def _correct(self, flights: list[Flight]) -> None:
        """Correct a delay, send one flight elsewhere, give one to another carrier, and fix a registration."""
        delayed, diverted, sold, registered = self._random.choices(flights, k=4)
        airport, carrier = self._random.choice(flights).dest_id, self._random.choice(flights).carrier_id
        with transaction.atomic():
            delayed.dep_delay = delayed.arr_delay = self._random.randint(-10, 200)
            delayed.save(update_fields=["dep_delay", "arr_delay"])
            diverted.dest_id = airport
            diverted.save()
        sold.carrier_id = carrier
        sold.save()
        registered.tailnum = "N2013X"
        registered.save(update_fields=["tailnum"])
        self.saved += 4

    def _edit(self, flights: list[Flight]) -> None:
        """Save one flight again and again, each time with another registration and delay."""
        (flight,) = self._some(flights, 1)
        for number in range(EDITS):
            flight.tailnum, flight.arr_delay = f"N{number}EDIT", self._random.randint(-10, 100)
            flight.save()
            self.saved += 1

    def _tag(self, flights: list[Flight]) -> None:
        one, other = self._some(flights * 2, 2)
        names = self._random.sample(TAGS, 2)
        one.tags.add(*Tag.objects.filter(name__in=names))
        other.tags.set(Tag.objects.filter(name=names[0]))
        one.tags.remove(Tag.objects.get(name=names[1]))

    def _tag_from_the_other_side(self, flights: list[Flight]) -> None:
        alive = Flight.objects.filter(pk__in=[flight.pk for flight in self._some(flights, 3)])
        Tag.objects.get(name=self._random.choice(TAGS)).flights.add(*alive)

    def _delete(self, flights: list[Flight]) -> None:
        """Delete one flight by itself, and, now and then, several at once."""
        flights.pop(self._random.randrange(len(flights))).delete()
        if flights and self._random.random() < 0.1:
            Flight.objects.filter(pk__in=[flights.pop().pk for _ in range(min(3, len(flights)))]).delete()

    def _regret(self, flights: list[Flight]) -> None:
        """Save, tag and delete in a transaction that is rolled back: nobody must ever hear of it."""
        try:
            with transaction.atomic():
                self._mistake(flights)
                raise ChangedMind
        except ChangedMind:
            pass

    def _regret_a_part(self, flights: list[Flight]) -> None:
        """Roll back a savepoint in a transaction that is committed."""
        with transaction.atomic():
            self._regret(flights)
            for flight in Flight.objects.filter(pk__in=[flight.pk for flight in flights[:1]]):
                flight.air_time = (flight.air_time or 0) + 1
                flight.save()
                self.saved += 1

    def _mistake(self, flights: list[Flight]) -> None:
        wrong = flight_of(self.rows[0])
        wrong.arr_delay = 999
        wrong.save()
        wrong.tags.add(Tag.objects.get(name="vip"))
        for flight in Flight.objects.filter(pk__in=[flight.pk for flight in flights[:2]]):
            flight.delete()

    def _change_tags(self) -> None:
        """At the end, rename a tag, delete one, and take one from all its flights."""
        snow, night, vip = (Tag.objects.get(name=name) for name in ("snow", "night", "vip"))
        snow.name = "blizzard"
        snow.save()
        night.delete()
        vip.flights.clear()
