"""Processes are killed or stopped wherever it could matter: nothing is lost, nothing a ghost, effects happen once."""

from __future__ import annotations

import signal
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from django_celery_signals.durable.deliveries import State, deliveries
from tests import crashing
from tests.durable_tasks import (
    DEADLY,
    connected_to,
    die,
    effects,
    inside,
    late,
    outside,
    place,
    together,
    wait_until_done,
)
from tests.processes import Process
from tests.scene import CRASH_BUDGET, Scene, each_pair
from tests.shop.models import Order, Tag
from tests.waiting import wait_until

# The brokers of sites; "filesystem" is for development.
DATABASES = ("default", "postgres", "mariadb")
EVERYWHERE = list(product(DATABASES, ("redis", "rabbitmq")))
ROTATED = list(zip(DATABASES, ("redis", "rabbitmq", "redis"), strict=True))


@each_pair(*EVERYWHERE)
def test_sender(scene: Scene) -> None:
    """A sender killed before its commit sends nothing; killed after it, everything arrives once (H33, H36)."""
    senders = [scene.send(point, crashes=scene.crashes(point)) for point in crashing.SENDER]
    senders.append(scene.send(role="save", crashes=scene.crashes("saved")))
    codes = [sender.wait() for sender in senders]
    assert [-signal.SIGKILL] * len(senders) == codes

    worker = scene.worker(EMBED_RELAY=True)
    wait_until_done(scene.alias)

    names = ["committed", "handed over"]
    assert {f"inside {name}": 1 for name in names} == effects(scene.alias)
    assert names == list(Tag.objects.using(scene.alias).order_by("name").values_list("name", flat=True))
    assert not Order.objects.using(scene.alias).exists()
    worker.kill()


def ends(scene: Scene) -> dict[int, str]:
    """Return how Celery saw the end of each process's first receiver: the one that was stopped."""
    return {report["pid"]: report["state"] for report in reversed(scene.reports.of("ended"))}


def bodies(scene: Scene) -> list[dict[str, Any]]:
    """Return what the receivers have reported, in and outside of a transaction."""
    return [report for name in ("inside", "outside") for report in scene.reports.of(name)]


def retire(worker: Process) -> None:
    """Let a worker wait for what it runs, and take no message from another one."""
    worker.popen.terminate()
    worker.wait_for("Warm shutdown")


@pytest.mark.usefixtures("by_relay")
@each_pair(*EVERYWHERE)
def test_relay(scene: Scene) -> None:
    """A relay killed at any place loses nothing, and what another one repeats runs once."""
    worker = scene.worker()

    with connected_to(inside):
        for point in crashing.RELAY:
            relay = scene.relay(scene.crashes(point))
            place(scene.alias, [point, f"{point} too"])
            assert -signal.SIGKILL == relay.wait()

    relay = scene.relay()
    wait_until_done(scene.alias)
    assert {f"inside {point}{too}": 1 for point in crashing.RELAY for too in ("", " too")} == effects(scene.alias)
    worker.kill()
    relay.kill()


LATE = ("in the body", "over")  # where it matters that a message is delivered again, for nobody has acknowledged it

# How often each receiver leaves its effect when it is killed once. Without a transaction: again after a kill.
EFFECTS = {
    **{f"inside {point}": 1 for point in crashing.WORKER},
    **{f"late {point}": 1 for point in LATE},
    **{f"outside {point}": 1 for point in crashing.WORKER},
    "outside in the body": 2,
    "outside after the body": 2,
}


def place_for_all(scene: Scene) -> None:
    """Send an event for each point to each receiver."""
    with connected_to(inside, outside):
        place(scene.alias, crashing.WORKER)
    with connected_to(late):
        place(scene.alias, LATE)


@each_pair(*EVERYWHERE, rarely=["default"])
def test_child_of_a_worker(scene: Scene) -> None:
    """A process of a pool killed at any place runs its event again; database effects of a transaction happen once."""
    crashes = scene.crashes(*crashing.WORKER)
    worker = scene.worker(crashes, pool="prefork", concurrency=3, EMBED_RELAY=True)

    place_for_all(scene)

    wait_until_done(scene.alias)
    assert EFFECTS == effects(scene.alias)
    assert EFFECTS.keys() == crashes.happened().keys()
    assert worker.pid not in crashes.happened().values()
    worker.kill()


@each_pair(*ROTATED, rarely=["mariadb"])
def test_worker(scene: Scene) -> None:
    """A whole worker killed at any place, and started again, runs its events again, and effects happen once (H47)."""
    crashes = scene.crashes(*crashing.WORKER)
    place_for_all(scene)

    for number in range(len(EFFECTS)):
        worker = scene.worker(crashes, EMBED_RELAY=True)
        assert -signal.SIGKILL == worker.wait()
        assert number + 1 == len(crashes.happened())

    worker = scene.worker(crashes, EMBED_RELAY=True)
    wait_until_done(scene.alias)
    assert EFFECTS == effects(scene.alias)
    worker.kill()


@each_pair(("postgres", "rabbitmq"), ("mariadb", "redis"))
def test_deadly_receiver(scene: Scene) -> None:
    """A receiver that kills its process each time is given up when its budget of crashes is spent; others go on."""
    worker = scene.worker(pool="prefork", concurrency=2, env={CRASH_BUDGET: "2"}, EMBED_RELAY=True)

    with connected_to(die, inside):
        place(scene.alias, ["deadly"])

    failed = deliveries(scene.alias).failed()
    wait_until(failed.all().exists, what="the end")
    assert [0, 1] == [report["charged"] for report in scene.reports.of("die")]
    assert [(2, "django_celery_signals.exceptions.WorkerLost")] == list(failed.values_list("crashes", "error_type"))
    assert {"inside deadly": 1} == effects(scene.alias)
    assert worker.is_running()
    worker.kill()


@pytest.mark.usefixtures("by_relay")
@each_pair(("postgres", "rabbitmq"), ("mariadb", "redis"))
def test_a_worker_dies_in_a_chunk(scene: Scene) -> None:
    """Of many deliveries in few messages one kills its worker each time: it alone is given up, the others happen once,
    and those that died with it are not charged."""
    names = [f"one of {number}" for number in range(60)]
    with connected_to(together):
        place(scene.alias, [*names[:30], DEADLY, *names[30:]])

    worker = scene.worker(pool="prefork", concurrency=2, env={CRASH_BUDGET: "2"}, EMBED_RELAY=True, LEASE=3)
    rows = deliveries(scene.alias)
    wait_until(lambda: [State.FAILED] == list(rows.values_list("state", flat=True)), timeout=60, what="the end")

    assert {f"together {name}": 1 for name in names} == effects(scene.alias)
    spent = ["attempts", "crashes", "reruns", "error_type"]
    assert [(0, 2, 1, "django_celery_signals.exceptions.WorkerLost")] == list(rows.values_list(*spent))
    runs = scene.reports.of("together")
    assert [(0, 0), (0, 1), (1, 1)] == [(one["charged"], one["reruns"]) for one in runs if one["name"] == DEADLY]
    others = {one["name"] for one in runs if one["name"] != DEADLY and one["reruns"]}
    assert (True, {0}) == (0 < len(others) < 60, {one["charged"] for one in runs if one["name"] != DEADLY})
    assert worker.is_running()
    worker.kill()


# What a process that was stopped has left undone is done by others. Alone of these, "completed" waits for its commit.
STOPPED = {f"{task} {point}": "IGNORED" for task in ("inside", "outside") for point in crashing.WORKER}
STOPPED |= {place: "SUCCESS" for place in STOPPED if place.endswith(("completed", "over"))}
EFFECTS_OF_STOPPED = {**{place: EFFECTS[place] for place in STOPPED}, "outside opened": 2}


@each_pair(("postgres", "rabbitmq"), ("mariadb", "redis"))
def test_stopped_worker(scene: Scene) -> None:
    """What a worker has open that is stopped for longer than a lease is done by another; the first one's work is
    rolled back when it goes on, and it can tell that the event is no longer its own."""
    crashes = scene.crashes(*crashing.WORKER, by=signal.SIGSTOP)
    worker = scene.worker(crashes, pool="prefork", concurrency=len(STOPPED))
    with connected_to(inside, outside):
        place(scene.alias, crashing.WORKER)
    crashes.wait_for(*STOPPED)
    retire(worker)

    another = scene.worker(EMBED_RELAY=True)
    wait_until(lambda: effects(scene.alias).keys() == STOPPED.keys() - {"inside completed"}, what="the other worker")
    assert {True} == {report["mine"] for report in bodies(scene)}
    crashes.resume()
    pids = crashes.happened()
    wait_until(lambda: set(pids.values()) <= ends(scene).keys(), what="the end of what was stopped")

    assert STOPPED == {place: ends(scene)[pid] for place, pid in pids.items()}
    assert ["opened", "opened"] == [report["name"] for report in bodies(scene) if not report["mine"]]
    assert EFFECTS_OF_STOPPED == effects(scene.alias)
    assert not deliveries(scene.alias).exists()
    worker.kill()
    another.kill()


@each_pair(("postgres", "rabbitmq"), ("mariadb", "redis"))
def test_stopped_worker_and_its_rival(scene: Scene) -> None:
    """What a stopped worker has done is not committed while another one has its event, which completes in peace."""
    crashes = scene.crashes("in the body", by=signal.SIGSTOP)
    worker = scene.worker(crashes)
    with connected_to(inside):
        place(scene.alias, ["in the body"])
    crashes.wait_for("inside in the body")

    theirs = replace(crashes, folder=scene.folder / "their crashes")
    rival = scene.worker(theirs, EMBED_RELAY=True)
    theirs.wait_for("inside in the body")
    crashes.resume()
    wait_until(lambda: worker.pid in ends(scene), what="the end of the first run")
    assert ("IGNORED", {}) == (ends(scene)[worker.pid], effects(scene.alias))
    theirs.resume()

    wait_until_done(scene.alias)
    wait_until(lambda: rival.pid in ends(scene), what="the end of the second run")
    assert ("SUCCESS", {"inside in the body": 1}) == (ends(scene)[rival.pid], effects(scene.alias))
    worker.kill()
    rival.kill()


@each_pair(("default", "redis"))
def test_stopped_worker_with_the_lock_of_sqlite(scene: Scene) -> None:
    """Where a stopped transaction keeps everyone else from writing, nobody takes its event over, and it completes."""
    crashes = scene.crashes("in the body", by=signal.SIGSTOP)
    scene.sqlite_timeout = 0.5
    worker = scene.worker(crashes)
    with connected_to(inside):
        place(scene.alias, ["in the body"])
    crashes.wait_for("inside in the body")

    another = scene.worker(EMBED_RELAY=True)
    another.wait_for("locked")
    crashes.resume()

    wait_until_done(scene.alias)
    assert {"inside in the body": 1} == effects(scene.alias)
    wait_until(lambda: worker.pid in ends(scene), what="the end of what was stopped")
    assert "SUCCESS" == ends(scene)[worker.pid]
    worker.kill()
    another.kill()


@each_pair(("default", "redis"))
def test_stopped_worker_without_a_lock(scene: Scene) -> None:
    """On SQLite, too, another worker takes over what one has open that is stopped, and the first one rolls back."""
    places = [f"{task} opened" for task in ("inside", "outside")] + ["outside in the body"]
    crashes = scene.crashes("opened", "in the body", by=signal.SIGSTOP)
    worker = scene.worker(crashes, pool="prefork", concurrency=3)
    with connected_to(outside):
        place(scene.alias, ["opened", "in the body"])
    with connected_to(inside):
        place(scene.alias, ["opened"])
    crashes.wait_for(*places)
    retire(worker)

    another = scene.worker(EMBED_RELAY=True)
    wait_until_done(scene.alias)
    crashes.resume()
    pids = crashes.happened().values()
    wait_until(lambda: set(pids) <= ends(scene).keys(), what="the end of what was stopped")

    assert {"IGNORED"} == {ends(scene)[pid] for pid in pids}
    assert {"inside opened": 1, "outside opened": 2, "outside in the body": 2} == effects(scene.alias)
    worker.kill()
    another.kill()


@pytest.mark.usefixtures("by_relay")
@each_pair(*ROTATED, ("postgres", "redis"), rarely=["default", "mariadb"])
def test_stopped_relay(scene: Scene) -> None:
    """What a stopped relay has in hand is published by another, and the first one changes nothing when it goes on."""
    crashes = [scene.crashes(point, by=signal.SIGSTOP) for point in crashing.RELAY]
    relays = []
    with connected_to(inside):
        for crash in crashes:
            relays.append(scene.relay(crash))
            place(scene.alias, crash.points)
            crash.wait_for(*crash.points)

    another, worker = scene.relay(), scene.worker()
    wait_until_done(scene.alias)
    crashes[0].resume()

    assert [0, 0, 0, 0] == [relay.stop() for relay in relays]
    with connected_to(inside):
        place(scene.alias, ["afterwards"])
    wait_until_done(scene.alias)
    assert {f"inside {name}": 1 for name in (*crashing.RELAY, "afterwards")} == effects(scene.alias)
    another.kill()
    worker.kill()


@each_pair(("postgres", "rabbitmq"), ("mariadb", "redis"))
def test_stopped_sender(scene: Scene) -> None:
    """A sender stopped before its commit keeps nobody waiting; what it then publishes late runs once."""
    crashes = [scene.crashes(point, by=signal.SIGSTOP) for point in crashing.SENDER]
    senders = [scene.send(*crash.points, crashes=crash) for crash in crashes]
    for crash in crashes:
        crash.wait_for(*crash.points)

    worker = scene.worker(EMBED_RELAY=True)
    wait_until_done(scene.alias)
    assert {"inside committed": 1, "inside handed over": 1} == effects(scene.alias)
    crashes[0].resume()

    assert [0, 0, 0] == [sender.wait() for sender in senders]
    wait_until(lambda: len(effects(scene.alias)) == 3, what="the last effect")
    wait_until_done(scene.alias)
    assert {f"inside {point}": 1 for point in crashing.SENDER} == effects(scene.alias)
    worker.kill()
