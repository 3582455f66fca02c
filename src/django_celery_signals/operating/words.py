"""What a word of ``manage.py signals`` is."""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser, HelpFormatter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.core.management.base import OutputWrapper

Options = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One of the things that ``manage.py signals`` does."""

    name: str
    help: str  # one line, for the list of words
    teaches: str  # what --help says above the options, and "Examples: " at its end, with semicolons between
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Options, OutputWrapper], None]  # may raise CommandError
    checks: bool = True  # whether an error of ``manage.py check`` keeps it from running


class Teaching(HelpFormatter):
    """Shows what a word teaches; its examples stand in lines of their own, whole, so that they can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        about, _, examples = text.replace("Examples: ", "Example: ").partition("Example: ")
        lines = textwrap.wrap(about, width, break_on_hyphens=False)
        if examples:
            lines += ["", "examples:", *(f"  {one.strip()}" for one in examples.split(";"))]
        return "\n".join(lines)
