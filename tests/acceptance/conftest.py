"""Fixtures of the acceptance tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Broker
from tests.processes import Processes
from tests.scene import Scene


@pytest.fixture
def scene(alias: str, broker: Broker, processes: Processes, tmp_path: Path) -> Scene:
    """What ``@each_pair`` names, and the processes that see it."""
    return Scene(alias=alias, broker=broker, processes=processes, folder=tmp_path)


@pytest.fixture
def by_relay(settings: Any) -> None:
    """Senders of this process leave everything to the relay."""
    settings.DJANGO_CELERY_SIGNALS = {**settings.DJANGO_CELERY_SIGNALS, "FAST_PATH_LIMIT": 0}
