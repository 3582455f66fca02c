"""Figures of each minute, from real processes: senders that end at once, and workers with their relays and children."""

from __future__ import annotations

import json
from typing import Any

import pytest

from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.statistics.table import minutes
from tests.brokers import Broker
from tests.parameters import each_database
from tests.processes import Process, Processes, environment
from tests.project.durable_settings import GIVEN
from tests.waiting import wait_until

WELCOME = "tests.notices.tasks.welcome"


def start(processes: Processes, broker: Broker, alias: str, **settings: Any) -> Process:
    """Start a shell that sends ten events from a database, and ends."""
    line = f"[Customer.objects.using({alias!r}).create(name='Ada') for _ in range(10)]"
    code = f"from tests.shop.models import Customer; {line}"
    return processes.start(
        "python", "-m", "django", "shell", "-c", code, name="shell", env=env(broker, alias, **settings)
    )


def env(broker: Broker, alias: str, **settings: Any) -> dict[str, str]:
    given = {"alias": alias, "apps": ["tests.notices"], "settings": {"GUARANTEE": "durable", **settings}}
    module = "tests.project.durable_settings"
    return {**environment(broker), "DJANGO_SETTINGS_MODULE": module, GIVEN: json.dumps(given)}


def figures(alias: str, receiver: str, name: str) -> int:
    return sum(minutes(alias).filter(receiver=receiver).values_list(name, flat=True))


@each_database
@pytest.mark.parametrize("broker", ["filesystem"], indirect=True)
def test_processes_that_end(broker: Broker, processes: Processes, alias: str) -> None:
    """What several processes have sent at once is all there when they have ended, however soon that was."""
    shells = [start(processes, broker, alias) for _ in range(2)]

    assert [0, 0] == [shell.wait() for shell in shells]

    # What the folder did not take at once is the relay's to send: two processes may meet in it.
    sent = deliveries(alias).filter(state=State.SENT).count()
    assert (20, True) == (deliveries(alias).count(), sent > 10)
    assert (sent, sent) == (figures(alias, WELCOME, "sent"), figures(alias, "", "sent"))


@each_database
@pytest.mark.parametrize("broker", ["filesystem"], indirect=True)
def test_a_worker(broker: Broker, processes: Processes, alias: str) -> None:
    """A worker's children say how runs ended, its main process what the relay sent; and the relay notes how
    deliveries stand.
    """
    assert 0 == start(processes, broker, alias, FAST_PATH_LIMIT=0).wait()
    assert 0 == minutes(alias).count()
    worker = processes.worker(broker, pool="prefork", concurrency=2, env=env(broker, alias, EMBED_RELAY=True))
    wait_until(lambda: not deliveries(alias).exists(), what="the runs")
    wait_until(lambda: minutes(alias).filter(receiver="", lag__isnull=False).exists(), what="the relay's note")

    assert 0 == worker.stop()

    assert (10, 10) == (figures(alias, WELCOME, "sent"), figures(alias, WELCOME, "succeeded"))
    assert 0 < sum(minutes(alias).filter(receiver=WELCOME).values_list("runtime", flat=True)) < 60
    assert "Figures" not in worker.log
