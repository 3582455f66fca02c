"""The dashboard: how deliveries stand now, in numbers, and what happened lately, in plots."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import connections, models
from django.utils.http import urlencode

from .. import conf
from ..connected import connected
from ..durable.clock import In, by_index, instant
from ..durable.deliveries import deliveries
from ..durable.pauses import paused
from ..durable.rows import State
from ..statistics import Figures, Point, rates, series, table
from ..statistics.flushing import EVERY
from ..statistics.upkeep import DAY, MOST_WAITING, waiting
from .bounds import COUNTED, Count, counted
from .choices import of_state
from .facts import span
from .listing import BY_STATE
from .plots import Plot, Times, compact, draw, written

BY_DUE, BY_LANE = "dcs_delivery_due", "dcs_delivery_lane"  # indexes
RATED = 5  # minutes of which the rates are
SETTLED = 1.5 * EVERY  # seconds after which every process has written its minute; before, a plot would end in a fall
MOST_PAUSED = 20  # receivers that are named
UNITS = ((2 * 86_400, 86_400, "days"), (2 * 3600, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))
NOT_NOTED = "not noted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A time up to now that can be chosen; its points are few enough to be told apart."""

    label: str
    minutes: int
    step: int  # minutes of each point
    each: str  # the same in words
    tick: int  # minutes between two times beside the axis


SPANS = {
    "hour": Span(label="Past hour", minutes=60, step=1, each="minute", tick=10),
    "6-hours": Span(label="Past 6 hours", minutes=360, step=5, each="5 minutes", tick=60),
    "day": Span(label="Past 24 hours", minutes=DAY, step=15, each="15 minutes", tick=240),
    "week": Span(label="Past 7 days", minutes=7 * DAY, step=60, each="hour", tick=DAY),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number of the present, and where those deliveries are that it counts."""

    label: str
    text: str
    query: str  # of the list's address
    note: str = ""
    is_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """What the page shows."""

    numbers: list[Number]
    rates: list[Number]
    paused: list[Number]
    left_out: int  # receivers that are paused and not named
    span: str
    spans: dict[str, Span]  # that can be chosen
    receiver: str  # empty: all
    receivers: list[str]
    missed: str  # the receiver that was asked for, and has no figures
    plots: list[Plot]
    is_counting: bool  # or else STATISTICS_DAYS is 0
    has_figures: bool  # whether any were ever written

    @property
    def chosen(self) -> Span:
        """The time that is shown."""
        return self.spans[self.span]


def dashboard(alias: str, asked_span: str, asked_receiver: str) -> Dashboard:
    """Read how a database's deliveries stand and stood; by indexes, and no more than is shown.

    Args:
        alias: of the database.
        asked_span: a name among ``SPANS``; the shortest, where it is none, or longer than figures are kept.
        asked_receiver: name of the task; all, where it has no figures and is not connected.
    """
    days = conf.get().STATISTICS_DAYS
    spans = {name: one for name, one in SPANS.items() if name == "hour" or one.minutes <= days * DAY}
    chosen = asked_span if asked_span in spans else "hour"
    until = int(time.time() - SETTLED) // 60
    minutes = table.last_minutes(alias) if days else {}
    receivers = _receivers(minutes, until - spans[chosen].minutes)
    receiver = asked_receiver if asked_receiver in receivers else ""
    names = _paused(alias)
    return Dashboard(
        numbers=[*_numbers(alias), _number_paused(names)],
        rates=_rates(alias, receiver) if minutes else [],
        paused=names[:MOST_PAUSED],
        left_out=len(names[MOST_PAUSED:]),
        span=chosen,
        spans=spans,
        receiver=receiver,
        receivers=receivers,
        missed="" if receiver else asked_receiver,
        plots=_plots(alias, spans[chosen], receiver, until) if minutes else [],
        is_counting=bool(days),
        has_figures=bool(minutes),
    )


def _receivers(minutes: dict[str, int], since: int) -> list[str]:
    """Return those that can be chosen: what is connected, and what has figures of the time."""
    found = {one.receiver for one in connected() if one.guarantee == "durable"}
    return sorted((found | {name for name, last in minutes.items() if last >= since}) - {table.EVERY_RECEIVER})


# The present ---------------------------------------------------------------------------------------------------------


def _numbers(alias: str) -> list[Number]:
    lag, rows, wait = deliveries(alias).lag(), deliveries(alias), waiting(alias)
    with by_index(connections[alias], rows.model, BY_STATE):
        failed = counted(of_state(rows, State.FAILED))
    with by_index(connections[alias], rows.model, BY_DUE):
        later = counted(rows.filter(state=State.READY, due_at__gt=In(0)).order_by("due_at"))
    waits = Count(number=wait, more=wait >= MOST_WAITING)
    return [
        Number(label="Oldest that is due", text=lag_text(lag), query="state=ready", note="of what could run"),
        Number(label="Waiting", text=str(waits), query="state=ready", note="for a relay or a worker"),
        Number(label="Later", text=str(later), query="state=ready", note="after a delay, or an error"),
        Number(label="Behind others", text=str(_behind(alias)), query="state=ready", note="of the same key"),
        Number(label="Failed", text=str(failed), query="state=failed", note="given up", is_bad=bool(failed)),
    ]


def _behind(alias: str) -> Count:
    """Return how many wait for their key's turn, of the first among those that have a key."""
    rows = deliveries(alias)
    with by_index(connections[alias], rows.model, BY_LANE):
        first = rows.filter(state=State.READY, lane__isnull=False).order_by("lane", "pk")[: COUNTED + 1]
        found = first.aggregate(all=models.Count("pk"), waiting=models.Count("pk", filter=models.Q(slot=None)))
    return Count(number=found["waiting"], more=found["all"] > COUNTED)


def _paused(alias: str) -> list[Number]:
    return [
        Number(
            label=receiver,
            text=written(instant(moment, connections[alias])),
            query=urlencode({"state": "paused", "receiver": receiver}),
        )
        for receiver, moment in paused(alias).items()
    ]


def _number_paused(names: Sequence[Number]) -> Number:
    note = f"since {min(one.text for one in names)}" if names else "none"
    return Number(label="Paused receivers", text=f"{len(names):,}", query="state=paused", note=note)


def _rates(alias: str, receiver: str) -> list[Number]:
    found = rates(alias, RATED).get(receiver, Figures())
    queries = {"sent": {"age": "hour"}, "succeeded": {"state": "done"}, "failed": {"state": "failed"}}
    retried = {"retried": {"state": "ready"}}
    only = {"receiver": receiver} if receiver else {}
    return [
        Number(
            label=name.capitalize(),
            text=figure_text(getattr(found, name)),
            query=urlencode({**query, **only}),
            note="a minute",
            is_bad=name == "failed" and found.failed > 0,
        )
        for name, query in {**queries, **retried}.items()
    ]


# The past ------------------------------------------------------------------------------------------------------------


def _plots(alias: str, chosen: Span, receiver: str, until: int) -> list[Plot]:
    """Draw the time before a minute."""
    points = series(alias, _moment(until - chosen.minutes), _moment(until), receiver, chosen.step)
    times = Times(
        starts=[point.at for point in points],
        step=timedelta(minutes=chosen.step),
        tick=timedelta(minutes=chosen.tick),
    )
    plots = [_throughput(points, times, until), _failures(points, times, chosen)]
    return plots if receiver else [plots[0], _lag(points, times), plots[1]]


def _moment(minute: int) -> datetime:
    return datetime.fromtimestamp(minute * 60, UTC)


def _throughput(points: Sequence[Point], times: Times, until: int) -> Plot:
    passed = [min(times.step, _moment(until) - point.at) / timedelta(minutes=1) for point in points]
    each = list(zip(points, passed, strict=True))
    figures = {
        "sent": [point.sent / minutes for point, minutes in each],
        "succeeded": [point.succeeded / minutes for point, minutes in each],
    }
    return draw("throughput", "Throughput", "events a minute", times, figures, show=figure_text)


def _lag(points: Sequence[Point], times: Times) -> Plot:
    noted = [point.lag for point in points]
    highest = max((lag for lag in noted if lag is not None), default=0.0)
    size, unit = next((size, unit) for least, size, unit in UNITS if highest >= least)
    lags = [None if lag is None else lag / size for lag in noted]
    show = lambda lag: lag_text(None if lag is None else lag * size)  # noqa: E731
    return draw("lag", "Lag of the oldest that is due", unit, times, {"lag": lags}, show=show)


def _failures(points: Sequence[Point], times: Times, chosen: Span) -> Plot:
    figures = {"failed": [point.failed for point in points], "retried": [point.retried for point in points]}
    unit = f"runs per {chosen.each}"
    return draw("failures", "Failures and retries", unit, times, figures, show=figure_text, bars=True)


def figure_text(value: float | None) -> str:
    """Return a figure with what its reader can use of its digits."""
    return f"{value:,.0f}" if value is not None and value >= 100 else compact(round(value or 0, 2))


def lag_text(seconds: float | None) -> str:
    """Return how far behind deliveries are, or were."""
    if seconds is None:
        return NOT_NOTED
    return f"{seconds:.1f} s" if 0 < seconds < 10 else span(seconds)
