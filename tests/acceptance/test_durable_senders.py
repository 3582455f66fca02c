"""Durable events leave web servers by the fast path, from forked processes and from threads."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

from django_celery_signals.durable.deliveries import State, deliveries
from tests.drain import waiting
from tests.scene import Scene, each_pair
from tests.shop.models import Order
from tests.waiting import wait_until

GUNICORN = ["gunicorn", "--bind=127.0.0.1:0", "--worker-class=gthread", "--threads=4", "--workers=2"]
PAGES = 24


@each_pair(("default", "rabbitmq"), ("default", "redis"))
def test_preloaded_server(scene: Scene) -> None:
    """A server that sent before it forked sends in its processes and threads, each event once and without a relay."""
    scene.apps = ["tests.notices"]
    command = ["python", "-m", *GUNICORN, "--preload", "tests.project.preloaded:application"]
    environment = scene.environment(GUARANTEE="durable")
    server = scene.processes.start(*command, name="gunicorn", env=environment, ready="Booting worker")
    url = wait_until(lambda: re.findall(r"http://127\.0\.0\.1:[1-9]\d*", server.log), what="the server")[0]

    def visit(number: int) -> int:
        with urlopen(f"{url}/orders/", timeout=20) as response:
            return int(response.status)

    with ThreadPoolExecutor(8) as pool:
        assert [200] * PAGES == list(pool.map(visit, range(PAGES)))

    assert PAGES == Order.objects.count()
    assert [State.SENT] * (2 * PAGES + 1) == list(deliveries("default").values_list("state", flat=True))
    ids = dict.fromkeys(deliveries("default").values_list("event_id", flat=True), 1)
    assert ids == Counter(message.headers["id"] for message in waiting(scene.broker))
    server.kill()
