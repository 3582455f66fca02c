"""Receivers that no view imports are connected in every process that Django starts: what a request saves is sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.brokers import Broker
from tests.drain import arrived
from tests.parameters import each_worker_broker
from tests.processes import Process, Processes, environment
from tests.shop.models import Customer, Order
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.project.web_settings"}

RUNSERVER = ["django", "runserver", "--noreload", "127.0.0.1:0"]
GUNICORN = ["gunicorn", "--bind=127.0.0.1:0", "--workers=1", "tests.project.wsgi:application"]
SERVERS = {
    "runserver": RUNSERVER,
    "gunicorn-sync": [*GUNICORN, "--worker-class=sync"],
    "gunicorn-gthread": [*GUNICORN, "--worker-class=gthread", "--threads=4"],
    "gunicorn-preload": [*GUNICORN, "--worker-class=gthread", "--threads=4", "--preload"],
}


def start(processes: Processes, broker: Broker, name: str, module: Sequence[str]) -> Process:
    return processes.start("python", "-m", *module, name=name, env={**environment(broker), **SETTINGS})


def address(server: Process) -> str:
    """Return where a server answers, as soon as it says so."""
    return wait_until(lambda: re.findall(r"http://127\.0\.0\.1:[1-9]\d*", server.log), what="the server")[0]


def get(url: str) -> int:
    """Visit a page and return its status."""
    try:
        with urlopen(url, timeout=20) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def what_arrived(broker: Broker, count: int) -> list[tuple[str, str]]:
    """Take so many messages, and say for whom they are and what they tell."""
    return sorted((message.task, message.body["summary"]) for message in arrived(broker, count))


@each_worker_broker("filesystem", "rabbitmq")
@pytest.mark.parametrize("name", SERVERS)
def test_server(broker: Broker, processes: Processes, name: str) -> None:
    """A server connects what receivers.py and tasks.py declare, and a request that commits sends once (H16, H74)."""
    server = start(processes, broker, name, SERVERS[name])
    url = address(server)

    assert (500, 200, 500) == (get(f"{url}/failing/"), get(f"{url}/orders/"), get(f"{url}/failing/"))

    order = Order.objects.get()
    assert [
        ("tests.notices.receivers.confirm_order", f"post_save shop.Order pk={order.pk} created"),
        ("tests.notices.tasks.welcome", f"post_save shop.Customer pk={order.customer_id} created"),
    ] == what_arrived(broker, 2)
    server.kill()


@each_worker_broker("filesystem", "rabbitmq")
def test_shell(broker: Broker, processes: Processes) -> None:
    """What a line in Django's shell saves is sent, although the shell ends at once (H74)."""
    line = "from tests.shop.models import Customer; Customer.objects.create(name='Ada')"

    shell = start(processes, broker, "shell", ["django", "shell", "-c", line])

    assert 0 == shell.wait()
    pk = Customer.objects.get().pk
    assert [("tests.notices.tasks.welcome", f"post_save shop.Customer pk={pk} created")] == what_arrived(broker, 1)
