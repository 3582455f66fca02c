"""The worker's side: opening, reading, running, and the outcome that Celery is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from datetime import timezone as fixed_timezone
from threading import Thread
from typing import Any

import pytest
from celery import Celery, current_task
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from django.core.signing import Signer
from django.db import InterfaceError, OperationalError, ProgrammingError, connections, transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import Signal
from django.test import RequestFactory, override_settings
from django.utils import timezone, translation

from django_celery_signals import (
    DecodeError,
    Discard,
    Event,
    Fail,
    InstanceMissing,
    ReceiverTask,
    RetryAfter,
    current_event,
    deliveries,
    execution,
    policy,
    wire,
)
from django_celery_signals.carried import Carried
from django_celery_signals.codec import instances
from django_celery_signals.durable.deliveries import State
from django_celery_signals.exceptions import LoopDetected, ReceiverFailed, UnknownVersion
from django_celery_signals.signals import (
    event_lost,
    receiver_discarded,
    receiver_failed,
    receiver_started,
    receiver_succeeded,
)
from django_celery_signals.wire import ARGUMENT
from tests.drain import Published, drain, run, take
from tests.parameters import each_database
from tests.receiving import Receiving, hearing
from tests.shop.models import Customer, Order, Tag, User

doorbell = Signal()

EVERYTHING = {"autoretry_for": (Exception,), "max_retries": 2, "default_retry_delay": 1}  # is retried by Celery


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What Celery made of one message."""

    state: str  # "SUCCESS", "FAILURE", "RETRY", "IGNORED" or "REJECTED"
    error: Any  # what the task raised, if anything


def work(app: Celery, message: Published) -> Outcome:
    """Run a message as a worker does, with retries that go back to the broker."""
    task = app.tasks[message.task]
    request = {**message.headers, "delivery_info": {"exchange": "", "routing_key": app.conf.task_default_queue}}
    trace = build_tracer(task.name, task, app=app)(message.headers["id"], message.args, message.kwargs, request)
    return Outcome(state=trace.info.state if trace.info else "SUCCESS", error=trace.info and trace.info.retval)


def work_next(app: Celery) -> Outcome:
    """Run the one message that waits."""
    (message,) = take(app)
    return work(app, message)


def altered(message: Published, **changes: Any) -> Published:
    """Return a message whose envelope says something else, and is signed."""
    return sealed(message, wire.json.dumps({**message.body, **changes}))


def sealed(message: Published, text: str) -> Published:
    return replace(message, kwargs={ARGUMENT: Signer(salt=wire._SALT).sign(text)})


def seconds_until(message: Published) -> float:
    """Return for how long a message is to wait in the worker."""
    eta = timezone.datetime.fromisoformat(message.headers["eta"])
    return (eta - timezone.now()).total_seconds()


# Open --------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("forge", [lambda s: s[:-1] + ("A" if s[-1] != "A" else "B"), lambda s: "", lambda s: 7])
def test_forged_envelope_fails(celery_app: Celery, receiving: Receiving, forge: Any) -> None:
    """A message whose signature is wrong fails the task, runs nothing, and is told (H32)."""
    ran: list[bool] = []
    task = receiving(doorbell, lambda: ran.append(True))
    doorbell.send(sender=None)
    (message,) = take(celery_app)

    with hearing(receiver_failed) as heard:
        outcome = work(celery_app, replace(message, kwargs={ARGUMENT: forge(message.sealed)}))

    (told,) = heard
    assert ("FAILURE", []) == (outcome.state, ran)
    assert isinstance(outcome.error, DecodeError)
    assert (task.name, None, False) == (told["receiver"], told["event"], told["will_retry"])


@pytest.mark.django_db(transaction=True)
def test_forged_envelope_is_rejected_where_it_can_be(celery_app: Celery, receiving: Receiving) -> None:
    """A message that is acknowledged late goes to the dead-letter exchange instead (H32)."""
    receiving(doorbell, acks_late=True)
    doorbell.send(sender=None)
    (message,) = take(celery_app)

    with hearing(receiver_failed) as heard:
        outcome = work(celery_app, replace(message, kwargs={ARGUMENT: "forged"}))

    assert "REJECTED" == outcome.state
    assert isinstance(outcome.error, Reject)
    assert not outcome.error.requeue
    assert isinstance(heard[0]["error"], DecodeError)


@pytest.mark.django_db(transaction=True)
def test_eager_task_has_nothing_to_reject(celery_app: Celery, receiving: Receiving) -> None:
    """Without a broker in between, a message that cannot be read is a failure also where it is acknowledged late."""
    receiving(doorbell, acks_late=True)
    doorbell.send(sender=None)
    (message,) = take(celery_app)

    result = run(celery_app, replace(message, kwargs={ARGUMENT: "forged"}))

    assert "FAILURE" == result.state


@pytest.mark.django_db(transaction=True)
def test_envelope_for_another_task_fails(celery_app: Celery, receiving: Receiving) -> None:
    """A signed envelope cannot be sent to another task than the one it is addressed to (H32)."""
    ran: list[str] = []
    first = receiving(doorbell, lambda: ran.append("first"))
    second = receiving(doorbell, lambda: ran.append("second"))
    doorbell.send(sender=None)
    messages = {message.task: message for message in take(celery_app)}
    misled = replace(messages[first.name], headers={**messages[first.name].headers, "task": second.name})

    outcome = work(celery_app, misled)

    assert ("FAILURE", []) == (outcome.state, ran)
    assert f"addressed to '{first.name}', not to '{second.name}'" in str(outcome.error)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("former_names", [["tests.old_name"], ("tests.older_name", "tests.old_name")])
def test_envelope_for_a_former_name_runs(celery_app: Celery, receiving: Receiving, former_names: Any) -> None:
    """Messages sent before a task was renamed still run (H75)."""
    ran: list[bool] = []
    task = receiving(doorbell, lambda: ran.append(True), former_names=former_names)
    receiving.undo.append(lambda: [celery_app._tasks.pop(name, None) for name in former_names])
    doorbell.send(sender=None)
    (message,) = take(celery_app)
    queued = replace(altered(message, receiver="tests.old_name"), headers={**message.headers, "task": "tests.old_name"})

    outcome = work(celery_app, queued)

    assert ("SUCCESS", [True]) == (outcome.state, ran)
    assert task is celery_app.tasks["tests.old_name"]


@pytest.mark.django_db(transaction=True)
def test_newer_version_is_tried_again_later(celery_app: Celery, receiving: Receiving) -> None:
    """A message of a newer version waits for the worker's update: it is sent again, for a minute later (H75)."""
    task = receiving(doorbell, max_retries=0)
    doorbell.send(sender=None)
    (message,) = take(celery_app)
    newer = altered(message, version=wire.VERSION + 1)

    with hearing(receiver_failed) as heard:
        outcome = work(celery_app, newer)

    (again,) = take(celery_app)
    assert "RETRY" == outcome.state
    assert isinstance(outcome.error.exc, UnknownVersion)
    assert (newer.sealed, 1) == (again.sealed, again.headers["retries"])
    assert 50 < seconds_until(again) <= execution.UNKNOWN_VERSION_WAIT
    assert [True] == [told["will_retry"] for told in heard]
    assert not hasattr(task, "override_max_retries")


@pytest.mark.django_db(transaction=True)
def test_newer_version_fails_in_the_end(celery_app: Celery, receiving: Receiving) -> None:
    """After an hour of tries a message of a newer version fails (H75)."""
    task = receiving(doorbell)
    doorbell.send(sender=None)
    (message,) = take(celery_app)
    newer = altered(message, version=wire.VERSION + 1)
    last = replace(newer, headers={**message.headers, "retries": execution.UNKNOWN_VERSION_TRIES})

    with hearing(receiver_failed) as heard:
        outcome = work(celery_app, last)

    assert "FAILURE" == outcome.state
    assert isinstance(outcome.error, UnknownVersion)
    assert [False] == [told["will_retry"] for told in heard]
    assert [] == take(celery_app)
    assert not hasattr(task, "override_max_retries")


@pytest.mark.django_db(transaction=True)
def test_a_chain_that_is_too_long_here_fails(
    celery_app: Celery, receiving: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker runs no receiver of a chain that is longer than its own MAX_DEPTH, whatever the sender's was (H28)."""
    ran: list[bool] = []
    receiving(doorbell, lambda: ran.append(True))
    doorbell.send(sender=None)
    (message,) = take(celery_app)
    longer = altered(message, chain=["first", "second", "third"])

    with override_settings(DJANGO_CELERY_SIGNALS={"MAX_DEPTH": 1}), hearing(receiver_failed) as heard:
        outcome = work(celery_app, longer)

    assert ("FAILURE", []) == (outcome.state, ran)
    assert "first\n  second\n  third\n" in str(outcome.error)
    assert [(2, outcome.error, False)] == [(told["event"].depth, told["error"], told["will_retry"]) for told in heard]


# Durable -----------------------------------------------------------------------------------------------------------


@each_database
def test_a_durable_event_is_run_as_any_other(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """What a row holds arrives as what a message holds: the same arguments, context and event (H47)."""
    seen: list[Any] = []

    def look(sender: Any, instance: Tag, created: bool, signal: Signal, event: Event) -> None:
        seen.append((sender, instance, created, signal, translation.get_language(), event is current_event()))

    receiving(post_save, look, sender=Tag, guarantee="durable")
    with translation.override("de"):
        tag = Tag.objects.using(alias).create(name="new")

    outcome = work_next(celery_app)

    assert ("SUCCESS", [(Tag, tag, True, post_save, "de", True)]) == (outcome.state, seen)
    assert [] == list(deliveries(alias))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("atomic", [True, False])
def test_a_copy_of_a_durable_message_does_nothing(celery_app: Celery, receiving: Receiving, atomic: bool) -> None:
    """Whoever opens the row first runs the receiver; a copy of the message is a success that does nothing (H47)."""
    ran: list[bool] = []
    receiving(doorbell, lambda: ran.append(True), guarantee="durable", atomic=atomic)
    doorbell.send(sender=None)
    (message,) = take(celery_app)

    with hearing(receiver_started) as started:
        states = [work(celery_app, message).state for _ in range(3)]

    assert (["SUCCESS"] * 3, [True], 1) == (states, ran, len(started))
    assert [] == list(deliveries("default"))


@pytest.mark.django_db(transaction=True)
def test_a_durable_message_for_another_task_fails(celery_app: Celery, receiving: Receiving) -> None:
    """A row is opened by nobody but the task it is for, and waits on (H32)."""
    ran: list[str] = []
    first = receiving(doorbell, lambda: ran.append("first"), guarantee="durable")
    second = receiving(doorbell, lambda: ran.append("second"), guarantee="on_commit")
    doorbell.send(sender=None)
    messages = {message.task: message for message in take(celery_app)}
    misled = replace(messages[first.name], headers={**messages[first.name].headers, "task": second.name})

    outcome = work(celery_app, misled)

    assert ("FAILURE", []) == (outcome.state, ran)
    assert f"addressed to '{first.name}', not to '{second.name}'" in str(outcome.error)
    assert [State.SENT] == [row.state for row in deliveries("default")]


@pytest.mark.django_db(transaction=True)
def test_a_durable_event_for_a_former_name_runs(celery_app: Celery, receiving: Receiving) -> None:
    """A row that was written before a task was renamed is opened under the new name (H75)."""
    ran: list[bool] = []
    receiving(doorbell, lambda: ran.append(True), guarantee="durable", former_names=["tests.old_name"])
    receiving.undo.append(lambda: celery_app._tasks.pop("tests.old_name", None))
    doorbell.send(sender=None)
    (message,) = take(celery_app)
    deliveries("default").update(receiver="tests.old_name")
    carried = {**message.kwargs[ARGUMENT], "receiver": "tests.old_name"}

    outcome = work(celery_app, replace(message, kwargs={ARGUMENT: carried}))

    assert ("SUCCESS", [True]) == (outcome.state, ran)
    assert [] == list(deliveries("default"))


@pytest.mark.django_db(transaction=True)
def test_a_durable_event_may_be_over(celery_app: Celery, receiving: Receiving) -> None:
    """After its ``expires`` a durable event is dropped, and that is told."""
    ran: list[bool] = []
    receiving(doorbell, lambda: ran.append(True), guarantee="durable", expires=timezone.now() - timedelta(seconds=1))
    doorbell.send(sender=None)

    with hearing(receiver_discarded) as heard:
        outcome = work_next(celery_app)

    assert ("IGNORED", []) == (outcome.state, ran)
    assert ["its expires= is over"] == [told["reason"] for told in heard]
    assert [] == list(deliveries("default"))


@pytest.mark.django_db(transaction=True)
def test_a_durable_chain_has_an_end(celery_app: Celery, receiving: Receiving, caplog: pytest.LogCaptureFixture) -> None:
    """A durable receiver that causes itself runs MAX_DEPTH more times; the next one is kept as failed, with the chain
    (H28)."""
    events: list[Event] = []

    def save_again(instance: Tag, event: Event) -> None:
        events.append(event)
        instance.save()

    receiving(post_save, save_again, sender=Tag)
    with override_settings(DJANGO_CELERY_SIGNALS={"MAX_DEPTH": 2}), hearing(event_lost) as lost:
        tag = Tag.objects.create(name="round")
        while messages := take(celery_app):
            [outcome] = [work(celery_app, message) for message in messages]

    [row] = deliveries("default")
    assert ([0, 1, 2], []) == ([event.depth for event in events], lost)
    assert ("FAILURE", State.FAILED) == (outcome.state, row.state)
    assert "django_celery_signals.exceptions.LoopDetected" == row.error_type
    assert 3 == row.error_message.count(f"post_save shop.Tag pk={tag.pk} -> ")


# Context -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_language_and_time_zone_are_those_of_the_sending(celery_app: Celery, receiving: Receiving) -> None:
    """A receiver runs under the sending's language and time zone, and the worker's own come back (H63)."""
    seen: list[str] = []
    receiving(doorbell, lambda: seen.append(f"{translation.get_language()} {timezone.get_current_timezone_name()}"))
    with translation.override("de"), timezone.override("Asia/Tokyo"):
        doorbell.send(sender=None)

    with translation.override("fr"), timezone.override("America/Lima"):
        outcome = work_next(celery_app)
        after = f"{translation.get_language()} {timezone.get_current_timezone_name()}"

    assert ("SUCCESS", ["de Asia/Tokyo"]) == (outcome.state, seen)
    assert "fr America/Lima" == after


@pytest.mark.django_db(transaction=True)
def test_context_is_reset_after_a_failure(celery_app: Celery, receiving: Receiving) -> None:
    """A receiver that raises leaves neither its language nor its event behind (H63)."""

    def fail() -> None:
        raise ZeroDivisionError

    receiving(doorbell, fail)
    with translation.override("de"), timezone.override("Asia/Tokyo"):
        doorbell.send(sender=None)

    work_next(celery_app)

    assert ("en", "UTC", None) == (translation.get_language(), timezone.get_current_timezone_name(), current_event())


@pytest.mark.django_db(transaction=True)
def test_no_language_stays_no_language(celery_app: Celery, receiving: Receiving) -> None:
    """A sending made with translations off is received with translations off (H63)."""
    seen: list[str | None] = []
    receiving(doorbell, lambda: seen.append(translation.get_language()))
    with translation.override(None):
        doorbell.send(sender=None)

    work_next(celery_app)

    assert [None] == seen


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("zone", ["Atlantis/Capital", "../etc/passwd", 7, None])
def test_unknown_time_zone_is_left_alone(celery_app: Celery, receiving: Receiving, zone: Any) -> None:
    """A time zone this machine does not know changes nothing, and is no reason not to run (H63, H75)."""
    seen: list[str] = []
    receiving(doorbell, lambda: seen.append(timezone.get_current_timezone_name()))
    doorbell.send(sender=None)
    (message,) = take(celery_app)

    outcome = work(celery_app, altered(message, context={"language": "en", "timezone": zone}))

    assert ("SUCCESS", ["UTC"]) == (outcome.state, seen)


@pytest.mark.django_db(transaction=True)
def test_fixed_offset_is_restored(celery_app: Celery, receiving: Receiving) -> None:
    """A sending under a bare offset runs under that offset (H63)."""
    seen: list[str] = []
    receiving(doorbell, lambda: seen.append(timezone.get_current_timezone_name()))
    with timezone.override(fixed_timezone(timedelta(hours=5, minutes=45))):
        doorbell.send(sender=None)

    outcome = work_next(celery_app)

    assert ("SUCCESS", ["UTC+05:45"]) == (outcome.state, seen)


# Arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_receiver_gets_what_it_names(celery_app: Celery, receiving: Receiving) -> None:
    """What a receiver does not name it is not given, unless it takes everything (H3, H17, H75)."""
    seen: dict[str, Any] = {}
    receiving(doorbell, lambda visitor: seen.update(few=visitor))
    receiving(doorbell, lambda **kwargs: seen.update(all=kwargs))
    receiving(doorbell, lambda visitor, missing="default", **rest: seen.update(mixed=(visitor, missing, set(rest))))
    receiving(doorbell, lambda: seen.update(none=True))

    doorbell.send(sender="door", visitor="Ada", hour=7)
    results = drain(celery_app)

    assert ["SUCCESS"] * 4 == [result.state for result in results]
    assert {
        "few": "Ada",
        "all": {"visitor": "Ada", "hour": 7, "sender": "door", "signal": doorbell},
        "mixed": ("Ada", "default", {"hour", "sender", "signal"}),
        "none": True,
    } == seen


@pytest.mark.django_db(transaction=True)
def test_receiver_that_misses_an_argument_fails(celery_app: Celery, receiving: Receiving) -> None:
    """An argument of a custom signal that was not sent is an ordinary TypeError, and is told (H3, H20)."""
    receiving(doorbell, lambda visitor: None)
    doorbell.send(sender="door")

    with hearing(receiver_failed) as heard:
        outcome = work_next(celery_app)

    assert "FAILURE" == outcome.state
    assert isinstance(outcome.error, TypeError)
    assert [outcome.error] == [told["error"] for told in heard]


@pytest.mark.django_db(transaction=True)
def test_only_what_is_named_is_fetched(
    celery_app: Celery, receiving: Receiving, django_assert_num_queries: Any
) -> None:
    """A receiver that does not ask for the instance costs no query."""
    seen: list[bool] = []
    receiving(post_save, lambda created: seen.append(created), sender=Tag, atomic=False)
    tag = Tag.objects.create(name="new")
    Tag.objects.filter(pk=tag.pk).delete()

    with django_assert_num_queries(0):
        (result,) = drain(celery_app)

    assert ("SUCCESS", [True]) == (result.state, seen)


@pytest.mark.django_db(transaction=True)
def test_event_of_the_sending_wins(celery_app: Celery, receiving: Receiving) -> None:
    """A signal with an argument of its own named event keeps it; current_event() always works."""
    seen: list[Any] = []

    def look(event: Any) -> None:
        seen.append((event, current_event()))

    receiving(doorbell, look)
    doorbell.send(sender=None, event="the sending's")
    doorbell.send(sender=None)
    results = drain(celery_app)

    assert ["SUCCESS"] * 2 == [result.state for result in results]
    assert "the sending's" == seen[0][0]
    assert isinstance(seen[0][1], Event)
    assert seen[1][0] is seen[1][1]


@pytest.mark.django_db(transaction=True)
def test_event_is_not_pressed_upon_receivers(celery_app: Celery, receiving: Receiving) -> None:
    """A receiver of everything is given what the signal sends, and no event beside it (H20)."""
    seen: list[str] = []
    receiving(doorbell, lambda **kwargs: seen.extend(kwargs))

    doorbell.send(sender=None, visitor="Ada")
    drain(celery_app)

    assert ["visitor", "sender", "signal"] == seen


def send_self(app: Celery) -> list[Outcome]:
    """Ring, with an argument named self, which only a signal class of somebody's own can send."""
    doorbell.send(sender=None, visitor="Ada")
    return [work(app, altered(message, kwargs=[["self", "me"], *message.body["kwargs"]])) for message in take(app)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("options", [{}, {"autoretry_for": (ZeroDivisionError,)}])
def test_argument_named_like_the_task(celery_app: Celery, receiving: Receiving, options: dict[str, Any]) -> None:
    """An argument named self does not take the place of a bound task's own, and nothing else is lost (H19)."""
    seen: list[Any] = []

    def named(self: Any, visitor: str) -> None:
        seen.append((self, visitor))

    def greedy(self: Any, **kwargs: Any) -> None:
        seen.append((self, kwargs["visitor"], "self" in kwargs))

    first = receiving(doorbell, named, bind=True, **options)
    second = receiving(doorbell, greedy, bind=True, **options)

    assert ["SUCCESS"] * 2 == [outcome.state for outcome in send_self(celery_app)]
    assert [(first, "Ada"), (second, "Ada", False)] == seen


@pytest.mark.django_db(transaction=True)
def test_argument_named_like_the_task_of_a_plain_function(celery_app: Celery, receiving: Receiving) -> None:
    """A function that is not bound gets an argument named self like any other (H19)."""
    seen: list[Any] = []
    receiving(doorbell, lambda self: seen.append(self))

    send_self(celery_app)

    assert ["me"] == seen


@pytest.mark.django_db(transaction=True)
def test_argument_that_cannot_be_read(celery_app: Celery, receiving: Receiving) -> None:
    """A signed message that names what this worker does not have fails with the event told (H32)."""
    receiving(doorbell, lambda visitor: None)
    doorbell.send(sender=None, visitor="Ada")
    (message,) = take(celery_app)
    strange = altered(message, kwargs=[["visitor", {"$": "of-another-project", "v": 1}]])

    with hearing(receiver_failed) as heard:
        outcome = work(celery_app, strange)

    assert "FAILURE" == outcome.state
    assert isinstance(outcome.error, DecodeError)
    assert [message.body["id"]] == [told["event"].id for told in heard]


@pytest.mark.django_db(transaction=True)
def test_argument_of_a_class_that_is_not_imported(celery_app: Celery, receiving: Receiving) -> None:
    """What names a class this worker has not imported arrives as a stand-in; the receiver runs all the same (H32)."""
    seen: list[Any] = []
    receiving(doorbell, lambda visitor, hour: seen.extend([visitor, hour]))
    doorbell.send(sender=None, visitor=timedelta, hour=7)
    (message,) = take(celery_app)
    strange = altered(message, kwargs=[["visitor", {"$": "class", "v": "of.the.web.process:Visitor"}], ["hour", 7]])

    outcome = work(celery_app, strange)

    assert "SUCCESS" == outcome.state
    assert "Unavailable" in repr(seen[0])
    assert 7 == seen[1]


# Rows --------------------------------------------------------------------------------------------------------------


@each_database
def test_instance_is_fetched_where_it_was_sent(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """An instance comes from the database it was saved to, and the receiver's transaction is on that one (H48, H49)."""
    seen: list[Any] = []

    def look(instance: Tag, using: str) -> None:
        seen.append((instance.name, instance._state.db, using, connections[using].in_atomic_block))

    receiving(post_save, look, sender=Tag)
    Tag.objects.using(alias).create(name=alias)
    (result,) = drain(celery_app)

    assert ("SUCCESS", [(alias, alias, alias, True)]) == (result.state, seen)


class Replicas:
    """A router that reads elsewhere than it writes."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "other"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@override_settings(DATABASE_ROUTERS=["tests.unit.test_execution.Replicas"])
def test_instance_is_not_read_from_a_replica(celery_app: Celery, receiving: Receiving) -> None:
    """What was just written is read from where it was written, whatever the router reads from (H48)."""
    seen: list[str] = []
    receiving(post_save, lambda instance: seen.append(instance.name), sender=Tag)

    Tag.objects.create(name="written")
    (result,) = drain(celery_app)

    assert ("SUCCESS", ["written"]) == (result.state, seen)


def gone_tag(celery_app: Celery) -> Published:
    """Return the message of a tag that was deleted meanwhile."""
    tag = Tag.objects.create(name="gone")
    Tag.objects.filter(pk=tag.pk)._raw_delete("default")
    (message,) = take(celery_app)
    return message


@pytest.mark.django_db(transaction=True)
def test_gone_row_is_discarded(celery_app: Celery, receiving: Receiving) -> None:
    """By default an event whose row is gone is dropped, and that is told with the reason (H53)."""
    ran: list[Any] = []
    task = receiving(post_save, lambda instance: ran.append(instance), sender=Tag)
    message = gone_tag(celery_app)

    with hearing(receiver_discarded) as heard, hearing(receiver_failed) as failed:
        outcome = work(celery_app, message)

    (told,) = heard
    assert ("IGNORED", [], []) == (outcome.state, ran, failed)
    assert (task.name, message.body["id"]) == (told["receiver"], told["event"].id)
    assert "shop.Tag pk=" in told["reason"]


@pytest.mark.django_db(transaction=True)
def test_gone_row_fails(celery_app: Celery, receiving: Receiving) -> None:
    """With on_missing="fail" the task fails with an error that names the row (H53)."""
    receiving(post_save, lambda instance: None, sender=Tag, on_missing="fail")

    with hearing(receiver_failed) as heard:
        outcome = work(celery_app, gone_tag(celery_app))

    assert "FAILURE" == outcome.state
    assert isinstance(outcome.error, InstanceMissing)
    assert [(outcome.error, False)] == [(told["error"], told["will_retry"]) for told in heard]


@pytest.mark.django_db(transaction=True)
def test_gone_row_is_looked_for_again(celery_app: Celery, receiving: Receiving) -> None:
    """With on_missing="retry" the event waits for its row; max_retries counts the waits (H53)."""
    seen: list[str] = []
    receiving(post_save, lambda instance: seen.append(instance.name), sender=Tag, on_missing="retry", max_retries=1)
    message = gone_tag(celery_app)

    with hearing(receiver_failed) as heard:
        first = work(celery_app, message)
        (again,) = take(celery_app)
        second = work(celery_app, again)
        Tag.objects.create(pk=message.body["objects"][0]["pk"], name="back")
        take(celery_app)
        third = work(celery_app, again)

    assert ["RETRY", "FAILURE", "SUCCESS"] == [outcome.state for outcome in (first, second, third)]
    assert isinstance(second.error, InstanceMissing)
    assert [True, False] == [told["will_retry"] for told in heard]
    assert 0 < seconds_until(again) <= 1
    assert ["back"] == seen


def leave_a_mark_and_greet(request: Any) -> None:
    Tag.objects.create(name="mark")
    request.user.get_username()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("on_missing", "state"), [("discard", "IGNORED"), ("retry", "RETRY"), ("fail", "FAILURE")])
def test_gone_row_of_what_is_fetched_when_it_is_used(
    celery_app: Celery, receiving: Receiving, on_missing: str, state: str
) -> None:
    """The user of a request is fetched when the receiver asks for it; on_missing decides there as well (H53)."""
    receiving(doorbell, leave_a_mark_and_greet, on_missing=on_missing)
    request = RequestFactory().get("/")
    request.user = User.objects.create(username="ada")
    doorbell.send(sender=None, request=request)
    User.objects.all().delete()

    with hearing(receiver_discarded) as discarded, hearing(receiver_failed) as failed:
        outcome = work_next(celery_app)

    assert state == outcome.state
    assert (on_missing == "discard", on_missing != "discard") == (len(discarded) == 1, len(failed) == 1)
    assert "shop.User pk=" in str(discarded[0]["reason"] if discarded else failed[0]["error"])
    assert not Tag.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [OperationalError("gone away"), InterfaceError("connection already closed")])
def test_database_error_is_not_a_gone_row(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """When the database does not answer, the event is tried again later, also where a gone row would be dropped."""
    task = receiving(post_save, lambda instance: None, sender=Tag, max_retries=0)
    Tag.objects.create(name="new")
    monkeypatch.setattr(instances.models.QuerySet, "get", raising(error))

    with hearing(receiver_failed) as heard:
        outcome = work_next(celery_app)

    (again,) = take(celery_app)
    assert ("RETRY", error) == (outcome.state, outcome.error.exc)
    assert 1 == again.headers["retries"]
    assert [(error, True)] == [(told["error"], told["will_retry"]) for told in heard]
    assert not hasattr(task, "override_max_retries")


@pytest.mark.django_db(transaction=True)
def test_database_error_fails_in_the_end(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that stays away fails the event, visibly."""
    error = OperationalError("gone away")
    receiving(post_save, lambda instance: None, sender=Tag)
    Tag.objects.create(name="new")
    (message,) = take(celery_app)
    monkeypatch.setattr(instances.models.QuerySet, "get", raising(error))

    with hearing(receiver_failed) as heard:
        outcome = work(celery_app, replace(message, headers={**message.headers, "retries": Carried.OUTAGES}))

    assert ("FAILURE", error) == (outcome.state, outcome.error)
    assert [False] == [told["will_retry"] for told in heard]


@pytest.mark.django_db(transaction=True)
def test_other_error_while_fetching_is_told(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else goes wrong while the arguments are read fails the task, and is told as any failure."""
    error = ProgrammingError("There is no such table.")
    receiving(post_save, lambda instance: None, sender=Tag)
    Tag.objects.create(name="new")
    monkeypatch.setattr(instances.models.QuerySet, "get", raising(error))

    with hearing(receiver_failed) as heard:
        outcome = work_next(celery_app)

    assert ("FAILURE", error) == (outcome.state, outcome.error)
    assert [(error, False)] == [(told["error"], told["will_retry"]) for told in heard]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("atomic", "state", "ran"), [(True, "RETRY", []), (False, "SUCCESS", ["ran"])])
def test_database_that_is_away_before_the_receiver_begins(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch, atomic: bool, state: str, ran: list[str]
) -> None:
    """A receiver that needs a transaction does not begin without its database; one that needs none just runs (H72)."""
    seen: list[str] = []
    receiving(doorbell, lambda: seen.append("ran"), atomic=atomic, max_retries=0)
    doorbell.send(sender=None)
    (message,) = take(celery_app)
    connections["default"].close()
    monkeypatch.setattr(connections["default"], "get_new_connection", raising(OperationalError("starting up")))

    with hearing(receiver_started) as started:
        outcome = work(celery_app, message)

    assert (state, ran, len(ran)) == (outcome.state, seen, len(started))


def raising(error: BaseException) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise error

    return function


@pytest.mark.django_db(transaction=True)
def test_waits_grow_with_jitter(celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tries lie 1, 2, 4, ... seconds, at most a minute, and up to half of it less."""
    receiving(post_save, lambda instance: None, sender=Tag)
    Tag.objects.create(name="new")
    (message,) = take(celery_app)
    monkeypatch.setattr(instances.models.QuerySet, "get", raising(OperationalError("gone away")))
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: high)
    waits = []

    for retries in range(8):
        work(celery_app, replace(message, headers={**message.headers, "retries": retries}))
        (again,) = take(celery_app)
        waits.append(round(seconds_until(again)))

    assert [1, 2, 4, 8, 16, 32, 60, 60] == waits


# Run ---------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_run_is_told(celery_app: Celery, receiving: Receiving) -> None:
    """A run is told when it starts and when it succeeds, with its event and its duration."""
    task = receiving(doorbell)
    doorbell.send(sender=None)

    with hearing(receiver_started) as started, hearing(receiver_succeeded) as succeeded:
        outcome = work_next(celery_app)

    assert "SUCCESS" == outcome.state
    assert [task.name] == [told["receiver"] for told in started] == [told["receiver"] for told in succeeded]
    assert started[0]["event"] == succeeded[0]["event"]
    assert 0 <= succeeded[0]["runtime"] < 10


@pytest.mark.django_db(transaction=True)
def test_result_is_nothing(celery_app: Celery, receiving: Receiving) -> None:
    """What a receiver returns goes nowhere: it need not be serialisable."""
    receiving(doorbell, lambda: object())
    doorbell.send(sender=None)

    (result,) = drain(celery_app)

    assert ("SUCCESS", None) == (result.state, result.result)


@pytest.mark.django_db(transaction=True)
def test_event_says_where_it_comes_from(celery_app: Celery, receiving: Receiving) -> None:
    """An event's id is the same at every attempt, and so are time, signal, receiver and alias (H47)."""
    events: list[Event] = []

    def look(self: Any, event: Event) -> None:
        events.append(event)
        if len(events) < 3:
            raise self.retry(countdown=1)

    task = receiving(doorbell, look, bind=True)
    before = timezone.now()
    doorbell.send(sender=None)
    after = timezone.now()

    outcomes = [work_next(celery_app) for _ in range(3)]

    first = events[0]
    assert ["RETRY", "RETRY", "SUCCESS"] == [outcome.state for outcome in outcomes]
    assert [first] * 3 == events
    assert (f"{__name__}:doorbell", task.name, "default") == (first.signal_name, first.receiver, first.using)
    assert before <= first.sent_at <= after
    assert (0, first.id, None) == (first.depth, first.root_id, first.parent_id)


@pytest.mark.django_db(transaction=True)
def test_changes_arrive_with_the_event(celery_app: Celery, receiving: Receiving) -> None:
    """The old and the new values of watched fields arrive as event.changes, also when saved again meanwhile (H35)."""
    changes: list[Any] = []
    receiving(post_save, lambda event: changes.append(event.changes), sender=Tag, changed=["name"], created=False)
    tag = Tag.objects.create(name="one")

    for name in ("two", "three"):
        tag.name = name
        tag.save()
    drain(celery_app)

    assert [{"name": ("one", "two")}, {"name": ("two", "three")}] == changes


@pytest.mark.django_db(transaction=True)
def test_current_event_is_there_only_while_running(celery_app: Celery, receiving: Receiving) -> None:
    """current_event() is the event inside of the receiver, and None outside."""
    seen: list[Any] = []
    receiving(doorbell, lambda event: seen.append(current_event() is event))
    doorbell.send(sender=None)

    drain(celery_app)

    assert [True] == seen
    assert current_event() is None


def save_twice_and_fail(using: str) -> None:
    Customer.objects.using(using).create(name="one")
    Customer.objects.using(using).create(name="two")
    raise ZeroDivisionError


@each_database
@pytest.mark.parametrize(("atomic", "left"), [(True, 0), (False, 2)])
def test_work_of_a_failed_receiver(
    celery_app: Celery, receiving: Receiving, alias: str, atomic: bool, left: int
) -> None:
    """A receiver's database work is undone when it raises; with atomic=False what it did stays done."""
    receiving(post_save, save_twice_and_fail, sender=Tag, atomic=atomic)
    Tag.objects.using(alias).create(name="new")

    (result,) = drain(celery_app)

    assert "FAILURE" == result.state
    assert left == Customer.objects.using(alias).count()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [Discard("no use"), Fail("no way"), RetryAfter(5), Ignore(), Reject("no")])
def test_work_before_a_decision_is_undone(celery_app: Celery, receiving: Receiving, error: Exception) -> None:
    """Deciding the outcome by an exception undoes the work that was done, as any exception does."""

    def decide() -> None:
        Customer.objects.create(name="one")
        raise error

    receiving(doorbell, decide)
    doorbell.send(sender=None)
    work_next(celery_app)

    assert not Customer.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_receivers_may_open_durable_blocks_of_their_own(celery_app: Celery, receiving: Receiving) -> None:
    """Without atomic no block is open around a receiver, and none of the library's own is durable (H45)."""

    def work_durably() -> None:
        with transaction.atomic(durable=True):
            Customer.objects.create(name="kept")

    receiving(doorbell, work_durably, atomic=False)
    doorbell.send(sender=None)

    (result,) = drain(celery_app)

    assert "SUCCESS" == result.state
    assert Customer.objects.filter(name="kept").exists()


@pytest.mark.django_db(transaction=True)
def test_what_a_receiver_sends_waits_for_its_commit(celery_app: Celery, receiving: Receiving) -> None:
    """A receiver that fails sends nothing on, and one that succeeds sends after its commit (H33)."""
    fail = [True]

    def save() -> None:
        Customer.objects.create(name="one")
        if fail:
            raise ZeroDivisionError

    follower = receiving(post_save, sender=Customer)
    receiving(doorbell, save)
    doorbell.send(sender=None)
    (message,) = take(celery_app)

    work(celery_app, message)
    after_failure = take(celery_app)
    fail.clear()
    work(celery_app, message)

    assert [] == after_failure
    assert [follower.name] == [sent.task for sent in take(celery_app)]


# Coroutine functions -----------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("fails", [False, True])
def test_coroutine_function_runs_inside_the_transaction(celery_app: Celery, receiving: Receiving, fails: bool) -> None:
    """An async def receiver is run to its end, and its work belongs to the same transaction (H13)."""
    seen: list[Any] = []

    async def look(instance: Tag) -> None:
        await asyncio.sleep(0)
        seen.append((instance.name, current_event() is not None))
        await Customer.objects.acreate(name="one")
        if fails:
            raise ZeroDivisionError

    receiving(post_save, look, sender=Tag)
    Tag.objects.create(name="new")

    (result,) = drain(celery_app)

    assert [("new", True)] == seen
    assert ("FAILURE", 0) if fails else ("SUCCESS", 1) == (result.state, Customer.objects.count())


@pytest.mark.django_db(transaction=True)
def test_bound_coroutine_function_can_retry(celery_app: Celery, receiving: Receiving) -> None:
    """An async def receiver that is bound knows its request, and retries as any other (H13)."""
    seen: list[Any] = []

    async def look(self: Any) -> None:
        await asyncio.sleep(0)
        seen.append((self.request.retries, current_task.name))
        if not self.request.retries:
            raise self.retry(countdown=1)

    task = receiving(doorbell, look, bind=True)
    doorbell.send(sender=None)

    assert ["RETRY", "SUCCESS"] == [work_next(celery_app).state for _ in range(2)]
    assert [(0, task.name), (1, task.name)] == seen


@pytest.mark.django_db(transaction=True)
def test_coroutine_function_can_be_retried_by_celery(celery_app: Celery, receiving: Receiving) -> None:
    """autoretry_for sees what an async def receiver raises while it is awaited (H13)."""

    async def look() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError("again")

    task = receiving(doorbell, look, **EVERYTHING)
    doorbell.send(sender=None)

    assert ["RETRY", "RETRY", "FAILURE"] == [work_next(celery_app).state for _ in range(3)]
    coroutine = task.run()
    assert asyncio.iscoroutine(coroutine)
    coroutine.close()


# Decisions of the receiver -----------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_discard(celery_app: Celery, receiving: Receiving, options: dict[str, Any]) -> None:
    """Discard drops the event, says why, and passes through autoretry_for."""
    receiving(doorbell, raising(Discard("too late")), **options)
    doorbell.send(sender=None)

    with hearing(receiver_discarded) as discarded, hearing(receiver_failed) as failed:
        outcome = work_next(celery_app)

    assert ("IGNORED", ["too late"], []) == (outcome.state, [told["reason"] for told in discarded], failed)
    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_fail(celery_app: Celery, receiving: Receiving, options: dict[str, Any]) -> None:
    """Fail fails the task for good, also where Celery would retry."""
    receiving(doorbell, raising(Fail("no such account")), **options)
    doorbell.send(sender=None)

    with hearing(receiver_failed) as heard:
        outcome = work_next(celery_app)

    assert "FAILURE" == outcome.state
    assert isinstance(outcome.error, ReceiverFailed)
    assert "no such account" in str(outcome.error)
    assert [(outcome.error, False)] == [(told["error"], told["will_retry"]) for told in heard]
    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_retry_after(celery_app: Celery, receiving: Receiving, options: dict[str, Any]) -> None:
    """RetryAfter sends the same event again for later, and counts as a retry."""
    receiving(doorbell, raising(RetryAfter(300, "closed for lunch")), **options)
    doorbell.send(sender=None)
    (message,) = take(celery_app)

    with hearing(receiver_failed) as heard:
        outcome = work(celery_app, message)

    (again,) = take(celery_app)
    assert "RETRY" == outcome.state
    assert (message.sealed, 1) == (again.sealed, again.headers["retries"])
    assert 290 < seconds_until(again) <= 300
    assert [("closed for lunch", True)] == [(str(told["error"]), told["will_retry"]) for told in heard]


@pytest.mark.django_db(transaction=True)
def test_retry_after_the_last_try(celery_app: Celery, receiving: Receiving) -> None:
    """RetryAfter beyond max_retries is a failure, not a silence."""
    receiving(doorbell, raising(RetryAfter(300, "closed for lunch")), max_retries=1)
    doorbell.send(sender=None)

    with hearing(receiver_failed) as heard:
        states = [work_next(celery_app).state for _ in range(2)]

    assert ["RETRY", "FAILURE"] == states
    assert [True, False] == [told["will_retry"] for told in heard]
    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
def test_autoretry(celery_app: Celery, receiving: Receiving) -> None:
    """autoretry_for retries as in Celery, up to max_retries; each attempt is told with what comes next."""
    error = ZeroDivisionError("again")
    receiving(doorbell, raising(error), **EVERYTHING)
    doorbell.send(sender=None)

    with hearing(receiver_failed) as heard:
        states = [work_next(celery_app).state for _ in range(3)]

    assert ["RETRY", "RETRY", "FAILURE"] == states
    assert [(error, True), (error, True), (error, False)] == [(told["error"], told["will_retry"]) for told in heard]


@pytest.mark.django_db(transaction=True)
def test_own_retry(celery_app: Celery, receiving: Receiving) -> None:
    """self.retry() retries as in Celery, with the countdown and the limit that are given."""
    error = ZeroDivisionError("again")

    def again(self: Any) -> None:
        raise self.retry(exc=error, countdown=120, max_retries=1)

    task = receiving(doorbell, again, bind=True)
    doorbell.send(sender=None)

    with hearing(receiver_failed) as heard:
        first = work_next(celery_app)
        (message,) = take(celery_app)
        second = work(celery_app, message)

    assert ["RETRY", "FAILURE"] == [first.state, second.state]
    assert 110 < seconds_until(message) <= 120
    assert [(error, True), (error, False)] == [(told["error"], told["will_retry"]) for told in heard]
    assert not hasattr(task, "override_max_retries")


@pytest.mark.django_db(transaction=True)
def test_limit_of_one_retry_is_not_the_next_ones(celery_app: Celery, receiving: Receiving) -> None:
    """The many tries at a newer version do not lift max_retries for what the receiver raises later."""
    error = ZeroDivisionError("again")
    receiving(doorbell, raising(error), autoretry_for=(ZeroDivisionError,), max_retries=0)
    doorbell.send(sender=None)
    (message,) = take(celery_app)

    first = work(celery_app, altered(message, version=wire.VERSION + 1))
    take(celery_app)
    second = work(celery_app, message)

    assert ["RETRY", "FAILURE"] == [first.state, second.state]


@pytest.mark.django_db(transaction=True)
def test_limit_of_one_retry_is_not_another_threads(celery_app: Celery, receiving: Receiving) -> None:
    """In a pool of threads, the many tries at one event do not lift max_retries for another that runs meanwhile."""
    other: list[Outcome] = []

    def run_another() -> None:
        thread = Thread(target=lambda: other.append(work(celery_app, altered(message, version=wire.VERSION + 1))))
        thread.start()
        thread.join(10)
        raise ZeroDivisionError("again")

    receiving(doorbell, run_another, autoretry_for=(ZeroDivisionError,), max_retries=0)
    doorbell.send(sender=None)
    (message,) = take(celery_app)

    assert "FAILURE" == work(celery_app, message).state
    assert ["RETRY"] == [outcome.state for outcome in other]


def break_off(alias: str) -> None:
    """Let the server end the connection that is in use."""
    connection = connections[alias]
    connection.ensure_connection()
    end, number = {
        "postgresql": ("SELECT pg_terminate_backend(%s)", lambda raw: raw.info.backend_pid),
        "mysql": ("KILL %s", lambda raw: raw.thread_id()),
    }[connection.vendor]
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute(end, [number(connection.connection)])
    other.close()


@pytest.mark.parametrize(("atomic", "expected"), [(True, "RETRY"), (False, "FAILURE")])
@each_database("postgres", "mariadb")
def test_connection_that_dies_under_a_receiver(
    celery_app: Celery, receiving: Receiving, alias: str, atomic: bool, expected: str
) -> None:
    """A receiver that lost its database is run again, if all that it did there went with the connection."""

    def receive() -> None:
        break_off(alias)
        Tag.objects.using(alias).count()

    receiving(doorbell, receive, atomic=atomic)
    doorbell.send(sender=None, using=alias)

    with hearing(receiver_failed) as heard:
        outcome = work_next(celery_app)
    connections[alias].close()

    assert (expected, [expected == "RETRY"]) == (outcome.state, [told["will_retry"] for told in heard])


@each_database("postgres", "mariadb")
def test_database_error_of_a_receiver(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """An error of the database alone, while the connection lives, fails the receiver."""
    receiving(doorbell, raising(OperationalError("no such column")))
    doorbell.send(sender=None, using=alias)

    assert "FAILURE" == work_next(celery_app).state


@pytest.mark.django_db(transaction=True)
def test_failing_receiver_stops_no_other(celery_app: Celery, receiving: Receiving) -> None:
    """Each receiver of one sending has an event of its own, and succeeds or fails by itself."""
    ids: list[str] = []

    def fail(event: Event) -> None:
        ids.append(event.id)
        raise ZeroDivisionError

    receiving(doorbell, fail)
    receiving(doorbell, lambda event: ids.append(event.id))
    doorbell.send(sender=None)

    assert ["FAILURE", "SUCCESS"] == [work(celery_app, message).state for message in take(celery_app)]
    assert 2 == len(set(ids))


@pytest.mark.django_db(transaction=True)
def test_retry_that_cannot_be_sent(celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the broker does not take the retry, Celery rejects the message, and the failure is told (H31)."""
    receiving(doorbell, raising(RetryAfter(5)))
    doorbell.send(sender=None)
    (message,) = take(celery_app)
    monkeypatch.setattr(ReceiverTask, "signature_from_request", lambda self, *a, **k: Unsendable())

    with hearing(receiver_failed) as heard:
        outcome = work(celery_app, message)

    assert "REJECTED" == outcome.state
    assert [False] == [told["will_retry"] for told in heard]


class Unsendable:
    """A message that the broker does not take."""

    def apply_async(self) -> None:
        raise ConnectionRefusedError("The broker is away.")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("error", "state"), [(Ignore(), "IGNORED"), (Reject("no"), "REJECTED")])
def test_celerys_own_decisions_pass(celery_app: Celery, receiving: Receiving, error: Exception, state: str) -> None:
    """Celery's Ignore and Reject mean what they mean in any task, and are no failures."""
    receiving(doorbell, raising(error))
    doorbell.send(sender=None)

    with hearing(receiver_failed) as heard:
        outcome = work_next(celery_app)

    assert (state, []) == (outcome.state, heard)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [ZeroDivisionError("no"), SoftTimeLimitExceeded()])
def test_failure(celery_app: Celery, receiving: Receiving, error: Exception) -> None:
    """What a receiver raises fails the task as in Celery, and is told once."""
    task = receiving(doorbell, raising(error))
    doorbell.send(sender=None)
    (message,) = take(celery_app)

    with hearing(receiver_failed) as heard, hearing(receiver_succeeded) as succeeded:
        outcome = work(celery_app, message)

    (told,) = heard
    assert ("FAILURE", error, []) == (outcome.state, outcome.error, succeeded)
    assert (task.name, message.body["id"], error, False) == (
        told["receiver"],
        told["event"].id,
        told["error"],
        told["will_retry"],
    )


# Loops -------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("limit", [1, 8])
def test_receiver_that_causes_itself_is_stopped(
    celery_app: Celery, receiving: Receiving, caplog: pytest.LogCaptureFixture, limit: int
) -> None:
    """A receiver that saves what it is told of runs MAX_DEPTH more times, then its chain is printed (H28)."""
    events: list[Event] = []

    def save_again(instance: Tag, event: Event) -> None:
        events.append(event)
        instance.save()

    task = receiving(post_save, save_again, sender=Tag)
    given = {"GUARANTEE": "on_commit", "MAX_DEPTH": limit}
    with override_settings(DJANGO_CELERY_SIGNALS=given), hearing(event_lost) as heard:
        tag = Tag.objects.create(name="round")
        results = drain(celery_app)

    (told,) = heard
    assert {"SUCCESS"} == {result.state for result in results}
    assert list(range(limit + 1)) == [event.depth for event in events]
    assert {events[0].id} == {event.root_id for event in events}
    assert [None, *(event.id for event in events[:-1])] == [event.parent_id for event in events]
    assert isinstance(told["error"], LoopDetected)
    assert f"post_save shop.Tag pk={tag.pk} created -> {task.name}" in str(told["error"])
    assert limit + 1 == str(told["error"]).count(f"post_save shop.Tag pk={tag.pk} -> {task.name}")
    assert "MAX_DEPTH" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_two_receivers_that_cause_each_other_are_stopped(celery_app: Celery, receiving: Receiving) -> None:
    """A circle of several receivers ends as well, and the chain names each of them (H28)."""

    def touch_order(instance: Customer) -> None:
        Order.objects.get(customer=instance).save()

    def touch_customer(instance: Order) -> None:
        instance.customer.save()

    customer = Customer.objects.create(name="Ada")
    order = Order.objects.create(customer=customer)
    tasks = receiving(post_save, touch_order, sender=Customer), receiving(post_save, touch_customer, sender=Order)

    with hearing(event_lost) as heard:
        order.save()
        results = drain(celery_app)

    (told,) = heard
    assert 9 == len(results)
    assert all(f"-> {task.name}" in str(told["error"]) for task in tasks)


@pytest.mark.django_db(transaction=True)
def test_what_does_not_cause_itself_has_no_limit(celery_app: Celery, receiving: Receiving) -> None:
    """Sending often is no loop: the depth counts what caused one another only (H28)."""
    depths: list[int] = []
    receiving(doorbell, lambda event: depths.append(event.depth))

    for _ in range(20):
        doorbell.send(sender=None)
    drain(celery_app)

    assert [0] * 20 == depths


# Connections -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("eager", [False, True])
def test_old_connections_are_closed(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch, eager: bool
) -> None:
    """In a worker a connection past its age is not used again, also without Celery's Django fixup (H72)."""
    seen: list[Any] = []
    connection = connections["default"]
    receiving(doorbell, lambda: seen.append(connections["default"].connection))
    doorbell.send(sender=None)
    (message,) = take(celery_app)
    connection.ensure_connection()
    monkeypatch.setattr(connection, "close_at", 0.0)
    old = connection.connection

    run(celery_app, message) if eager else work(celery_app, message)

    assert [eager] == [used is old for used in seen]


@pytest.mark.django_db(transaction=True)
def test_snapshot_needs_no_row(celery_app: Celery, receiving: Receiving) -> None:
    """What was deleted arrives as it was, whatever became of its row (H53)."""
    seen: list[Any] = []
    receiving(post_delete, lambda instance: seen.append((instance.pk, instance.name)), sender=Tag)
    tag = Tag.objects.create(name="gone")
    pk = tag.pk

    tag.delete()
    (result,) = drain(celery_app)

    assert ("SUCCESS", [(pk, "gone")]) == (result.state, seen)
