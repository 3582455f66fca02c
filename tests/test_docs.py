"""The documentation is true: its code runs, and everything public is in it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery
from django.core import mail
from django.db.models.signals import post_save

import django_celery_signals
from django_celery_signals import bridge, conf, connections, disconnect, exceptions, options, signals
from django_celery_signals.event import Event
from tests import shop
from tests.drain import drain, take
from tests.shop import models
from tests.shop.models import Customer, Order, Tag

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
README = (ROOT / "README.md").read_text()


def blocks(text: str) -> list[str]:
    """Return the Python code blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block_with(text: str, words: str) -> str:
    """Return the one code block that has these words in it."""
    (found,) = [block for block in blocks(text) if words in block]
    return found


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs code blocks as modules of a project whose app is called ``shop``; what they connect is undone."""
    for name, module in {"shop": shop, "shop.models": models}.items():
        monkeypatch.setitem(sys.modules, name, module)
    before = connections()

    def run(code: str, name: str = "shop.page") -> dict[str, Any]:
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(code, f"{name}.py", "exec"), vars(module))
        return vars(module)

    yield run
    for connection in [one for one in connections() if one not in before]:
        disconnect(
            connection.signal,
            bridge.Spelling(bridge.send, bridge.target_of(connection.receiver)),
            sender=connection.sender,
        )


@pytest.mark.django_db(transaction=True)
def test_first_example(page: Any, celery_app: Celery) -> None:
    """The README's first receiver keeps the customer's total in a worker, and is a plain function in a unit test."""
    page(block_with(README, "@receiver_task(post_save, sender=Order)\ndef update_spending"), "shop.receivers")
    ada = Customer.objects.create(name="Ada")
    Order.objects.create(customer=ada, total=30)
    Order.objects.create(customer=ada, total=12)
    assert Customer.objects.get(pk=ada.pk).spent == 0
    drain(celery_app)
    assert Customer.objects.get(pk=ada.pk).spent == 42

    by_hand = page(block_with(README, "from shop.receivers import update_spending"), "shop.tests")
    assert Customer.objects.get(pk=by_hand["order"].customer_id).spent == 20


@pytest.mark.django_db(transaction=True)
def test_first_example_without_a_worker(page: Any) -> None:
    """The README's receiver as it was before works as well, in the request."""
    update = page(block_with(README, "@receiver(post_save, sender=Order)"), "shop.receivers")["update_spending"]
    ada = Customer.objects.create(name="Ada")
    Order.objects.create(customer=ada, total=30)
    assert post_save.disconnect(update, sender=Order)
    assert Customer.objects.get(pk=ada.pk).spent == 30


def test_installed_apps(page: Any) -> None:
    """The README's settings name the app."""
    assert page(block_with(README, "INSTALLED_APPS"))["INSTALLED_APPS"] == ["django_celery_signals"]


def test_only_the_decorator_changes() -> None:
    """The first example's two versions differ in one import and one decorator line."""
    before, after = (block.splitlines() for block in blocks(README)[:2])
    different = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert different == [
        ("from django.dispatch import receiver", "from django_celery_signals import receiver_task"),
        ("@receiver(post_save, sender=Order)", "@receiver_task(post_save, sender=Order)"),
    ]


@pytest.mark.django_db(transaction=True)
def test_literal_line(page: Any, celery_app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's literal line of 2011 runs the task in a worker."""
    code = page(block_with(README, "post_save.connect(index_order.delay, sender=Order)"))
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"))
    drain(celery_app)
    assert capsys.readouterr().out == f"Order {order.pk} is to be indexed\n"
    assert post_save.disconnect(code["index_order"].delay, sender=Order) is True


@pytest.mark.django_db(transaction=True)
def test_mail_example(page: Any, celery_app: Celery) -> None:
    """The README's e-mail carries the event's id as its Message-ID, at every attempt the same."""
    page(block_with(README, "EmailMessage("))
    Order.objects.create(customer=Customer.objects.create(name="Ada", email="ada@example.org"))
    (message,) = take(celery_app)
    for _ in range(2):
        celery_app.tasks[message.task].apply(kwargs=message.kwargs)
    ids = [sent.extra_headers["Message-ID"] for sent in mail.outbox]
    assert ids == [f"<{message.body['id']}@shop.example>"] * 2
    assert mail.outbox[0].to == ["ada@example.org"]


@pytest.mark.django_db(transaction=True)
def test_options_example(page: Any, celery_app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's options choose the sendings, the queue, and the many-to-many actions."""
    page(block_with(README, "def tell_customer"))
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"), total=200)
    order.save()
    order.status = Order.Status.PAID
    order.save()
    order.status = Order.Status.SENT
    order.save()
    drain(celery_app)
    assert (
        capsys.readouterr().out == f"Order {order.pk} went from new to paid\nOrder {order.pk} went from paid to sent\n"
    )
    tag = Tag.objects.create(name="gift")
    order.tags.add(tag)
    drain(celery_app)
    assert capsys.readouterr().out == f"post_add on order {order.pk}: {{{tag.pk}}}\n"


def test_settings_block(page: Any) -> None:
    """The reference lists every setting with its default."""
    given = page(block_with(REFERENCE, "DJANGO_CELERY_SIGNALS = {"))["DJANGO_CELERY_SIGNALS"]
    assert conf.read(given) == conf.Settings()
    assert set(given) == {field.name for field in fields(conf.Settings)}


def test_remaining_blocks(page: Any) -> None:
    """Every other code block of the reference runs."""
    code = page(block_with(REFERENCE, "register_codec("))
    assert code["Money"](1, "EUR").currency == "EUR"


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(list(options.NAMES), id="sending options"),
        pytest.param(list(options.RUNNING_NAMES), id="running options"),
        pytest.param([field.name for field in fields(conf.Settings)], id="settings"),
        pytest.param([field.name for field in fields(Event)], id="event"),
        pytest.param([name for name, value in vars(signals).items() if value in signals.LIFECYCLE], id="signals"),
        pytest.param([name for name in django_celery_signals.__all__ if name != "Event"], id="public names"),
    ],
)
def test_everything_is_documented(names: list[str]) -> None:
    """The reference names every option, setting, field, signal and public name."""
    assert names
    assert [name for name in names if not re.search(rf"`{name}[`(]", REFERENCE)] == []


def test_error_tree() -> None:
    """The errors' docstring draws every error there is."""
    drawn = exceptions.__doc__ or ""
    own = [
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and value.__module__ == exceptions.__name__
    ]
    assert [name for name in own if name not in drawn] == []


@pytest.mark.parametrize(
    "path", ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
)
def test_links(path: str) -> None:
    """Every relative link of a page leads to a file."""
    text = (ROOT / path).read_text()
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [target for target in targets if not ((ROOT / path).parent / target).exists()] == []


def test_guarantees_are_held() -> None:
    """Every test that the guarantees name exists, and every promise names one."""
    page = (ROOT / "docs" / "guarantees.md").read_text()
    tests = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    promises = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| promise")]

    assert set() == set(re.findall(r"`(test_\w+)`", page)) - tests
    assert [] == [line for line in promises if "---" not in line and "`test_" not in line]
