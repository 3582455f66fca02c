"""A file into which the receivers of other processes write what they were given, and from which the tests read it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.dispatch import Signal

from django_celery_signals import connect, disconnect
from tests.waiting import wait_until

VARIABLE = "DCS_TESTS_REPORTS"  # names the file, in the environment of those processes


def report(task: str, **facts: Any) -> None:
    """Add a line; it is one write, so that the lines of several processes do not mix."""
    line = json.dumps({"task": task, **facts}) + "\n"
    with open(os.environ[VARIABLE], "ab", buffering=0) as file:
        file.write(line.encode())


def whole_lines(file: Path) -> list[str]:
    """Return the lines that are written to their end. One that is just being written may be seen in part."""
    text = file.read_text() if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


@dataclass(frozen=True, slots=True)
class Reports:
    """What was reported so far."""

    file: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to report here."""
        return {VARIABLE: str(self.file)}

    def of(self, task: str) -> list[dict[str, Any]]:
        """Return what one task has reported, oldest first."""
        facts = [json.loads(line) for line in whole_lines(self.file)]
        return [fact for fact in facts if fact.pop("task") == task]

    def wait_for(self, task: str, count: int = 1, *, timeout: float = 40) -> list[dict[str, Any]]:
        """Return what one task has reported, as soon as it has done so that often."""
        wait_until(lambda: len(self.of(task)) >= count, timeout=timeout, what=f"{count} reports of {task}")
        return self.of(task)


@contextmanager
def connected(signal: Signal, task: Any, *, sender: Any = None, **options: Any) -> Iterator[None]:
    """Connect a task for a while."""
    connect(signal, task, sender=sender, **options)
    try:
        yield
    finally:
        assert disconnect(signal, task, sender=sender)
