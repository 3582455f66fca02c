"""The results: as a table for people, as JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from chaos.report import circumstances

from .contest import Outcome


def table(outcome: Outcome) -> str:
    """Return what was measured, and how it stands to the goals, as Markdown."""
    goals = ["| ratio | goal | measured | |", "| --- | ---: | ---: | --- |"]
    for goal in outcome.benchmark.goals:
        ratio = outcome.ratio(goal)
        name, _, bound = str(goal).partition(": ")
        goals.append(f"| {name} | {bound} | {ratio:.2f} | {'reached' if goal.holds(ratio) else 'not reached'} |")
    return "\n".join([figures_of(outcome.values, outcome.benchmark.unit), "", *goals])


def figures_of(measured: Mapping[str, Mapping[str, Sequence[float]]], unit: str) -> str:
    """Return the figures of contenders, as Markdown."""
    lines = ["| contender | figure | median | least | most |", "| --- | --- | ---: | ---: | ---: |"]
    for name, figures in measured.items():
        for figure, values in figures.items():
            numbers = " | ".join(shown(number, unit) for number in (median(values), min(values), max(values)))
            lines.append(f"| {name} | {figure} | {numbers} |")
    return "\n".join(lines)


def shown(value: float, unit: str) -> str:
    """Return a value with its unit, for people."""
    if unit != "s":
        return f"{value:,.1f} {unit}"
    return f"{value * 1e6:,.1f} µs" if value < 1e-3 else f"{value * 1e3:,.2f} ms"


def summary(folder: Path) -> str:
    """Return all goals of the results in a folder, as Markdown."""
    lines = ["| question | ratio | goal | measured | |", "| --- | --- | ---: | ---: | --- |"]
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text())
        for one in found["goals"]:
            name, _, bound = one["goal"].rpartition(": ")
            verdict = "reached" if one["reached"] else "not reached"
            lines.append(f"| {found['title']} | {name} | {bound} | {one['measured']:.2f} | {verdict} |")
    return "\n".join(lines)


def write(folder: Path, outcomes: Mapping[str, Outcome], command: str) -> None:
    """Write one file of JSON and one of Markdown for all that one command has measured, and a picture of each."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"command": command, **circumstances()}
    for name, outcome in outcomes.items():
        benchmark = outcome.benchmark
        found = {
            "title": benchmark.title,
            "count": benchmark.count,
            "rounds": benchmark.rounds,
            "values": outcome.values,
            "goals": [
                {"goal": str(goal), "measured": (ratio := outcome.ratio(goal)), "reached": goal.holds(ratio)}
                for goal in benchmark.goals
            ],
        }
        (folder / f"{name}.json").write_text(json.dumps({**found, **facts}, indent=1) + "\n")
        (folder / f"{name}.svg").write_text(picture(outcome))
        lines = [f"- {what}: {fact}" for what, fact in facts.items()]
        parts = [f"# {benchmark.title}", benchmark.note, table(outcome), "\n".join(lines)]
        (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n")


WIDTH, BAR, LABEL = 720, 22, 320  # pixels


def picture(outcome: Outcome) -> str:
    """Return bars of the medians, with a line from the least to the most, as SVG for light and dark pages."""
    found = [(f"{name} ({figure})", values) for name, figure, values in outcome.figures()]
    longest = max(max(values) for _, values in found)
    unit = outcome.benchmark.unit
    parts = [_bar(place, label, values, longest, unit) for place, (label, values) in enumerate(found)]
    height = len(found) * BAR + 34
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{outcome.benchmark.title}">\n'
        "<style>text{font:12px sans-serif;fill:#222}.title{font-weight:bold}rect{fill:#4477aa}line{stroke:#222}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}rect{fill:#77aadd}line{stroke:#ddd}}</style>\n"
        f'<text x="8" y="18" class="title">{outcome.benchmark.title}</text>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bar(place: int, label: str, values: Sequence[float], longest: float, unit: str) -> str:
    scale, top = (WIDTH - LABEL - 110) / longest, 30 + place * BAR
    middle, least, most = (LABEL + value * scale for value in (median(values), min(values), max(values)))
    return (
        f'<text x="{LABEL - 8}" y="{top + 14}" text-anchor="end">{label}</text>'
        f'<rect x="{LABEL}" y="{top + 3}" width="{middle - LABEL:.1f}" height="{BAR - 8}"/>'
        f'<line x1="{least:.1f}" x2="{most:.1f}" y1="{top + 10}" y2="{top + 10}"/>'
        f'<text x="{most + 6:.1f}" y="{top + 14}">{shown(median(values), unit)}</text>'
    )
