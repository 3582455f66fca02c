"""``python -m benchmarks``: measure, print the tables, and write them down."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from chaos.brokers import BROKERS
from chaos.databases import DATABASES
from chaos.servers import Server

from .contest import Benchmark, Outcome, play
from .report import summary, table, write
from .suite import SUITE
from .watch import PARTS

SERVERS: dict[str, type[Server]] = {**DATABASES, **BROKERS}
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    """Measure, and return the exit code: a goal that is not reached is no failure."""
    arguments = parse()
    if arguments.parts:
        os.environ[PARTS] = "yes"
    for number in (signal.SIGINT, signal.SIGTERM):  # either way, what was started is ended
        signal.signal(number, signal.default_int_handler)
    outcomes: dict[str, Outcome] = {}
    for name in arguments.names or SUITE:
        benchmark = asked(SUITE[name], arguments)
        with servers(benchmark.needs) as (folder, started):
            ports = {who: server.port for who, server in started.items()}
            turns = (benchmark.rounds + 1) * len(benchmark.contenders)
            with tqdm(total=turns, unit=" turns", desc=name, file=sys.stdout, mininterval=1) as bar:

                def tick(who: str, bar: tqdm[None] = bar) -> None:
                    bar.set_postfix_str(who, refresh=False)
                    bar.update()

                outcomes[name] = play(benchmark, {**ports, "folder": str(folder)}, folder, tick)
        print(f"\n{benchmark.title}\n\n{table(outcomes[name])}\n", flush=True)
        write(
            arguments.results, {f"parts-{name}" if arguments.parts else name: outcomes[name]}, command(name, arguments)
        )
    print(summary(arguments.results))
    return 0


@contextmanager
def servers(names: Sequence[str]) -> Iterator[tuple[Path, dict[str, Server]]]:
    """Start servers in a folder of their own; give the folder, and each of them."""
    folder = Path(tempfile.mkdtemp(prefix="dcs_benchmarks_"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        started: dict[str, Server] = {}
        for name in names:
            server = SERVERS[name](folder=folder / name)
            stack.callback(server.end)
            server.begin()
            started[name] = server
        try:
            yield folder, started
        except RuntimeError as error:
            for log in sorted(folder.glob("benchmarks.*.log")):
                error.add_note(f"{log.name}: {log.read_text()[-2000:]}")
            raise


def asked(benchmark: Benchmark, arguments: argparse.Namespace) -> Benchmark:
    """Return a benchmark as the command line wants it."""
    kept, goals = list(benchmark.contenders), list(benchmark.goals)
    if arguments.ours or arguments.parts:
        kept = [one for one in kept if not one.peer]
        goals = [goal for goal in goals if {goal.of, goal.to} <= {one.name for one in kept}]
    return replace(
        benchmark,
        rounds=arguments.rounds or benchmark.rounds,
        count=arguments.count or benchmark.count,
        contenders=kept,
        goals=[] if arguments.parts else goals,
    )


def command(name: str, arguments: argparse.Namespace) -> str:
    """Return what measures the same again."""
    options = [f"--{option} {value}" for option in ("rounds", "count") if (value := getattr(arguments, option))]
    flags = [f"--{flag}" for flag in ("parts", "ours") if getattr(arguments, flag)]
    more = " ".join([*options, *flags])
    return f'make bench BENCH={name} BENCH_ARGS="{more}"' if more else f"make bench BENCH={name}"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUITE)}; all unless told")
    parser.add_argument("--rounds", type=int, help="that count; each begins with one that does not")
    parser.add_argument("--count", type=int, help="times that the work is done in a round")
    parser.add_argument(
        "--parts", action="store_true", help="tell how much of the time the database's and the broker's clients had"
    )
    parser.add_argument("--ours", action="store_true", help="leave out the peers, which need their own environment")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for what is found")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SUITE):
        parser.error(f"there is no benchmark {min(unknown)!r}; there are {', '.join(SUITE)}")
    if arguments.parts and (others := [name for name in arguments.names if "postgres" not in SUITE[name].needs]):
        parser.error(f"--parts knows PostgreSQL's client only, which {others[0]!r} has not")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
