"""The tutorial as a reader walks through it: the files that are written, what is typed, and what is then seen."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import django_celery_signals
from tests.processes import Process, Processes
from tests.waiting import wait_until

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CAPTION = re.compile(r"^\*\*`([\w/.]+)`\*\*(, at its end)?:$")
ANYTHING = "..."  # any number of lines
PATIENCE = 60  # seconds for what the page says to wait for

# What is another each time, and in each place.
VARYING = [
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(,\d+)?", "<time>"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>"),
    (r"\d+\.\d+", "<number>"),
    (r"\b\d+ (m?s)\b", r"<number> \1"),
    (r"celery@\S+", "celery@<host>"),
    (r"'/\S*/tutorial/", "'<folder>/"),
    (r"\s+", " "),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A code block, and the paragraph before it."""

    language: str
    text: str
    before: str

    @property
    def caption(self) -> re.Match[str] | None:
        """Return what says which file it is: the path, and whether it only goes to the end of that."""
        return CAPTION.match(self.before)

    @property
    def is_second(self) -> bool:
        """Tell whether it belongs to the second terminal."""
        return "**second terminal**" in " ".join(self.before.split())

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each command and what it must say; first, as an empty command, what is said without one."""
        before, *typed = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        if before:
            yield "", before.splitlines()
        for part in typed:
            command, *said = part.splitlines()
            yield command, said


def blocks_of(page: str) -> list[Block]:
    """Return all code blocks of a page, in their order."""
    prose, *rest = BLOCK.split(page)
    found = []
    for language, text, after in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        found.append(Block(language=language, text=text, before=prose.strip().rpartition("\n\n")[2]))
        prose = after
    return found


def plain(line: str) -> str:
    """Return a line without what is another each time."""
    for pattern, name in VARYING:
        line = re.sub(pattern, name, line)
    return line.strip()


def lines_of(text: str) -> list[str]:
    """Return the lines that have something in them."""
    return [line for line in map(plain, text.splitlines()) if line]


def is_as_shown(shown: Sequence[str], said: Sequence[str]) -> bool:
    """Tell whether a command has said what the page shows, where ``...`` stands for any lines."""
    at, anything = 0, False
    for line in shown:
        if line == ANYTHING:
            anything = True
            continue
        found = [index for index in range(at, len(said)) if said[index] == line]
        if not found or (found[0] > at and not anything):
            return False
        at, anything = found[0] + 1, False
    return anything or at == len(said)


@dataclass(slots=True, kw_only=True)
class Reader:
    """Somebody who does what the page says, in a folder of their own, and compares what they see."""

    folder: Path
    processes: Processes
    second: Process | None = None  # what runs in the second terminal
    seen: int = field(default=0)  # lines of it that have been read

    def follow(self, block: Block) -> None:
        """Do what one block says."""
        if block.language == "python":
            self.write(block)
        elif block.is_second:
            for command, said in block.commands():
                self.watch(command, said)
        else:
            for command, said in block.commands():
                self.type(command, said)

    def write(self, block: Block) -> None:
        """Write a file, or add to its end."""
        assert block.caption, f"Which file is this?\n{block.text}"
        path, at_its_end = block.caption.groups()
        file = self.folder / path
        file.write_text(f"{file.read_text()}\n{block.text}" if at_its_end else block.text)

    def type(self, command: str, said: Sequence[str]) -> None:
        """Run a command in the first terminal, and compare all that it says."""
        process = self.start(command, "first")
        code = process.wait(timeout=PATIENCE)
        shown = [plain(line) for line in said]
        assert (0, True) == (code, is_as_shown(shown, lines_of(process.log))), f"$ {command}\n{process.log}"

    def watch(self, command: str, said: Sequence[str]) -> None:
        """Start a command in the second terminal, or go on with the one that runs there, until it has said all this."""
        if command:
            assert self.second is None, "Something still runs in the second terminal."
            self.second, self.seen = self.start(command, "second"), 0
        assert self.second is not None, "Nothing runs in the second terminal."
        is_interrupted, is_killed = "^C" in said, "Killed" in said
        if is_interrupted:
            os.killpg(self.second.pid, signal.SIGINT)  # as a terminal does
        for line in said:
            if line not in (ANYTHING, "^C", "Killed"):
                self.wait_for(plain(line))
        if is_interrupted or is_killed:  # "Killed" is said by the reader's shell, of which there is none here
            code = self.second.wait(timeout=PATIENCE)  # of Celery's own end it may be 1
            assert is_killed == (code == -signal.SIGKILL)
            self.second = None

    def wait_for(self, line: str) -> None:
        """Wait until the second terminal says a line, behind those that have been read."""
        process = self.second
        assert process is not None

        def said() -> bool:
            is_running = process.is_running()  # asked first: what has ended says no more afterwards
            lines = lines_of(process.log)
            if line not in lines[self.seen :]:
                assert is_running, f"It ended before it said {line!r}."
                return False
            self.seen = lines.index(line, self.seen) + 1
            return True

        wait_until(said, timeout=PATIENCE, what=f"{line!r} in the second terminal")

    def start(self, command: str, terminal: str) -> Process:
        """Start a command of the page in a shell, in a process group of its own."""
        return self.processes.start("bash", "-c", command, name=terminal, env=environment(), cwd=self.folder)


def environment() -> dict[str, str]:
    """Return that of a shell in which the interpreter of the tests is active, with nothing of the tests' own."""
    own = ("DJANGO_", "DCS_", "PYTHON", "CELERY_", "PYTEST_", "COV_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {
        **clean,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), clean["PATH"]]),
        "PYTHONPATH": str(Path(django_celery_signals.__file__).parent.parent),  # the code under test
        "PYTHONUNBUFFERED": "1",  # as where a terminal is
        "C_FORCE_ROOT": "1",
    }
