"""Every error of the library, in one tree.

::

    SignalTaskError                      root, never raised itself
    ├── SettingsError                    a wrong value in DJANGO_CELERY_SIGNALS (also ImproperlyConfigured)
    ├── ConnectError                     a connection or declaration that can never work (also ValueError)
    ├── EncodeError                      STRICT only: an argument that cannot be carried (also TypeError)
    ├── DecodeError                      an envelope that is forged, damaged or of another make (also ValueError)
    │   └── UnknownVersion               an envelope newer than this code; tried again later
    ├── PublishError                     the broker did not take the message
    │   └── PublishTimeout               ... within PUBLISH_TIMEOUT; whether it did later is unknown
    ├── DeliveryRefused                  a transaction was rolled back without a word: the database took no delivery
    ├── LeaseLost                        another run has the delivery; what this one did is rolled back
    ├── ContextLost                      what must surround a receiver, such as a tenant, is not there
    ├── UnknownReceiver                  for an hour no process knew the task that a delivery is for
    ├── WorkerLost                       a receiver whose worker died too often while it ran
    ├── LoopDetected                     receivers that keep causing one another
    ├── ReceiverFailed                   a receiver raised Fail
    ├── InstanceMissing                  the row of an instance that travelled by reference is gone
    └── NotCarried                       use of a value that did not travel (also AttributeError)
        └── DetachedInstance             saving or deleting an instance that is only a snapshot

    Discard, Fail, RetryAfter            raised by a receiver to decide its own outcome
"""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore
from django.core.exceptions import ImproperlyConfigured


class SignalTaskError(Exception):
    """Root of the library's errors; never raised itself."""


class SettingsError(SignalTaskError, ImproperlyConfigured):
    """Tell which key of ``DJANGO_CELERY_SIGNALS`` is wrong, and what it may be."""


class ConnectError(SignalTaskError, ValueError):
    """Tell why a receiver cannot be declared or connected like this, and what to write instead."""


class EncodeError(SignalTaskError, TypeError):
    """Name the receiver, the argument and the type that cannot be carried; raised only under ``STRICT``."""


class DecodeError(SignalTaskError, ValueError):
    """Refuse an envelope that is forged, damaged, or not addressed to this receiver."""


class UnknownVersion(DecodeError):
    """Refuse, for now, an envelope written by a newer version of the library."""


class PublishError(SignalTaskError):
    """Tell that the broker did not take the message, and why."""


class PublishTimeout(PublishError):
    """Tell that the broker did not answer within ``PUBLISH_TIMEOUT``; the message may still arrive."""


class DeliveryRefused(SignalTaskError):
    """Tell that a transaction was rolled back, for the database had refused a delivery, and somebody was silent."""


class LeaseLost(SignalTaskError):
    """Tell that another run has the delivery by now, so that what this run did must not be committed."""


class UnknownReceiver(SignalTaskError):
    """Tell that nobody has the task that a delivery is for: it was renamed without ``former_names=``, or removed."""


class ContextLost(SignalTaskError):
    """Tell which ``required`` context of a sending is not there, such as its tenant, so that no receiver ran."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        """Say whether it may be there later, or in another worker."""
        super().__init__(message)
        self.may_pass = may_pass


class WorkerLost(SignalTaskError):
    """Tell that the workers that ran a receiver ended without a word, as when it exhausts the memory."""


class LoopDetected(SignalTaskError):
    """Refuse a sending whose chain of causes is longer than ``MAX_DEPTH``, and print the chain."""


class ReceiverFailed(SignalTaskError):
    """Mark a task as failed whose receiver raised :class:`Fail`."""


class InstanceMissing(SignalTaskError):
    """Tell which row a receiver needed that no longer exists."""


class NotCarried(SignalTaskError, AttributeError):
    """Tell that a value stayed behind when the signal travelled, why, and how to get at it."""


class DetachedInstance(NotCarried):
    """Refuse to write an instance that is only a snapshot of the sending: it would resurrect or overwrite a row."""


class Discard(Ignore):
    """Raised by a receiver: this event is of no use, drop it without an error.

    Derived from Celery's ``Ignore``, so that ``autoretry_for=(Exception,)`` lets it pass.
    """


class Fail(Ignore):
    """Raised by a receiver: this event can never succeed, fail it now without a retry."""


class RetryAfter(Ignore):
    """Raised by a receiver: run me again in so many seconds; counts as one of ``max_retries``."""

    def __init__(self, seconds: float, reason: object = None) -> None:
        """Keep the delay.

        Args:
            seconds: time until the next attempt; zero or more.
            reason: what to say in the log.
        """
        if seconds < 0:
            raise ValueError(
                f"RetryAfter(seconds={seconds!r}): the delay is in seconds from now and cannot be negative."
            )
        super().__init__(str(reason) if reason is not None else f"retry in {seconds:g} s")
        self.seconds = seconds

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it pass between processes, as Celery's results do."""
        return type(self), (self.seconds, str(self))
