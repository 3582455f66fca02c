"""The Django project of the tests."""

from .celery import app

__all__ = ["app"]
