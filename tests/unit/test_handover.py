"""Handing one message to the broker: how long that may take, and what is told of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import before_task_publish
from django.db import transaction
from django.dispatch import Signal
from django.test import override_settings

from django_celery_signals import PublishError, PublishTimeout
from django_celery_signals import handover as module
from django_celery_signals.ahead import Doubt
from django_celery_signals.handover import Message, counts
from django_celery_signals.publisher import Publisher
from django_celery_signals.signals import event_lost, event_sent
from tests.drain import take
from tests.project.celery import disconnect
from tests.receiving import Receiving, hearing

closing_time, opening_time = Signal(), Signal()


@pytest.mark.parametrize(
    "options", [{"task_id": "an-id"}, {"task_id": "an-id", "countdown": 5}], ids=["ours", "celerys"]
)
def test_what_celery_publishes_is_waited_for(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Where Celery makes the message itself, others may have a hand in it, who may take their time."""
    given: list[Any] = []
    monkeypatch.setattr(Publisher, "publish", lambda self, app, send, timeout, doubt: given.append(doubt))
    task, doubt = receiving(closing_time), Doubt("it", list)
    message = Message(
        app=celery_app, receiver=task.name, event_id="e", signal_name="s", summary="t", body={}, options=options
    )

    module.publish(message, None, doubt)

    assert [None if "countdown" in options else doubt] == given


# Patience -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time as a commit's messages see it, in seconds."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def slow_broker(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SlowBroker:
    """A broker that takes a while for each message, and keeps the time it was given."""
    slow_broker = SlowBroker(clock=clock)
    monkeypatch.setattr(Publisher, "publish", lambda self, *args: slow_broker.publish(*args))
    return slow_broker


@dataclass(kw_only=True)
class SlowBroker:
    clock: SimpleNamespace
    seconds: float = 0.0
    given: list[float] = field(default_factory=list)

    def publish(self, app: Celery, publish: Any, timeout: float, doubt: Any = None) -> None:
        self.given.append(round(timeout, 3))
        self.clock.now += min(self.seconds, timeout + 0.001)
        if timeout < self.seconds:
            raise PublishTimeout("The broker did not take the message.")


patient = override_settings(DJANGO_CELERY_SIGNALS={"GUARANTEE": "on_commit", "PUBLISH_TIMEOUT": 2.0})


@patient
@pytest.mark.django_db(transaction=True)
def test_messages_of_a_commit_share_their_patience(slow_broker: SlowBroker, receiving: Receiving) -> None:
    """All messages of one commit together wait PUBLISH_TIMEOUT; then the rest is lost at once (H31)."""
    slow_broker.seconds = 0.75
    receiving(closing_time)
    start = slow_broker.clock.now

    with hearing(event_sent) as sent, hearing(event_lost) as lost, transaction.atomic():
        for _ in range(20):
            closing_time.send(sender="door")

    assert [2.05, 1.35, 0.65] == slow_broker.given
    assert (2, 18) == (len(sent), len(lost))
    assert 2.15 == pytest.approx(slow_broker.clock.now - start, abs=0.01)
    assert ["waited PUBLISH_TIMEOUT already" in str(told["error"]) for told in lost] == [False] + [True] * 17


@patient
@pytest.mark.django_db(transaction=True)
def test_a_large_commit_loses_nothing_to_a_healthy_broker(slow_broker: SlowBroker, receiving: Receiving) -> None:
    """What a message takes up to a twentieth of a second is not counted, however many there are."""
    slow_broker.seconds = 0.05
    receiving(closing_time)

    with hearing(event_sent) as sent, transaction.atomic():
        for _ in range(100):
            closing_time.send(sender="door")

    assert 100 == len(sent)
    assert {2.05} == set(slow_broker.given)


@patient
@pytest.mark.django_db(transaction=True)
def test_each_commit_has_its_own_patience(slow_broker: SlowBroker, receiving: Receiving) -> None:
    """What one commit waited is not counted in the next, though somebody keeps the errors, as error trackers do."""
    slow_broker.seconds = 3.0
    receiving(closing_time)

    with hearing(event_lost) as kept:
        for _ in range(3):
            with transaction.atomic():
                closing_time.send(sender="door")
        closing_time.send(sender="door")

    assert [2.05] * 4 == slow_broker.given
    assert 4 == len(kept)


@patient
@pytest.mark.django_db(transaction=True)
def test_patience_survives_what_is_taken_back(slow_broker: SlowBroker, receiving: Receiving) -> None:
    """Hooks of other people's and savepoints that roll back do not renew the patience of a transaction (H31)."""
    slow_broker.seconds = 1.0
    receiving(closing_time)

    with transaction.atomic():
        for _ in range(3):
            closing_time.send(sender="door")
            transaction.on_commit(list)
            with transaction.atomic():
                closing_time.send(sender="ghost")
                transaction.set_rollback(True)

    assert [2.05, 1.1, 0.15] == slow_broker.given


@patient
@pytest.mark.django_db(transaction=True)
def test_what_the_relay_can_do_costs_the_others_nothing(slow_broker: SlowBroker, receiving: Receiving) -> None:
    """Durable messages, which may be left to the relay, have a patience of their own, in which every moment counts."""
    slow_broker.seconds = 0.75
    receiving(closing_time, guarantee="durable")
    receiving(closing_time, guarantee="on_commit")

    with hearing(event_sent) as sent, hearing(event_lost) as lost, transaction.atomic():
        for _ in range(3):
            closing_time.send(sender="door")

    assert [2.0, 2.05, 1.25, 1.35, 0.5, 0.65] == slow_broker.given
    assert (4, 1) == (len(sent), len(lost))


@patient
@pytest.mark.django_db(transaction=True)
def test_immediate_waits_on_its_own(slow_broker: SlowBroker, receiving: Receiving) -> None:
    """An immediate sending waits PUBLISH_TIMEOUT each time, for it is not one of a commit's."""
    slow_broker.seconds = 1.9
    receiving(closing_time, guarantee="immediate")

    with transaction.atomic():
        for _ in range(3):
            closing_time.send(sender="door")

    assert [2.05] * 3 == slow_broker.given


@patient
@pytest.mark.django_db(transaction=True)
def test_eager_receivers_take_their_time(celery_app: Celery, receiving: Receiving, clock: SimpleNamespace) -> None:
    """With task_always_eager, a receiver that works for long costs the next one time, not its event."""
    seen: list[float] = []

    def work_long() -> None:
        clock.now += 60
        seen.append(clock.now)

    celery_app.conf.task_always_eager = True
    receiving(closing_time, work_long)

    with transaction.atomic():
        closing_time.send(sender="door")
        closing_time.send(sender="window")

    assert [1060.0, 1120.0] == seen


# What is told ------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_what_was_sent_is_told_and_counted(celery_app: Celery, receiving: Receiving) -> None:
    """Each message the broker took is counted, and told with its event's id and its signal's name."""
    task = receiving(closing_time)
    before = counts["sent"]

    with hearing(event_sent) as heard:
        closing_time.send(sender="door")

    (message,) = take(celery_app)
    told = {"receiver": task.name, "event_id": message.body["id"], "signal_name": f"{__name__}:closing_time"}
    assert [{**told, "using": "default"}] == heard
    assert before + 1 == counts["sent"]


@pytest.mark.django_db(transaction=True)
def test_what_was_lost_is_told_counted_and_logged(
    outage: PublishError, receiving: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    """A lost event is logged with its id, counted, and told by event_lost; the request does not see it (H31)."""
    task = receiving(closing_time)
    before = dict(counts)

    with hearing(event_lost) as heard:
        closing_time.send(sender="door")

    (told,) = heard
    assert (task.name, f"{__name__}:closing_time", outage) == (told["receiver"], told["signal_name"], told["error"])
    (record,) = [record for record in caplog.records if record.name == "django_celery_signals.handover"]
    assert logging.ERROR == record.levelno
    assert told["event_id"] in record.getMessage()
    assert "closing_time door" == told["summary"]
    assert "will not get 'closing_time door'" in record.getMessage()
    assert {**before, "lost": before.get("lost", 0) + 1} == dict(counts)


@pytest.mark.django_db(transaction=True)
def test_a_wait_that_is_interrupted_is_told(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the wait for the broker from outside, such as a time limit, passes, and the event is told as lost."""
    receiving(closing_time)

    def interrupted(self: Publisher, *args: Any) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(Publisher, "publish", interrupted)

    with hearing(event_lost) as heard, pytest.raises(SoftTimeLimitExceeded):
        closing_time.send(sender="door")

    assert [SoftTimeLimitExceeded] == [type(told["error"]) for told in heard]


@pytest.mark.django_db(transaction=True)
def test_a_wait_that_is_interrupted_after_a_commit(
    receiving: Receiving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a hook of the commit Django logs what ends the wait, and the log says whose publication that was."""
    task = receiving(closing_time)

    def interrupted(self: Publisher, *args: Any) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(Publisher, "publish", interrupted)

    with hearing(event_lost) as heard, transaction.atomic():
        closing_time.send(sender="door")

    assert [SoftTimeLimitExceeded] == [type(told["error"]) for told in heard]
    assert f"Error calling the publication for {task.name} in on_commit()" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_a_failing_listener_changes_nothing(celery_app: Celery, receiving: Receiving) -> None:
    """A listener of event_sent that raises neither stops the message nor reaches the sender."""
    receiving(closing_time)

    def listener(**facts: Any) -> None:
        raise RuntimeError("The metrics are full.")

    event_sent.connect(listener)
    try:
        closing_time.send(sender="door")
    finally:
        event_sent.disconnect(listener)

    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_a_task_that_the_app_does_not_have(celery_app: Celery, receiving: Receiving) -> None:
    """A receiver whose task is unknown to the sender's app is lost with an error that names both (H32)."""
    task = receiving(closing_time)
    del celery_app._tasks[task.name]

    with hearing(event_lost) as heard:
        closing_time.send(sender="door")

    (told,) = heard
    assert isinstance(told["error"], PublishError)
    assert f"'tests' has no task {task.name!r}" in str(told["error"])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("guarantee", ["on_commit", "immediate"])
def test_a_message_sent_while_another_is_published(celery_app: Celery, receiving: Receiving, guarantee: str) -> None:
    """What a listener of Celery's own signals sends is published from within the publication, and nobody waits."""
    first, second = receiving(closing_time, guarantee=guarantee), receiving(opening_time, guarantee=guarantee)

    def listener(sender: str, **facts: Any) -> None:
        if sender == first.name:
            opening_time.send(sender="door")

    before_task_publish.connect(listener)
    disconnect()  # older versions of Celery go on with the list of listeners of before
    try:
        closing_time.send(sender="door")
    finally:
        before_task_publish.disconnect(listener)

    assert [second.name, first.name] == [message.task for message in take(celery_app)]
