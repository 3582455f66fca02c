"""What happens between a sending and the broker: the guarantees side by side, and what a message looks like."""

from __future__ import annotations

import asyncio
import json
import weakref
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from asgiref.sync import async_to_sync
from celery import Celery
from django.contrib.auth.signals import user_login_failed
from django.core.signals import got_request_exception
from django.db import connection, transaction
from django.db.models.signals import post_save
from django.db.transaction import TransactionManagementError
from django.dispatch import Signal
from django.test import override_settings

from django_celery_signals import Event, PublishError, connect, deliveries
from django_celery_signals.event import new_event, running
from django_celery_signals.handover import counts
from django_celery_signals.signals import event_lost
from tests.drain import Published, run, take
from tests.receiving import Receiving, hearing
from tests.shop.models import Customer, Tag

closing_time, opening_time = Signal(), Signal()


def summaries(messages: list[Published]) -> list[str]:
    return [message.body["summary"] for message in messages]


# on_commit ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_on_commit_waits_for_the_commit(celery_app: Celery, receiving: Receiving) -> None:
    """A sending inside a transaction is published when that commits, and not before (H33)."""
    receiving(post_save, sender=Tag)

    with transaction.atomic():
        tag = Tag.objects.create(name="new")
        before = take(celery_app)

    assert [] == before
    assert [f"post_save shop.Tag pk={tag.pk} created"] == summaries(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_on_commit_publishes_at_once_in_autocommit(celery_app: Celery, receiving: Receiving) -> None:
    """Without a transaction there is nothing to wait for (H34)."""
    receiving(closing_time)

    closing_time.send(sender="door")

    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_on_commit_needs_to_know_the_commit(celery_app: Celery, receiving: Receiving) -> None:
    """With autocommit off and no atomic block, the error names the receiver and the remedy (H40)."""
    task = receiving(closing_time)

    connection.set_autocommit(False)
    try:
        with pytest.raises(TransactionManagementError, match=r"guarantee='immediate'") as caught:
            closing_time.send(sender="door")
    finally:
        connection.rollback()
        connection.set_autocommit(True)

    assert task.name in str(caught.value)
    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
def test_on_commit_with_autocommit_off_inside_atomic(celery_app: Celery, receiving: Receiving) -> None:
    """An atomic block says when it commits, whatever the autocommit outside of it (H40)."""
    receiving(closing_time)

    connection.set_autocommit(False)
    try:
        with transaction.atomic():
            closing_time.send(sender="door")
        connection.commit()
    finally:
        connection.set_autocommit(True)

    # Django runs the hooks of such a connection when autocommit comes back.
    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_on_commit_opens_no_connection(celery_app: Celery, receiving: Receiving) -> None:
    """Sending outside of every transaction needs no database, not even a connection to it (H34)."""
    receiving(closing_time)
    connection.close()

    closing_time.send(sender="door")

    assert connection.connection is None
    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_on_commit_on_a_connection_that_is_to_have_autocommit_off(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that will be opened with autocommit off has no commit to wait for, either (H40)."""
    receiving(closing_time)
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)

    with pytest.raises(TransactionManagementError, match=r"guarantee='immediate'"):
        closing_time.send(sender="door")

    assert connection.connection is None
    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("connected", [False, True])
def test_on_commit_straight_from_a_coroutine(celery_app: Celery, receiving: Receiving, connected: bool) -> None:
    """A coroutine can hold no transaction open, so what it sends is published at once, without a query (H24)."""
    receiving(closing_time)
    connection.ensure_connection() if connected else connection.close()

    async def close() -> None:
        closing_time.send(sender="door")

    asyncio.run(close())

    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("send", ["asend", "asend_robust"])
def test_on_commit_from_a_coroutine_inside_a_transaction(celery_app: Celery, receiving: Receiving, send: str) -> None:
    """What a coroutine sends with asend() waits for the transaction of the code that runs the coroutine (H24, H33)."""
    receiving(closing_time)

    async def close() -> None:
        await getattr(closing_time, send)(sender="door")

    with transaction.atomic():
        async_to_sync(close)()
        inside = take(celery_app)

    assert [] == inside
    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_on_commit_straight_from_a_coroutine_never_raises(outage: PublishError, receiving: Receiving) -> None:
    """A failure is no more raised into a coroutine than into a request (H24, H31)."""
    receiving(closing_time)

    async def close() -> None:
        closing_time.send(sender="door")

    with hearing(event_lost) as heard:
        asyncio.run(close())

    assert [outage] == [fact["error"] for fact in heard]


# immediate ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_immediate_does_not_wait(celery_app: Celery, receiving: Receiving) -> None:
    """An immediate sending is published inside the transaction, and may be a ghost of one that rolls back."""
    receiving(post_save, sender=Tag, guarantee="immediate")

    with transaction.atomic():
        Tag.objects.create(name="ghost")
        inside = take(celery_app)
        transaction.set_rollback(True)

    assert 1 == len(inside)
    assert [] == take(celery_app)
    assert not Tag.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_immediate_asks_for_no_database(celery_app: Celery, receiving: Receiving) -> None:
    """An immediate sending about a row of a database that this process does not know is published all the same."""
    receiving(post_save, sender=Tag, guarantee="immediate")
    tag = Tag(pk=5)
    tag._state.adding, tag._state.db = False, "elsewhere"
    post_save.send(Tag, instance=tag, created=False)
    assert 1 == len(take(celery_app))


def test_immediate_raises_one_clear_error(
    outage: PublishError, receiving: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    """When the broker is away, an immediate sending raises, and is counted and told as lost (H23, H31)."""
    task = receiving(closing_time, guarantee="immediate")
    before = counts["lost"]

    with hearing(event_lost) as heard, pytest.raises(PublishError) as caught:
        closing_time.send(sender="door")

    assert outage is caught.value
    assert before + 1 == counts["lost"]
    assert [(task.name, outage)] == [(fact["receiver"], fact["error"]) for fact in heard]
    assert "Event lost" in caplog.text


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("send", ["send_robust", "asend_robust"])
def test_immediate_under_robust_sending(outage: PublishError, receiving: Receiving, send: str) -> None:
    """Django returns the error of an immediate receiver as its response (H23)."""
    receiving(closing_time, guarantee="immediate")

    if send == "send_robust":
        answers = closing_time.send_robust(sender="door")
    else:
        answers = asyncio.run(closing_time.asend_robust(sender="door"))

    assert [outage] == [answer for _, answer in answers]


@pytest.mark.parametrize("guarantee", ["on_commit", "immediate"])
@pytest.mark.django_db(transaction=True)
def test_guarantee_of_the_project(celery_app: Celery, receiving: Receiving, guarantee: str) -> None:
    """The setting GUARANTEE is the guarantee of the receivers that name none."""
    receiving(closing_time)

    with override_settings(DJANGO_CELERY_SIGNALS={"GUARANTEE": guarantee}), transaction.atomic():
        closing_time.send(sender="door")
        inside = take(celery_app)

    assert (guarantee == "immediate") is bool(inside)
    assert (guarantee == "on_commit") is bool(take(celery_app))


# durable -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_durable_is_kept_until_it_is_done(celery_app: Celery, receiving: Receiving) -> None:
    """A durable sending is a row from its transaction on, and a message from the commit on (H33)."""
    receiving(post_save, sender=Tag, guarantee="durable")

    with transaction.atomic():
        Tag.objects.create(name="new")
        inside = [len(take(celery_app)), len(deliveries("default"))]
    (message,) = take(celery_app)
    result = run(celery_app, message)

    assert [0, 1] == inside
    assert result.successful()
    assert [] == list(deliveries("default"))


@pytest.mark.django_db(transaction=True)
def test_the_three_on_one_signal(celery_app: Celery, receiving: Receiving) -> None:
    """Receivers of one sending have each their own guarantee."""
    durable, on_commit, immediate = (
        receiving(closing_time, guarantee=name) for name in ("durable", "on_commit", "immediate")
    )

    with transaction.atomic():
        closing_time.send(sender="door")
        inside = [message.task for message in take(celery_app)]

    assert [immediate.name] == inside
    assert [durable.name, on_commit.name] == [message.task for message in take(celery_app)]
    assert [durable.name] == [row.receiver for row in deliveries("default")]


# Audit -------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("guarantee", ["durable", "on_commit"])
@pytest.mark.parametrize("signal", [user_login_failed, got_request_exception])
def test_audit_signals_go_at_once(celery_app: Celery, receiving: Receiving, signal: Signal, guarantee: str) -> None:
    """What tells of a failure is published at once and survives the rollback that goes with it, whatever the project's
    guarantee (H43)."""
    receiving(signal)

    with override_settings(DJANGO_CELERY_SIGNALS={"GUARANTEE": guarantee}), transaction.atomic():
        signal.send(sender="guard", credentials={"username": "eve"}, request=None)
        inside = take(celery_app)
        transaction.set_rollback(True)

    assert 1 == len(inside)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("guarantee", ["on_commit", "durable"])
def test_audit_signals_wait_when_told_to(celery_app: Celery, receiving: Receiving, guarantee: str) -> None:
    """A guarantee that is named applies to audit signals as well (H43)."""
    receiving(user_login_failed, guarantee=guarantee)

    with transaction.atomic():
        user_login_failed.send(sender="guard", credentials={}, request=None)
        transaction.set_rollback(True)

    assert [] == take(celery_app)
    assert [] == list(deliveries("default"))


@pytest.mark.django_db(transaction=True)
def test_audit_signals_never_raise(outage: PublishError, receiving: Receiving) -> None:
    """A login that fails while the broker is away fails like any other (H31, H43)."""
    task = receiving(user_login_failed)

    with hearing(event_lost) as heard:
        user_login_failed.send(sender="guard", credentials={}, request=None)

    assert [(task.name, outage)] == [(fact["receiver"], fact["error"]) for fact in heard]


# Endless chains ----------------------------------------------------------------------------------------------------


@pytest.fixture
def third() -> Event:
    """An event that two others have caused."""
    event = new_event("tests.before", "tests:signal", "signal before", "default")
    return replace(event, chain=("one", "two", "three"))


@pytest.mark.parametrize("guarantee", ["on_commit", "immediate", None])
@pytest.mark.django_db(transaction=True)
def test_a_chain_that_is_too_long_is_lost(
    celery_app: Celery, receiving: Receiving, guarantee: str | None, third: Event
) -> None:
    """Beyond MAX_DEPTH nothing is published, and the loss is told with the event's id and the chain (H28)."""
    task = receiving(user_login_failed, guarantee=guarantee)  # without a guarantee, one for audits
    with override_settings(DJANGO_CELERY_SIGNALS={"MAX_DEPTH": 2}), hearing(event_lost) as heard, running(third):
        user_login_failed.send(sender="guard", credentials={}, request=None)

    (told,) = heard
    assert (task.name, "user_login_failed guard") == (told["receiver"], told["summary"])
    assert "one\n  two\n  three\n  user_login_failed guard" in str(told["error"])
    assert 36 == len(told["event_id"])
    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
def test_a_durable_chain_that_is_too_long_is_kept(celery_app: Celery, receiving: Receiving, third: Event) -> None:
    """A durable one is written and published all the same: the worker keeps it as failed, for people to see (H28)."""
    receiving(closing_time, guarantee="durable")
    with override_settings(DJANGO_CELERY_SIGNALS={"MAX_DEPTH": 2}), hearing(event_lost) as heard, running(third):
        closing_time.send(sender="door")

    (row,) = deliveries("default")
    assert ["one", "two", "three", f"closing_time door -> {row.receiver}"] == json.loads(row.payload)["chain"]
    assert 1 == len(take(celery_app))
    assert [] == heard


# The message -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_the_message_is_readable_and_holds_no_value_in_its_headers(celery_app: Celery, receiving: Receiving) -> None:
    """Flower shows what was sent by signal, model and key, and no field's value."""
    receiving(post_save, sender=Customer)

    customer = Customer.objects.create(name="Ada Lovelace", email="ada@example.com")

    (message,) = take(celery_app)
    assert f"post_save shop.Customer pk={customer.pk} created" == message.headers["argsrepr"]
    assert "{}" == message.headers["kwargsrepr"]
    assert "lovelace" not in str(message.headers).lower()
    assert "ada@" not in str(message.headers)


@pytest.mark.django_db(transaction=True)
def test_options_of_the_connection_reach_the_message(celery_app: Celery, receiving: Receiving) -> None:
    """Queue, priority and countdown of the connection are those of the message."""
    receiving(closing_time, queue="slow_lane", priority=3, countdown=60)
    before = datetime.now(UTC)

    closing_time.send(sender="door")

    (message,) = take(celery_app, "slow_lane")
    assert 3 == message.properties["priority"]
    eta = datetime.fromisoformat(message.headers["eta"])
    assert before + timedelta(seconds=60) <= eta <= datetime.now(UTC) + timedelta(seconds=60)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("expires", [90, 90.0, timedelta(seconds=90)])
def test_a_relative_expiry_counts_from_the_sending(
    celery_app: Celery, receiving: Receiving, expires: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late commit does not give the message a longer life."""
    receiving(closing_time, expires=expires)

    with transaction.atomic():
        before = datetime.now(UTC)
        closing_time.send(sender="door")
        after = datetime.now(UTC)
        monkeypatch.setattr(celery_app, "now", lambda: after + timedelta(hours=1))

    (message,) = take(celery_app)
    end = datetime.fromisoformat(message.headers["expires"])
    assert before + timedelta(seconds=90) <= end <= after + timedelta(seconds=90)


@pytest.mark.django_db(transaction=True)
def test_an_absolute_expiry_is_kept(celery_app: Celery, receiving: Receiving) -> None:
    """A moment given as expiry is the message's expiry."""
    end = datetime.now(UTC) + timedelta(hours=1)
    receiving(closing_time, expires=end)

    closing_time.send(sender="door")

    (message,) = take(celery_app)
    assert end == datetime.fromisoformat(message.headers["expires"])


@pytest.mark.django_db(transaction=True)
def test_an_expiry_without_a_zone_is_in_celerys(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A naive moment is one of Celery's time zone, for a message as for a row."""
    monkeypatch.setattr(celery_app, "timezone", ZoneInfo("Asia/Tokyo"))
    for guarantee in ("on_commit", "durable"):
        receiving(closing_time, guarantee=guarantee, expires=datetime(2099, 1, 1, 9))

    closing_time.send(sender="door")

    expires = [message.headers["expires"] for message in take(celery_app)]
    expires += [row.options["expires"] for row in deliveries("default")]
    end = datetime(2099, 1, 1, tzinfo=UTC)
    assert [end, None, end] == [text and datetime.fromisoformat(text) for text in expires]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("inherits", [True, False])
def test_what_a_task_sends_is_its_child(celery_app: Celery, receiving: Receiving, inherits: bool) -> None:
    """A message sent while a task runs names that task as its parent, and takes its priority over if Celery should."""
    celery_app.conf.task_inherit_parent_priority = inherits
    receiving(closing_time)

    @celery_app.task(name="tests.unit.test_dispatch.closes")
    def closes() -> None:
        closing_time.send(sender="door")

    try:
        result = closes.apply(task_id="the-parent", priority=4)
    finally:
        del celery_app._tasks[closes.name]

    (message,) = take(celery_app)
    assert result.successful()
    assert ("the-parent", "the-parent") == (message.headers["root_id"], message.headers["parent_id"])
    assert (4 if inherits else 0) == message.properties["priority"]


@pytest.mark.django_db(transaction=True)
def test_what_no_task_sends_is_nobodys_child(celery_app: Celery, receiving: Receiving) -> None:
    """A message sent by a request starts a lineage of its own."""
    receiving(closing_time)

    closing_time.send(sender="door")

    (message,) = take(celery_app)
    assert (message.headers["id"], None) == (message.headers["root_id"], message.headers["parent_id"])


# Eager -------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_eager_runs_after_the_commit(celery_app: Celery, receiving: Receiving) -> None:
    """With task_always_eager the receiver runs here, after the commit, with what went through the envelope."""
    seen: list[Any] = []

    def look(instance: Tag, created: bool, signal: Signal) -> None:
        seen.append((instance, created, signal))

    celery_app.conf.task_always_eager = True
    receiving(post_save, look, sender=Tag)

    with transaction.atomic():
        tag = Tag.objects.create(name="new")
        assert [] == seen

    ((instance, created, signal),) = seen
    assert (tag, True, post_save) == (instance, created, signal)
    assert instance is not tag


@pytest.mark.django_db(transaction=True)
def test_eager_goes_through_json(celery_app: Celery, receiving: Receiving) -> None:
    """An eager receiver gets what a worker would: what cannot be carried is a stand-in for it as well (H18)."""
    seen: list[Any] = []

    def look(door: Any, size: Any) -> None:
        seen.extend([door, size])

    celery_app.conf.task_always_eager = True
    receiving(closing_time, look)
    door, size = object(), [1, (2,)]

    closing_time.send(sender=None, door=door, size=size)

    assert "Unavailable" in repr(seen[0])
    assert size == seen[1]
    assert size is not seen[1]


def fail(**kwargs: Any) -> None:
    raise ZeroDivisionError("The receiver fails.")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("in_transaction", [True, False])
def test_eager_errors_propagate_to_the_test(celery_app: Celery, receiving: Receiving, in_transaction: bool) -> None:
    """With task_eager_propagates, a receiver's error is raised by the commit that ran it."""
    celery_app.conf.update(task_always_eager=True, task_eager_propagates=True)
    receiving(post_save, fail, sender=Tag)

    def save() -> None:
        with transaction.atomic():
            Tag.objects.create(name="new")

    with pytest.raises(ZeroDivisionError):
        save() if in_transaction else Tag.objects.create(name="new")


@pytest.mark.django_db(transaction=True)
def test_eager_errors_stay_in_their_result(celery_app: Celery, receiving: Receiving) -> None:
    """Without task_eager_propagates, an eager receiver's error reaches the sender no more than a worker's would."""
    celery_app.conf.update(task_always_eager=True, task_eager_propagates=False)
    receiving(post_save, fail, sender=Tag)

    with transaction.atomic():
        Tag.objects.create(name="new")

    assert Tag.objects.exists()


# Connecting --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_connecting_again_and_again_keeps_nothing(celery_app: Celery, receiving: Receiving) -> None:
    """A view that connects at every request leaves one receiver, and no finalizer behind (H5)."""
    task = receiving(closing_time)
    before = len(weakref.finalize._registry)  # type: ignore[attr-defined]

    for _ in range(50):
        connect(closing_time, task)
    closing_time.send(sender="door")

    assert len(weakref.finalize._registry) < before + 50  # type: ignore[attr-defined]
    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_sending_connects_nothing(celery_app: Celery, receiving: Receiving) -> None:
    """Sending, publishing and running add no receiver to any signal (H5)."""
    receiving(closing_time)
    before = len(closing_time.receivers)

    closing_time.send(sender="door")
    (message,) = take(celery_app)
    result = run(celery_app, message)

    assert result.successful()
    assert before == len(closing_time.receivers)
