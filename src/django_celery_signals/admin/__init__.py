"""Deliveries in Django's admin, which imports this where it is installed; nothing else does."""

from __future__ import annotations

from django.contrib import admin

from ..models import Delivery
from .delivery import DeliveryAdmin

__all__ = ["DeliveryAdmin"]

admin.site.register(Delivery, DeliveryAdmin)
