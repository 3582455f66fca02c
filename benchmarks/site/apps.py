"""The app."""

from __future__ import annotations

from django.apps import AppConfig


class BenchmarksConfig(AppConfig):
    """The app of what is saved."""

    name = "benchmarks.site"
    label = "benchmarks_site"
    default_auto_field = "django.db.models.BigAutoField"
