"""Connections of a worker that sends what its own receivers save. Only workers import this."""

from django.db.models.signals import post_save

from django_celery_signals import connect
from tests.shop.models import Tag
from tests.worker_tasks import follow, save_again

connect(post_save, follow, sender=Tag, when=lambda instance: instance.name.startswith("ring"))
connect(post_save, save_again, sender=Tag, when=lambda instance: instance.name == "round and round")
