"""The relay with real brokers and databases: everything arrives once, whatever the broker does meanwhile."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.db import connections, transaction
from django.db.models import F
from django.dispatch import Signal
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from kombu import Exchange, Queue
from kombu.messaging import Producer

from chaos.proxy import Proxy
from django_celery_signals import Relay, conf
from django_celery_signals.durable import bulk, relay
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.probe import TASK, probes
from django_celery_signals.durable.upkeep import Upkeep
from django_celery_signals.handover import apply
from django_celery_signals.wire import ARGUMENT
from tests.brokers import Broker
from tests.delivering import burnt, messages, place, place_sent, seconds_left, states, taken
from tests.drain import run
from tests.durable_tasks import connected_to, effects, inside, wait_until_done
from tests.durable_tasks import place as send
from tests.making import Tasks
from tests.parameters import each_broker, each_database, each_durable_broker
from tests.processes import Processes
from tests.project.celery import configure
from tests.proxies import in_front_of, settings_through
from tests.receiving import Receiving
from tests.scene import Scene, each_pair
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

bell = Signal()

MANY = 1200  # more than two windows of confirms, and than two batches


def published(app: Celery, **options: Any) -> int:
    return Relay(app=app, databases=["default"], **options).once()


# What the broker takes -----------------------------------------------------------------------------------------------


@each_durable_broker
def test_everything_is_published_once(celery_app: Celery, tasks: Tasks, broker: Broker) -> None:
    """More messages than may be on their way without a confirm arrive once each, oldest first, and are marked."""
    place("default", tasks.shared(), MANY)

    assert MANY == published(celery_app, batch_size=MANY)

    assert sorted(deliveries("default").values_list("pk", flat=True)) == taken(broker)
    assert {"sent": MANY} == states("default")
    assert {(broker.queue, 1, None, None)} == set(
        deliveries("default").values_list("queue", "sends", "due_at", "claim")
    )


@each_broker("rabbitmq")
def test_other_messages_of_the_channel(celery_app: Celery, tasks: Tasks, broker: Broker) -> None:
    """Celery's own events, which share the channel and its count of confirms, are not taken for deliveries."""
    configure({"task_send_sent_event": True})
    task, bad = tasks.shared(), {"exchange": broker.queue_named("missing"), "routing_key": "any"}
    for options in ({}, bad, {}):
        place("default", task, 1 if options else 300, options=options)

    assert 600 == published(celery_app)
    assert {"sent": 600, "ready": 1} == states("default")
    assert bad == deliveries("default").get(state=State.READY).options


@each_broker("rabbitmq")
def test_confirms_that_the_project_waits_for(celery_app: Celery, tasks: Tasks, broker: Broker) -> None:
    """A project that has every publication confirmed keeps the relay from nothing."""
    configure({"broker_transport_options": {"confirm_publish": True}})
    place("default", tasks.shared(), 30)

    assert 30 == published(celery_app)
    assert 30 == broker.message_count()


@each_broker("redis", "memory")
def test_kombu_without_batches(
    celery_app: Celery, tasks: Tasks, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a kombu that has no batches the same arrives, one message at a time."""
    monkeypatch.delattr(Producer, "batch", raising=False)
    place("default", tasks.shared(), 30)

    assert 30 == published(celery_app)
    assert 30 == len(taken(broker))


# What the broker refuses ---------------------------------------------------------------------------------------------


@pytest.fixture
def full(broker: Broker) -> Queue:
    """A queue that takes three messages."""
    arguments = {"x-max-length": 3, "x-overflow": "reject-publish"}
    return Queue(broker.queue_named("full"), Exchange(""), broker.queue_named("full"), queue_arguments=arguments)


@each_broker("rabbitmq")
def test_full_queue(celery_app: Celery, tasks: Tasks, broker: Broker, full: Queue) -> None:
    """What a full queue refuses is published again a moment later, without burning anything; other queues go on."""
    configure({"task_queues": [Queue(broker.queue), full]})
    place("default", tasks.shared(), 10, options={"queue": full.name})
    place("default", tasks.shared(), 5)

    assert 8 == published(celery_app)

    assert {"sent": 8, "ready": 7} == states("default")
    assert {round(relay.SOON)} == seconds_left("default", state=State.READY, options={"queue": full.name})
    assert {(0, 0, 0)} == burnt("default")
    assert (3, 5) == (broker.message_count(full.name), broker.message_count())


@each_broker("rabbitmq")
def test_exchange_without_a_queue(celery_app: Celery, tasks: Tasks, broker: Broker) -> None:
    """What RabbitMQ confirms although it has no queue for it comes back, and is not marked; its neighbours are."""
    name = broker.queue_named("lonely")
    with broker.connection() as connection, connection.channel() as channel:
        Exchange(name, "topic")(channel).declare()
    task, lonely = tasks.shared(), {"exchange": name, "routing_key": "nobody"}
    for options in ({}, lonely, {}, lonely):
        place("default", task, 50, options=options)

    assert 100 == published(celery_app)

    assert {"sent": 100, "ready": 100} == states("default")
    assert {round(relay.SOON)} == seconds_left("default", state=State.READY, options=lonely)
    assert not deliveries("default").filter(state=State.SENT, options=lonely).exists()
    assert {(0, 0, 0)} == burnt("default")


@each_broker("rabbitmq")
def test_queue_that_was_deleted(celery_app: Celery, tasks: Tasks, broker: Broker) -> None:
    """A queue that somebody deletes while the relay is connected is declared again, and nothing is lost with it."""
    receiver, running = tasks.shared(), Relay(app=celery_app, databases=["default"])
    place("default", receiver)
    running._round()
    with broker.connection() as connection, connection.channel() as channel:
        channel.queue_delete(broker.queue)

    place("default", receiver, 3)
    running._round()
    assert {"sent": 1, "ready": 3} == states("default")
    deliveries("default").filter(state=State.READY).update(due_at=deliveries("default").first().created_at)
    running._round()

    assert {"sent": 4} == states("default")
    assert 3 == broker.message_count()
    running._bulk.close()


@each_broker("rabbitmq")
@pytest.mark.parametrize("kind", ["missing exchange", "other queue of that name"])
def test_message_that_breaks_the_channel(celery_app: Celery, tasks: Tasks, broker: Broker, kind: str) -> None:
    """A message for which RabbitMQ closes the channel takes no other along, and does not make the relay wait."""
    name = broker.queue_named("trouble")
    if kind == "missing exchange":
        bad = {"exchange": name, "routing_key": "any"}
    else:
        with broker.connection() as connection, connection.channel() as channel:
            Queue(name, max_priority=3)(channel).declare()
        bad = {"queue": name}
    task, running = tasks.shared(), Relay(app=celery_app, databases=["default"])
    for options, count in (({}, 100), (bad, 1), ({}, 100), (bad, 2), ({}, 100)):
        place("default", task, count, options=options)

    assert 303 == running._batch("default")

    assert {"sent": 300, "ready": 3} == states("default")
    assert {round(relay.LATER)} == seconds_left("default", state=State.READY, options=bad)
    assert not deliveries("default").filter(state=State.SENT, options=bad).exists()
    assert {(0, 0, 0)} == burnt("default")
    assert 0 == running._broker.pause
    assert set(deliveries("default").filter(state=State.SENT).values_list("pk", flat=True)) == set(taken(broker))
    running._bulk.close()


# Brokers that misbehave ----------------------------------------------------------------------------------------------


@contextmanager
def relaying(app: Celery, *databases: str, count: int = 1, **options: Any) -> Iterator[list[Relay]]:
    """Let relays run in threads of their own; they end with the block, and none by an error."""
    relays = [Relay(app=app, databases=databases or ["default"], **options) for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(each.run) for each in relays]
        try:
            yield relays
        finally:
            for each in relays:
                each.stop()
    assert [None] * count == [each.result() for each in running]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """Short pauses."""
    monkeypatch.setattr(relay, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(relay, "SOON", 0.2)
    settings.DJANGO_CELERY_SIGNALS = {**settings.DJANGO_CELERY_SIGNALS, "PUBLISH_TIMEOUT": 0.5}


def are_sent(count: int) -> None:
    """Wait until a relay has published so many."""
    sent = deliveries("default").filter(state=State.SENT)
    wait_until(lambda: sent.all().count() == count, what=f"{count} publications")


@pytest.mark.usefixtures("hasty")
@each_broker("rabbitmq", "redis")
@pytest.mark.parametrize("misbehave", [Proxy.refuse, Proxy.be_silent], ids=["refuses", "is silent"])
def test_broker_that_is_away(
    celery_app: Celery,
    tasks: Tasks,
    broker: Broker,
    misbehave: Callable[[Proxy], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the broker is away nothing is burnt and the relay only waits; when it is back, everything arrives once."""
    with in_front_of(broker) as proxy:
        configure(settings_through(proxy, broker))
        place("default", tasks.shared(), 5)
        with relaying(celery_app, idle=0.01):
            are_sent(5)  # and the connection is there
            misbehave(proxy)
            place("default", tasks.shared(), 50)
            wait_until(lambda: caplog.text.count("could not be published") >= 5, what="some tries")
            assert {"sent": 5, "ready": 50} == states("default")
            proxy.heal()
            are_sent(55)

    assert {(0, 0, 0)} == burnt("default")
    assert {(1, None)} == set(deliveries("default").values_list("sends", "due_at"))
    assert sorted(deliveries("default").values_list("pk", flat=True)) == sorted(taken(broker))


@pytest.mark.usefixtures("hasty")
@each_broker("rabbitmq", "redis")
def test_broker_that_breaks_off(
    celery_app: Celery, tasks: Tasks, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the connection breaks in the middle of a batch, what is not confirmed is repeated, and nothing is lost."""
    handed_over = itertools.count(1)

    def apply_and_cut(*args: Any, **options: Any) -> None:
        apply(*args, **options)
        if next(handed_over) == 200:
            proxy.cut()

    monkeypatch.setattr(bulk, "apply", apply_and_cut)
    place("default", tasks.shared(), 300)
    with in_front_of(broker) as proxy:
        configure(settings_through(proxy, broker))
        with relaying(celery_app, idle=0.01):
            are_sent(300)

    assert {(0, 0, 0)} == burnt("default")
    assert set(deliveries("default").values_list("pk", flat=True)) == set(taken(broker))


@each_broker("rabbitmq", "redis")
def test_broker_that_is_slow(celery_app: Celery, tasks: Tasks, broker: Broker) -> None:
    """A broker far away costs a batch some round trips, and not one for each message."""
    if broker.name == "redis" and not hasattr(Producer, "batch"):
        pytest.skip("kombu has no batches before 5.7")
    place("default", tasks.shared(), 400)
    with in_front_of(broker) as proxy:
        configure(settings_through(proxy, broker))
        proxy.delay(0.05)
        began = time.monotonic()
        assert 400 == published(celery_app)

    assert time.monotonic() - began < 400 * 0.05 / 4
    assert 400 == len(taken(broker))


@each_broker("rabbitmq", "redis")
def test_broker_that_is_too_slow(
    celery_app: Celery, tasks: Tasks, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch takes no longer than it may: what is left of it is given back for a moment, and that is no outage."""
    monkeypatch.delattr(Producer, "batch", raising=False)
    monkeypatch.setattr(bulk, "LONGEST", 0.0)
    monkeypatch.setattr(bulk, "WINDOW", 1)
    place("default", tasks.shared(), 10)
    running = Relay(app=celery_app, databases=["default"])

    assert 10 == running._batch("default")

    assert {"ready": 10} == states("default")
    assert {round(relay.SOON)} == seconds_left("default")
    assert 0 == running._broker.pause


# Many relays, many databases -----------------------------------------------------------------------------------------


@each_broker("memory")
@each_database
def test_several_relays(alias: str, celery_app: Celery, tasks: Tasks, broker: Broker) -> None:
    """Whatever the number of relays, each delivery is published once, also after an outage that left many."""
    place(alias, tasks.shared(), 1500)

    with relaying(celery_app, alias, count=3, batch_size=100, idle=0.01):
        sent = deliveries(alias).filter(state=State.SENT)
        wait_until(lambda: sent.all().count() == 1500, what="the last publication")

    assert sorted(deliveries(alias).values_list("pk", flat=True)) == sorted(taken(broker))
    assert {1} == set(deliveries(alias).values_list("sends", flat=True))


@each_broker("memory")
@each_database("postgres", "mariadb", also=["default"])
def test_database_that_breaks_off(
    alias: str, celery_app: Celery, tasks: Tasks, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A relay whose connection the server ends connects again, and the other databases do not wait for that."""
    statement = {
        "postgres": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "mariadb": "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
    }[alias]

    with relaying(celery_app, "default", alias, idle=0.01) as [running]:
        place(alias, tasks.shared())
        wait_until(lambda: states(alias) == {"sent": 1}, what="a connection")
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)
            for (number,) in cursor.fetchall() if alias == "mariadb" else []:
                cursor.execute(f"KILL {number}")
        wait_until(lambda: f"waits for the database {alias!r}" in caplog.text, what="the error")
        place("default", tasks.shared())
        place(alias, tasks.shared())
        wait_until(lambda: [states("default"), states(alias)] == [{"sent": 1}, {"sent": 2}], what="the rest")
        upkeep = running._upkeep[alias]
        assert upkeep._next[upkeep.expire] > time.monotonic() + conf.get().LEASE / 2

    assert 3 == broker.message_count()


# Long or lost --------------------------------------------------------------------------------------------------------


def pass_on(alias: str, seconds: float) -> None:
    """Let time pass, as the tables see it."""
    shift(deliveries(alias), seconds, "sent_at", "due_at")
    shift(probes(alias), seconds, "probed_at", "seen", "seen_at", "swept")


def shift(rows: Any, seconds: float, *names: str) -> None:
    rows.update(**{name: F(name) - timedelta(seconds=seconds) for name in names})


def look_after(app: Celery, alias: str) -> int:
    """Let a new relay do its round, and return what it has published."""
    return Relay(app=app, databases=[alias]).once()


def worker_begins(app: Celery, broker: Broker) -> None:
    """Declare the queue, as a worker does."""
    with broker.connection() as connection, connection.channel() as channel:
        app.amqp.queues[broker.queue](channel).declare()


def work_off(app: Celery, broker: Broker) -> Counter[str]:
    """Do what a worker does with everything in the queue, and return how many messages of each task there were."""
    found = messages(broker)
    assert {"SUCCESS"} >= {run(app, message).state for message in found}
    return Counter(message.task for message in found)


def lose_all(broker: Broker, how: str) -> None:
    """Wipe the test's own place at a broker."""
    if broker.name == "redis":
        broker.clear(broker)
        return
    with broker.connection() as connection, connection.channel() as channel:
        channel.queue_delete(broker.queue) if how == "deleted" else channel.queue_purge(broker.queue)


@each_durable_broker("rabbitmq", "quorum", "redis")
@pytest.mark.parametrize("how", ["purged", "deleted"])
def test_wiped_broker(celery_app: Celery, tasks: Tasks, broker: Broker, how: str) -> None:
    """What a wiped broker has lost is published again as soon as a probe has come through, and then runs once."""
    task = tasks.shared(atomic=False)
    place("default", task, 30)
    assert 30 == look_after(celery_app, "default")
    lose_all(broker, how)
    pass_on("default", 11)

    worker_begins(celery_app, broker)
    assert 0 == look_after(celery_app, "default")
    assert {TASK: 1} == work_off(celery_app, broker)
    assert {"sent": 30} == states("default")
    pass_on("default", 6)

    assert 30 == look_after(celery_app, "default")
    assert 30 == broker.message_count()
    assert {(0, 0, 0)} == burnt("default")
    assert {2} == set(deliveries("default").values_list("sends", flat=True))


@each_broker("rabbitmq", "redis")
def test_one_of_many(celery_app: Celery, receiving: Receiving, broker: Broker) -> None:
    """One message that is lost of a long queue is found and sent again; its neighbours are not."""
    task = receiving(bell, guarantee="durable", atomic=False)
    with transaction.atomic():
        for number in range(1000):
            bell.send(sender=None, number=number)
    look_after(celery_app, "default")
    with broker.connection() as connection, connection.channel() as channel:
        lost = Queue(broker.queue)(channel).get(no_ack=True).payload[1][ARGUMENT]["id"]
    pass_on("default", 11)
    look_after(celery_app, "default")

    assert {TASK: 1, task.name: 999} == work_off(celery_app, broker)
    assert [lost] == list(deliveries("default").values_list("pk", flat=True))
    pass_on("default", 6)
    look_after(celery_app, "default")

    assert {task.name: 1} == work_off(celery_app, broker)
    assert [] == list(deliveries("default"))


@each_broker("rabbitmq")
@each_database("postgres")
def test_long_queue(alias: str, celery_app: Celery, tasks: Tasks, broker: Broker) -> None:
    """Of 100,000 deliveries behind a worker that is stopped for ten minutes none is repeated: only probes are sent."""
    place_sent(alias, tasks.shared(), broker.queue)
    copy(alias, 100_000)
    worker_begins(celery_app, broker)
    relays = [Upkeep(celery_app, alias) for _ in range(3)]

    for _ in range(60):
        for each in relays:
            each._probes.work()
        shift(probes(alias), 10, "probed_at")

    assert {TASK: 60} == Counter(message.task for message in messages(broker))
    assert {"sent": 100_000} == states(alias)
    assert {1} == set(deliveries(alias).values_list("sends", flat=True).distinct())


@each_broker("rabbitmq")
def test_queue_that_is_declared_elsewhere(celery_app: Celery, tasks: Tasks, broker: Broker) -> None:
    """A queue of which this process does not know the arguments is probed all the same."""
    name = broker.queue_named("theirs")
    with broker.connection() as connection, connection.channel() as channel:
        Queue(name, max_priority=3)(channel).declare()
    place_sent("default", tasks.shared(), name)
    look_after(celery_app, "default")

    assert [TASK] == [message.task for message in messages(broker, name)]


# What it costs -------------------------------------------------------------------------------------------------------


def copy(alias: str, count: int) -> None:
    """Multiply a delivery."""
    table = deliveries(alias).model._meta.db_table
    names = [field.column for field in deliveries(alias).model._meta.concrete_fields if field.column != "id"]
    listed = ", ".join(f'"{name}"' for name in names)
    with connections[alias].cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({listed}) SELECT {listed} FROM {table}, generate_series(2, %s)", [count])
        cursor.execute(f"ANALYZE {table}")


@each_broker("memory")
@each_database("postgres")
def test_idle_relay(alias: str, celery_app: Celery, tasks: Tasks, broker: Broker) -> None:
    """An idle relay asks little, however much is in the table, and the indexes answer."""
    place_sent(alias, tasks.shared(), broker.queue)
    few = idle_queries(celery_app, alias)
    copy(alias, 100_000)

    many = idle_queries(celery_app, alias)

    assert len(few) == len(many) < 20
    assert [] == [query for query in many if "Seq Scan" in plan(alias, query)]


def idle_queries(app: Celery, alias: str) -> list[str]:
    """Return what a relay asks of its table in a round in which nothing is due, but much is old."""
    upkeep = Upkeep(app, alias)
    upkeep._next = dict.fromkeys(upkeep._next, 0.0)  # all at once
    probes(alias).update(probed_at=None)
    with CaptureQueriesContext(connections[alias]) as queries:
        upkeep.work()
        assert [] == deliveries(alias).claim(500, 60).rows
    table = deliveries(alias).model._meta.db_table
    return [query["sql"] for query in queries if table in query["sql"]]


def plan(alias: str, query: str) -> str:
    with connections[alias].cursor() as cursor:
        cursor.execute(f"EXPLAIN {query}")
        return "\n".join(line for (line,) in cursor.fetchall())


# Processes -----------------------------------------------------------------------------------------------------------

BEGINS, ENDS = "The relay publishes what is due", "The relay has ended"
TROUBLE = ("waits for the database", "could not be published", "The relay failed", "Traceback")


@pytest.fixture
def scene(alias: str, broker: Broker, processes: Processes, tmp_path: Path) -> Scene:
    return Scene(alias=alias, broker=broker, processes=processes, folder=tmp_path)


@each_pair(("default", "rabbitmq"), ("postgres", "redis"), ("mariadb", "rabbitmq"))
def test_command_that_is_told_to_end(scene: Scene) -> None:
    """SIGTERM lets ``manage.py signals relay`` finish its batch: all of it is marked, and nothing stays claimed."""
    place(scene.alias, inside, 4000)
    scene.celery = {"include": [inside.__module__]}
    options = ["--database", scene.alias, "--batch-size", "50"]
    process = scene.processes.start(
        *("python", "-m", "django", "signals", "relay", *options), env=scene.environment(None), ready="relay: "
    )
    wait_until(lambda: deliveries(scene.alias).filter(state=State.SENT).exists(), what="the first batch")

    assert 0 == process.stop()

    sent = deliveries(scene.alias).filter(state=State.SENT)
    assert 0 < sent.count() < 4000
    assert 0 == sent.count() % 50
    assert sorted(sent.values_list("pk", flat=True)) == sorted(taken(scene.broker))
    assert not deliveries(scene.alias).filter(claim__isnull=False).exists()


@pytest.mark.parametrize(("pool", "concurrency"), [("prefork", 2), ("solo", 1), ("threads", 2)])
@each_pair(("default", "redis"))
def test_relay_of_a_worker(scene: Scene, pool: str, concurrency: int) -> None:
    """A worker of any pool has a relay in its main process, which begins and ends with it."""
    worker = scene.worker(pool=pool, concurrency=concurrency, EMBED_RELAY=True)

    leave_to_the_relay(scene, 5)
    wait_until_done(scene.alias)

    assert 0 == worker.stop()
    assert (1, 1) == (worker.log.count(BEGINS), worker.log.count(ENDS))
    assert [] == [words for words in TROUBLE if words in worker.log]


@each_pair(("default", "redis"))
def test_worker_without_a_relay(scene: Scene) -> None:
    """With EMBED_RELAY off a worker publishes nothing."""
    worker = scene.worker(EMBED_RELAY=False)
    leave_to_the_relay(scene, 1)

    assert 0 == worker.stop()
    assert BEGINS not in worker.log
    assert {"ready": 1} == states(scene.alias)


@each_pair(("postgres", "rabbitmq"), ("mariadb", "redis"))
def test_forks_of_a_worker_with_a_relay(scene: Scene) -> None:
    """Processes that are forked while the relay is connected, and end, take nothing of its connections along."""
    scene.celery = {"worker_max_tasks_per_child": 1}
    worker = scene.worker(pool="prefork", concurrency=2, EMBED_RELAY=True)

    for _ in range(2):
        leave_to_the_relay(scene, 5)
        wait_until_done(scene.alias)

    assert 10 <= len({facts["pid"] for facts in scene.reports.wait_for("ended", 10)})
    assert [] == [words for words in TROUBLE if words in worker.log]
    assert {f"inside {number}": 2 for number in range(5)} == effects(scene.alias)
    worker.kill()


def leave_to_the_relay(scene: Scene, count: int) -> None:
    """Send, without the fast path."""
    with override_settings(DJANGO_CELERY_SIGNALS={"FAST_PATH_LIMIT": 0}), connected_to(inside):
        send(scene.alias, [str(number) for number in range(count)])


@each_pair(("default", "redis"), ("postgres", "rabbitmq"))
def test_wiped_broker_and_a_worker_that_returns(scene: Scene) -> None:
    """What a broker has lost while no worker was there is worked off soon after one is back."""
    with connected_to(inside):
        send(scene.alias, [str(number) for number in range(20)])
    assert {"sent": 20} == states(scene.alias)
    lose_all(scene.broker, "deleted")

    worker = scene.worker(EMBED_RELAY=True)
    wait_until_done(scene.alias)

    assert {f"inside {number}": 1 for number in range(20)} == effects(scene.alias)
    worker.kill()
