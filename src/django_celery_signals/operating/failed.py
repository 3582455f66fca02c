"""``list-failed``, ``retry``, ``discard``: what was given up, and what is to become of it."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import OutputWrapper

from ..durable.deliveries import DeliveryQuerySet
from .choosing import add_filters, chosen, count, narrows
from .tables import progress
from .words import Options, Word


def _add_listed(parser: ArgumentParser) -> None:
    parser.add_argument("--limit", type=count, default=50, help="most to show (50)")
    parser.add_argument(
        "--traceback",
        dest="tracebacks",
        action="store_true",
        help="also the traceback of each, which may have values of what was sent",
    )
    add_filters(parser)


def _add_changing(parser: ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="all of them, when nothing else is chosen")
    parser.add_argument("--dry-run", action="store_true", help="only say how many there are")
    add_filters(parser)


def _list(options: Options, out: OutputWrapper) -> None:
    """Show one line for each, without a value of the sending; or with the error as it was, where that is asked for."""
    left, whole = options["limit"], options["tracebacks"]
    unread = ["payload"] if whole else ["payload", "error_message", "traceback"]
    for rows in chosen(options):
        for row in rows.order_by("-finished_at", "-pk").defer(*unread)[:left]:
            left -= 1
            out.write(
                f"{rows.db}:{row.pk}  {row.finished_at:%Y-%m-%d %H:%M:%S}  {row.receiver}  {row.summary}  "
                f"{row.fingerprint}  attempts={row.attempts} crashes={row.crashes}"
            )
            if whole:
                out.write(_error_of(row))
    if left == options["limit"]:
        out.write("There is no such failed delivery." if narrows(options) else "No delivery has failed.")


def _error_of(row: Any) -> str:
    """Return the traceback, at whose end the message stands, as lines that cannot move the cursor."""
    lines = (row.traceback or row.error_message or _NO_ERROR).splitlines()
    return "\n".join(f"    {''.join(sign if sign.isprintable() else ' ' for sign in line)}".rstrip() for line in lines)


_NO_ERROR = "The traceback is not kept any more (FAILED_PAYLOAD_DAYS)."


def _retry(options: Options, out: OutputWrapper) -> None:
    """Let the failed deliveries that were chosen start anew, but for those that have lost their payload."""
    for rows in chosen(options, careful=True):
        kept = rows.filter(payload__isnull=False)
        lost = rows.filter(payload__isnull=True).count()
        _change(options, out, kept, "retry", "retried")  # of a blocked key: those behind it go on after it
        if lost:
            out.write(f"{rows.db}: {lost} cannot be retried: they have lost their payload. Discard them.")


def _discard(options: Options, out: OutputWrapper) -> None:
    """Delete the failed deliveries that were chosen."""
    for rows in chosen(options, careful=True):
        _change(options, out, rows, "discard", "discarded")


def _change(options: Options, out: OutputWrapper, rows: DeliveryQuerySet, verb: str, done: str) -> None:
    behind, words = rows.behind(), f"{rows.count()} would be {done}"
    if not options["dry_run"]:
        with progress(out, rows.count() if out.isatty() else 0, f"{rows.db}: {verb}") as each:
            words = f"{getattr(rows, verb)(each)} {done}"
    out.write(f"{rows.db}: {words}" + (f"; {behind} wait behind these and go on" if behind else ""))


WORDS = [
    Word(
        name="list-failed",
        help="show failed deliveries, the newest first",
        teaches="Show the deliveries that were given up, the newest first: database and id, when, receiver, what was "
        "sent, fingerprint (the error's type and the first function of your own code that it came through), attempts, "
        "crashes. Never a value of what was sent, but with --traceback, which shows under each line the traceback, "
        "with the error's message at its end. Examples: manage.py signals list-failed --signal post_save --limit 10; "
        "manage.py signals list-failed --id default:5 --traceback",
        add_arguments=_add_listed,
        run=_list,
        checks=False,
    ),
    Word(
        name="retry",
        help="let failed deliveries start anew",
        teaches="Let failed deliveries start anew, once their cause is mended. One that blocks its key runs before all "
        "that wait behind it. Those whose payload was erased (FAILED_PAYLOAD_DAYS) stay as they are. Example: "
        "manage.py signals retry --receiver shop.receivers.invoice --dry-run",
        add_arguments=_add_changing,
        run=_retry,
    ),
    Word(
        name="discard",
        help="delete failed deliveries",
        teaches="Delete failed deliveries, which nobody can take back. What waits behind one that blocks its key goes "
        "on. Example: manage.py signals discard --error DoesNotExist --dry-run",
        add_arguments=_add_changing,
        run=_discard,
    ),
]
