"""Every rule of ``docs/hazards.md`` has a test that names its number, or a reason why it has none."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Rules without a test, each with the reason: {"H25": "Django raises there itself."}
LEFT_OUT: dict[str, str] = {}

TESTS = Path(__file__).resolve().parent
LIST = TESTS.parent / "docs" / "hazards.md"

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
NUMBER = r"H\d+[a-z]?"
TITLE = re.compile(rf"^- \*\*({NUMBER})\*\* — \S.*$", re.MULTILINE)
RANGE = re.compile(rf"\b({NUMBER})(?:\s*[-–]\s*({NUMBER}))?\b")


@cache
def listed() -> list[str]:
    """Return the numbers of all rules, in their order."""
    return TITLE.findall(LIST.read_text(encoding="utf-8"))


def numbers_in(text: str) -> Iterator[str]:
    """Yield the numbers a text names: ``H33``, ``H9, H10`` or ``H9-H13``."""
    for first, last in RANGE.findall(text):
        if last and {first, last} <= set(listed()):
            yield from listed()[listed().index(first) : listed().index(last) + 1]
        else:
            yield from filter(None, (first, last))


def docstrings(file: Path) -> Iterator[str]:
    """Yield the docstrings of a file's test functions and test classes."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        is_test = isinstance(node, DEFINITIONS) and node.name.startswith(("test_", "Test"))
        yield (is_test and ast.get_docstring(node)) or ""


@cache
def covered() -> dict[str, set[str]]:
    """Return the numbers that tests name, and the files in which they do."""
    found: dict[str, set[str]] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        for text in docstrings(file) if file != Path(__file__) else ():
            for number in numbers_in(text):
                found.setdefault(number, set()).add(str(file.relative_to(TESTS)))
    return found


def test_the_list_is_complete() -> None:
    """The list has each number once, in order."""
    expected = [f"H{number}" for number in range(1, 76)]
    expected.insert(expected.index("H66") + 1, "H66b")

    assert expected == listed()


def test_every_rule_has_a_test() -> None:
    """No rule is without a test, unless the reason is given."""
    missing = [number for number in listed() if number not in covered() and number not in LEFT_OUT]

    assert not missing, f"No test names {', '.join(missing)}."


def test_rules_left_out_have_no_test() -> None:
    """A rule that is left out has a reason, exists, and has no test."""
    assert [] == [number for number, reason in LEFT_OUT.items() if not reason.strip()]
    assert [] == sorted(set(LEFT_OUT) - set(listed()))
    assert {} == {number: covered()[number] for number in LEFT_OUT if number in covered()}


def test_tests_name_known_rules() -> None:
    """No test names a rule that does not exist."""
    assert {} == {number: files for number, files in covered().items() if number not in listed()}
