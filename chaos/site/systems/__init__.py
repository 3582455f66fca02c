"""What is tormented: this library, and its peers, each behind the same few functions.

A system's module has ``connect()``, which declares its receivers; ``relay()``, its process beside the workers;
``together()``, a context around many saves of a transaction; ``open_count()``; ``left()``, what it has not done at the
end, with the numbers of the events; and ``ORDERS``, whether it can take events in turn.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.conf import settings


def undone() -> int:
    """Return how many events have no effect, for systems that cannot tell what is open."""
    from chaos.site.models import Effect, Happening  # need Django set up

    return Happening.objects.count() - Effect.objects.values("number").distinct().count()


def system() -> Any:
    """Return the module of the system that this site has."""
    return import_module(f"{__name__}.{settings.CHAOS['system']}")
