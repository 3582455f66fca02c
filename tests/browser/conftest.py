"""A real browser, and a site with deliveries in every state."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType

from django_celery_signals.admin import lineage
from django_celery_signals.durable.deliveries import State, deliveries
from tests.delivering import moment, place
from tests.services import are_required
from tests.shop.models import Customer, Order, User

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
SCREENSHOTS = Path(__file__).resolve().parent.parent.parent / "build" / "screenshots"
POST_SAVE = "django.db.models.signals:post_save"

TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/.venv/lib/python3.11/site-packages/django_celery_signals/execution.py", line 118, in call
    return function(**arguments)
  File "/srv/shop/shop/receivers.py", line 42, in confirm_order
    warehouse.reserve(order.pk, lines=[(line.sku, line.quantity) for line in order.lines.all()], timeout=10)
  File "/srv/shop/shop/warehouse.py", line 17, in reserve
    raise OutOfStock(f"There are {left} of {sku}, and {wanted} were ordered.")
shop.warehouse.OutOfStock: There are 0 of A-4711, and 2 were ordered.
"""
PAYLOAD = (
    '{"version":1,"id":"0192","signal":"django.db.models.signals:post_save","receiver":"shop.receivers.confirm_order",'
    '"using":"default","context":{"language":"en","timezone":"UTC"},"sender":{"!":"model","v":"shop.Order"},'
    '"kwargs":[["instance",{"!":"obj","v":0}],["created",true],["update_fields",null],["raw",false],["using","default"]],'
    '"objects":[{"model":"shop.Order","pk":5,"db":"default"}],"changes":{}}'
)
FAILED = {
    "state": State.FAILED,
    "due_at": moment(29 * 86_400),
    "error_type": "shop.warehouse.OutOfStock",
    "error_message": "There are 0 of A-4711, and 2 were ordered.",
    "traceback": TRACEBACK,
    "fingerprint": "shop.warehouse.OutOfStock in shop.warehouse.reserve",
    "payload": PAYLOAD,
    "attempts": 21,
    "queue": "celery",
}


@dataclass(kw_only=True)
class Browser:
    """Chromium, and what its pages complained about."""

    chromium: Any
    complaints: list[str] = field(default_factory=list)
    contexts: ExitStack = field(default_factory=ExitStack)

    def page(self, address: str, *, width: int, theme: str, scripts: bool = True) -> Any:
        """Open a window and return its page.

        Args:
            address: of the site.
            width: pixels.
            theme: ``"light"`` or ``"dark"``.
            scripts: whether it runs any.
        """
        context = self.chromium.new_context(
            base_url=address,
            viewport={"width": width, "height": 844 if width < 500 else 900},
            color_scheme=theme,
            java_script_enabled=scripts,
        )
        self.contexts.callback(context.close)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("response", lambda one: self.complaints.append(one.url) if one.status >= 400 else None)
        return page

    def _note(self, said: Any) -> None:
        """Note an error, but for the picture that Chromium asks of every site."""
        if said.type == "error" and not said.location["url"].endswith("/favicon.ico"):
            self.complaints.append(f"{said.text} ({said.location['url']})")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's browser; where it or Playwright is missing, its tests are skipped at home, and fail in CI."""
    try:
        playwright = importlib.import_module("playwright.sync_api")
        reason = None if CHROMIUM.exists() else f"There is no {CHROMIUM} (CHROMIUM); apt-get install chromium."
    except ImportError:
        reason = "Playwright is not installed; pip install '.[browser]', as make browser does."
    if reason:
        (pytest.fail if are_required() else pytest.skip)(reason)
    with pytest.MonkeyPatch.context() as patch, playwright.sync_playwright() as started:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # Playwright has a loop in the thread of the tests
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    """The browser, of whose pages none may have complained when the test ends."""
    browser = Browser(chromium=chromium)
    with browser.contexts:
        yield browser
    assert [] == browser.complaints


@pytest.fixture
def site(chromium: Any, db: None, live_server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the tests' project, with deliveries of every kind, and the staff's Ada, who may do everything."""
    monkeypatch.setattr(lineage, "keeping", lambda: ["default", "other"])  # no others are the tests' to ask
    ContentType.objects.clear_cache()
    user = User.objects.create_user("ada", password="lovelace", is_staff=True, first_name="Ada")
    names = ["view_delivery", "view_payload", "replay_delivery", "view_order"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    Order.objects.create(pk=5, customer=Customer.objects.create(name="Grace"))
    _write()
    return str(live_server.url)


def _write() -> None:
    lane = {"key": "shop.Order:5", "lane": "5" * 32}
    common = {"signal": POST_SAVE, "payload": PAYLOAD}
    place("default", "shop.receivers.update_statistics", 60, **common, state=State.SENT, due_at=None, queue="celery")
    place("default", "shop.receivers.index_order", 3, **common, due_at=moment(40))
    for ago in (90_000, 7200, 500):
        failed = {**FAILED, "finished_at": moment(-ago), "created_at": moment(-ago - 5000)}
        place("default", "shop.receivers.confirm_order", **common | failed)
    head = {**FAILED, "finished_at": moment(-300), "created_at": moment(-4000), "slot": "5" * 32}
    bang = {
        "error_type": "KeyError",
        "error_message": "'street'",
        "fingerprint": "KeyError in shop.receivers.log_status",
    }
    place("default", "shop.receivers.log_status", **common | head | lane | bang)
    place("default", "shop.receivers.log_status", 2, **common, **lane, due_at=None)
    place("default", "shop.receivers.update_statistics", **common, state=State.RUNNING, due_at=moment(20))
    kept = {"state": State.DONE, "due_at": moment(4000), "finished_at": moment(-3)}
    place("default", "shop.receivers.export_order", **common | kept)
    lost = {**FAILED, "payload": None, "finished_at": moment(-9e6), "created_at": moment(-9e6), "due_at": None}
    place("default", "shop.receivers.export_order", **common | lost)
    deliveries("default").update(summary="post_save shop.Order pk=5 created")
    place("other", "shop.receivers.rebuild_search_index_of_all_customers", 2, **common)


@pytest.fixture
def shot(request: pytest.FixtureRequest) -> Callable[[Any, str], None]:
    """Takes pictures of pages, for people to look at."""

    def take(page: Any, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(SCREENSHOTS / f"{name}.png"), full_page=True)

    return take
