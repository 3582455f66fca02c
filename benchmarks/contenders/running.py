"""From a commit to the receiver, through a broker and a worker: how soon when nothing waits, and how many at once."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import quantiles
from typing import Any

from django.conf import settings

from benchmarks.site.ready import app, make_ready

Work = Callable[[int], dict[str, float]]
PATIENCE = 60.0  # seconds


class _Listener:
    """Hears of receivers that run."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024 * 1024)
        self._socket.bind(("127.0.0.1", settings.GIVEN["teller"]))
        self._socket.settimeout(PATIENCE)

    def hear(self) -> tuple[int, float]:
        """Return which order it was, and when."""
        from benchmarks.site.receiving import RECORD

        return RECORD.unpack(self._socket.recv(RECORD.size))  # type: ignore[return-value]


@contextmanager
def _worker(*options: str) -> Iterator[None]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "-A", "benchmarks.site.worker:app", "worker"),
            *("-l", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat", *options),
        ],
        env=os.environ.copy(),
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def _relay(idle: float) -> Iterator[None]:
    """Run ``manage.py signals relay --idle``, with the app and the receivers that a worker has."""
    program = (
        "import benchmarks.site.worker\nfrom django.core.management import call_command\n"
        f"call_command('signals', 'relay', idle={idle})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ.copy(), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


_committed = [0.0]  # when the last transaction was, by this process's clock


def _ready() -> None:
    make_ready()
    from django.db.backends.base.base import BaseDatabaseWrapper

    from benchmarks.site.receiving import connect

    commit = BaseDatabaseWrapper._commit

    def noted(self: Any) -> None:
        commit(self)
        _committed[0] = time.monotonic()

    BaseDatabaseWrapper._commit = noted  # type: ignore[method-assign]
    connect()
    app.control.purge()


def _save() -> int:
    from django.db import transaction

    from benchmarks.site.models import Order

    with transaction.atomic():
        order = Order.objects.create(customer="Ada Lovelace", note="by the back door, please")
    return int(order.pk)


def _empty() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        for table in connection.introspection.table_names():
            if "delivery" in table or table.startswith("benchmarks"):
                cursor.execute(f"DELETE FROM {table}")


def soon() -> Work:
    """One after the other: the seconds between the commit and the beginning of its receiver."""
    _ready()
    listener, running = _Listener(), ExitStack()
    running.enter_context(_worker(*settings.GIVEN["worker"]))
    if idle := settings.GIVEN.get("idle"):
        running.enter_context(_relay(idle))
    atexit.register(running.close)
    _save()
    listener.hear()  # the worker is there

    def work(count: int) -> dict[str, float]:
        found: list[float] = []
        for _ in range(count):
            pk, committed = _save(), _committed[0]
            heard, began = listener.hear()
            assert heard == pk
            found.append(began - committed)
            time.sleep(0.01)  # nothing is to be under way
        _empty()
        cuts = quantiles(found, n=100)
        return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}

    return work


def many() -> Work:
    """A backlog, which a worker finds when it starts: from the first receiver to the last."""
    _ready()
    listener = _Listener()

    def work(count: int) -> dict[str, float]:
        for _ in range(count):
            _save()
        if settings.GIVEN.get("chunk"):
            from django_celery_signals import Relay

            Relay(app=app).once()
        with _worker(*settings.GIVEN["worker"]):
            _, first = listener.hear()
            moments = [listener.hear()[1] for _ in range(count - 1)]
        _empty()
        return {"each": (max(moments) - first) / (count - 1)}

    return work
