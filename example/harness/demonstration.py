"""The demonstration: play the week, kill the worker in the middle, wait for the work, compare every number."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import User
from django.db import DEFAULT_DB_ALIAS, connection
from django.db.models import QuerySet
from django.utils.crypto import get_random_string
from flights.comparison import STATISTICS
from flights.comparison import compare as differences
from flights.models import LogEntry, Receipt

from django_celery_signals import deliveries
from django_celery_signals.durable.deliveries import State
from django_celery_signals.statistics import counting

from . import environment, processes, week
from .progress import Progress
from .tally import Tally

PATIENCE = 90  # seconds without any progress, after which the rest counts as lost
POLL = 0.2  # seconds
LOOK = 0.002  # seconds: a receiver here takes a few milliseconds
SHOWN = 10  # mismatches


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    flights: int  # how many to load
    serve: bool  # keep the site up afterwards
    port: int  # of the site


def run(options: Options, home: Path) -> Tally:
    """Run the demonstration in a directory of its own, and return what happened."""
    tally = Tally()
    prepare()
    played = Played(options.flights, tally)
    try:
        with tally.counting():
            with processes.running(worker(home, 1)) as first:
                played.on(first, until=0.5)
                kill(first)
            with processes.running(worker(home, 2)) as second:
                played.on(second)
                print(f"{tally.saved:,} saves were committed: each flight once, and some corrected later", flush=True)
                wait(tally, second)
                compare(tally, second)
                if options.serve:
                    serve(options.port, home, second)
    except (processes.ProcessDied, KeyboardInterrupt) as error:
        print(str(error) or "\nInterrupted.")
        count(tally)
        tally.cut_short = True
    finally:
        environment.delete_queue()
        counting.flusher.finish()  # else it writes at the exit of the process, when SQLite's file is gone
    return tally


def prepare() -> None:
    """Say what is used, and make the tables."""
    broker = settings.CELERY_BROKER_URL.partition(":")[0]
    print(f"database {connection.display_name}, broker {broker}, a Celery worker with 2 processes", flush=True)
    environment.make_tables()


def worker(home: Path, number: int) -> processes.Child:
    """Start a worker; it has the relay inside."""
    return processes.worker(settings.CELERY_TASK_DEFAULT_QUEUE, home / f"worker-{number}.log")


class Played:
    """The week, played in this process, as a web process would: it sends, and runs no receiver itself."""

    def __init__(self, limit: int, tally: Tally) -> None:
        """Read the first rows of the week."""
        self.rows, self.tally = week.read(limit), tally
        week.prepare(self.rows)
        self._week = week.Week(self.rows)
        self._batches, self._progress = self._week.play(), Progress("loading", "flights")

    def on(self, worker: processes.Child, *, until: float = 1) -> None:
        """Play on, while a worker receives, until so much of the week is played."""
        for loaded in self._batches:
            self.tally.saved = self._week.saved
            worker.check()
            self._progress.show(loaded, len(self.rows))
            if loaded >= until * len(self.rows) and until < 1:
                break
        self._progress.finish()


def kill(worker: processes.Child) -> None:
    """Kill the worker without a warning, in the middle of a receiver, and say what it leaves behind."""
    until = time.monotonic() + PATIENCE
    while not in_the_middle() and time.monotonic() < until:
        worker.check()
        time.sleep(LOOK)
    worker.kill()
    states = Counter(open_deliveries().values_list("state", flat=True))
    print(
        f"killed the worker: of its deliveries {states[State.RUNNING]:,} had begun to run, {states[State.SENT]:,} were "
        f"queued or prefetched, {states[State.READY]:,} were not published yet. Starting another one.",
        flush=True,
    )


def in_the_middle() -> bool:
    """Tell whether the worker has done something already, and is running a receiver now."""
    return Receipt.objects.exists() and open_deliveries().filter(state=State.RUNNING).exists()


def open_deliveries() -> QuerySet[object]:
    """Return the deliveries that are not done."""
    return deliveries(DEFAULT_DB_ALIAS).exclude(state=State.FAILED)


def wait(tally: Tally, worker: processes.Child) -> None:
    """Wait until nothing is left to do, or until nothing has been done for a while."""
    progress, last, since = Progress("working", "events"), None, time.monotonic()
    while time.monotonic() - since < PATIENCE:
        worker.check()
        left = open_deliveries().count()
        progress.show(len(tally.sent) - left, len(tally.sent))
        if not left:
            break
        if left != last:
            last, since = left, time.monotonic()
        time.sleep(POLL)
    progress.finish()


def count(tally: Tally) -> None:
    """Count what was done, by the receipts that were committed with it, and what was given up."""
    tally.received = Counter()
    for event_id, stands_for in Receipt.objects.values_list("event_id", "stands_for"):
        tally.received[event_id] += stands_for
    tally.failed = set(deliveries(DEFAULT_DB_ALIAS).failed().values_list("event_id", flat=True))
    for flight, event_id in LogEntry.objects.order_by("pk").values_list("flight_id", "event_id"):
        tally.log.setdefault(flight, []).append(event_id)


def compare(tally: Tally, worker: processes.Child) -> None:
    """Compare what the receivers wrote with what it must be, and explain any difference."""
    count(tally)
    ghosts = [f"event {event_id} was received, but never committed" for event_id in sorted(tally.ghosts)]
    tally.mismatches = {"ghosts": ghosts}
    for statistic in STATISTICS:
        found = tally.mismatches[statistic.name] = differences(statistic)
        verdict = f"{len(found)} differ" if found else "same as recomputed by SQL"
        print(f"checking {statistic.name}: {verdict}", flush=True)
    if not tally.succeeded():
        explain(tally, worker)


def explain(tally: Tally, worker: processes.Child) -> None:
    """Show what may help to understand a failure."""
    for line in [*chain(*tally.mismatches.values())][:SHOWN]:
        print(f"  {line}")
    missing = [event_id for event_id, group in tally.sent.items() if group in tally.lost]
    for row in deliveries(DEFAULT_DB_ALIAS).filter(event_id__in=[*missing, *tally.failed][:SHOWN]):
        print(f"  {row}: {row.error_type or 'no error'}")
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
