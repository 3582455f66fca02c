"""What is shown of a delivery. No object of the sending is made for it: its JSON is put on the page as it is."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from typing import Any

from django.apps import apps
from django.contrib.admin import AdminSite
from django.contrib.admin.utils import quote
from django.db import connections, router
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.dateformat import format as date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import template_localtime  # type: ignore[attr-defined]  # which its stubs leave out

from ..durable.clock import seconds_between
from ..durable.rows import State

MOST_TEXT = 200_000  # characters of a payload or a traceback that a page has
ELSEWHERE = ("m2m_changed", "pre_delete", "post_delete")  # the sender is no class of the object, or it is gone

_OBJECT = re.compile(r"(?:\S+) (\w+\.\w+) pk=([0-9a-f-]+)(?: |$)")
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))

HIDDEN, NONE = "hidden", "-"  # what is shown in the place of a value


def badge(state: int) -> SafeString:
    """Return a state's word, with its sign; colour says nothing that the word does not."""
    name = State(state).label
    return format_html('<span class="dcs-state dcs-{}">{}</span>', name, name)


def stacked(first: str, second: str) -> SafeString:
    """Return one text, and another below it, more quietly; without the other where it is empty."""
    below = format_html('<div class="dcs-below">{}</div>', second) if second else ""
    return format_html("{}{}", first, below)


def span(seconds: float) -> str:
    """Return a distance in its largest units: ``3 d``, ``2 h 5 min``, ``40 s``."""
    left = int(abs(seconds))
    for (size, unit), (smaller, word) in pairwise(_UNITS):
        if left >= size:
            rest = left % size // smaller
            return f"{left // size} {unit}" + (f" {rest} {word}" if rest and left < 10 * size else "")
    return f"{left} s"


def seconds_until(row: Any, moment: datetime) -> float:
    """Return the seconds from a row's reading until a moment of it, by the database's clock."""
    return seconds_between(row.now, moment, connections[row._state.db])


def age(row: Any) -> SafeString:
    """Return how long ago a delivery was written."""
    return _moment(row.created_at, span(seconds_until(row, row.created_at)))


def passed(row: Any, moment: datetime | None) -> str:
    """Return a moment of a delivery's past, and how long ago it was."""
    if moment is None:
        return NONE
    text = date_format(template_localtime(moment), "Y-m-d H:i:s")
    return _moment(moment, f"{text} ({span(seconds_until(row, moment))} ago)")


def due(row: Any) -> str:
    """Return when the relay must look at a delivery, and for what."""
    if row.due_at is None:
        return NONE
    left = seconds_until(row, row.due_at)
    before, after = _DUE[State(row.state)]
    return _moment(row.due_at, f"{before} {span(left)}" if left > 0 else f"{after} {span(left)}")


_DUE = {
    State.READY: ("in", "overdue by"),
    State.SENT: ("in", "overdue by"),
    State.PAUSED: ("in", "overdue by"),
    State.RUNNING: ("lease ends in", "lease ended before"),
    State.FAILED: ("erased in", "to be erased since"),
    State.DONE: ("deleted in", "to be deleted since"),
}


def _moment(moment: datetime, text: str) -> SafeString:
    return format_html(
        '<time datetime="{0}" title="{0}">{1}</time>', moment.isoformat(sep=" ", timespec="seconds"), text
    )


def pretty(text: str) -> SafeString:
    """Return JSON so that people can read it; what is none, as it is."""
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return block(text)


def block(text: str) -> SafeString:
    """Return a long text, which scrolls by itself, also by keyboard; of a very long one the beginning."""
    left = len(text) - MOST_TEXT
    text = text if left <= 0 else f"{text[:MOST_TEXT]}\n… and {left:,} characters more"
    return format_html('<pre class="dcs-block" tabindex="0">{}</pre>', text)


def dotted(name: str) -> SafeString:
    """Return a name of several parts, which may be broken behind each dot."""
    return format_html_join(SafeString(".<wbr>"), "{}", ((part,) for part in name.split(".")))


def object_link(site: AdminSite, request: HttpRequest, row: Any) -> SafeString | None:
    """Return a link to the admin page of the object that was sent, if there is one and its reader may see it.

    Without a query. None also for a deleted object, and where the page would show a row of another database.
    """
    found = _OBJECT.match(row.summary)
    if found is None or row.signal.rpartition(".")[2].rpartition(":")[2] in ELSEWHERE:
        return None
    try:
        model = apps.get_model(found[1])
    except LookupError:
        return None
    admin = site._registry.get(model)
    if admin is None or row._state.db not in (router.db_for_read(model), router.db_for_write(model)):
        return None
    if not admin.has_view_or_change_permission(request):
        return None
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
    try:
        url = reverse(name, args=(quote(found[2]),), current_app=site.name)
    except NoReverseMatch:
        return None
    return format_html('<a href="{}">{} {}</a>', url, found[1], found[2])
