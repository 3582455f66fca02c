"""``manage.py signals``: see what is connected and how deliveries stand, run the relay, look after what has failed."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from ...operating import explaining, failed, listing, pausing, purging, running, standing
from ...operating.choosing import aliases, lack_of
from ...operating.words import Teaching, Word

WORDS = [
    *(*listing.WORDS, *explaining.WORDS, *standing.WORDS, *running.WORDS, *failed.WORDS),
    *(*pausing.WORDS, *purging.WORDS),
]


class Command(BaseCommand):
    """The command; what its words do is in ``operating``."""

    help = "See what is connected and how deliveries stand, run their relay, and look after those that have failed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Define the words and their options."""
        words = parser.add_subparsers(dest="word", required=True, metavar="|".join(word.name for word in WORDS))
        for word in WORDS:
            about: dict[str, Any] = {"help": word.help, "description": word.teaches, "formatter_class": Teaching}
            word.add_arguments(words.add_parser(word.name, **about))

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Do what the word says, after the system checks where it asks for them."""
        skipped = options["skip_checks"] or not _word(options["word"]).checks
        return super().execute(*args, **{**options, "skip_checks": skipped})

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what the word says.

        Raises:
            CommandError: from the word; also where a database lacks the library's tables.
        """
        try:
            _word(options["word"]).run(options, self.stdout)
        except DatabaseError as error:
            lacks = [lack for alias in aliases(options) if (lack := lack_of(alias))]
            if not lacks:
                raise
            raise CommandError("; ".join(lacks)) from error


def _word(name: str) -> Word:
    (word,) = (word for word in WORDS if word.name == name)
    return word
