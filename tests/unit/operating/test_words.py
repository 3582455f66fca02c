"""The words of ``manage.py signals``: what each says of itself."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandParser

from django_celery_signals.management.commands.signals import WORDS, Command
from django_celery_signals.operating.words import Teaching, Word


def parser_of(word: str) -> CommandParser:
    """Return what reads ``manage.py signals <word>``."""
    (words,) = (one for one in Command().create_parser("manage.py", "signals")._actions if one.dest == "word")
    parser: CommandParser = words.choices[word]  # type: ignore[index]
    return parser


@pytest.mark.parametrize("word", [word.name for word in WORDS])
def test_help_teaches(word: str) -> None:
    """The help of a word says what it does, and has examples that can be copied as they stand."""
    parser = parser_of(word)

    about, _, rest = parser.format_help().partition("\nexamples:\n")
    examples = re.findall(r"^  manage\.py signals (\S+)(.*)$", rest.partition("\n\n")[0], re.MULTILINE)

    assert len(about.partition("\n\n")[2].split()) > 10
    assert {word} == {name for name, _ in examples}
    for _, options in examples:
        parser.parse_args(shlex.split(options))


@pytest.mark.parametrize("word", [word.name for word in WORDS])
def test_every_option_is_explained(word: str) -> None:
    """No option of a word goes without a help of its own."""
    assert [] == [action.dest for action in parser_of(word)._actions if not action.help]


def test_help_without_examples() -> None:
    """A word that has no examples has no heading for them."""
    parser = CommandParser(prog="ring", description="Ring a bell.", formatter_class=Teaching)

    assert "Ring a bell.\n\noptions:" in parser.format_help()


def test_help_lists_the_words() -> None:
    """The command's own help has one line for each word."""
    said = Command().create_parser("manage.py", "signals").format_help()

    assert [] == [word.name for word in WORDS if f" {word.name} " not in said or not word.help]


@pytest.mark.parametrize(
    "word", [word for word in WORDS if word.name in ("list", "explain", "status", "relay")], ids=lambda word: word.name
)
def test_checks(word: Word, monkeypatch: pytest.MonkeyPatch) -> None:
    """What shows the cause of an error of ``manage.py check`` is not kept from running by it."""
    checked: list[Any] = []
    monkeypatch.setattr(Command, "check", lambda self, **options: checked.append(options))
    monkeypatch.setattr(Command, "handle", lambda self, **options: None)

    call_command("signals", word.name, *(["post_save"] if word.name == "explain" else []), skip_checks=False)

    assert (word.name == "relay") is bool(checked) is word.checks
