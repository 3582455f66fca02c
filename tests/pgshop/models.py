"""Models with the field types that only PostgreSQL has."""

from __future__ import annotations

from django.contrib.postgres.fields import (
    ArrayField,
    BigIntegerRangeField,
    DateRangeField,
    DateTimeRangeField,
    DecimalRangeField,
    HStoreField,
    IntegerRangeField,
)
from django.db import models


class Booking(models.Model):
    seats = IntegerRangeField(null=True)
    tickets = BigIntegerRangeField(null=True)
    prices = DecimalRangeField(null=True)
    days = DateRangeField(null=True)
    period = DateTimeRangeField(null=True)


class Catalogue(models.Model):
    words = ArrayField(models.CharField(max_length=50), default=list)
    grid = ArrayField(ArrayField(models.IntegerField(null=True)), null=True)
    prices = ArrayField(models.DecimalField(max_digits=8, decimal_places=2), null=True)
    moments = ArrayField(models.DateTimeField(), null=True)
    attributes = HStoreField(null=True)
