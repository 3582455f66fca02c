"""``python -m benchmarks.page``: write what was measured into docs/performance.md, between its comments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import median
from typing import Any

from .__main__ import RESULTS
from .report import figures_of, shown, summary
from .suite import SUITE

PAGE = RESULTS.parent.parent / "docs" / "performance.md"


def main() -> None:
    """Write the page anew."""
    text = PAGE.read_text()
    for name, content in {"goals": summary(RESULTS), "parts": _parts(), "figures": _figures()}.items():
        begin, end = f"<!-- {name}: python -m benchmarks.page -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"{PAGE} has no {begin!r} and {end!r}"
        text = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    PAGE.write_text(text)


def _results(prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name in SUITE:
        file = RESULTS / f"{prefix}{name}.json"
        if file.exists():
            yield file.stem, json.loads(file.read_text())


def _parts() -> str:
    """Return one table of all that was measured by parts."""
    lines = [
        "| question | contender | each | database | broker | the rest |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for _, found in _results("parts-"):
        for contender, figures in found["values"].items():
            if "database" not in figures:  # its time is not its own process's
                continue
            numbers = [shown(median(figures[part]), "s") for part in ("each", "database", "broker", "rest")]
            lines.append(f"| {found['title']} | {contender} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def _figures() -> str:
    """Return each benchmark's table, with when and where it was measured, and its picture."""
    parts = []
    for name, found in _results():
        title, note = found["title"], SUITE[name].note
        when = f"{found['date'][:10]}, {found['rounds']} rounds of {found['count']:,}."
        parts += [
            f"**{title[0].upper()}{title[1:]}.** {note} Measured {when}",
            figures_of(found["values"], SUITE[name].unit),
        ]
        parts.append(f"![{title}](../benchmarks/results/{name}.svg)")
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
