"""The WSGI application of a server that has sent something itself before it forks."""

from django.apps import apps
from django.core.wsgi import get_wsgi_application
from django.db import connections

application = get_wsgi_application()

apps.get_model("shop", "Customer").objects.create(name="of the parent")
connections.close_all()  # as whoever forks has to: they belong to one process
