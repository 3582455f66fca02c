"""For tests: what was sent, and how to run it here and now, by the way that a worker goes.

Nothing of the flow needs this module. It works in Django's ``TestCase``, whose transaction is never committed, in
``TransactionTestCase``, and with pytest-django, which has fixtures of it: ``sent_signals`` and ``drain_signals``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from celery import Celery
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import Signal
from django.test import testcases

from . import dispatch, handover, names
from .blocks import muted, name_of
from .broker import project_app
from .durable.deliveries import deliveries
from .durable.outbox import message_of
from .durable.relay import keeping
from .durable.rows import State
from .envelope import Envelope, Reader
from .event import Event
from .exceptions import UnknownReceiver
from .plurals import quantity
from .signals import receiver_started
from .wire import ARGUMENT

__all__ = ["Sent", "SentSignals", "assert_not_sent", "assert_sent", "captured", "drain", "muted"]


@dataclass(frozen=True, slots=True)
class Sent:
    """One sending for one receiver, as it travels."""

    envelope: Envelope
    guarantee: str
    options: dict[str, Any]  # of apply_async, as far as the connection says some

    @property
    def receiver(self) -> str:
        """The name of the task."""
        return self.envelope.event.receiver

    @property
    def signal(self) -> Signal:
        """The signal."""
        return names.find_signal(*self.envelope.signal_names)

    @property
    def sender(self) -> Any:
        """The sender, as a receiver would be given it."""
        return Reader(self.envelope).value(self.envelope.sender)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments, as a receiver would be given them: encoded and decoded, and instances fetched anew.

        Raises:
            InstanceMissing: when the row of one is gone.
        """
        reader = Reader(self.envelope)
        return {name: reader.value(node) for name, node in self.envelope.kwargs.items()}

    @property
    def event(self) -> Event:
        """What ``current_event()`` would tell."""
        return replace(self.envelope.event, changes=Reader(self.envelope).changes())

    def has(self, arguments: dict[str, Any]) -> bool:
        """Tell whether it has some arguments, among others."""
        own = self.kwargs
        return all(name in own and own[name] == value for name, value in arguments.items())

    def __str__(self) -> str:
        return f"{self.envelope.summary} -> {self.receiver} ({self.guarantee})"


class SentSignals(list[Sent]):
    """What was sent, in its order."""

    def to(self, receiver: Any) -> SentSignals:
        """Return what was sent to a receiver: a task, or its name."""
        return SentSignals(one for one in self if one.receiver == name_of(receiver))

    def of(self, signal: Signal) -> SentSignals:
        """Return what a signal has sent."""
        return SentSignals(one for one in self if one.signal is signal)

    def having(self, **arguments: Any) -> SentSignals:
        """Return what was sent with these arguments, among others."""
        return SentSignals(one for one in self if one.has(arguments))

    def __str__(self) -> str:
        return "".join(f"\n  {one}" for one in self) or " nothing"


@contextmanager
def captured() -> Iterator[SentSignals]:
    """Note what a block sends to receivers in workers, in all threads; no broker is given anything meanwhile.

    What was sent stays to be run by :func:`drain`: durable deliveries in their table, the others in memory. Where tasks
    are eager, receivers run as ever.
    """
    found = SentSignals()

    def watch(_: Celery, envelope: Envelope, guarantee: str, options: dict[str, Any]) -> None:
        found.append(Sent(envelope, guarantee, options))

    if handover.held is None:  # what an earlier test has not run is no business of this one
        forget()
    dispatch.watchers.append(watch)
    try:
        with _holding():
            yield found
    finally:
        dispatch.watchers.remove(watch)


@contextmanager
def assert_sent(
    receiver: Any, signal: Signal | None = None, /, *, times: int | None = None, **arguments: Any
) -> Iterator[SentSignals]:
    """Fail unless a block sends something to a receiver.

    Args:
        receiver: its task, or the name of that.
        signal: which signal; any, unless told.
        times: how often; once or more, unless told.
        arguments: of the sending, compared as the receiver would be given them.

    Raises:
        AssertionError: saying what was sent instead.
    """
    with captured() as sent:
        yield sent
    found = _chosen(sent, receiver, signal, arguments)
    if len(found) != times if times is not None else not found:
        how = f"was sent {quantity(len(found), 'time', 'times')}, not {times}" if times is not None else "was not sent"
        raise AssertionError(f"{_wanted(receiver, signal, arguments)} {how}. Sent was:{sent}")


@contextmanager
def assert_not_sent(receiver: Any, signal: Signal | None = None, /, **arguments: Any) -> Iterator[SentSignals]:
    """Fail when a block sends something to a receiver; the arguments are those of :func:`assert_sent`.

    Raises:
        AssertionError: saying what was sent.
    """
    with captured() as sent:
        yield sent
    if found := _chosen(sent, receiver, signal, arguments):
        raise AssertionError(f"{_wanted(receiver, signal, arguments)} was sent:{found}")


def _chosen(sent: SentSignals, receiver: Any, signal: Signal | None, arguments: dict[str, Any]) -> SentSignals:
    found = sent.to(receiver)
    return (found.of(signal) if signal is not None else found).having(**arguments)


def _wanted(receiver: Any, signal: Signal | None, arguments: dict[str, Any]) -> str:
    what = f"{names.short_name(names.signal_name(signal))} -> " if signal is not None else ""
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"{what}{name_of(receiver)}" + (f" with {given}" if given else "")


# Run -------------------------------------------------------------------------------------------------------------

_FORBIDDEN: Any = vars(testcases)["DatabaseOperationForbidden"]  # which type stubs do not have
_held: list[handover.Message] = []  # what no broker was given, until it is drained


@contextmanager
def _holding() -> Iterator[None]:
    before, handover.held = handover.held, _held
    try:
        yield
    finally:
        handover.held = before


def forget() -> None:
    """Drop what :func:`captured` has kept from a broker and nobody has run; a row in a table is not kept here."""
    _held.clear()


def drain() -> int:
    """Run the receivers of what was sent, and of what they send in turn, until nothing waits, and return how many.

    Here and now, in this thread, by the way that a worker goes: opened, decoded, in a transaction, completed. Inside of
    a test's transaction, too, on all databases that the test may use. Time does not count: what has a ``countdown=`` or
    ``debounce=`` runs as well. A key that is blocked stays so, and a receiver with ``batch=True`` is given its events
    one by one.

    Raises:
        Exception: the first receiver's that fails, after its outcome was noted; the others wait for the next call.
    """
    tried: set[str] = set()  # what could not be opened must not be tried for ever
    with _holding(), _runs() as runs:
        while work := {key: message for message in _waiting() if (key := repr(message.body)) not in tried}:
            tried.update(work)
            for message in work.values():
                _run(message)
    return len(runs)


@contextmanager
def _runs() -> Iterator[list[Event]]:
    runs: list[Event] = []

    def note(event: Event, **_: Any) -> None:
        runs.append(event)

    receiver_started.connect(note)
    try:
        yield runs
    finally:
        receiver_started.disconnect(note)


def _waiting() -> list[handover.Message]:
    """Take what waits: what no broker was given, what waits for a commit, and deliveries in their tables."""
    # Of a durable delivery it is the row that counts: its message may be of a row that was rolled back.
    held = [message for message in _held if isinstance(message.body, str)]
    messages = [*held, *(message for alias in connections for message in _of_hooks(connections[alias]))]
    _held.clear()
    return [*messages, *(message for alias in keeping() for message in _of_rows(alias))]


def _of_hooks(connection: BaseDatabaseWrapper) -> list[handover.Message]:
    """Take what is to be published after a commit, which does not come in a test's transaction."""
    hooks: list[Any] = list(connection.run_on_commit)
    connection.run_on_commit = [entry for entry in hooks if not isinstance(entry[1], handover.Hook)]
    return [
        entry[1].make()
        for entry in hooks
        if isinstance(entry[1], handover.Hook) and entry[1].act is handover.publish_or_lose
    ]


def _of_rows(alias: str) -> list[handover.Message]:
    rows = deliveries(alias)
    try:
        waiting = list(rows.filter(state__in=(State.READY, State.SENT)).order_by("pk"))
    except _FORBIDDEN:  # of a database that the test does not name
        return []
    app = project_app()
    return [
        message_of(app, row, alias)
        for row in waiting
        if row.lane is None or row.slot is not None or rows.filter(token=row.token).take_turn(row.pk, row.lane)
    ]


def _run(message: handover.Message) -> None:
    task: Any = message.app.tasks.get(message.receiver)
    if task is None:
        raise UnknownReceiver(
            f"The Celery app {message.app.main!r} has no task {message.receiver!r}, for which {message.summary!r} "
            "waits; import its module in the test."
        )
    identity = {name: message.options[name] for name in ("task_id", "retries") if name in message.options}
    result = task.apply(kwargs={ARGUMENT: message.body}, throw=False, **identity)
    if isinstance(result.result, Exception) and result.state == "FAILURE":
        raise result.result
