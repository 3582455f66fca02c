"""What caused a delivery, and what it caused, as far as their rows are still there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from django.contrib import admin
from django.db import Error, connections
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from ..durable.clock import by_index
from ..durable.deliveries import deliveries
from ..durable.relay import keeping
from ..durable.rows import State
from ..durable.texts import LARGE
from .acting import ActingAdmin
from .bounds import LOOKED_AT, newest
from .choices import FAMILY, from_event
from .facts import dotted
from .places import place_of

MOST_CAUSED = 20  # deliveries of each database that a page names


class Lineage:
    """The deliveries that one comes from, and those that come from it; each is looked for when it is shown."""

    def __init__(self, row: Any) -> None:
        """Look for nothing yet."""
        self.row = row
        self.silent: list[str] = []  # databases that did not answer
        self.bounded = False  # whether there were more than were looked through

    @cached_property
    def before(self) -> dict[str, Any]:
        """The deliveries of the parent and the root, by their events."""
        found: dict[str, Any] = {}
        wanted = {self.row.parent_id, self.row.root_id}
        for rows in self._everywhere(lambda alias: self._of_events(wanted - found.keys(), alias)):
            found.update((one.event_id, one) for one in rows)
        return found

    @cached_property
    def after(self) -> list[Any]:
        """The deliveries that it caused itself: of each database the first, and one more if there are more."""
        return [one for rows in self._everywhere(self._caused) for one in rows]

    def _everywhere(self, ask: Callable[[str], Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """Ask each database, its own first, which must answer."""
        own = self.row._state.db
        yield ask(own)
        for alias in keeping():
            if alias == own:
                continue
            try:
                yield ask(alias)
            except Error:
                self.silent.append(alias)

    def _of_events(self, events: set[str], alias: str) -> Sequence[Any]:
        """Look for deliveries of events: in its own database among those before it, in others among the newest."""
        rows = deliveries(alias)
        if alias == self.row._state.db:
            rows = rows.filter(pk__lt=self.row.pk)
        edge = newest(rows) if events else None
        if edge is not None:
            self.bounded, rows = True, rows.filter(pk__gt=edge)
        with by_index(connections[alias], rows.model):
            found = rows.filter(event_id__in=events).order_by("-pk").defer(*LARGE, "error_message")
            return list(found[: len(events)])

    def _caused(self, alias: str) -> Sequence[Any]:
        rows = from_event(deliveries(alias), "parent_id", self.row.event_id).order_by("parent_id", "pk")
        rows = rows.defer(*LARGE, "error_message")
        with by_index(connections[alias], rows.model, FAMILY["parent_id"]):
            return list(rows[: MOST_CAUSED + 1])


class LineageAdmin(ActingAdmin):
    """Links to what caused a delivery, and to what it caused."""

    @admin.display(description="caused by")
    def cause(self, row: Any) -> str:
        """Lead to the delivery whose receiver sent this one."""
        return self._event(row, row.parent_id) if row.parent_id else "no other event, as far as is recorded"

    @admin.display(description="root")
    def root(self, row: Any) -> str:
        """Lead to the delivery with which it began."""
        return self._event(row, row.root_id)

    @admin.display(description="caused")
    def caused(self, row: Any) -> SafeString:
        """Lead to what its receiver sent, and to all that began with the same event."""
        lineage, parts = row.lineage, []
        for alias in dict.fromkeys(one._state.db for one in lineage.after):
            rows = [one for one in lineage.after if one._state.db == alias]
            links = format_html_join("", "<li>{}</li>", ((self._member(one),) for one in rows[:MOST_CAUSED]))
            parts.append(format_html('<ul class="dcs-family">{}</ul>', links))
            if len(rows) > MOST_CAUSED:
                more = self._url("changelist", alias, parent_id=row.event_id)
                parts.append(format_html('<p><a href="{}">More than these {}</a></p>', more, MOST_CAUSED))
        parts = parts or [SafeString("<p>Nothing that is still there.</p>")]
        every = self._url("changelist", row._state.db, root_id=row.root_id or row.event_id)
        silent = format_html("<p>{}</p>", _silence(lineage)) if lineage.silent else ""
        whole = format_html('<p><a href="{}">All that the root has caused, directly or not</a></p>', every)
        return format_html_join("", "{}", ((part,) for part in (*parts, silent, whole)))

    def _event(self, row: Any, event_id: str) -> str:
        lineage = row.lineage
        found = lineage.before.get(event_id)
        if found is not None:
            return self._member(found)
        older = f", or older than the {LOOKED_AT:,} that were looked through" if lineage.bounded else ""
        return f"event {event_id}: done and gone, or never durable{older}. {_silence(lineage)}".rstrip()

    def _member(self, row: Any) -> SafeString:
        alias, state = row._state.db, State(row.state).label
        url, place = self._own_url("change", alias, row.pk), place_of(alias, row.pk)
        words = '<a href="{}">{}</a> ({}): {} \N{RIGHTWARDS ARROW} {}'
        return format_html(words, url, place, state, row.summary, dotted(row.receiver))


def _silence(lineage: Lineage) -> str:
    return f"No answer from {', '.join(dict.fromkeys(lineage.silent))}." if lineage.silent else ""
