"""Databases, brokers and workers that are away for longer than a lease: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from django.db import connections
from kombu import Queue

from chaos.proxy import Proxy
from django_celery_signals import batched
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import State, deliveries
from tests.brokers import Broker
from tests.drain import waiting
from tests.durable_tasks import (
    connected_to,
    effects,
    inside,
    place,
    quickly,
    stay_inside,
    stay_outside,
    take_long_inside,
    take_long_outside,
    wait_until_done,
)
from tests.processes import Process
from tests.proxies import in_front_of, settings_through
from tests.scene import REAL_PAUSES, Scene, each_pair
from tests.waiting import wait_until

SERVERS = (("postgres", "rabbitmq"), ("mariadb", "redis"))
LEASE = 1  # seconds, in the processes


@pytest.fixture
def database(scene: Scene) -> Iterator[Proxy]:
    """A port in front of the database, by which the processes reach it."""
    settings = connections[scene.alias].settings_dict
    port = int(settings["PORT"] or {"postgres": 5432, "mariadb": 3306}[scene.alias])
    proxy = Proxy(port, settings["HOST"] or "127.0.0.1")
    scene.ports[scene.alias] = proxy.port
    yield proxy
    proxy.close()


@each_pair(("default", "redis"), *SERVERS)
def test_long_receiver(scene: Scene) -> None:
    """A receiver that takes longer than three leases runs once, with and without a transaction."""
    workers = [scene.worker(EMBED_RELAY=True) for _ in range(2)]
    name = str(3.2 * LEASE)

    with connected_to(take_long_inside, take_long_outside):
        place(scene.alias, [name])

    wait_until_done(scene.alias)
    assert {f"take_long_inside {name}": 1, f"take_long_outside {name}": 1} == effects(scene.alias)
    assert [1, 1] == [len(scene.reports.of(f"take_long_{place}")) for place in ("inside", "outside")]
    assert [[], []] == [[line for line in worker.log.splitlines() if "run again" in line] for worker in workers]
    for worker in workers:
        worker.kill()


@each_pair(*SERVERS)
@pytest.mark.parametrize("end", ["after it", "in it"])
def test_database_away(scene: Scene, database: Proxy, tmp_path: Path, end: str) -> None:
    """While the database is away for longer than a lease, receivers go on: one without a transaction does not run
    again, one with a transaction does, and that counts as no attempt; nobody need be started again."""
    go = tmp_path / "go"
    workers = [scene.worker(pool="prefork", concurrency=2, EMBED_RELAY=True) for _ in range(2)]
    with connected_to(stay_inside, stay_outside):
        place(scene.alias, [str(go)])
    for task in ("stay_inside", "stay_outside"):
        scene.reports.wait_for(task)

    database.refuse()
    with connected_to(inside):
        place(scene.alias, ["meanwhile"])
    wait_until(lambda: are_over(scene, LEASE / 2), what="the end of the leases")
    if end == "in it":
        go.touch()
        wait_until(lambda: are_over(scene, 2.5 * LEASE), what="more than another lease")
    database.heal()
    scene.reports.wait_for("inside")
    go.touch()

    wait_until_done(scene.alias)
    assert {"inside meanwhile": 1, f"stay_inside {go}"[:50]: 1, f"stay_outside {go}"[:50]: 1} == effects(scene.alias)
    assert [(0, 0)] == runs(scene, "stay_outside")
    assert [(0, 0), (0, 1)] == runs(scene, "stay_inside")
    for worker in workers:
        assert worker.is_running()
        worker.kill()


@each_pair(("default", "rabbitmq"), ("postgres", "redis"), ("mariadb", "rabbitmq"))
def test_worker_away(scene: Scene) -> None:
    """However long published events wait for a worker, none is published again; one that is lost among them is."""
    scene.keep = 60
    relay = scene.relay()
    names = [f"{number}" for number in range(100)]
    with connected_to(quickly):
        place(scene.alias, names)
    wait_until(lambda: is_published(scene), what="the publication of all")

    wait_until(lambda: scene.broker.message_count() >= len(names) + 5, what="five probes")
    assert [1] == list(deliveries(scene.alias).values_list("sends", flat=True).distinct())
    lost = lose_one(scene.broker)
    worker = scene.worker()

    wait_until_done(scene.alias)
    assert {f"quickly {name}": 1 for name in names} == effects(scene.alias)
    assert lost in received(worker)
    relay.kill()
    worker.kill()


def lose_one(broker: Broker) -> str:
    """Take the oldest message away, and return the id of its event."""
    with broker.connection() as connection, connection.channel() as channel:
        message = Queue(broker.queue)(channel).get(no_ack=True)
        return str(message.headers["id"])


@each_pair(*SERVERS)
def test_wiped_broker(scene: Scene) -> None:
    """What the broker has lost while the worker was away is published again."""
    relay = scene.relay()
    with connected_to(inside):
        place(scene.alias, ["one", "two", "three"])
    wait_until(lambda: is_published(scene), what="the publication of all")

    wipe(scene.broker)
    worker = scene.worker()

    wait_until_done(scene.alias)
    assert {"inside one": 1, "inside two": 1, "inside three": 1} == effects(scene.alias)
    relay.kill()
    worker.kill()


@each_pair(("postgres", "rabbitmq"))
def test_wiped_broker_in_real_time(scene: Scene) -> None:
    """With the library's own pauses, it takes less than 30 seconds from the return of the worker. (The slow one.)"""
    with connected_to(inside):
        place(scene.alias, ["one", "two", "three"])
    wipe(scene.broker)

    worker = scene.worker(env={REAL_PAUSES: "1"}, EMBED_RELAY=True)

    wait_until_done(scene.alias, timeout=30)
    assert {"inside one": 1, "inside two": 1, "inside three": 1} == effects(scene.alias)
    worker.kill()


def wipe(broker: Broker) -> None:
    """Empty the broker; RabbitMQ has no queue then either."""
    assert broker.message_count() >= 3
    broker.clear(broker)
    assert 0 == broker.message_count()


@pytest.mark.usefixtures("by_relay")
@each_pair(*SERVERS, rarely=["mariadb"])
def test_storm(scene: Scene) -> None:
    """After an outage of the broker under two relays, it has hardly more than one message for each of 3,000 events."""
    names = [f"{number}" for number in range(3000)]
    with in_front_of(scene.broker) as proxy:
        proxy.refuse()
        relays = relays_through(proxy, scene)
        with connected_to(quickly), batched(scene.alias):
            place(scene.alias, names)
        wait_until(lambda: all(failures(relay) >= 3 for relay in relays), what="three tries of each relay")
        proxy.heal()
        wait_until(lambda: is_published(scene), timeout=60, what="the publication of all")

    ids = [message.headers["id"] for message in waiting(scene.broker) if message.task == quickly.name]
    assert set(ids) == set(deliveries(scene.alias).values_list("event_id", flat=True))
    assert len(names) <= len(ids) <= len(names) * 1.05


@pytest.mark.usefixtures("by_relay")
@each_pair(*SERVERS, rarely=["mariadb"])
def test_silence_in_a_batch(scene: Scene) -> None:
    """A broker that falls silent under two relays gets at most what each had under way once more; it runs once."""
    names, batch = [f"{number}" for number in range(200)], 20
    with in_front_of(scene.broker) as proxy:
        proxy.be_silent()
        relays = relays_through(proxy, scene, batch)
        with connected_to(quickly):
            place(scene.alias, names)
        proxy.heal()
        wait_until(scene.broker.message_count, what="the first messages")
        proxy.be_silent()
        wait_until(lambda: any(failures(relay) for relay in relays), what="the end of a batch")
        proxy.heal()
        wait_until(lambda: is_published(scene), what="the publication of all")

    worker = scene.worker()
    wait_until_done(scene.alias)
    assert {f"quickly {name}": 1 for name in names} == effects(scene.alias)
    assert len(names) <= sum(received(worker).values()) <= len(names) + len(relays) * batch
    worker.kill()


def relays_through(proxy: Proxy, scene: Scene, batch: int = 500) -> list[Process]:
    """Start two relays that reach the broker through a proxy only."""
    scene.keep = 60
    through = replace(scene, celery=settings_through(proxy, scene.broker))
    return [through.relay(batch=batch) for _ in range(2)]


def failures(relay: Process) -> int:
    """Return how often a relay could not publish a batch."""
    return relay.log.count("could not be published")


def is_published(scene: Scene) -> bool:
    """Tell whether every delivery has been published."""
    return not deliveries(scene.alias).exclude(state=State.SENT).exists()


def received(worker: Process) -> dict[str, int]:
    """Return how many messages a worker got, by the id of the event."""
    return dict(Counter(re.findall(r"Task tests.durable_tasks.quickly\[(.*?)\] received", worker.log)))


@each_pair(*SERVERS)
def test_database_stalls(scene: Scene, database: Proxy, tmp_path: Path) -> None:
    """A database that answers nobody for longer than a lease, and breaks no connection, costs no living run."""
    go = tmp_path / "go"
    workers = [scene.worker(pool="prefork", concurrency=2, EMBED_RELAY=True) for _ in range(2)]
    with connected_to(stay_inside, stay_outside):
        place(scene.alias, [str(go)])
    for task in ("stay_inside", "stay_outside"):
        scene.reports.wait_for(task)

    database.delay(2.5 * LEASE)
    wait_until(lambda: are_over(scene, 0), what="the end of the leases")
    database.delay(0)
    wait_until(lambda: are_renewed(scene), what="renewal")
    go.touch()

    wait_until_done(scene.alias)
    assert [(0, 0)] == runs(scene, "stay_outside") == runs(scene, "stay_inside")
    for worker in workers:
        worker.kill()


def are_renewed(scene: Scene) -> bool:
    """Tell whether no lease is over."""
    return not deliveries(scene.alias).due(State.RUNNING).exists()


def are_over(scene: Scene, seconds: float) -> bool:
    """Tell whether the leases of what runs have been over for so long."""
    running = deliveries(scene.alias).filter(state=State.RUNNING)
    return running.count() == running.filter(due_at__lt=In(-seconds)).count() > 0


def runs(scene: Scene, task: str) -> list[tuple[int, int]]:
    """Return what each run of a receiver found in the row: attempts and crashes together, and what does not count."""
    return [(report["charged"], report["reruns"]) for report in scene.reports.of(task)]
