"""``manage.py signals``: run the relay, see how deliveries stand, and look after those that have failed."""

from __future__ import annotations

import signal
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.db.models import Count, Q

from ... import conf
from ...broker import project_app
from ...durable import saving
from ...durable.deliveries import DeliveryQuerySet, deliveries
from ...durable.relay import Relay, keeping
from ...durable.routes import queue_of
from ...durable.rows import State
from ...durable.texts import LARGE
from ...names import short_name, signal_name
from ...receivers import connections as connected
from ...senders import label_of

FILTERS = ("id", "receiver", "signal", "error")


class Command(BaseCommand):
    """The command; each of its words is a method."""

    help = "List receivers, run the relay of durable deliveries, and list, retry or discard those that have failed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define the words and their options."""
        words = parser.add_subparsers(dest="word", required=True, metavar="list|status|relay|list-failed|retry|discard")
        words.add_parser("list", help="show what is connected, and the models whose saves are atomic for it")
        status = words.add_parser("status", help="count the deliveries, and show the keys that a failed one blocks")
        _add_database(status)
        relay = words.add_parser("relay", help="publish due deliveries until SIGTERM; any number may run at once")
        relay.add_argument("--once", action="store_true", help="publish what is due now, and end")
        relay.add_argument("--batch-size", type=int, default=500, help="deliveries claimed at once (500)")
        relay.add_argument("--idle", type=float, default=1.0, help="seconds between two looks when nothing is due (1)")
        _add_database(relay)
        listed = words.add_parser("list-failed", help="show failed deliveries, the newest first")
        listed.add_argument("--limit", type=_count, default=50, help="most to show (50)")
        _add_filters(listed)
        for word, text in (("retry", "let failed deliveries start anew"), ("discard", "delete failed deliveries")):
            changing = words.add_parser(word, help=text)
            changing.add_argument("--all", action="store_true", help="all of them, when nothing else is chosen")
            changing.add_argument("--dry-run", action="store_true", help="only say how many there are")
            _add_filters(changing)

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what the word says."""
        words: dict[str, Callable[[dict[str, Any]], None]] = {
            "list": self.list,
            "status": self.status,
            "relay": self.relay,
            "list-failed": self.list_failed,
            "retry": self.retry,
            "discard": self.discard,
        }
        words[options["word"]](options)

    def list(self, options: dict[str, Any]) -> None:
        """Show one line for each connection; what a plain ``signal.connect`` made is known to Django alone."""
        app, default = project_app(), conf.default_guarantee()
        for one in connected():
            queue = queue_of(app, one.receiver, {"queue": one.options.queue}) or "(by its route)"
            self.stdout.write(
                f"{short_name(signal_name(one.signal))}  {label_of(one.sender)}  {one.receiver}  "
                f"guarantee={one.options.guarantee or default}  queue={queue}"
            )
        atomic = ", ".join(sorted(model._meta.label for model in saving.models())) or "none"
        self.stdout.write(
            f"models whose saves are atomic: {atomic if conf.get().ATOMIC_SAVES else 'none (ATOMIC_SAVES)'}"
        )

    def status(self, options: dict[str, Any]) -> None:
        """Count what there is, and show one line for each blocked key: what failed, and how many wait behind it."""
        for alias in _aliases(options):
            rows = deliveries(alias)
            counts = dict(rows.order_by().values_list("state").annotate(Count("pk")))
            words = ", ".join(f"{counts.get(state.value, 0)} {state.label}" for state in State)
            self.stdout.write(f"{alias}: {words}, {rows.waiting().count()} of the ready ones wait for their key's turn")
            blocked = rows.blocked().order_by("finished_at", "pk").defer(*LARGE)
            for row in blocked.iterator(chunk_size=500):
                self.stdout.write(
                    f"{alias}:{row.pk}  blocked since {row.finished_at:%Y-%m-%d %H:%M:%S}  {row.receiver}  "
                    f"key={row.known_key}  behind={row.behind or 0}  {row.summary}  {row.fingerprint}"
                )

    def relay(self, options: dict[str, Any]) -> None:
        """Run the relay."""
        try:
            relay = Relay(databases=options["database"], batch_size=options["batch_size"], idle=options["idle"])
        except ValueError as error:
            raise CommandError(str(error)) from error
        relay.app.loader.import_default_modules()  # as a worker does: a task in none of the apps' usual modules
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: relay.stop())
        if options["once"]:
            self.stdout.write(f"published: {relay.once()}")
            return
        self.stdout.write(f"relay: {', '.join(relay.databases)}")
        relay.run()

    def list_failed(self, options: dict[str, Any]) -> None:
        """Show one line for each, without a value of the sending."""
        left = options["limit"]
        for rows in _chosen(options):
            for row in rows.order_by("-finished_at", "-pk").defer("payload", "error_message", "traceback")[:left]:
                left -= 1
                self.stdout.write(
                    f"{rows.db}:{row.pk}  {row.finished_at:%Y-%m-%d %H:%M:%S}  {row.receiver}  {row.summary}  "
                    f"{row.fingerprint}  attempts={row.attempts} crashes={row.crashes}"
                )
        if left == options["limit"]:
            self.stdout.write("There is no such failed delivery." if _narrows(options) else "No delivery has failed.")

    def retry(self, options: dict[str, Any]) -> None:
        """Let the failed deliveries that were chosen start anew, but for those that have lost their payload."""
        for rows in _chosen(options, careful=True):
            kept = rows.filter(payload__isnull=False)
            lost = rows.filter(payload__isnull=True).count()
            self._change(options, kept, kept.retry, "retried")  # of a blocked key: those behind it go on after it
            if lost:
                self.stdout.write(f"{rows.db}: {lost} cannot be retried: they have lost their payload. Discard them.")

    def discard(self, options: dict[str, Any]) -> None:
        """Delete the failed deliveries that were chosen."""
        for rows in _chosen(options, careful=True):
            self._change(options, rows, rows.discard, "discarded")

    def _change(self, options: dict[str, Any], rows: DeliveryQuerySet, verb: Callable[[], int], done: str) -> None:
        behind = rows.behind()
        words = f"{rows.count()} would be {done}" if options["dry_run"] else f"{verb()} {done}"
        self.stdout.write(f"{rows.db}: {words}" + (f"; {behind} wait behind these and go on" if behind else ""))


def _add_database(parser: ArgumentParser) -> None:
    parser.add_argument("--database", action="append", help="alias of a database; may be repeated (all)")


def _add_filters(parser: ArgumentParser) -> None:
    parser.add_argument("--id", action="append", type=_id, help="as list-failed shows it: default:5; may be repeated")
    parser.add_argument("--receiver", help="name of the task")
    parser.add_argument("--signal", help="name of the signal: post_save, or with its module, shop.signals:paid")
    parser.add_argument("--error", help="type of the error, or another part of its fingerprint")
    _add_database(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} must be a number, at least 1")
    return int(text)


def _id(text: str) -> tuple[str, int]:
    """Return the alias of a database and the number of a delivery in it: two databases have the same numbers."""
    alias, _, number = text.rpartition(":")
    if not alias or not number.isdecimal():
        raise ArgumentTypeError(f"{text!r} must name the database, too, as list-failed shows it: default:5")
    return alias, int(number)


def _narrows(options: dict[str, Any]) -> bool:
    return any(options[name] for name in FILTERS)


def _chosen(options: dict[str, Any], *, careful: bool = False) -> Iterator[DeliveryQuerySet]:
    """Yield the failed deliveries that the filters name, database by database.

    Args:
        options: of the command.
        careful: whether to ask for ``--all`` where no filter is given.

    Raises:
        CommandError: saying what to give instead.
    """
    if careful and not (options["all"] or _narrows(options)):
        raise CommandError("Choose deliveries by --id, --receiver, --signal or --error, or give --all.")
    for alias in _aliases(options):
        rows = deliveries(alias).failed()
        if options["id"] is not None:
            rows = rows.filter(pk__in=[number for place, number in options["id"] if place == alias])
        yield rows.filter(_about(options))


def _aliases(options: dict[str, Any]) -> Sequence[str]:
    aliases = options["database"] or sorted({alias for alias, _ in options.get("id") or ()}) or keeping()
    if unknown := [alias for alias in aliases if alias not in connections.settings]:
        raise CommandError(f"There is no database {unknown[0]!r}; DATABASES has {', '.join(connections)}.")
    return list(aliases)


def _about(options: dict[str, Any]) -> Q:
    about, name = Q(), options["signal"]
    if options["receiver"]:
        about &= Q(receiver=options["receiver"])
    if options["error"]:
        about &= Q(fingerprint__contains=options["error"])
    if name:
        about &= Q(signal=name) | Q(signal__endswith=f":{name}")
    return about
