"""What is saved."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order of a shop, of about the width that models have."""

    customer = models.CharField(max_length=100)
    status = models.CharField(max_length=20, default="new")
    total = models.DecimalField(max_digits=10, decimal_places=2, default=0)
    note = models.TextField(blank=True)
    placed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "benchmarks_site"
