"""Which deliveries go together, and what their message is; how the relay publishes it, marks it, and gives it back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError

from django_celery_signals import PublishError, Relay
from django_celery_signals.durable import pace as pace_module
from django_celery_signals.durable import packing
from django_celery_signals.durable.bulk import Bulk
from django_celery_signals.durable.deliveries import DeliveryQuerySet, State, deliveries
from django_celery_signals.durable.pace import RATE, Pace, most_together
from django_celery_signals.durable.packing import message_of_pack, packed
from django_celery_signals.signals import event_sent
from django_celery_signals.wire import ARGUMENT, summary_of
from tests.delivering import burnt, place, states
from tests.drain import Published, take
from tests.holding import bell, send, trace
from tests.making import Tasks
from tests.receiving import Receiving, hearing, ignore

pytestmark = pytest.mark.django_db(transaction=True, databases=["default"])


def lengths(app: Celery) -> list[int]:
    """Return how many deliveries each message would have."""
    return [len(pack) for pack in packed(app, deliveries("default").order_by("pk"), "default")]


def batch(events: list[Any]) -> None:
    """Take a list and do nothing."""


# Which go together ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 9, 19])
def test_few_go_alone(celery_app: Celery, tasks: Tasks, count: int) -> None:
    """Where few wait, each has a message of its own, and may start at once, in as many workers."""
    place("default", tasks.shared(chunk_size=50), count)

    assert [1] * count == lengths(celery_app)


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (20, 50, [2] * 10),
        (45, 50, [4] * 11 + [1]),
        (500, 50, [50] * 10),
        (600, 50, [50] * 12),
        (500, 7, [7] * 71 + [3]),
        (30, 1, [1] * 30),
        (30, None, [1] * 30),
    ],
)
def test_many_go_together(celery_app: Celery, tasks: Tasks, count: int, size: int | None, expected: list[int]) -> None:
    """Where many wait, a message has a tenth of them, and no more than the receiver says."""
    place("default", tasks.shared(chunk_size=size), count)

    assert expected == lengths(celery_app)


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(1, None, [1]), (3, None, [3]), (130, None, [100, 30]), (7, 3, [3, 3, 1]), (501, 500, [500, 1]), (3, 1, [1] * 3)],
)
def test_batches(celery_app: Celery, tasks: Tasks, count: int, size: int | None, expected: list[int]) -> None:
    """A batch is as large as it may be, also where few wait: its receiver asks for many at a time."""
    place("default", tasks.shared(batch, batch=True, chunk_size=size), count)

    assert expected == lengths(celery_app)


def test_in_their_order(celery_app: Celery, tasks: Tasks) -> None:
    """Those that go together are neighbours, the oldest first, and none is left out or twice in it."""
    place("default", tasks.shared(chunk_size=50), 45)
    ids = list(deliveries("default").order_by("pk").values_list("pk", flat=True))

    packs = packed(celery_app, deliveries("default").order_by("pk"), "default")
    assert ids == [row.pk for pack in packs for row in pack]


@pytest.mark.parametrize("column", ["attempts", "crashes", "reruns"])
def test_what_was_tried_before_goes_alone(celery_app: Celery, tasks: Tasks, column: str) -> None:
    """What has failed, or run with others in vain, runs by itself; the others of its receiver do not."""
    task = tasks.shared(batch, batch=True)
    place("default", task, 3)
    place("default", task, 2, **{column: 1})

    packs = packed(celery_app, deliveries("default").order_by("pk"), "default")
    assert [0, 1, 1] == sorted(getattr(pack[0], column) for pack in packs)
    assert [1, 1, 3] == sorted(map(len, packs))


def test_what_takes_turns_goes_alone(celery_app: Celery, tasks: Tasks) -> None:
    """What has a lane, perhaps from before the task was changed, is published when it has its turn."""
    task = tasks.shared(batch, batch=True)
    for lane in "ab":
        place("default", task, lane=lane)

    assert [1, 1] == lengths(celery_app)


@pytest.mark.parametrize("option", ["queue", "priority"])
def test_what_goes_elsewhere(celery_app: Celery, tasks: Tasks, option: str) -> None:
    """What has a queue or a priority of its own goes with its like only."""
    task, values = tasks.shared(batch, batch=True), {"queue": ["quick", "slow"], "priority": [0, 3]}[option]
    place("default", task)
    for value in [*values, *values]:
        place("default", task, options={option: value})

    packs = packed(celery_app, deliveries("default").order_by("pk"), "default")
    assert [[None], values[:1] * 2, values[1:] * 2] == [[row.options.get(option) for row in pack] for pack in packs]
    messages = [message_of_pack(celery_app, pack, "default") for pack in packs]
    assert [None, *values] == [message.options.get(option) for message in messages]


def test_receivers_are_kept_apart(celery_app: Celery, tasks: Tasks) -> None:
    """No message has deliveries of two receivers."""
    together, other = (tasks.shared(batch, batch=True) for _ in range(2))
    for task in (together, other, together, other):
        place("default", task)

    packs = packed(celery_app, deliveries("default").order_by("pk"), "default")
    assert [[together.name] * 2, [other.name] * 2] == [[row.receiver for row in pack] for pack in packs]


def test_ordinary_task(celery_app: Celery, tasks: Tasks) -> None:
    """A receiver that is an ordinary task by now gets each delivery by itself, and says so by its own error."""
    task = celery_app.task(name=tasks.name())(ignore)
    place("default", task, 30)

    assert (1, [1] * 30) == (most_together(celery_app, task.name), lengths(celery_app))


def test_former_name(celery_app: Celery, tasks: Tasks) -> None:
    """Deliveries under a name that the task had before go together, under that name."""
    task = tasks.shared(batch, batch=True, former_names=["tests.formerly"])
    assert task.name in celery_app.tasks
    place("default", "tests.formerly", 2)
    place("default", task, 2)
    try:
        packs = packed(celery_app, deliveries("default").order_by("pk"), "default")
        messages = [message_of_pack(celery_app, pack, "default") for pack in packs]
    finally:
        celery_app._tasks.pop("tests.formerly")

    assert ["tests.formerly", task.name] == [message.body["receiver"] for message in messages]
    assert [2, 2] == [len(message.parts) for message in messages]


# The message ---------------------------------------------------------------------------------------------------------


def packed_message(app: Celery, task: Any, count: int = 3, **columns: Any) -> Any:
    place("default", task, count, **columns)
    [pack] = packed(app, deliveries("default").order_by("pk"), "default")
    return message_of_pack(app, pack, "default")


def test_message(celery_app: Celery, tasks: Tasks) -> None:
    """It has the id and the token of each, and says how many they are and what the first one is about."""
    task = tasks.shared(batch, batch=True)
    message = packed_message(celery_app, task, signal="shop:bell")
    rows = list(deliveries("default").order_by("pk"))

    assert (celery_app, task.name, "shop:bell") == (message.app, message.receiver, message.signal_name)
    assert "3 deliveries, the first of bell" == message.summary
    assert {"alias": "default", "receiver": task.name, "rows": [(row.pk, row.token) for row in rows]} == message.body
    assert [(row.event_id, "shop:bell") for row in rows] == message.parts
    assert {"expires": None, "task_id": message.event_id, "retries": 0} == message.options
    assert message.event_id not in {row.event_id for row in rows}
    assert "3 deliveries of 'default'" == summary_of(message.body)


def test_message_of_one(celery_app: Celery, tasks: Tasks) -> None:
    """A delivery that goes alone has the message that it has without others: its own id, its own reference."""
    task = tasks.shared(chunk_size=50)
    message = packed_message(celery_app, task, 1)
    row = deliveries("default").get()

    assert {"alias": "default", "id": row.pk, "token": row.token, "receiver": task.name} == message.body
    assert (row.event_id, row.event_id, ()) == (message.event_id, message.options["task_id"], message.parts)


@pytest.mark.parametrize(
    ("own", "project", "limits"),
    [
        ({}, {}, {}),
        ({"time_limit": 30}, {}, {"time_limit": 90}),
        ({"soft_time_limit": 20}, {}, {"soft_time_limit": 60}),
        ({}, {"task_time_limit": 40, "task_soft_time_limit": 10}, {"time_limit": 120, "soft_time_limit": 30}),
        (
            {"time_limit": 30},
            {"task_time_limit": 40, "task_soft_time_limit": 10},
            {"time_limit": 90, "soft_time_limit": 30},
        ),
        ({"time_limit": 0.5}, {}, {"time_limit": 1.5}),
    ],
)
def test_time_limits(
    celery_app: Celery,
    tasks: Tasks,
    own: dict[str, Any],
    project: dict[str, Any],
    limits: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time limits of a run, the task's own or else the project's, are multiplied by how many runs there are."""
    monkeypatch.setattr(packing, "SHARES", 1)
    celery_app.conf.update(project)
    message = packed_message(celery_app, tasks.shared(chunk_size=50, **own))

    assert limits == limits_of(message)


def limits_of(message: Any) -> dict[str, Any]:
    return {name: message.options[name] for name in ("time_limit", "soft_time_limit") if name in message.options}


def test_time_limits_of_a_call(celery_app: Celery, tasks: Tasks) -> None:
    """A batch is one call, and has the time of one."""
    assert {} == limits_of(packed_message(celery_app, tasks.shared(batch, batch=True, time_limit=30)))


@pytest.mark.parametrize(
    ("weights", "expected"), [((5, 4, 3), [1, 2]), ((1, 20, 1), [1, 1, 1]), ((3, 3, 2), [3]), ((9, 9), [1, 1])]
)
def test_no_more_than_memory_is_for(
    celery_app: Celery, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, weights: tuple[int, ...], expected: list[int]
) -> None:
    """A message refers to so many bytes of payloads, at most, or to one delivery."""
    monkeypatch.setattr(packing, "HEAVIEST", 8)
    task = tasks.shared(batch, batch=True)
    for weight in weights:
        place("default", task, payload="x" * weight)

    assert expected == lengths(celery_app)


def test_time_limits_arrive(celery_app: Celery, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the message's header, where the worker looks for them; one alone has the task's own."""
    monkeypatch.setattr(packing, "SHARES", 1)
    task = tasks.shared(chunk_size=50, time_limit=30, soft_time_limit=20)
    place("default", task, 3)
    place("default", task, attempts=1)
    Relay(app=celery_app, databases=["default"]).once()

    assert [[30, 20], [90, 60]] == sorted(list(message.headers["timelimit"]) for message in take(celery_app))


# Published -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def relay(celery_app: Celery) -> Relay:
    return Relay(app=celery_app, databases=["default"])


def work(app: Celery, message: Published) -> str:
    return trace(app, message.task, message.headers["id"], message.kwargs, message.headers["retries"]).state


def test_backlog(relay: Relay, celery_app: Celery, receiving: Receiving) -> None:
    """A backlog goes out in few messages, each row is marked and told, and a worker runs each once."""
    numbers: list[int] = []
    task = receiving(bell, lambda number: numbers.append(number), guarantee="durable", chunk_size=50)
    for number in range(45):
        send("default", number=number)
    ids = set(deliveries("default").values_list("event_id", flat=True))

    with hearing(event_sent) as heard:
        assert 45 == relay.once()

    assert {"sent": 45} == states("default")
    assert {(1, None, celery_app.conf.task_default_queue)} == set(
        deliveries("default").values_list("sends", "claim", "queue")
    )
    assert ids == {told["event_id"] for told in heard}
    assert (45, {(task.name, "tests.holding:bell")}) == (
        len(heard),
        {(told["receiver"], told["signal_name"]) for told in heard},
    )
    messages = take(celery_app)
    assert [1] + [4] * 11 == sorted(len(message.kwargs[ARGUMENT].get("rows", [0])) for message in messages)
    words = {message.headers["argsrepr"] for message in messages if "rows" in message.kwargs[ARGUMENT]}
    assert {"4 deliveries, the first of bell"} == words
    assert {"SUCCESS"} == {work(celery_app, message) for message in messages}
    assert (list(range(45)), {}) == (sorted(numbers), states("default"))


def test_refused_message(
    relay: Relay, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the broker does not take is given back as a whole, uncharged, and goes together again."""
    task = tasks.shared(batch, batch=True, chunk_size=3)
    place("default", task, 6)
    taken: list[list[int]] = []

    def publish(self: Any, messages: list[Any], meanwhile: Any) -> list[Exception | None]:
        taken.append([len(message.parts) for message in messages])
        return [None, PublishError("full")]

    monkeypatch.setattr(Bulk, "publish", publish)
    assert 6 == relay._batch("default")

    assert ([[3, 3]], {"sent": 3, "ready": 3}) == (taken, states("default"))
    assert {(0, 0, 0)} == burnt("default")
    assert not deliveries("default").exclude(claim=None).exists()
    assert [f"3 deliveries for {task.name} could not be published: PublishError: full"] == [
        record.getMessage() for record in caplog.records
    ]
    assert [3] == [len(pack) for pack in packed(relay.app, deliveries("default").filter(state=State.READY), "default")]


def test_outage(relay: Relay, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage all are due again, and the relay waits."""
    place("default", tasks.shared(batch, batch=True, chunk_size=3), 6)
    monkeypatch.setattr(Bulk, "publish", lambda self, messages, meanwhile: [BrokerError("away")] * len(messages))

    assert 0 == relay.once()
    assert ({"ready": 6}, {(0, 0, 0)}, True) == (states("default"), burnt("default"), relay._broker.pause > 0)


def test_what_nobody_knows(relay: Relay, celery_app: Celery, tasks: Tasks) -> None:
    """What no task of this process takes waits, beside what goes together."""
    place("default", tasks.shared(batch, batch=True), 3)
    place("default", "tests.nobody", 2)

    assert 3 == relay.once()
    assert {"sent": 3, "ready": 2} == states("default")
    assert 1 == len(take(celery_app))


def test_swept_and_published_again(relay: Relay, celery_app: Celery, tasks: Tasks) -> None:
    """What was published in vain goes together again: it has not been tried."""
    place("default", tasks.shared(batch, batch=True), 3)
    relay.once()
    take(celery_app)
    deliveries("default").update(sent_at=None)
    DeliveryQuerySet._again(deliveries("default"), deliveries("default").filter(state=State.SENT), 10)

    assert 3 == relay.once()
    [message] = take(celery_app)
    assert 3 == len(message.kwargs[ARGUMENT]["rows"])


def test_eager(relay: Relay, celery_app: Celery, receiving: Receiving) -> None:
    """Where tasks run at once, those that go together do so in the relay; what fails is due again."""
    runs: list[int] = []

    def act(number: int) -> None:
        runs.append(number)
        if number == 7:
            raise ValueError

    receiving(bell, act, guarantee="durable", chunk_size=50)
    for number in range(20):
        send("default", number=number)
    celery_app.conf.task_always_eager = True

    assert 20 == relay.once()
    assert (list(range(20)), {"ready": 1}, {(1, 0, 0)}) == (sorted(runs), states("default"), burnt("default"))


# The pace of sendings ------------------------------------------------------------------------------------------------


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes only when told to; a new count."""
    now = [100.0]
    monkeypatch.setattr(pace_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_pace(now: list[float]) -> None:
    """Of each receiver so many sendings a second are published at once; what comes on top is too quick."""
    pace = Pace()

    assert [False] * RATE + [True] * 5 == [pace.is_quick("shop.index") for _ in range(RATE + 5)]
    assert not pace.is_quick("shop.other")
    now[0] += 1
    assert [False] * RATE + [True] == [pace.is_quick("shop.index") for _ in range(RATE + 1)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was counted, by a new count in one second."""
    counted: list[str] = []
    pace = Pace()

    def is_quick(receiver: str) -> bool:
        counted.append(receiver)
        return pace.is_quick(receiver)

    monkeypatch.setattr("django_celery_signals.durable.outbox.pace", type("", (), {"is_quick": staticmethod(is_quick)}))
    monkeypatch.setattr(
        "django_celery_signals.durable.pace.time", type("", (), {"monotonic": staticmethod(lambda: 1.0)})
    )
    return counted


@pytest.mark.parametrize("options", [{"chunk_size": 50}, {"batch": True}], ids=str)
def test_quick_sender(celery_app: Celery, receiving: Receiving, counted: list[str], options: dict[str, Any]) -> None:
    """What a process sends too quickly is left to the relay, which puts it together; the rest it publishes itself."""
    receiving(bell, batch if "batch" in options else ignore, guarantee="durable", **options)
    for _ in range(RATE + 20):
        bell.send(sender=None, using="default")

    assert {"sent": RATE, "ready": 20} == states("default")
    assert (RATE, RATE + 20) == (len(take(celery_app)), len(counted))
    assert 20 == Relay(app=celery_app, databases=["default"]).once()
    assert {"sent": RATE + 20} == states("default")


@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}], ids=str)
def test_receiver_that_is_not_put_together(
    celery_app: Celery, receiving: Receiving, counted: list[str], options: dict[str, Any]
) -> None:
    """Without ``chunk_size`` nothing is too quick."""
    receiving(bell, guarantee="durable", **options)
    for _ in range(RATE + 20):
        bell.send(sender=None, using="default")

    assert ({"sent": RATE + 20}, []) == (states("default"), counted)


def test_quick_sender_without_a_worker(celery_app: Celery, receiving: Receiving, counted: list[str]) -> None:
    """Where tasks run at once, each does, however many there are."""
    celery_app.conf.task_always_eager = True
    numbers: list[int] = []
    receiving(bell, lambda number: numbers.append(number), guarantee="durable", chunk_size=50)
    for number in range(RATE + 5):
        bell.send(sender=None, using="default", number=number)

    assert (list(range(RATE + 5)), {}, []) == (numbers, states("default"), counted)
