"""Bring a backlog of rows to the broker, each of them confirmed where the broker confirms."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from benchmarks.contenders.sending import _an_order, _notify, _receive, _save_sends
from benchmarks.site.ready import app, make_ready
from benchmarks.watch import watch

Work = Callable[[int], dict[str, float]]
WINDOW = 500  # messages without a confirm


def _relaying(fill: Callable[[int], Any], relay: Callable[[], Any], empty: Callable[[], Any], each: int = 1) -> Work:
    """Return what fills the table, relays all of it, which is timed, and throws away what waits for workers.

    Args:
        fill: writes so many rows.
        relay: brings all of them to the broker.
        empty: removes what is left of them.
        each: rows that a message carries.
    """

    def work(count: int) -> dict[str, float]:
        fill(count)
        figures: dict[str, float] = {}
        with watch(figures, count):
            relay()
        found = app.control.purge()
        assert found * each == count, f"{found} messages have arrived of {count} rows"
        empty()
        return figures

    return work


def _fill(order: Any) -> Callable[[int], None]:
    from django_celery_signals import batched

    def fill(count: int) -> None:
        with batched():
            for _ in range(count):
                _save_sends(order)

    return fill


def _relay() -> Any:
    from django_celery_signals import Relay

    relay = Relay(app=app)
    relay._upkeep["default"].work = lambda: None  # of the table, once in a while; not a part of what is asked
    return relay


def ours() -> Work:
    """The relay: claim, publish, mark. Its rows stay until the receiver has succeeded; here nobody receives."""
    make_ready()
    fill = _fill(_an_order())
    _receive()
    from django_celery_signals.models import Delivery

    return _relaying(fill, _relay().once, lambda: Delivery.objects.all().delete())


def in_chunks() -> Work:
    """The same for a receiver with ``chunk_size=50``: 50 rows in a message."""
    make_ready()
    fill = _fill(_an_order())
    _receive(chunk_size=50)
    from django_celery_signals.models import Delivery

    return _relaying(fill, _relay().once, lambda: Delivery.objects.all().delete(), each=50)


def _second(told: Any) -> None:
    """Be another process's relay, which works when it is told to, and says when it is done."""
    make_ready()
    _receive()
    relay = _relay()
    told.send("ready")
    while told.recv():
        relay.once()
        told.send("done")


def by_two() -> Work:
    """Two relays, each a process."""
    make_ready()
    fill = _fill(_an_order())
    _receive()
    from django_celery_signals.models import Delivery

    relay, context = _relay(), multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_second, args=(there,), daemon=True).start()
    assert here.recv() == "ready"

    def both() -> None:
        here.send("go")
        relay.once()
        here.recv()

    return _relaying(fill, both, lambda: Delivery.objects.all().delete())


def raw() -> Work:
    """The same messages, made beforehand, by the broker's client: RabbitMQ's confirms in a pipeline, Redis' batch."""
    make_ready()
    fill = _fill(_an_order())
    task = _receive()
    from django_celery_signals.durable.outbox import message_of
    from django_celery_signals.models import Delivery
    from django_celery_signals.template import template_for

    made: list[tuple[str, dict[str, Any]]] = []

    def make(count: int) -> None:
        fill(count)
        made.clear()
        for row in Delivery.objects.all():
            message = message_of(app, row, "default")
            template: Any = template_for(app, app.tasks[task.name], message.options)
            made.append(template.filled(app, message.body, message.options, message.summary))
        Delivery.objects.all().delete()

    connection = app.connection_for_write()
    publish = _by_amqp if connection.transport.driver_name == "py-amqp" else _by_redis
    return _relaying(make, lambda: publish(connection, made), lambda: None)


def _by_amqp(connection: Any, made: list[tuple[str, dict[str, Any]]]) -> None:
    import amqp

    channel = connection.channel()
    app.amqp.default_queue.bind(channel).declare()
    open_tags: set[int] = set()

    def acked(tag: int, multiple: bool) -> None:
        done = [one for one in open_tags if one <= tag] if multiple else [tag]
        open_tags.difference_update(done)

    channel.confirm_select()
    channel.events["basic_ack"].add(acked)
    for tag, (body, options) in enumerate(made, start=1):
        message = amqp.Message(
            body.encode(),
            content_type=options["content_type"],
            content_encoding=options["content_encoding"],
            application_headers=options["headers"],
            delivery_mode=options["delivery_mode"],
            correlation_id=options["correlation_id"],
            reply_to=options["reply_to"],
            priority=0,
        )
        open_tags.add(tag)
        channel.basic_publish(message, exchange="", routing_key=options["routing_key"], mandatory=True)
        while len(open_tags) >= WINDOW:
            connection.drain_events()
    while open_tags:
        connection.drain_events()
    channel.close()


def _by_redis(connection: Any, made: list[tuple[str, dict[str, Any]]]) -> None:
    producer = app.amqp.Producer(connection, auto_declare=False)
    for start in range(0, len(made), WINDOW):
        with producer.batch():
            for body, options in made[start : start + WINDOW]:
                producer.publish(body, **options)


def _outbox(**given: Any) -> Work:
    make_ready()
    order = _an_order()
    from django.db import transaction
    from django_celery_outbox.models import CeleryOutbox
    from django_celery_outbox.relay import Relay, RelayConfig

    @app.task(name="benchmarks.notify")
    def notify(pk: int) -> None: ...

    app.finalize()

    def fill(count: int) -> None:
        with transaction.atomic():
            for _ in range(count):
                notify.delay(order.pk)

    relay = Relay(app=app, config=RelayConfig.init(**given))

    def run() -> None:
        while CeleryOutbox.objects.exists():
            relay._processing()

    return _relaying(fill, run, lambda: None)


def outbox() -> Work:
    """django-celery-outbox' relay, as it comes: 100 rows at a time."""
    return _outbox(batch_size=100, idle_time=0.2)


def outbox_at_its_best() -> Work:
    """The same, with 1,000 rows at a time."""
    return _outbox(batch_size=1000, idle_time=0.2)


def jaiminho() -> Work:
    """django-jaiminho's relay, which calls the function of every row: here it sends a task."""
    make_ready()
    order = _an_order()
    from django.db import transaction
    from jaiminho.relayer import EventRelayer
    from jaiminho.send import save_to_outbox

    send = save_to_outbox(_notify)

    def fill(count: int) -> None:
        with transaction.atomic():
            for _ in range(count):
                send(order.pk)

    return _relaying(fill, lambda: EventRelayer().relay(), lambda: None)
