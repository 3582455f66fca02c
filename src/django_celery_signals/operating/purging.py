"""``purge``: delete what has ended long ago."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable

from django.core.management.base import OutputWrapper

from ..durable.clock import In
from ..durable.deliveries import DeliveryQuerySet, deliveries
from ..durable.rows import STEP, State
from .choosing import add_database, aliases, number
from .tables import progress
from .words import Options, Word

DAY = 86_400.0  # seconds
_days = number("a number of days, such as 30 or 0.5", lambda days: 0 <= days < 36_500)
STATES = {"done": State.DONE, "failed": State.FAILED}


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--older-than", type=_days, required=True, metavar="DAYS", help="that ended so long ago")
    parser.add_argument(
        "--state", choices=sorted(STATES), action="append", help="done, failed; may be repeated (done alone)"
    )
    parser.add_argument("--receiver", help="name of the task")
    parser.add_argument("--dry-run", action="store_true", help="only say how many there are")
    add_database(parser)


def _purge(options: Options, out: OutputWrapper) -> None:
    """Delete in small steps; what waits behind a failed one goes on, as after discard."""
    for alias in aliases(options):
        for name in options["state"] or ["done"]:
            rows = deliveries(alias).filter(state=STATES[name], finished_at__lt=In(-options["older_than"] * DAY))
            if options["receiver"]:
                rows = rows.filter(receiver=options["receiver"])
            if options["dry_run"]:
                out.write(f"{alias}: {rows.count()} {name} would be deleted")
            else:
                out.write(f"{alias}: {_in_steps(rows, name, out)} {name} deleted")


def _in_steps(rows: DeliveryQuerySet, name: str, out: OutputWrapper) -> int:
    verbs: dict[str, Callable[[DeliveryQuerySet], int]] = {
        "done": lambda found: found.filter(state=State.DONE).erase(),
        "failed": lambda found: found.discard(),
    }
    deleted, last = 0, 0
    with progress(out, rows.count() if out.isatty() else 0, f"{rows.db}: purge") as each:
        while ids := list(rows.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:STEP]):
            count, last = verbs[name](deliveries(rows.db).filter(pk__in=ids)), ids[-1]
            deleted += count
            each(count)
    return deleted


WORDS = [
    Word(
        name="purge",
        help="delete what has ended long ago",
        teaches="Delete deliveries that ended more than so many days ago, in small steps: those that succeeded and are "
        "kept because of retain=, or with --state failed those that were given up, which nobody can take back. The "
        "relay deletes by itself what retain= has kept long enough, and erases the payloads of failed ones after "
        "FAILED_PAYLOAD_DAYS. Example: manage.py signals purge --older-than 90 --state failed --dry-run",
        add_arguments=_add_arguments,
        run=_purge,
    )
]
