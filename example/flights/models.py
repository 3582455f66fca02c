"""Flights and tags, which people edit; and statistics, alerts, a search index and a log, which only receivers write.

A receiver's work is committed exactly once for each event, but perhaps late, and in another order than they were sent.
So what it writes never depends on the event alone: it locks the row it is going to write, reads the flight as it is
now, and writes what follows. Only the log's receiver is ordered: there, what the event says is what is to be written.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, TypeVar

from django.db import models

from django_celery_signals import Event

Row = TypeVar("Row", bound=models.Model)

LATE = 15  # minutes; the definition of the US Department of Transportation
ALERT = 120  # minutes
LOGGED = ["carrier", "number", "tailnum", "origin", "dest", "dep_delay", "arr_delay"]


class LockingQuerySet(models.QuerySet[Row]):
    """Verbs of the tables that only receivers write."""

    def locked(self, keys: Iterable[Any]) -> list[Row]:
        """Return the rows with these keys, made where they are missing, and keep others from them until we commit.

        The order is always the same, lest two workers wait for each other.
        """
        wanted = set(keys)
        rows = self._lock(wanted)
        if missing := wanted.difference(row.pk for row in rows):
            self.bulk_create([self.model(pk=key) for key in sorted(missing)], ignore_conflicts=True)
            rows = self._lock(wanted)
        return rows

    def _lock(self, keys: set[Any]) -> list[Row]:
        return list(self.select_for_update().filter(pk__in=keys).order_by("pk"))


class Airport(models.Model):
    """An airport."""

    code = models.CharField(max_length=3, primary_key=True)
    name = models.CharField(max_length=100, blank=True)

    def __str__(self) -> str:
        return f"{self.code} {self.name}".strip()


class Carrier(models.Model):
    """An airline."""

    code = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return f"{self.code} {self.name}"


class Tag(models.Model):
    """A word that people put on flights."""

    name = models.CharField(max_length=30, unique=True)

    def __str__(self) -> str:
        return self.name


class Flight(models.Model):
    """One planned flight out of New York, and what became of it."""

    carrier = models.ForeignKey(Carrier, models.PROTECT, related_name="flights")
    number = models.PositiveSmallIntegerField()
    tailnum = models.CharField(max_length=6, blank=True)
    origin = models.ForeignKey(Airport, models.PROTECT, related_name="departures")
    dest = models.ForeignKey(Airport, models.PROTECT, related_name="arrivals")
    scheduled = models.DateTimeField(help_text="When it was to leave.")
    dep_delay = models.SmallIntegerField(null=True, blank=True, help_text="Minutes; empty when it never left.")
    arr_delay = models.SmallIntegerField(
        null=True, blank=True, help_text="Minutes; empty when it did not arrive there."
    )
    air_time = models.PositiveSmallIntegerField(null=True, blank=True, help_text="Minutes.")
    distance = models.PositiveSmallIntegerField(help_text="Miles.")
    tags = models.ManyToManyField(Tag, blank=True, related_name="flights")

    def __str__(self) -> str:
        return f"{self.carrier_id} {self.number} {self.origin_id}-{self.dest_id}"

    @property
    def cancelled(self) -> bool:
        """Tell whether it never left."""
        return self.dep_delay is None


class Numbers(models.Model):
    """What is counted of flights."""

    flights = models.IntegerField(default=0)
    cancelled = models.IntegerField(default=0)
    late = models.IntegerField(default=0)
    delay_minutes = models.IntegerField(default=0)
    miles = models.IntegerField(default=0)

    NAMES = ("flights", "cancelled", "late", "delay_minutes", "miles")

    class Meta:
        abstract = True

    def numbers(self) -> dict[str, int]:
        """Return them by name."""
        return {name: getattr(self, name) for name in self.NAMES}


class StatisticsQuerySet(LockingQuerySet[Row]):
    """Verbs of the statistics."""

    def enter(self, differences: dict[str, Counter[str]]) -> None:
        """Add numbers, which may be negative, to the rows with these keys."""
        changed = {key: numbers for key, numbers in differences.items() if any(numbers.values())}
        for row in self.locked(changed):
            for name, number in changed[row.pk].items():
                setattr(row, name, getattr(row, name) + number)
            row.save()


class AirportStatistics(Numbers):
    """The flights from and to an airport."""

    airport = models.OneToOneField(Airport, models.CASCADE, primary_key=True, related_name="statistics")

    objects = StatisticsQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "airport statistics"

    def __str__(self) -> str:
        return f"{self.airport_id}: {self.flights} flights"


class CarrierStatistics(Numbers):
    """The flights of a carrier."""

    carrier = models.OneToOneField(Carrier, models.CASCADE, primary_key=True, related_name="statistics")

    objects = StatisticsQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "carrier statistics"

    def __str__(self) -> str:
        return f"{self.carrier_id}: {self.flights} flights"


class CountedFlightQuerySet(LockingQuerySet["CountedFlight"]):
    """Verbs of what has been counted."""

    def recount(self, flight_id: int) -> None:
        """Replace what was counted of a flight by what there is to count now; done twice, it changes nothing more."""
        for counted in self.locked([flight_id]):
            airports: defaultdict[str, Counter[str]] = defaultdict(Counter)
            carriers: defaultdict[str, Counter[str]] = defaultdict(Counter)
            counted.subtract_from(airports, carriers)
            counted.count(Flight.objects.filter(pk=flight_id).first())
            counted.add_to(airports, carriers)
            AirportStatistics.objects.enter(airports)
            CarrierStatistics.objects.enter(carriers)


class CountedFlight(Numbers):
    """What the statistics hold of one flight, and where."""

    flight_id = models.BigIntegerField(primary_key=True)
    carrier = models.CharField(max_length=2, blank=True)
    origin = models.CharField(max_length=3, blank=True)
    dest = models.CharField(max_length=3, blank=True)

    objects = CountedFlightQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.flight_id} counted for {self.carrier}, {self.origin} and {self.dest}"

    def add_to(self, airports: dict[str, Counter[str]], carriers: dict[str, Counter[str]]) -> None:
        """Add its numbers where they belong."""
        carriers[self.carrier].update(self.numbers())
        for airport in {self.origin, self.dest}:
            airports[airport].update(self.numbers())

    def subtract_from(self, airports: dict[str, Counter[str]], carriers: dict[str, Counter[str]]) -> None:
        """Take its numbers away from there."""
        carriers[self.carrier].subtract(self.numbers())
        for airport in {self.origin, self.dest}:
            airports[airport].subtract(self.numbers())

    def count(self, flight: Flight | None) -> None:
        """Hold a flight's numbers as they are now, or nothing more when it is gone."""
        if flight is None:
            self.flights = self.cancelled = self.late = self.delay_minutes = self.miles = 0
            type(self).objects.filter(pk=self.pk).delete()
            return
        self.carrier, self.origin, self.dest = flight.carrier_id, flight.origin_id, flight.dest_id
        self.flights, self.cancelled, self.late = 1, int(flight.cancelled), int((flight.arr_delay or 0) >= LATE)
        self.delay_minutes, self.miles = flight.arr_delay or 0, flight.distance
        self.save()


class DelayAlertQuerySet(models.QuerySet["DelayAlert"]):
    """Verbs of alerts."""

    def review(self, flight_id: int) -> None:
        """Raise, correct or take back the alert of a flight, as its delay is now."""
        flight = Flight.objects.select_for_update().filter(pk=flight_id).first()  # there may be no alert to lock
        if flight is None or (flight.arr_delay or 0) < ALERT:
            self.filter(pk=flight_id).delete()
        else:
            self.update_or_create(pk=flight_id, defaults={"minutes": flight.arr_delay})


class DelayAlert(models.Model):
    """A flight that arrived very late."""

    # Without a constraint: a cascade would make deleting a flight wait for a worker that waits for that very flight.
    flight = models.OneToOneField(
        Flight, models.DO_NOTHING, primary_key=True, db_constraint=False, related_name="alert"
    )
    minutes = models.SmallIntegerField()

    objects = DelayAlertQuerySet.as_manager()

    def __str__(self) -> str:
        return f"flight {self.flight_id}: {self.minutes} minutes"


class SearchEntryQuerySet(LockingQuerySet["SearchEntry"]):
    """Verbs of the search index."""

    def index(self, ids: Iterable[int]) -> None:
        """Write the entries of some flights, and remove those of flights that are gone."""
        entries = {entry.pk: entry for entry in self.locked(ids)}
        tags = held_tags(entries)
        for flight in Flight.objects.filter(pk__in=entries).select_related("carrier", "origin", "dest"):
            entry = entries.pop(flight.pk)
            entry.text = text_of(flight, tags[flight.pk])
            entry.save(update_fields=["text"])
        if entries:
            self.filter(pk__in=entries).delete()

    def holding(self, tag: str) -> list[int]:
        """Return the flights whose entry says that they have a tag."""
        return list(self.filter(text__contains=f"#{tag}").values_list("pk", flat=True))


def held_tags(flights: Iterable[int]) -> defaultdict[int, list[str]]:
    """Return the names of these flights' tags, and let nobody take one away until we commit.

    Else an entry written at the same moment, and not yet to be seen, would escape the receivers that ask ``holding()``
    which flights had the tag.
    """
    rows = Flight.tags.through.objects.select_for_update().filter(flight__in=flights).order_by("pk")
    pairs = list(rows.values_list("flight", "tag"))
    names = dict(Tag.objects.values_list("pk", "name")) if pairs else {}
    tags: defaultdict[int, list[str]] = defaultdict(list)
    for flight, tag in pairs:
        tags[flight].append(f"#{names[tag]}")
    return tags


class SearchEntry(models.Model):
    """What a flight is found by; it refers to the flight by number only, as a search engine's entry would."""

    flight_id = models.BigIntegerField(primary_key=True)
    text = models.TextField(default="")

    objects = SearchEntryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "search entries"

    def __str__(self) -> str:
        return self.text


def text_of(flight: Flight, tags: list[str]) -> str:
    """Return the words of a flight's search entry."""
    words = (flight.carrier, flight.number, flight.tailnum, flight.origin, flight.dest, *sorted(tags))
    return " ".join(str(word) for word in words if word)


class LogEntryQuerySet(models.QuerySet["LogEntry"]):
    """Verbs of the log."""

    def add(self, flight: Flight, event: Event) -> None:
        """Write what an event says of a flight, behind what is written of it; no lock is needed to be the only one."""
        self.create(flight_id=flight.pk, event_id=event.id, changes=event.changes)

    def replayed(self) -> dict[int, dict[str, Any]]:
        """Return each flight as its entries tell it, from the first to the last; without those that are deleted."""
        told: dict[int, dict[str, Any]] = {}
        for flight, changes in self.order_by("pk").values_list("flight_id", "changes"):
            if changes:
                told.setdefault(flight, {}).update({name: new for name, (_, new) in changes.items()})
            else:
                told.pop(flight, None)
        return told


class LogEntry(models.Model):
    """One thing that happened to a flight. Read one after another, its entries tell what became of it."""

    flight_id = models.BigIntegerField(db_index=True)
    event_id = models.CharField(max_length=36)
    changes = models.JSONField()  # name of a field -> old and new value; nothing: the flight was deleted

    objects = LogEntryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "log entries"

    def __str__(self) -> str:
        changes = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in self.changes.items())
        return f"flight {self.flight_id}: {changes or 'deleted'}"


class ReceiptQuerySet(models.QuerySet["Receipt"]):
    """Verbs of receipts."""

    def write(self, event: Event) -> None:
        """Note what a receiver has done, in the transaction in which it does it: both are committed, or neither is."""
        self.create(event_id=event.id, receiver=event.receiver, stands_for=1 + event.coalesced)


class Receipt(models.Model):
    """What a receiver did for one event; a second one of the same event would show that its work was done twice."""

    event_id = models.CharField(max_length=36)
    receiver = models.CharField(max_length=200)
    stands_for = models.PositiveIntegerField(default=1)  # sendings, of which the event is the newest

    objects = ReceiptQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.receiver} {self.event_id}"
