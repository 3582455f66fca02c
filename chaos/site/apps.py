"""The app's entry."""

from __future__ import annotations

from django.apps import AppConfig


class SiteConfig(AppConfig):
    """The site."""

    name = "chaos.site"
    label = "chaos"

    def ready(self) -> None:
        """Connect the receivers."""
        from .systems import system

        system().connect()
