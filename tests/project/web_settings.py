"""Django's settings for web processes: those of the tests, and an app with receivers that no view imports."""

from tests.settings import *  # noqa: F403 - as settings are extended
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.notices"]
