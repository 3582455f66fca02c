#!/usr/bin/env python
"""Play a week of real flights into a Django site whose signals a Celery worker receives, and check every number."""

from __future__ import annotations

import argparse
import signal
import sys

import django
from harness import environment

EPILOG = """\
the last line:
  demo: saved=... sent=... received=... lost=0 failed=0 mismatches=0

  saved       committed calls of save()
  sent        events that signals handed to the broker, one for each receiver
  received    of these, the events whose receiver ran in the worker, or found its flight deleted
  lost        events that no worker ever received
  failed      receivers that gave up with an error, and this run itself when it was cut short
  mismatches  numbers that differ from what one SQL query over the flights says, and events of rolled-back transactions

  The exit code is 0 only if the last three are 0.

the environment:
  DATABASE_URL  postgres://user:password@host/name, mariadb://..., sqlite:///file; else a fresh SQLite file.
                The database must exist; the tables flights_* in it are EMPTIED.
  BROKER_URL    amqp://guest:guest@localhost//, redis://localhost/0; else a folder of files.
                A queue with a new name is used, and deleted at the end.
"""


def main() -> int:
    """Run the demonstration and return its exit code."""
    arguments = parse()
    for number in (signal.SIGINT, signal.SIGTERM):  # either way, what was started is stopped
        signal.signal(number, signal.default_int_handler)
    with environment.home() as home:
        django.setup()
        from harness.demonstration import Options, run  # needs the models, and they need Django set up

        tally = run(Options(**vars(arguments)), home)
    print(tally, flush=True)
    return 0 if tally.succeeded() else 1


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flights", type=positive, metavar="N", help="load only the first N of the 6,101 flights")
    parser.add_argument("--serve", action="store_true", help="keep the site and its worker up afterwards, until Ctrl-C")
    parser.add_argument("--port", type=int, default=8000, help="of the site on 127.0.0.1 (default: %(default)s)")
    return parser.parse_args()


def positive(text: str) -> int:
    """Read a number of flights."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
