"""Contenders that do the same work in turn: A B C A B C, each in a process of its own, all on the same machine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Who does the work, and how."""

    name: str
    place: str  # "module:function" of benchmarks.contenders
    system: str = "ours"  # whose tables there are: a key of benchmarks.site.settings.SYSTEMS
    site: Mapping[str, Any] = field(default_factory=dict)  # what the settings are told
    peer: bool = False  # whether it runs in the peers' environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """How a contender is to stand to another."""

    of: str
    to: str
    most: float | None = None  # that the ratio of the medians may be
    least: float | None = None
    figure: str = "each"
    against: str = ""  # the other's figure, if that is another one
    beyond: str = ""  # whose figure is taken off both, for it is no part of the question

    def holds(self, ratio: float) -> bool:
        """Tell whether a ratio reaches the goal."""
        return (self.most is None or ratio <= self.most) and (self.least is None or ratio >= self.least)

    def __str__(self) -> str:
        bound = f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"
        beyond = f", beyond {self.beyond}" if self.beyond else ""
        figures = f"{self.figure} / {self.against}" if self.against else self.figure
        return f"{self.of} / {self.to} ({figures}{beyond}): {bound}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One question."""

    title: str
    contenders: Sequence[Contender]
    goals: Sequence[Goal]
    count: int  # times that the work is done in a turn
    needs: Sequence[str] = ("postgres",)  # servers
    rounds: int = 7
    note: str = ""
    unit: str = "s"  # or "MiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was measured: contender -> figure -> one value for each round."""

    benchmark: Benchmark
    values: Mapping[str, Mapping[str, Sequence[float]]]

    def ratio(self, goal: Goal) -> float:
        """Return the median of the ratios of the rounds: of one round, both have met the same machine."""
        of, to = self.values[goal.of][goal.figure], self.values[goal.to][goal.against or goal.figure]
        without = self.values[goal.beyond][goal.figure] if goal.beyond else [0.0] * len(of)
        return median((one - off) / (other - off) for one, other, off in zip(of, to, without, strict=True))

    def figures(self) -> Iterator[tuple[str, str, Sequence[float]]]:
        """Yield contender, figure and values."""
        for name, figures in self.values.items():
            for figure, values in figures.items():
                yield name, figure, values


def play(benchmark: Benchmark, site: Mapping[str, Any], logs: Path, tick: Callable[[str], None]) -> Outcome:
    """Let the contenders work in turn; the first round, which is for warming up, does not count.

    Args:
        benchmark: the question.
        site: what the settings of all are told, such as the ports of servers.
        logs: folder for what they say.
        tick: called with a contender's name before each of its turns.
    """
    values: dict[str, dict[str, list[float]]] = {contender.name: {} for contender in benchmark.contenders}
    with _all(benchmark.contenders, site, logs) as processes:
        for number in range(benchmark.rounds + 1):
            for name, process in processes.items():
                tick(name)
                for figure, value in _ask(process, str(benchmark.count)).items():
                    if number:
                        values[name].setdefault(figure, []).append(value)
    return Outcome(benchmark=benchmark, values=values)


@contextmanager
def _all(
    contenders: Sequence[Contender], site: Mapping[str, Any], logs: Path
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for contender in contenders:
            log = logs / f"{contender.place.replace(':', '.')}.log"
            processes[contender.name] = process = _start(contender, {**site, **contender.site}, log)
            _ask(process)  # one after the other, until each is ready
        yield processes
    finally:
        for process in processes.values():
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(contender: Contender, site: Mapping[str, Any], log: Path) -> subprocess.Popen[str]:
    python = (
        str(PEERS) if contender.peer else os.environ.get("BENCHMARKS_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *([] if contender.peer else [str(ROOT / "src")])]),
        "BENCHMARKS_SITE": json.dumps({**site, "system": contender.system}),
        "PYTHONHASHSEED": "0",
    }
    with log.open("a") as output:
        return subprocess.Popen(
            [python, "-m", "benchmarks.serve", contender.place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment,
            text=True,
            bufsize=1,
        )


def _ask(process: subprocess.Popen[str], words: str = "") -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    if words:
        process.stdin.write(f"{words}\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"A contender has ended; its log tells why: {process.args!r}")
    found: dict[str, float] = json.loads(answer)
    return found
