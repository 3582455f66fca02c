"""The business: things that happened, and what their receivers made of them."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Happening(models.Model):
    """What a sender commits; its number is in the ledger as well."""

    number = models.BigIntegerField(primary_key=True)
    kind = models.CharField(max_length=10)  # "free", "ordered", "folded"; "late" is ordered, but knows no place
    key = models.IntegerField(null=True)
    place = models.IntegerField(null=True)  # among those of its key, in the order of the commits


class Counter(models.Model):
    """The last place of a key. Who sends locks it first, so that places, ids and commits have one order."""

    key = models.IntegerField(primary_key=True)
    last = models.IntegerField(default=0)


class Effect(models.Model):
    """What one run of a receiver has committed. Nothing keeps a second one out: it is to be counted."""

    number = models.BigIntegerField()
    kind = models.CharField(max_length=10)
    key = models.IntegerField(null=True)
    place = models.IntegerField(null=True)
    stands_for = models.IntegerField()  # events, of a coalesced run
    seen = models.IntegerField(null=True)  # the last place of the key that was done when the run began
    run = models.CharField(max_length=50)  # as in the ledger

    class Meta:
        indexes: ClassVar[list[models.Index]] = [models.Index(fields=["key", "place"], name="chaos_effect_place")]


class Tally(models.Model):
    """A row that receivers lock and change, as business does."""

    runs = models.IntegerField(default=0)
