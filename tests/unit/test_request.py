"""What a worker's monitors are told of an event that waits or runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from celery.utils.imports import symbol_by_name
from celery.worker.request import Request
from celery.worker.strategy import proto1_to_proto2
from django.db.models.signals import post_delete
from django.dispatch import Signal
from kombu import Queue

from django_celery_signals import deliveries
from tests.project.celery import configure
from tests.receiving import Receiving
from tests.shop.models import Tag

doorbell = Signal()


def received(app: Celery, protocol: int = 2) -> Request:
    """Return a worker's record of the message that waits, made as Celery's own strategy makes it."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        message = Queue(app.conf.task_default_queue)(channel).get(no_ack=True)
    options: dict[str, Any] = {}
    if protocol == 1:
        body, headers, decoded, utc = proto1_to_proto2(message, json.loads(message.body))
        options = {"body": body, "headers": headers, "decoded": decoded, "utc": utc}
    name = (options.get("headers") or message.headers)["task"]
    made: Request = symbol_by_name(app.tasks[name].Request)(message, app=app, hostname="host", **options)
    return made


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.django_db(transaction=True)
def test_monitors_see_the_summary(celery_app: Celery, receiving: Receiving, protocol: int) -> None:
    """Neither the events of a worker nor ``celery inspect`` show a field's value, whatever the protocol (H65)."""
    configure({"task_protocol": protocol})
    receiving(post_delete, sender=Tag)
    tag = Tag.objects.create(pk=5, name="hidden")
    tag.delete()

    request = received(celery_app, protocol)

    assert ("post_delete shop.Tag pk=5", "{}") == (request.argsrepr, request.kwargsrepr)
    for safe in (True, False):
        assert ("post_delete shop.Tag pk=5", "{}") == tuple(map(request.info(safe=safe).get, ("args", "kwargs")))
    assert "hidden" in request.kwargs["__event__"]


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.django_db(transaction=True)
def test_monitors_see_where_a_delivery_is(celery_app: Celery, receiving: Receiving, protocol: int) -> None:
    """Of a durable delivery they show the summary, or where the message has none, its row; never the token (H65)."""
    configure({"task_protocol": protocol})
    receiving(doorbell, guarantee="durable")
    doorbell.send(sender="door")
    [row] = deliveries("default")

    request = received(celery_app, protocol)

    shown = "doorbell door" if protocol == 2 else f"delivery {row.pk} of 'default'"
    assert (shown, "{}") == (request.argsrepr, request.kwargsrepr)
    for safe in (True, False):
        assert (shown, "{}") == tuple(map(request.info(safe=safe).get, ("args", "kwargs")))
        assert str(row.token) not in str(request.info(safe=safe))


def test_ordinary_calls_are_shown_as_ever(celery_app: Celery, receiving: Receiving) -> None:
    """Of a call that no signal made, monitors see what Celery shows."""
    receiving(doorbell).delay(number=5)

    request = received(celery_app)

    assert {"number": 5} == request.info()["kwargs"]
    assert "{'number': 5}" == request.kwargsrepr == request.info(safe=True)["kwargs"]
