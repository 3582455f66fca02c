"""The flights project; Celery finds its app here, and every Django process loads it."""

from .celery import app as celery_app

__all__ = ["celery_app"]
