"""The relay's loop: what it claims, marks and gives back, and that nothing ends it but ``stop()``."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from django.db import OperationalError, connections
from django.db.models.signals import post_init
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from kombu.exceptions import OperationalError as BrokerError

from django_celery_signals import PublishError, PublishTimeout, Relay
from django_celery_signals.durable import bulk
from django_celery_signals.durable import deliveries as statements
from django_celery_signals.durable import relay as module
from django_celery_signals.durable.bulk import Bulk
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import DeliveryQuerySet, State, deliveries
from django_celery_signals.durable.relay import Outage, Renewal, keeping
from tests.brokers import Broker
from tests.delivering import burnt, place, seconds_left, states
from tests.drain import take
from tests.making import Tasks
from tests.project.celery import configure
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture(autouse=True)
def queue(broker: Broker) -> str:
    """A queue of the test's own."""
    return broker.queue


@pytest.fixture
def relay(celery_app: Celery) -> Relay:
    return Relay(app=celery_app, databases=["default"])


def outcomes(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> None:
    """Let the broker do with each message as told."""
    monkeypatch.setattr(Bulk, "publish", lambda self, messages, meanwhile: list(errors[: len(messages)]))


# To begin with -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"idle": 0}, "idle=0"),
        ({"databases": ["default", "nowhere"]}, r"no database \['nowhere'\]; DATABASES has"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], words: str) -> None:
    """A number that cannot be, or a database that is not there, is refused with the reason."""
    with pytest.raises(ValueError, match=words):
        Relay(**options)


def test_no_app(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the project's Celery app a relay would publish to a broker that nobody has configured."""
    monkeypatch.setattr(module, "is_fallback", lambda app: True)

    with pytest.raises(ValueError, match=r"no Celery app of the project\. Import it where Django is loaded"):
        Relay()


def test_defaults(celery_app: Celery) -> None:
    """A relay publishes for the project's app, and from every database that keeps deliveries."""
    relay = Relay()

    assert celery_app is relay.app
    assert keeping() == relay.databases
    assert {"default", "other"} <= set(keeping())


class Elsewhere:
    """A router by which only one database keeps deliveries."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return db == "other" if app_label == "django_celery_signals" else None


@override_settings(DATABASE_ROUTERS=[Elsewhere()])
def test_databases_without_a_table() -> None:
    """A database for which a router allows no table of deliveries is left alone."""
    assert ["other"] == keeping()


def test_databases_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database on which deliveries are not kept is left alone."""
    monkeypatch.setattr(connections["default"], "vendor", "oracle")

    assert "default" not in keeping()


# A batch -------------------------------------------------------------------------------------------------------------


def test_publishes_what_is_due(celery_app: Celery, tasks: Tasks) -> None:
    """What is due is published, in the order in which it became so, batch by batch, in every database; no more."""
    task = tasks.shared()
    for alias in ("default", "other"):
        place(alias, task, 5)
        place(alias, task, due_at=None, state=State.SENT)
        place(alias, task, due_at=deliveries(alias).first().due_at.replace(year=3000))

    relay = Relay(app=celery_app, databases=["default", "other"], batch_size=2)
    assert 10 == relay.once()
    assert relay._bulk._connection is None

    assert 10 == len(take(celery_app))
    assert {"sent": 6, "ready": 1} == states("default") == states("other")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of claims; it passes only when told to."""
    now = [0.0]
    for one in (module, statements):
        monkeypatch.setattr(one, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_claim_of_a_slow_batch(relay: Relay, tasks: Tasks, now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a relay claims is soon another's if it dies, and stays its own for as long as it is publishing it."""
    place("default", tasks.shared(), 3)
    left: list[set[int]] = []
    rows = deliveries("default").filter(claim__isnull=False)

    def publish(self: Any, messages: list[Any], meanwhile: Any) -> list[None]:
        for seconds in (0.0, 0.5, 0.6, 0.6, 0.6):
            now[0] += seconds
            rows.update(due_at=In(-1))
            meanwhile()
            left.append(seconds_left("default"))
        return [None] * len(messages)

    monkeypatch.setattr(Bulk, "publish", publish)
    relay.once()

    assert [{-1}, {-1}, {2}, {-1}, {2}] == left
    assert {"sent": 3} == states("default")


@pytest.mark.parametrize("error", [OperationalError("away"), ValueError("of a client")])
def test_claim_that_cannot_be_renewed(
    relay: Relay, tasks: Tasks, now: list[float], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that does not answer meanwhile stops no publication, and a new connection marks what there was."""
    place("default", tasks.shared(), 2)
    tried: list[Any] = []

    def refuse(self: Any, *args: Any) -> int:
        tried.append(connections["default"].connection)
        raise error

    def publish(self: Any, messages: list[Any], meanwhile: Any) -> list[None]:
        now[0] += 1.5
        meanwhile()
        return [None] * len(messages)

    monkeypatch.setattr(DeliveryQuerySet, "renew", refuse)
    monkeypatch.setattr(Bulk, "publish", publish)
    relay.once()

    assert 1 == len(tried)
    assert connections["default"].connection is not tried[0]
    assert {"sent": 2} == states("default")


def test_claim_is_renewed_throughout(relay: Relay, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be renewed for each row that is looked at, is published, and is told to the project."""
    place("default", tasks.shared(), 4)
    calls: list[Renewal] = []
    monkeypatch.setattr(Renewal, "__call__", lambda renewal: calls.append(renewal))

    relay.once()

    assert 4 + 4 + 4 == len(calls)


def test_rows_come_without_their_payload(relay: Relay, tasks: Tasks) -> None:
    """No more rows than a batch are loaded, and never what they carry."""
    place("default", tasks.shared(), 7, payload="precious")
    relay.batch_size, loaded = 3, []

    def count(instance: Any, **kwargs: Any) -> None:
        loaded.append(instance.get_deferred_fields())

    post_init.connect(count, sender=deliveries("default").model)
    try:
        with CaptureQueriesContext(connections["default"]) as queries:
            assert 3 == relay._batch("default")
    finally:
        post_init.disconnect(count, sender=deliveries("default").model)

    assert [{"payload", "traceback"}] * 3 == loaded
    assert not [query for query in queries if '"payload"' in query["sql"] or "precious" in query["sql"]]


def test_what_is_marked(relay: Relay, tasks: Tasks, queue: str) -> None:
    """A row tells the queue it went to; where the route names an exchange only, none."""
    task = tasks.shared()
    place("default", task)
    place("default", task, options={"queue": "urgent"})
    place("default", task, options={"exchange": queue, "routing_key": queue})

    assert 3 == relay.once()
    assert sorted([queue, "urgent", ""]) == sorted(deliveries("default").values_list("queue", flat=True))


@pytest.mark.parametrize(
    ("error", "seconds", "pause"),
    [
        (PublishError("full"), module.SOON, False),
        (TypeError("not JSON"), module.LATER, False),
        (BrokerError("away"), 0, True),
        (PublishTimeout("silent"), 0, True),
    ],
    ids=["refused", "configuration", "outage", "silence"],
)
def test_what_the_broker_does_not_take(
    relay: Relay,
    tasks: Tasks,
    error: Exception,
    seconds: float,
    pause: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is given back, uncharged: after an outage for the relay's next try, else for later; many are one line."""
    task = tasks.shared()
    place("default", task, 4)
    outcomes(monkeypatch, None, error, error, error)

    assert 4 == relay._batch("default")

    assert {"sent": 1, "ready": 3} == states("default")
    assert {round(seconds)} == seconds_left("default", state=State.READY)
    assert {(0, 0, 0)} == burnt("default")
    assert not deliveries("default").filter(claim__isnull=False).exists()
    assert pause is (relay._broker.pause > 0)
    words = f"3 deliveries for {task.name} could not be published: {type(error).__name__}: {error}"
    assert [words] == [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("kind", ["queue", "router"])
def test_configuration_that_cannot_work(relay: Relay, tasks: Tasks, kind: str) -> None:
    """A queue that is not configured, or a router that raises, burns nothing, however often it is tried."""

    def router(*args: Any, **kwargs: Any) -> None:
        raise LookupError("no route")

    configure({"task_create_missing_queues": False} if kind == "queue" else {"task_routes": [router]})
    place("default", tasks.shared(), options={"queue": "nowhere"})

    for _ in range(20):
        deliveries("default").update(due_at=deliveries("default").first().created_at)
        assert 0 == relay.once()

    assert {"ready": 1} == states("default")
    assert {(0, 0, 0)} == burnt("default")
    assert {round(module.LATER)} == seconds_left("default")


def test_connection_is_for_what_is_due(relay: Relay, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker is connected only when something is due, and let go when nothing has been for a while."""
    relay._round()
    assert relay._bulk._connection is None
    place("default", tasks.shared())
    relay._round()
    relay._round()
    assert relay._bulk._connection is not None

    monkeypatch.setattr(bulk, "IDLE", -1)
    relay._round()
    assert relay._bulk._connection is None


def test_whoever_was_quicker(relay: Relay, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened to a row while its message was under way is not overwritten by what became of the message."""
    place("default", tasks.shared(), 2)

    def publish(self: Bulk, messages: list[Any], meanwhile: Any) -> list[Any]:
        deliveries("default").update(state=State.RUNNING, claim=None)
        return [None, PublishError("full")]

    monkeypatch.setattr(Bulk, "publish", publish)
    relay.once()

    assert {"running": 2} == states("default")
    assert {0} == set(deliveries("default").values_list("sends", flat=True))


def test_turns(relay: Relay, tasks: Tasks, celery_app: Celery) -> None:
    """Of each key one message is out; a batch that has only others of it publishes nothing, and is not tried again."""
    relay.batch_size = 2
    for lane in "aaab":
        place("default", tasks.shared(), lane=lane)

    assert 2 == relay.once()
    assert [("a", State.SENT), (None, State.READY), (None, State.READY), ("b", State.SENT)] == list(
        deliveries("default").order_by("pk").values_list("slot", "state")
    )
    assert 2 == len(take(celery_app))
    assert 0 == relay.once()


def test_turn_of_an_unknown_receiver(relay: Relay, celery_app: Celery) -> None:
    """What is published for nobody waits with its turn, before all that are younger."""
    place("default", "tests.nobody", 2, lane="a")

    assert 0 == relay.once()
    assert [("a", 1), (None, 0)] == list(deliveries("default").order_by("pk").values_list("slot", "reruns"))


@pytest.mark.parametrize("error", [PublishError("full"), BrokerError("away")])
def test_turn_of_what_is_refused(relay: Relay, tasks: Tasks, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the broker does not take keeps its turn."""
    place("default", tasks.shared(), 2, lane="a")
    outcomes(monkeypatch, error)

    assert 0 == relay.once()
    first, second = deliveries("default").order_by("pk")
    assert (State.READY, "a", State.READY, None) == (first.state, first.slot, second.state, second.slot)
    assert first.due_at is not None


# once() --------------------------------------------------------------------------------------------------------------


def test_once_ends_with_an_outage(celery_app: Celery, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """once() does not try again what an outage has left due."""
    place("default", tasks.shared(), 3)
    outcomes(monkeypatch, BrokerError("away"), BrokerError("away"))

    assert 0 == Relay(app=celery_app, databases=["default", "other"], batch_size=2).once()
    assert {"ready": 3} == states("default")


def test_once_ends_when_it_is_told_to(relay: Relay, tasks: Tasks) -> None:
    """stop() ends once(), too."""
    place("default", tasks.shared())
    relay.stop()

    assert 0 == relay.once()


def test_once_raises(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """once() leaves a database that does not answer to its caller."""
    monkeypatch.setattr(DeliveryQuerySet, "claim", away)

    with pytest.raises(OperationalError):
        relay.once()


def away(self: DeliveryQuerySet, *args: Any) -> None:
    raise OperationalError("away")


# run() ---------------------------------------------------------------------------------------------------------------


class Running:
    """A relay in a thread of its own."""

    def __init__(self, relay: Relay) -> None:
        self.relay, self.thread = relay, threading.Thread(target=relay.run)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.relay.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


def test_runs_until_it_is_told_to_stop(celery_app: Celery, tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
    """What becomes due is published until stop(), which wakes a relay that sleeps; its connections are closed then."""
    caplog.set_level("INFO")
    for idle, counts in ((0.01, (1, 2)), (60, (3,))):
        relay = Relay(app=celery_app, databases=["default"], idle=idle)
        place("default", tasks.shared())
        with Running(relay):
            for count in counts:
                wait_until(lambda count=count: states("default") == {"sent": count}, what="the publication")
                place("default", tasks.shared(), int(count == 1))
        assert relay._bulk._connection is None

    said = ["The relay publishes what is due in default.", "The relay has ended."]
    assert said * 2 == [record.getMessage() for record in caplog.records]


def test_runs_without_a_database(celery_app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """Where no database keeps deliveries, a relay has nothing to do."""
    caplog.set_level("INFO")
    with Running(Relay(app=celery_app, databases=[])):
        wait_until(lambda: "no database" in caplog.text, what="the beginning")


def test_stop_by_a_signal(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """stop() may be called by a signal handler that interrupts the relay wherever it is, also while it sleeps."""
    relay.idle = 60
    old = signal.signal(signal.SIGUSR1, lambda *_: relay.stop())
    thread = threading.Thread(target=lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1))
    monkeypatch.setattr(relay, "_round", lambda: thread.start())
    began = time.monotonic()
    try:
        relay.run()
    finally:
        signal.signal(signal.SIGUSR1, old)
        thread.join()

    assert time.monotonic() - began < 30


def test_stop_finishes_the_batch(celery_app: Celery, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is under way when stop() comes is marked, and the next one is not begun."""
    place("default", tasks.shared(), 4)
    relay = Relay(app=celery_app, databases=["default"], batch_size=2)

    def publish(self: Bulk, messages: list[Any], meanwhile: Any) -> list[Any]:
        relay.stop()
        return [None] * len(messages)

    monkeypatch.setattr(Bulk, "publish", publish)
    relay.run()

    assert {"sent": 2, "ready": 2} == states("default")
    assert not deliveries("default").filter(claim__isnull=False).exists()


def slept(relay: Relay, rounds: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let a relay run for some rounds, and return how long it would have slept after each."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == rounds:
            relay.stop()

    monkeypatch.setattr(relay, "_sleep", sleep)
    relay.run()
    return pauses


def test_sleeps_only_when_nothing_is_due(relay: Relay, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full batch the next one follows at once; else relays sleep, not all equally long."""
    place("default", tasks.shared(), 5)
    relay.batch_size = 2

    pauses = slept(relay, 6, monkeypatch)

    assert [0, 0] == pauses[:2]
    assert all(0.5 * relay.idle <= pause <= 1.5 * relay.idle for pause in pauses[2:])
    assert len(set(pauses[2:])) > 1


def test_outage_of_the_broker(relay: Relay, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the broker is away the pauses grow up to a limit; the first success ends them."""
    place("default", tasks.shared())
    relay._broker.first, tries = 1.0, iter([BrokerError("away")] * 6)
    monkeypatch.setattr(Bulk, "publish", lambda self, messages, meanwhile: [next(tries, None)] * len(messages))

    pauses = slept(relay, 7, monkeypatch)

    assert [1, 2, 4, 8, module.LONGEST_PAUSE, module.LONGEST_PAUSE] == pauses[:-1]
    assert {"sent": 1} == states("default")
    assert relay._broker.pause == 0
    assert pauses[-1] <= 1.5 * relay.idle


def test_outage_that_others_have_seen_end(relay: Relay, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another relay has published what was due meanwhile, the pauses end as well."""
    place("default", tasks.shared())
    outcomes(monkeypatch, BrokerError("away"))
    relay._round()
    assert relay._broker.pause > 0

    deliveries("default").update(state=State.SENT, due_at=None)
    relay._round()

    assert 0 == relay._broker.pause


@override_settings(DJANGO_CELERY_SIGNALS={"LEASE": 30})
def test_slow_database(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a round of more than a third of a lease no run is ended for a whole one: others were kept waiting, too."""
    upkeep, claim, clock, pauses = relay._upkeep["default"], DeliveryQuerySet.claim, [1000.0], iter((9, 11))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def claim_slowly(self: DeliveryQuerySet, *args: Any) -> Any:
        clock[0] += next(pauses)
        return claim(self, *args)

    monkeypatch.setattr(DeliveryQuerySet, "claim", claim_slowly)

    def is_careful_after_a_round() -> bool:
        upkeep._next[upkeep.expire] = 0.0
        relay._round()
        return upkeep._next[upkeep.expire] > time.monotonic() + 20

    assert [False, True] == [is_careful_after_a_round() for _ in range(2)]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OperationalError("gone"), "The relay waits for the database 'default': gone"),
        (KeyError("of ours"), "The relay failed in 'default' and tries again."),
    ],
    ids=["database", "other"],
)
def test_outage_of_a_database(
    celery_app: Celery,
    tasks: Tasks,
    error: Exception,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A database that fails is left alone for a while, and ends no run for a whole lease; the others go on."""
    relay, claim, failing = Relay(app=celery_app, databases=["default", "other"]), DeliveryQuerySet.claim, [True]
    upkeep = relay._upkeep["default"]
    upkeep._next[upkeep.expire] = 0.0

    def claim_or_fail(self: DeliveryQuerySet, *args: Any) -> Any:
        if self.db == "default" and failing:
            raise error
        return claim(self, *args)

    monkeypatch.setattr(DeliveryQuerySet, "claim", claim_or_fail)
    for alias in ("default", "other"):
        place(alias, tasks.shared())
    connection = connections["default"].connection

    relay._round()
    failing.clear()
    relay._round()

    assert words in caplog.text
    assert ({"ready": 1}, {"sent": 1}) == (states("default"), states("other"))
    assert connection is not connections["default"].connection
    assert upkeep._next[upkeep.expire] > time.monotonic() + 12
    relay._away["default"]._until = 0.0  # the pause is over
    relay._round()
    assert {"sent": 1} == states("default")
    assert (0.0, False) == (relay._away["default"].pause, relay._away["default"].lasts())


@pytest.mark.parametrize(("seconds", "careful"), [(8, False), (9, True)])
def test_database_that_is_slow(relay: Relay, seconds: float, careful: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an answer took a third of a lease, living workers could not renew theirs: no run is ended for a while."""
    now, claim = [0.0], DeliveryQuerySet.claim
    upkeep = relay._upkeep["default"]
    upkeep._next[upkeep.expire] = 0.0

    def claim_slowly(self: DeliveryQuerySet, *args: Any) -> Any:
        now[0] += seconds
        return claim(self, *args)

    monkeypatch.setattr(DeliveryQuerySet, "claim", claim_slowly)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    relay._round()

    assert careful is (upkeep._next[upkeep.expire] > time.monotonic() + 12)


def test_conflict_in_a_database(
    relay: Relay, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A deadlock with another transaction is no outage: the next round comes as if nothing had been."""
    deadlock = OperationalError("deadlock")
    deadlock.__cause__ = Exception(1213, "Deadlock found")
    claim, errors = DeliveryQuerySet.claim, [deadlock]

    def claim_or_fail(self: DeliveryQuerySet, *args: Any) -> Any:
        if errors:
            raise errors.pop()
        return claim(self, *args)

    monkeypatch.setattr(DeliveryQuerySet, "claim", claim_or_fail)
    place("default", tasks.shared())
    relay._round()
    relay._round()

    assert {"sent": 1} == states("default")
    assert [] == caplog.records


def test_connection_is_kept(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay keeps its connection: by its end it learns that the database was away."""
    monkeypatch.setitem(connections["default"].settings_dict, "CONN_MAX_AGE", 0)
    relay._round()
    connection = connections["default"].connection
    relay._round()

    assert connection is not None
    assert connection is connections["default"].connection


def test_connection_that_cannot_be_closed(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too broken to be closed does not end the relay."""

    def close() -> None:
        raise OperationalError("broken")

    monkeypatch.setattr(DeliveryQuerySet, "claim", away)
    monkeypatch.setattr(connections["default"], "close", close)

    assert relay._round() is False


def test_pause_of_an_outage() -> None:
    """An outage's pause doubles each time, and ends with it."""
    outage = Outage(3.0)
    pauses = []
    for _ in range(4):
        outage.longer()
        pauses.append(outage.pause)

    assert [3, 6, module.LONGEST_PAUSE, module.LONGEST_PAUSE] == pauses
    assert outage.lasts()
    outage.over()
    assert not outage.lasts()


def test_idle_round_asks_little(relay: Relay, tasks: Tasks, queue: str) -> None:
    """A round in which nothing is due takes one short look, however many rows there are."""
    counts = []
    for count in (1, 300):
        place("default", tasks.shared(), count, state=State.SENT, due_at=None, queue=queue)
        relay._round()
        with CaptureQueriesContext(connections["default"]) as queries:
            relay._round()
        counts.append(len(queries))

    assert counts[0] == counts[1] <= 3
