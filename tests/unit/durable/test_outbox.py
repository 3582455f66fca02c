"""The sender's side: the row in the sending's transaction, and the publication after it, if that is quickly done."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from django.apps import apps
from django.core.exceptions import SynchronousOnlyOperation
from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.backends.dummy.base import DatabaseWrapper as Unconfigured
from django.db.models.signals import post_migrate, post_save, pre_migrate
from django.db.transaction import TransactionManagementError
from django.dispatch import Signal
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from django_celery_signals import PublishError, PublishTimeout, SettingsError, connect, deliveries, disconnect, names
from django_celery_signals import handover as handover_module
from django_celery_signals.durable import outbox
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import DeliveryQuerySet, State
from django_celery_signals.durable.reference import Reference
from django_celery_signals.publisher import Publisher, publisher
from django_celery_signals.signals import event_lost, event_sent
from django_celery_signals.wire import ARGUMENT, parse
from tests.delivering import place_sent
from tests.drain import Published, run, take
from tests.holding import bell as other_bell
from tests.holding import send, work
from tests.parameters import each_database
from tests.project.celery import disconnect as forget_connections
from tests.receiving import Receiving, hearing
from tests.shop.models import Customer, Tag

bell = Signal()

TABLE = "django_celery_signals_delivery"


def ring(alias: str = "default", **kwargs: Any) -> None:
    """Send the signal in a transaction of its own."""
    with transaction.atomic(using=alias):
        bell.send(sender="door", using=alias, **kwargs)


def references(messages: list[Published]) -> list[tuple[str, int, int]]:
    """Return what messages open: alias, id, token."""
    carried = [message.kwargs[ARGUMENT] for message in messages]
    return [(one["alias"], one["id"], one["token"]) for one in carried]


def states(alias: str = "default") -> list[int]:
    return list(deliveries(alias).order_by("pk").values_list("state", flat=True))


def is_due(row: Any, alias: str = "default", seconds: float = 0) -> bool:
    """Tell whether the relay must look at a row in about so many seconds, by the database's clock."""
    rows = deliveries(alias).filter(pk=row.pk, due_at__gt=In(seconds - 20), due_at__lte=In(seconds))
    return bool(rows.exists())


# The row ----------------------------------------------------------------------------------------------------------


@each_database
def test_the_row_and_its_message(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """The row holds the whole event and waits for its receiver; the message says only where it is and what opens it."""
    task = receiving(post_save, sender=Customer, guarantee="durable")

    with transaction.atomic(using=alias):
        customer = Customer.objects.using(alias).create(name="Ada Lovelace")
        row = deliveries(alias).get()
        before = take(celery_app)

    [message] = take(celery_app)
    summary = f"post_save shop.Customer pk={customer.pk} created"
    envelope = parse(row.payload)
    assert [] == before
    assert {"alias": alias, "id": row.pk, "token": row.token, "receiver": task.name} == message.kwargs[ARGUMENT]
    assert (summary, "{}") == (message.headers["argsrepr"], message.headers["kwargsrepr"])
    assert (task.name, "django.db.models.signals:post_save", summary) == (row.receiver, row.signal, row.summary)
    assert (envelope.event.id, summary, alias) == (row.event_id, envelope.summary, envelope.event.using)
    assert (State.SENT, None, 1, {}) == (row.state, row.due_at, row.sends, row.options)
    assert (celery_app.conf.task_default_queue, None, None) == (row.queue, row.key, row.slot)
    assert deliveries(alias).filter(sent_at__lte=In(0), sent_at__gt=In(-20), created_at__gt=In(-20)).exists()


@each_database
def test_what_caused_it(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A row says how many receivers led to it, which event the last one ran for, and which one began."""

    def tell(number: int, **kwargs: Any) -> None:
        if number < 3:
            other_bell.send(sender=None, using=alias, number=number + 1)

    receiving(other_bell, tell, guarantee="durable")
    found = []
    send(alias, number=1)
    while (row := deliveries(alias).first()) is not None:
        found.append(row)
        work(celery_app, alias, pk=row.pk)

    first, second, third = found
    assert (0, None, None) == (first.depth, first.parent_id, first.root_id)
    assert (1, first.event_id, first.event_id) == (second.depth, second.parent_id, second.root_id)
    assert (2, second.event_id, first.event_id) == (third.depth, third.parent_id, third.root_id)
    event = parse(third.payload).event
    assert (third.depth, third.parent_id, third.root_id) == (event.depth, event.parent_id, event.root_id)


@each_database
def test_one_more_query_for_each_receiver_and_sending(alias: str, receiving: Receiving) -> None:
    """A durable receiver costs its sender one INSERT for each sending, and nothing after the commit (H33)."""

    def queries(count: int) -> int:
        with CaptureQueriesContext(connections[alias]) as captured, transaction.atomic(using=alias):
            for _ in range(count):
                Tag.objects.using(alias).create(name="red")
        return len(captured)

    without, without_twice = queries(1), queries(2)
    receiving(post_save, sender=Tag, guarantee="durable")
    one, one_twice = queries(1), queries(2)
    receiving(post_save, sender=Tag, guarantee="durable")
    two, two_twice = queries(1), queries(2)

    assert [without + 1, without + 2] == [one, two]
    assert [without_twice + 2, without_twice + 4] == [one_twice, two_twice]


@each_database
def test_one_query_in_autocommit(alias: str, receiving: Receiving, celery_app: Celery) -> None:
    """Outside of a transaction it is one query as well, and the message leaves at once (H34)."""
    receiving(bell, guarantee="durable")
    connections[alias].ensure_connection()

    with CaptureQueriesContext(connections[alias]) as captured:
        bell.send(sender="door", using=alias)

    assert ["INSERT"] == [query["sql"].split()[0] for query in captured]
    assert [State.SENT] == states(alias)
    assert 1 == len(take(celery_app))


@each_database
def test_a_rollback_takes_the_row_and_the_message(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """What is rolled back was never sent (H33, H36)."""
    receiving(post_save, sender=Tag, guarantee="durable")

    with transaction.atomic(using=alias):
        Tag.objects.using(alias).create(name="ghost")
        transaction.set_rollback(True, using=alias)

    assert [] == list(deliveries(alias)) == take(celery_app)


@each_database
def test_a_savepoint_takes_only_its_own(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """A savepoint that is rolled back takes its rows and publications; all the others are published (H36)."""
    receiving(bell, guarantee="durable")
    receiving(bell, guarantee="durable")

    with transaction.atomic(using=alias):
        for _ in range(3):
            bell.send(sender="door", using=alias)
            with transaction.atomic(using=alias):
                bell.send(sender="ghost", using=alias)
                transaction.set_rollback(True, using=alias)
        rows = list(deliveries(alias).order_by("pk"))

    assert ["bell door"] * 6 == [row.summary for row in rows]
    assert [(alias, row.pk, row.token) for row in rows] == references(take(celery_app))


@each_database
def test_a_savepoint_that_began_it_all(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """The first sending of a transaction may be rolled back without an effect on those after it (H36)."""
    receiving(bell, guarantee="durable")

    with transaction.atomic(using=alias):
        with transaction.atomic(using=alias):
            bell.send(sender="ghost", using=alias)
            transaction.set_rollback(True, using=alias)
        bell.send(sender="door", using=alias)

    assert 1 == len(take(celery_app)) == len(deliveries(alias))


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_each_database_has_its_own(celery_app: Celery, receiving: Receiving) -> None:
    """A row is written where the sending belongs, and published when that database commits, not another (H33, H42)."""
    receiving(bell, guarantee="durable")

    with transaction.atomic(using="other"):
        ring()
        first = take(celery_app)
        with transaction.atomic():
            bell.send(sender="door", using="other")
        between = take(celery_app)
    last = take(celery_app)

    assert ["default"] == [alias for alias, _, _ in references(first)]
    assert [] == between
    assert ["other"] == [alias for alias, _, _ in references(last)]
    assert 1 == len(deliveries("default")) == len(deliveries("other"))


@pytest.mark.django_db(transaction=True)
def test_the_default_guarantee(celery_app: Celery, receiving: Receiving) -> None:
    """A receiver that names no guarantee is durable, where the project says nothing else."""
    receiving(bell)

    with override_settings(DJANGO_CELERY_SIGNALS={}):
        ring()

    assert [State.SENT] == states()
    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_a_sending_from_a_commit_hook(celery_app: Celery, receiving: Receiving) -> None:
    """What a hook of the commit sends is delivered as well (H39)."""
    receiving(bell, guarantee="durable")

    with transaction.atomic():
        bell.send(sender="first")
        transaction.on_commit(lambda: bell.send(sender="second"))
        transaction.on_commit(ring)

    assert ["bell first", "bell second", "bell door"] == [message.headers["argsrepr"] for message in take(celery_app)]
    assert [State.SENT] * 3 == states()


@pytest.mark.django_db(transaction=True)
def test_texts_that_a_database_would_refuse(celery_app: Celery, receiving: Receiving) -> None:
    """A name with a zero byte or half a character raises nothing into the sender's transaction (H18)."""
    signal = Signal()
    names.name_signal(signal, "bells:zero\x00half\ud800")
    receiving(signal, guarantee="durable")

    with transaction.atomic():
        signal.send(sender="zero\x00half\ud800" + "long" * 100)

    [row] = deliveries("default")
    assert "bells:zero\\x00half\\ud800" == row.signal
    assert "zero\\x00half\\ud800long" in row.summary
    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("connected", [False, True])
def test_straight_from_a_coroutine(connected: bool, celery_app: Celery, receiving: Receiving) -> None:
    """A coroutine cannot write a row, and Django says so before anything is sent (H24)."""
    receiving(bell, guarantee="durable")
    connection.ensure_connection() if connected else connection.close()

    async def send() -> None:
        bell.send(sender="door")

    with pytest.raises(SynchronousOnlyOperation):
        asyncio.run(send())

    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("send", ["asend", "asend_robust"])
def test_a_coroutine_that_waits(send: str, celery_app: Celery, receiving: Receiving) -> None:
    """What a coroutine sends with asend() is a row of the transaction of the code that runs it (H24)."""
    receiving(bell, guarantee="durable")

    async def wait() -> None:
        await getattr(bell, send)(sender="door")

    with transaction.atomic():
        async_to_sync(wait)()
        inside = [take(celery_app), states()]

    assert [[], [State.SENT]] == inside
    assert 1 == len(take(celery_app))


# What becomes of Celery's options -----------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_the_message_has_the_events_id(celery_app: Celery, receiving: Receiving) -> None:
    """The message's id is the event's, at every attempt, and its retries are the row's (H47)."""
    receiving(bell, guarantee="durable")

    ring()
    [first] = take(celery_app)
    row = deliveries("default").get()
    row.attempts = 3
    message = outbox.message_of(celery_app, row, "default")
    handover_module.publish(message)
    [later] = take(celery_app)

    assert (row.event_id, 0) == (first.headers["id"], first.headers["retries"])
    assert (row.event_id, 3) == (later.headers["id"], later.headers["retries"])
    assert first.kwargs == later.kwargs


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("expires", [90, 90.0, timedelta(seconds=90)])
def test_the_row_expires_and_not_the_message(expires: Any, celery_app: Celery, receiving: Receiving) -> None:
    """``expires`` counts from the sending and is kept in the row: Celery would drop the message without a word."""
    receiving(bell, guarantee="durable", expires=expires)
    before = datetime.now(UTC)

    ring()

    [row], [message] = deliveries("default"), take(celery_app)
    end = datetime.fromisoformat(row.options["expires"]) - timedelta(seconds=90)
    assert before <= end <= datetime.now(UTC)
    assert message.headers["expires"] is None


@pytest.mark.django_db(transaction=True)
def test_a_tasks_own_expiry(celery_app: Celery, receiving: Receiving) -> None:
    """Celery's ``expires`` of the task becomes the row's as well, unless the connection has one of its own."""
    moment = datetime(2099, 1, 1, tzinfo=UTC)
    task = receiving(bell, guarantee="durable")
    task.expires = 3600
    other = Signal()
    connect(other, task, guarantee="durable", expires=moment)

    try:
        ring()
        other.send(sender=None)
    finally:
        disconnect(other, task)

    one, two = [datetime.fromisoformat(row.options["expires"]) for row in deliveries("default").order_by("pk")]
    assert timedelta(seconds=3580) < one - datetime.now(UTC) <= timedelta(seconds=3600)
    assert moment == two
    assert [None, None] == [message.headers["expires"] for message in take(celery_app)]


@pytest.mark.django_db(transaction=True)
def test_options_are_kept_in_the_row(celery_app: Celery, receiving: Receiving) -> None:
    """Queue and priority are the row's, for every publication of it; a queue is where Celery's router leads."""
    receiving(bell, guarantee="durable", queue="slow_lane", priority=3)

    ring()

    [row], [message] = deliveries("default"), take(celery_app, "slow_lane")
    assert {"queue": "slow_lane", "priority": 3} == row.options
    assert "slow_lane" == row.queue
    assert 3 == message.properties["priority"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("inherits", [True, False])
def test_the_lineage_is_kept_in_the_row(inherits: bool, celery_app: Celery, receiving: Receiving) -> None:
    """What a task sends is its child, whoever publishes it, and has its priority if Celery should inherit that."""
    celery_app.conf.task_inherit_parent_priority = inherits
    receiving(bell, guarantee="durable")

    @celery_app.task(name="tests.unit.durable.test_outbox.rings")
    def rings() -> None:
        ring()

    try:
        rings.apply(task_id="the-parent", priority=4).get()
        rings.apply(task_id="the-parent").get()
    finally:
        del celery_app._tasks[rings.name]

    lineage = {"root_id": "the-parent", "parent_id": "the-parent"}
    kept = [row.options for row in deliveries("default").order_by("pk")]
    headers = [message.headers for message in take(celery_app)]
    assert [lineage | ({"priority": 4} if inherits else {}), lineage] == kept
    assert ["the-parent"] * 4 == [header[name] for header in headers for name in lineage]


# The fast path ----------------------------------------------------------------------------------------------------


@each_database
def test_what_is_due_later_is_the_relays(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """With a countdown the row is due then, and nothing is published now: brokers are no place to wait in."""
    receiving(bell, guarantee="durable", countdown=60)

    ring(alias)

    [row] = deliveries(alias)
    assert (State.READY, None, 0, {}) == (row.state, row.sent_at, row.sends, row.options)
    assert is_due(row, alias, seconds=60)
    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_large_transaction_is_the_relays(limit: int, celery_app: Celery, receiving: Receiving) -> None:
    """Of one commit the sender publishes FAST_PATH_LIMIT messages, and leaves the others to the relay at once."""
    receiving(bell, guarantee="durable")

    with override_settings(DJANGO_CELERY_SIGNALS={"FAST_PATH_LIMIT": limit}):
        with transaction.atomic():
            for _ in range(5):
                bell.send(sender="door")
        ring()

    rows = list(deliveries("default").order_by("pk"))
    fast = [State.SENT] * limit + [State.READY] * (5 - limit) + [State.SENT if limit else State.READY]
    assert fast == [row.state for row in rows]
    assert [row.pk for row in rows if row.state == State.SENT] == [pk for _, pk, _ in references(take(celery_app))]
    assert all(is_due(row) for row in rows if row.state == State.READY)


@pytest.mark.django_db(transaction=True)
def test_a_savepoint_does_not_begin_the_count_anew(celery_app: Celery, receiving: Receiving) -> None:
    """The limit is that of the whole transaction, whatever is rolled back within it, and whoever else has hooks."""
    receiving(bell, guarantee="durable")
    receiving(bell, guarantee="on_commit")

    with override_settings(DJANGO_CELERY_SIGNALS={"FAST_PATH_LIMIT": 3}), transaction.atomic():
        for _ in range(3):
            bell.send(sender="door")
            transaction.on_commit(list)
            with transaction.atomic():
                bell.send(sender="ghost")
                transaction.set_rollback(True)

    # Of five sendings until then, two had been rolled back: a limit that is reached early costs only a moment.
    assert [State.SENT, State.SENT, State.READY] == states()
    assert 3 + 2 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_an_open_breaker_leaves_it_to_the_relay(celery_app: Celery, receiving: Receiving) -> None:
    """While the broker is known to be away nothing is tried, and the row is due at once (H31)."""
    receiving(bell, guarantee="durable")
    publisher().lines(celery_app).breaker.failed(0.0, "OSError: no route")

    try:
        with hearing(event_lost) as lost, CaptureQueriesContext(connection) as queries:
            bell.send(sender="door")
    finally:
        forget_connections()

    assert 1 == len(queries)
    [row] = deliveries("default")
    assert (State.READY, 0, None) == (row.state, row.sends, row.sent_at)
    assert is_due(row)
    assert [] == lost == take(celery_app)


@pytest.mark.django_db(transaction=True)
def test_a_task_that_this_process_does_not_have(celery_app: Celery, receiving: Receiving) -> None:
    """A sender without the receiver's module writes the row all the same, for a relay that has it (H32)."""
    task = receiving(bell, guarantee="durable")
    del celery_app._tasks[task.name]

    with hearing(event_lost) as lost, CaptureQueriesContext(connection) as queries:
        bell.send(sender="door")

    assert 1 == len(queries)
    assert [State.READY] == states()
    assert [] == lost == take(celery_app)


@pytest.mark.django_db(transaction=True)
def test_a_connection_without_autocommit(celery_app: Celery, receiving: Receiving) -> None:
    """With autocommit off nobody hears of the commit, so the relay finds the row after it, and no row before (H40)."""
    receiving(bell, guarantee="durable")
    connection.set_autocommit(False)

    try:
        bell.send(sender="ghost")
        connection.rollback()
        bell.send(sender="door")
        connection.commit()
    finally:
        connection.rollback()
        connection.set_autocommit(True)

    assert [("bell door", State.READY)] == [(row.summary, row.state) for row in deliveries("default")]
    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
def test_a_block_without_autocommit(celery_app: Celery, receiving: Receiving) -> None:
    """An atomic block says when it commits, whatever the autocommit outside of it (H40)."""
    receiving(bell, guarantee="durable")
    connection.set_autocommit(False)

    try:
        with transaction.atomic():
            bell.send(sender="door")
        connection.commit()
        before = take(celery_app)
    finally:
        connection.set_autocommit(True)

    assert [State.SENT] == states()
    assert ([], 1) == (before, len(take(celery_app)))


# Failures of the broker -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_transaction", [True, False])
@each_database
def test_what_the_broker_does_not_take_is_put_back(
    alias: str, in_transaction: bool, outage: PublishError, receiving: Receiving
) -> None:
    """A failure that is known leaves the row to the relay; it is neither raised nor told as a loss (H31)."""
    receiving(bell, guarantee="durable")

    with hearing(event_lost) as lost, hearing(event_sent) as sent:
        ring(alias) if in_transaction else bell.send(sender="door", using=alias)

    [row] = deliveries(alias)
    assert (State.READY, None, 0) == (row.state, row.sent_at, row.sends)
    assert is_due(row, alias)
    assert [] == lost == sent


@pytest.mark.django_db(transaction=True)
def test_one_that_fails_does_not_stop_the_others(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message of a commit is published or put back by itself (H38)."""
    receiving(bell, guarantee="durable")
    publish, tries = Publisher.publish, iter([False, True, False])

    def fail_in_the_middle(self: Publisher, app: Celery, *args: Any) -> None:
        if next(tries):
            raise PublishTimeout("The broker did not answer.")
        publish(self, app, *args)

    monkeypatch.setattr(Publisher, "publish", fail_in_the_middle)

    with transaction.atomic():
        for _ in range(3):
            bell.send(sender="door")

    assert [State.SENT, State.READY, State.SENT] == states()
    assert 2 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_was_faster_is_not_disturbed(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that arrived although the broker did not say so may be running already; its row is left as it is."""
    receiving(bell, guarantee="durable")

    def publish_and_open(self: Publisher, *args: Any) -> None:
        deliveries("default").update(state=State.RUNNING, token=7)
        raise PublishTimeout("The broker did not answer.")

    monkeypatch.setattr(Publisher, "publish", publish_and_open)

    ring()

    assert [State.RUNNING] == states()


@pytest.mark.parametrize("error", [DatabaseError("read-only"), InterfaceError("connection already closed")])
@pytest.mark.parametrize("in_transaction", [True, False])
@pytest.mark.django_db(transaction=True)
def test_what_cannot_be_put_back_is_late(
    in_transaction: bool,
    error: Exception,
    outage: PublishError,
    receiving: Receiving,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the database fails right after the commit, the row stays "sent" for the relay's probe; nothing is raised."""
    receiving(bell, guarantee="durable")

    def fail(self: DeliveryQuerySet, *args: Any) -> int:
        raise error

    monkeypatch.setattr(DeliveryQuerySet, "put_back", fail)

    ring() if in_transaction else bell.send(sender="door")

    [record] = [record for record in caplog.records if record.name == outbox.logger.name]
    assert (logging.WARNING, error) == (record.levelno, record.args[1])  # type: ignore[index]
    assert [State.SENT] == states()


@pytest.mark.django_db(transaction=True)
def test_a_wait_that_is_interrupted(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends the wait from outside, such as a time limit, passes; the relay sends it, or a copy."""
    receiving(bell, guarantee="durable")

    def interrupted(self: Publisher, *args: Any) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(Publisher, "publish", interrupted)

    with hearing(event_lost) as lost, pytest.raises(SoftTimeLimitExceeded):
        bell.send(sender="door")

    assert [] == lost
    assert [State.READY] == states()


@pytest.mark.django_db(transaction=True)
def test_messages_of_a_commit_share_their_patience(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """All messages of one commit together wait PUBLISH_TIMEOUT and not more; the rest is the relay's at once (H31)."""
    receiving(bell, guarantee="durable")
    clock, given = SimpleNamespace(now=1000.0), []
    monkeypatch.setattr(handover_module, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def slow(self: Publisher, app: Celery, publish: Any, timeout: float, doubt: Any) -> None:
        given.append(timeout)
        clock.now += min(0.75, timeout)
        if timeout < 0.75:
            raise PublishTimeout("The broker did not answer.")

    monkeypatch.setattr(Publisher, "publish", slow)

    with override_settings(DJANGO_CELERY_SIGNALS={"PUBLISH_TIMEOUT": 2.0}), transaction.atomic():
        for _ in range(10):
            bell.send(sender="door")
            with transaction.atomic():
                bell.send(sender="ghost")
                transaction.set_rollback(True)

    assert [2.0, 1.25, 0.5] == given
    assert [State.SENT] * 2 + [State.READY] * 8 == states()
    assert 1002.0 == clock.now


# Turns ------------------------------------------------------------------------------------------------------------

ORDERED: dict[str, Any] = {"ordered": True, "key": lambda key=0: key}
COALESCED: dict[str, Any] = {"coalesce": True, "key": lambda key=0: key}
KINDS = {"ordered": ORDERED, "coalesced": COALESCED, "both": ORDERED | COALESCED}


@each_database
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_transaction", [True, False])
def test_turn(alias: str, kind: str, in_transaction: bool, celery_app: Celery, receiving: Receiving) -> None:
    """The first of a key is published after its commit; what comes behind it waits, and so does its own like."""
    receiving(bell, guarantee="durable", **KINDS[kind])
    for key in ("a", "b"):
        if in_transaction:
            with transaction.atomic(using=alias):
                for number in range(2):
                    bell.send(sender="door", using=alias, key=key, number=number)
                row = deliveries(alias).filter(key=key).first()
                assert (State.READY, None, None, 0) == (row.state, row.slot, row.due_at, row.sends)
                assert [] == take(celery_app)
        else:
            for number in range(2):
                bell.send(sender="door", using=alias, key=key, number=number)
        row, behind = deliveries(alias).filter(key=key).order_by("pk")
        assert [(alias, row.pk, row.token)] == references(take(celery_app))
        assert (State.SENT, row.lane, None, 1) == (row.state, row.slot, row.due_at, row.sends)
        assert (State.READY, row.lane, None, None, 0) == (
            behind.state,
            behind.lane,
            behind.slot,
            behind.due_at,
            behind.sends,
        )
        assert 1 == deliveries(alias).filter(pk=row.pk, sent_at__lte=In(0), sent_at__gt=In(-20)).count()


@each_database
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_transaction", [True, False])
def test_what_a_turn_costs_the_sender(alias: str, kind: str, in_transaction: bool, receiving: Receiving) -> None:
    """Where nobody else has the turn, it costs one statement more, after the commit; where somebody has, as well."""
    other = Signal()
    receiving(bell, guarantee="durable")
    receiving(other, guarantee="durable", **KINDS[kind])
    connections[alias].ensure_connection()

    def statements(signal: Signal) -> list[str]:
        with CaptureQueriesContext(connections[alias]) as captured:
            if in_transaction:
                with transaction.atomic(using=alias):
                    signal.send(sender="door", using=alias)
            else:
                signal.send(sender="door", using=alias)
        return [query["sql"].split()[0] for query in captured]

    plain, first, second = statements(bell), statements(other), statements(other)
    assert [*plain, "UPDATE"] == first == second


@each_database
def test_turn_of_a_sender_that_is_late(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """What was run meanwhile and is to run again has another token: its sender's message would open nothing."""
    receiving(bell, guarantee="durable", **COALESCED)
    with transaction.atomic(using=alias):
        transaction.on_commit(lambda: deliveries(alias).update(token=7), using=alias)
        bell.send(sender="door", using=alias)

    [row] = deliveries(alias)
    assert (State.READY, None) == (row.state, row.slot)
    assert [] == take(celery_app)


@each_database
@pytest.mark.parametrize("kind", KINDS)
def test_many_of_a_key_in_a_transaction(alias: str, kind: str, celery_app: Celery, receiving: Receiving) -> None:
    """Only the first of a key asks for its turn after a commit; what was rolled back is no first."""
    receiving(bell, guarantee="durable", **KINDS[kind])
    with CaptureQueriesContext(connections[alias]) as captured, transaction.atomic(using=alias):
        for key in "ab":
            with transaction.atomic(using=alias):
                bell.send(sender="ghost", using=alias, key=key)
                transaction.set_rollback(True, using=alias)
            for _ in range(3):
                bell.send(sender="door", using=alias, key=key)

    assert 2 == sum(query["sql"].startswith("UPDATE") for query in captured)
    firsts = [deliveries(alias).filter(key=key).order_by("pk")[0].pk for key in "ab"]
    assert firsts == [pk for _, pk, _ in references(take(celery_app))]


@each_database
def test_a_savepoint_that_is_rolled_back_by_hand(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """Django then calls the hook of a sending that is undone; it takes no turn from the next of its key."""
    receiving(bell, guarantee="durable", **ORDERED)
    with transaction.atomic(using=alias):
        point = connections[alias].savepoint()
        bell.send(sender="ghost", using=alias, key="a")
        connections[alias].cursor().execute(f"ROLLBACK TO SAVEPOINT {connections[alias].ops.quote_name(point)}")
        bell.send(sender="door", using=alias, key="a")

    [row] = deliveries(alias)
    assert (State.SENT, row.lane) == (row.state, row.slot)
    assert [row.pk] == [pk for _, pk, _ in references(take(celery_app))]


@each_database
@pytest.mark.parametrize(
    ("options", "seconds", "asked"),
    [
        ({**ORDERED, "countdown": 60}, 60, {"countdown": 60}),
        ({"debounce": 30, "key": lambda: 0}, 30, {"debounce": 30, "max_wait": 450}),
        (
            {"debounce": 30, "max_wait": 60, "countdown": 60, "key": lambda: 0},
            60,
            {"debounce": 30, "max_wait": 60, "countdown": 60},
        ),
    ],
    ids=["countdown", "debounce", "both"],
)
def test_turn_later(
    alias: str, options: dict[str, Any], seconds: float, asked: dict[str, float], celery_app: Celery, receiving: Any
) -> None:
    """What is to wait is the relay's, and its row says for how long: that counts again when its turn comes."""
    receiving(bell, guarantee="durable", **options)

    ring(alias)

    [row] = deliveries(alias)
    assert (State.READY, None, asked) == (row.state, row.slot, row.options)
    assert is_due(row, alias, seconds=seconds)
    assert [] == take(celery_app)
    message = outbox.message_of(celery_app, row, alias)
    assert set() == {"countdown", "debounce", "max_wait"} & message.options.keys()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("key", "kept"),
    [("x" * 300, "x" * 200 + "…"), ("a\0b\ud800", "a\\x00b\\ud800"), ("\0" * 200, ("\\x00" * 200)[:255])],
    ids=["long", "zero", "many zeros"],
)
def test_keys_that_a_database_would_refuse(key: str, kept: str, receiving: Receiving) -> None:
    """Any text can be a key, and is shown as far as it can be."""
    receiving(bell, guarantee="durable", **ORDERED)

    ring(key=key)
    ring(key=key + "1")

    one, two = deliveries("default").order_by("pk")
    assert kept == one.key
    assert one.lane == one.slot != two.lane


@each_database
@pytest.mark.usefixtures("outage")
def test_turn_that_the_broker_does_not_take(alias: str, receiving: Receiving) -> None:
    """What has its turn and cannot be published keeps it, and is the relay's."""
    receiving(bell, guarantee="durable", **ORDERED)

    ring(alias)
    ring(alias)

    row, behind = deliveries(alias).order_by("pk")
    assert (State.READY, row.lane, 0) == (row.state, row.slot, row.sends)
    assert is_due(row, alias)
    assert (None, None) == (behind.slot, behind.due_at)


def database_away(*_: Any, **__: Any) -> None:
    raise OperationalError("away")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("in_transaction", [True, False])
def test_turn_that_cannot_be_taken(
    in_transaction: bool,
    celery_app: Celery,
    receiving: Receiving,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the database fails right after the commit, nothing is raised or published: the relay finds what waits."""
    receiving(bell, guarantee="durable", **ORDERED)
    monkeypatch.setattr(DeliveryQuerySet, "take_turn", database_away)

    ring() if in_transaction else bell.send(sender="door")

    [row] = deliveries("default")
    assert (State.READY, None, None) == (row.state, row.slot, row.due_at)
    assert f"Delivery {row.pk} could not have its turn, and will be late: away" in caplog.text
    assert [] == take(celery_app)
    assert ([row.lane], "") == deliveries("default").strays("", 10)


@pytest.mark.django_db(transaction=True)
def test_turns_that_cannot_be_taken(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a key, a database that is away is asked once for each commit."""
    receiving(bell, guarantee="durable", **ORDERED)
    asked: list[Any] = []

    def away(self: Any, pk: int, lane: str) -> bool:
        asked.append(lane)
        database_away()
        return False

    monkeypatch.setattr(DeliveryQuerySet, "take_turn", away)
    with transaction.atomic():
        for _ in range(3):
            bell.send(sender="door", key="a")

    assert 1 == len(asked)
    assert {State.READY} == set(states())


@pytest.fixture
def lane(receiving: Receiving) -> str:
    """A key in which two deliveries wait, and none has its turn."""
    receiving(bell, guarantee="durable", queue="turns", **ORDERED)
    with override_settings(DJANGO_CELERY_SIGNALS={"FAST_PATH_LIMIT": 0}):
        for _ in range(2):
            ring()
    deliveries("default").update(due_at=None)
    return str(deliveries("default").first().lane)


@pytest.mark.django_db(transaction=True)
def test_next_when_the_time_is_over(lane: str, celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had its turn when a time limit ended the publication is the relay's at once, and keeps the turn."""

    def publish(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(outbox, "publish", publish)
    outbox.publish_next(celery_app, "default", lane)

    first = deliveries("default").order_by("pk")[0]
    assert (State.READY, lane, 0) == (first.state, first.slot, first.sends)
    assert is_due(first, "default")


@pytest.mark.django_db(transaction=True)
def test_next(lane: str, celery_app: Celery) -> None:
    """The next of a key is published at once, as its sending asked for; one after the other."""
    outbox.publish_next(celery_app, "default", lane)
    outbox.publish_next(celery_app, "default", lane)

    first, second = deliveries("default").order_by("pk")
    assert (State.SENT, lane, State.READY, None) == (first.state, first.slot, second.state, second.slot)
    assert [("default", first.pk, first.token)] == references(take(celery_app, "turns"))
    deliveries("default").filter(pk=first.pk).erase()
    outbox.publish_next(celery_app, "default", lane)
    assert [("default", second.pk, second.token)] == references(take(celery_app, "turns"))
    deliveries("default").erase()
    outbox.publish_next(celery_app, "default", lane)
    assert [] == take(celery_app, "turns")


@pytest.mark.django_db(transaction=True)
def test_next_while_the_broker_is_away(lane: str, celery_app: Celery) -> None:
    """While the broker is known to be away, the next of a key is the relay's."""
    publisher().lines(celery_app).breaker.failed(0.0, "OSError: no route")
    try:
        outbox.publish_next(celery_app, "default", lane)
    finally:
        forget_connections()

    first, _ = deliveries("default").order_by("pk")
    assert (State.READY, lane, 0) == (first.state, first.slot, first.sends)
    assert is_due(first)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("outage")
def test_next_that_the_broker_does_not_take(lane: str, celery_app: Celery) -> None:
    """What cannot be published keeps its turn, and is the relay's."""
    outbox.publish_next(celery_app, "default", lane)

    first, _ = deliveries("default").order_by("pk")
    assert (State.READY, lane, 0) == (first.state, first.slot, first.sends)
    assert is_due(first)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [OperationalError("away"), SoftTimeLimitExceeded()], ids=repr)
def test_next_that_cannot_be_told(
    lane: str,
    celery_app: Celery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """When the database fails after a delivery has ended, or its time limit is over just then, that raises nothing:
    the relay finds what waits."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(DeliveryQuerySet, "pass_turn", fail)

    outbox.publish_next(celery_app, "default", lane)

    said = f"What waits in a lane of 'default' could not have its turn, and will be late: {error!r}"
    assert said in caplog.text
    assert [State.READY, State.READY] == states()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", KINDS)
def test_eager_turns(kind: str, celery_app: Celery, receiving: Receiving) -> None:
    """Eager, nothing takes turns: each runs after its commit, though one before it has failed, or runs itself."""
    seen: list[Any] = []
    celery_app.conf.task_always_eager = True
    inner = Signal()

    def act(number: int, event: Any) -> None:
        seen.append((number, event.key, event.coalesced))
        if number == 0:
            raise ValueError
        if number == 1:
            inner.send(sender="door", number=3)

    receiving([bell, inner], act, guarantee="durable", **KINDS[kind])

    with transaction.atomic():
        for number in range(3):
            bell.send(sender="door", number=number)

    assert [(0, "0", 0), (1, "0", 0), (3, "0", 0), (2, "0", 0)] == seen
    [failed] = deliveries("default")
    assert (State.READY, "0", None, 1) == (failed.state, failed.key, failed.lane, failed.attempts)


# Failures of the database -----------------------------------------------------------------------------------------


@contextmanager
def without_table(alias: str) -> Iterator[None]:
    """Take the table away for a while."""

    def rename(before: str, after: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(f"ALTER TABLE {before} RENAME TO {after}")

    rename(TABLE, "elsewhere")
    try:
        yield
    finally:
        rename("elsewhere", TABLE)


@each_database
def test_a_table_that_is_not_there(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """What cannot be written is raised, with a note that names the receiver, the database and the remedy (H41)."""
    task = receiving(bell, guarantee="durable")

    with without_table(alias), pytest.raises(DatabaseError) as caught:
        ring(alias)

    [note] = caught.value.__notes__
    assert f"the delivery for {task.name} to the database {alias!r}" in note
    assert f"manage.py migrate --database={alias}" in note
    assert [] == take(celery_app)


@each_database
def test_a_migration_needs_no_table(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """pre_migrate and post_migrate are sent when there is no table yet: by default their receivers need none (H42)."""
    config = apps.get_app_config("shop")
    receiving([pre_migrate, post_migrate], sender=config)

    with override_settings(DJANGO_CELERY_SIGNALS={}), without_table(alias):
        for signal in (pre_migrate, post_migrate):
            signal.send(sender=config, app_config=config, using=alias, verbosity=0, interactive=False, plan=[])

    assert [alias, alias] == [dict(message.body["kwargs"])["using"] for message in take(celery_app)]


@each_database
def test_a_migration_may_be_durable(alias: str, celery_app: Celery, receiving: Receiving) -> None:
    """Asked for by name, it is durable there, too (H42)."""
    receiving(bell, guarantee="durable")
    config = apps.get_app_config("shop")
    receiving(post_migrate, sender=config, guarantee="durable")

    post_migrate.send(sender=config, app_config=config, using=alias, verbosity=0, interactive=False, plan=[])

    assert [State.SENT] == states(alias)
    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_is_broken(celery_app: Celery, receiving: Receiving) -> None:
    """In a transaction that can only be rolled back the sending raises, and nothing is published instead (H41)."""
    receiving(bell, guarantee="durable")

    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(TransactionManagementError):
            bell.send(sender="door")

    assert [] == list(deliveries("default")) == take(celery_app)


# Where there is no table at all -----------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", ["durable", "on_commit"])
@pytest.mark.django_db(transaction=True)
def test_without_the_app(
    guarantee: str, celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the app is not installed, to ask for "durable" is an error that names the remedy; nothing else is."""
    task = receiving(bell, guarantee=guarantee)
    others = {label: config for label, config in apps.app_configs.items() if label != "django_celery_signals"}
    monkeypatch.setattr(apps, "app_configs", others)

    if guarantee == "on_commit":
        ring()
        assert 1 == len(take(celery_app))
        return
    with pytest.raises(SettingsError, match="Add 'django_celery_signals' to INSTALLED_APPS and run") as caught:
        ring()

    monkeypatch.undo()
    assert f"{task.name} is connected with guarantee='durable'" in str(caught.value)
    assert [] == list(deliveries("default")) == take(celery_app)


@pytest.mark.django_db(transaction=True)
def test_a_database_that_cannot_hold_them(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a database that the library does not know, the error names it and the remedy, before a query."""
    task = receiving(bell, guarantee="durable")
    monkeypatch.setattr(connection, "vendor", "oracle")

    with CaptureQueriesContext(connection) as queries, pytest.raises(SettingsError, match=r"\(oracle\)") as caught:
        bell.send(sender="door")

    assert f"{task.name} is connected with guarantee='durable'" in str(caught.value)
    assert "Send with using= one of these, or choose guarantee='on_commit'." in str(caught.value)
    assert 0 == len(queries)


def test_no_database_at_all(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project without a default database gets the same error, for a sending that names none (H42)."""
    receiving(bell, guarantee="durable")
    unconfigured = Unconfigured({**connection.settings_dict, "ENGINE": ""}, "default")
    monkeypatch.setattr(connections._connections, "default", unconfigured)

    with pytest.raises(SettingsError, match="the sending belongs to the database 'default', which is unknown"):
        bell.send(sender="door")


# Eager ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"countdown": 60}], ids=["at_once", "countdown"])
@pytest.mark.django_db(transaction=True)
def test_eager_runs_after_the_commit(options: dict[str, Any], celery_app: Celery, receiving: Receiving) -> None:
    """With task_always_eager every receiver runs here, after the commit, however many and whenever they are due."""
    seen: list[uuid.UUID] = []
    celery_app.conf.task_always_eager = True
    receiving(bell, lambda number: seen.append(number), guarantee="durable", **options)
    numbers = [uuid.UUID(int=number) for number in range(3)]

    with override_settings(DJANGO_CELERY_SIGNALS={"FAST_PATH_LIMIT": 1}), transaction.atomic():
        for number in numbers:
            bell.send(sender="door", number=number)
        inside = list(seen)

    assert ([], numbers) == (inside, seen)
    assert [] == list(deliveries("default"))


def fail(**kwargs: Any) -> None:
    raise ZeroDivisionError("The receiver fails.")


@pytest.mark.parametrize("send", [ring, lambda: bell.send(sender="door")], ids=["transaction", "autocommit"])
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [ZeroDivisionError(), IntegrityError()], ids=repr)
@pytest.mark.parametrize("options", [{}, {"coalesce": True, "key": lambda: 0}], ids=["plain", "in turn"])
def test_eager_errors_propagate_to_the_test(
    send: Callable[[], None], error: Exception, options: dict[str, Any], celery_app: Celery, receiving: Receiving
) -> None:
    """With task_eager_propagates a receiver's error is raised by the commit that ran it; its row waits, counted."""
    celery_app.conf.update(task_always_eager=True, task_eager_propagates=True)

    def raise_it() -> None:
        raise error

    receiving(bell, raise_it, guarantee="durable", **options)

    with pytest.raises(type(error)):
        send()

    [row] = deliveries("default")
    assert (State.READY, 1) == (row.state, row.attempts)


@pytest.mark.django_db(transaction=True)
def test_eager_errors_stay_in_their_row(celery_app: Celery, receiving: Receiving) -> None:
    """Without task_eager_propagates a receiver's error reaches the sender no more than a worker's would."""
    celery_app.conf.update(task_always_eager=True, task_eager_propagates=False)
    receiving(bell, fail, guarantee="durable")

    ring()

    [row] = deliveries("default")
    assert (State.READY, 1, "ZeroDivisionError") == (row.state, row.attempts, row.error_type)


@pytest.mark.django_db(transaction=True)
def test_what_a_receiver_sends_is_delivered(celery_app: Celery, receiving: Receiving) -> None:
    """A durable receiver that sends durably does so in its own transaction."""
    second = Signal()
    receiving(bell, lambda: second.send(sender="bell"), guarantee="durable")
    receiving(second, guarantee="durable")

    ring()
    [message] = take(celery_app)
    run(celery_app, message)

    [row] = deliveries("default")
    assert (State.SENT, "signal bell") == (row.state, row.summary)
    assert message.headers["id"] == row.options["parent_id"]
    assert [("default", row.pk, row.token)] == references(take(celery_app))


# What was not waited for -------------------------------------------------------------------------------------------


def ways_to(alias: str) -> list[Reference]:
    return [
        Reference(alias=alias, id=row.pk, token=row.token, receiver=row.receiver)
        for row in deliveries(alias).order_by("pk")
    ]


@each_database("default", "postgres", "mariadb")
def test_what_the_broker_may_not_have_is_put_back(alias: str) -> None:
    """All at once, but what a worker has opened meanwhile, or what is another delivery by now."""
    place_sent(alias, "tests.nobody", "mails", 4)
    one, opened, another, last = ways_to(alias)
    deliveries(alias).filter(pk=opened.id).update(state=State.RUNNING, token=opened.token + 1)

    outbox._put_back_all([one, opened, replace(another, token=7), last])

    assert [State.READY, State.RUNNING, State.SENT, State.READY] == states(alias)


@each_database("default", "postgres", also=["other"])
def test_not_in_somebody_elses_transaction(alias: str) -> None:
    """An error there would break what the project does, and a lock last as long; the probe finds it."""
    place_sent(alias, "tests.nobody", "mails")
    place_sent("other", "tests.nobody", "mails")

    with transaction.atomic(using=alias):
        later = outbox._put_back_all([*ways_to(alias), *ways_to("other")])

    assert ([State.SENT], [State.READY]) == (states(alias), states("other"))
    assert ways_to(alias) == later


@pytest.mark.django_db(transaction=True)
def test_what_cannot_be_put_back_together(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """When the database fails just then, nothing is raised into another sending."""
    place_sent("default", "tests.nobody", "mails")

    def fail(self: DeliveryQuerySet, *args: Any) -> int:
        raise DatabaseError("read-only")

    monkeypatch.setattr(DeliveryQuerySet, "put_back_all", fail)

    outbox._put_back_all(ways_to("default"))

    assert "1 delivery could not be put back" in caplog.text


@pytest.mark.parametrize("queue", ["mails", ""])
def test_what_no_probe_finds_is_waited_for(celery_app: Celery, monkeypatch: pytest.MonkeyPatch, queue: str) -> None:
    """Where a route names no queue, a loss would be found out only after a quarter of an hour."""
    given: list[Any] = []
    monkeypatch.setattr(outbox, "publish", lambda message, patience, doubt: given.append(doubt))
    row = SimpleNamespace(
        folds=False,
        **{
            "pk": 1,
            "token": 2,
            "receiver": "shop.notify",
            "options": {},
            "event_id": "e",
            "signal": "s",
            "summary": "t",
        },
        **{"attempts": 0, "queue": queue},
    )

    outbox.publish_or_leave(outbox.message_of(celery_app, row, "default"), handover_module.Patience())

    assert bool(queue) == (given != [None])
