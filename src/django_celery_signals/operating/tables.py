"""What a word shows: rows under headings and labelled texts, to fit a terminal; and how far long work has come."""

from __future__ import annotations

import re
import shutil
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import StringIO
from itertools import zip_longest
from typing import Any

from django.core.management.base import OutputWrapper

GAP = "  "
NOTHING = "-"  # so that every row has as many columns as there are headings
LEAST = 6  # characters that a column is not cut below
WIDEST = 100  # characters of a line of prose: longer ones are hard to read
PAUSE = 0.1  # seconds between two looks of a line of progress


def write_table(
    out: OutputWrapper, headings: Sequence[str], rows: Iterable[Sequence[Any]], *, plain: bool = False
) -> None:
    """Write rows under headings.

    A terminal is given columns that fit its width: drawn by rich, where it is installed, else the widest texts are
    shortened. A pipe or a file is given everything, in columns that are at least two spaces apart.

    Args:
        out: where to.
        headings: of the columns.
        rows: their values; None and empty ones are shown as ``-``.
        plain: whether to do without colours and lines, as ``--no-color`` asks for.
    """
    cells = [[_text_of(value) for value in row] for row in rows]
    if out.isatty() and not plain and (drawn := _drawn(headings, cells)) is not None:
        out.write(drawn)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    if out.isatty():
        widths = _fitted(widths, _width() - len(GAP) * (len(widths) - 1))
    for row in [headings, *cells]:
        shown = (shortened(text, width).ljust(width) for text, width in zip(row, widths, strict=True))
        out.write(GAP.join(shown).rstrip())


def _text_of(value: Any) -> str:
    """Return a value as one line that cannot move the cursor: it may come from a table, or from a stranger."""
    text = "" if value is None else str(value)
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split()) or NOTHING


def _width() -> int:
    return shutil.get_terminal_size().columns


def _fitted(widths: Sequence[int], room: int) -> list[int]:
    """Return the widths cut down to the room there is, always the widest."""
    fitted = list(widths)
    while sum(fitted) > room and max(fitted) > LEAST:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def shortened(text: str, width: int) -> str:
    """Return a text that is at most so wide: a name keeps its end, which says more, other texts their beginning."""
    if len(text) <= width:
        return text
    ellipsis = "\N{HORIZONTAL ELLIPSIS}"
    if _NAME.fullmatch(text):
        return f"{ellipsis}{text[len(text) - width + 1 :]}"
    return f"{text[: width - 1].rstrip()}{ellipsis}"


_NAME = re.compile(r"[\w.:]+")


def _drawn(headings: Sequence[str], cells: Iterable[Sequence[str]]) -> str | None:
    """Return the table as rich draws it; None where rich, an extra, is not installed."""
    try:
        console_of, table_of, box = (import_module(f"rich.{name}") for name in ("console", "table", "box"))
    except ImportError:
        return None
    table = table_of.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in cells:
        table.add_row(*row)
    file = StringIO()
    look: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    console_of.Console(file=file, force_terminal=True, width=_width(), **look).print(table)
    return file.getvalue()


def write_text(out: OutputWrapper, text: str, *, indent: int = 0) -> None:
    """Write a paragraph; on a terminal its lines are broken between words, elsewhere it is one line."""
    room = min(_width(), WIDEST) - indent if out.isatty() else None
    for line in _lines(text, room):
        out.write(" " * indent + line)


def write_facts(out: OutputWrapper, facts: Iterable[tuple[str, str]], *, indent: int = 0) -> None:
    """Write texts, each beside its label, in the same way."""
    known = list(facts)
    width = max((len(label) for label, _ in known), default=0)
    room = min(_width(), WIDEST) - indent - width - len(GAP) if out.isatty() else None
    for label, text in known:
        for word, line in zip_longest([label], _lines(text, room), fillvalue=""):
            out.write(f"{' ' * indent}{word:{width}}{GAP}{line}".rstrip())


def _lines(text: str, room: int | None) -> list[str]:
    return [text] if room is None else textwrap.wrap(text, max(room, 20), break_on_hyphens=False)


@contextmanager
def progress(out: OutputWrapper, total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far long work has come, in one line that goes away at the end; elsewhere show nothing.

    The block is given a function, to be called with how many more are done.

    Args:
        out: where to.
        total: how many there are to do.
        label: what is done, such as "retry".
    """
    if not out.isatty():
        yield lambda count: None
        return
    line = _Line(out, total, label)
    try:
        yield line.advance
    finally:
        line.clear()


class _Line:
    """A line of a terminal that is written again and again."""

    def __init__(self, out: OutputWrapper, total: int, label: str) -> None:
        self.out, self.total, self.label = out, total, label
        self.done, self.length, self.shown_at = 0, 0, -PAUSE

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown_at >= PAUSE:
            self.shown_at = now
            share = f" ({100 * self.done // self.total} %)" if self.total else ""
            self._show(f"{self.label}: {self.done:,} of {self.total:,}{share}"[: _width() - 1])

    def clear(self) -> None:
        self._show("")
        self.out.write("\r", ending="")

    def _show(self, text: str) -> None:
        self.out.write(f"\r{text.ljust(self.length)}", ending="")
        self.out.flush()
        self.length = len(text)
