"""Fixtures for pytest. A module of its own, so that no test run imports the library before Django is configured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _forget_signals() -> Iterator[None]:
    """Leave nothing of one test to the next."""
    yield
    if (testing := sys.modules.get("django_celery_signals.testing")) is not None:
        testing.forget()


@pytest.fixture
def sent_signals() -> Iterator[Any]:
    """What the test sends to receivers in workers: a list, see ``django_celery_signals.testing.captured``."""
    with import_module("django_celery_signals.testing").captured() as sent:
        yield sent


@pytest.fixture
def drain_signals() -> Callable[[], int]:
    """Runs what was sent, see ``django_celery_signals.testing.drain``."""
    drain: Callable[[], int] = import_module("django_celery_signals.testing").drain
    return drain
