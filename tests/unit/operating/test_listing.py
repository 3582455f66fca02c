"""``manage.py signals list``: what is connected, for people and for programs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from celery import Celery
from django.db.models.signals import m2m_changed, post_save
from django.dispatch import Signal

from django_celery_signals import connect, disconnect
from django_celery_signals.operating import listing
from django_celery_signals.options import NAMES, RUNNING_NAMES
from tests.making import Tasks
from tests.project.celery import configure
from tests.receiving import Receiving
from tests.saying import said_as_json, say, shown
from tests.shop.models import Order, Tag

bell = Signal()
gong = Signal()


def is_large(instance: Any) -> bool:
    return bool(instance)


class IsLarge:
    """A function that is an object."""

    def __call__(self, instance: Any) -> bool:
        return True


def row_of(task: Any) -> list[str]:
    """Return the columns of a task's only row."""
    [row] = [line.split(maxsplit=5) for line in say("list").splitlines() if f" {task.name} " in line]
    return row


def facts_of(task: Any) -> dict[str, Any]:
    """Return what a program reads of a task's only connection."""
    [facts] = [one for one in said_as_json("list") if one["receiver"] == task.name]
    return dict(facts)


# For people ----------------------------------------------------------------------------------------------------------

SHOWN = [
    ({}, "-"),
    (
        {"countdown": 60, "changed": ["status", "total"], "chunk_size": 50},
        "changed=status,total countdown=60 chunk_size=50",
    ),
    ({"when": is_large, "created": False}, "when=is_large created=False"),
    ({"when": partial(is_large), "raw": False}, "when=is_large"),
    ({"when": IsLarge(), "raw": True}, "when=IsLarge raw=True"),
    ({"ordered": True, "on_failure": "park", "retain": 0.5}, "retain=0.5 ordered=True on_failure=park"),
    ({"expires": timedelta(minutes=1), "priority": 3}, "priority=3 expires=60"),
    ({"autoretry_for": (ValueError,), "max_retries": 5}, "autoretry_for=ValueError max_retries=5"),
    ({"former_names": ["shop.old"], "atomic": False}, "atomic=False former_names=shop.old"),
]


@pytest.mark.parametrize(("options", "expected"), SHOWN, ids=lambda value: None if isinstance(value, dict) else value)
def test_options(receiving: Receiving, options: dict[str, Any], expected: str) -> None:
    """What differs from its default is shown, of the connection and of the task, under the names it is written with."""
    task = receiving(post_save, sender=Order, guarantee="durable", **options)

    assert expected == row_of(task)[5]


def test_options_of_a_lambda(receiving: Receiving) -> None:
    """A function without a name is shown by its line."""
    task = receiving(post_save, when=lambda instance: True)
    line = test_options_of_a_lambda.__code__.co_firstlineno + 2

    assert f"when=<lambda>:{line}" == row_of(task)[5]


def test_exclude(receiving: Receiving) -> None:
    """Senders are shown by their labels, however they were named."""
    task = receiving(post_save, exclude=[Tag, "shop.Order"])

    assert ["*", "exclude=shop.Tag,shop.Order"] == [row_of(task)[1], row_of(task)[5]]


def test_through_model(receiving: Receiving) -> None:
    """The through model that Django made is called by its field, as it is written in sender=."""
    task = receiving(m2m_changed, sender="shop.Order.tags")

    assert "shop.Order.tags" == row_of(task)[1]


def test_unnamed_signal(receiving: Receiving) -> None:
    """A signal that nothing holds has no name to show."""
    assert "(unnamed)" == row_of(receiving(Signal()))[0]


def test_plain_connect(tasks: Tasks) -> None:
    """What a plain connect() made is shown as well, with its dispatch_uid."""
    task = tasks.shared()
    bell.connect(task.delay, dispatch_uid="twice")
    try:
        assert ["bell", "*", "dispatch_uid=twice"] == [row_of(task)[number] for number in (0, 1, 5)]
    finally:
        bell.disconnect(task.delay, dispatch_uid="twice")


def test_missing_task(receiving: Receiving, celery_app: Celery) -> None:
    """A task that the app does not have is shown as missing."""
    task = receiving(bell)
    del celery_app._tasks[task.name]

    assert "task=missing" == row_of(task)[5]


def test_on_a_terminal(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the rows are as wide as it is."""
    task = receiving(post_save, sender=Order, changed=["status", "total"], guarantee="durable", countdown=60)

    lines = shown(monkeypatch, 80, "list", "--receiver", task.name).splitlines()[:2]

    assert 80 >= max(map(len, lines))
    assert [True, True] == [word in lines[1] for word in ("post_save", "durable")]


# Filters -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(receiving: Receiving) -> dict[str, str]:
    """The names of three tasks, by what they are for."""
    return {
        receiving(post_save, sender=Order).name: "order",
        receiving(m2m_changed, sender="shop.Order.tags").name: "tags",
        receiving(bell).name: "bell",
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["bell", "order", "tags"]),
        (["--signal=post_save"], ["order"]),
        (["--signal=django.db.models.signals:post_save"], ["order"]),
        (["--signal", f"{__name__}.bell"], ["bell"]),
        (["--signal=ell"], []),
        (["--sender=shop.order"], ["order"]),
        (["--sender=shop.Order.tags"], ["tags"]),
        (["--sender=shop.Order_tags"], ["tags"]),
        (["--sender=*", "--signal=bell"], ["bell"]),
        (["--sender=*", "--signal=post_save"], []),
    ],
    ids=" ".join,
)
def test_filters(three: dict[str, str], words: list[str], expected: list[str]) -> None:
    """Signal and sender narrow what is listed, for people and for programs."""
    found = [three[one["receiver"]] for one in said_as_json("list", *words) if one["receiver"] in three]
    said = say("list", *words)

    assert expected == sorted(found)
    assert set(expected) == {what for name, what in three.items() if f" {name} " in said}


def test_filter_by_receiver(three: dict[str, str]) -> None:
    """A receiver is named whole, or by its last part."""
    name = next(iter(three))

    for text in (name, name.rpartition(".")[2]):
        assert [name] == [one["receiver"] for one in said_as_json("list", f"--receiver={text}")]


def test_filter_by_family(tasks: Tasks) -> None:
    """A class that is connected together with its subclasses is found by its own label."""
    task = tasks.shared()
    connect(post_save, task, sender=Tag, subclasses=True)

    found = [one for one in said_as_json("list", "--sender=shop.Tag") if one["receiver"] == task.name]
    assert disconnect(post_save, task, sender=Tag, subclasses=True)

    assert [(task.name, "shop.Tag", True)] == [(one["receiver"], one["sender"], one["subclasses"]) for one in found]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--signal=post_sve"], "Nothing is connected with signal 'post_sve'. Did you mean 'post_save'"),
        (
            ["--signal=bell", "--sender=shop.Ordr"],
            "Nothing is connected with signal 'bell', sender 'shop.Ordr'. Did you mean 'shop.Order' or ",
        ),
        (["--signal=bell", "--sender=shop.Order"], "Nothing is connected with signal 'bell', sender 'shop.Order'."),
        (["--receiver=xyz"], "Nothing is connected with receiver 'xyz'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_is_found(three: dict[str, str], words: list[str], said: str) -> None:
    """Where nothing matches, people are told what may have been meant, and programs are given an empty list."""
    assert say("list", *words).startswith(said)
    assert [] == said_as_json("list", *words)


def test_nothing_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing at all is connected, list says so."""
    monkeypatch.setattr(listing, "connected", list)

    assert "No task is connected to a signal in this process." == say("list").splitlines()[0]


# For programs --------------------------------------------------------------------------------------------------------


def test_json(receiving: Receiving) -> None:
    """An object has everything that is known of a connection, under keys in a fixed order."""
    task = receiving(
        post_save, sender=Order, guarantee="durable", queue="mail", when=is_large, changed=["status"], retain=5
    )

    facts = facts_of(task)

    assert {
        "signal": "post_save",
        "signal_name": "django.db.models.signals:post_save",
        "sender": "shop.Order",
        "subclasses": False,
        "receiver": task.name,
        "dispatch_uid": None,
        "guarantee": "durable",
        "queue": "mail",
        "options": {
            **dict.fromkeys(NAMES),
            "guarantee": "durable",
            "queue": "mail",
            "changed": ["status"],
            "when": f"{__name__}.is_large",
        },
        "running_options": {
            "atomic": True,
            "on_missing": "discard",
            "former_names": [],
            "retain": 5,
            "ordered": False,
            "on_failure": None,
            "chunk_size": None,
            "batch": False,
            "autoretry_for": None,
            "max_retries": 3,
            "retry_backoff": None,
            "expires": None,
            "priority": None,
        },
        "atomic_saves": True,
    } == facts
    assert list(facts)[:3] == ["signal", "signal_name", "sender"]
    assert (list(NAMES), list(RUNNING_NAMES)) == (
        list(facts["options"]),
        list(facts["running_options"])[: len(RUNNING_NAMES)],
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"expires": timedelta(minutes=1)}, 60.0),
        ({"expires": datetime(2026, 1, 2, tzinfo=UTC)}, "2026-01-02T00:00:00+00:00"),
        ({"expires": 5}, 5),
    ],
    ids=["duration", "moment", "number"],
)
def test_json_of_times(receiving: Receiving, options: dict[str, Any], expected: Any) -> None:
    """A duration is a number of seconds, a moment a text."""
    assert expected == facts_of(receiving(bell, **options))["options"]["expires"]


def test_json_of_errors(receiving: Receiving) -> None:
    """Classes are named."""
    assert ["ValueError"] == facts_of(receiving(bell, autoretry_for=(ValueError,)))["running_options"]["autoretry_for"]


def test_json_of_what_is_not_known(receiving: Receiving, celery_app: Celery) -> None:
    """What has no name, or cannot be told, is null, and not a word for people."""
    unnamed, astray, missing = receiving(Signal()), receiving(bell), receiving(gong)
    configure({"task_routes": {astray.name: {"exchange": "news", "routing_key": "all"}}})
    del celery_app._tasks[missing.name]

    assert None is facts_of(unnamed)["signal"]
    assert None is facts_of(astray)["queue"]
    assert None is facts_of(missing)["running_options"]


@pytest.mark.parametrize(
    ("setting", "options", "expected"),
    [
        (True, {"guarantee": "durable"}, True),
        (False, {"guarantee": "durable"}, False),
        (True, {"guarantee": "durable", "signal": m2m_changed, "sender": "shop.Order.tags"}, False),
        (True, {"guarantee": "durable", "sender": None}, False),
    ],
    ids=["saves", "setting", "relation", "every sender"],
)
def test_json_of_atomic_saves(
    receiving: Receiving, settings: Any, setting: bool, options: dict[str, Any], expected: bool
) -> None:
    """It is said whether what sends is saved in a transaction together with its deliveries."""
    settings.DJANGO_CELERY_SIGNALS = {"ATOMIC_SAVES": setting}
    given = {"signal": post_save, "sender": Order, **options}

    assert expected is facts_of(receiving(given.pop("signal"), **given))["atomic_saves"]
