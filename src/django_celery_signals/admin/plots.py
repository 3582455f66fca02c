"""Plots as SVG, drawn here: no script runs for them. A template puts these places and texts in, and escapes them.

A plot is as wide as the page: places across are in per cent, so that its text has the same size everywhere; only what
has no text is stretched. All places are texts, for a template would write numbers as a reader's language does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from django.utils import timezone
from django.utils.dateformat import format as date_format

HEIGHT = 160  # pixels of the plane
WIDTH = 1000  # units across in which lines are drawn
TICKS = 4  # steps that the upright axis has, at most
EDGE = 4.0  # per cent beside the end in which no time is written: it would stand out of the page
GAP = 0.15  # of a bar's width, between two

Values = Sequence[float | None]  # one for each step of the time; None: not known
Show = Callable[[float | None], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The time that a plot is about, in steps."""

    starts: Sequence[datetime]  # of the steps, aware
    step: timedelta
    tick: timedelta  # between two times that are written

    @property
    def end(self) -> datetime:
        """When the last step is over."""
        return self.starts[-1] + self.step

    def place(self, moment: datetime) -> float:
        """Return where a moment is, in per cent of the width."""
        return (moment - self.starts[0]) / (self.end - self.starts[0]) * 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A value or a time that is written beside an axis."""

    place: str  # pixels from the top, or per cent from the left
    label: str
    is_odd: bool = False  # whether a narrow page leaves it out


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One kind of figure, as a line, which is broken where nothing is known."""

    name: str
    path: str
    area: str  # below it


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One figure of one step."""

    name: str
    left: str
    width: str
    top: str
    height: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is known of one step: a strip of the plot that tells it, and a row of the table."""

    left: str
    width: str
    time: str
    texts: list[str]
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot, as its template takes it."""

    name: str
    title: str
    unit: str
    about: str  # in words
    legend: list[str]
    heights: list[Tick]
    times: list[Tick]
    steps: list[Step]
    lines: list[Line]
    bars: list[Bar]
    bars_only: bool
    remark: str  # in the place of figures, where there are none


def draw(
    name: str, title: str, unit: str, times: Times, figures: Mapping[str, Values], *, show: Show, bars: bool = False
) -> Plot:
    """Draw figures over time.

    Args:
        name: of the plot, in the page's names.
        title: what it shows.
        unit: of the upright axis.
        times: the steps.
        figures: by their names, which also say how they look.
        show: how a figure is written.
        bars: whether they are whole numbers, as bars upon one another; or else lines.
    """
    heights = _heights(figures, bars=bars)
    top = heights[-1]
    return Plot(
        name=name,
        title=title,
        unit=unit,
        about=_about(times, figures, show),
        legend=list(figures),
        heights=[Tick(place=_pixels(value, top), label=compact(value)) for value in heights],
        times=_time_ticks(times),
        steps=_steps(times, figures, show),
        lines=[] if bars else [_line(name, times, values, top) for name, values in figures.items()],
        bars=[*_bars(times, figures, top)] if bars else [],
        bars_only=bars,
        remark=_remark(figures, show, bars=bars),
    )


# Axes ----------------------------------------------------------------------------------------------------------------


def nice_step(top: float, *, whole: bool = False) -> float:
    """Return the least of 1, 2 and 5, times a power of ten, that reaches a height in few steps."""
    if top <= 0:
        return 1.0
    wanted = top / TICKS
    power = 10.0 ** math.floor(math.log10(wanted))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))
    return max(1.0, step) if whole else step


def compact(value: float) -> str:
    """Return a number in few characters: ``0.5``, ``250``, ``12k``, ``3.5M``."""
    for least, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / size:.4g}{unit}"
    return f"{value:,.6g}"


def _heights(figures: Mapping[str, Values], *, bars: bool) -> list[float]:
    """Return the values that are written beside the upright axis, from 0 to above the highest."""
    columns = zip(*figures.values(), strict=True)
    known = [[value for value in column if value is not None] for column in columns]
    highest = max((sum(column) if bars else max(column) for column in known if column), default=0.0)
    step = nice_step(highest, whole=bars)
    return [step * number for number in range(max(1, math.ceil(highest / step - 1e-9)) + 1)]


def _time_ticks(times: Times) -> list[Tick]:
    moments = [moment for moment in _round_moments(times) if times.place(moment) <= 100 - EDGE]
    return [
        Tick(place=f"{times.place(moment):.2f}", label=_label(moment, times.tick), is_odd=number % 2 == 1)
        for number, moment in enumerate(moments)
    ]


def _round_moments(times: Times) -> Iterator[datetime]:
    """Yield the full hours, or days and so on, of the reader's time zone."""
    first = timezone.localtime(times.starts[0])
    midnight = first.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    moment = midnight + (first.replace(tzinfo=None) - midnight) // times.tick * times.tick
    while (aware := moment.replace(tzinfo=first.tzinfo)) < times.end:
        if aware >= times.starts[0]:
            yield aware
        moment += times.tick


def _label(moment: datetime, tick: timedelta) -> str:
    is_day = tick >= timedelta(days=1) or (moment.hour, moment.minute) == (0, 0)
    return date_format(moment, "j M" if is_day else "H:i")


# Shapes --------------------------------------------------------------------------------------------------------------


def _pixels(value: float, top: float) -> str:
    return f"{HEIGHT - value / top * HEIGHT:.2f}"


def _line(name: str, times: Times, values: Values, top: float) -> Line:
    """Draw a line through the middles of the steps; a point without neighbours is one of no length, with round ends."""
    runs = list(_runs(times, values, top))
    path = " ".join(f"M {' L '.join(run if len(run) > 1 else run * 2)}" for run in runs)
    area = " ".join(
        f"M {run[0].split()[0]} {HEIGHT} L {' L '.join(run)} L {run[-1].split()[0]} {HEIGHT} Z" for run in runs
    )
    return Line(name=name, path=path, area=area)


def _runs(times: Times, values: Values, top: float) -> Iterator[list[str]]:
    """Yield the points of each time in which something is known."""
    points = zip(times.starts, values, strict=True)
    for is_known, run in groupby(points, lambda point: point[1] is not None):
        if is_known:
            yield [
                f"{times.place(start + times.step / 2) * WIDTH / 100:.1f} {_pixels(value or 0, top)}"
                for start, value in run
            ]


def _bars(times: Times, figures: Mapping[str, Values], top: float) -> Iterator[Bar]:
    """Yield the bars of each step, one upon the other."""
    for number, start in enumerate(times.starts):
        left, width, below = times.place(start), times.place(times.starts[0] + times.step), 0.0
        for name, values in figures.items():
            value = values[number] or 0
            below += value
            if value:
                yield Bar(
                    name=name,
                    left=f"{left + width * GAP / 2:.3f}",
                    width=f"{width * (1 - GAP):.3f}",
                    top=_pixels(below, top),
                    height=f"{value / top * HEIGHT:.2f}",
                )


def _remark(figures: Mapping[str, Values], show: Show, *, bars: bool) -> str:
    values = [value for each in figures.values() for value in each]
    is_unknown, is_nothing = values.count(None) == len(values), bars and not any(values)
    return show(None) if is_unknown else "none" if is_nothing else ""


# Words ---------------------------------------------------------------------------------------------------------------


def _steps(times: Times, figures: Mapping[str, Values], show: Show) -> list[Step]:
    rows = zip(times.starts, zip(*figures.values(), strict=True), strict=True)
    return [_step(times, start, dict(zip(figures, map(show, values), strict=True))) for start, values in rows]


def _step(times: Times, start: datetime, texts: dict[str, str]) -> Step:
    time = written(start)
    return Step(
        left=f"{times.place(start):.3f}",
        width=f"{times.place(times.starts[0] + times.step):.3f}",
        time=time,
        texts=list(texts.values()),
        told=f"{time}\n" + "\n".join(f"{name}: {text}" for name, text in texts.items()),
    )


def written(moment: datetime) -> str:
    """Return a moment in the reader's time zone."""
    return date_format(timezone.localtime(moment), "Y-m-d H:i")


def _about(times: Times, figures: Mapping[str, Values], show: Show) -> str:
    told = (f"{name}: {_range(values, show)}" for name, values in figures.items())
    return f"From {written(times.starts[0])} to {written(times.end)}. {'; '.join(told)}."


def _range(values: Iterable[float | None], show: Show) -> str:
    known = [value for value in values if value is not None]
    return f"from {show(min(known))} to {show(max(known))}, last {show(known[-1])}" if known else show(None)
