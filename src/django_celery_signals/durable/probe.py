"""Long or lost? A probe through the queue tells: what was sent before it has arrived where the probe has arrived."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from celery import Celery, shared_task
from django.apps import apps
from django.db import IntegrityError, connections
from django.db.models import F, Q
from kombu import Queue

from ..broker import connection_for, is_outage
from ..plurals import quantity
from .clock import In, instant
from .deliveries import deliveries
from .rows import State, new_token

logger = logging.getLogger(__name__)

OLD, EVERY, SETTLED = 10.0, 10.0, 5.0  # seconds: "sent" is looked into; between two probes; from arrival to sweep
BATCH = 1000  # rows of one statement
TASK = "django_celery_signals.probe"


def probes(using: str) -> Any:
    """Return the probes in a database."""
    return apps.get_model("django_celery_signals", "QueueProbe")._base_manager.using(using)


@shared_task(name=TASK, ignore_result=True, acks_late=False)
def arrive(alias: str, queue: str, token: int, probed_at: str) -> None:
    """Note that a probe has reached a worker. While one waits to be acted on, later ones say nothing more."""
    if alias not in connections.settings:
        logger.error("A probe names the database %r, which this worker does not have.", alias)
        return
    waits = Q(seen__isnull=False) & (Q(swept__isnull=True) | Q(swept__lt=F("seen")))
    moment = datetime.fromisoformat(probed_at)
    probes(alias).filter(~waits, queue=queue, token=token).update(seen=moment, seen_at=In(0))


class Probes:
    """Sends probes into the queues of one database's deliveries, and acts on those that have arrived."""

    def __init__(self, app: Celery, using: str) -> None:
        """Begin."""
        self.app, self.using = app, using

    def work(self) -> bool:
        """Act on what has arrived, then probe, unless another relay has just done so; tell whether there is more."""
        more = self._sweep()
        for queue in deliveries(self.using).queues():
            if self._is_old(queue) and (probe := self._turn(queue)) and not self._send(probe):
                break
        return more

    def _is_old(self, queue: str) -> bool:
        """Tell whether the oldest delivery in a queue is; asked for any such row, PostgreSQL would look everywhere."""
        old = deliveries(self.using).filter(state=State.SENT, queue=queue, sent_at__lt=In(-OLD))
        return bool(old.order_by("sent_at").values_list("sent_at")[:1])

    def _turn(self, queue: str) -> Any:
        """Take the turn to probe a queue; None, when another relay has it, or had it a moment ago."""
        mine = probes(self.using).filter(queue=queue)
        if not mine.exists():
            try:
                mine.create(queue=queue, token=new_token())
            except IntegrityError:
                return None
        if not mine.filter(Q(probed_at__isnull=True) | Q(probed_at__lt=In(-EVERY))).update(probed_at=In(0)):
            return None
        return mine.first()

    def _send(self, probe: Any) -> bool:
        """Publish a probe, behind all that is in the queue; tell whether the broker is there."""
        kwargs = {
            "alias": self.using,
            "queue": probe.queue,
            "token": probe.token,
            "probed_at": instant(probe.probed_at, connections[self.using]).isoformat(),
        }
        # Straight into the queue, and only if there is one: a route might lead elsewhere, a declaration differ.
        place: dict[str, Any] = {"queue": Queue(probe.queue), "declare": []}
        try:
            with connection_for(self.app) as connection:
                producer = self.app.amqp.Producer(connection, auto_declare=False)
                # The lowest priority, which RabbitMQ and kombu's Redis count from opposite ends.
                priority = 0 if connection.transport.driver_type == "amqp" else 9
                self.app.tasks[TASK].apply_async(
                    kwargs=kwargs, producer=producer, retry=False, priority=priority, **place
                )
        except Exception as error:
            logger.warning("The queue %r could not be probed: %r", probe.queue, error)
            return not is_outage(error)
        return True

    def _sweep(self) -> bool:
        """Send again what is lost; tell whether there is more."""
        more = False
        waits = Q(swept__isnull=True) | Q(swept__lt=F("seen"))
        for probe in probes(self.using).filter(waits, seen__isnull=False, seen_at__lt=In(-SETTLED)):
            seen = instant(probe.seen, connections[self.using])
            lost = deliveries(self.using).sweep(probe.queue, seen, BATCH)
            if lost:
                logger.warning("%s, lost in the queue %r, will be sent again.", quantity(lost), probe.queue)
            if lost < BATCH:
                probes(self.using).filter(queue=probe.queue, seen=seen).update(swept=seen)
            more = more or lost == BATCH
        return deliveries(self.using).sweep_unprobed(BATCH) == BATCH or more
