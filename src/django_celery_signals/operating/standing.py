"""``status``: how deliveries stand, for people and for monitors."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from django.core.management.base import CommandError, OutputWrapper
from django.db import Error, connections
from django.db.models import Count

from ..broker import connection_for, is_fallback, loaded_app, project_app
from ..durable.clock import In, by_index, seconds_between
from ..durable.deliveries import DeliveryQuerySet, deliveries
from ..durable.pauses import paused
from ..durable.probe import probes
from ..durable.rows import State
from ..durable.texts import LARGE
from ..statistics import Figures, rates
from .choosing import add_database, aliases, lack_of, number
from .words import Options, Word

MAX_LAG = 60.0  # seconds
RECENT = 5  # minutes
_seconds = number("a number of seconds above zero", lambda seconds: seconds > 0)
MOST_SHOWN = 50  # blocked keys
MOST_READ = 10_000  # deliveries that are looked at for tasks which nobody knows
MOST_NAMED = 10  # of these tasks


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="end with 1 when something is wrong, for monitors")
    parser.add_argument(
        "--max-lag", type=_seconds, default=MAX_LAG, metavar="SECONDS", help="how old what is due may be (60)"
    )
    parser.add_argument("--max-failed", type=int, metavar="N", help="how many may have failed (any number)")
    parser.add_argument("--no-broker", action="store_true", help="do not ask the broker whether it is there")
    add_database(parser)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the deliveries of one database stand."""

    alias: str
    counts: dict[int, int]
    waiting: int  # of those that are ready, for their key's turn
    unknown: dict[str, int]  # of those that wait for the relay: how many are for a task which is not known here
    lag: float  # seconds since the oldest that could run was due; 0: none is late


def standing(alias: str) -> Standing:
    """Look at a database; this counts its rows."""
    rows = deliveries(alias)
    counts = dict(rows.order_by().values_list("state").annotate(Count("pk")))
    return Standing(alias=alias, counts=counts, waiting=rows.waiting().count(), unknown=_unknown(alias), lag=rows.lag())


def _unknown(alias: str) -> dict[str, int]:
    """Return how many deliveries are for each task that the app does not have, among those that are due first."""
    if is_fallback(project_app()):
        return {}
    app, rows = loaded_app(), deliveries(alias)
    waiting = rows.filter(state=State.READY, due_at__isnull=False).order_by("due_at", "pk")
    with by_index(connections[alias], rows.model, "dcs_delivery_due"):
        found = Counter(waiting.values_list("receiver", flat=True)[:MOST_READ])
    return {name: count for name, count in found.items() if name not in app.tasks}


def _age(alias: str, moment: datetime, now: datetime) -> float:
    return seconds_between(moment, now, connections[alias])


def _status(options: Options, out: OutputWrapper) -> None:
    """Say how it stands; raise what is not migrated, and with --check what is wrong."""
    wrong: list[str] = []
    lacking: list[str] = []
    for alias in aliases(options):
        try:
            wrong += _show(alias, options, out)
        except Error as error:
            if lack := lack_of(alias):
                lacking.append(lack)
                continue
            out.write(f"{alias}: {error}")
            wrong.append(f"the database {alias!r} does not answer: {error}")
    if not options["no_broker"]:
        is_there, words = _broker()
        out.write(f"broker: {words}")
        wrong += [] if is_there else [f"the broker is away: {words}"]
    said = [*lacking, *(wrong if options["check"] else ())]
    if said:
        raise CommandError("; ".join(said))


def _show(alias: str, options: Options, out: OutputWrapper) -> list[str]:
    """Say how it stands in one database, and return what is wrong."""
    found = standing(alias)
    words = ", ".join(f"{found.counts.get(state.value, 0)} {state.label}" for state in State)
    turns = f", {found.waiting} of the ready ones wait for their key's turn" if found.waiting else ""
    out.write(f"{alias}: {words}{turns}")
    out.write(f"{alias}: the oldest that is due has waited {found.lag:.0f} s")
    out.write(f"{alias}: {_rates(alias)}")
    for line in (*_orphans(found.unknown), *_paused(alias), *_probed(alias), *_blocked(deliveries(alias))):
        out.write(f"{alias}:{line}")
    return list(_wrong(found, options))


def _orphans(unknown: Mapping[str, int]) -> Iterator[str]:
    """Yield what waits for a task that is not known here, the most first."""
    if unknown:
        names = [f"{name} ({count:,})" for name, count in sorted(unknown.items(), key=lambda one: (-one[1], one[0]))]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        wait = f"{sum(unknown.values()):,} wait for a task that this process does not know"
        yield f" {wait}: {', '.join(names[:MOST_NAMED])}{more}"


def _rates(alias: str) -> str:
    """Say how much was done lately, as processes have written it down."""
    found = rates(alias, minutes=RECENT).get("", Figures())
    words = [f"{getattr(found, name):.1f} {name}" for name in ("sent", "succeeded", "retried", "failed", "discarded")]
    return f"{', '.join(words)} a minute, in the last {RECENT} minutes"


def _wrong(found: Standing, options: Options) -> Iterator[str]:
    if found.lag > options["max_lag"]:
        yield f"{found.alias}: the oldest that is due has waited {found.lag:.0f} s, more than {options['max_lag']:g}"
    for line in _orphans(found.unknown):
        yield f"{found.alias}:{line}"
    failed = found.counts.get(State.FAILED, 0)
    if options["max_failed"] is not None and failed > options["max_failed"]:
        yield f"{found.alias}: {failed} have failed, more than {options['max_failed']}"


def _paused(alias: str) -> Iterator[str]:
    for receiver, since in paused(alias).items():
        yield f" paused since {since:%Y-%m-%d %H:%M:%S}  {receiver}"


def _probed(alias: str) -> Iterator[str]:
    """Yield what is known of queues: a probe that does not come back says that nobody takes what is there."""
    for probe in probes(alias).filter(probed_at__isnull=False).annotate(now=In(0)).order_by("queue"):
        sent = f"sent {_age(alias, probe.probed_at, probe.now):.0f} s ago"
        seen = f"last seen {_age(alias, probe.seen_at, probe.now):.0f} s ago" if probe.seen_at else "never seen"
        yield f" probe of queue {probe.queue}  {sent}, {seen}"


def _blocked(rows: DeliveryQuerySet) -> Iterator[str]:
    """Yield the keys that a failed delivery blocks: what failed, and how many wait behind it."""
    blocked = list(rows.blocked().order_by("finished_at", "pk").defer(*LARGE)[: MOST_SHOWN + 1])
    if len(blocked) > MOST_SHOWN:
        yield f" the {MOST_SHOWN} keys that have been blocked longest; there are more"
    for row in blocked[:MOST_SHOWN]:
        yield (
            f"{row.pk}  blocked since {row.finished_at:%Y-%m-%d %H:%M:%S}  {row.receiver}  "
            f"key={row.known_key}  behind={row.behind or 0}  {row.summary}  {row.fingerprint}"
        )


def _broker() -> tuple[bool, str]:
    """Return whether the broker answers, and how soon, or why not."""
    app = project_app()
    if is_fallback(app):
        return False, "there is no Celery app of the project in this process"
    began = time.monotonic()
    try:
        with connection_for(app) as connection:
            connection.ensure_connection(max_retries=1)
    except Exception as error:  # of any transport
        return False, f"away, {type(error).__name__}: {error}"
    return True, f"answers after {(time.monotonic() - began) * 1000:.0f} ms"


WORDS = [
    Word(
        name="status",
        help="say how deliveries stand; with --check, for a monitor",
        teaches="Say how deliveries stand, database by database: how many there are in each state, how long the oldest "
        "has waited that is due (the number to watch: it grows when no relay or no worker runs), which deliveries wait "
        "for a task that this process does not know, which receivers are paused, when the probes of queues came back, "
        "which keys a failed delivery blocks; and whether the broker answers. With --check it ends with 1 when "
        "--max-lag or --max-failed is exceeded, a task is not known or the broker is away, and says so. Example: "
        "manage.py signals status --check --max-lag 60",
        add_arguments=_add_arguments,
        run=_status,
        checks=False,
    )
]
