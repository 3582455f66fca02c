"""The results, as a table for people, as Markdown, and as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .verdict import COLUMNS, Verdict

PACKAGES = ("django", "celery", "kombu", "amqp", "redis", "psycopg", "pymysql")


def table(verdicts: Mapping[str, Verdict]) -> str:
    """Return the columns of all cells, as Markdown, which can be read as it is."""
    heads = ["cell", "events", *(name.replace("_", " ") for name in COLUMNS), "runs cut off", "faults", "minutes"]
    lines = [heads]
    for name, verdict in verdicts.items():
        numbers = [getattr(verdict, column) for column in COLUMNS]
        cells = [name, verdict.committed, *numbers, verdict.killed_runs, sum(verdict.faults.values())]
        lines.append(
            [*(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells), f"{verdict.seconds / 60:.1f}"]
        )
    return _markdown(lines)


def bounds(verdicts: Mapping[str, Verdict]) -> str:
    """Say what a zero means."""
    words = [f"{name}: {3 / one.committed:.1e}" for name, one in verdicts.items() if one.committed]
    return f"Where a column is 0, its rate is below 3/n with a confidence of 95 %: {', '.join(words)}."


def recoveries(verdict: Verdict) -> str:
    """Return the seconds after each fault, as Markdown."""
    lines = [["fault", "times", "events that were open", "p50 s", "p99 s", "max s"]]
    for name, found in verdict.recovery.items():
        words = [name, verdict.faults.get(name, 0), found.count, found.p50, found.p99, found.most]
        lines.append([f"{word:,}" if isinstance(word, int) else str(word) for word in words])
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *rows = (" | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    rule = " | ".join("-" * (width - 1) + ":" for width in widths)
    return "\n".join(f"| {line} |" for line in (head, rule, *rows))


def write(folder: Path, verdicts: Mapping[str, Verdict], asked: Mapping[str, Any]) -> None:
    """Write everything to ``results.json`` and ``results.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in PACKAGES},
    }
    whole = {"asked": asked, "with": machine, "cells": {name: one.as_json() for name, one in verdicts.items()}}
    (folder / "results.json").write_text(json.dumps(whole, indent=1, default=str) + "\n")
    parts = [
        table(verdicts),
        bounds(verdicts),
        *(f"## {name}\n\n{recoveries(verdict)}" for name, verdict in verdicts.items()),
    ]
    (folder / "results.md").write_text("\n\n".join(parts) + "\n")
