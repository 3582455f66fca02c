"""Which delivery is meant: in several databases, which have the same numbers."""

from __future__ import annotations

from django.contrib.admin.utils import unquote
from django.http import Http404, HttpRequest

from ..durable.relay import keeping

DATABASE = "database"  # the parameter of a page's address


def database_of(request: HttpRequest) -> str:
    """Return the alias of the database that a page is about: the first that keeps deliveries, unless it says another.

    Raises:
        Http404: for one that keeps none.
    """
    aliases = keeping()
    alias = request.GET.get(DATABASE) or next(iter(aliases), "")
    if alias not in aliases:
        raise Http404(f"There are no deliveries in a database {alias!r}.")
    return alias


def place_of(alias: str, pk: int) -> str:
    """Return how a delivery is called, here and by ``manage.py signals``: ``default:5``."""
    return f"{alias}:{pk}"


def read_place(text: str, default: str | None = None) -> tuple[str, int] | None:
    """Read how a delivery is called; None for what is no such name.

    Args:
        text: ``other:5``, or a bare number.
        default: of which database a bare number is; the first that keeps deliveries, unless told.
    """
    alias, _, number = text.rpartition(":")
    aliases = keeping()
    alias = alias or default or next(iter(aliases), "")
    is_number = number.isascii() and number.isdecimal() and len(number) < 19  # what a BIGINT has room for
    return (alias, int(number)) if is_number and alias in aliases else None


def read_quoted(object_id: str) -> tuple[str, int]:
    """Read the name of a delivery in a page's address.

    Raises:
        Http404: when it is none.
    """
    place = read_place(unquote(object_id))
    if place is None:
        raise Http404(f"There is no delivery {object_id!r}.")
    return place
