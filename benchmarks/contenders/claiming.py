"""Claim a batch of a backlog; and publish all of one, to see what the relay's memory does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings

from benchmarks.contenders.sending import _receive
from benchmarks.site.ready import app, make_ready

Work = Callable[[int], dict[str, float]]
BATCH = 500


def _fill(count: int, seconds: int) -> None:
    """Write rows that are due so many seconds from now, by the database itself."""
    from django.db import connection

    columns = {
        "event_id": "gen_random_uuid()::text",
        "receiver": "'benchmarks.notify'",
        "signal": "'django.db.models.signals:post_save'",
        "summary": "'post_save benchmarks_site.Order pk=' || n || ' created'",
        "queue": "'benchmarks_ours'",
        "folds": "false",
        "state": "1",
        "token": "n",
        "attempts": "0",
        "crashes": "0",
        "reruns": "0",
        "sends": "0",
        "options": "'{}'",
        "payload": "repeat('x', 900)",
        "due_at": f"now() + interval '{seconds} seconds'",
        "created_at": "now()",
    }
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO django_celery_signals_delivery ({', '.join(columns)}) "
            f"SELECT {', '.join(columns.values())} FROM generate_series(1, {count}) AS n"
        )


def _tidy() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE) django_celery_signals_delivery")


def claims() -> Work:
    """Claim 500 of as many rows as the contest says, and take it back."""
    make_ready()
    from django.db import transaction

    from django_celery_signals.durable.deliveries import deliveries

    _fill(settings.GIVEN.get("later", 0), 3600)
    _fill(settings.GIVEN["rows"], -60)
    _tidy()

    def work(count: int) -> dict[str, float]:
        spent = 0.0
        for _ in range(count):
            with transaction.atomic():
                began = time.perf_counter()
                claimed = deliveries("default").claim(BATCH, 2.0)
                spent += time.perf_counter() - began
                assert len(claimed.rows) == BATCH
                transaction.set_rollback(True)
        _tidy()  # what was taken back is in the way of the next
        return {"each": spent / count}

    return work


def _resident() -> float:
    """Return the process's resident memory, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def memory() -> Work:
    """The relay's resident memory when it has published 10,000 of a backlog, and when it has published all."""
    make_ready()
    _receive()
    from django.db import connection

    from django_celery_signals import Relay

    def work(count: int) -> dict[str, float]:
        _fill(count, -60)
        relay: Any = Relay(app=app)
        first, published = 0.0, 0
        while claimed := relay._claim("default"):
            if not claimed.rows:
                break
            published += relay._publish("default", claimed)
            if published >= 10_000 and not first:
                first = _resident()
        assert published == count
        last = _resident()
        relay._bulk.close()
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE django_celery_signals_delivery")
        app.control.purge()
        return {"after 10,000": first, "after all": last}

    return work
