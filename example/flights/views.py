"""One page with what the receivers know; it never asks the flights themselves."""

from __future__ import annotations

from django.db.models import Count, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from .models import AirportStatistics, CarrierStatistics, DelayAlert, LogEntry, Receipt, SearchEntry


def statistics(request: HttpRequest) -> HttpResponse:
    """Show the statistics, the longest delays, and what the search index finds for ``?q=``."""
    words = request.GET.get("q", "").split()
    entries = SearchEntry.objects.order_by("pk")
    for word in words:
        entries = entries.filter(text__icontains=word)
    context = {
        "query": " ".join(words),
        "found": entries.count() if words else 0,
        "entries": entries[:20] if words else [],
        "carriers": CarrierStatistics.objects.select_related("carrier").order_by("-flights"),
        "airports": AirportStatistics.objects.select_related("airport").order_by("-flights")[:20],
        "alerts": DelayAlert.objects.select_related("flight").order_by("-minutes")[:10],
        "log": LogEntry.objects.exclude(changes__has_key="number").order_by("-pk")[:10],  # not the new ones
        "receipts": Receipt.objects.values("receiver")
        .annotate(events=Sum("stands_for"), runs=Count("pk"))
        .order_by("receiver"),
    }
    return render(request, "flights/statistics.html", context)
