"""Deliveries that take turns: sent, run as a worker runs them, and relayed, all in this process and step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from celery import Celery
from django.db import OperationalError, connections, transaction
from django.dispatch import Signal
from psycopg import IsolationLevel

from django_celery_signals import Relay, deliveries
from django_celery_signals.durable import outbox
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.hold import Held, opened
from django_celery_signals.durable.reference import read
from django_celery_signals.durable.rows import State
from django_celery_signals.durable.upkeep import Upkeep
from django_celery_signals.wire import ARGUMENT
from tests.drain import Published, take
from tests.elsewhere import connecting, elsewhere
from tests.holding import trace
from tests.receiving import Receiving

step = Signal()


class Boom(Exception):
    """What receivers raise here."""


@dataclass(kw_only=True)
class Sender:
    """Another process, as far as the database can tell, with a transaction that is open."""

    stage: Stage
    thread: ThreadPoolExecutor
    block: ExitStack = field(default_factory=ExitStack)

    def send(self, key: Any, *numbers: Any) -> Future[None]:
        """Begin to send further steps, which may have to wait."""
        return self.thread.submit(self.stage.send, key, *numbers)

    def commit(self) -> None:
        """Commit."""
        self.do(self.block.close)

    def do(self, act: Callable[[], Any]) -> None:
        """Do something there."""
        self.thread.submit(act).result()


@dataclass(kw_only=True)
class Stage:
    """One database, and what the receivers of its deliveries have seen."""

    alias: str
    app: Celery
    receiving: Receiving
    body: Callable[[Any], None] = lambda number: None  # what the receiver does beside noting the number
    seen: list[Any] = field(default_factory=list)

    def receive(self, **options: Any) -> Any:
        """Declare a receiver that notes the numbers of the steps that it is given."""

        def note(number: Any) -> None:
            self.seen.append(number)
            self.body(number)

        return self.receiving(step, note, guarantee="durable", **{"key": lambda key: key, **options})

    def send(self, key: Any, *numbers: Any) -> None:
        """Send steps, each in a transaction of its own, if there is none."""
        for number in numbers:
            step.send(sender=None, using=self.alias, key=key, number=number)

    def send_elsewhere(self, key: Any, *numbers: Any) -> None:
        """Send steps from another process, as far as the database can tell."""
        elsewhere(lambda: self.send(key, *numbers))

    @contextmanager
    def sending(self, key: Any, *numbers: Any) -> Iterator[Sender]:
        """Send steps in another's transaction, which stays open until it is committed, in the end if not before."""
        with ThreadPoolExecutor(1) as thread:
            sender = Sender(stage=self, thread=thread)
            try:
                sender.do(lambda: sender.block.enter_context(transaction.atomic(using=self.alias)))
                sender.send(key, *numbers).result()
                yield sender
            finally:
                sender.commit()
                sender.do(connections.close_all)

    def take(self) -> list[Published]:
        """Take all messages out of the queue."""
        return take(self.app)

    def run(self, message: Published) -> str:
        """Run a message as a worker does, and return what becomes of the task."""
        headers = message.headers
        return trace(self.app, message.task, headers["id"], message.kwargs, headers["retries"]).state

    def work(self) -> int:
        """Run what lies in the queue, and what comes of it, until there is nothing left; return how many that were."""
        count = 0
        while messages := self.take():
            for message in messages:
                self.run(message)
                count += 1
        return count

    def open(self, message: Published) -> Held | None:
        """Open a delivery as a worker does, which then does nothing more."""
        task = self.app.tasks[message.task]
        return opened(task, read(message.kwargs[ARGUMENT], (task.name, *task.former_names)))

    def relay(self, **options: Any) -> int:
        """Let a relay publish what is due; return how much that was."""
        return Relay(app=self.app, databases=[self.alias], **options).once()

    def relay_later(self) -> int:
        """Let a relay publish what is due sooner or later, as if its time had come."""
        self.rows(due_at__isnull=False, state=State.READY).update(due_at=In(-1))
        return self.relay()

    def expire(self) -> None:
        """Let the relay find that the leases of all running receivers are over."""
        self.rows(state=State.RUNNING).update(due_at=In(-1))
        Upkeep(self.app, self.alias).expire()

    def rows(self, **chosen: Any) -> Any:
        """Return deliveries."""
        return deliveries(self.alias).filter(**chosen)

    def waiting(self) -> int:
        """Return how many deliveries wait for their turn."""
        return int(deliveries(self.alias).waiting().count())


LEVELS: dict[str, dict[str, Any]] = {
    "postgres": {"isolation_level": IsolationLevel.REPEATABLE_READ},
    "mariadb": {"isolation_level": "repeatable read"},
}
_IMPATIENCE: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 0.2},
    "postgresql": {"options": "-c lock_timeout=400ms"},
    "mysql": {"init_command": "SET SESSION innodb_lock_wait_timeout = 1"},
}


def impatient(using: str, **options: Any) -> AbstractContextManager[None]:
    """Let every statement fail that waits for another transaction's lock."""
    return connecting(using, **_IMPATIENCE[connections[using].vendor], **options)


def waits(act: Callable[[], Any]) -> bool:
    """Send something without the time to wait for a lock; tell whether that was needed, be it after the commit."""
    with patch.object(outbox.logger, "warning") as warning:
        try:
            act()
        except OperationalError:
            return True
    return bool(warning.called)


@contextmanager
def after_completion(act: Callable[[], Any]) -> Iterator[None]:
    """Do something as the last thing in the transactions of receivers."""
    original = Held.complete

    def complete(self: Held) -> None:
        original(self)
        act()

    with patch.object(Held, "complete", complete):
        yield
