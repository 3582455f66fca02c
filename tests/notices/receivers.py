"""Declared where the documentation says, and imported by nobody."""

from __future__ import annotations

from django.db.models.signals import post_save

from django_celery_signals import receiver_task
from tests.shop.models import Order


@receiver_task(post_save, sender=Order)
def confirm_order(instance: Order) -> None:
    """Receive what the page saves."""
