"""The results, as a table for people, as Markdown, and as JSON; what several commands have found stays side by side."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .recovery import Spread
from .rig import ROOT
from .verdict import COLUMNS, Verdict

PACKAGES = ("django", "celery", "kombu", "amqp", "redis", "psycopg", "pymysql")


def table(verdicts: Mapping[str, Verdict]) -> str:
    """Return the columns of all cells, as Markdown, which can be read as it is."""
    names = (*COLUMNS, "killed_runs", "undone_runs", "deaths", "celerys_deaths")
    heads = ["cell", "events", *(_in_words(name) for name in names), "faults", "minutes"]
    lines = [heads]
    for name, verdict in verdicts.items():
        numbers = [verdict.committed, *(getattr(verdict, name) for name in names), sum(verdict.faults.values())]
        lines.append([name, *(f"{number:,}" for number in numbers), f"{verdict.seconds / 60:.1f}"])
    return _markdown(lines)


def _in_words(name: str) -> str:
    words = {"killed_runs": "runs cut off", "undone_runs": "runs taken back", "celerys_deaths": "Celery's own"}
    return words.get(name, name.replace("_", " "))


def bounds(verdicts: Mapping[str, Verdict]) -> str:
    """Say what a zero means."""
    words = [
        f"{name}: "
        + ", ".join(f"{_in_words(column)} {bound:.1e}" for column in COLUMNS if (bound := one.bound(column)))
        for name, one in verdicts.items()
    ]
    return f"Where a column is 0, its rate is below this with a confidence of 95 %: {'; '.join(words)}."


def recoveries(verdict: Verdict) -> str:
    """Return the seconds after each fault, as Markdown."""
    heads = ["open: events", "p50 s", "p99 s", "max s", "cut off: runs", "p50 s", "p99 s", "max s"]
    lines = [["fault", "met something", *heads]]
    for name in sorted(verdict.tried):
        met = f"{verdict.faults.get(name, 0)} of {verdict.tried[name]}"
        found = verdict.recovery.get(name)
        spreads = (found.open, found.cut) if found is not None else (None, None)
        lines.append([name, met, *(cell for spread in spreads for cell in _cells(spread))])
    return _markdown(lines)


def _cells(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["0", "", "", ""]
    return [f"{spread.count:,}", str(spread.p50), str(spread.p99), str(spread.most)]


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *rows = (" | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    rule = " | ".join("-" * (width - 1) + ":" for width in widths)
    return "\n".join(f"| {line} |" for line in (head, rule, *rows))


def write(folder: Path, name: str, verdict: Verdict, asked: Mapping[str, Any]) -> None:
    """Write what was found in a cell to files of its name, ``.json`` and ``.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name.replace(", ", "-")
    facts = {"asked": asked, **circumstances()}
    path.with_suffix(".json").write_text(json.dumps({name: verdict.as_json(), **facts}, indent=1, default=str) + "\n")
    lines = [f"- {what}: {fact}" for what, fact in facts.items()]
    parts = [f"# {name}", "\n".join(lines), table({name: verdict}), bounds({name: verdict}), recoveries(verdict)]
    path.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def circumstances() -> dict[str, str]:
    """Return when this is, where, and with which versions."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
        ),
    }
