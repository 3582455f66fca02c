#!/usr/bin/env python
"""Play real flights into a Django site, kill the Celery worker that receives its signals, and check every number."""

from __future__ import annotations

import argparse
import signal
import sys

import django
from harness import environment

EPILOG = """\
In the middle the worker is killed with SIGKILL while it runs a receiver, and with it the messages that it had taken. A
new one is started; nothing else is done about it.

the last lines:
  log: entries=... flights=... inversions=0
  index: sent=... runs=... stale=0
  demo: saved=... sent=... received=... failed=0 duplicates=0 lost=0 mismatches=0

  inversions  entries of a flight's log that stand behind one that was to follow them; its receiver is ordered
  runs        of the search index's receiver, which is debounced: fewer than the events that were sent to it
  stale       entries of the search index that do not show their flight as it is at the end

  saved       committed calls of a flight's save(): one for each that is loaded, and those that correct some later
  sent        events that signals sent in transactions that were committed, one for each receiver
  received    of these, the events whose receiver has committed its work; a receipt is part of that work, and says
              for how many events it stands
  failed      receivers that gave up with an error, and this run itself when it was cut short
  duplicates  receipts of work that had been committed before
  lost        committed events whose work is missing at the end
  mismatches  numbers that differ from what one SQL query over the flights says, and events of rolled-back transactions

  The exit code is 0 only if the last four are 0, there are no inversions, and the index has had fewer runs than events.

the environment:
  DATABASE_URL  postgres://user:password@host/name, mariadb://..., sqlite:///file; else a fresh SQLite file.
                The database must exist; its tables flights_* and django_celery_signals_* are EMPTIED.
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
    parser.add_argument(
        "--flights",
        type=positive,
        metavar="N",
        default=700,
        help="how many of the week's 6,101 flights to load (default: %(default)s)",
    )
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
