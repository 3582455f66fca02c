"""``manage.py signals``: run the relay, and look after deliveries that have failed."""

from __future__ import annotations

import signal
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from ...durable.deliveries import DeliveryQuerySet, deliveries
from ...durable.relay import Relay, keeping


class Command(BaseCommand):
    """The command; each of its words is a method."""

    help = "Run the relay of durable deliveries, and list, retry or discard those that have failed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define the words and their options."""
        words = parser.add_subparsers(dest="word", required=True, metavar="relay|list-failed|retry|discard")
        relay = words.add_parser("relay", help="publish due deliveries until SIGTERM; any number may run at once")
        relay.add_argument("--once", action="store_true", help="publish what is due now, and end")
        relay.add_argument("--batch-size", type=int, default=500, help="deliveries claimed at once (500)")
        _add_database(relay)
        listed = words.add_parser("list-failed", help="show failed deliveries, the newest first")
        listed.add_argument("--limit", type=int, default=50, help="most to show (50)")
        _add_filters(listed)
        for word, text in (("retry", "let failed deliveries start anew"), ("discard", "delete failed deliveries")):
            changing = words.add_parser(word, help=text)
            changing.add_argument("--all", action="store_true", help="all of them, when nothing else is chosen")
            changing.add_argument("--dry-run", action="store_true", help="only say how many there are")
            _add_filters(changing)

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what the word says."""
        words: dict[str, Callable[[dict[str, Any]], None]] = {
            "relay": self.relay,
            "list-failed": self.list_failed,
            "retry": lambda options: self.change(options, DeliveryQuerySet.retry, "retried"),
            "discard": lambda options: self.change(options, DeliveryQuerySet.discard, "discarded"),
        }
        words[options["word"]](options)

    def relay(self, options: dict[str, Any]) -> None:
        """Run the relay."""
        try:
            relay = Relay(databases=options["database"], batch_size=options["batch_size"])
        except ValueError as error:
            raise CommandError(str(error)) from error
        if options["once"]:
            self.stdout.write(f"published: {relay.once()}")
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: relay.stop())
        self.stdout.write(f"relay: {', '.join(relay.databases)}")
        relay.run()

    def list_failed(self, options: dict[str, Any]) -> None:
        """Show one line for each, without a value of the sending."""
        left = options["limit"]
        for rows in _chosen(options):
            for row in rows.order_by("-finished_at", "-pk").defer("payload")[:left]:
                left -= 1
                self.stdout.write(
                    f"{rows.db}:{row.pk}  {row.finished_at:%Y-%m-%d %H:%M:%S}  {row.receiver}  {row.summary}  "
                    f"{row.fingerprint}  attempts={row.attempts} crashes={row.crashes}"
                )
        if left == options["limit"]:
            self.stdout.write("No delivery has failed.")

    def change(self, options: dict[str, Any], verb: Callable[[Any], int], done: str) -> None:
        """Apply a verb to the failed deliveries that were chosen."""
        if not (options["all"] or any(options[name] for name in ("id", "receiver", "error", "signal"))):
            raise CommandError("Choose deliveries by --id, --receiver, --signal or --error, or give --all.")
        for rows in _chosen(options):
            count = rows.count() if options["dry_run"] else verb(rows)
            self.stdout.write(f"{rows.db}: {count} {'would be ' if options['dry_run'] else ''}{done}")


def _add_database(parser: ArgumentParser) -> None:
    parser.add_argument("--database", action="append", help="alias of a database; may be repeated (all)")


def _add_filters(parser: ArgumentParser) -> None:
    parser.add_argument("--id", action="append", type=int, help="of a delivery; may be repeated")
    parser.add_argument("--receiver", help="name of the task")
    parser.add_argument("--signal", help="name of the signal, or its end, such as post_save")
    parser.add_argument("--error", help="type of the error, or part of its fingerprint")
    _add_database(parser)


def _chosen(options: dict[str, Any]) -> Iterator[DeliveryQuerySet]:
    """Yield the failed deliveries that the filters name, database by database."""
    for alias in options["database"] or keeping():
        if alias not in connections.settings:
            raise CommandError(f"There is no database {alias!r}; DATABASES has {', '.join(connections)}.")
        rows = deliveries(alias).failed()
        filters = {"pk__in": options["id"], "receiver": options["receiver"]}
        filters |= {"signal__endswith": options["signal"], "fingerprint__contains": options["error"]}
        yield rows.filter(**{name: value for name, value in filters.items() if value})
