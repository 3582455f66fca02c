"""The dashboard of deliveries, as people see it: in light and dark, wide and narrow, with scripts and without."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from django_celery_signals.durable.deliveries import State
from django_celery_signals.durable.pauses import pause
from django_celery_signals.statistics import table
from tests.browser.conftest import Browser
from tests.browser.test_admin_browser import LIST, NARROW, WIDE, is_wider_than_the_screen, log_in
from tests.delivering import place

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

DASHBOARD = f"{LIST}dashboard/"
PAST = 25 * 60  # minutes
OUTAGE = range(20, 32)  # minutes ago, in which nothing was noted
RECEIVERS = ("shop.receivers.update_statistics", "shop.receivers.confirm_order")
LONG = "shop.receivers.rebuild_search_index_of_all_customers_and_of_everything_they_have_ever_bought"
CONTRAST = """names => {
    const style = getComputedStyle(document.querySelector('.dcs-plot'));
    const paper = getComputedStyle(document.body).backgroundColor;
    const light = text => text.match(/\\d+/g).slice(0, 3).map(Number).map(value => value / 255)
        .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
    return names.map(([name, property]) => {
        const pair = [light(getComputedStyle(document.querySelector(name))[property]), light(paper)].sort();
        return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    });
}"""
DRAWN = [
    *((f".dcs-line-{name}", "stroke") for name in ("sent", "succeeded", "lag")),
    *((name, "fill") for name in (".dcs-bar-failed", ".dcs-stripe", ".dcs-tick")),
]


@pytest.fixture
def figures(site: str) -> str:
    """The address of the site, where much has happened in the past day."""
    dice, now = random.Random(7), table.this_minute()
    rows: list[table.Row] = []
    for ago in range(1, PAST):
        sent = round(240 + 120 * math.sin(ago / 90) + 90 * math.sin(ago / 11) + dice.gauss(0, 18))
        failed = 6 if ago in range(40, 44) else int(dice.random() < 0.04)
        retried = failed * 3 + int(dice.random() < 0.1)
        done = max(0, sent - failed - retried - (60 if ago in OUTAGE else 0))
        noted = () if ago in OUTAGE else (max(0.2, 4 + 14 * math.sin(ago / 17) + dice.gauss(0, 1)), sent // 20)
        rows.append(("", now - ago, (sent, done, failed, retried, 0, done * 0.05, *noted)))
        rows.append((RECEIVERS[ago % 2], now - ago, (sent, done, failed, retried, 0, done * 0.05)))
    table.add("default", [*rows, (LONG, now - 3, (1, 1, 0, 0, 0, 0.1))])
    place("default", RECEIVERS[1], 40, state=State.PAUSED, due_at=None)
    pause(RECEIVERS[1], "default")
    pause(LONG, "default")
    return site


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_look(browser: Browser, figures: str, shot: Callable[[Any, str], None], width: int, theme: str) -> None:
    """Somebody comes from the list, chooses a time and a receiver, and reads a plot as a table."""
    page = browser.page(figures, width=width, theme=theme)

    def look(name: str) -> None:
        shot(page, f"dashboard-{name}-{width}-{theme}")
        assert not is_wider_than_the_screen(page), name

    log_in(page)
    page.click("text=Dashboard")
    page.wait_for_selector(".dcs-plot")
    look("1-hour")
    assert 3 == page.locator("svg[role=img]").count()
    assert [] == [value for value in page.evaluate(CONTRAST, DRAWN) if value < 3]
    assert "12px" == page.evaluate("getComputedStyle(document.querySelector('.dcs-tick')).fontSize")
    page.click("#plot-throughput summary")
    look("2-table")
    page.select_option("#dcs-span", "day")
    page.select_option("#dcs-receiver", LONG)
    page.click("text=Show")
    page.wait_for_url("**span=day**")
    look("3-receiver")
    page.select_option("#dcs-receiver", "")
    page.click("text=Show")
    page.wait_for_selector("#plot-lag")
    look("4-day")
    page.select_option("#dcs-span", "week")
    page.click("text=Show")
    page.wait_for_url("**span=week**")
    look("5-week")
    page.select_option("#dcs-database", "other")
    page.click("text=Show")
    page.wait_for_selector(".dcs-note")
    look("6-nothing-yet")


def test_without_scripts(browser: Browser, figures: str) -> None:
    """Somebody without JavaScript chooses, opens the table, and goes to what has failed."""
    page = browser.page(figures, width=NARROW, theme="light", scripts=False)
    log_in(page)
    page.goto(DASHBOARD)
    page.select_option("#dcs-span", "6-hours")
    page.click("text=Show")
    page.click("#plot-lag summary")
    assert "not noted" in page.inner_text("#plot-lag table")
    page.click(".dcs-bad a >> nth=0")
    assert re.search(r"state=failed", page.url)
    assert 5 == page.locator("#result_list tbody tr").count()
