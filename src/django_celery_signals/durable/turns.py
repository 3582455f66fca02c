"""The statements by which the deliveries of a key take turns: one of them holds the slot, the others wait.

A lane is a receiver together with a key. ``lane`` says where a delivery belongs, and ``slot``, which is unique, that it
is its turn: it is the same value, or null. A delivery is written without the slot; its sender lets it have that after
the commit, or whoever ends the one before it does, after a commit, too. Inside of a transaction neither would see the
other, and the delivery would be left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any, Self

from django.db import IntegrityError, connections, transaction
from django.db.models import BooleanField, Case, Count, Exists, F, OuterRef, Q, Subquery, When
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce

from .clock import In, by_index, lock_no_gaps, seconds_between
from .rows import RowQuerySet, State
from .texts import LANES, texts_for


class TurnQuerySet(RowQuerySet):
    """Deliveries of which some wait for others."""

    def waiting(self, lane: Any = None) -> Self:
        """Return those that wait for their turn, in a lane the oldest first.

        A range of one lane and its order are what the index of lanes alone can give: told of an equal lane, PostgreSQL
        may well prefer to read the table from its oldest row on, to find the first of the lane.
        """
        rows = self.filter(state=State.READY, slot=None, lane__isnull=False).order_by("lane", "pk")
        return rows if lane is None else rows.filter(lane__gte=lane, lane__lte=lane)

    def take_turn(self, pk: int, lane: str) -> bool:
        """Let a delivery that its sender has just committed have the slot, in one statement, as published.

        Returns:
            False, when another has it, or waits before this one: whoever ends that one comes back to this one.
        """
        connection = connections[self.db]
        if connection.vendor == "mysql":  # else the statement would wait for the inserts it looks at
            lock_no_gaps(connection)
        free = RawSQL(texts_for(connections[self.db]).free, (lane, lane, lane, pk), output_field=BooleanField())  # noqa: S611
        return self.filter(free)._win([pk], slot=lane, state=State.SENT, sent_at=In(0), sends=1, due_at=None) > 0

    def pass_turn(self, lane: str, *, publishing: bool = False) -> Any | None:
        """Let the delivery that waits longest in a lane have the slot, unless another has it.

        Args:
            lane: of which a delivery has just been ended, and that is committed.
            publishing: whether the caller publishes it; else the relay does.

        Returns:
            The delivery, if the caller is to publish it now.
        """
        row = self.next_of(lane)
        if row is None:
            return None
        left = self._left(row)
        at_once = publishing and not row.options.get("debounce") and left <= 0
        as_sent = {"state": State.SENT, "sent_at": In(0), "sends": 1, "due_at": None}
        won = self._win([row.pk], slot=lane, claim=None, **(as_sent if at_once else {"due_at": In(left)}))
        return row if won and at_once else None

    def next_of(self, lane: str) -> Any | None:
        """Return what waits longest in a lane of which none has the slot, without its payload."""
        return next(iter(self.raw(texts_for(connections[self.db]).next, (lane, lane, lane))), None)

    def _left(self, row: Any) -> float:
        """Return the seconds until a delivery may be published at the earliest."""
        delay = max(row.options.get("countdown", 0.0), row.options.get("debounce", 0.0))
        if not delay:
            return 0.0
        return max(0.0, float(delay) - self.ages([row])[0])

    def ages(self, rows: Sequence[Any]) -> list[float]:
        """Return the seconds since deliveries were written, by the database's clock; none, if the first is gone."""
        if not rows:
            return []
        now = self.filter(pk=rows[0].pk).values_list(In(0), flat=True).first() or rows[0].created_at
        return [self._between(row.created_at, now) for row in rows]

    def _between(self, earlier: datetime, later: datetime) -> float:
        return seconds_between(earlier, later, connections[self.db])

    def admit(self, claim: int, rows: Sequence[Any], meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
        """Return those of a claim that may be published now.

        Of the others, those that wait for another of their lane are due no more, for that one's end comes back to
        them; and what is debounced is due later, when something newer waits behind it.

        Args:
            claim: which has them.
            rows: what was claimed.
            meanwhile: called again and again until that is done.
        """
        asking = {row.pk: row.lane for row in rows if row.lane and not row.slot}
        if asking:
            first = {lane: pk for pk, lane in sorted(asking.items(), reverse=True)}
            waits = asking.keys() - self._take_turns(claim, list(first.values()), meanwhile)
            self.claimed(claim, waits).filter(slot=None).update(due_at=None, claim=None, sent_at=None)
            rows = [row for row in rows if row.pk not in waits]
        return self._that_are_quiet(claim, rows, meanwhile)

    def _take_turns(self, claim: int, ids: Sequence[int], meanwhile: Callable[[], None]) -> set[int]:
        """Let claimed deliveries of different lanes have their slots; return which could."""
        lane = OuterRef("lane")
        earlier = self.filter(state=State.READY, slot=None, lane=lane, pk__lt=OuterRef("pk"))
        free = self.claimed(claim, ids).filter(~Exists(self.filter(slot=lane)), ~Exists(earlier))
        able = list(free.values_list("pk", flat=True))
        if self.claimed(claim, able)._win(able, slot=F("lane")) == len(able):
            return set(able)
        # Another was faster in one lane, and the database took back what it did in the rest.
        for pk in able:
            meanwhile()
            self.claimed(claim, [pk])._win([pk], slot=F("lane"))
        return set(self.claimed(claim, able).exclude(slot=None).values_list("pk", flat=True))

    def _that_are_quiet(self, claim: int, rows: Sequence[Any], meanwhile: Callable[[], None]) -> list[Any]:
        loud = {}
        for row in rows:
            meanwhile()
            if row.options.get("debounce") and (seconds := self._quiet_in(row)) > 0:
                loud[row.pk] = seconds
        if loud:
            due = Case(*(When(pk=pk, then=In(seconds)) for pk, seconds in loud.items()))
            self.claimed(claim, loud).update(due_at=due, claim=None, sent_at=None)
        return [row for row in rows if row.pk not in loud]

    def _quiet_in(self, row: Any) -> float:
        """Return the seconds until a debounced delivery may start, given the newest that waits behind it."""
        newest = self.waiting(row.lane).order_by("-lane", "-pk").annotate(now=In(0)).values_list("created_at", "now")
        with by_index(connections[self.db], self.model, LANES):
            found = list(newest[:1])
        for created, now in found:
            quiet_in = self._between(now, created) + row.options["debounce"]
            return float(min(quiet_in, self._between(now, row.created_at) + row.options["max_wait"]))
        return 0.0

    def strays(self, after: str, limit: int) -> tuple[list[str], str]:
        """Return lanes in which deliveries wait though none has the slot, and where to go on; empty: at the start.

        That is what a process leaves behind that dies after it ended a delivery, or sent one, and before it let the
        next have its turn. Where the oldest is due, that comes by itself.

        Args:
            after: the lane that was looked at last.
            limit: lanes to look at; one in which many wait costs no more than any other.
        """
        with connections[self.db].cursor() as cursor:
            cursor.execute(texts_for(connections[self.db]).strays, (after, limit))
            lanes = sorted(cursor.fetchall())
        strays = [lane for lane, is_left, is_held in lanes if is_left and not is_held]
        return strays, lanes[-1][0] if len(lanes) == limit else ""

    def drop(self) -> int:
        """Delete rows, and let those go on that wait behind them; return how many were deleted."""
        lanes = set(self.filter(~Q(state=State.FAILED, slot=None), lane__isnull=False).values_list("lane", flat=True))
        erased, everywhere = self.erase(), self.model.objects.using(self.db)

        def pass_turns() -> None:
            for lane in sorted(lanes):
                everywhere.pass_turn(lane)

        if connections[self.db].in_atomic_block:
            transaction.on_commit(pass_turns, using=self.db, robust=True)
        else:
            pass_turns()
        return erased

    # What people see ---------------------------------------------------------------------------------------------

    def blocked(self) -> Self:
        """Return the failed deliveries that block their keys, each with ``behind``, how many wait for it, and
        ``known_key``, its key or that of one that waits.
        """
        everywhere = self.model.objects.using(self.db)
        waiting = everywhere.filter(state=State.READY, slot=None, lane=OuterRef("slot"))
        counts = waiting.values("state").annotate(count=Count("pk")).values("count")
        known = Coalesce("key", Subquery(waiting.values("key")[:1]))  # its own is erased in time
        blocked = self.filter(state=State.FAILED, slot__isnull=False)
        return blocked.annotate(behind=Subquery(counts), known_key=known)

    def behind(self) -> int:
        """Return how many deliveries wait behind those of these rows that have failed and block their keys."""
        return sum(count or 0 for count in self.blocked().values_list("behind", flat=True))

    # How ---------------------------------------------------------------------------------------------------------

    def _win(self, ids: Sequence[int], **changes: Any) -> int:
        """Give waiting deliveries their slots; none, when another process has given one of these to another."""
        rows = self.filter(pk__in=ids, state=State.READY, slot=None)
        savepoint = transaction.atomic(using=self.db) if connections[self.db].in_atomic_block else nullcontext()
        try:
            with savepoint:
                return rows.update(**changes)
        except IntegrityError:
            return 0
