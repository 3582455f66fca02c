"""Processes are killed at every place where it could matter: nothing is lost, nothing is a ghost, effects happen once."""

from __future__ import annotations

import signal
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from django_celery_signals import connect
from tests import crashing
from tests.brokers import Broker
from tests.durable_tasks import connected_to, effects, inside, late, outside, place, wait_until_done
from tests.processes import Processes
from tests.scene import Scene, each_pair
from tests.shop.models import Order, Tag

DATABASES = ("default", "postgres", "mariadb")
EVERYWHERE = list(product(DATABASES, ("redis", "rabbitmq")))
ROTATED = list(zip(DATABASES, ("filesystem", "rabbitmq", "redis"), strict=True))


@pytest.fixture
def scene(alias: str, broker: Broker, processes: Processes, tmp_path: Path) -> Scene:
    return Scene(alias=alias, broker=broker, processes=processes, folder=tmp_path)


@pytest.fixture
def by_relay(settings: Any) -> None:
    """Senders of this process leave everything to the relay."""
    settings.DJANGO_CELERY_SIGNALS = {**settings.DJANGO_CELERY_SIGNALS, "FAST_PATH_LIMIT": 0}


@each_pair(*EVERYWHERE)
def test_sender(scene: Scene) -> None:
    """A sender killed before its commit sends nothing; killed after it, everything arrives once (H33, H36)."""
    senders = [scene.send(point, crashes=scene.crashes(point)) for point in crashing.SENDER]
    senders.append(scene.send(role="save", crashes=scene.crashes("saved")))
    codes = [sender.wait() for sender in senders]
    assert [-signal.SIGKILL] * len(senders) == codes

    scene.worker(EMBED_RELAY=True)
    wait_until_done(scene.alias)

    names = ["committed", "handed over"]
    assert {f"inside {name}": 1 for name in names} == effects(scene.alias)
    assert names == list(Tag.objects.using(scene.alias).order_by("name").values_list("name", flat=True))
    assert not Order.objects.using(scene.alias).exists()
