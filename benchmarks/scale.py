"""``python -m benchmarks.scale``: where the first ceiling is, from measured slopes, by simulation.

Measured is what a delivery costs each part in processor time: its sender, PostgreSQL, the relay, the broker, a worker.
Processor time, unlike time, hardly depends on what else the machine does. Simulated is a line of these parts, each with
so many servers, and events that come at random: how busy each part is, and how long an event is on its way.
"""

from __future__ import annotations

import heapq
import json
import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import quantiles
from typing import Any

from chaos.report import circumstances

from .__main__ import RESULTS, servers

COUNT = 3000  # deliveries that are measured
EVENTS = 30_000  # that are simulated for each line of the table
KINDS = {"one by one": None, "chunk_size=50": 50}
FULL = 0.7  # of a part's time: beyond it, what waits grows fast with every burst


# Measure ---------------------------------------------------------------------------------------------------------


def processor_time(pids: Sequence[int]) -> float:
    """Return the seconds that processes and what they have started have been executed."""
    ticks = 0
    for pid in _family(pids):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        ticks += sum(map(int, fields[11:15]))  # its own, and those of children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def _family(pids: Sequence[int]) -> set[int]:
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found, ahead = set(pids), list(pids)
    while ahead:
        inner = [pid for pid in parents.get(ahead.pop(), []) if pid not in found]
        found.update(inner)
        ahead.extend(inner)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of processors that one delivery takes."""

    sender: float
    database: float  # for all of it: insert, claim, mark, open, complete, vacuum
    relay: float
    broker: float
    worker: float


def measure(chunk_size: int | None) -> tuple[Cost, dict[str, float]]:
    """Send deliveries, relay and run them; return what one costs, and the database's part of that step by step."""
    module = "benchmarks.contenders."
    app = import_module("benchmarks.site.ready").app
    sending, relaying, completing = (import_module(module + name) for name in ("sending", "relaying", "completing"))
    completing.make_ready()
    from django.db import connection, transaction

    from django_celery_signals.models import Delivery
    from django_celery_signals.wire import ARGUMENT

    task, order = sending._receive(chunk_size=chunk_size), sending._an_order()
    given = json.loads(os.environ["BENCHMARKS_SITE"])
    parts = {"own": [os.getpid()], "database": [given["pids"]["postgres"]], "broker": [given["pids"]["rabbitmq"]]}

    def spent(act: Callable[[], Any]) -> dict[str, float]:
        before = {name: processor_time(pids) for name, pids in parts.items()}
        act()
        return {name: (processor_time(pids) - before[name]) / COUNT for name, pids in parts.items()}

    def send() -> None:
        for _ in range(COUNT):
            with transaction.atomic():
                sending._save_sends(order)

    def work() -> None:
        run = completing._traced(app.tasks[task.name])
        for carried in messages:
            run({ARGUMENT: carried})

    def vacuum() -> None:
        with connection.cursor() as cursor:
            cursor.execute("VACUUM django_celery_signals_delivery")

    Delivery.objects.all().delete()
    vacuum()
    sent, relayed = spent(send), spent(relaying._relay().once)
    messages = list(_taken(app))
    assert sum(len(one.get("rows", [0])) for one in messages) == COUNT
    worked = spent(work)
    assert not Delivery.objects.exists()
    vacuumed = spent(vacuum)
    steps = {"send": sent, "relay": relayed, "work": worked, "vacuum": vacuumed}
    cost = Cost(
        sender=sent["own"],
        database=sum(step["database"] for step in steps.values()),
        relay=relayed["own"],
        broker=relayed["broker"] * 2,  # it delivers as well, which costs about as much as to take it
        worker=worked["own"],
    )
    return cost, {name: step["database"] for name, step in steps.items()}


def _taken(app: Any) -> Any:
    """Take what the broker has, as a worker would."""
    from django_celery_signals.wire import ARGUMENT

    with app.connection_for_read() as connection, connection.channel() as channel:
        queue = app.amqp.default_queue.bind(channel)
        while (message := queue.get(no_ack=True)) is not None:
            yield message.decode()[1][ARGUMENT]


# Simulate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """How many of each part there are."""

    databases: int = 4  # cores that execute statements, of one server
    relays: int = 1
    queues: int = 1  # of RabbitMQ: each is one process, which one core executes
    workers: int = 4  # processes


def stations(cost: Cost, plant: Plant) -> dict[str, tuple[float, int]]:
    """Return the parts that an event passes, in their order: seconds, and how many do them at once."""
    return {
        "database": (cost.database, plant.databases),
        "relay": (cost.relay, plant.relays),
        "broker": (cost.broker, plant.queues),
        "worker": (cost.worker, plant.workers),
    }


def simulate(rate: float, cost: Cost, plant: Plant, seed: int = 1) -> tuple[dict[str, float], list[float]]:
    """Let events come at random, so many a second, and pass one part after the other.

    Returns:
        How busy each part is, 1 being always, and the percentiles of the seconds from the commit to the end of the run.
    """
    chance = random.Random(seed)  # noqa: S311 - of a simulation
    parts = stations(cost, plant)
    free = {name: [0.0] * count for name, (_, count) in parts.items()}
    now, times = 0.0, []
    for _ in range(EVENTS):
        now += chance.expovariate(rate)
        moment = now
        for name, (seconds, _) in parts.items():
            began = max(moment, heapq.heappop(free[name]))
            moment = began + chance.expovariate(1 / seconds)
            heapq.heappush(free[name], moment)
        times.append(moment - now)
    busy = {name: rate * seconds / count for name, (seconds, count) in parts.items()}
    return busy, quantiles(times[EVENTS // 10 :], n=100)


def ceiling(cost: Cost, plant: Plant) -> tuple[str, float]:
    """Return the part that is full first, and the events a second at which it is."""
    rates = {name: FULL * count / seconds for name, (seconds, count) in stations(cost, plant).items()}
    name = min(rates, key=rates.__getitem__)
    return name, rates[name]


def enough(rate: float, cost: Cost) -> Plant:
    """Return the least of each part by which none is full."""

    def least(seconds: float) -> int:
        return max(1, -(-int(rate * seconds * 1000) // int(FULL * 1000)))

    return Plant(
        databases=least(cost.database), relays=least(cost.relay), queues=least(cost.broker), workers=least(cost.worker)
    )


# Tell ------------------------------------------------------------------------------------------------------------


def tables(costs: Mapping[str, Cost], steps: Mapping[str, Mapping[str, float]]) -> str:
    """Return what was measured and what comes of it, as Markdown."""
    lines = ["| processor time of one delivery | " + " | ".join(costs) + " |", "| --- |" + " ---: |" * len(costs)]
    for name in ("sender", "database", "relay", "broker", "worker"):
        values = " | ".join(f"{getattr(one, name) * 1e6:,.0f} µs" for one in costs.values())
        lines.append(f"| {name} | {values} |")
    for step in ("send", "relay", "work", "vacuum"):
        values = " | ".join(f"{one[step] * 1e6:,.0f} µs" for one in steps.values())
        lines.append(f"| of the database's: {step} | {values} |")
    lines += ["", "| | events a second | full first, at | busy: database, relay, broker, worker | p50 | p99 |"]
    lines += ["| --- | ---: | --- | --- | ---: | ---: |"]
    for name, cost in costs.items():
        first, most = ceiling(cost, Plant())
        for share in (0.25, 0.5, 0.9):
            rate = most / FULL * share
            busy, cuts = simulate(rate, cost, Plant())
            shown = ", ".join(f"{value:.0%}" for value in busy.values())
            ends = f"{cuts[49] * 1e3:,.1f} ms | {cuts[98] * 1e3:,.1f} ms"
            lines.append(f"| {name} | {rate:,.0f} | {first}, {most:,.0f} | {shown} | {ends} |")
    lines += ["", "| | events a second | the database's cores | relays | queues | worker processes | p99 |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, cost in costs.items():
        _, most = ceiling(cost, Plant())
        for factor in (1, 10, 100):
            plant = enough(most * factor, cost)
            _, cuts = simulate(most * factor, cost, plant)
            counts = " | ".join(map(str, (plant.databases, plant.relays, plant.queues, plant.workers)))
            lines.append(f"| {name} | {most * factor:,.0f} | {counts} | {cuts[98] * 1e3:,.1f} ms |")
    return "\n".join(lines)


def main() -> int:
    """Measure, simulate, and write both down."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.site.settings")
    with servers(("postgres", "rabbitmq")) as (_, started):
        ports, pids = ({name: getattr(one, what) for name, one in started.items()} for what in ("port", "pid"))
        site = {**ports, "pids": pids, "library": {"FAST_PATH_LIMIT": 0}, "system": "ours"}
        os.environ["BENCHMARKS_SITE"] = json.dumps(site)
        context = multiprocessing.get_context("spawn")  # each its own Django
        with context.Pool(1, maxtasksperchild=1) as pool:
            found = {name: pool.apply(measure, (size,)) for name, size in KINDS.items()}
    costs, steps = ({name: one[at] for name, one in found.items()} for at in (0, 1))
    facts = "\n".join(f"- {name}: {fact}" for name, fact in circumstances().items())
    text = tables(costs, steps)  # type: ignore[arg-type]
    command = "- command: python -m benchmarks.scale"
    (RESULTS / "scale.md").write_text(f"# Past one machine\n\n{text}\n\n{command}\n{facts}\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
