"""The lease: renewed while its worker lives, told when it is lost, and asked for past the receiver's transaction."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext
from psycopg import IsolationLevel

from django_celery_signals.durable import lease as module
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.lease import Keeper, Lease, keeper
from tests.delivering import moment, place
from tests.elsewhere import connecting, elsewhere, execute, other_transaction
from tests.parameters import each_database
from tests.waiting import wait_until

SHORT = 0.3  # seconds of a lease that a test waits for

each_kind = each_database("default", "postgres", "mariadb")


def leased(alias: str, seconds: float = 60.0) -> Lease:
    """Write a delivery that is running, and return its lease, which ends in a moment."""
    place(alias, "tests.nobody", state=State.RUNNING, due_at=moment(0.1))
    row = deliveries(alias).latest("pk")
    return Lease(using=alias, pk=row.pk, token=row.token, seconds=seconds)


def lasts(lease: Lease) -> float:
    """Return for how many seconds a lease holds, by the database."""
    return float((deliveries(lease.using).get(pk=lease.pk).due_at - moment(0)).total_seconds())


def wait_for_renewal(lease: Lease) -> None:
    """Return as soon as a lease lasts longer than it does now."""
    ends = deliveries(lease.using).get(pk=lease.pk).due_at
    longer = deliveries(lease.using).filter(pk=lease.pk, due_at__gt=ends)
    wait_until(lambda: longer.all().exists(), what="a renewal")


@contextmanager
def kept(*leases: Lease, by: Keeper | None = None) -> Iterator[Keeper]:
    """Have leases renewed for a while."""
    found = by or Keeper()
    for lease in leases:
        found.keep(lease)
    try:
        yield found
    finally:
        for lease in leases:
            found.let_go(lease)


@contextmanager
def away(alias: str) -> Iterator[None]:
    """Let nobody connect to a server."""
    port = connections.settings[alias]["PORT"]
    connections[alias].close()
    connections.settings[alias]["PORT"] = "1"
    try:
        yield
    finally:
        connections.settings[alias]["PORT"] = port


# Renewal -------------------------------------------------------------------------------------------------------------


@each_kind
def test_many_are_renewed_together(alias: str) -> None:
    """Leases of one message cost one statement; where one of them is lost, each is looked at."""
    leases = [leased(alias) for _ in range(4)]
    with CaptureQueriesContext(connections[alias]) as queries:
        assert module._renewed_together(leases)
    assert 1 == len(queries)
    assert all(58 < lasts(lease) <= 60 for lease in leases)
    assert all(lease.renew_at > time.monotonic() + 15 for lease in leases)

    deliveries(alias).filter(pk=leases[0].pk).update(token=7)
    assert not module._renewed_together(leases)
    assert not module._renewed_together(leases[:1])
    assert not module._renewed_together([leases[1], leased(alias, 30.0)])


def test_many_that_cannot_be_renewed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with all of them, each is tried by itself."""
    leases = [Lease(using="default", pk=number, token=number, seconds=60.0) for number in range(2)]
    monkeypatch.setattr(module, "deliveries", lambda using: SimpleNamespace(running=lambda ids, tokens: None))

    assert not module._renewed_together(leases)


@each_kind
def test_renewal(alias: str) -> None:
    """A renewal begins the lease anew, and the next one is due past a third of it."""
    lease = leased(alias)

    lease.renew()

    assert 55 < lasts(lease) <= 61
    assert 19 < lease.renew_at - time.monotonic() <= 20
    assert not lease.lost


OTHERS: dict[str, dict[str, Any]] = {
    "opened by another": {"token": 5},
    "expired": {"state": State.READY},
    "failed": {"state": State.FAILED},
    "done": {"state": State.DONE},
}


@each_kind
@pytest.mark.parametrize("what", [*OTHERS, "deleted"])
def test_lost_lease(alias: str, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """A lease on what others have by now is lost, said aloud, and changes nothing of theirs."""
    lease = leased(alias, seconds=30)
    deliveries(alias).update(**OTHERS[what]) if what in OTHERS else deliveries(alias).erase()
    before = list(deliveries(alias).values())

    lease.renew()

    assert (True, before) == (lease.lost, list(deliveries(alias).values()))
    (record,) = caplog.records
    assert "WARNING" == record.levelname
    assert record.message.startswith(f"The lease on delivery {lease.pk} of '{alias}' is lost: ")
    assert "longer than LEASE (30 s)" in record.message


@each_kind
def test_lease_that_the_worker_gives_up(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """A renewal that comes when the worker itself has just ended the run has lost nothing."""
    lease = leased(alias)
    lease.ending = True
    deliveries(alias).erase()

    lease.renew()

    assert (True, []) == (lease.lost, caplog.records)


@each_database("postgres", "mariadb")
def test_renewal_while_the_database_is_away(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """A database that does not answer has taken nothing away: the renewal is tried again soon."""
    caplog.set_level(logging.INFO)
    lease = leased(alias)

    with away(alias):
        lease.renew()

    assert not lease.lost
    assert 0 < lease.renew_at - time.monotonic() <= module.PAUSE
    (record,) = caplog.records
    assert ("INFO", True) == (record.levelname, "could not be renewed" in record.message)


@each_database("default")
def test_renewal_against_the_lock_of_sqlite(alias: str) -> None:
    """Whoever has SQLite's lock keeps everyone else from taking the lease, too."""
    lease = leased(alias)

    with connecting(alias, timeout=0), other_transaction(alias, lambda: execute(alias, "SELECT 1")):
        lease.renew()

    assert not lease.lost


def test_renewal_that_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a client raises, a lease is not lost before the database says so."""
    lease = Lease(using="default", pk=1, token=1, seconds=60)

    def row(self: Lease) -> Any:
        raise AttributeError("'NoneType' object has no attribute 'settimeout'")

    monkeypatch.setattr(Lease, "row", row)
    lease.renew()

    assert not lease.lost
    assert 0 < lease.renew_at - time.monotonic() <= module.PAUSE


# Still mine ----------------------------------------------------------------------------------------------------------


@each_kind
def test_still_mine(alias: str) -> None:
    """A run is told whether the delivery is still its own."""
    lease = leased(alias)
    assert lease.is_mine()

    deliveries(alias).update(token=5)
    assert not lease.is_mine()


@each_kind
def test_lost_for_ever(alias: str, django_assert_num_queries: Any) -> None:
    """What a renewal has found lost is not asked for again."""
    lease = leased(alias)
    lease.lost = True

    with django_assert_num_queries(0, using=alias):
        assert not lease.is_mine()


@each_database("postgres", "mariadb")
def test_still_mine_in_a_transaction_that_sees_the_past(alias: str) -> None:
    """The question goes past the receiver's own transaction, which may see the row as it was when it began."""
    lease = leased(alias)
    level = IsolationLevel.REPEATABLE_READ if alias == "postgres" else "repeatable read"

    with connecting(alias, isolation_level=level), transaction.atomic(using=alias):
        assert lease.row().exists()
        elsewhere(lambda: deliveries(alias).update(token=5))
        assert lease.row().exists()
        assert not lease.is_mine()


@each_database("default")
def test_still_mine_within_the_lock_of_sqlite(alias: str) -> None:
    """On SQLite the question is part of the receiver's transaction, as nobody else can write."""
    lease = leased(alias)

    with transaction.atomic(using=alias):
        lease.row().update(attempts=1)
        assert lease.is_mine()


@each_database("postgres", "mariadb")
def test_still_mine_while_the_database_is_away(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where the database cannot be asked, a run must not take the delivery for its own."""
    caplog.set_level(logging.INFO)
    lease = leased(alias)

    with away(alias):
        assert not lease.is_mine()

    assert ["Whether a lease still holds could not be asked"] == [record.message[:46] for record in caplog.records]


# The keeper ----------------------------------------------------------------------------------------------------------


@each_kind
def test_keeper(alias: str) -> None:
    """A lease is renewed again and again for as long as it is kept, by one thread for all."""
    leases = [leased(alias, SHORT), leased(alias, SHORT)]
    threads = threading.active_count()

    with kept(*leases):
        for lease in leases * 2:
            wait_for_renewal(lease)
        assert threads + 1 == threading.active_count()

    assert [False, False] == [lease.lost for lease in leases]


@each_database("default")
def test_keeper_that_has_nothing_to_do(alias: str) -> None:
    """A lease that is let go is renewed no more, and the next one finds the same thread."""
    lease, other = leased(alias, SHORT), leased(alias, SHORT)
    with kept(lease) as found:
        wait_for_renewal(lease)
    deliveries(alias).filter(pk=lease.pk).update(due_at=In(-5))
    threads = threading.active_count()

    with kept(other, by=found):
        wait_for_renewal(other)
        assert threads == threading.active_count()

    assert lasts(lease) < 0


@each_database("default")
def test_keeper_sleeps_through_runs(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is woken for a lease that is to be renewed before it would look, and for no other."""
    first, equal, shorter = leased(alias), leased(alias), leased(alias, SHORT)
    with kept(first) as found:
        wait_until(lambda: found._wakes_at is not None, what="the thread's sleep")
        notify, woken = found._changed.notify, []
        monkeypatch.setattr(found._changed, "notify", lambda: (woken.append(True), notify()))
        found.keep(equal)
        assert [] == woken
        with kept(shorter, by=found):
            assert [True] == woken
            wait_for_renewal(shorter)
        found.let_go(equal)


@each_kind
def test_lost_lease_is_told_once(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """A lost lease is said to be lost once, and renewed no more; the others go on."""
    lost, held = leased(alias, SHORT), leased(alias, SHORT)
    deliveries(alias).filter(pk=lost.pk).update(token=5)

    with kept(lost, held) as found:
        wait_until(lambda: lost.lost, what="the loss")
        wait_for_renewal(held)
        wait_for_renewal(held)
        assert [held] == found._leases

    assert 1 == len([record for record in caplog.records if record.levelname == "WARNING"])


@each_database("default", also=["other"])
def test_a_database_that_does_not_answer(alias: str) -> None:
    """Leases in one database are renewed while a renewal in another one waits."""
    stuck, lease = leased(alias, SHORT), leased("other", SHORT)
    assert keeper(alias) is not keeper("other")

    with (
        other_transaction(alias, lambda: execute(alias, "SELECT 1")),
        kept(stuck, by=keeper(alias)),
        kept(lease, by=keeper("other")),
    ):
        wait_until(lambda: stuck.renew_at < time.monotonic(), what="the time of its renewal")
        wait_for_renewal(lease)

    assert not stuck.lost


def _fail(alias: str) -> None:
    del connections[alias].close  # it fails once
    raise RuntimeError("too broken to be closed")


@each_database("postgres", "mariadb")
def test_database_that_comes_back(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread outlives an outage, and whatever goes wrong with a connection, and renews when it is over."""
    monkeypatch.setattr(module, "PAUSE", 0.05)
    lease, fails = leased(alias, SHORT), threading.Event()
    original = Lease.row

    def row(self: Lease) -> Any:
        if not fails.is_set():
            fails.set()
            connections[alias].close = lambda: _fail(alias)  # type: ignore[method-assign]
            raise RuntimeError("broken in an odd way")
        return original(self)

    monkeypatch.setattr(Lease, "row", row)
    with kept(lease):
        wait_until(fails.is_set, what="the failure")
        wait_for_renewal(lease)

    assert not lease.lost


@each_database("postgres")
def test_no_connection_is_kept(alias: str) -> None:
    """Between two renewals the thread keeps no connection, which would only count against the server's limit."""
    lease = leased(alias, SHORT)
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    with kept(lease):
        wait_for_renewal(lease)
        wait_until(lambda: [(0,)] == execute(alias, count), timeout=5, what="the end of its connection")


def test_keeper_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has one keeper for each database; a forked child has keepers of its own, with threads of their own."""
    mine = keeper("default")
    assert mine is keeper("default")
    assert mine is not keeper("other")

    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert mine is not keeper("default") is keeper("default")
