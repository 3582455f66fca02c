"""Long or lost: what was sent before a probe that has arrived is lost, and a queue that is only long is left alone."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from django.db.models import F, QuerySet
from kombu.exceptions import OperationalError

from django_celery_signals.durable import probe as module
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.probe import TASK, Probes, arrive, probes
from tests.brokers import Broker
from tests.delivering import moment, place, place_sent, states
from tests.drain import Published, run, take
from tests.making import Tasks
from tests.project.celery import configure

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def queue(broker: Broker) -> str:
    """A queue of the test's own."""
    return broker.queue


@pytest.fixture
def look(celery_app: Celery) -> Probes:
    return Probes(celery_app, "default")


def pass_on(seconds: float) -> None:
    """Let time pass for the probes, as the table sees it."""
    names = ("probed_at", "seen", "seen_at", "swept")
    probes("default").update(**{name: F(name) - timedelta(seconds=seconds) for name in names})
    deliveries("default").update(sent_at=F("sent_at") - timedelta(seconds=seconds))


def arrived(app: Celery, *queues: str) -> list[Published]:
    """Take the messages out of queues; there is nothing but probes."""
    found = [message for name in queues for message in take(app, name)]
    assert {TASK} >= {message.task for message in found}
    return found


def come_through(app: Celery, look: Probes, queue: str) -> None:
    """Let a probe be sent, unless one was, and reach a worker, and some time pass."""
    look.work()
    [message] = arrived(app, queue)
    assert "SUCCESS" == run(app, message).state
    pass_on(6)


# Probing -------------------------------------------------------------------------------------------------------------


def test_one_probe_for_each_queue(celery_app: Celery, tasks: Tasks) -> None:
    """Of any number of relays one probes a queue in which deliveries have waited, and then nobody for ten seconds."""
    relays = [Probes(celery_app, "default") for _ in range(3)]
    for name in ("one", "two"):
        place_sent("default", tasks.shared(), name, 5)
    place_sent("default", tasks.shared(), "young", ago=5)
    place_sent("default", tasks.shared(), "", 2)
    counts = []

    for seconds in (0, 0, 9, 2, 9, 2):
        probes("default").update(probed_at=F("probed_at") - timedelta(seconds=seconds))
        for each in relays:
            each.work()
        counts.append([len(arrived(celery_app, name)) for name in ("one", "two", "young")])

    assert [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 0]] == counts
    assert {"sent": 13} == states("default")


def test_nothing_is_sent_where_nothing_waits(celery_app: Celery, look: Probes, tasks: Tasks, queue: str) -> None:
    """Without deliveries in it, a queue is not probed."""
    place("default", tasks.shared(), state=State.RUNNING, queue=queue, sent_at=moment(-60))
    look.work()

    assert [] == arrived(celery_app, queue)
    assert not probes("default").exists()


def test_two_relays_at_the_same_time(
    celery_app: Celery, look: Probes, tasks: Tasks, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two relays find a queue that was never probed, one probes it."""
    place_sent("default", tasks.shared(), queue)
    look.work()
    monkeypatch.setattr(QuerySet, "exists", lambda self: False)
    look.work()

    assert 1 == len(arrived(celery_app, queue))


@pytest.mark.parametrize(
    "settings",
    [{"task_routes": {"*": {"queue": "elsewhere"}}}, {"task_create_missing_queues": False}],
    ids=["route", "missing queue"],
)
def test_probe_goes_straight_into_the_queue(
    celery_app: Celery, look: Probes, tasks: Tasks, settings: dict[str, Any]
) -> None:
    """No route leads a probe away, and nothing is declared for it: the queue may be one that is declared elsewhere."""
    configure(settings)
    place_sent("default", tasks.shared(), "theirs")

    look.work()

    assert 1 == len(arrived(celery_app, "theirs"))


@pytest.mark.parametrize(("kind", "priority"), [("amqp", 0), ("redis", 9)])
def test_probe_has_the_lowest_priority(
    celery_app: Celery,
    look: Probes,
    tasks: Tasks,
    queue: str,
    kind: str,
    priority: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A probe overtakes nothing: its priority is the lowest, whichever end a broker counts from."""
    given: list[Any] = []

    @contextmanager
    def connection_for(app: Celery) -> Any:
        yield SimpleNamespace(transport=SimpleNamespace(driver_type=kind))

    monkeypatch.setattr(module, "connection_for", connection_for)
    monkeypatch.setattr(celery_app.amqp, "Producer", lambda *args, **options: None)
    monkeypatch.setattr(celery_app.tasks[TASK], "apply_async", lambda **options: given.append(options))
    place_sent("default", tasks.shared(), queue)
    look.work()

    assert [(priority, [], False)] == [(each["priority"], each["declare"], each["retry"]) for each in given]


@pytest.mark.parametrize(
    ("error", "tried"), [(OperationalError("away"), ["one"]), (TypeError("odd"), ["one", "two"])], ids=["outage", "own"]
)
def test_probe_that_cannot_be_sent(
    look: Probes,
    tasks: Tasks,
    error: Exception,
    tried: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the broker is away one queue is tried, not each; an error of one queue does not keep the others away."""

    def connection_for(app: Celery) -> Any:
        raise error

    monkeypatch.setattr(module, "connection_for", connection_for)
    for name in ("one", "two"):
        place_sent("default", tasks.shared(), name)

    assert look.work() is False

    assert [f"The queue {name!r} could not be probed: {error!r}" for name in tried] == [
        record.getMessage() for record in caplog.records
    ]


# Arriving ------------------------------------------------------------------------------------------------------------


def test_probe_that_arrives(celery_app: Celery, look: Probes, tasks: Tasks, queue: str) -> None:
    """A worker notes which probe has reached it, and when."""
    place_sent("default", tasks.shared(), queue)
    look.work()
    sent = probes("default").get()
    assert (None, None) == (sent.seen, sent.seen_at)

    [message] = arrived(celery_app, queue)
    run(celery_app, message)

    probe = probes("default").get()
    assert sent.probed_at == probe.seen <= probe.seen_at


def test_forged_probe(look: Probes, tasks: Tasks, queue: str) -> None:
    """A probe that does not know the token, or tells of another queue, is not believed."""
    place_sent("default", tasks.shared(), queue)
    look.work()
    probe = probes("default").get()

    arrive("default", queue, probe.token + 1, moment(0).isoformat())
    arrive("default", "other", probe.token, moment(0).isoformat())

    assert probes("default").get().seen is None


def test_probe_of_an_unknown_database(caplog: pytest.LogCaptureFixture) -> None:
    """A probe that names a database this worker does not have is an error in the log, and nothing more."""
    arrive("nowhere", "queue", 1, moment(0).isoformat())

    assert "the database 'nowhere', which this worker does not have" in caplog.text


def test_later_probes_do_not_postpone_the_sweep(
    celery_app: Celery, look: Probes, tasks: Tasks, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a probe waits to be acted on, those that arrive after it change nothing, however many steps it takes."""
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "EVERY", 1.0)
    place_sent("default", tasks.shared(), queue, 5)
    seen, more = set(), []

    for _ in range(5):  # one probe every two seconds
        more.append(look.work())
        for message in arrived(celery_app, queue):
            run(celery_app, message)
        seen.add(probes("default").get().token)
        pass_on(2)

    assert [False, False, False, True, True] == more
    assert {"ready": 4, "sent": 1} == states("default")
    assert look.work() is False
    assert {"ready": 5} == states("default")
    assert probes("default").get().swept is not None


# Sweeping ------------------------------------------------------------------------------------------------------------


def test_what_was_lost_is_sent_again(
    celery_app: Celery, look: Probes, tasks: Tasks, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was sent before a probe that has arrived, and is not opened, is due again; the rest stays as it is."""
    task = tasks.shared()
    place_sent("default", task, queue, 3)
    place_sent("default", task, "another", ago=8)
    place("default", task, state=State.RUNNING, queue=queue, sent_at=moment(-60))
    look.work()
    place_sent("default", task, queue, 2, ago=-1)  # after the probe
    [message] = arrived(celery_app, queue)
    run(celery_app, message)

    look.work()
    assert {"sent": 6, "running": 1} == states("default")
    pass_on(6)
    look.work()

    assert {"ready": 3, "sent": 3, "running": 1} == states("default")
    assert f"3 deliveries, lost in the queue {queue!r}, will be sent again." in caplog.text
    assert {(0, 0, 1)} == set(
        deliveries("default").filter(state=State.READY).values_list("attempts", "crashes", "sends")
    )


def test_nothing_was_lost(
    celery_app: Celery, look: Probes, tasks: Tasks, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A probe that arrives when all is opened is acted on, too, in silence."""
    place_sent("default", tasks.shared(), queue)
    look.work()
    deliveries("default").update(state=State.RUNNING)
    come_through(celery_app, look, queue)
    look.work()

    probe = probes("default").get()
    assert probe.seen == probe.swept
    assert {"running": 1} == states("default")
    assert [] == caplog.records


def test_a_sweep_happens_once(celery_app: Celery, look: Probes, tasks: Tasks, queue: str) -> None:
    """One probe is acted on once: what is sent after it waits for the next one."""
    place_sent("default", tasks.shared(), queue)
    come_through(celery_app, look, queue)
    look.work()
    place_sent("default", tasks.shared(), queue, ago=3600)
    look.work()

    assert {"ready": 1, "sent": 1} == states("default")


@pytest.mark.parametrize(("sends", "seconds"), [(1, 10), (2, 20), (5, 160), (9, 2560), (12, 2560)])
def test_repeated_deliveries_wait_longer(
    celery_app: Celery, look: Probes, tasks: Tasks, queue: str, sends: int, seconds: float
) -> None:
    """Each time a delivery was sent doubles the time for which it is left alone: a worker may hold its message."""
    place_sent("default", tasks.shared(), queue, ago=3600, sends=0)
    for ago in (seconds - 8, seconds + 2):  # six of them are still to pass
        place_sent("default", tasks.shared(), queue, ago=ago, sends=sends)

    come_through(celery_app, look, queue)
    look.work()

    assert {"ready": 2, "sent": 1} == states("default")
    left = deliveries("default").get(state=State.SENT).sent_at
    assert seconds > (moment(0) - left).total_seconds()


def test_where_no_probe_can_follow(look: Probes, tasks: Tasks) -> None:
    """What went to an exchange of which nobody knows the queue is sent again after a quarter of an hour, then later."""
    for sends, ago in ((0, 890), (0, 910), (1, 1790), (1, 1810), (3, 7190), (3, 7210)):
        place_sent("default", tasks.shared(), "", ago=ago, sends=sends)

    assert look.work() is False

    counts = Counter(deliveries("default").values_list("state", "sends"))
    assert {(state, sends): 1 for state in (State.READY, State.SENT) for sends in (0, 1, 3)} == counts


def test_much_where_no_probe_can_follow(look: Probes, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep goes in steps, and says when there is more."""
    monkeypatch.setattr(module, "BATCH", 2)
    place_sent("default", tasks.shared(), "", 3, ago=9000)

    assert [True, False] == [look.work(), look.work()]
    assert {"ready": 3} == states("default")
