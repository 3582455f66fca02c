"""What ``manage.py signals`` says, to a pipe and to a terminal."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from django_celery_signals.operating import tables


class Terminal(StringIO):
    """Takes what is written, as a terminal does."""

    def isatty(self) -> bool:
        return True


def say(*words: str) -> str:
    """Run the command, and return what it says to a pipe."""
    out = StringIO()
    call_command("signals", *words, stdout=out)
    return out.getvalue()


def said_as_json(*words: str) -> Any:
    """Run the command with ``--json``, and return what a program reads."""
    return json.loads(say(*words, "--json"))


def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rich be missing, also where it is installed."""

    def fail(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(tables, "import_module", fail)


def shown(monkeypatch: pytest.MonkeyPatch, width: int, *words: str) -> str:
    """Run the command on a terminal without rich that is so wide, and return what it shows."""
    monkeypatch.setenv("COLUMNS", str(width))
    without_rich(monkeypatch)
    out = Terminal()
    call_command("signals", *words, stdout=out)
    return out.getvalue()
