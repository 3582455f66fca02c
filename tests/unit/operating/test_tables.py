"""Rows, texts and progress, on a terminal and in a pipe."""

from __future__ import annotations

import sys
from io import StringIO
from types import ModuleType
from typing import Any

import pytest
from django.core.management.base import OutputWrapper

from django_celery_signals.operating import tables
from django_celery_signals.operating.tables import progress, shortened, write_facts, write_table, write_text
from tests.saying import Terminal, without_rich

HEADINGS = ("RECEIVER", "QUEUE", "OPTIONS")
ROWS = [
    ("shop.receivers.invoice", "mail", "countdown=60 changed=status,total"),
    ("shop.receivers.log", "celery", ""),
]
WORDS = "Some words that are longer than a narrow terminal is wide."


@pytest.fixture
def pipe() -> StringIO:
    return StringIO()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 40 columns, without rich."""
    monkeypatch.setenv("COLUMNS", "40")
    without_rich(monkeypatch)
    return Terminal()


# Tables --------------------------------------------------------------------------------------------------------------


def test_table_in_a_pipe(pipe: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is given whole texts in aligned columns, two spaces apart, however narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", "20")

    write_table(OutputWrapper(pipe), HEADINGS, iter(ROWS))

    assert [
        "RECEIVER                QUEUE   OPTIONS",
        "shop.receivers.invoice  mail    countdown=60 changed=status,total",
        "shop.receivers.log      celery  -",
    ] == pipe.getvalue().splitlines()


def test_table_on_a_terminal(terminal: Terminal) -> None:
    """A terminal is given rows of its width: the widest columns are shortened, names at their beginning."""
    write_table(OutputWrapper(terminal), HEADINGS, ROWS)

    assert [
        "RECEIVER         QUEUE   OPTIONS",
        "…eivers.invoice  mail    countdown=60 c…",
        "….receivers.log  celery  -",
    ] == terminal.getvalue().splitlines()


def test_table_that_fits(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits is not shortened."""
    monkeypatch.setenv("COLUMNS", "66")

    write_table(OutputWrapper(terminal), HEADINGS, ROWS)

    assert "shop.receivers.invoice  mail    countdown=60 changed=status,total" in terminal.getvalue().splitlines()


def test_table_on_a_very_narrow_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """No column is cut to nothing, even if the rows are too wide then."""
    monkeypatch.setenv("COLUMNS", "5")

    write_table(OutputWrapper(terminal), HEADINGS, ROWS)

    assert ["…voice", "mail", "count…"] == terminal.getvalue().splitlines()[1].split()


@pytest.mark.parametrize(
    ("value", "cell"),
    [(None, "-"), ("", "-"), (5, "5"), ("two\nlines\tof  it", "two lines of it"), ("\x1b[2Jred", "[2Jred")],
)
def test_cells(pipe: StringIO, value: Any, cell: str) -> None:
    """Whatever a value is, it is shown in one line, and nothing in it moves the cursor."""
    write_table(OutputWrapper(pipe), ["VALUE"], [[value]])

    assert ["VALUE", cell] == pipe.getvalue().splitlines()


def test_rows_that_do_not_fit_the_headings(pipe: StringIO) -> None:
    """A row with a value too few is a mistake of the caller's."""
    with pytest.raises(ValueError, match="zip"):
        write_table(OutputWrapper(pipe), HEADINGS, [("shop.receivers.log", "celery")])


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("shop.receivers.log", 18, "shop.receivers.log"),
        ("shop.receivers.log", 8, "…ers.log"),
        ("words, and more", 8, "words,…"),
        ("changed=status", 8, "changed…"),
    ],
)
def test_shortened(text: str, width: int, expected: str) -> None:
    """Of a name the end is kept, of other texts the beginning; nothing is wider than asked for."""
    assert expected == shortened(text, width)


# With rich -----------------------------------------------------------------------------------------------------------


class FakeTable:
    """Notes what it is told, as rich's table is."""

    def __init__(self, **look: Any) -> None:
        self.columns: list[str] = []
        self.rows: list[tuple[str, ...]] = []

    def add_column(self, heading: str, *, overflow: str) -> None:
        assert "fold" == overflow  # so that nothing is lost
        self.columns.append(heading)

    def add_row(self, *cells: str) -> None:
        self.rows.append(cells)


class FakeConsole:
    def __init__(self, *, file: StringIO, width: int, **look: Any) -> None:
        assert {"force_terminal": True, "markup": False, "emoji": False, "highlight": False} == look
        self.file, self.width = file, width

    def print(self, table: FakeTable) -> None:
        self.file.write(f"drawn in {self.width}: {table.columns} {table.rows}\n")


@pytest.fixture
def rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if rich were installed."""
    monkeypatch.setenv("COLUMNS", "40")
    parts: dict[str, dict[str, Any]] = {
        "rich": {},
        "rich.table": {"Table": FakeTable},
        "rich.console": {"Console": FakeConsole},
        "rich.box": {"SIMPLE_HEAD": "simple"},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def test_table_by_rich(rich: None) -> None:
    """Where rich is installed, it draws the table on a terminal, with whole texts."""
    terminal = Terminal()

    write_table(OutputWrapper(terminal), ["QUEUE"], [["[mail]"], [""]])

    assert "drawn in 40: ['QUEUE'] [('[mail]',), ('-',)]\n" == terminal.getvalue()


def test_rich_draws_on_terminals_only(rich: None, pipe: StringIO) -> None:
    """A pipe is given text, and so is a terminal where no colours are wanted."""
    terminal = Terminal()

    write_table(OutputWrapper(pipe), ["QUEUE"], [["mail"]])
    write_table(OutputWrapper(terminal), ["QUEUE"], [["mail"]], plain=True)

    assert "QUEUE\nmail\n" == pipe.getvalue() == terminal.getvalue()


def test_the_real_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich itself draws every text; nothing in a cell is a command to it."""
    pytest.importorskip("rich.table", reason="rich, an extra, is not installed")
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()

    write_table(OutputWrapper(terminal), ["QUEUE", "OPTIONS"], [["[red]mail[/red]", ":smile: " + "x" * 70]])

    assert "[red]mail[/red]" in terminal.getvalue()
    assert ":smile:" in terminal.getvalue()
    assert 70 == terminal.getvalue().count("x")


# Texts ---------------------------------------------------------------------------------------------------------------


def test_text_in_a_pipe(pipe: StringIO) -> None:
    """In a pipe a paragraph, or a labelled text, is one line."""
    out = OutputWrapper(pipe)

    write_text(out, WORDS, indent=2)
    write_facts(out, [("when", WORDS), ("a", "b")], indent=2)

    assert [f"  {WORDS}", f"  when  {WORDS}", "  a     b"] == pipe.getvalue().splitlines()


def test_text_on_a_terminal(terminal: Terminal) -> None:
    """On a terminal it is broken between words, and stays beside its label."""
    out = OutputWrapper(terminal)

    write_text(out, WORDS, indent=2)
    write_facts(out, [("when", WORDS)], indent=2)

    assert [
        "  Some words that are longer than a",
        "  narrow terminal is wide.",
        "  when  Some words that are longer than",
        "        a narrow terminal is wide.",
    ] == terminal.getvalue().splitlines()


def test_text_on_a_wide_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of prose grow no longer than can be read."""
    monkeypatch.setenv("COLUMNS", "300")

    write_text(OutputWrapper(terminal), "word " * 60)

    assert 99 == max(map(len, terminal.getvalue().splitlines()))


def test_no_facts(pipe: StringIO) -> None:
    """Where there is nothing to say, nothing is written."""
    write_facts(OutputWrapper(pipe), [])

    assert "" == pipe.getvalue()


# Progress ------------------------------------------------------------------------------------------------------------


def test_progress_in_a_pipe(pipe: StringIO) -> None:
    """A pipe hears nothing of progress."""
    with progress(OutputWrapper(pipe), 10, "retry") as advance:
        advance(5)

    assert "" == pipe.getvalue()


def screen(written: str) -> list[str]:
    """Return what stood in the line of a terminal, one after the other."""
    return [text.rstrip() for text in written.split("\r")]


def test_progress_on_a_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal is shown how much is done, in one line that is rewritten, and gone in the end."""
    clock = iter([10.0, 20.0])
    monkeypatch.setattr(tables.time, "monotonic", lambda: next(clock))

    with progress(OutputWrapper(terminal), 2000, "retry") as advance:
        advance(500)
        advance(1000)

    assert ["", "retry: 500 of 2,000 (25 %)", "retry: 1,500 of 2,000 (75 %)", "", ""] == screen(terminal.getvalue())
    assert "\n" not in terminal.getvalue()


def test_progress_is_not_shown_too_often(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times a second is enough: the work is to be done, not the writing."""
    clock = iter([10.0, 10.05, 10.2])
    monkeypatch.setattr(tables.time, "monotonic", lambda: next(clock))

    with progress(OutputWrapper(terminal), 3, "retry") as advance:
        for _ in range(3):
            advance(1)

    assert ["", "retry: 1 of 3 (33 %)", "retry: 3 of 3 (100 %)", "", ""] == screen(terminal.getvalue())


def test_progress_of_nothing(terminal: Terminal) -> None:
    """Where there is nothing to do there is no share of it."""
    with progress(OutputWrapper(terminal), 0, "retry") as advance:
        advance(0)

    assert "retry: 0 of 0" == screen(terminal.getvalue())[1]


def test_progress_on_a_narrow_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is never as wide as the terminal, which would begin another."""
    monkeypatch.setenv("COLUMNS", "10")

    with progress(OutputWrapper(terminal), 5, "retry") as advance:
        advance(1)

    assert "retry: 1" == screen(terminal.getvalue())[1]


def test_progress_ends_when_the_work_fails(terminal: Terminal) -> None:
    """An error is not written behind the line of progress."""

    def work() -> None:
        with progress(OutputWrapper(terminal), 5, "retry") as advance:
            advance(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()

    assert ["retry: 1 of 5 (20 %)", "", ""] == screen(terminal.getvalue())[1:]
