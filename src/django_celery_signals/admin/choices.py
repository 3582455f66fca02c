"""The filters beside the list; no choice of theirs needs a look at all deliveries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib.admin import SimpleListFilter
from django.db import connections
from django.db.models import Q
from django.http import HttpRequest

from .. import names
from ..connected import connected
from ..durable.deliveries import DeliveryQuerySet
from ..durable.relay import keeping
from ..durable.rows import State
from .bounds import COUNTED, Ages, of_age
from .places import DATABASE, database_of

HOUR, DAY = 3600.0, 86_400.0  # seconds
MOST_CHOICES = 200  # receivers of failed deliveries
#: The columns by which deliveries are chosen that come from one event, and the indexes that lead there.
FAMILY = {"parent_id": "dcs_delivery_parent", "root_id": "dcs_delivery_root"}

Choices = Iterable[tuple[str, str]]

AGES = {
    "hour": Ages(label="Past hour", seconds=HOUR, older=False),
    "day": Ages(label="Past 24 hours", seconds=DAY, older=False),
    "week": Ages(label="Past 7 days", seconds=7 * DAY, older=False),
    "older-hour": Ages(label="Older than an hour", seconds=HOUR, older=True),
    "older-day": Ages(label="Older than a day", seconds=DAY, older=True),
    "older-week": Ages(label="Older than a week", seconds=7 * DAY, older=True),
}


class DatabaseFilter(SimpleListFilter):
    """Of which database the deliveries are shown; where only one keeps any, there is nothing to choose."""

    title = parameter_name = DATABASE

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Offer those that keep deliveries."""
        aliases = keeping()
        return [(alias, alias) for alias in aliases] if len(aliases) > 1 else []

    def choices(self, changelist: Any) -> Iterator[Any]:
        """Yield them without the choice of all: a page shows one."""
        shown = database_of(self.request)
        for choice in list(super().choices(changelist))[1:]:
            yield {**choice, "selected": choice["display"] == shown}

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """Change nothing: the list itself began with that database."""
        return queryset


class StateFilter(SimpleListFilter):
    """Deliveries in one state."""

    title = parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """Offer every state there is."""
        return [(state.name.lower(), state.label) for state in State]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """Choose."""
        state = STATES.get(self.value() or "")
        return queryset if state is None else of_state(queryset, state)


STATES = {state.name.lower(): state for state in State}
_DUE = Q(due_at__isnull=False)
#: What is true of all deliveries in a state anyway; the partial indexes are found by it.
_DESCRIBED = {State.READY: _DUE | Q(lane__isnull=False), State.RUNNING: _DUE, State.DONE: _DUE}


def of_state(rows: Any, state: State) -> Any:
    """Return those in a state, so that an index can find them."""
    return rows.filter(_DESCRIBED.get(state, Q()), state=state)


class ReceiverFilter(SimpleListFilter):
    """Deliveries for one receiver: what is connected, what has failed ones, and what was asked for."""

    title = parameter_name = "receiver"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """Offer those that are connected, and those of failed deliveries."""
        found = {one.receiver for one in connected() if one.guarantee == "durable"}
        found |= {*failed_receivers(model_admin.get_queryset(request)), self.value() or ""}
        return [(name, name) for name in sorted(found - {""})]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """Choose."""
        return queryset.filter(receiver=self.value()) if self.value() else queryset


class SignalFilter(SimpleListFilter):
    """Deliveries of one signal."""

    title = parameter_name = "signal"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """Offer those that something is connected to."""
        found = {one.signal_name for one in connected() if one.guarantee == "durable"} | {self.value() or ""}
        return [(name, names.short_name(name) or name) for name in sorted(found - {""})]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """Choose."""
        return queryset.filter(signal=self.value()) if self.value() else queryset


class AgeFilter(SimpleListFilter):
    """Deliveries by the time since they were sent."""

    title = parameter_name = "age"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """Offer some ages."""
        return [(name, ages.label) for name, ages in AGES.items()]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """Choose."""
        ages = AGES.get(self.value() or "")
        return of_age(queryset, ages) if ages else queryset


def from_event(rows: Any, column: str, event_id: Any) -> Any:
    """Return those that come from an event; to be ordered by that column first, as its index is.

    A range of one value: told of an equal one PostgreSQL takes the order by ids for given, and may read all for it.
    """
    return rows.filter(**{f"{column}__gte": event_id, f"{column}__lte": event_id})


class EventFilter(SimpleListFilter):
    """Deliveries that come from one event; offered is the one that was asked for, by a link of a delivery's page."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """Offer it by the beginning of its id."""
        return [(name, f"{name[:8]}\N{HORIZONTAL ELLIPSIS}") for name in [self.value()] if name]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """Choose."""
        return from_event(queryset, str(self.parameter_name), self.value()) if self.value() else queryset


class CauseFilter(EventFilter):
    """Deliveries that were sent by the receiver of one event."""

    title, parameter_name = "cause", "parent_id"


class RootFilter(EventFilter):
    """Deliveries that began with one event."""

    title, parameter_name = "root", "root_id"


FILTERS = [DatabaseFilter, StateFilter, ReceiverFilter, SignalFilter, AgeFilter, CauseFilter, RootFilter]
#: Parameters that the list's address may have; any other would ask for values that not everybody may see.
ASKED = frozenset(str(one.parameter_name) for one in FILTERS)


def failed_receivers(rows: DeliveryQuerySet) -> list[str]:
    """Return for which receivers deliveries have failed: from one to the next, by the index of the failed ones.

    Where there is no such index, as on MariaDB and MySQL, among some thousands of failed ones.
    """
    connection = connections[rows.db]
    if not connection.features.supports_partial_indexes:
        return sorted(set(rows.failed().order_by().values_list("receiver", flat=True)[:COUNTED]))
    table = connection.ops.quote_name(rows.model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(_WALK.format(table=table, failed=int(State.FAILED)), (MOST_CHOICES,))
        return [name for (name,) in cursor.fetchall()]


_WALK = (
    "WITH RECURSIVE walk (receiver) AS (SELECT MIN(receiver) FROM {table} WHERE state = {failed} UNION ALL "
    "SELECT (SELECT MIN(other.receiver) FROM {table} AS other WHERE other.state = {failed} "
    "AND other.receiver > walk.receiver) FROM walk WHERE walk.receiver IS NOT NULL) "
    "SELECT receiver FROM walk WHERE receiver IS NOT NULL LIMIT %s"
)
