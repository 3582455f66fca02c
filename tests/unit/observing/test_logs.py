"""Structured log records: one for each of the library's own signals."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.db.models.signals import post_save
from django.dispatch import Signal

from django_celery_signals import Discard, Fail, Relay
from django_celery_signals.durable.deliveries import deliveries
from django_celery_signals.observing import logs
from django_celery_signals.signals import LIFECYCLE, event_lost, receiver_failed, tell
from tests.delivering import moment
from tests.drain import drain
from tests.receiving import Receiving
from tests.shop.models import Tag

NAME = "tests.nobody"
PAGE = (Path(__file__).resolve().parents[3] / "docs" / "observability.md").read_text()


class Records(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What a logger of the test's own was given."""
    logger, handler = logging.getLogger("tests.events"), Records()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logs.connect(logger)
    yield handler.kept
    logs.disconnect(logger)
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def said(records: list[logging.LogRecord]) -> list[tuple[str, str]]:
    return [(record.levelname, str(record.msg)) for record in records]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name.startswith("dcs_")}


@pytest.mark.django_db(transaction=True)
def test_a_success(records: list[logging.LogRecord], receiving: Receiving, celery_app: Celery) -> None:
    """A sending and its run are told with the event's ids, and nothing of what was sent."""
    name = receiving(post_save, sender=Tag).name
    Tag.objects.create(name="a secret")
    drain(celery_app)

    sent, started, succeeded = records
    assert [("INFO", "Event sent to %s"), ("INFO", "Receiver started: %s"), ("INFO", "Receiver succeeded: %s")] == said(
        records
    )
    assert f"Receiver succeeded: {name}" == succeeded.getMessage()
    told = fields(succeeded)
    assert 0 <= told.pop("dcs_runtime_ms") < 60_000
    event_id = fields(sent)["dcs_event_id"]
    nothing = dict.fromkeys(["dcs_parent_id", "dcs_will_retry", "dcs_error_type"])
    ids = {"dcs_event_id": event_id, "dcs_root_id": event_id, "dcs_depth": 0}
    assert {
        "dcs_receiver": name,
        "dcs_signal_name": "django.db.models.signals:post_save",
        "dcs_using": "default",
        **ids,
        **nothing,
    } == told
    assert {**told, "dcs_runtime_ms": None} == fields(started)
    assert {**told, **dict.fromkeys(["dcs_runtime_ms", "dcs_root_id", "dcs_depth"])} == fields(sent)
    assert "secret" not in str([vars(record) for record in records])


@pytest.mark.django_db(transaction=True)
def test_a_failure(records: list[logging.LogRecord], receiving: Receiving, celery_app: Celery) -> None:
    """What will run again is a warning, what has failed for good an error; each with the error's type, not its text."""
    bell, tries = Signal(), []

    def refuse() -> None:
        tries.append(1)
        raise (ValueError if len(tries) == 1 else Fail)("a secret")

    receiving(bell, refuse, guarantee="durable")
    bell.send(sender=None)
    drain(celery_app)
    deliveries("default").update(due_at=moment(-1))
    assert 1 == Relay(app=celery_app, databases=["default"]).once()
    drain(celery_app)

    told = [
        (record.levelname, str(record.msg), record.dcs_error_type, record.dcs_will_retry)  # type: ignore[attr-defined]
        for record in records
        if record.levelno > logging.INFO
    ]
    assert ("WARNING", "Receiver failed, and will run again: %s", "ValueError", True) == told[0]
    assert {
        ("ERROR", "Receiver failed: %s", "django_celery_signals.exceptions.ReceiverFailed", False),
        ("ERROR", "Delivery given up for %s", "django_celery_signals.exceptions.ReceiverFailed", None),
    } == set(told[1:])
    assert "secret" not in str([vars(record) for record in records])


@pytest.mark.django_db(transaction=True)
def test_a_discarded_event(records: list[logging.LogRecord], receiving: Receiving, celery_app: Celery) -> None:
    """What is dropped on purpose is no trouble, and its reason, which may hold a value, is not told."""

    def refuse() -> None:
        raise Discard("a secret")

    bell = Signal()
    receiving(bell, refuse)
    bell.send(sender=None)
    drain(celery_app)

    assert ("INFO", "Event discarded by %s") == said(records)[-1]
    assert "secret" not in str(vars(records[-1]))


def test_without_an_event(records: list[logging.LogRecord]) -> None:
    """Where an event could not be read, what is known is told."""
    tell(receiver_failed, NAME, event=None, error=ValueError("a secret"), will_retry=False, using="other")
    tell(event_lost, NAME, event_id="1", signal_name="shop:bell", summary="a secret", error=KeyError("a secret"))

    failed, lost = map(fields, records)
    assert (None, "other", "ValueError") == (*(failed["dcs_event_id"], failed["dcs_using"], failed["dcs_error_type"]),)
    assert ("1", "shop:bell", None, "KeyError") == (
        *(lost["dcs_event_id"], lost["dcs_signal_name"], lost["dcs_using"], lost["dcs_error_type"]),
    )
    assert [("ERROR", "Receiver failed: %s"), ("ERROR", "Event lost for %s")] == said(records)
    assert failed.keys() == lost.keys()


def test_the_level(records: list[logging.LogRecord]) -> None:
    """What a logger does not write costs it no record."""
    logging.getLogger("tests.events").setLevel(logging.CRITICAL)
    tell(event_lost, NAME)

    assert [] == records


def test_connecting_twice(records: list[logging.LogRecord]) -> None:
    """To connect once more changes nothing, and after a disconnection nothing is written."""
    logger = logging.getLogger("tests.events")
    logs.connect(logger)
    tell(event_lost, NAME)
    assert 1 == len(records)

    logs.disconnect(logger)
    tell(event_lost, NAME)
    assert 1 == len(records)


def test_every_signal_is_told() -> None:
    """None of the library's signals is left out, and the page has every field and no other."""
    assert set(LIFECYCLE) == set(logs.SAYING)
    assert {f"dcs_{name}" for name in logs.fields(NAME, {})} == set(re.findall(r"`(dcs_\w+)`", PAGE))
