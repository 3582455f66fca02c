"""An event that waits in a row of the database: opened by one worker, and done only when its receiver has succeeded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, ClassVar

from celery.exceptions import Ignore, Reject, Retry
from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F

from .. import conf, policy
from ..carried import discarded, failed, succeeded
from ..envelope import Envelope
from ..event import Event, with_facts
from ..exceptions import LeaseLost, ReceiverFailed, RetryAfter
from ..wire import ARGUMENT
from .clock import In, instant
from .deliveries import DeliveryQuerySet, deliveries
from .failing import give_up
from .failure import described
from .folding import fold_in
from .lease import PAUSE, Lease, keeper, surely
from .outbox import publish_next
from .reference import Reference
from .rows import State
from .trouble import is_transient

logger = logging.getLogger(__name__)

UNRENEWED = 3600.0  # seconds: the lease where it cannot be renewed, and the task has no time limit


def opened(task: Any, reference: Reference) -> Held | None:
    """Open a delivery, in a commit of its own; None when the message is a copy of one that has been opened.

    Raises:
        django.db.Error: when the database does not answer. The row stays as it is, and is published again; or, where
            only the answer was lost, when the lease is over.
    """
    seconds, renews = lease_of(task, reference.alias)
    known = deliveries(reference.alias).open(reference, seconds)
    if known is None:
        logger.debug("Delivery %s of %r is done, in other hands or paused.", reference.id, reference.alias)
        return None
    return held(task, connections[reference.alias], known, seconds, renews)


def held(task: Any, connection: BaseDatabaseWrapper, known: Any, seconds: float, renews: bool) -> Held:
    """Return what a worker holds of a row that it has just opened for so many seconds."""
    lease = Lease(using=connection.alias, pk=known.pk, token=known.token, seconds=seconds)
    began = instant(known.due_at, connection) - timedelta(seconds=seconds)
    fence = (began - datetime(1970, 1, 1, tzinfo=began.tzinfo)) // timedelta(microseconds=1)
    return Held(task=task, connection=connection, lease=lease, known=known, fence=fence, renews=renews)


def lease_of(task: Any, using: str, count: int = 1) -> tuple[float, bool]:
    """Return the seconds of a lease on one or more deliveries, and whether it is renewed.

    Where a transaction sees the database as it was when it began, completing a row that was renewed since would fail.
    """
    lease = conf.get().LEASE
    if task.atomic and connections[using].vendor == "sqlite":  # nobody else can write meanwhile, to renew or to expire
        return lease, False
    if not task.atomic or not _sees_the_past(using):
        return lease, not task.request.is_eager
    limit = float(task.time_limit or task.app.conf.task_time_limit or 0)
    return max(lease, limit * (1 if task.batch else count) or UNRENEWED), False


@cache
def _sees_the_past(using: str) -> bool:
    connection = connections[using]
    with transaction.atomic(using=using), connection.cursor() as cursor:  # psycopg sets the level of a transaction only
        if connection.vendor == "postgresql":
            cursor.execute("SHOW transaction_isolation")
            return cursor.fetchone() not in (("read committed",), ("read uncommitted",))
        if connection.vendor == "mysql":  # MariaDB from 11.6 on; before, an UPDATE or DELETE saw the present
            cursor.execute(
                "SHOW VARIABLES WHERE Variable_name = 'innodb_snapshot_isolation' OR Variable_name LIKE 't%isolation'"
            )
            found = dict(cursor.fetchall())
            level = found.get("transaction_isolation") or found.get("tx_isolation")
            return found.get("innodb_snapshot_isolation") == "ON" and level in ("REPEATABLE-READ", "SERIALIZABLE")
    return False


@dataclass(kw_only=True)
class Held:
    """What a worker holds of a durable event while its receiver runs. Every change of the row is behind the fence."""

    #: Runs that do not count, with pauses of up to a minute: more than an hour of trouble.
    OUTAGES: ClassVar[int] = 100

    task: Any
    connection: BaseDatabaseWrapper  # of the thread that runs it
    lease: Lease
    known: Any  # the row, as it was opened
    fence: int  # when it was opened, in microseconds of the database's clock: the runs of a key do not overlap there
    renews: bool
    asked: bool = False  # whether the receiver called retry(), which is the end of the default policy
    retry_in: float | None = None  # seconds, if it did so and went on
    completed: bool = False  # whether the row was ended, if only the commit of that succeeded
    passes_on: bool = False  # whether the next of its key may begin, on the same condition
    read: Envelope | None = None  # once it has been

    def __enter__(self) -> Held:
        """Renew the lease from now on, and let Celery's retries count from the row's."""
        self.task.request.update(retries=self.known.attempts, hold=self)
        if self.renews:
            keeper(self.lease.using).keep(self.lease)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Give the row back when something failed that is not the receiver's, or when the run is ended from outside.

        That is a crash, which the relay counts at once instead of at the end of the lease: a receiver that always
        exceeds its time limit must not run for ever.
        """
        try:
            if isinstance(error, Exception) and not self.lease.ending:
                self.rerun(None, error)
            elif error is not None and not isinstance(error, Exception):
                self._surely(lambda: self._row().update(due_at=In(0)), patience=PAUSE)
        finally:  # a time limit may end this as well, and what nobody runs must not be renewed
            keeper(self.lease.using).let_go(self.lease)
        if self.passes_on and self.known.lane is not None:
            publish_next(self.task.app, self.lease.using, self.known.lane)

    def envelope(self) -> Envelope:
        """Read the envelope, and fold into it what waits for the same key and may be.

        Raises:
            DecodeError: when it is damaged, or erased.
            django.db.Error: when the database does not answer.
        """
        if self.read is None:
            self.read = fold_in(self.lease, self.known)
        return self.read

    def event(self, event: Event, **facts: Any) -> Event:
        """Return the event as the receiver gets it, with the fence; eager, in the sender's process, it has no rival."""
        lease = None if self.task.request.is_eager else self.lease
        return with_facts(event, fence=self.fence, lease=lease, key=self.known.key, **facts)

    def is_expired(self) -> bool:
        """Tell whether the sending's ``expires`` is over."""
        expires = self.known.options.get("expires")
        return expires is not None and policy.seconds_until(datetime.fromisoformat(expires)) == 0

    # What becomes of it ------------------------------------------------------------------------------------------

    def complete(self) -> None:
        """Note that the receiver succeeded: the last statement of its transaction, if it has one.

        Raises:
            LeaseLost: when another run has the delivery; whatever the receiver did is to be rolled back.
        """
        # Outside of a transaction nothing would be rolled back, and a database that is away is worth waiting for.
        if not (self._completed() if self.task.atomic else self._surely(self._completed)):
            raise LeaseLost(
                f"{self.known.receiver}: another run has delivery {self.lease.pk} of {self.lease.using!r}, or it was "
                "discarded; what this run did is not committed."
            )
        self.completed, self.passes_on = True, self.retry_in is None

    def _completed(self) -> int:
        if self.retry_in is not None:
            return self._row().update(state=State.READY, attempts=F("attempts") + 1, due_at=In(self.retry_in))
        if self.task.retain:
            return self._row().update(state=State.DONE, due_at=In(self.task.retain), finished_at=In(0), slot=None)
        self.lease.ending = True
        return deliveries(self.lease.using).complete(self.lease.pk, self.lease.token)

    def succeeded(self, event: Event, runtime: float) -> None:
        """Tell that the receiver succeeded."""
        succeeded(self.task, event, runtime)

    def discard(self, event: Event, reason: str) -> Exception:
        """Drop the event on purpose."""
        if self._surely(lambda: self._row().erase()):
            self.passes_on = True
            return discarded(self.task, event, reason)
        return self._superseded(event)

    def fail(self, event: Event | None, error: Exception) -> Exception:
        """Give up: the row stays, with the reason."""
        counts = {"task": self.task, "attempts": F("attempts") + 1}
        if not self._surely(lambda: give_up(self._row(), self.known, error, event, **counts)):
            return self._too_late(event, error) if self.completed else self._superseded(event)
        self.passes_on = not self.task.blocks_key
        return failed(self.task, event, error, using=self.lease.using)

    def raised(self, event: Event, error: Exception) -> Exception:
        """Decide on an error of the receiver's: its own policy goes first, Celery's words keep their meaning."""
        if isinstance(error, LeaseLost):
            return self._superseded(event, error)
        if (trouble := self._trouble(error)) is not None:
            return self.rerun(event, trouble)
        if isinstance(error, Retry):
            return self._again(event, error.exc or error, policy.seconds_until(error.when), asked=True)
        if isinstance(error, Ignore):
            return self.discard(event, str(error))
        if self.asked or policy.has_policy(self.task) or (isinstance(error, Reject) and not error.args[1]):
            return self.fail(event, error)
        return self.again(event, error, policy.pause(self.known.attempts))

    def _trouble(self, error: Exception) -> Exception | None:
        """Return the database's trouble that ended the run, unless the receiver has its own policy for that."""
        autoretried = policy.has_policy(self.task) and not policy.names_databases(self.task)
        if isinstance(error, Retry):  # of autoretry_for=(Exception,), which did not mean this
            return error.exc if autoretried and error.exc is not None and is_transient(error.exc) else None
        gave_up = self.asked and self.retry_in is None and not autoretried  # its own retry() was one too many
        return error if is_transient(error) and not gave_up else None

    def rerun(self, event: Event | None, error: Exception) -> Exception:
        """Let it run again after a pause that grows, without counting: the receiver is not to blame."""
        return self.again(event, error, policy.pause(self.known.reruns, policy.LONGEST_WAIT), self.OUTAGES)

    def again(self, event: Event | None, error: Exception, seconds: float, tries: int | None = None) -> Exception:
        """Let the relay publish it once more, in so many seconds.

        Args:
            event: what it is about, if it could be read.
            error: the reason; also what is returned when that was the last try.
            seconds: until then.
            tries: how often, at most, without counting as an attempt; None: it counts, and ``max_retries`` is the end.
        """
        if tries is not None:
            if self.known.reruns >= tries:
                return self.fail(event, error)
            return self._again(event, error, seconds, counts={"reruns": F("reruns") + 1})
        if policy.is_spent(self.task, self.known.attempts):
            if isinstance(error, RetryAfter):
                text = f"{self.known.receiver} asked for more than max_retries: {error}"
                error = ReceiverFailed(text).with_traceback(error.__traceback__)
            return self.fail(event, error)
        return self._again(event, error, seconds)

    def _again(
        self,
        event: Event | None,
        error: Exception,
        seconds: float,
        *,
        counts: dict[str, Any] | None = None,
        asked: bool = False,
    ) -> Exception:
        counts = counts or {"attempts": F("attempts") + 1}
        reason = described(error, self.known.receiver)
        if not self._change(state=State.READY, due_at=In(seconds), **counts, **reason):
            return self._too_late(event, error) if self.completed else self._superseded(event)
        failed(self.task, event, error, using=self.lease.using, will_retry=True)
        if not self.task.request.is_eager:
            return Retry(exc=error, when=seconds)  # type: ignore[arg-type]
        # Eager, nobody would come for the row: as Celery does, run at once what asked for it, and show any other error.
        return Retry(exc=error, when=seconds, sig=self._signature()) if asked else error  # type: ignore[arg-type]

    def _signature(self) -> Any:
        fresh = Reference(
            alias=self.lease.using,
            id=self.lease.pk,
            token=self.lease.token,
            receiver=self.known.receiver,
            folds=self.known.folds,
        )
        return self.task.signature(kwargs={ARGUMENT: fresh.carried()})

    def _superseded(self, event: Event | None, error: LeaseLost | None = None) -> Exception:
        """Tell that another run has it, or that a commit of which the outcome was unknown has succeeded."""
        error = error or LeaseLost(f"{self.known.receiver}: delivery {self.lease.pk} of {self.lease.using!r} is gone.")
        self.lease.ending = True
        logger.warning("%s", error)
        failed(self.task, event, error, using=self.lease.using, will_retry=True)
        return Ignore(str(error))

    def _too_late(self, event: Event | None, error: Exception) -> Exception:
        """Tell of an error that came after the commit: from an ``on_commit`` hook, or its outcome was unknown."""
        logger.warning("%s succeeded, and then there was %r.", self.known.receiver, error, exc_info=error)
        if isinstance(error, Error):
            return Ignore(str(error))
        return failed(self.task, event, error, using=self.lease.using)

    def _row(self) -> DeliveryQuerySet:
        """Return the delivery to be ended; a renewal that finds it ended has lost nothing."""
        self.lease.ending = True
        return self.lease.row()

    def _change(self, **changes: Any) -> bool:
        return self._surely(lambda: self._row().update(**changes))

    def _surely(self, statement: Callable[[], int], *, patience: float | None = None) -> bool:
        return bool(surely(self.lease.using, self.known.receiver, statement, patience=patience))
