"""Deliveries in the admin, as people see them: by mouse and by keyboard, in light and dark, wide and narrow."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from django_celery_signals.durable.deliveries import State, deliveries
from tests.browser.conftest import Browser
from tests.delivering import place, states

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

LIST = "/admin/django_celery_signals/delivery/"
NARROW, WIDE = 390, 1280  # pixels
Shot = Callable[[Any, str], None]


def log_in(page: Any) -> None:
    """Log Ada in."""
    page.goto(LIST)
    page.fill("#id_username", "ada")
    page.fill("#id_password", "lovelace")
    page.press("#id_password", "Enter")
    page.wait_for_selector("#result_list")


def is_wider_than_the_screen(page: Any) -> bool:
    """Tell whether the page as a whole scrolls sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


def press(page: Any, selector: str, key: str = "Enter") -> None:
    """Put the focus where the keyboard would, see that it is to be seen, and press a key."""
    page.keyboard.press("Tab")  # so that the browser shows where the focus is
    page.focus(selector)
    ring = f"getComputedStyle(document.querySelector({selector!r}))"
    assert page.evaluate(f"document.querySelector({selector!r}).matches(':focus-visible')")
    assert page.evaluate(f"{ring}.outlineStyle != 'none' || {ring}.textDecorationLine == 'underline'")
    page.keyboard.press(key)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_round(browser: Browser, site: str, shot: Shot, width: int, theme: str) -> None:
    """Somebody filters, searches, reads a delivery, retries it, and discards all of a cause."""
    page, names = browser.page(site, width=width, theme=theme), f"{width}-{theme}"

    def look(name: str) -> None:
        shot(page, f"{name}-{names}")
        assert not is_wider_than_the_screen(page), name

    log_in(page)
    look("1-list")
    if width == WIDE:
        assert page.evaluate("(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.results'))")
    assert "72 deliveries" in page.inner_text(".paginator")
    page.click("#changelist-filter >> text=failed")
    page.wait_for_url("**state=failed**")
    assert 5 == page.locator("#result_list tbody tr").count()
    look("2-failed")

    page.fill("#searchbar", "shop.Order 5")
    press(page, "#searchbar")
    page.wait_for_url("**q=shop.Order**")
    assert 5 == page.locator("#result_list tbody tr").count()
    press(page, "#result_list tbody tr:has-text('log_status') .field-summary a".replace(":has-text('log_status')", ""))
    page.wait_for_selector(".dcs-buttons")
    look("3-detail")
    blocked = deliveries("default").get(receiver="shop.receivers.log_status", state=State.FAILED)
    page.goto(f"{LIST}default_3A{blocked.pk}/change/?_changelist_filters=state%3Dfailed")
    assert "Blocks its key: 2 wait behind it" in page.inner_text("#content")
    look("4-detail-of-a-blocked-key")
    press(page, "button.default", "Space" if width == WIDE else "Enter")
    page.wait_for_selector(".messagelist")
    assert "1 retried; 2 wait behind these and go on." in page.inner_text(".messagelist")
    assert "ready" in page.inner_text(".field-state_shown")
    look("5-retried")
    page.click("text=Close")
    page.wait_for_url("**state=failed**")

    page.click("text=Failures by cause")
    page.wait_for_selector(".dcs-groups")
    page.click("summary >> nth=0")
    look("6-failures")
    press(page, "tbody:nth-of-type(1) button.dcs-discard")
    page.wait_for_selector("input.dcs-discard")
    look("7-confirm")
    assert "3 failed deliveries in the database default will be discarded." in page.inner_text("#content")
    press(page, "input.dcs-discard")
    page.wait_for_selector(".messagelist")
    look("8-discarded")
    assert 1 == states("default")["failed"]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_all_of_a_list(browser: Browser, site: str, shot: Shot, width: int) -> None:
    """Somebody ticks every delivery of all pages, and retries those that have failed."""
    page = browser.page(site, width=width, theme="light")
    log_in(page)
    page.check("#action-toggle")
    page.click(".actions .question a")
    page.select_option("select[name=action]", "retry_selected")
    shot(page, f"9-chosen-{width}")
    page.click(".actions button[name=index]")
    page.wait_for_selector(".dcs-buttons")
    shot(page, f"10-confirm-all-{width}")
    assert re.search(r"1 cannot be retried", page.inner_text("#content"))
    page.click(".dcs-buttons input[type=submit]")
    page.wait_for_selector(".messagelist")
    shot(page, f"11-retried-all-{width}")
    assert not is_wider_than_the_screen(page)
    assert 1 == states("default")["failed"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_lineage(browser: Browser, site: str, shot: Shot, width: int, theme: str) -> None:
    """Somebody goes from a delivery to what caused it, from there to what that caused, and to a list of all."""
    page = browser.page(site, width=width, theme=theme)
    root = deliveries("default").get(receiver="shop.receivers.export_order", state=State.DONE)
    caused = {"depth": 1, "parent_id": root.event_id, "root_id": root.event_id}
    place("default", "shop.receivers.index_order", 22, **caused)
    place("other", "shop.receivers.rebuild_search_index_of_all_customers", **caused)
    leaf = deliveries("default").latest("pk")
    log_in(page)
    page.goto(f"{LIST}default_3A{leaf.pk}/change/")
    assert f"default:{root.pk} (done)" in page.inner_text(".field-root")
    assert not is_wider_than_the_screen(page)
    press(page, ".field-cause a")
    page.wait_for_url(f"**/default_3A{root.pk}/change/")
    assert 21 == page.locator(".field-caused li").count()
    assert not is_wider_than_the_screen(page)
    shot(page, f"13-lineage-{width}-{theme}")
    page.click("text=More than these 20")
    page.wait_for_url("**parent_id=**")
    assert 22 == page.locator("#result_list tbody tr").count()
    assert not is_wider_than_the_screen(page)
    shot(page, f"14-caused-{width}-{theme}")
    page.go_back()
    deliveries("default").filter(pk=root.pk).erase()
    page.goto(f"{LIST}default_3A{leaf.pk}/change/")
    assert "done and gone" in page.inner_text(".field-cause")
    assert not is_wider_than_the_screen(page)
    page.click("text=All that the root has caused")
    page.wait_for_url("**root_id=**")
    assert 22 == page.locator("#result_list tbody tr").count()


def test_another_database(browser: Browser, site: str, shot: Shot) -> None:
    """Somebody looks at the deliveries of another database, and stays there."""
    page = browser.page(site, width=NARROW, theme="dark")
    log_in(page)
    page.click("#changelist-filter >> text=other")
    page.wait_for_url("**database=other**")
    assert 2 == page.locator("#result_list tbody tr").count()
    page.click("#result_list .field-summary a >> nth=0")
    page.wait_for_selector(".dcs-buttons")
    assert "other:" in page.inner_text(".field-place")
    page.click("text=Close")
    page.wait_for_url("**database=other**")
    page.click("text=Failures by cause")
    page.wait_for_selector(".dcs-note")
    shot(page, "12-no-failures")
    assert not is_wider_than_the_screen(page)


def test_without_scripts(browser: Browser, site: str) -> None:
    """Somebody without JavaScript filters, retries one and discards another."""
    page = browser.page(site, width=WIDE, theme="light", scripts=False)
    log_in(page)
    page.click("#changelist-filter >> text=failed")
    page.click("#result_list .field-summary a >> nth=-1")
    page.click("text=Discard…")
    page.click("input.dcs-discard")
    assert "1 discarded." in page.inner_text(".messagelist")
    page.click("#changelist-filter >> text=failed")
    page.check("#result_list tbody tr:first-child input")
    page.select_option("select[name=action]", "retry_selected")
    page.click(".actions button[name=index]")
    assert "1 " in page.inner_text(".messagelist")
    assert 5 > states("default")["failed"]
