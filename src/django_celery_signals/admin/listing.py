"""The list of deliveries: the newest first, with a page of rows read at once."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import ChangeList
from django.db import connections
from django.http import HttpRequest
from django.urls import reverse

from ..durable.clock import by_index
from ..durable.deliveries import DeliveryQuerySet, deliveries
from .bounds import LOOKED_AT, counted, newest, of_age
from .choices import AGES, ASKED, FAMILY, STATES, from_event, of_state
from .places import DATABASE, place_of, read_place
from .searching import about

BY_STATE = "dcs_delivery_due"  # the index that begins with the state, of all rows on MariaDB and MySQL
NARROWING = ("state", "receiver", "signal")


class DeliveryList(ChangeList):
    """What one page of the list shows."""

    model_admin: Any
    is_rare = False  # whether the chosen state has so few deliveries that all of them may be looked at
    looked_at: int | None = None  # the newest so many were looked through; None: all

    def get_ordering(self, request: HttpRequest, queryset: Any) -> list[Any]:
        """Order by the ids alone, whatever an address asks for: they have an index, also of what an event caused."""
        return self.ordered_by

    @property
    def family(self) -> dict[str, str]:
        """The events that its deliveries come from, where that is asked for, by the columns."""
        return {name: self.params[name] for name in FAMILY if self.params.get(name)}

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> Any:
        """Return what filters and search choose; no further back than a bound, where that could be very many."""
        rows = super().get_queryset(request, exclude_parameters)
        others = {DATABASE: rows.db} if DATABASE in self.params else {}
        self.has_active_filters = self.filter_params.keys() & {*ASKED} - {DATABASE} != set()
        self.all_url = self.get_query_string(remove=["q"])
        self.clear_all_filters_qs = self.get_query_string(others, remove=list(self.get_filters_params()))
        text = self.query.strip()
        place = read_place(text, rows.db)
        if place is not None:
            return rows.filter(pk=place[1]) if place[0] == rows.db else rows.none()
        if text:
            rows = rows.filter(about(text, keys=self.model_admin.has_payload_permission(request)))
        narrows = text or any(self.params.get(name) for name in NARROWING)
        if not narrows:
            return rows
        return self._of_family(rows) if self.family else self._bounded(rows)

    def _bounded(self, rows: Any) -> Any:
        """Return all of these where their state has few, and else those among the newest, or the newest of an age."""
        everywhere, state = deliveries(rows.db), STATES.get(self.params.get("state", ""))
        if state is not None:
            with by_index(connections[rows.db], rows.model, BY_STATE):
                self.is_rare = not counted(of_state(everywhere, state)).more
        if self.is_rare:
            return rows
        ages = AGES.get(self.params.get("age", ""))
        edge = newest(of_age(everywhere, ages) if ages else everywhere)
        self.looked_at = None if edge is None else LOOKED_AT
        return rows if edge is None else rows.filter(pk__gt=edge)

    def _of_family(self, rows: Any) -> Any:
        """Return those among the newest that come from an event; these may lie anywhere, so that both ends are said."""
        family = deliveries(rows.db)
        for column, event_id in self.family.items():
            family = from_event(family, column, event_id)
        with by_index(connections[rows.db], rows.model, self._index()):
            edge, top = (newest(family, limit, self.ordered_by) for limit in (None, 0))
        self.looked_at = None if edge is None else LOOKED_AT
        return rows if edge is None else rows.filter(pk__gt=edge, pk__lte=top)

    def get_results(self, request: HttpRequest) -> None:
        """Read the rows of the page, and find out what belongs to each."""
        rows: DeliveryQuerySet = self.queryset
        with by_index(connections[rows.db], rows.model, self._index()):
            super().get_results(request)
            self.result_list: Any = list(self.result_list)
        self.total = self.paginator.total

    @property
    def ordered_by(self) -> list[str]:
        """The order that an index has."""
        return [*(f"-{name}" for name in [*self.family][:1]), "-pk"]

    def _index(self) -> str:
        """Return the name of the index by which MariaDB and MySQL are to find the rows."""
        return BY_STATE if self.is_rare else next(map(FAMILY.__getitem__, self.family), "PRIMARY")

    def url_for_result(self, result: Any) -> str:
        """Return the address of a delivery's page, which names its database, too."""
        return reverse(
            "admin:django_celery_signals_delivery_change",
            args=(quote(place_of(result._state.db, result.pk)),),
            current_app=self.model_admin.admin_site.name,
        )
