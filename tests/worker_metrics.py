"""Counts for Prometheus in the process that imports it, and serves where ``METRICS_PORT`` says, if it is a worker."""

from __future__ import annotations

import os
from typing import Any

from celery.signals import worker_init

from django_celery_signals.observing import prometheus


@worker_init.connect
def serve(**kwargs: Any) -> None:
    prometheus.serve(int(os.environ["METRICS_PORT"]))


prometheus.connect()
