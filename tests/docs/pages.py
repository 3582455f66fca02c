"""The pages of the documentation, and the code that stands in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# A command in a console block, and what it answers.
PROMPT = re.compile(r"^\$ python manage\.py (.*)\n((?:[^$`].*\n)*)", re.MULTILINE)


def page_of(path: str) -> str:
    """Return the text of a page, whose path begins at the root of the project."""
    return (ROOT / path).read_text()


def blocks(text: str) -> list[str]:
    """Return the Python code blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block_with(text: str, words: str) -> str:
    """Return the one code block that has these words in it."""
    (found,) = [block for block in blocks(text) if words in block]
    return found
