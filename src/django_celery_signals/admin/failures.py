"""What has failed, by its cause: one line for each receiver and fingerprint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django.db import connections

from ..durable.clock import by_index
from ..durable.deliveries import DeliveryQuerySet, deliveries
from .bounds import COUNTED
from .listing import BY_STATE

SHOWN = 100  # groups on the page


@dataclass(slots=True, kw_only=True)
class Group:
    """Deliveries that failed for one receiver and cause, as far as they were looked at, the newest first."""

    receiver: str
    fingerprint: str | None
    rows: list[Any] = field(default_factory=list)
    sample: Any = None  # the newest, with its traceback

    @property
    def first(self) -> Any:
        """When the first of them failed."""
        return min(row.finished_at for row in self.rows)

    @property
    def last(self) -> Any:
        """When the last of them failed."""
        return max(row.finished_at for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """The groups of a database, the largest first."""

    groups: list[Group]
    left_out: int  # groups, of those that were found
    looked_at: int | None  # the newest so many were looked at; None: all


def failures(alias: str, *, traces: bool) -> Failures:
    """Group what has failed in a database; of very many the newest, and of each group read one.

    Args:
        alias: of the database.
        traces: whether the sample has its traceback and message.
    """
    rows = deliveries(alias).failed().order_by("-pk")
    with by_index(connections[alias], rows.model, BY_STATE):
        found = list(rows.values_list("pk", "receiver", "fingerprint", "finished_at", named=True)[: COUNTED + 1])
    groups = sorted(_grouped(found[:COUNTED]), key=lambda group: -len(group.rows))
    _read_samples(alias, groups[:SHOWN], traces=traces)
    return Failures(
        groups=groups[:SHOWN],
        left_out=len(groups[SHOWN:]),
        looked_at=COUNTED if len(found) > COUNTED else None,
    )


def _grouped(rows: Iterable[Any]) -> list[Group]:
    groups: dict[tuple[str, str | None], Group] = {}
    for row in rows:
        cause = row.receiver, row.fingerprint
        groups.setdefault(cause, Group(receiver=row.receiver, fingerprint=row.fingerprint)).rows.append(row)
    return list(groups.values())


def _read_samples(alias: str, groups: Iterable[Group], *, traces: bool) -> None:
    ids = {group.rows[0].pk: group for group in groups}
    names = ("summary", "state", *(("traceback", "error_message") if traces else ()))
    for row in deliveries(alias).filter(pk__in=list(ids)).only(*names):
        ids[row.pk].sample = row


def of_group(alias: str, receiver: str, fingerprint: str) -> DeliveryQuerySet:
    """Return the failed deliveries of a group; an empty fingerprint is of those that have none."""
    rows = deliveries(alias).failed().filter(receiver=receiver)
    return rows.filter(fingerprint=fingerprint) if fingerprint else rows.filter(fingerprint__isnull=True)
