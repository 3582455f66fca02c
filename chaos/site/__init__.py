"""The Django project that the rig torments, and its Celery app."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chaos.site.settings")

if '"outbox"' in os.environ.get("CHAOS_SITE", ""):
    from django_celery_outbox import OutboxCelery as Celery
else:
    from celery import Celery

app = Celery("chaos")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
