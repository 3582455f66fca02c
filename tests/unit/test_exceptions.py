"""The errors: what each can be caught as, and what a receiver can raise to decide its own outcome."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import Ignore
from django.core.exceptions import ImproperlyConfigured

import django_celery_signals
from django_celery_signals import Discard, Fail, NotCarried, RetryAfter, SignalTaskError, exceptions


@pytest.mark.parametrize(
    ("name", "bases"),
    [
        ("SettingsError", {SignalTaskError, ImproperlyConfigured}),
        ("ConnectError", {SignalTaskError, ValueError}),
        ("EncodeError", {SignalTaskError, TypeError}),
        ("DecodeError", {SignalTaskError, ValueError}),
        ("UnknownVersion", {exceptions.DecodeError}),
        ("PublishError", {SignalTaskError}),
        ("PublishTimeout", {exceptions.PublishError}),
        ("LeaseLost", {SignalTaskError}),
        ("UnknownReceiver", {SignalTaskError}),
        ("ContextLost", {SignalTaskError}),
        ("WorkerLost", {SignalTaskError}),
        ("LoopDetected", {SignalTaskError}),
        ("DeliveryRefused", {SignalTaskError}),
        ("ReceiverFailed", {SignalTaskError}),
        ("InstanceMissing", {SignalTaskError}),
        ("NotCarried", {SignalTaskError, AttributeError}),
        ("DetachedInstance", {NotCarried}),
        ("Discard", {Ignore}),
        ("Fail", {Ignore}),
        ("RetryAfter", {Ignore}),
    ],
)
def test_errors_can_be_caught_as_what_they_are(name: str, bases: set[type]) -> None:
    """Each error is one of the library's and one of Python's, Django's or Celery's kinds, and says what it is for."""
    error = getattr(exceptions, name)

    assert bases == set(error.__bases__)
    assert error.__doc__


def test_the_root_is_never_raised() -> None:
    """Every error is of a kind that says what is wrong."""
    files = Path(django_celery_signals.__file__).parent.rglob("*.py")
    called = {
        (file.name, node.lineno)
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SignalTaskError"
    }

    assert set() == called


def test_an_attribute_that_stayed_behind_is_missing() -> None:
    """Code that asks whether an attribute is there, or names a default for it, gets an answer instead of an error."""

    class Absent:
        @property
        def total(self) -> Any:
            raise NotCarried("It stayed behind.")

    assert not hasattr(Absent(), "total")
    assert 0 == getattr(Absent(), "total", 0)


@pytest.mark.parametrize(
    "error", [Discard("no use"), Fail("for good"), RetryAfter(5)], ids=["Discard", "Fail", "Retry"]
)
def test_an_outcome_is_no_error_of_ours(error: Exception) -> None:
    """What a receiver raises to decide its outcome is not caught with the library's errors."""
    assert not isinstance(error, SignalTaskError)


@pytest.mark.parametrize(
    ("error", "seconds", "text"),
    [
        (RetryAfter(0), 0, "retry in 0 s"),
        (RetryAfter(1.5), 1.5, "retry in 1.5 s"),
        (RetryAfter(60, "the shop is closed"), 60, "the shop is closed"),
        (RetryAfter(60, reason=OSError("no route")), 60, "no route"),
        (RetryAfter(60, ""), 60, ""),
    ],
    ids=["at once", "a fraction", "with a reason", "with an error", "with an empty reason"],
)
def test_retry_after_keeps_its_delay(error: RetryAfter, seconds: float, text: str) -> None:
    """``RetryAfter`` knows when to run again, and says why."""
    assert (seconds, text) == (error.seconds, str(error))


def test_retry_after_looks_ahead() -> None:
    """A negative delay raises where it is written, showing the value and the rule."""
    with pytest.raises(
        ValueError, match=r"RetryAfter\(seconds=-1\): the delay is in seconds from now and cannot be neg"
    ):
        RetryAfter(-1)


@pytest.mark.parametrize("error", [RetryAfter(2.5), RetryAfter(0, "later"), Discard("no use"), Fail("never")], ids=str)
def test_decisions_pass_between_processes(error: Any) -> None:
    """What a receiver raises to decide its outcome can be pickled, as Celery does with what tasks raise."""
    again = pickle.loads(pickle.dumps(error))

    assert (type(error), str(error), vars(error)) == (type(again), str(again), vars(again))
