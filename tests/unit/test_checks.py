"""The system checks; each test is named after the check's id."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import Info, run_checks
from django.db import connections
from django.db.models.signals import post_save
from django.dispatch import Signal
from django.test import override_settings

from django_celery_signals import connect, disconnect
from django_celery_signals.durable import saving
from tests.receiving import Receiving
from tests.shop.models import Tag


def found(**options: Any) -> list[Any]:
    return run_checks(tags=["django_celery_signals"], **options)


def test_dcs_I001(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models with durable receivers are named by ``check --deploy``, with the setting that leaves their saves alone."""
    monkeypatch.setattr(saving, "_atomic", [])
    monkeypatch.setattr(Tag, "save_base", Tag.save_base)
    assert [] == found(include_deployment_checks=True)

    receiving(post_save, sender=Tag, guarantee="durable")

    (message,) = found(include_deployment_checks=True)
    assert isinstance(message, Info)
    assert message.msg.startswith("Saves of shop.Tag are atomic")
    assert "'ATOMIC_SAVES': False" in (message.hint or "")
    assert [] == found()
    with override_settings(DJANGO_CELERY_SIGNALS={"ATOMIC_SAVES": False}):
        assert [] == found(include_deployment_checks=True)


def test_dcs_W001(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite database with deliveries whose transactions do not take the lock at once is named, with its setting."""
    monkeypatch.setitem(connections["other"].settings_dict, "OPTIONS", {"timeout": 20})
    assert [] == found()

    receiving(Signal(), guarantee="durable")

    (message,) = found()
    assert ("dcs.W001", 30) == (message.id, message.level)
    assert "'other'" in message.msg
    assert "DATABASES['other']['OPTIONS'] = {'transaction_mode': 'IMMEDIATE'}" == message.hint


def test_dcs_W001_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where receivers are durable unless they say otherwise, the warning needs no receiver."""
    monkeypatch.setitem(connections["default"].settings_dict, "OPTIONS", {"transaction_mode": "DEFERRED"})
    with override_settings(DJANGO_CELERY_SIGNALS={}):
        assert ["dcs.W001"] == [message.id for message in found()]


def test_dcs_W002(receiving: Receiving) -> None:
    """A receiver that says what a failure does to its key, and has none, is named, with what to give it."""
    bell = Signal()
    alone = receiving(bell, guarantee="durable", on_failure="park")
    receiving(bell, guarantee="durable")
    in_order = receiving(bell, guarantee="durable", on_failure="block", ordered=True, key=lambda n: n)
    folding = receiving(bell, guarantee="durable", on_failure="block")
    connect(bell, folding, guarantee="durable", coalesce=True, key=lambda n: n, dispatch_uid="folding")

    messages = [message for message in found() if message.id == "dcs.W002"]

    assert [True] == [alone.name in message.msg and "on_failure='park'" in message.msg for message in messages]
    assert in_order.name not in messages[0].msg
    assert "ordered=True" in messages[0].hint
    disconnect(bell, folding, dispatch_uid="folding")
