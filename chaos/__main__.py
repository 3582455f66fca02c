"""``python -m chaos``: play rounds, print the table, and fail if a column that must be zero is not."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .cells import ALL, BY_NAME
from .faults import FAULTS, PEERS, SHORT
from .report import bounds, recoveries, table, write
from .rig import LONG, Options
from .round import play
from .verdict import Verdict

SYSTEMS = {"ours": "django-celery-signals", "outbox": "django-celery-outbox", "events": "django-domain-events"}

#: What must be zero: in every cell, and where receivers have a transaction.
ALWAYS = ("lost", "ghosts", "stuck", "failed", "quarantined", "deaths")
ATOMIC = ("duplicate_effects", "order_inversions", "overlaps", "needless_runs")


#: When a fault is looked at alone.
GOOD: dict[str, Any] = {"receiver_faults": False, "pause": 0.1, "imports": 0.0, "linger": 0.2}


def main() -> int:
    """Play and return the exit code."""
    arguments = parse()
    for number in (signal.SIGINT, signal.SIGTERM):  # either way, what was started is ended
        signal.signal(number, signal.default_int_handler)
    verdicts: dict[str, Verdict] = {}
    for cell, system in product(arguments.cell or ALL, arguments.system or ["ours"]):
        name = cell.name if system == "ours" else f"{cell.name}, {SYSTEMS[system]}"
        options = Options(
            cell=cell,
            events=arguments.events,
            seed=arguments.seed,
            lease=arguments.lease,
            faults=tuple(arguments.fault or (SHORT if arguments.short else PEERS if arguments.system else ())),
            calm=(arguments.calm, 3 * arguments.calm),
            long=0.0 if arguments.good or arguments.system else LONG,
            **(GOOD if arguments.good else {}),
            most_open=arguments.most_open,
            library=arguments.settings,
            system=system,
            interpreter=sys.executable if system == "ours" else str(arguments.peers),
        )
        with tqdm(total=arguments.events, unit=" events", desc=name, file=sys.stdout, mininterval=1) as bar:

            def show(what: str, done: int, total: int, bar: tqdm[None] = bar) -> None:
                bar.set_postfix_str(what if total else f"{what}: {done:,} open", refresh=False)
                bar.update(max(0, min(done, bar.total) - bar.n) if total else 0)
                bar.refresh()

            verdicts[name] = play(options, show)
        print(f"\n{table({name: verdicts[name]})}\n\n{recoveries(verdicts[name])}\n", flush=True)
        write(arguments.results, name, verdicts[name], {"command": " ".join(["python -m chaos", *sys.argv[1:]])})
    print(table(verdicts), bounds(verdicts), sep="\n\n")
    bad = [f"{name}: {column}={count}" for name, verdict in verdicts.items() for column, count in _bad(name, verdict)]
    for name, verdict in verdicts.items():
        print(*(f"{name}: {died}" for died in verdict.died), sep="\n", end="\n" if verdict.died else "")
    print(f"chaos: {', '.join(bad) or 'zero in every column that must be'}", flush=True)
    return 1 if bad else 0


def _bad(name: str, verdict: Verdict) -> Iterator[tuple[str, int]]:
    """Yield the columns of a cell that must be zero and are not; peers have promised nothing."""
    if (cell := BY_NAME.get(name)) is not None:
        for column in (*ALWAYS, *(ATOMIC if cell.atomic else ())):
            if count := getattr(verdict, column):
                yield column, count


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument(
        "--cell", type=_cell, action="append", help=f"one of {', '.join(BY_NAME)}; may be repeated (all)"
    )
    parser.add_argument("--events", type=int, default=2000, help="to commit in each cell, at least (2000)")
    parser.add_argument("--seed", type=int, default=7, help="of what is left to chance (7)")
    parser.add_argument("--lease", type=float, default=30.0, help="LEASE of the library, in seconds (30)")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="may be repeated (all)")
    parser.add_argument("--calm", type=float, default=1.0, help="seconds between two faults, up to thrice as many (1)")
    parser.add_argument(
        "--good",
        action="store_true",
        help="receivers fail never, and senders send a little: what recovers is of the fault alone",
    )
    parser.add_argument("--most-open", type=int, default=200, help="what waits before senders pause (200)")
    parser.add_argument(
        "--library", dest="settings", type=json.loads, default={}, help="further settings of the library, as JSON"
    )
    parser.add_argument("--short", action="store_true", help=f"with few faults: {', '.join(SHORT)}")
    parser.add_argument(
        "--system",
        choices=SYSTEMS,
        action="append",
        help="what is tormented, with faults that all can have; may be repeated (ours, with every fault)",
    )
    parser.add_argument(
        "--peers", type=Path, default=Path(".venv-peers/bin/python"), help="interpreter that has the peers"
    )
    parser.add_argument("--results", type=Path, default=Path("chaos/results"), help="folder of the results")
    return parser.parse_args()


def _cell(name: str) -> object:
    if name not in BY_NAME:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(BY_NAME)}")
    return BY_NAME[name]


if __name__ == "__main__":
    sys.exit(main())
