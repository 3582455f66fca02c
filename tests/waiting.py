"""Waiting in tests: look again until a deadline, never for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

PAUSE = 0.02  # seconds between two looks

T = TypeVar("T")


def wait_until(condition: Callable[[], T], *, timeout: float = 20, what: str = "the condition") -> T:
    """Return the condition's first true value; fail the test when there is none within that many seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {timeout} seconds for {what}, in vain.")
        time.sleep(PAUSE)
    return value
