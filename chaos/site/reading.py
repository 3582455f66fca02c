"""What the database holds."""

from __future__ import annotations

from typing import Any

from .models import Effect, Happening
from .systems import system


def look() -> dict[str, Any]:
    """Return everything that the verdict needs; the effects in the order of their ids."""
    return {
        "happenings": list(Happening.objects.values()),
        "effects": list(Effect.objects.order_by("pk").values()),
        "left": system().left(),
    }


def count() -> tuple[int, int]:
    """Return how many deliveries are open, and how many effects there are."""
    return system().open_count(), Effect.objects.count()
