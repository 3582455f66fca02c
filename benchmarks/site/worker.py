"""The app of a worker: ``celery -A benchmarks.site.worker:app worker``."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.site.settings")

from benchmarks.site.ready import app, make_ready

make_ready()

from benchmarks.site.receiving import connect  # noqa: E402 - once Django is there

connect()

__all__ = ["app"]
