"""The literal line, where Celery's own documentation says, and imported by nobody."""

from __future__ import annotations

from celery import shared_task
from django.db.models.signals import post_save

from django_celery_signals import ReceiverTask
from tests.shop.models import Customer


@shared_task(base=ReceiverTask, ignore_result=True)
def welcome(instance: Customer, **kwargs: object) -> None:
    """Receive what the page saves."""


post_save.connect(welcome.delay, sender=Customer)
