"""Upkeep: dead runs begin again, unknown receivers wait, those that kill are given up, and the table stays small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from django.db import OperationalError
from django.dispatch import Signal
from django.test import override_settings

from django_celery_signals import Relay
from django_celery_signals.durable import deliveries as statements
from django_celery_signals.durable import upkeep as module
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.upkeep import Upkeep
from django_celery_signals.signals import delivery_failed
from tests.brokers import Broker
from tests.delivering import moment, place, seconds_left, states
from tests.drain import take
from tests.making import Tasks
from tests.receiving import Receiving, hearing
from tests.shop.models import Tag

pytestmark = pytest.mark.django_db

bell = Signal()

OVERDUE = {"state": State.RUNNING, "due_at": moment(-1)}


@pytest.fixture(autouse=True)
def queue(broker: Broker) -> str:
    """A queue of the test's own."""
    return broker.queue


@pytest.fixture
def upkeep(celery_app: Celery) -> Upkeep:
    return Upkeep(celery_app, "default")


@pytest.fixture
def sent(receiving: Receiving) -> Callable[..., Any]:
    """Writes a delivery as a sending does, changes its columns, and returns its receiver."""

    def sent(**columns: Any) -> Any:
        task = receiving(bell, guarantee="durable", countdown=60)
        bell.send(sender=None, number=7)
        deliveries("default").filter(receiver=task.name).update(**{"due_at": moment(-1), **columns})
        return task

    return sent


# When ----------------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Time as the test tells it."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_each_has_its_time(celery_app: Celery, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is done now and then, and at once again where there is more of it."""
    monkeypatch.setattr(module, "further", {})
    upkeep, done, more = Upkeep(celery_app, "default"), [], iter([True])

    def act(name: str) -> Callable[[], bool]:
        return lambda: done.append(name) or next(more, False) if name == "expire" else done.append(name)

    names = zip(("expire", "probe", "strays", "purge", "pauses"), upkeep._every.values(), strict=True)
    upkeep._every = {act(name): seconds for name, seconds in names}
    upkeep._next = dict.fromkeys(upkeep._every, 0.0)
    seen = []
    for seconds in (0, 0, 0, 1.1, 1.1, 3, 5):
        clock.now += seconds
        upkeep.work()
        seen.append(" ".join(done))
        done.clear()

    everything, soon = "expire probe strays purge pauses", "expire pauses"
    assert [
        *(everything, "expire", "", soon, "expire probe pauses", "expire probe strays pauses", everything),
    ] == seen


def test_what_others_add(celery_app: Celery, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have added is done for the relay's database at its own times, and at once where there is more."""
    done, more = [], iter([True])
    monkeypatch.setattr(module, "further", {lambda using: done.append(using) or next(more, False): 15.0})
    upkeep, seen = Upkeep(celery_app, "default"), []
    for seconds in (0, 0, 0, 14, 1, 5):
        clock.now += seconds
        upkeep.work()
        seen.append(len(done))

    assert [1, 2, 2, 2, 3, 3] == seen
    assert {"default"} == set(done)


@override_settings(DJANGO_CELERY_SIGNALS={"LEASE": 30})
def test_careful(celery_app: Celery, tasks: Tasks, clock: Clock) -> None:
    """No run is ended before a whole lease of quiet: at the beginning, and after every error of the database."""
    upkeep = Upkeep(celery_app, "default")
    place("default", tasks.shared(), **OVERDUE)
    seen = []

    for seconds in (0, 29, 58, 60):
        clock.now = 1000.0 + seconds
        upkeep.work()
        seen.append(states("default"))
        if seconds == 29:
            upkeep.be_careful()

    assert [{"running": 1}, {"running": 1}, {"running": 1}, {"ready": 1}] == seen


def test_careful_where_there_is_one_lock(
    celery_app: Celery, tasks: Tasks, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SQLite's lock was held for long, living workers could not renew their leases: no run is ended then."""
    upkeep = Upkeep(celery_app, "default")
    place("default", tasks.shared(), **OVERDUE)
    monkeypatch.setattr(module, "LONG_LOCK", -1)
    upkeep.expire()
    monkeypatch.setattr(module, "LONG_LOCK", 1)
    upkeep.work()
    assert {"running": 1} == states("default")

    clock.now += 61
    upkeep.work()
    assert {"ready": 1} == states("default")


@pytest.mark.parametrize(("seconds", "state"), [(8, "ready"), (9, "running")])
def test_careful_where_the_answer_takes_long(
    celery_app: Celery, tasks: Tasks, clock: Clock, seconds: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the database lets a third of a lease pass before it answers, no run is ended either."""
    upkeep, due = Upkeep(celery_app, "default"), statements.DeliveryQuerySet.due
    place("default", tasks.shared(), **OVERDUE)

    def due_late(self: Any, *args: Any) -> Any:
        clock.now += seconds
        return due(self, *args)

    monkeypatch.setattr(statements.DeliveryQuerySet, "due", due_late)
    monkeypatch.setattr(module, "connections", {"default": SimpleNamespace(vendor="postgresql")})
    upkeep.expire()

    assert {state: 1} == states("default")


def test_errors_are_the_relays(upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the database is raised, and what has failed waits for its time like the rest."""

    def purge(*_: Any) -> int:
        raise OperationalError("away")

    monkeypatch.setattr(statements.DeliveryQuerySet, "purge", purge)
    with pytest.raises(OperationalError):
        upkeep.work()

    upkeep.work()


def test_errors_of_its_own(upkeep: Upkeep, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A row that cannot be looked after keeps nothing else from being done."""

    def give_up(*_: Any, **__: Any) -> None:
        raise KeyError("of ours")

    monkeypatch.setattr(module, "give_up", give_up)
    place("default", tasks.shared(), **OVERDUE, crashes=4)
    place("default", tasks.shared(), state=State.DONE, due_at=moment(-1))
    upkeep._next = dict.fromkeys(upkeep._next, 0.0)
    upkeep.work()

    assert {"running": 1} == states("default")
    assert "The relay could not look after all of 'default'." in caplog.text


# Dead runs -----------------------------------------------------------------------------------------------------------


def test_dead_runs_begin_again(upkeep: Upkeep, tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
    """A run whose lease has ended counts as a crash and begins again, after a pause that doubles; others go on."""
    for crashes in range(4):
        place("default", tasks.shared(), **OVERDUE, crashes=crashes, sends=3, attempts=2)
    place("default", tasks.shared(), state=State.RUNNING, due_at=moment(60))

    assert upkeep.expire() is False

    rows = deliveries("default").filter(state=State.READY).order_by("crashes")
    assert [(crashes, 2, 0) for crashes in (1, 2, 3, 4)] == list(rows.values_list("crashes", "attempts", "sends"))
    assert [{1}, {2}, {4}, {8}] == [seconds_left("default", pk=row.pk) for row in rows]
    assert {"ready": 4, "running": 1} == states("default")
    assert "4 deliveries in 'default' will run again: their workers ended without a word." in caplog.text


def test_many_dead_runs(upkeep: Upkeep, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many dead runs some begin again at a time."""
    monkeypatch.setattr(module, "BATCH", 3)
    place("default", tasks.shared(), 2, **OVERDUE)
    place("default", tasks.shared(), 2, **OVERDUE, crashes=4)

    assert upkeep.expire() is True
    assert upkeep.expire() is False
    assert {"ready": 2, "failed": 2} == states("default")


def test_receiver_that_kills_its_workers(upkeep: Upkeep, sent: Callable[..., Any]) -> None:
    """After five runs of which the worker never returned a delivery is failed; the receiver's hook is told (H47)."""
    task = sent(**OVERDUE, crashes=4, token=5)
    told: list[Any] = []

    @task.on_failed
    def note(event: Any, error: Exception) -> None:
        told.append((event.signal_name, type(error).__name__))
        Tag.objects.create(name="noted")

    with hearing(delivery_failed) as heard:
        upkeep.expire()

    row = deliveries("default").get()
    assert (State.FAILED, 5, "django_celery_signals.exceptions.WorkerLost") == (row.state, row.crashes, row.error_type)
    assert "exhausts the memory" in row.error_message
    assert [(f"{__name__}:bell", "WorkerLost")] == told
    assert ["noted"] == list(Tag.objects.values_list("name", flat=True))
    assert [(task.name, row.pk)] == [(facts["receiver"], facts["delivery_id"]) for facts in heard]
    assert row.finished_at is not None


def test_run_that_returns_in_time(upkeep: Upkeep, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that renews its lease just before it is given up stays what it is."""
    place("default", tasks.shared(), **OVERDUE, crashes=4)
    expire = statements.DeliveryQuerySet.expire

    def expire_and_renew(self: Any, limit: int) -> Any:
        found = expire(self, limit)
        deliveries("default").update(due_at=moment(60))
        return found

    monkeypatch.setattr(statements.DeliveryQuerySet, "expire", expire_and_renew)
    with hearing(delivery_failed) as heard:
        upkeep.expire()

    assert {"running": 1} == states("default")
    assert [] == heard


@pytest.mark.parametrize(("options", "goes_on"), [({}, False), ({"on_failure": "park"}, True)], ids=str)
def test_key_of_what_is_given_up(
    upkeep: Upkeep, tasks: Tasks, options: dict[str, Any], goes_on: bool, celery_app: Celery
) -> None:
    """What is given up blocks its key; the next goes on where the receiver says that failures are parked."""
    task = tasks.shared(ordered=True, **options)
    place("default", task, **OVERDUE, crashes=4, lane="a", slot="a")
    place("default", task, 2, lane="a", due_at=None)
    place("default", task, **OVERDUE, crashes=4)

    upkeep.expire()

    failed, second, third, plain = deliveries("default").order_by("pk")
    assert [State.FAILED, State.READY, State.READY, State.FAILED] == [
        row.state for row in (failed, second, third, plain)
    ]
    assert ([None, "a", None] if goes_on else ["a", None, None]) == [row.slot for row in (failed, second, third)]
    assert ({0} if goes_on else set()) == seconds_left("default", pk=second.pk, due_at__isnull=False)
    assert int(not goes_on) == len(deliveries("default").blocked())


def test_key_of_an_unknown_receiver(upkeep: Upkeep) -> None:
    """Nobody knows whether the key of an unknown receiver may go on: it waits for somebody to decide."""
    place("default", "tests.nobody", reruns=60, lane="a", slot="a")
    place("default", "tests.nobody", lane="a", due_at=None)
    claimed = deliveries("default").claim(10, 60)

    upkeep.unknown(claimed.claim, claimed.rows)

    assert {"failed": 1, "ready": 1} == states("default")
    assert [1] == [row.behind for row in deliveries("default").blocked()]


# Left behind ---------------------------------------------------------------------------------------------------------


def test_strays(upkeep: Upkeep, tasks: Tasks) -> None:
    """What a process that died has left waiting has its turn, the oldest of each key; nothing else is touched."""
    for lane in ("a", "b", "a"):
        place("default", tasks.shared(), lane=lane, due_at=None)
    place("default", tasks.shared(), lane="c", slot="c", state=State.RUNNING, due_at=moment(60))
    place("default", tasks.shared(), lane="c", due_at=None)
    place("default", tasks.shared(), due_at=None, state=State.SENT)

    assert upkeep.lead_strays() is False

    assert ["a", "b", None, "c", None, None] == [row.slot for row in deliveries("default").order_by("pk")]
    assert {0} == seconds_left("default", slot__in="ab")
    assert 2 == deliveries("default").filter(due_at__lte=moment(1), state=State.READY).count()


def test_strays_among_many(upkeep: Upkeep, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look lasts a bounded time, the next goes on from there, and begins anew at the end."""
    monkeypatch.setattr(module, "LANES", 2)
    monkeypatch.setattr(module, "LOOK", -1)
    for lane in "abcdefg":
        place("default", tasks.shared(), lane=lane, due_at=None)
    seen = []
    for _ in range(5):
        upkeep.lead_strays()
        seen.append("".join(deliveries("default").exclude(slot=None).order_by("pk").values_list("slot", flat=True)))
    deliveries("default").filter(lane="a").update(slot=None, due_at=None)
    for _ in range(4):
        upkeep.lead_strays()

    assert ["ab", "abcd", "abcdef", "abcdefg", "abcdefg"] == seen
    deliveries("default").update(slot=None, due_at=None)
    monkeypatch.setattr(module, "LOOK", 60)
    for _ in range(2):  # to the end, and from the start
        upkeep.lead_strays()
    assert 7 == deliveries("default").exclude(slot=None).count()


# Unknown receivers ---------------------------------------------------------------------------------------------------


def test_unknown_receiver_waits(
    celery_app: Celery, upkeep: Upkeep, sent: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that nobody knows waits an hour, uncharged; then it fails, with the hook of its new name (H32)."""
    task = sent()
    told: list[Any] = []
    task.on_failed(lambda event, error: told.append((event.receiver, type(error).__name__)))
    celery_app._tasks.pop(task.name)
    relay = Relay(app=celery_app, databases=["default"])

    for minute in range(60):
        assert 0 == relay.once()
        row = deliveries("default").get()
        assert (State.READY, minute + 1, 0, 0) == (row.state, row.reruns, row.attempts, row.crashes)
        assert {60} == seconds_left("default")
        deliveries("default").update(due_at=moment(-1))
    assert f"No task {task.name!r} is known here; 1 delivery must wait for one." in caplog.text
    assert 0 == relay.once()

    row = deliveries("default").get()
    assert (State.FAILED, "django_celery_signals.exceptions.UnknownReceiver") == (row.state, row.error_type)
    assert f"former_names=[{task.name!r}]" in row.error_message
    assert [(task.name, "UnknownReceiver")] == told
    assert [] == take(celery_app)


def test_receiver_that_comes_with_a_deploy(celery_app: Celery, sent: Callable[..., Any]) -> None:
    """A receiver that is known at last gets what has waited for it."""
    task = sent()
    known = celery_app._tasks.pop(task.name)
    relay = Relay(app=celery_app, databases=["default"])
    relay.once()
    celery_app._tasks[task.name] = known
    deliveries("default").update(due_at=moment(-1))

    assert 1 == relay.once()
    assert [task.name] == [message.task for message in take(celery_app)]


@pytest.mark.parametrize("payload", [None, "damaged"])
def test_event_that_cannot_be_read(upkeep: Upkeep, sent: Callable[..., Any], payload: str | None) -> None:
    """A delivery that is given up although its event cannot be read tells its hook so."""
    task = sent(**OVERDUE, crashes=4, payload=payload)
    told: list[Any] = []
    task.on_failed(lambda event: told.append(event))

    upkeep.expire()

    assert [None] == told


def test_unknown_receiver_in_other_hands(upkeep: Upkeep, tasks: Tasks) -> None:
    """A relay that comes back late gives nothing up that another one has claimed meanwhile."""
    place("default", "tests.nobody", 2, reruns=60)
    place("default", "tests.nobody", 2)
    claimed = deliveries("default").claim(10, 60)
    deliveries("default").update(claim=claimed.claim + 1)

    upkeep.unknown(claimed.claim, claimed.rows)

    assert {"ready": 4} == states("default")
    assert {claimed.claim + 1} == set(deliveries("default").values_list("claim", flat=True))
    assert {0, 60} == set(deliveries("default").values_list("reruns", flat=True))


def test_delivery_that_is_gone(celery_app: Celery, upkeep: Upkeep, tasks: Tasks) -> None:
    """A delivery that was discarded while it was to be given up is no error."""
    place("default", "tests.nobody", reruns=60)
    claimed = deliveries("default").claim(10, 60)
    deliveries("default").erase()

    upkeep.unknown(claimed.claim, claimed.rows)

    assert {} == states("default")


# The table -----------------------------------------------------------------------------------------------------------


def test_purge(upkeep: Upkeep, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept for long enough goes in small steps: what is done wholly, of what has failed all but its cause."""
    monkeypatch.setattr(module, "BATCH", 4)
    text = {"error_message": "secret", "traceback": "secret", "error_type": "Boom", "fingerprint": "Boom in f"}
    place("default", tasks.shared(), 10, state=State.DONE, due_at=moment(-1))
    place("default", tasks.shared(), 3, state=State.DONE, due_at=moment(60))
    place("default", tasks.shared(), 5, state=State.FAILED, due_at=moment(-1), **text)
    place("default", tasks.shared(), 2, state=State.FAILED, due_at=moment(60), **text)

    steps = []
    while upkeep.purge():
        steps.append(states("default"))

    assert [{"done": 9, "failed": 7}, {"done": 5, "failed": 7}, {"done": 3, "failed": 7}] == steps
    kept = deliveries("default").filter(state=State.FAILED).values_list("payload", "error_message", "traceback")
    assert [(None, None, None)] * 5 + [("{}", "secret", "secret")] * 2 == list(kept.order_by("pk"))
    assert {("Boom", "Boom in f")} == set(
        deliveries("default").filter(state=State.FAILED).values_list("error_type", "fingerprint")
    )
