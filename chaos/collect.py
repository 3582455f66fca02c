"""Read the site at the end, in a process of its own: ``python -m chaos.collect`` prints what the database holds."""

from __future__ import annotations

import json
import sys

import django


def main() -> None:
    """Print it."""
    django.setup()
    from .verdict import look

    site = look()
    json.dump(
        {"happenings": list(site.happenings.values()), "effects": site.effects, "left": site.left},
        sys.stdout,
        default=str,
    )


def count() -> None:
    """Print how many deliveries are open, and how many effects there are."""
    django.setup()
    from .site.models import Effect
    from .site.systems import system

    print(system().open_count(), Effect.objects.count())


if __name__ == "__main__":
    count() if sys.argv[1:] == ["count"] else main()
