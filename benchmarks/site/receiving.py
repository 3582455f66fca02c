"""Receivers that tell when they run, in the process that sends and in the worker alike."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models.signals import post_save

from benchmarks.site.ready import app

from .models import Order

_teller = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
RECORD = struct.Struct("qd")  # the order's key, and the moment


def tell(order: Order) -> None:
    """Tell the contender that a receiver has its order."""
    _teller.sendto(RECORD.pack(order.pk, time.monotonic()), ("127.0.0.1", settings.GIVEN["teller"]))


def connect_ours() -> None:
    """A durable receiver."""
    from django_celery_signals import receiver_task

    @receiver_task(post_save, sender=Order, name="benchmarks.notify", chunk_size=settings.GIVEN.get("chunk"))
    def notify(instance: Order, **_: Any) -> None:
        tell(instance)


def connect_glue() -> None:
    """What people write by hand."""

    @app.task(name="benchmarks.notify")
    def notify(pk: int) -> None:
        tell(Order.objects.get(pk=pk))

    def send(instance: Order, **_: Any) -> None:
        transaction.on_commit(lambda: notify.delay(instance.pk))

    post_save.connect(send, sender=Order, weak=False)


def connect() -> None:
    """Connect what the contest says."""
    connect_ours() if settings.SYSTEM == "ours" else connect_glue()
    app.finalize()
