"""What happens when a flight changes. No view imports this module: every process of the project connects it by itself.

Take the decorators' ``_task`` and the receipts away and these are ordinary Django receivers, run inside the request. As
they stand, a Celery worker runs them, each in a transaction of its own, until each has succeeded.

Most need of a flight only its number, and read the rest as it is now. So they take the snapshot, and have something to
do for flights that have been deleted meanwhile: to forget them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from celery import shared_task
from django.db.models.signals import m2m_changed, post_delete, post_save

from django_celery_signals import Event, ReceiverTask, receiver_task

from .models import ALERT, LOGGED, CountedFlight, DelayAlert, Flight, LogEntry, Receipt, SearchEntry, Tag


@shared_task(base=ReceiverTask, ignore_result=True, instance="snapshot")
def update_statistics(sender: type[Flight], instance: Flight, event: Event, **kwargs: Any) -> None:
    """Keep the statistics by airport and by carrier."""
    CountedFlight.objects.recount(instance.pk)
    Receipt.objects.write(event)


post_save.connect(update_statistics.delay, sender=Flight)
post_delete.connect(update_statistics.delay, sender=Flight)


def may_concern_alerts(instance: Flight, created: bool) -> bool:
    """Tell whether a save can raise an alert or take one back; decided where the flight is saved."""
    return not created or (instance.arr_delay or 0) >= ALERT


@receiver_task(post_delete, sender=Flight)
@receiver_task(post_save, sender=Flight, changed=["arr_delay"], when=may_concern_alerts, instance="snapshot")
def watch_delays(instance: Flight, event: Event) -> None:
    """Keep an alert for every flight that arrived very late."""
    DelayAlert.objects.review(instance.pk)
    Receipt.objects.write(event)


@receiver_task(post_delete, sender=Flight)
@receiver_task(post_save, sender=Flight, changed=LOGGED, ordered=True, instance="snapshot")
def log_changes(instance: Flight, event: Event) -> None:
    """Write down what happens to a flight, in the order in which it happens."""
    LogEntry.objects.add(instance, event)
    Receipt.objects.write(event)


# However often a flight is edited, one run is enough: a second after the last of its edits, or 5 after the first.
indexing = partial(receiver_task, debounce=1, max_wait=5, instance="snapshot")


@indexing(m2m_changed, sender="flights.Flight.tags", action="post_*", when=lambda reverse: not reverse)
@indexing(post_delete, sender="flights.Flight")
@indexing(post_save, sender="flights.Flight", changed=["carrier", "number", "tailnum", "origin", "dest"])
def index_flight(instance: Flight, event: Event) -> None:
    """Keep the search entry of a flight."""
    SearchEntry.objects.index([instance.pk])
    Receipt.objects.write(event)


# From the side of a tag, each sending says of other flights that they got or lost it: none can stand for another.
@receiver_task(
    m2m_changed, sender="flights.Flight.tags", action="post_*", when=lambda reverse: reverse, instance="snapshot"
)
def index_tagged(instance: Tag, pk_set: set[int] | None, event: Event) -> None:
    """Keep the search entries of flights that got or lost a tag."""
    if pk_set is not None:
        SearchEntry.objects.index(pk_set)
    else:  # tag.flights.clear() does not say from which flights; the index still knows
        SearchEntry.objects.index(SearchEntry.objects.holding(instance.name))
    Receipt.objects.write(event)


@receiver_task([post_save, post_delete], sender=Tag, instance="snapshot")
def index_renamed(instance: Tag, event: Event) -> None:
    """Keep the search entries of flights whose tag got another name or was deleted."""
    tagged = Flight.objects.filter(tags=instance.pk).values_list("pk", flat=True)
    SearchEntry.objects.index({*tagged, *SearchEntry.objects.holding(instance.name)})
    Receipt.objects.write(event)
