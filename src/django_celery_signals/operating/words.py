"""What a word of ``manage.py signals`` is."""

from __future__ import annotations

from argparse import ArgumentParser
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
    teaches: str  # what --help says above the options
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Options, OutputWrapper], None]  # may raise CommandError
