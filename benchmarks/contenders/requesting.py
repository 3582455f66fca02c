"""Save an order in a transaction, as a request does; what that has caused is on its way to a worker afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.site.ready import app, make_ready
from benchmarks.watch import watch

Work = Callable[[int], dict[str, float]]


def _saving() -> Work:
    """Return what saves so many orders, and throws away what waits for workers and for a relay."""
    from django.db import connection, transaction

    from benchmarks.site.models import Order

    tables = [Order._meta.db_table, *(name for name in connection.introspection.table_names() if "delivery" in name)]

    def work(count: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        with watch(figures, count):
            for _ in range(count):
                with transaction.atomic():
                    Order.objects.create(customer="Ada Lovelace", note="by the back door, please")
        with connection.cursor() as cursor:
            for table in tables:
                cursor.execute(f"DELETE FROM {table}")
        app.control.purge()
        return figures

    return work


def bare() -> Work:
    """Nobody listens."""
    make_ready()
    return _saving()


def by_hand() -> Work:
    """The line that people write: ``transaction.on_commit(lambda: task.delay(order.pk))``."""
    make_ready()
    from django.db import transaction
    from django.db.models.signals import post_save

    from benchmarks.site.models import Order

    @app.task(name="benchmarks.notify")
    def notify(pk: int) -> None: ...

    def send(instance: Order, **_: Any) -> None:
        transaction.on_commit(lambda: notify.delay(instance.pk))

    app.finalize()
    post_save.connect(send, sender=Order, weak=False)
    return _saving()


def at_once() -> Work:
    """The line of those who forget the transaction: ``task.delay(order.pk)`` in the receiver of the signal."""
    make_ready()
    from django.db.models.signals import post_save

    from benchmarks.site.models import Order

    @app.task(name="benchmarks.notify")
    def notify(pk: int) -> None: ...

    def send(instance: Order, **_: Any) -> None:
        notify.delay(instance.pk)

    app.finalize()
    post_save.connect(send, sender=Order, weak=False)
    return _saving()


def ours_in_memory() -> Work:
    """A durable receiver whose messages the broker need not keep on its disk, for the row is there."""
    return ours(delivery_mode=1)


def ours(**options: Any) -> Work:
    """A durable receiver: a row, and its message."""
    make_ready()
    from django.db.models.signals import post_save

    from benchmarks.site.models import Order
    from django_celery_signals import receiver_task

    @receiver_task(post_save, sender=Order, name="benchmarks.notify", **options)
    def notify(instance: Order, created: bool, **_: Any) -> None: ...

    app.finalize()
    return _saving()
