"""The admin of deliveries: who may see what of them, in the list and one by one."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin import ShowFacets
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..durable.clock import In
from ..durable.deliveries import deliveries
from ..durable.rows import State
from ..durable.texts import LARGE
from ..plurals import quantity
from .acting import answering
from .bounds import BoundedPaginator, counted
from .choices import ASKED, FILTERS
from .facts import HIDDEN, NONE, age, badge, block, dotted, due, object_link, passed, pretty, stacked
from .lineage import Lineage, LineageAdmin
from .listing import DeliveryList
from .places import database_of, place_of, read_place

SHOWN = ["stands", "summary", "receiver_shown", "times", "key"]  # what there is room for beside the filters

FACTS = ["place", "state_shown", "summary", "object_shown", "receiver", "signal", "event_id"]
FAILURE = ["error_type", "fingerprint", "message_shown", "traceback_shown"]
TURN = ["key_shown", "turn"]
FAMILY = ["depth", "cause", "root", "caused"]
COURSE = ["created", "due", "sent", "finished", "runs", "queue", "coalesces"]
SENT = ["options_shown", "payload_shown"]


class DeliveryAdmin(LineageAdmin):
    """Deliveries, to be looked at; nobody adds or edits one."""

    list_display: Any = SHOWN
    list_display_links: Any = ["summary"]
    list_filter: ClassVar[Any] = FILTERS
    list_per_page = 50
    show_facets = ShowFacets.NEVER  # each would count
    show_full_result_count = False
    paginator = BoundedPaginator
    ordering: ClassVar[Any] = ["-pk"]
    save_on_top = True  # where the buttons are, above what may be long
    sortable_by: ClassVar[Any] = ()
    search_fields: ClassVar[Any] = ["summary"]  # DeliveryList knows what is meant
    search_help_text = "An object (shop.Order 5), a delivery (default:5), an event’s id, a receiver, or a key."
    actions: Any = ["retry_selected", "discard_selected"]
    readonly_fields: ClassVar[Any] = [*FACTS, *FAILURE, *TURN, *FAMILY, *COURSE, *SENT]

    class Media:
        """What the pages look like, beside the admin's own style."""

        css: Any = {"all": ["django_celery_signals/admin.css"]}

    # Who may what ----------------------------------------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Let nobody add one."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Let nobody edit one."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Let nobody delete one but by discarding it, so that what waits behind it goes on."""
        return False

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Let an address ask for what the filters ask for: ``?payload__contains=`` would tell what nobody may see."""
        return lookup in ASKED

    # The list --------------------------------------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> Any:
        """Return the deliveries of the database that is looked at, without what is large."""
        return deliveries(database_of(request)).annotate(now=In(0)).defer(*LARGE, "error_message")

    def get_changelist(self, request: HttpRequest, **options: Any) -> Any:
        """Return what reads a page of the list."""
        return DeliveryList

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Leave the search to the list."""
        return queryset, False

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        """Return the columns: keys may be values of what was sent."""
        return [name for name in SHOWN if name != "key" or self.has_payload_permission(request)]

    @answering
    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Show the list, or act on what was chosen of it.

        Raises:
            PermissionDenied: for an action, without the permission.
        """
        if request.method == "POST" and not self.has_replay_permission(request):
            raise PermissionDenied
        alias = database_of(request)
        urls = {f"{name}_url": self._url(name, alias) for name in ("dashboard", "failures")}
        return super().changelist_view(request, {"title": "Deliveries", **urls, **(extra_context or {})})

    # One of them -----------------------------------------------------------------------------------------------------

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        """Return a delivery by its name, ``other:5``, with what its page must know."""
        place = read_place(object_id)
        if place is None:
            return None
        row = deliveries(place[0]).filter(pk=place[1]).annotate(now=In(0)).first()
        if row is not None:
            row.is_hidden = not self.has_payload_permission(request)
            row.lineage = Lineage(row)
            row.object_link = object_link(self.admin_site, request, row)
        return row

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        """Return the facts in groups, without those that this delivery has nothing of."""
        heading = "Failure" if obj is not None and obj.state == State.FAILED else "Last failure"
        failure = [(heading, {"fields": FAILURE})] if obj is not None and obj.error_type else []
        turn = [("Order", {"fields": TURN})] if obj is not None and obj.lane else []
        family = [name for name in FAMILY if name != "root" or (obj is not None and obj.root_id)]
        course, sent = ("Times", {"fields": COURSE}), ("What was sent", {"fields": SENT})
        return [(None, {"fields": FACTS}), *failure, *turn, ("Lineage", {"fields": family}), course, sent]

    @answering
    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        """Show one, with the buttons for what may be done with it."""
        place = read_place(unquote(object_id))
        context = {
            "title": "Delivery",
            "may_replay": self.has_replay_permission(request),
            "failed": State.FAILED,
            "list_url": self.way_back(request, place[0] if place else ""),
        }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    # What is shown ---------------------------------------------------------------------------------------------------

    @admin.display(description="delivery")
    def place(self, row: Any) -> str:
        """Show its name, as the commands take it."""
        return place_of(row._state.db, row.pk)

    @admin.display(description="state")
    def state_shown(self, row: Any) -> SafeString:
        """Show where it stands."""
        return badge(row.state)

    @admin.display(description="state")
    def stands(self, row: Any) -> SafeString:
        """Show where it stands, and below that how often it was tried in vain."""
        return stacked(badge(row.state), quantity(row.attempts, "attempt", "attempts") if row.attempts else "")

    @admin.display(description="receiver")
    def receiver_shown(self, row: Any) -> SafeString:
        """Show its receiver in a narrow column."""
        return dotted(row.receiver)

    @admin.display(description="created")
    def created(self, row: Any) -> str:
        """Show when it was sent."""
        return passed(row, row.created_at)

    @admin.display(description="published")
    def sent(self, row: Any) -> str:
        """Show when it was published last."""
        return passed(row, row.sent_at)

    @admin.display(description="finished")
    def finished(self, row: Any) -> str:
        """Show when it failed, or was done."""
        return passed(row, row.finished_at)

    @admin.display(description="runs")
    def runs(self, row: Any) -> str:
        """Show how often it was tried, and how that ended."""
        return (
            f"{row.attempts} failed, {row.crashes} crashed, {row.reruns} to be repeated without counting; "
            f"published {quantity(row.sends, 'time', 'times')} since the last"
        )

    @admin.display(description="coalesces")
    def coalesces(self, row: Any) -> str:
        """Show whether it takes up what waits behind it."""
        return "yes" if row.folds else "no"

    @admin.display(description="age")
    def times(self, row: Any) -> SafeString:
        """Show how long ago it was sent, and below that when something happens to it."""
        return stacked(age(row), due(row) if row.due_at is not None else "")

    @admin.display(description="due")
    def due(self, row: Any) -> str:
        """Show when something happens to it."""
        return due(row)

    @admin.display(description="object")
    def object_shown(self, row: Any) -> str:
        """Lead to the object that was sent."""
        return row.object_link or NONE

    @admin.display(description="key")
    def key_shown(self, row: Any) -> Any:
        """Show its key to those who may know it."""
        return _shown(row, row.key, str)

    @admin.display(description="message")
    def message_shown(self, row: Any) -> Any:
        """Show the error's message to those who may know it."""
        return _shown(row, row.error_message, block)

    @admin.display(description="traceback")
    def traceback_shown(self, row: Any) -> Any:
        """Show the traceback to those who may know it."""
        return _shown(row, row.traceback, block)

    @admin.display(description="options")
    def options_shown(self, row: Any) -> Any:
        """Show the options of the sending to those who may know them."""
        return _shown(row, json.dumps(row.options) if row.options else None, pretty)

    @admin.display(description="payload")
    def payload_shown(self, row: Any) -> Any:
        """Show what was sent to those who may know it."""
        return _shown(row, row.payload, pretty)

    @admin.display(description="turn")
    def turn(self, row: Any) -> SafeString:
        """Lead to the delivery that this one waits for, or to the first that waits for this one."""
        rows = deliveries(row._state.db)
        if row.slot is None:
            holder = rows.filter(slot=row.lane).defer(*LARGE).first()
            return self._linked("Waits behind {}.", holder) if holder else SafeString("Waits for no other.")
        waiting = rows.filter(state=State.READY, slot=None, lane=row.lane)
        following = waiting.order_by("pk").defer(*LARGE).first()
        if following is None:
            return SafeString("No other waits behind it.")
        verb = "Blocks its key" if row.state == State.FAILED else "It is its turn"
        return self._linked(f"{verb}: {counted(waiting)} wait behind it, first {{}}.", following)

    def _linked(self, words: str, row: Any) -> SafeString:
        place = place_of(row._state.db, row.pk)
        url = self._own_url("change", row._state.db, row.pk)
        return format_html(words, format_html('<a href="{}">{}</a> ({})', url, place, State(row.state).label))


def _shown(row: Any, value: Any, how: Any) -> Any:
    """Return a value as it is shown, or that it is hidden."""
    if row.is_hidden:
        return SafeString(f'<span class="dcs-hidden">{HIDDEN}</span>')
    return NONE if value is None else how(value)
