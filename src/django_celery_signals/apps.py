"""The Django app: it imports every app's receivers, so that a web process sends what it should."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules

from . import conf
from .checks import register_checks
from .durable.embedded import embed
from .statistics.counting import connect


class DjangoCelerySignalsConfig(AppConfig):
    """Import the modules named by ``AUTODISCOVER`` of every installed app, in every process.

    Celery's own autodiscovery is lazy and happens in workers only: without this, a web process would connect nothing
    and send nothing, silently.
    """

    name = "django_celery_signals"
    label = "django_celery_signals"
    verbose_name = "Signals"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Import the modules, let workers run the relay, and count; an error in one of the modules is raised."""
        register_checks()
        embed()
        connect()
        for module in conf.get().AUTODISCOVER:
            autodiscover_modules(module)
