"""When a failed run is tried again, and how often: as the task says, else with growing pauses for about two hours."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from typing import Any

from celery import Task
from django.db import Error

MOST_RETRIES, LONGEST_PAUSE = 20, 600  # of a receiver that says nothing; seconds, between two runs
LONGEST_WAIT = 60  # seconds, for what is likely to pass: a database that is away, a row that is not there yet


def has_policy(task: Any) -> bool:
    """Tell whether a task names the errors that are worth another try; by Celery's rule the others are not."""
    return bool(getattr(task, "autoretry_for", ()))


def names_databases(task: Any) -> bool:
    """Tell whether a task names errors of databases among those that are worth another try."""
    return any(issubclass(error, Error) for error in getattr(task, "autoretry_for", ()))


def most_retries(task: Any) -> int | None:
    """Return how often a task may be tried again; None: without end."""
    limit: int | None = getattr(task, "override_max_retries", task.max_retries)
    return MOST_RETRIES if limit == Task.max_retries and not _says(task, "max_retries") else limit


def _says(task: Any, option: str) -> bool:
    """Tell an option that was given from Celery's default, of the same value."""
    return any(option in vars(cls) for cls in task.__class__.__mro__ if cls is not Task and issubclass(cls, Task)) or (
        option in vars(task)
    )


def is_spent(task: Any, attempts: int) -> bool:
    """Tell whether a task that has failed so often before may not be tried again."""
    limit = most_retries(task)
    return limit is not None and attempts >= limit


def pause(attempts: int, longest: float = LONGEST_PAUSE) -> float:
    """Return the seconds until the next try: 1, 2, 4, ... less up to a half, so that many do not come back at once."""
    return float(min(2 ** min(attempts, 20), longest)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def seconds_until(when: Any) -> float:
    """Return the seconds until a moment, as Celery's Retry has it: a number of seconds, or a datetime."""
    if not isinstance(when, datetime):
        return max(0.0, float(when or 0))
    moment = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - time.time())
