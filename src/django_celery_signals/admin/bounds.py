"""What a page may cost, however many deliveries there are: it counts so far, and looks so far back, and says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.core.paginator import Paginator
from django.db import connections
from django.db.models import Max, Min, QuerySet

from ..durable.clock import In, seconds_between
from ..durable.deliveries import DeliveryQuerySet, deliveries

COUNTED = 10_000  # rows that are counted, paged through, grouped, or changed by one action
LOOKED_AT = 100_000  # rows that are looked through for what no index leads to
SLACK = 60.0  # seconds by which rows may be out of the order of their ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A number of rows, as far as they were counted."""

    number: int
    more: bool  # whether there are more

    def __str__(self) -> str:
        return f"{self.number:,}{'+' if self.more else ''}"

    def __bool__(self) -> bool:
        return self.number > 0


def counted(rows: QuerySet[Any], limit: int | None = None) -> Count:
    """Count rows, but no further than to a bound; in their order where another index than that of the ids has it."""
    limit = COUNTED if limit is None else limit
    found = (rows if len(rows.query.order_by) > 1 else rows.order_by())[: limit + 1].count()
    return Count(number=min(found, limit), more=found > limit)


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # which is generic for type checkers only
    """Has as many pages as rows are counted."""

    @cached_property
    def total(self) -> Count:
        """How many rows there are."""
        rows: Any = self.object_list
        return counted(rows)

    @cached_property
    def count(self) -> int:
        """How many rows the pages have."""
        return self.total.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Ages:
    """How long ago deliveries were written."""

    label: str
    seconds: float
    older: bool  # or younger


def of_age(rows: DeliveryQuerySet, ages: Ages) -> DeliveryQuerySet:
    """Return those of an age, among all of a database; their ids narrow them down, for no index has their moments."""
    if ages.older:
        return rows.filter(created_at__lt=In(-ages.seconds), pk__lt=_first_since(rows.db, ages.seconds - SLACK))
    return rows.filter(created_at__gte=In(-ages.seconds), pk__gte=_first_since(rows.db, ages.seconds + SLACK))


def _first_since(using: str, seconds: float) -> int:
    """Return the first id of what was written within so many seconds, by halves; behind the last, if there is none."""
    rows, connection = deliveries(using), connections[using]
    ends = rows.aggregate(first=Min("pk"), last=Max("pk"))
    low, high = ends["first"] or 0, (ends["last"] or 0) + 1
    while low < high:
        middle = (low + high) // 2
        following = rows.filter(pk__gte=middle).order_by("pk").values_list("pk", "created_at", In(0)).first()
        if following is None or seconds_between(following[1], following[2], connection) <= seconds:
            high = middle
        else:
            low = following[0] + 1
    return low


def newest(rows: DeliveryQuerySet, limit: int | None = None, order: Sequence[str] = ("-pk",)) -> int | None:
    """Return the id behind which the newest rows begin that are looked through; None when that is all of them."""
    limit = LOOKED_AT if limit is None else limit
    return next(iter(rows.order_by(*order).values_list("pk", flat=True)[limit : limit + 1]), None)
