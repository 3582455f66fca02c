"""``pause`` and ``resume``: let a receiver's deliveries wait, and go on, without a deploy."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandError, OutputWrapper

from ..broker import project_app
from ..connected import connected
from ..durable.deliveries import deliveries
from ..durable.pauses import pause, paused, resume
from ..durable.rows import State
from .choosing import add_database, aliases, known_receivers
from .words import Options, Word

MOST_COUNTED = 10_000  # deliveries


def _add_pause(parser: ArgumentParser) -> None:
    parser.add_argument("receiver", nargs="+", help="name of the task, as signals list shows it")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be paused")
    add_database(parser)


def _add_resume(parser: ArgumentParser) -> None:
    parser.add_argument("receiver", nargs="*", help="name of the task, as signals status shows it")
    parser.add_argument("--all", action="store_true", help="all that are paused")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go on")
    add_database(parser)


def _pause(options: Options, out: OutputWrapper) -> None:
    """Pause receivers, also under the names that they had before, whose deliveries they still take."""
    names = known_receivers(options["receiver"])
    for name in names:
        _check_rows(name, out)
    for alias in aliases(options):
        for name in _all_names(names):
            if name in paused(alias) or not (options["dry_run"] or pause(name, alias)):
                out.write(f"{alias}: {name} is paused already")
            else:
                out.write(f"{alias}: {name} {'would be' if options['dry_run'] else 'is'} paused")


def _check_rows(name: str, out: OutputWrapper) -> None:
    """Refuse a receiver whose deliveries have no rows; say so of one of which some have none."""
    guarantees = {one.guarantee for one in connected() if one.receiver == name}
    if guarantees and "durable" not in guarantees:
        raise CommandError(f"{name} has no durable deliveries: what it is sent has no row that could wait.")
    if guarantees - {"durable"}:
        out.write(f"{name} is also sent what has no row, for guarantee= is another one there: that goes on.")


def _resume(options: Options, out: OutputWrapper) -> None:
    """Let receivers go on, under all their names."""
    if not options["receiver"] and not options["all"]:
        raise CommandError("Name the receivers that are to go on, or give --all. manage.py signals status shows them.")
    there = {alias: list(paused(alias)) for alias in aliases(options)}
    known = {name for names in there.values() for name in names}
    names = sorted(known) if options["all"] else _all_names(known_receivers(options["receiver"], known))
    if not known.intersection(names):
        out.write("Nothing is paused." if options["all"] else f"{', '.join(names)}: not paused.")
    for alias, name in ((alias, name) for alias, found in there.items() for name in found if name in names):
        count = _waiting(alias, name)
        done = "would go on" if options["dry_run"] or not resume(name, alias) else "goes on"
        out.write(f"{alias}: {name} {done}; {count} paused")


def _all_names(names: Iterable[str]) -> list[str]:
    """Return names of receivers, each followed by those that it had before."""
    tasks: Any = project_app().tasks
    return [known for name in names for known in (name, *getattr(tasks.get(name), "former_names", ()))]


def _waiting(alias: str, receiver: str) -> str:
    """Return how many are paused, up to a bound: there may be very many."""
    rows = deliveries(alias).filter(state=State.PAUSED, receiver=receiver).order_by()
    count = rows[: MOST_COUNTED + 1].count()
    if count > MOST_COUNTED:
        return f"more than {MOST_COUNTED:,} deliveries were"
    return "1 delivery was" if count == 1 else f"{count:,} deliveries were"


WORDS = [
    Word(
        name="pause",
        help="let a receiver's deliveries wait",
        teaches="Let the durable deliveries of receivers wait, without a deploy: while the service they call is away, "
        "or a mistake is being mended. Senders write them as ever, what runs already ends, and nothing new begins, in "
        "any worker, as soon as this command has ended. Of an ordered receiver each key keeps its order. Example: "
        "manage.py signals pause shop.receivers.notify",
        add_arguments=_add_pause,
        run=_pause,
    ),
    Word(
        name="resume",
        help="let a paused receiver go on",
        teaches="Let paused receivers go on. The relay publishes what was paused within seconds, what has waited "
        "longest first. Example: manage.py signals resume --all",
        add_arguments=_add_resume,
        run=_resume,
    ),
]
