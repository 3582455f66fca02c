"""Send one event to one receiver, so that it is safe when the transaction commits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.site.ready import app, make_ready
from benchmarks.watch import watch

Work = Callable[[int], None]


def _in_a_transaction(send: Callable[[Any], Any], order: Any) -> Work:
    """Return what sends so many times in one transaction, and takes it back, so that no table grows."""
    from django.db import transaction

    def work(count: int) -> None:
        with transaction.atomic():
            for _ in range(count):
                send(order)
            transaction.set_rollback(True)

    return work


def _an_order() -> Any:
    from benchmarks.site.models import Order

    return Order.objects.create(customer="Ada Lovelace", note="by the back door, please")


def _receive(**options: Any) -> Any:
    from django.db.models.signals import post_save

    from benchmarks.site.models import Order
    from django_celery_signals import receiver_task

    @receiver_task(post_save, sender=Order, name="benchmarks.notify", **options)
    def notify(instance: Order, created: bool, **_: Any) -> None: ...

    app.finalize()
    return notify


def _save_sends(order: Any) -> None:
    """Send what a save does."""
    from django.db.models.signals import post_save

    post_save.send(type(order), instance=order, created=True, update_fields=None, raw=False, using="default")


def ours() -> Work:
    """A signal with a durable receiver."""
    make_ready()
    order = _an_order()
    _receive()
    return _in_a_transaction(_save_sends, order)


def row_by_row() -> Work:
    """One prepared INSERT after the other, of the very row that ours writes."""
    order, insert = _prepared()
    return _in_a_transaction(insert, order)


def row_by_row_apart() -> Work:
    """The same INSERTs where ours makes its own, after all else that a sending does; only they are timed."""
    order, insert = _prepared()
    from django_celery_signals import dispatch

    spent: list[float] = []

    def timed(*_: Any) -> None:
        began = time.perf_counter()
        insert(order)
        spent.append(time.perf_counter() - began)

    dispatch.insert = timed
    send = _in_a_transaction(_save_sends, order)

    def work(count: int) -> dict[str, float]:
        spent.clear()
        send(count)
        return {"each": sum(spent) / count}

    return work  # type: ignore[return-value]


def _prepared() -> tuple[Any, Callable[[Any], None]]:
    """Return an order, and what writes the row that ours writes when it is sent."""
    make_ready()
    order = _an_order()
    _receive()
    from django.db import connection, transaction
    from psycopg.types.json import Jsonb

    from django_celery_signals.durable.texts import COUNTS, GIVEN
    from django_celery_signals.models import Delivery

    with transaction.atomic():
        _save_sends(order)
        row = Delivery.objects.latest("id")
        transaction.set_rollback(True)
    values = [getattr(row, name) for name in GIVEN]
    values[GIVEN.index("options")] = Jsonb(row.options)
    places = ", ".join(["%s"] * len(GIVEN) + ["0"] * len(COUNTS))
    text = (
        f"INSERT INTO {Delivery._meta.db_table} ({', '.join((*GIVEN, *COUNTS))}, due_at, created_at) "
        f"VALUES ({places}, STATEMENT_TIMESTAMP(), STATEMENT_TIMESTAMP()) RETURNING id"
    )
    raw = connection.connection

    def insert(_: Any) -> None:
        with raw.cursor() as cursor:
            cursor.execute(text, values, prepare=True)
            cursor.fetchone()

    return order, insert


def row_by_row_anywhere() -> Work:
    """The same on MariaDB and SQLite, by the cursor of their clients, which prepare nothing, or all."""
    make_ready()
    order = _an_order()
    _receive()
    from django.db import connection

    from django_celery_signals.durable.texts import COUNTS, GIVEN

    row = _rows(order)
    place = "%s" if connection.vendor == "mysql" else "?"
    now = "UTC_TIMESTAMP(6)" if connection.vendor == "mysql" else "'2026-01-01 00:00:00.000000'"
    values = [json.dumps(row.options) if name == "options" else getattr(row, name) for name in GIVEN]
    places = ", ".join([place] * len(GIVEN) + ["0"] * len(COUNTS))
    text = (
        f"INSERT INTO {row._meta.db_table} ({', '.join(_quoted(connection, (*GIVEN, *COUNTS)))}, due_at, created_at) "
        f"VALUES ({places}, {now}, {now})"
    )
    raw = connection.connection

    def insert(_: Any) -> None:
        cursor = raw.cursor()
        cursor.execute(text, values)
        cursor.close()

    return _in_a_transaction(insert, order)


def _quoted(connection: Any, names: Iterable[str]) -> list[str]:
    return [connection.ops.quote_name(name) for name in names]


def outbox() -> Work:
    """django-celery-outbox: a task's ``delay()`` writes a row."""
    make_ready()
    order = _an_order()

    @app.task(name="benchmarks.notify")
    def notify(pk: int) -> None: ...

    app.finalize()
    return _in_a_transaction(lambda order: notify.delay(order.pk), order)


def events() -> Work:
    """django-domain-events: ``fire()`` writes an event and its delivery."""
    make_ready()
    order = _an_order()
    from dataclasses import dataclass

    from django_domain_events import DURABLE, event, fire, receiver

    @event(name="benchmarks.Placed")
    @dataclass(frozen=True, slots=True)
    class Placed:
        number: int

    @receiver(Placed, mode=DURABLE, key="benchmarks.notify")
    def notify(placed: Placed) -> None: ...

    return _in_a_transaction(lambda order: fire(Placed(number=order.pk)), order)


def _notify(pk: int) -> None:
    app.send_task("benchmarks.notify", (pk,))


def jaiminho() -> Work:
    """django-jaiminho, which keeps every event in its order: a call of a function becomes a row."""
    make_ready()
    order = _an_order()
    from jaiminho.send import save_to_outbox

    send = save_to_outbox(_notify)
    return _in_a_transaction(lambda order: send(order.pk), order)


def _many(send: Callable[[Any, int], Any], order: Any) -> Work:
    """Return what sends so many times in one transaction at once, and takes it back."""
    from django.db import transaction

    def work(count: int) -> None:
        with transaction.atomic():
            send(order, count)
            transaction.set_rollback(True)

    return work


def ours_batched() -> Callable[[int], dict[str, float]]:
    """The same signal, within ``batched()``, in a transaction that something has begun; with its COMMIT."""
    make_ready()
    order = _an_order()
    _receive()
    from django.db import connection

    from django_celery_signals import batched
    from django_celery_signals.models import Delivery

    def work(count: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        with watch(figures, count), batched():
            order.refresh_from_db()
            for _ in range(count):
                _save_sends(order)
        with connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {Delivery._meta.db_table}")
        return figures

    return work


def _rows(order: Any) -> Any:
    """Return a row that a sending has made, as an instance of the model."""
    from django.db import transaction

    from django_celery_signals.models import Delivery

    with transaction.atomic():
        _save_sends(order)
        row = Delivery.objects.latest("id")
        transaction.set_rollback(True)
    return row


def bulk_create() -> Work:
    """The same rows by Django's ``bulk_create()``, made beforehand."""
    make_ready()
    order = _an_order()
    _receive()
    row = _rows(order)
    values = {
        field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields if field.attname != "id"
    }

    def send(order: Any, count: int) -> None:
        type(row).objects.bulk_create([type(row)(**values) for _ in range(count)], batch_size=500)

    return _many(send, order)


def copied() -> Work:
    """The same rows by PostgreSQL's COPY, which takes least."""
    make_ready()
    order = _an_order()
    _receive()
    from django.db import connection
    from psycopg.types.json import Jsonb

    row = _rows(order)
    names = [field.column for field in row._meta.concrete_fields if field.attname != "id"]
    values = [Jsonb(row.options) if name == "options" else getattr(row, name) for name in names]
    text = f"COPY {row._meta.db_table} ({', '.join(names)}) FROM STDIN"

    def send(order: Any, count: int) -> None:
        with connection.connection.cursor() as cursor, cursor.copy(text) as copy:
            for _ in range(count):
                copy.write_row(values)

    return _many(send, order)
