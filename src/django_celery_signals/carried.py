"""An event that came with its message: Celery alone decides what becomes of it."""

from __future__ import annotations

import logging
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from .envelope import Envelope
from .event import Event, with_facts
from .exceptions import DecodeError, ReceiverFailed, RetryAfter
from .policy import LONGEST_WAIT, pause
from .signals import receiver_discarded, receiver_failed, receiver_succeeded, tell
from .wire import unseal

logger = logging.getLogger(__name__)


class Carried:
    """What a worker holds of an event under "on_commit" and "immediate"; the message is the only trace of it."""

    OUTAGES = 10  # times that a run whose database went away is repeated

    def __init__(self, task: Any, sealed: str) -> None:
        """Take over a message."""
        self.task, self.sealed = task, sealed

    def __enter__(self) -> Carried:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def envelope(self) -> Envelope:
        """Verify and read the envelope, and that it is addressed to this task: a signature cannot be sent elsewhere.

        Raises:
            DecodeError: when it is not.
        """
        envelope = unseal(self.sealed)
        if envelope.event.receiver not in (self.task.name, *(self.task.former_names or ())):
            raise DecodeError(
                f"The envelope is addressed to {envelope.event.receiver!r:.120}, not to {self.task.name!r}."
            )
        return envelope

    def is_expired(self) -> bool:
        """Leave ``expires`` to Celery, which has not delivered the message then."""
        return False

    def event(self, event: Event, **facts: Any) -> Event:
        """Return the event as the receiver gets it."""
        return with_facts(event, **facts)

    def complete(self) -> None:
        """Note nowhere that the receiver succeeded."""

    def succeeded(self, event: Event, runtime: float) -> None:
        """Tell that the receiver succeeded."""
        succeeded(self.task, event, runtime)

    def discard(self, event: Event, reason: str) -> Exception:
        """Drop the event on purpose."""
        return discarded(self.task, event, reason)

    def fail(self, event: Event | None, error: Exception) -> Exception:
        """End the event without success."""
        if not isinstance(error, DecodeError):
            return failed(self.task, event, error)
        logger.error("%s cannot read its event: %s", self.task.name, error)
        failed(self.task, event, error)
        # To the dead-letter exchange, where the message is not acknowledged yet.
        return Reject(error, requeue=False) if self.task.acks_late and not self.task.request.is_eager else error

    def raised(self, event: Event, error: Exception) -> Exception:
        """Let Celery do with an error what it does with any task's."""
        if isinstance(error, Retry):
            return failed(self.task, event, error, will_retry=True)
        return error if isinstance(error, (Ignore, Reject)) else failed(self.task, event, error)

    def rerun(self, event: Event | None, error: Exception) -> Exception:
        """Let it run again after a pause that grows: the receiver is not to blame."""
        return self.again(event, error, pause(self.task.request.retries, LONGEST_WAIT), self.OUTAGES)

    def again(self, event: Event | None, error: Exception, seconds: float, tries: int | None = None) -> Exception:
        """Send the message once more, for later.

        Args:
            event: what it is about, if it could be read.
            error: the reason; also what is returned when that was the last try.
            seconds: until then.
            tries: how often, at most; ``max_retries`` of the task unless told.
        """
        try:
            retry = self.task.retry(exc=error, countdown=seconds, max_retries=tries, throw=False)
        except RetryAfter as last:  # to Celery it is an Ignore, by which the event would end in silence
            return failed(self.task, event, ReceiverFailed(f"{self.task.name} asked for more than max_retries: {last}"))
        except Exception as last:
            return failed(self.task, event, last)
        return failed(self.task, event, retry, will_retry=True)


def succeeded(task: Any, event: Event, runtime: float) -> None:
    """Tell that a receiver succeeded, and how many seconds it took."""
    tell(receiver_succeeded, task.name, event=event, runtime=runtime)


def discarded(task: Any, event: Event, reason: str) -> Ignore:
    """Tell that an event was dropped on purpose, and return what makes Celery do so."""
    logger.info("%s discarded event %s: %s", task.name, event.id, reason)
    tell(receiver_discarded, task.name, event=event, reason=reason)
    return Ignore(reason)


def failed(
    task: Any, event: Event | None, error: Exception, *, will_retry: bool = False, using: str | None = None
) -> Exception:
    """Tell that a run has failed, and return the error; ``using`` says the database where the event may be unread."""
    facts = {"will_retry": will_retry, "using": event.using if event is not None else using}
    tell(receiver_failed, task.name, event=event, error=getattr(error, "exc", None) or error, **facts)
    return error
