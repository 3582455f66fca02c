"""A receiver is paused and goes on again under load, in workers of which some die: nothing begins, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from django.db import connections

from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.pauses import pause, resume
from tests.durable_tasks import connected_to, effects, inside, outside, place, wait_until_done
from tests.scene import Scene, each_pair
from tests.waiting import wait_until

PAUSES = 3


@each_pair(("default", "redis"), ("postgres", "rabbitmq"), ("mariadb", "redis"), rarely=["mariadb"])
def test_paused_under_load(scene: Scene) -> None:
    """While a receiver is paused none of its deliveries begins, though workers are killed; others go on meanwhile."""
    workers = [scene.worker(EMBED_RELAY=True) for _ in range(2)]
    sent: list[str] = []
    with connected_to(inside, outside), _sending(scene.alias, sent):
        for round_ in range(PAUSES):
            scene.reports.wait_for("inside", 5 * (round_ + 1))
            pause(inside.name, scene.alias)
            # What was being opened at that very moment begins still.
            scene.reports.wait_for("outside", len(scene.reports.of("outside")) + 3)
            wait_until(lambda: not _running(scene.alias), what="what runs already")
            ended = len(scene.reports.of("inside"))
            others = len(scene.reports.of("outside"))
            workers.pop(0).kill()
            workers.append(scene.worker(EMBED_RELAY=True))
            scene.reports.wait_for("outside", others + 5)
            assert ended == len(scene.reports.of("inside"))
            assert resume(inside.name, scene.alias)
    wait_until_done(scene.alias)

    expected = {f"{task} {name}": 1 for task in ("inside", "outside") for name in sent}
    found = effects(scene.alias)
    assert expected.keys() == found.keys()
    assert {1} == {count for name, count in found.items() if name.startswith("inside")}
    for worker in workers:
        worker.kill()


@contextmanager
def _sending(using: str, sent: list[str]) -> Iterator[None]:
    """Send one event after the other, until the block ends."""
    stopped = Event()

    def send() -> None:
        while not stopped.wait(0.05):
            sent.append(f"no {len(sent)}")
            place(using, sent[-1:])
        connections[using].close()

    thread = Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _running(using: str) -> bool:
    return deliveries(using).filter(receiver=inside.name, state=State.RUNNING).exists()
