"""The relay: a loop that publishes what is due, in every database, and looks after what stays behind."""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from celery import Celery
from django.apps import apps
from django.db import Error, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import conf
from ..broker import is_fallback, is_outage, project_app
from ..exceptions import PublishError
from ..plurals import quantity
from .bulk import Bulk
from .deliveries import Claimed, deliveries
from .packing import message_of_pack, packed
from .routes import queue_of
from .trouble import is_conflict
from .upkeep import Upkeep

logger = logging.getLogger(__name__)

GRACE = 2.0  # seconds after which another relay publishes what this one has claimed and says nothing of any more
SOON, LATER = 5.0, 60.0  # seconds until what the broker refused is published again, and what cannot be published here
NAP = 0.2  # seconds until a relay that sleeps finds out that it is to stop
LONGEST_PAUSE = 10.0  # seconds between two tries while the database or the broker is away


class Relay:
    """Publishes due deliveries until it is told to stop. Any number may run at once, in any process."""

    def __init__(
        self,
        *,
        app: Celery | None = None,
        databases: Iterable[str] | None = None,
        batch_size: int = 500,
        idle: float = 1.0,
    ) -> None:
        """Begin without a connection.

        Args:
            app: the Celery app to publish for; the project's unless told.
            databases: their aliases; all that hold deliveries unless told.
            batch_size: deliveries that are claimed at once.
            idle: seconds to sleep when nothing is due, on the average.

        Raises:
            ValueError: for a number that cannot be, an alias that ``DATABASES`` does not have, or without an app.
        """
        if batch_size < 1 or idle <= 0:
            raise ValueError(f"Relay: batch_size={batch_size!r} must be at least 1, and idle={idle!r} above zero.")
        self.app = app or project_app()
        if is_fallback(self.app):
            raise ValueError(
                "Relay: there is no Celery app of the project. Import it where Django is loaded, as in the project's "
                "__init__.py: from .celery import app as celery_app"
            )
        self.batch_size, self.idle = batch_size, idle
        self.databases = list(databases) if databases is not None else keeping()
        if unknown := set(self.databases) - set(connections.settings):
            raise ValueError(f"Relay: there is no database {sorted(unknown)!r}; DATABASES has {list(connections)!r}.")
        self.guard: AbstractContextManager[Any] = nullcontext()  # held while it is busy, for what must not happen then
        self._stopped = False  # no lock: a signal handler may come while the relay itself has it
        self._bulk = Bulk(self.app)
        self._upkeep = {alias: Upkeep(self.app, alias) for alias in self.databases}
        self._broker = Outage(idle)
        self._away = {alias: Outage(idle) for alias in self.databases}
        self._kept: list[BaseDatabaseWrapper] = []

    def run(self) -> None:
        """Work until :meth:`stop` is called; outages of a database or of the broker only make it wait."""
        # A forked child frees what its parent's threads had of their own, and MySQL's client says goodbye then.
        self._kept = [connections[alias] for alias in self.databases]
        logger.info("The relay publishes what is due in %s.", ", ".join(self.databases) or "no database")
        try:
            while not self._stopped:
                with self.guard:
                    busy = self._round()
                idle = 0 if busy else self.idle * random.uniform(0.5, 1.5)  # noqa: S311 - not all at the same time
                self._sleep(self._broker.pause or idle)
        finally:
            self._bulk.close()
            with self.guard:
                for alias in self.databases:
                    _close(alias)
            logger.info("The relay has ended.")

    def stop(self) -> None:
        """End :meth:`run` after the batch that is under way; from a signal handler or another thread."""
        self._stopped = True

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, NAP))

    def once(self) -> int:
        """Publish all that is due now, and return how many deliveries the broker has by then.

        Runs whose workers have died are left to a relay that stays: whether the database was away, and living workers
        could not renew their leases, nobody can tell at a glance.

        Raises:
            django.db.Error: when a database does not answer.
        """
        published = 0
        for alias in self.databases:
            self._upkeep[alias].work()
            while not self._stopped and ((claimed := self._claim(alias)).rows or self._upkeep[alias].look_at_pauses()):
                published += self._publish(alias, claimed) if claimed.rows else 0
                if self._broker.pause:  # what was given back is due still
                    break
        self._bulk.close()
        return published

    def _round(self) -> bool:
        """Do one batch for each database; tell whether there may be more."""
        sizes = [self._batch(alias) for alias in self.databases]
        if not any(sizes):
            self._broker.over()  # perhaps not, but other relays have what was due
        return self.batch_size in sizes

    def _batch(self, alias: str) -> int:
        """Do one batch for a database, unless it is away; return how many deliveries it had."""
        if self._away[alias].lasts():
            return 0
        if self._away[alias].pause:  # it is back only now, and leases are renewed only now
            self._upkeep[alias].be_careful()
        began = time.monotonic()
        try:
            self._upkeep[alias].work()
            claimed = self._claim(alias)
            waited = time.monotonic() - began
            if claimed.rows:
                self._publish(alias, claimed)
            else:
                self._bulk.rest()
        except Exception as error:
            self._leave_alone(alias, error)
            return 0
        self._away[alias].over()
        if waited > conf.get().LEASE / 3:  # nobody may have had an answer in time to renew a lease
            self._upkeep[alias].be_careful()
        return len(claimed.rows)

    def _leave_alone(self, alias: str, error: Exception) -> None:
        if is_conflict(error):
            logger.info("The relay met another transaction in %r: %s", alias, error)
            return
        if isinstance(error, Error):
            logger.warning("The relay waits for the database %r: %s", alias, error)
        else:
            logger.exception("The relay failed in %r and tries again.", alias)
        self._upkeep[alias].be_careful()
        self._away[alias].longer()
        _close(alias)

    def _claim(self, alias: str) -> Claimed:
        return deliveries(alias).claim(self.batch_size, GRACE)

    def _publish(self, alias: str, claimed: Claimed) -> int:
        """Publish those of a batch whose turn it is, mark what the broker has, and give back the rest.

        Returns:
            How many deliveries the broker has.
        """
        meanwhile = Renewal(alias, claimed)
        rows = self._unpaused(alias, claimed.claim, deliveries(alias).admit(claimed.claim, claimed.rows, meanwhile))
        tasks = self.app.tasks  # which takes as long to look up as to look into
        known = [row for row in rows if row.receiver in tasks]
        packs = packed(self.app, known, alias)
        outcomes = self._bulk.publish([message_of_pack(self.app, pack, alias) for pack in packs], meanwhile)
        ended = [(row, error) for pack, error in zip(packs, outcomes, strict=True) for row in pack]
        taken = [row for row, error in ended if error is None]
        refused = [(row, error) for row, error in ended if error is not None]
        for queue, ids in self._by_queue(taken).items():
            deliveries(alias).mark(claimed.claim, ids, queue)
        self._give_back(alias, claimed.claim, refused)
        self._upkeep[alias].unknown(claimed.claim, [row for row in rows if row.receiver not in tasks])
        if any(is_outage(error) for _, error in refused):
            self._broker.longer()
        else:
            self._broker.over()
        return len(taken)

    def _unpaused(self, alias: str, claim: int, rows: Sequence[Any]) -> Sequence[Any]:
        """Lay aside those of paused receivers; they have their turns by now, so that others of their keys wait."""
        paused = self._upkeep[alias].paused
        if not paused:
            return rows
        deliveries(alias).park_claimed(claim, [row.pk for row in rows if row.receiver in paused])
        return [row for row in rows if row.receiver not in paused]

    def _by_queue(self, rows: Iterable[Any]) -> dict[str, list[int]]:
        found: defaultdict[str, list[int]] = defaultdict(list)
        known: dict[tuple[Any, ...], str] = {}
        for row in rows:
            kind = (row.receiver, *row.options.items())  # a route may be a function of them
            if kind not in known:
                known[kind] = queue_of(self.app, self.app.tasks.get(row.receiver), row.receiver, row.options) or ""
            found[known[kind]].append(row.pk)
        return found

    def _give_back(self, alias: str, claim: int, refused: Sequence[tuple[Any, Exception]]) -> None:
        """Give back what the broker did not take, for some time later; none of it counts as a run."""
        alike: defaultdict[tuple[str, float, str], list[int]] = defaultdict(list)
        for row, error in refused:
            alike[row.receiver, _patience(error), f"{type(error).__name__}: {error}"].append(row.pk)
        for (receiver, seconds, reason), ids in alike.items():
            logger.warning("%s for %s could not be published: %s", quantity(len(ids)), receiver, reason)
            deliveries(alias).release(claim, ids, seconds)


def _patience(error: Exception) -> float:
    """Return the seconds after which a publication is tried again."""
    if is_outage(error):
        return 0.0  # the relay itself waits
    return SOON if isinstance(error, PublishError) else LATER


def _close(alias: str) -> None:
    with suppress(Error):  # what is broken may be too broken to be closed
        connections[alias].close()


class Renewal:
    """Keeps a claim while its messages are published: on a slow machine, or by a slow broker, that may take long."""

    def __init__(self, using: str, claimed: Claimed) -> None:
        """Count from the claim on."""
        self.using, self.claimed = using, claimed
        self._next = claimed.began + GRACE / 3

    def __call__(self) -> None:
        """Renew the claim, if it is time to; if that fails, another relay may publish some of it as well."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + GRACE / 3
        try:
            deliveries(self.using).renew(self.claimed.claim, [row.pk for row in self.claimed.rows], GRACE)
        except Exception as error:
            logger.info("A claim in %r could not be renewed: %r", self.using, error)
            _close(self.using)  # or what is published could not be marked


class Outage:
    """How long to leave alone what is away: twice as long each time."""

    def __init__(self, first: float) -> None:
        """Begin without one; the first pause has so many seconds."""
        self.first, self.pause, self._until = first, 0.0, 0.0

    def longer(self) -> None:
        """Note that it is away still."""
        self.pause = min(LONGEST_PAUSE, self.pause * 2 or self.first)
        self._until = time.monotonic() + self.pause

    def over(self) -> None:
        """Note that it is back."""
        self.pause = self._until = 0.0

    def lasts(self) -> bool:
        """Tell whether it is too early to try again."""
        return time.monotonic() < self._until


def keeping() -> list[str]:
    """Return the aliases of the databases that hold deliveries."""
    if "django_celery_signals" not in apps.app_configs:
        return []
    model = apps.get_model("django_celery_signals", "Delivery")
    return [
        alias
        for alias in connections
        if connections[alias].vendor in ("postgresql", "mysql", "sqlite") and router.allow_migrate_model(alias, model)
    ]
