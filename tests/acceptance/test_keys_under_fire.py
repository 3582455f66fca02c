"""Real senders, relays and workers share a few keys, and some are killed: a key has one run at a time, and in order."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests import crashing
from tests.crashing import TURN_PASSED, TURN_TAKEN
from tests.durable_tasks import (
    LONG,
    connected_to,
    effects,
    in_turn,
    line_up,
    numbers,
    sleep_and_fold,
    sleep_in_turn,
    wait_until_done,
)
from tests.processes import Process
from tests.scene import Scene, each_pair
from tests.shop.models import Product
from tests.waiting import wait_until

EVERYWHERE = (("default", "redis"), ("postgres", "rabbitmq"), ("mariadb", "redis"))
PATIENT = {"PUBLISH_TIMEOUT": 30, "LEASE": 60}  # where a pause of the machine must not look like an outage or a death


def make_products(alias: str, count: int) -> None:
    """Make products, of which no change was counted yet."""
    Product.objects.using(alias).bulk_create(Product(sku=f"product {number}") for number in range(count))


def changes(alias: str) -> dict[str, int]:
    """Return how often each product was changed, and that was committed."""
    return dict(Product.objects.using(alias).values_list("sku", "views"))


# A key has one run at a time, and nothing is lost --------------------------------------------------------------------

SENDERS, THREADS, TIMES = 2, 4, 40  # processes, the threads of each, and the changes by each thread: eight send at once
WORKERS, CHILDREN = 2, 2  # and four work


def runs(scene: Scene) -> dict[str, list[dict[str, Any]]]:
    """Return what the runs for each product have reported, in the order in which they did so."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for told in scene.reports.of("reindex"):
        found[told["sku"]].append(told)
    return found


@each_pair(("default", "redis"), ("postgres", "redis"), ("mariadb", "rabbitmq"))
def test_one_run_of_a_key(scene: Scene) -> None:
    """Of eight senders and four workers, a product is indexed by one run at a time, of which the last one sees the last
    change, and each change counts once; that needs no relay, and relays do not disturb it."""
    scene.settings, relays = PATIENT, scene.alias != "postgres"
    make_products(scene.alias, 10)
    workers = [scene.worker(pool="prefork", concurrency=CHILDREN, EMBED_RELAY=relays) for _ in range(WORKERS)]
    senders = [scene.start("edit", "reindex", f"{TIMES}") for _ in range(SENDERS)]

    assert [0] * SENDERS == [sender.wait(timeout=180) for sender in senders]
    wait_until_done(scene.alias)

    told = runs(scene)
    for of_product in told.values():
        starts, ends = of_product[::2], of_product[1::2]
        assert [{**start, "at": "end"} for start in starts] == ends
    assert changes(scene.alias) == {sku: of_product[-1]["state"] for sku, of_product in told.items()}
    counts = numbers(scene.alias)
    assert changes(scene.alias) == {sku: sum(stood_for) for sku, stood_for in counts.items()}
    assert sum(map(len, counts.values())) < sum(changes(scene.alias).values()) == SENDERS * THREADS * TIMES
    assert 1 < len({report["pid"] for of_product in told.values() for report in of_product})
    for worker in workers:
        worker.kill()


# Order, whoever is killed --------------------------------------------------------------------------------------------

KILLS = 3


def is_at_work(scene: Scene, worker: Process) -> bool:
    """Tell whether one of a worker's receivers has begun and not ended."""
    told = [told["at"] for told in scene.reports.of("follow") if told["group"] == worker.pid]
    return told.count("start") > told.count("end")


def kill_at_work(scene: Scene, worker: Process) -> None:
    """Kill a worker and its children while one of its receivers runs."""

    def stopped_at_work() -> bool:
        os.killpg(worker.pid, signal.SIGSTOP)
        if is_at_work(scene, worker):
            return True
        os.killpg(worker.pid, signal.SIGCONT)
        return False

    wait_until(lambda: is_at_work(scene, worker) and stopped_at_work(), timeout=60, what="a run to be cut off")
    worker.kill()


@each_pair(*EVERYWHERE, rarely=["default"])
def test_order_while_workers_are_killed(scene: Scene, tmp_path: Path) -> None:
    """While one of two workers is killed again and again, what each change of a product leads to is committed once, and
    in the order in which the changes were."""
    end = tmp_path / "end"
    scene.settings = {"LEASE": 3}  # seconds, in which what was killed is found; what lives must not seem dead
    make_products(scene.alias, 5)
    steady = scene.worker(pool="prefork", concurrency=2, EMBED_RELAY=True)
    sender = scene.start("edit_until", "follow", str(end))

    for _ in range(KILLS):
        kill_at_work(scene, scene.worker(pool="prefork", concurrency=2))
    end.touch()

    assert 0 == sender.wait()
    wait_until_done(scene.alias, timeout=180)
    assert {sku: list(range(1, count + 1)) for sku, count in changes(scene.alias).items()} == numbers(scene.alias)
    steady.kill()


# Where a turn changes hands ------------------------------------------------------------------------------------------

MINUTE = 60  # seconds


@each_pair(*EVERYWHERE)
def test_worker_killed_between_two_turns(scene: Scene) -> None:
    """A process that is killed anywhere around the end of a run, also after its commit and before the next has its
    turn, costs those behind it some time, and neither their order nor an event."""
    points = (*crashing.WORKER, TURN_PASSED)
    crashes = scene.crashes(*points)
    worker = scene.worker(crashes, pool="prefork", concurrency=3, EMBED_RELAY=True)

    with connected_to(in_turn):
        for point in points:
            line_up(scene.alias, point, 3)

    wait_until_done(scene.alias, timeout=MINUTE)
    assert {f"in_turn {point}": [1, 2, 3] for point in points} == numbers(scene.alias)
    assert {TURN_PASSED, *(f"in_turn {point}" for point in crashing.WORKER)} == crashes.happened().keys()
    worker.kill()


@each_pair(*EVERYWHERE)
def test_sender_killed_before_the_turn(scene: Scene) -> None:
    """What a sender has committed that is killed before its turn, or before it is published, runs once and in order."""
    worker = scene.worker(EMBED_RELAY=True)
    points = (*crashing.SENDER, TURN_TAKEN)
    senders = [scene.send(point, "3", role="line_up", crashes=scene.crashes(point)) for point in points]

    assert [-signal.SIGKILL] * len(points) == [sender.wait() for sender in senders]
    wait_until_done(scene.alias, timeout=MINUTE)
    assert {f"in_turn {point}": [1, 2, 3] for point in points if point != "inserted"} == numbers(scene.alias)
    worker.kill()


@each_pair(*EVERYWHERE)
def test_turns_without_a_relay(scene: Scene, settings: Any) -> None:
    """Where no relay runs at all, twenty events of a key that are sent in one transaction run all, and in order."""
    scene.settings = settings.DJANGO_CELERY_SIGNALS = {**settings.DJANGO_CELERY_SIGNALS, **PATIENT}
    worker = scene.worker(pool="prefork", concurrency=2)

    with connected_to(in_turn):
        line_up(scene.alias, "alone", 20)

    wait_until_done(scene.alias)
    assert {"in_turn alone": list(range(1, 21))} == numbers(scene.alias)
    worker.kill()


# A long run ----------------------------------------------------------------------------------------------------------


@each_pair(("postgres", "redis"), ("mariadb", "rabbitmq"))
def test_commits_beside_a_long_run(scene: Scene) -> None:
    """While a receiver sleeps ten seconds in its transaction, whoever sends with its key commits in less than one, and
    what is sent runs afterwards."""
    scene.settings = PATIENT
    worker = scene.worker(pool="prefork", concurrency=2)
    took: list[float] = []

    with connected_to(sleep_in_turn, sleep_and_fold):
        line_up(scene.alias, "long", 1)
        for name in ("sleep_in_turn", "sleep_and_fold"):
            scene.reports.wait_for(name)
        until = time.monotonic() + LONG - 3
        while time.monotonic() < until:
            began = time.monotonic()
            line_up(scene.alias, "long", 1, first=len(took) + 2)
            took.append(time.monotonic() - began)
            time.sleep(0.2)

    assert {} == effects(scene.alias)  # for both transactions are still open
    assert max(took) < 1
    wait_until_done(scene.alias)
    last = 1 + len(took)
    assert {"sleep_in_turn long": [*range(1, last + 1)], "sleep_and_fold long": [1, last]} == numbers(scene.alias)
    worker.kill()
