"""Fixtures of the unit tests."""

from __future__ import annotations

from typing import Any

import pytest

from django_celery_signals import PublishError
from django_celery_signals.publisher import Publisher


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> PublishError:
    """What every publication fails with."""
    error = PublishError("The broker is away.")

    def fail(self: Publisher, *args: Any) -> None:
        raise error

    monkeypatch.setattr(Publisher, "publish", fail)
    return error
