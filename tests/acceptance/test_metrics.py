"""Metrics of real processes, which add up their figures."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from urllib.request import urlopen

import pytest

from django_celery_signals.durable.deliveries import deliveries
from tests.brokers import Broker
from tests.processes import Processes, environment
from tests.project.durable_settings import GIVEN
from tests.waiting import wait_until

SEND = """
import tests.worker_metrics
from tests.shop.models import Customer
[Customer.objects.create(name="Ada") for _ in range(10)]
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("broker", ["filesystem"], indirect=True)
def test_processes_that_share(broker: Broker, processes: Processes, tmp_path: Path) -> None:
    """A worker's main process serves what a sender that has ended has sent, what its children have run, and how
    deliveries stand.
    """
    folder, port = tmp_path / "metrics", free_port()
    folder.mkdir()
    given = {"alias": "default", "apps": ["tests.notices"], "settings": {"GUARANTEE": "durable"}}
    env = {
        **environment(broker),
        "DJANGO_SETTINGS_MODULE": "tests.project.durable_settings",
        GIVEN: json.dumps(given),
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
        "METRICS_PORT": str(port),
    }
    assert 0 == processes.start("python", "-m", "django", "shell", "-c", SEND, name="shell", env=env).wait()
    worker = processes.worker(broker, pool="prefork", concurrency=2, modules=["tests.worker_metrics"], env=env)

    def scraped() -> dict[str, float]:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            said = answer.read().decode()
        return {name: float(number) for name, number in re.findall(r"^(\w+)\{.*\} (\S+)$", said, re.MULTILINE)}

    wait_until(lambda: scraped().get("django_celery_signals_succeeded_total") == 10, what="the runs")
    found = scraped()
    assert 10 == found["django_celery_signals_sent_total"]
    assert 10 == found["django_celery_signals_run_seconds_count"] == found["django_celery_signals_wait_seconds_count"]
    assert (1, 0) == (found["django_celery_signals_up"], found["django_celery_signals_waiting"])
    assert not deliveries("default").exists()
    assert 2 <= len({path.stem.rpartition("_")[2] for path in folder.glob("*.db")})  # processes
    assert 0 == worker.stop()
