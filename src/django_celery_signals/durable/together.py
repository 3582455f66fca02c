"""Several deliveries of one message: opened, kept and completed together; what becomes of each is noted behind its own
fence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from celery.exceptions import Retry, SoftTimeLimitExceeded
from django.db import connections, transaction

from ..context import restored_again
from ..envelope import Envelope
from ..event import Event
from ..exceptions import LeaseLost, RetryAfter
from ..handover import Hook
from ..plurals import quantity
from .clock import In
from .deliveries import DeliveryQuerySet, deliveries
from .hold import Held, held, lease_of
from .lease import PAUSE, keeper, surely
from .reference import Chunk
from .rows import State
from .savepoints import Savepoint
from .trouble import is_conflict

logger = logging.getLogger(__name__)


def opened_together(task: Any, chunk: Chunk) -> list[Held]:
    """Open the deliveries of a message, in one commit; without those that have been opened by a copy of it.

    Raises:
        django.db.Error: when the database does not answer, as for a single one.
    """
    seconds, renews = lease_of(task, chunk.alias, len(chunk.rows))
    rows = deliveries(chunk.alias).open_together(chunk, seconds)
    if len(rows) < len(chunk.rows):
        gone = len(chunk.rows) - len(rows)
        logger.debug("Done or in other hands: %s of %r.", quantity(gone), chunk.alias)
    connection = connections[chunk.alias]
    return [held(task, connection, row, seconds, renews) for row in rows]


@contextmanager
def kept(holds: Sequence[Held]) -> Iterator[None]:
    """Renew the leases of a block's deliveries, and give back those of which it does not say how they ended.

    They run again, each by itself, and it does not count: who knows which of them was to blame?
    """
    using, leases = holds[0].lease.using, [hold.lease for hold in holds if hold.renews]
    keeper(using).keep(*leases)
    try:
        with _given_back(holds):
            yield
    finally:
        keeper(using).let_go(*leases)


@contextmanager
def _given_back(holds: Sequence[Held]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        is_ended = not isinstance(error, Exception)  # from outside, perhaps in a COMMIT: the fence tells what is left
        left = holds if is_ended else [hold for hold in holds if not hold.lease.ending]
        give_back(left, patience=PAUSE if is_ended else None)  # at the end of the lease the relay does the same
        raise
    give_back([hold for hold in holds if not hold.lease.ending])


def give_back(holds: Sequence[Held], seconds: float = 0, *, patience: float | None = None) -> int:
    """Let deliveries run again in so many seconds, each alone; return how many of them had not ended otherwise."""
    if not holds:
        return 0
    using, receiver = holds[0].lease.using, holds[0].known.receiver
    return surely(using, receiver, lambda: _rows(holds).rerun(seconds), patience=patience)


def _rows(holds: Sequence[Held]) -> DeliveryQuerySet:
    """Return the deliveries to be ended."""
    return deliveries(holds[0].lease.using).running(*_ending(holds))


def _ending(holds: Sequence[Held]) -> tuple[list[int], list[int]]:
    """Return the keys and tokens of deliveries to be ended; a renewal that finds them ended has lost nothing."""
    for hold in holds:
        hold.lease.ending = True
    return [hold.lease.pk for hold in holds], [hold.lease.token for hold in holds]


def complete_together(task: Any, holds: Sequence[Held]) -> None:
    """Note that the receiver succeeded with all of some deliveries, in one statement but for those to run once more.

    Raises:
        LeaseLost: when another run has one of them; whatever the receiver did is to be rolled back.
    """
    for hold in [hold for hold in holds if hold.retry_in is not None]:
        hold.complete()
    holds = [hold for hold in holds if hold.retry_in is None]
    if not holds:
        return
    using, receiver = holds[0].lease.using, holds[0].known.receiver
    # Outside of a transaction nothing would be rolled back, and a database that is away is worth waiting for.
    count = _completed(task, holds) if task.atomic else surely(using, receiver, lambda: _completed(task, holds))
    if count < len(holds):
        raise LeaseLost(
            f"{receiver}: another run has {len(holds) - count} of {len(holds)} deliveries of {using!r} "
            "that were run together, or they were discarded; what this run did is not committed."
        )
    for hold in holds:
        hold.completed = True


def _completed(task: Any, holds: Sequence[Held]) -> int:
    if task.retain:
        return _rows(holds).update(state=State.DONE, due_at=In(task.retain), finished_at=In(0), claim=None)
    return deliveries(holds[0].lease.using).complete_together(*_ending(holds))


class All:
    """Deliveries that a receiver is given all at once."""

    def __init__(self, task: Any, holds: Sequence[Held]) -> None:
        """Begin without an outcome."""
        self.task, self.holds = task, holds
        self.asked = False  # as of a single one
        self.retry_in: float | None = None

    def complete(self) -> None:
        """Note that the receiver succeeded with all of them.

        Raises:
            RetryAfter: when it asked for another run of them and went on.
            LeaseLost: when another run has one of them.
        """
        if self.retry_in is not None:
            raise RetryAfter(self.retry_in)
        complete_together(self.task, self.holds)
        if self.task.atomic:
            shield(connections[self.holds[0].lease.using], 0, copy_context(), self.holds[0].envelope().context)


class _OneOfSeveral:
    """What one of several deliveries does after their commit: in its own context, and no error of it stops another's.

    Django writes the name of what fails into its log, which a ``partial`` has not.
    """

    def __init__(self, hook: Callable[[], Any], context: Context, around: Mapping[str, Any]) -> None:
        self.hook, self.context, self.around = hook, context, around
        self.__qualname__ = getattr(hook, "__qualname__", None) or repr(hook)

    def __call__(self) -> None:
        with restored_again(self.around):
            self.context.run(self.hook)


def shield(connection: Any, start: int, context: Context, around: Mapping[str, Any]) -> None:
    """Let the hooks that were registered for a commit, from the given one on, run beside one another."""
    connection.run_on_commit[start:] = [
        (ids, hook if isinstance(hook, Hook) else _OneOfSeveral(hook, context, around), True)
        for ids, hook, _ in connection.run_on_commit[start:]
    ]


class Later:
    """A delivery of several: what becomes of it is noted when its run is over, or when the others are committed."""

    def __init__(self, hold: Held, savepoint: Savepoint = transaction.atomic) -> None:
        """Begin without an outcome; ``savepoint`` is what keeps an atomic receiver's work apart."""
        self.hold, self.savepoint = hold, savepoint
        self.is_done = False  # whether it is to be completed with the others
        self.spoils = False  # whether its error says nothing about itself
        self.context = copy_context()  # of its run: the event, the language
        self.around: Mapping[str, Any] = {}  # what surrounded the sending, once it is read
        self._then: Callable[[], Exception | None] | None = None

    def envelope(self) -> Envelope:
        """Read the envelope."""
        envelope = self.hold.envelope()
        self.around = envelope.context
        return envelope

    def event(self, event: Event, **facts: Any) -> Event:
        """Return the event as the receiver gets it."""
        return self.hold.event(event, **facts)

    def is_expired(self) -> bool:
        """Tell whether the sending's ``expires`` is over."""
        return self.hold.is_expired()

    def complete(self) -> None:
        """Be completed, in a transaction with the others: a row that is changed now could not be renewed until then.

        Raises:
            LeaseLost: when another run has it, and there is no transaction.
            TransactionManagementError: when the receiver has left a transaction that can only be rolled back.
        """
        if not self.hold.task.atomic:
            self.hold.complete()
            return
        self.hold.connection.validate_no_broken_transaction()
        self.is_done = True

    def succeeded(self, event: Event, runtime: float) -> None:
        """Tell that later."""
        self.context, self._then = copy_context(), partial(self.hold.succeeded, event, runtime)

    def discard(self, event: Event, reason: str) -> Exception:
        """Drop the event later."""
        return self._later(self.hold.discard, event, reason)

    def fail(self, event: Event | None, error: Exception) -> Exception:
        """Give up later."""
        return self._later(self.hold.fail, event, error)

    def raised(self, event: Event, error: Exception) -> Exception:
        """Decide on an error later."""
        reason = error.exc if isinstance(error, Retry) else error  # of autoretry_for=(Exception,)
        # The time of all is over, whoever had it; and a deadlock is about locks that others of these have taken.
        met = self.hold.task.atomic and reason is not None and is_conflict(reason)
        self.spoils = isinstance(reason, SoftTimeLimitExceeded) or met
        return self._later(self.hold.raised, event, error)

    def again(self, event: Event | None, error: Exception, seconds: float, tries: int | None = None) -> Exception:
        """Have it published once more, later."""
        return self._later(self.hold.again, event, error, seconds, tries)

    def rerun(self, event: Event | None, error: Exception) -> Exception:
        """Let it run again later, without counting."""
        return self._later(self.hold.rerun, event, error)

    def _later(self, then: Callable[..., Exception], *args: Any) -> Exception:
        self.is_done, self.context, self._then = False, copy_context(), partial(then, *args)
        return PutOff(args[1])

    def settle(self) -> Exception | None:
        """Note what became of it; return what Celery would have been told."""
        self.hold.lease.ending = self.hold.completed
        if self._then is None:
            return None
        with restored_again(self.around):
            return self.context.run(self._then)


class PutOff(Exception):
    """Inner signal: the outcome is known, and noted later."""
