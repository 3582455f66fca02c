"""The dashboard of deliveries in the admin: what it shows, to whom, how it is drawn, and what it costs."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connections
from django.db.models.signals import post_save
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_celery_signals.admin import bounds, dashboard, plots
from django_celery_signals.durable.deliveries import State
from django_celery_signals.durable.pauses import pause
from django_celery_signals.statistics import table
from tests.delivering import moment, place
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Order, User

pytestmark = pytest.mark.django_db(databases=["default", "other"])

LIST = "/admin/django_celery_signals/delivery/"
PAGE = f"{LIST}dashboard/"
NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
EVIL = "shop.<script>alert('\"&"


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> int:
    """Half of the first minute after noon is over, and no test meets the next; the number of that minute."""
    monkeypatch.setattr(time, "time", lambda: NOON.timestamp() + 90)
    return int(NOON.timestamp()) // 60 + 1


@pytest.fixture
def client() -> Client:
    """Somebody who may look at deliveries, and nothing else."""
    user = User.objects.create_user("ada", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_delivery"))
    client = Client()
    client.force_login(user)
    return client


def add(minute: int, receiver: str = "", alias: str = "default", **figures: float) -> None:
    """Add figures of a minute, and of all receivers as well."""
    values = [figures.get(name) or 0 for name in table.SUMS]
    table.add(alias, [(name, minute, values) for name in {receiver, ""}])


def page(client: Client, **parameters: str) -> str:
    """Return the text of the page."""
    response = client.get(PAGE, parameters)
    assert response.status_code == 200
    return unescape(response.content.decode())


def shown(client: Client, **parameters: str) -> Any:
    """Return what the page shows."""
    return client.get(PAGE, parameters).context["shown"]


def texts(plot: plots.Plot) -> dict[str, list[str]]:
    """Return the rows of a plot's table in which something is."""
    return {step.time[-5:]: step.texts for step in plot.steps if {*step.texts} - {"0", "not noted"}}


# Who, and from where -------------------------------------------------------------------------------------------------


def test_permission(client: Client) -> None:
    """Without the permission to see deliveries nobody sees how they stand."""
    User.objects.get().user_permissions.clear()

    assert 403 == client.get(PAGE).status_code


def test_links(client: Client) -> None:
    """The list and the failures lead here, in the same database; from here a link leads back."""
    for url in (LIST, f"{LIST}failures/"):
        assert (
            f'<a href="{PAGE}?database=other">Dashboard</a>' in client.get(url, {"database": "other"}).content.decode()
        )

    assert f'<a href="{LIST}failures/?database=other">Failures by cause</a>' in page(client, database="other")


def test_unknown_database(client: Client) -> None:
    """Of a database that keeps no deliveries there is no dashboard."""
    assert 404 == client.get(PAGE, {"database": "elsewhere"}).status_code


# What can be chosen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "offered"),
    [
        (7, ["hour", "6-hours", "day", "week"]),
        (6.9, ["hour", "6-hours", "day"]),
        (0.25, ["hour", "6-hours"]),
        (0.01, ["hour"]),
    ],
)
def test_spans(client: Client, days: float, offered: list[str]) -> None:
    """No time can be chosen of which no figures are kept, but always an hour; what is asked beyond is the hour."""
    with override_settings(DJANGO_CELERY_SIGNALS={"STATISTICS_DAYS": days}):
        found = shown(client, span="week")

    assert offered == list(found.spans)
    assert ("week" if "week" in offered else "hour") == found.span


@pytest.mark.parametrize(
    ("span", "points", "unit"),
    [
        ("hour", 60, "runs per minute"),
        ("6-hours", 73, "runs per 5 minutes"),
        ("day", 97, "runs per 15 minutes"),
        ("week", 169, "runs per hour"),
    ],
)
def test_points(client: Client, now: int, span: str, points: int, unit: str) -> None:
    """Each time has so few points that they can be told apart, and the page says what each is of."""
    add(now - 1, sent=1)
    found = shown(client, span=span)

    assert ["throughput", "lag", "failures"] == [plot.name for plot in found.plots]
    assert {points} == {len(plot.steps) for plot in found.plots}
    assert unit == found.plots[2].unit


def test_receivers(client: Client, now: int, receiving: Receiving) -> None:
    """Durable receivers can be chosen, and those that have figures of the time; any other is said to have none."""
    connected = receiving(post_save, sender=Order, guarantee="durable")
    receiving(post_save, sender=User, guarantee="immediate")
    add(now - 30, "shop.young", sent=3)
    add(now - 90, "shop.old", sent=5)

    assert [*sorted([connected.name, "shop.young"])] == shown(client).receivers
    assert [*sorted([connected.name, "shop.old", "shop.young"])] == shown(client, span="6-hours").receivers
    assert "shop.old" == shown(client, span="6-hours", receiver="shop.old").receiver
    assert "There are no figures of shop.old in this time." in page(client, receiver="shop.old")


def test_of_a_receiver(client: Client, now: int) -> None:
    """Its plots and rates are of it alone; the lag is nobody's own, and the page says so."""
    add(now - 2, "shop.a", sent=10, succeeded=5)
    add(now - 2, "shop.b", sent=90, failed=5)
    found = shown(client, receiver="shop.a")

    assert ["throughput", "failures"] == [plot.name for plot in found.plots]
    assert {"11:59": ["10", "5"]} == texts(found.plots[0])
    assert ["2", "1", "0", "0"] == [number.text for number in found.rates]
    assert ["20", "1", "1", "0"] == [number.text for number in shown(client).rates]
    assert "The lag is noted for all receivers together." in page(client, receiver="shop.a")
    assert "receiver=shop.a" in page(client, receiver="shop.a")


def test_names_are_escaped(client: Client, now: int) -> None:
    """Names that come from the database, or from the address, do nothing on the page."""
    add(now - 2, EVIL, sent=10)
    pause(EVIL, "default")
    for parameters in ({}, {"receiver": EVIL}, {"receiver": f"{EVIL}?"}, {"span": EVIL}):
        text = client.get(PAGE, parameters).content.decode()
        assert EVIL not in text
        assert "shop.&lt;script&gt;" in text


# What is shown -------------------------------------------------------------------------------------------------------


@override_settings(DJANGO_CELERY_SIGNALS={"STATISTICS_DAYS": 0})
def test_nothing_is_counted(client: Client, now: int) -> None:
    """Where no figures are kept the page says so, and what to do; how deliveries stand it shows all the same."""
    add(now - 1, sent=1)
    place("default", "shop.a", 3)
    text = page(client)

    assert "STATISTICS_DAYS is 0" in re.sub("</?code>", "", text)
    assert "dcs-span" not in text
    assert "<strong>3</strong>" in text
    assert [] == shown(client).plots


def test_nothing_yet(client: Client) -> None:
    """Where nothing has been written yet the page says so, and what to do."""
    text = page(client)

    assert "No figures have been written yet to the database default." in text
    assert [] == shown(client).plots == shown(client).rates


def test_numbers(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """How deliveries stand is said in numbers, no further than is counted, each with a link to those deliveries."""
    monkeypatch.setattr(bounds, "COUNTED", 2)
    place("default", "shop.a", 3)
    place("default", "shop.a", 3, state=State.FAILED)
    lag, waiting, _, _, failed, _ = shown(client).numbers

    assert re.fullmatch(r"\d\.\d s", lag.text)
    assert ("3", "state=ready", False) == (waiting.text, waiting.query, waiting.is_bad)
    assert ("2+", "state=failed", True) == (failed.text, failed.query, failed.is_bad)
    monkeypatch.setattr(dashboard, "MOST_WAITING", 3)
    assert "3+" == shown(client).numbers[1].text
    assert f'<a href="{LIST}?database=default&state=failed">' in page(client)


def test_numbers_of_those_that_cannot_run_yet(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due later, and what waits behind others of its key, is counted by itself, so far."""
    place("default", "shop.a", 2, due_at=moment(60))
    place("default", "shop.a", lane="a", slot="a", due_at=moment(60))
    place("default", "shop.a", 2, lane="a", due_at=None)
    texts = {one.label: one.text for one in shown(client).numbers}

    assert ("0", "3", "2") == (texts["Waiting"], texts["Later"], texts["Behind others"])
    monkeypatch.setattr(dashboard, "COUNTED", 2)
    assert dashboard._behind("default").more


def test_numbers_of_nothing(client: Client) -> None:
    """Where all have arrived nothing is bad."""
    numbers = shown(client).numbers

    assert ["0 s", "0", "0", "0", "0", "0"] == [one.text for one in numbers]
    assert not any(one.is_bad for one in numbers)
    assert "none" == numbers[5].note


def test_paused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paused receivers are named, with since when, and a link to what waits for them; of very many the first."""
    for name in ("shop.a", "shop.b", "shop.c"):
        pause(name, "default")
    monkeypatch.setattr(dashboard, "MOST_PAUSED", 2)
    text, number = page(client), shown(client).numbers[5]

    assert f'<a href="{LIST}?database=default&state=paused&receiver=shop.b">shop.b</a>' in text
    assert "and 1 more" in text
    assert "shop.c" not in text
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", shown(client).paused[0].text)
    assert ("3", f"since {shown(client).paused[0].text}") == (number.text, number.note)


def test_throughput(client: Client, now: int) -> None:
    """Each point is of a minute, on the average; the last has fewer minutes, and is not lower for that."""
    for minute in range(3, 13):
        add(now - minute, sent=12, succeeded=6)
    assert {"11:45": ["8", "4"]} == texts(shown(client, span="day").plots[0])

    add(now - 1, sent=12)
    assert ["12", "0"] == shown(client, span="day").plots[0].steps[-1].texts


def test_the_last_minute(client: Client, now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is drawn once every process has had the time to write it."""
    add(now - 1, sent=1)
    assert "12:00" == shown(client).plots[0].steps[-1].time[-5:]

    monkeypatch.setattr(time, "time", lambda: NOON.timestamp() + 60 + 29)
    assert "11:59" == shown(client).plots[0].steps[-1].time[-5:]


def test_lag(client: Client, now: int) -> None:
    """The lag has a gap where nobody noted it, and the unit that suits the highest."""
    add(now - 1, sent=1)
    for ago, lag in ((30, 90.0), (29, 400.0), (27, 0.5)):
        table.note("default", now - ago, lag, 1)
    plot = shown(client).plots[1]

    assert "minutes" == plot.unit
    assert 2 == plot.lines[0].path.count("M")
    assert {"11:31": ["1 min 30 s"], "11:32": ["6 min 40 s"], "11:34": ["0.5 s"]} == texts(plot)
    assert "not noted" in plot.steps[0].told
    assert "from 0.5 s to 6 min 40 s, last 0.5 s" in plot.about


def test_no_lag(client: Client, now: int) -> None:
    """Where no relay noted the lag, its plot says that."""
    add(now - 1, sent=1)
    plot = shown(client).plots[1]

    assert ("", "not noted") == (plot.lines[0].path, plot.remark)
    assert plot.about.endswith("lag: not noted.")


def test_failures(client: Client, now: int) -> None:
    """Failures and retries are numbers of runs, upon one another."""
    add(now - 5, sent=1)
    assert ([], "none") == (shown(client).plots[2].bars, shown(client).plots[2].remark)

    add(now - 5, failed=1, retried=3)
    plot = shown(client).plots[2]

    assert ([], "") == (plot.lines, plot.remark)
    assert [("failed", "120.00", "40.00"), ("retried", "0.00", "120.00")] == [
        (bar.name, bar.top, bar.height) for bar in plot.bars
    ]
    assert ["0", "1", "2", "3", "4"] == [tick.label for tick in plot.heights]


def test_times_are_the_readers(client: Client, now: int) -> None:
    """Times are those of the time zone that Django has for the reader, which the page names."""
    add(now - 1, sent=1)
    with override_settings(TIME_ZONE="Asia/Kolkata"):
        plot = shown(client, span="day").plots[0]
        assert "times in Asia/Kolkata" in page(client)

    assert "2030-05-01 17:30" == plot.steps[-1].time
    assert ["20:00", "1 May", "04:00", "08:00", "12:00", "16:00"] == [tick.label for tick in plot.times]
    assert [False, True] == [tick.is_odd for tick in plot.times][:2]


def test_accessible(client: Client, now: int) -> None:
    """Each plot is a picture with a name and a description, whose figures stand in a table as well."""
    add(now - 1, sent=1)
    text = page(client)

    for name in ("throughput", "lag", "failures"):
        assert f'role="img" aria-labelledby="plot-{name}-title plot-{name}-about"' in text
        assert f'<title id="plot-{name}-title">' in text
        assert f'<desc id="plot-{name}-about">From 2030-05-01 11:01 to 2030-05-01 12:01.' in text
        assert re.search(f'id="plot-{name}".*?<details.*?<table>.*?12:00.*?</details>', text, re.DOTALL)
    assert not re.search(r"<script(?! src=\"/static/admin)", text)
    assert " style=" not in text


@override_settings(LANGUAGE_CODE="de", USE_THOUSAND_SEPARATOR=True)
def test_places_are_no_language(client: Client, now: int) -> None:
    """A reader's language does not change how places are written."""
    add(now - 1, sent=12_345)

    assert {"."} >= set(re.sub(r"[\d% ]", "", "".join(re.findall(r' (?:x|y|width)="([\d.,]+%?)"', page(client)))))


# How it is drawn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "whole", "step"),
    [
        (0, False, 1),
        (0.3, False, 0.1),
        (0.3, True, 1),
        (4, True, 1),
        (5, True, 2),
        (17, False, 5),
        (21, False, 10),
        (1234, False, 500),
    ],
)
def test_nice_step(top: float, whole: bool, step: float) -> None:
    """The upright axis counts in ones, twos and fives."""
    assert step == pytest.approx(plots.nice_step(top, whole=whole))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (0.1 + 0.2, "0.3"), (1500, "1,500"), (12_000, "12k"), (3.5e6, "3.5M"), (2e9, "2G")],
)
def test_compact(value: float, text: str) -> None:
    """Beside the axis numbers are short."""
    assert text == plots.compact(value)


@pytest.mark.parametrize(("value", "text"), [(None, "0"), (0.123, "0.12"), (99.5, "99.5"), (12_345.6, "12,346")])
def test_figure_text(value: float | None, text: str) -> None:
    """A figure has no more digits than somebody can use."""
    assert text == dashboard.figure_text(value)


def test_shapes() -> None:
    """A line goes through the middles of its steps, an area lies below it; a single point is one of no length."""
    starts = [NOON + timedelta(minutes=minute) for minute in range(5)]
    times = plots.Times(starts=starts, step=timedelta(minutes=1), tick=timedelta(minutes=2))
    plot = plots.draw("a", "A", "b", times, {"lag": [0, 4, None, 2, None]}, show=str)

    assert "M 100.0 160.00 L 300.0 0.00 M 700.0 80.00 L 700.0 80.00" == plot.lines[0].path
    assert plot.lines[0].area.startswith("M 100.0 160 L 100.0 160.00 L 300.0 0.00 L 300.0 160 Z M 700.0 160")
    assert [("0.00", "12:00"), ("40.00", "12:02"), ("80.00", "12:04")] == [(one.place, one.label) for one in plot.times]
    assert ("40.000", "20.000", "2030-05-01 12:02\nlag: None") == (
        plot.steps[2].left,
        plot.steps[2].width,
        plot.steps[2].told,
    )


def test_the_hour_that_comes_twice() -> None:
    """On the day when clocks are put back no time is written in the wrong order."""
    starts = [datetime(2030, 10, 26, 22, tzinfo=UTC) + timedelta(hours=hour) for hour in range(25)]
    times = plots.Times(starts=starts, step=timedelta(hours=1), tick=timedelta(hours=4))
    with timezone.override("Europe/Berlin"):
        plot = plots.draw("a", "A", "b", times, {"lag": [1] * 25}, show=str)

    places = [float(tick.place) for tick in plot.times]
    assert sorted(places) == places
    assert ["27 Oct", "04:00", "08:00", "12:00", "16:00", "20:00"] == [tick.label for tick in plot.times]
    assert [0.0, 20.0] == places[:2]


# What it costs -------------------------------------------------------------------------------------------------------


@each_database
def test_last_minutes(alias: str, now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receivers that have figures are found by one query, each with its last minute; of very many the first."""
    assert {} == table.last_minutes(alias)
    for ago, name in ((1, "shop.b"), (7, "shop.a"), (9, "shop.b"), (9, "shop.a"), (3, "shop.c")):
        add(now - ago, name, alias)
    with CaptureQueriesContext(connections[alias]) as queries:
        assert {"": now - 1, "shop.a": now - 7, "shop.b": now - 1, "shop.c": now - 3} == table.last_minutes(alias)

    assert 1 == len(queries)
    monkeypatch.setattr(table, "MOST_RECEIVERS", 2)
    assert {"": now - 1, "shop.a": now - 7} == table.last_minutes(alias)


@each_database(also=("default",))
def test_in_each_database(client: Client, alias: str, now: int) -> None:
    """Each database has a dashboard of its own, with as many queries for many figures as for few."""
    add(now - 2, "shop.a", alias, sent=7, failed=1)
    pause("shop.a", alias)
    place(alias, "shop.a", 2)
    with CaptureQueriesContext(connections[alias]) as few:
        found = shown(client, database=alias, span="week")
    for minute in range(2, 300):
        add(now - minute, f"shop.r{minute % 20}", alias, sent=1)
    pause("shop.b", alias)
    place(alias, "shop.a", 50)
    with CaptureQueriesContext(connections[alias]) as many:
        shown(client, database=alias, span="week")

    assert len(few) == len(many) <= 18
    assert "2" == found.numbers[1].text
    assert ["shop.a"] == [one.label for one in found.paused]
    assert {"11:00": ["0.12", "0"]} == texts(found.plots[0])
