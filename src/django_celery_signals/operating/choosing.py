"""The options by which deliveries and databases are chosen."""

from __future__ import annotations

import difflib
import math
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from django.core.management.base import CommandError
from django.db import Error, connections
from django.db.models import Q

from ..broker import loaded_app
from ..connected import connected
from ..durable.deliveries import DeliveryQuerySet, deliveries
from ..durable.missing import missing_tables
from ..durable.relay import keeping
from ..task import ReceiverTask
from .words import Options

FILTERS = ("id", "receiver", "signal", "error", "parent", "root")


def add_database(parser: ArgumentParser) -> None:
    """Let databases be chosen."""
    parser.add_argument("--database", action="append", help="alias of a database; may be repeated (all)")


def add_filters(parser: ArgumentParser) -> None:
    """Let failed deliveries be chosen."""
    parser.add_argument("--id", action="append", type=_id, help="as list-failed shows it: default:5; may be repeated")
    parser.add_argument("--receiver", help="name of the task")
    parser.add_argument("--signal", help="name of the signal: post_save, or with its module, shop.signals:paid")
    parser.add_argument("--error", help="type of the error, or another part of its fingerprint")
    parser.add_argument("--parent", help="id of the event whose receiver sent them")
    parser.add_argument("--root", help="id of the event that began what led to them")
    add_database(parser)


def number(wanted: str, accepts: Callable[[float], bool]) -> Callable[[str], float]:
    """Return what reads a number that is wanted to be something."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # which is neither below nor above anything
        if not accepts(value):
            raise ArgumentTypeError(f"{text!r} must be {wanted}")
        return value

    return read


def count(text: str) -> int:
    """Read a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} must be a number, at least 1")
    return int(text)


def _id(text: str) -> tuple[str, int]:
    """Return the alias of a database and the number of a delivery in it: two databases have the same numbers."""
    alias, _, number = text.rpartition(":")
    if not alias or not number.isdecimal():
        raise ArgumentTypeError(f"{text!r} must name the database, too, as list-failed shows it: default:5")
    return alias, int(number)


def narrows(options: Options) -> bool:
    """Tell whether only some are chosen."""
    return any(options[name] for name in FILTERS)


def chosen(options: Options, *, careful: bool = False) -> Iterator[DeliveryQuerySet]:
    """Yield the failed deliveries that the filters name, database by database.

    Args:
        options: of the command.
        careful: whether to ask for ``--all`` where no filter is given.

    Raises:
        CommandError: saying what to give instead.
    """
    if careful and not (options["all"] or narrows(options)):
        raise CommandError(f"Choose deliveries by {', '.join(f'--{name}' for name in FILTERS)}, or give --all.")
    if options["receiver"]:
        _check_receiver(options["receiver"], aliases(options))
    for alias in aliases(options):
        rows = deliveries(alias).failed()
        if options["id"] is not None:
            rows = rows.filter(pk__in=[number for place, number in options["id"] if place == alias])
        yield rows.filter(_about(options))


def _check_receiver(name: str, databases: Iterable[str]) -> None:
    """Refuse a name that no receiver has here, and no failed delivery there."""
    if not any(deliveries(alias).failed().filter(receiver=name).exists() for alias in databases):
        known_receivers([name])


def aliases(options: Options) -> Sequence[str]:
    """Return the databases that are meant.

    Raises:
        CommandError: for one that there is not.
    """
    found = options.get("database") or sorted({alias for alias, _ in options.get("id") or ()}) or keeping()
    if unknown := [alias for alias in found if alias not in connections.settings]:
        raise CommandError(f"There is no database {unknown[0]!r}; DATABASES has {', '.join(connections)}.")
    return list(found)


def known_receivers(names: Iterable[str], also: Iterable[str] = ()) -> list[str]:
    """Return names of receivers.

    Args:
        names: as they were written.
        also: further ones that there are.

    Raises:
        CommandError: for one that there is not.
    """
    tasks: Any = loaded_app().tasks
    receivers = {name for name, task in tasks.items() if isinstance(task, ReceiverTask)}
    known, found = sorted({*receivers, *also, *(one.receiver for one in connected())}), list(names)
    for name in found:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known) or 'none'}."
            raise CommandError(f"There is no such receiver: {name}. {remedy}")
    return found


def lack_of(alias: str) -> str:
    """Say which table a database lacks, and what makes it; empty where none is missing, or nobody can tell."""
    try:
        missing = missing_tables(alias)
    except Error:
        return ""
    return f"{alias}: the table {missing[0]} is missing; run manage.py migrate --database={alias}" if missing else ""


def _about(options: Options) -> Q:
    about, name = Q(), options["signal"]
    if options["receiver"]:
        about &= Q(receiver=options["receiver"])
    if options["parent"]:
        about &= Q(parent_id=options["parent"])
    if options["root"]:
        about &= Q(root_id=options["root"])
    if options["error"]:
        about &= Q(fingerprint__contains=options["error"])
    if name:
        about &= Q(signal=name) | Q(signal__endswith=f":{name}")
    return about
