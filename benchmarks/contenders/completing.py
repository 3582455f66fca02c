"""What a worker does with a delivery beside Celery's own work: open it, read it, complete it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.contenders.sending import _an_order, _receive, _save_sends
from benchmarks.site.ready import app, make_ready
from benchmarks.watch import watch

Work = Callable[[int], dict[str, float]]


def _traced(task: Any) -> Callable[[Any], None]:
    """Return what runs a task for its keyword arguments as a worker does, without a broker."""
    from celery.app.trace import build_tracer

    tracer = build_tracer(task.name, task, app=app)

    def run(kwargs: Any) -> None:
        tracer("00000000-0000-4000-8000-000000000000", (), kwargs, {"task": task.name, "delivery_info": {}})

    return run


def bare() -> Work:
    """Celery's task that does nothing."""
    make_ready()

    @app.task(name="benchmarks.notify")
    def notify(number: int) -> None: ...

    app.finalize()
    run = _traced(notify)

    def work(count: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        with watch(figures, count):
            for number in range(count):
                run({"number": number})
        return figures

    return work


def _backlog(count: int, order: Any) -> list[tuple[int, int]]:
    from django.db import transaction

    from django_celery_signals.models import Delivery

    Delivery.objects.all().delete()
    with transaction.atomic():
        for _ in range(count):
            _save_sends(order)
    return list(Delivery.objects.order_by("id").values_list("id", "token"))


def statements() -> Work:
    """The two statements alone, prepared: open the row and complete it."""
    make_ready()
    order = _an_order()
    task = _receive(instance="snapshot")
    from django.db import connection

    from django_celery_signals.durable.clock import from_now
    from django_celery_signals.durable.texts import texts_for

    texts, (due, moment) = texts_for(connection), from_now(connection, 25.0)
    opening = texts.open.format(due=due)

    def work(count: int) -> dict[str, float]:
        rows = _backlog(count, order)
        raw, figures = connection.connection, dict[str, float]()
        with watch(figures, count):
            for pk, token in rows:
                with raw.cursor() as cursor:
                    cursor.execute(opening, (*moment, pk, token, task.name), prepare=True)
                    cursor.fetchall()
                    cursor.execute(texts.complete, (pk, token + 1), prepare=True)
        return figures

    return work


def _ours(each: int = 1, **options: Any) -> Work:
    """A receiver of snapshots, so that what it is given is in the envelope; so many deliveries in a message."""
    make_ready()
    order = _an_order()
    task = _receive(instance="snapshot", **options)
    from django_celery_signals.durable.reference import Chunk, Reference
    from django_celery_signals.models import Delivery
    from django_celery_signals.wire import ARGUMENT

    run, place = _traced(app.tasks[task.name]), {"alias": "default", "receiver": task.name}

    def message(rows: list[tuple[int, int]]) -> Any:
        ((pk, token), *more) = rows
        return Chunk(**place, rows=rows) if more else Reference(**place, id=pk, token=token)

    def work(count: int) -> dict[str, float]:
        rows = _backlog(count, order)
        messages = [{ARGUMENT: message(rows[start : start + each]).carried()} for start in range(0, count, each)]
        figures: dict[str, float] = {}
        with watch(figures, count):
            for kwargs in messages:
                run(kwargs)
        assert not Delivery.objects.exists()
        return figures

    return work


def ours() -> Work:
    """A receiver that does nothing, in its transaction."""
    return _ours()


def ours_without_a_transaction() -> Work:
    """The same with ``atomic=False``."""
    return _ours(atomic=False)


def ours_together() -> Work:
    """The same, 50 in a message."""
    return _ours(each=50, chunk_size=50)
