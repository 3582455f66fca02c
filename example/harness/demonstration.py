"""The demonstration: start a worker, play the week, wait for the work, compare every number, stop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from django.utils.crypto import get_random_string
from flights.comparison import STATISTICS
from flights.comparison import compare as differences
from flights.models import Receipt

from . import environment, processes, week
from .progress import Progress
from .tally import Tally

PATIENCE = 60  # seconds without any receipt, after which the rest counts as lost
POLL = 0.2  # seconds
SHOWN = 10  # mismatches


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    flights: int | None  # how many to load; None: all
    serve: bool  # keep the site up afterwards
    port: int  # of the site


def run(options: Options, home: Path) -> Tally:
    """Run the demonstration in a directory of its own, and return what happened."""
    tally = Tally()
    prepare()
    try:
        with processes.running(processes.worker(settings.CELERY_TASK_DEFAULT_QUEUE, home / "worker.log")) as worker:
            load(options.flights, tally, worker)
            wait(tally, worker)
            compare(tally, worker)
            if options.serve:
                serve(options.port, home, worker)
    except (processes.ProcessDied, KeyboardInterrupt) as error:
        print(str(error) or "\nInterrupted.")
        count(tally)
        tally.failed += 1
    finally:
        environment.delete_queue()
    return tally


def prepare() -> None:
    """Say what is used, and make the tables."""
    broker = settings.CELERY_BROKER_URL.partition(":")[0]
    print(f"database {connection.display_name}, broker {broker}, a Celery worker with 2 processes", flush=True)
    environment.make_tables()


def load(limit: int | None, tally: Tally, worker: processes.Child) -> None:
    """Play the week in this process, as a web process would: it sends, and runs no receiver itself."""
    rows = week.read(limit)
    week.prepare(rows)
    played, progress = week.Week(rows), Progress("loading", "flights")
    with tally.counting():
        for loaded in played.play():
            tally.saved = played.saved
            worker.check()
            progress.show(loaded, len(rows))
    progress.finish()
    tally.saved = played.saved


def wait(tally: Tally, worker: processes.Child) -> None:
    """Wait until every event has its receipt, or until none has come for a while."""
    progress, seen, since = Progress("working", "events"), -1, time.monotonic()
    while time.monotonic() - since < PATIENCE:
        worker.check()
        done = Receipt.objects.count()
        progress.show(done, len(tally.sent))
        if done >= len(tally.sent):
            break
        if done != seen:
            seen, since = done, time.monotonic()
        time.sleep(POLL)
    progress.finish()


def count(tally: Tally) -> None:
    """Count the receipts."""
    receipts = dict(Receipt.objects.values_list("event_id", "outcome"))
    tally.received = set(receipts)
    tally.failed = sum(outcome == "failed" for outcome in receipts.values())


def compare(tally: Tally, worker: processes.Child) -> None:
    """Compare what the receivers wrote with what it must be, and explain any difference."""
    count(tally)
    ghosts = tally.received - tally.sent - tally.refused
    tally.mismatches = [f"event {event_id} was received, but never committed" for event_id in sorted(ghosts)]
    for statistic in STATISTICS:
        found = differences(statistic)
        print(f"checking {statistic.name}: {f'{len(found)} differ' if found else 'as SQL says'}", flush=True)
        tally.mismatches += found
    if not tally.succeeded():
        explain(tally, worker)


def explain(tally: Tally, worker: processes.Child) -> None:
    """Show what may help to understand a failure."""
    for line in tally.mismatches[:SHOWN]:
        print(f"  {line}")
    print(f"The worker's last lines:\n{worker.last_lines()}")


def serve(port: int, home: Path, worker: processes.Child) -> None:
    """Keep the site and its worker up until Ctrl-C."""
    password = make_user()
    with processes.running(processes.site(port, home / "site.log")) as site:
        print(f"\nhttp://127.0.0.1:{port}/ shows what the receivers know; press Ctrl-C to end.")
        print(f"http://127.0.0.1:{port}/admin/ changes flights: user demo, password {password}", flush=True)
        try:
            while True:
                worker.check()
                site.check()
                time.sleep(POLL)
        except KeyboardInterrupt:
            print()


def make_user() -> str:
    """Make a user for the admin and return the new password."""
    password = get_random_string(12)
    User.objects.filter(username="demo").delete()
    User.objects.create_superuser("demo", password=password)
    return password
