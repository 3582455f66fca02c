"""An event that came with its message: nothing but the message keeps it, so Celery decides what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry

from django_celery_signals import DecodeError, RetryAfter
from django_celery_signals.carried import Carried
from django_celery_signals.exceptions import InstanceMissing, ReceiverFailed, UnknownVersion
from django_celery_signals.signals import receiver_discarded, receiver_failed
from django_celery_signals.wire import ARGUMENT, unseal
from tests.carrying import RECEIVER, sealed
from tests.drain import take
from tests.making import Tasks
from tests.receiving import hearing


@pytest.fixture
def text() -> str:
    """A signed envelope."""
    return sealed({"number": 5})


@pytest.fixture
def task(celery_app: Celery, tasks: Tasks, text: str) -> Iterator[Any]:
    """A task that a worker is running for that envelope, for the third time."""
    task = celery_app.tasks[tasks.shared(former_names=[RECEIVER], max_retries=5).name]
    tasks.names.append(RECEIVER)
    queue = {"exchange": "", "routing_key": celery_app.conf.task_default_queue}
    task.push_request(
        id="the-message", args=[], kwargs={ARGUMENT: text}, retries=2, called_directly=False, delivery_info=queue
    )
    yield task
    task.pop_request()


@pytest.fixture
def held(task: Any, text: str) -> Carried:
    """What that worker holds."""
    return Carried(task, text)


@pytest.fixture
def event(text: str) -> Any:
    return unseal(text).event


def test_nothing_is_held(held: Carried, event: Any) -> None:
    """A message leaves no trace: its event is as it was sent, does not expire here, and is noted nowhere when done."""
    with held as same:
        assert same is held
        assert event == same.event(event)
        assert not same.is_expired()
        assert same.complete() is None  # type: ignore[func-returns-value]

    assert (None, None) == (event.fence, event.lease)
    assert event.still_mine()


def test_the_envelope_is_verified(held: Carried, event: Any) -> None:
    """What was signed for this task, under any of its names, is read."""
    assert event == held.envelope().event


def test_an_envelope_for_another_task(celery_app: Celery, tasks: Tasks, text: str) -> None:
    """A signed envelope that is addressed to another task is refused, naming both."""
    other = celery_app.tasks[tasks.shared().name]

    with pytest.raises(DecodeError, match=f"addressed to '{RECEIVER}', not to '{other.name}'"):
        Carried(other, text).envelope()


def test_a_forged_envelope(task: Any, text: str) -> None:
    """What was not signed by this project is refused."""
    with pytest.raises(DecodeError, match="signature does not match"):
        Carried(task, text.replace("5", "6")).envelope()


def test_dropped_on_purpose(held: Carried, event: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A dropped event is told with its reason, and ends without an error."""
    caplog.set_level("INFO", "django_celery_signals")

    with hearing(receiver_discarded) as heard:
        outcome = held.discard(event, "too late")

    assert (Ignore, "too late") == (type(outcome), str(outcome))
    assert [{"receiver": held.task.name, "event": event, "reason": "too late"}] == heard
    assert f"{held.task.name} discarded event {event.id}: too late" in caplog.text


def test_failed_for_good(held: Carried, event: Any, celery_app: Celery) -> None:
    """A failure is told, and is the task's; nothing is sent again."""
    error = ReceiverFailed("It cannot be.")

    with hearing(receiver_failed) as heard:
        outcome = held.fail(event, error)

    assert error is outcome
    told = {"receiver": held.task.name, "event": event, "error": error, "will_retry": False, "using": "default"}
    assert [told] == heard
    assert [] == take(celery_app)


@pytest.mark.parametrize("acks_late", [True, False])
def test_what_cannot_be_read(acks_late: bool, held: Carried, caplog: pytest.LogCaptureFixture) -> None:
    """A message that cannot be read goes to the dead-letter exchange, where it is not acknowledged yet."""
    error = DecodeError("It is damaged.")
    held.task.acks_late = acks_late

    with hearing(receiver_failed) as heard:
        outcome = held.fail(None, error)

    assert (Reject if acks_late else DecodeError) is type(outcome)
    assert error is (outcome.args[0] if isinstance(outcome, Reject) else outcome)
    assert [(None, error)] == [(told["event"], told["error"]) for told in heard]
    assert f"{held.task.name} cannot read its event: It is damaged." in caplog.text


def test_a_retry_of_the_receivers(held: Carried, event: Any) -> None:
    """A receiver that asks Celery for a retry gets it, and what it failed with is told."""
    cause = OSError("away")
    retry = Retry(exc=cause)

    with hearing(receiver_failed) as heard:
        outcome = held.raised(event, retry)

    assert retry is outcome
    assert [(cause, True)] == [(told["error"], told["will_retry"]) for told in heard]


@pytest.mark.parametrize("error", [Ignore(), Reject("no", requeue=True)])
def test_celerys_own_words(error: Exception, held: Carried, event: Any) -> None:
    """Ignore and Reject are Celery's affair."""
    with hearing(receiver_failed) as heard:
        outcome = held.raised(event, error)

    assert error is outcome
    assert [] == heard


def test_any_other_error(held: Carried, event: Any) -> None:
    """Any other error is the task's failure, as without us."""
    error = LookupError()

    with hearing(receiver_failed) as heard:
        outcome = held.raised(event, error)

    assert error is outcome
    assert [(error, False)] == [(told["error"], told["will_retry"]) for told in heard]


def test_sent_once_more(held: Carried, event: Any, text: str, celery_app: Celery) -> None:
    """The same envelope is sent again for later, as one of the task's retries."""
    error = InstanceMissing("It is gone.")

    with hearing(receiver_failed) as heard:
        outcome = held.again(event, error, 30.0)

    [message] = take(celery_app)
    assert isinstance(outcome, Retry)
    assert (error, 30.0) == (outcome.exc, outcome.when)
    assert ({ARGUMENT: text}, 3) == (message.kwargs, message.headers["retries"])
    assert [(error, True)] == [(told["error"], told["will_retry"]) for told in heard]


@pytest.mark.parametrize(("retries", "tries", "expected"), [(5, None, True), (4, None, False), (5, 60, False)])
def test_the_last_try(
    retries: int, tries: int | None, expected: bool, held: Carried, event: Any, celery_app: Celery
) -> None:
    """After ``max_retries`` of the task, or the tries of that trouble, the error itself is the outcome."""
    error = UnknownVersion("It is newer.")
    held.task.request.retries = retries

    with hearing(receiver_failed) as heard:
        outcome = held.again(event, error, 30.0, tries)

    assert expected is (error is outcome)
    assert [not expected] == [told["will_retry"] for told in heard]
    assert (0 if expected else 1) == len(take(celery_app))


def test_too_often_after_a_while(held: Carried, event: Any, celery_app: Celery) -> None:
    """RetryAfter is an Ignore to Celery; asked for once too often it fails the task, visibly."""
    held.task.request.retries = 5

    with hearing(receiver_failed) as heard:
        outcome = held.again(event, RetryAfter(30, "busy"), 30.0)

    assert isinstance(outcome, ReceiverFailed)
    assert f"{held.task.name} asked for more than max_retries: busy" == str(outcome)
    assert [(outcome, False)] == [(told["error"], told["will_retry"]) for told in heard]
    assert [] == take(celery_app)
