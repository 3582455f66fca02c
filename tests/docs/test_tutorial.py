"""The tutorial is true: a reader who does what it says sees what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import page_of
from tests.docs.walking import BLOCK, Reader, blocks_of, is_as_shown
from tests.processes import Processes

TUTORIAL = page_of("docs/tutorial.md")

# What the reader types into a shell before there is a project. The test does not: it has a folder of its own, and the
# interpreter of the tests has the packages already.
SETUP = ["mkdir", "cd", "python3 -m venv", "source", "pip install"]


def test_tutorial(processes: Processes, tmp_path: Path) -> None:
    """Every file, command and answer of the page, one after the other, with a worker that is really killed."""
    folder = tmp_path / "tutorial"
    folder.mkdir()
    reader = Reader(folder=folder, processes=processes)
    for block in blocks_of(TUTORIAL):
        if block.language != "shell":
            reader.follow(block)

    assert reader.second
    reader.second.kill()  # which is quicker than the reader's last Ctrl-C


def test_every_block_of_the_tutorial_is_followed() -> None:
    """Each block is a file with its name before it, or commands; what is not run only makes the environment."""
    found = blocks_of(TUTORIAL)

    assert TUTORIAL.count("```") == 2 * len(found) == 2 * len(BLOCK.findall(TUTORIAL))
    assert {"python", "console", "shell"} == {block.language for block in found}
    assert [] == [block.text for block in found if (block.language == "python") != bool(block.caption)]
    typed = "".join(block.text for block in found if block.language == "shell").splitlines()
    assert [] == [line for line in typed if not line.startswith(tuple(SETUP))]


@pytest.mark.parametrize(
    ("shown", "said", "expected"),
    [
        pytest.param(["a", "b"], ["a", "b"], True, id="the same"),
        pytest.param([], [], True, id="nothing"),
        pytest.param([], ["a"], False, id="something instead of nothing"),
        pytest.param(["a"], ["a", "b"], False, id="more at the end"),
        pytest.param(["b"], ["a", "b"], False, id="more at the beginning"),
        pytest.param(["a", "b"], ["a"], False, id="less"),
        pytest.param(["a", "...", "c"], ["a", "b", "b", "c"], True, id="left out"),
        pytest.param(["...", "c", "..."], ["c"], True, id="nothing left out"),
        pytest.param(["a", "...", "c"], ["a", "b"], False, id="less after what is left out"),
    ],
)
def test_what_is_shown(shown: list[str], said: list[str], expected: bool) -> None:
    """What a command says is compared line by line, but for what the page leaves out."""
    assert expected == is_as_shown(shown, said)
