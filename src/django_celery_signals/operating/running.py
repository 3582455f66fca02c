"""``relay``: publish what is due."""

from __future__ import annotations

import signal
from argparse import ArgumentParser

from django.core.management.base import CommandError, OutputWrapper

from ..durable.relay import Relay
from .choosing import add_database
from .words import Options, Word


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="publish what is due now, and end")
    parser.add_argument("--batch-size", type=int, default=500, help="deliveries claimed at once (500)")
    parser.add_argument("--idle", type=float, default=1.0, help="seconds between two looks when nothing is due (1)")
    add_database(parser)


def _relay(options: Options, out: OutputWrapper) -> None:
    try:
        relay = Relay(databases=options["database"], batch_size=options["batch_size"], idle=options["idle"])
    except ValueError as error:
        raise CommandError(str(error)) from error
    relay.app.loader.import_default_modules()  # as a worker does: a task in none of the apps' usual modules
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: relay.stop())
    if options["once"]:
        out.write(f"published: {relay.once()}")
        return
    out.write(f"relay: {', '.join(relay.databases)}")
    relay.run()


WORDS = [
    Word(
        name="relay",
        help="publish due deliveries until SIGTERM; any number may run at once",
        teaches="Publish due deliveries until SIGTERM, then finish the batch. Every worker does the same in its main "
        "process, unless EMBED_RELAY is off; any number may run at once. A shorter --idle lets what the fast path "
        "leaves come sooner, for one cheap query each time. Examples: manage.py signals relay; "
        "manage.py signals relay --once --database default",
        add_arguments=_add_arguments,
        run=_relay,
    )
]
