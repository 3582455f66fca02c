"""Let the deliveries of a key take turns, while few others wait, or very many."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings

from benchmarks.contenders.sending import _an_order, _save_sends
from benchmarks.site.ready import app, make_ready

Work = Callable[[int], dict[str, float]]
HALF = 250  # of what the relay claims: deliveries of the one key, and as many, each of a key of its own
PLACES = 6  # digits of the number of a delivery


def _fill(row: Any, count: int, lane: str, due_at: str = "NULL") -> None:
    """Write so many deliveries like one that is there, by the database itself.

    Args:
        row: the one.
        count: at most a million.
        lane: an expression of ``n``, the number of a delivery, and ``tens``, the same without its last digit, as texts.
        due_at: an expression.
    """
    from django.db import connection

    quote: Any = connection.ops.quote_name
    digit = " UNION ALL ".join(f"SELECT {number} AS digit" for number in range(10))
    text = "CHAR(6)" if connection.vendor == "mysql" else "VARCHAR(6)"
    number, tens = (
        " + ".join(f"{10**place} * d{start + place}.digit" for place in range(PLACES - start)) for start in (0, 1)
    )
    numbers = (
        f"SELECT {number} AS number, CAST({number} AS {text}) AS n, CAST({tens} AS {text}) AS tens "
        f"FROM {', '.join(f'({digit}) AS d{place}' for place in range(PLACES))}"
    )
    given = {"lane": lane, "slot": "NULL", "token": "number", "due_at": due_at}
    columns = [column for field in row._meta.concrete_fields if (column := field.column) != "id"]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {row._meta.db_table} ({', '.join(map(quote, columns))}) "
            f"SELECT {', '.join(given.get(column, f'one.{quote(column)}') for column in columns)} "
            f"FROM ({numbers}) AS numbers, {row._meta.db_table} AS one WHERE one.id = {row.pk} AND number < {count}"
        )


def _tidy() -> None:
    """Clear away what was taken back, and let the database know its rows."""
    from django.db import connection

    table = "django_celery_signals_delivery"
    words = {"postgresql": "VACUUM (ANALYZE)", "mysql": "ANALYZE TABLE", "sqlite": "ANALYZE"}
    with connection.cursor() as cursor:
        cursor.execute(f"{words[connection.vendor]} {table}")
        if connection.vendor == "mysql":
            cursor.fetchall()


def _receive() -> None:
    from django.db.models.signals import post_save

    from benchmarks.site.models import Order
    from django_celery_signals import receiver_task

    @receiver_task(post_save, sender=Order, name="benchmarks.notify", coalesce=True)
    def notify(instance: Order, created: bool, **_: Any) -> None: ...

    app.finalize()


def turns() -> Work:
    """Do what senders, workers and relays do for turns, and take it back.

    As many deliveries of one key wait as the contest says, and as many of others, ten of each.
    """
    make_ready()
    order = _an_order()
    _receive()
    from django.db import transaction

    from django_celery_signals.durable.deliveries import deliveries
    from django_celery_signals.durable.folding import MOST, fold_in
    from django_celery_signals.durable.lease import Lease
    from django_celery_signals.durable.reference import Reference

    rows = deliveries("default")
    with transaction.atomic():
        _save_sends(order)
        one = rows.get()
        transaction.set_rollback(True)
    one.save(force_insert=True)
    busy = str(one.lane)
    _fill(one, settings.GIVEN["others"], "MD5(tens)")
    _fill(one, settings.GIVEN["same"] - HALF - 1, f"'{busy}'")
    _fill(one, HALF, f"'{busy}'", due_at="one.created_at")
    rows.filter(pk=one.pk).update(due_at=None)
    last = rows.order_by("-pk")[0].pk
    _fill(one, HALF, "MD5(MD5(n))", due_at="one.created_at")
    alone = list(rows.filter(pk__gt=last).values_list("pk", "lane"))
    _tidy()

    spent: Counter[str] = Counter()

    @contextmanager
    def timed(figure: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        spent[figure] += time.perf_counter() - began

    @contextmanager
    def taken_back() -> Iterator[None]:
        with transaction.atomic():
            yield
            transaction.set_rollback(True)

    def be_sender(pk: int, lane: str) -> None:
        with taken_back(), timed("take_turn"):
            assert rows.take_turn(pk, lane)
        with taken_back(), timed("take_turn, others wait"):
            assert not rows.take_turn(last, busy)

    def be_worker() -> None:
        with taken_back():
            with timed("next_of"):
                assert rows.next_of(busy).pk == one.pk
            with timed("pass_turn"):
                row: Any = rows.pass_turn(busy, publishing=True)
            reference = Reference(alias="default", id=row.pk, token=row.token, receiver=row.receiver)
            held = rows.open(reference, 60)
            assert held is not None
            with timed("followers and fold"):
                fold_in(Lease(using="default", pk=held.pk, token=held.token, seconds=60), held)
            assert f'"coalesced":{MOST}' in held.payload

    def be_relay() -> None:
        with taken_back():
            claimed = rows.claim(2 * HALF, 60)
            assert len(claimed.rows) == 2 * HALF
            with timed("admit"):
                admitted = rows.admit(claimed.claim, claimed.rows)
            assert {row.pk for row in admitted} == {pk for pk, _ in alone}

    def work(count: int) -> dict[str, float]:
        spent.clear()
        for number in range(count):
            be_sender(*alone[number % HALF])
            be_worker()
            be_relay()
        _tidy()
        return {figure: seconds / count for figure, seconds in spent.items()}

    return work
