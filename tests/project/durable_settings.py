"""Django's settings for processes of durable deliveries: those of the tests, and what a test gives them."""

import json
import os

from tests.settings import *  # noqa: F403 - as settings are extended
from tests.settings import DATABASES, DJANGO_CELERY_SIGNALS

GIVEN = "DCS_TESTS_DURABLE"  # what the test gives: {"settings": the library's, "ports": {alias: of a peer in front}}

_given = json.loads(os.environ.get(GIVEN, "{}"))

DJANGO_CELERY_SIGNALS = {**DJANGO_CELERY_SIGNALS, "LEASE": 1, **_given.get("settings", {})}

for _alias, _port in _given.get("ports", {}).items():
    DATABASES[_alias] = {**DATABASES[_alias], "HOST": "127.0.0.1", "PORT": _port}
