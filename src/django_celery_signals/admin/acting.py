"""The pages and actions by which people retry and discard: one delivery, those that were chosen, or all of a cause."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any
from urllib.parse import parse_qsl

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.db import Error
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.http import urlencode
from django.utils.timezone import get_current_timezone_name

from ..durable.deliveries import DeliveryQuerySet, deliveries
from ..durable.relay import keeping
from .bounds import Count
from .changing import DISCARD, RETRY, VERBS, Chosen, Verb, change, look_at
from .dashboard import dashboard
from .failures import failures, of_group
from .places import DATABASE, database_of, place_of, read_quoted

Hidden = Sequence[tuple[str, str]]  # names and values that a page of confirmation sends again

CONFIRMED = "confirmed"
TEMPLATES = "admin/django_celery_signals/delivery"


def answering(view: Any) -> Any:
    """Let a page of a database that is away, or has no table, say so, and where the others are."""

    @wraps(view)
    def answer(self: Any, request: HttpRequest, *args: Any, **options: Any) -> Any:
        try:
            response = view(self, request, *args, **options)
            return response.render() if isinstance(response, TemplateResponse) else response
        except Error as error:
            return self.away(request, error)

    return answer


class ActingAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # which is generic for type checkers only
    """What changes deliveries; who may, has ``replay_delivery``."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Tell whether somebody may see deliveries; Django's own takes a permission to change them for one, too."""
        return _has(request, "view_delivery")

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Tell whether somebody may retry and discard."""
        return self.has_view_permission(request) and _has(request, "replay_delivery")

    def has_payload_permission(self, request: HttpRequest) -> bool:
        """Tell whether somebody may see what was sent."""
        return _has(request, "view_payload")

    def get_urls(self) -> list[Any]:
        """Add the pages to those of any model."""
        pages = [
            path("dashboard/", self._page(self.dashboard_view), name=_named("dashboard")),
            path("failures/", self._page(self.failures_view), name=_named("failures")),
            path("failures/<slug:word>/", self._page(self.group_view), name=_named("group")),
            path("<path:object_id>/retry/", self._page(self.single_view), {"word": RETRY.name}, name=_named("retry")),
            path(
                "<path:object_id>/discard/",
                self._page(self.single_view),
                {"word": DISCARD.name},
                name=_named("discard"),
            ),
        ]
        return [*pages, *super().get_urls()]

    def _page(self, view: Any) -> Any:
        return self.admin_site.admin_view(view)

    # Pages -----------------------------------------------------------------------------------------------------------

    @answering
    def dashboard_view(self, request: HttpRequest) -> HttpResponse:
        """Show how deliveries stand, and what happened lately."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        alias = database_of(request)
        context = {
            "title": "Dashboard",
            "shown": dashboard(alias, request.GET.get("span", ""), request.GET.get("receiver", "")),
            "zone": get_current_timezone_name(),
            "alias": alias,
            "aliases": keeping(),
            "list_url": self._url("changelist", alias),
            "failures_url": self._url("failures", alias),
        }
        return self._answer(request, "dashboard.html", context)

    @answering
    def failures_view(self, request: HttpRequest) -> HttpResponse:
        """Show what has failed, by receiver and cause."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        alias, may_see = database_of(request), self.has_payload_permission(request)
        context = {
            "title": "Failures by cause",
            "found": failures(alias, traces=may_see),
            "may_see": may_see,
            "may_replay": self.has_replay_permission(request),
            "alias": alias,
            "aliases": keeping(),
            "list_url": self._url("changelist", alias),
            "dashboard_url": self._url("dashboard", alias),
        }
        return self._answer(request, "failures.html", context)

    @answering
    def group_view(self, request: HttpRequest, word: str) -> HttpResponse:
        """Ask whether all of a group are meant, and then change them."""
        if word not in VERBS:
            raise Http404(f"Deliveries are retried or discarded; there is no {word!r}.")
        if refusal := self._refusal(request):
            return refusal
        alias, verb = database_of(request), VERBS[word]
        cause = {name: request.POST.get(name, "") for name in ("receiver", "fingerprint")}
        rows, back = of_group(alias, **cause), self._url("failures", alias)
        if CONFIRMED not in request.POST:
            about = f"{cause['receiver']}: {cause['fingerprint'] or 'no fingerprint'}"
            return self._ask(request, verb, rows, about=about, hidden=[*cause.items()], back=back)
        self._change(request, verb, rows)
        return HttpResponseRedirect(back)

    @answering
    def single_view(self, request: HttpRequest, object_id: str, word: str) -> HttpResponse:
        """Change one delivery; discard it only once that was confirmed."""
        if refusal := self._refusal(request):
            return refusal
        (alias, pk), verb = read_quoted(object_id), VERBS[word]
        rows, page = deliveries(alias).filter(pk=pk), self._own_url("change", alias, pk)
        back = add_preserved_filters(
            {"preserved_filters": self.get_preserved_filters(request), "opts": self.opts}, page
        )
        if verb is DISCARD and CONFIRMED not in request.POST:
            return self._ask(request, verb, rows, about=", ".join(map(str, rows)), hidden=[], back=back)
        self._change(request, verb, rows)
        return HttpResponseRedirect(back if rows.exists() else self.way_back(request, alias))

    # Actions ---------------------------------------------------------------------------------------------------------

    @admin.action(permissions=["replay"], description="Retry those that have failed")
    def retry_selected(self, request: HttpRequest, queryset: DeliveryQuerySet) -> HttpResponse | None:
        """Retry those that were ticked; where all of the list were, only once that was confirmed."""
        return self._selected(request, RETRY, queryset, asks=_is_across(request))

    @admin.action(permissions=["replay"], description="Discard those that have failed…")
    def discard_selected(self, request: HttpRequest, queryset: DeliveryQuerySet) -> HttpResponse | None:
        """Discard those that were chosen, once that was confirmed."""
        return self._selected(request, DISCARD, queryset, asks=True)

    def _selected(self, request: HttpRequest, verb: Verb, rows: DeliveryQuerySet, *, asks: bool) -> HttpResponse | None:
        if not asks or CONFIRMED in request.POST:
            self._change(request, verb, rows)
            return None
        ticked = request.POST.getlist(ACTION_CHECKBOX_NAME)
        across = [("select_across", "1")] if _is_across(request) else []
        hidden = [("action", f"{verb.name}_selected"), *across, *((ACTION_CHECKBOX_NAME, pk) for pk in ticked)]
        about = "All deliveries of the list" if across else "The chosen deliveries"
        return self._ask(request, verb, rows, about=about, hidden=hidden, back=request.get_full_path())

    def away(self, request: HttpRequest, error: Exception) -> HttpResponse:
        """Say that a database does not answer."""
        alias = database_of(request)
        context = {
            "title": "Not available",
            "reason": f"{type(error).__name__}: {error}",
            "alias": alias,
            "others": [{"alias": one, "url": self._url("changelist", one)} for one in keeping() if one != alias],
            "list_url": self._url("changelist", alias),
        }
        response = self._answer(request, "away.html", context)
        response.status_code = 503
        return response

    # How -------------------------------------------------------------------------------------------------------------

    def _refusal(self, request: HttpRequest) -> HttpResponse | None:
        """Return the answer to a request that may not change anything.

        Raises:
            PermissionDenied: without the permission.
        """
        if not self.has_replay_permission(request):
            raise PermissionDenied
        return HttpResponseNotAllowed(["POST"]) if request.method != "POST" else None

    def _ask(
        self, request: HttpRequest, verb: Verb, rows: DeliveryQuerySet, *, about: str, hidden: Hidden, back: str
    ) -> HttpResponse:
        context = {
            "title": f"{verb.name.capitalize()} failed deliveries?",
            "verb": verb,
            "chosen": look_at(rows, verb),
            "about": about,
            "alias": rows.db,
            "list_url": self._url("changelist", rows.db),
            "hidden": [*hidden, (CONFIRMED, "yes")],
            "back": back,
        }
        return self._answer(request, "confirm.html", context)

    def _answer(self, request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        request.current_app = self.admin_site.name  # where its links lead
        common = {**self.admin_site.each_context(request), "opts": self.opts, "media": self.media}
        return TemplateResponse(request, f"{TEMPLATES}/{template}", {**common, **context})

    def _change(self, request: HttpRequest, verb: Verb, rows: DeliveryQuerySet) -> None:
        chosen = look_at(rows, verb)
        done = change(rows, verb, request.user.pk)
        self.message_user(request, _told(verb, done, chosen), messages.SUCCESS if done else messages.WARNING)
        for words in _left(verb, done, chosen):
            self.message_user(request, words, messages.WARNING)

    def _url(self, name: str, alias: str, **chosen: str) -> str:
        url = reverse(f"admin:{_named(name)}", current_app=self.admin_site.name)
        return f"{url}?{urlencode({DATABASE: alias, **chosen})}"

    def _own_url(self, name: str, alias: str, pk: int) -> str:
        place = quote(place_of(alias, pk))
        return reverse(f"admin:{_named(name)}", args=(place,), current_app=self.admin_site.name)

    def way_back(self, request: HttpRequest, alias: str) -> str:
        """Return the address of the list of a database, with the filters that led from it to a delivery."""
        filters = dict(parse_qsl(request.GET.get("_changelist_filters", "")))
        url = reverse(f"admin:{_named('changelist')}", current_app=self.admin_site.name)
        return f"{url}?{urlencode({**filters, DATABASE: alias})}"


def _has(request: HttpRequest, permission: str) -> bool:
    user: Any = request.user
    return bool(user.has_perm(f"django_celery_signals.{permission}"))


def _named(page: str) -> str:
    return f"django_celery_signals_delivery_{page}"


def _is_across(request: HttpRequest) -> bool:
    return request.POST.get("select_across") == "1"


def _told(verb: Verb, done: Count, chosen: Chosen) -> str:
    behind = f"; {chosen.behind} wait behind these and go on" if done and chosen.behind else ""
    return f"{done.number:,} {verb.done}{behind}."


def _left(verb: Verb, done: Count, chosen: Chosen) -> list[str]:
    """Say what was left alone, and why."""
    return [
        words
        for is_so, words in (
            (done.more, f"More are left: {verb.name} them by the same action again."),
            (chosen.lost, f"{chosen.lost} cannot be retried: they have lost their payload. Discard them."),
            (chosen.others, f"{chosen.others} have not failed, and are left alone."),
        )
        if is_so
    ]
