"""What a worker does with a delivery: open, complete, retry and give it up, each behind the fence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, current_task
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject
from django.db import Error, IntegrityError, OperationalError, connections, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from psycopg import IsolationLevel

from django_celery_signals import Discard, Event, Fail, RetryAfter, conf, current_event, policy
from django_celery_signals.durable import hold, lease
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import DeliveryQuerySet, State, deliveries
from django_celery_signals.exceptions import DecodeError, LeaseLost, ReceiverFailed, UnknownVersion
from django_celery_signals.signals import delivery_failed, receiver_discarded, receiver_failed, receiver_succeeded
from django_celery_signals.wire import ARGUMENT
from tests.delivering import are_due, burnt, moment, seconds_left, states
from tests.drain import take
from tests.elsewhere import Other, connecting, elsewhere, execute, other_transaction
from tests.holding import Outcome, bell, message, send, take_over, work
from tests.parameters import each_database
from tests.receiving import Receiving, hearing
from tests.shop.models import Customer, Order, Tag
from tests.waiting import wait_until

each_kind = each_database("default", "postgres", "mariadb")
each_server = each_database("postgres", "mariadb")

LEASE = conf.Settings().LEASE
REPEATABLE_READ = {"postgres": IsolationLevel.REPEATABLE_READ, "mariadb": "repeatable read"}


class Boom(Exception):
    """What receivers raise here."""


@pytest.fixture
def receive(receiving: Receiving) -> Any:
    """Declares a durable receiver of the bell."""
    return lambda function, **options: receiving(bell, function, guarantee="durable", **options)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jitter is chance; here every pause has its full length, and waiting for a database is short."""
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(lease, "PAUSE", 0.01)
    monkeypatch.setattr(hold, "PAUSE", 0.01)


def tags(alias: str) -> list[str]:
    """Return the effects of receivers."""
    return list(Tag.objects.using(alias).order_by("pk").values_list("name", flat=True))


def leave(alias: str, name: str = "effect") -> None:
    Tag.objects.using(alias).create(name=name)


def seen(alias: str) -> Any:
    """Return a delivery as others see it."""
    return elsewhere(deliveries(alias).get)


# Open ----------------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("state", [State.READY, State.SENT])
def test_open(alias: str, celery_app: Celery, receive: Any, atomic: bool, state: State) -> None:
    """A delivery is opened in a commit of its own: while the receiver runs everyone sees that, and until when."""
    rows: list[Any] = []
    receive(lambda: rows.append(seen(alias)), atomic=atomic)
    send(alias)
    deliveries(alias).update(state=state, claim=7, sends=3)
    token = deliveries(alias).get().token

    assert "SUCCESS" == work(celery_app, alias).state

    (row,) = rows
    assert (State.RUNNING, token + 1, None, 0) == (row.state, row.token, row.claim, row.sends)
    assert LEASE - 10 < (row.due_at - moment(0)).total_seconds() <= LEASE
    assert {} == states(alias)


@each_kind
def test_copies(alias: str, celery_app: Celery, receive: Any) -> None:
    """A message that arrives again, while the receiver runs or afterwards, does nothing (H47)."""
    names: list[str] = []

    def act() -> None:
        names.append("run")
        assert "SUCCESS" == elsewhere(lambda: copy(celery_app)).state

    receive(act, atomic=alias != "default")  # there a copy would wait for the lock
    send(alias)
    copy = message(alias)

    assert ["SUCCESS"] * 2 == [copy(celery_app).state for _ in range(2)]
    assert ["run"] == names


CLOSED: list[dict[str, Any]] = [
    {"state": State.RUNNING, "due_at": moment(60)},
    {"state": State.RUNNING, "due_at": moment(-60)},
    {"state": State.FAILED},
    {"state": State.DONE},
    {"token": 5},
    {"receiver": "tests.another"},
]


@each_kind
@pytest.mark.parametrize("columns", CLOSED, ids=[" ".join(columns) + str(at) for at, columns in enumerate(CLOSED)])
def test_what_a_message_does_not_open(alias: str, celery_app: Celery, receive: Any, columns: dict[str, Any]) -> None:
    """A row in other hands, or past, is not opened; nor by a stale token, or for another receiver (H32)."""
    names: list[str] = []
    receive(lambda: names.append("run"))
    send(alias)
    arrives = message(alias)
    deliveries(alias).update(**columns)
    before = deliveries(alias).values().get()

    assert Outcome(state="SUCCESS", error=None) == arrives(celery_app)
    assert ([], before) == (names, deliveries(alias).values().get())


@each_database("default", also=["other"])
def test_two_databases_with_equal_ids(alias: str, celery_app: Celery, receive: Any) -> None:
    """A message opens the row of its own database, and leaves the one with the same id in another alone (H48)."""
    found: list[str] = []
    receive(lambda using: found.append(using))
    for using in (alias, "other"):
        send(using)
    pk = deliveries(alias).get().pk
    deliveries("other").update(id=pk, token=deliveries(alias).get().token)

    work(celery_app, alias)

    assert (["default"], {}, {"ready": 1}) == (found, states(alias), states("other"))


@each_database("default")
def test_fence_grows(alias: str, celery_app: Celery, receive: Any) -> None:
    """Every run of a delivery has a larger fence than the one before, so that others can refuse an older one."""
    fences: list[Any] = []

    def act(event: Event) -> None:
        fences.append(event.fence)
        raise Boom

    receive(act)
    send(alias)
    for _ in range(3):
        work(celery_app, alias)

    assert sorted(set(fences)) == fences


@each_database("mariadb")
def test_discarded_just_after_it_was_opened(
    alias: str, celery_app: Celery, receive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is gone before it could be read, where opening it does not return it, is run no more."""
    names: list[str] = []
    receive(lambda: names.append("run"))
    send(alias)
    original = DeliveryQuerySet._execute

    def open_and_erase(self: Any, *args: Any) -> int:
        opened = original(self, *args)
        deliveries(alias).erase()
        return opened

    monkeypatch.setattr(DeliveryQuerySet, "_execute", open_and_erase)
    assert Outcome(state="SUCCESS", error=None) == work(celery_app, alias)
    assert [] == names


@each_server
def test_database_that_is_away_at_the_opening(alias: str, celery_app: Celery, receive: Any) -> None:
    """Where the database does not answer, the message fails and the row stays: it is published again."""
    receive(lambda: None)
    send(alias)
    arrives = message(alias)

    with away(alias):
        outcome = arrives(celery_app)

    assert ("FAILURE", OperationalError) == (outcome.state, type(outcome.error))
    assert {"ready": 1} == states(alias)


@contextmanager
def away(alias: str) -> Iterator[None]:
    """Let nobody connect to a server."""
    connections[alias].close()
    port = connections.settings[alias]["PORT"]
    connections.settings[alias]["PORT"] = "1"
    try:
        yield
    finally:
        connections.settings[alias]["PORT"] = port


# Complete ------------------------------------------------------------------------------------------------------------


@each_kind
def test_complete(alias: str, celery_app: Celery, receive: Any) -> None:
    """An atomic receiver's delivery is gone in the commit of its effects: others see both, or none."""
    looks: list[Any] = []

    def look() -> None:
        looks.append(elsewhere(lambda: (states(alias), tags(alias))))

    def act() -> None:
        leave(alias)
        look()
        transaction.on_commit(look, using=alias)

    receive(act)
    send(alias)

    with hearing(receiver_succeeded) as heard:
        assert "SUCCESS" == work(celery_app, alias).state
    assert [({"running": 1}, []), ({}, ["effect"])] == looks
    assert 1 == len(heard)


@each_kind
@pytest.mark.parametrize(("atomic", "left"), [(True, []), (False, ["effect"])])
def test_failed_run(alias: str, celery_app: Celery, receive: Any, atomic: bool, left: list[str]) -> None:
    """What a run that fails has written is rolled back with its transaction, if it has one; the delivery stays."""

    def act() -> None:
        leave(alias)
        raise Boom

    receive(act, atomic=atomic)
    send(alias)

    assert "RETRY" == work(celery_app, alias).state
    assert (left, {"ready": 1}, {(1, 0, 0)}) == (tags(alias), states(alias), burnt(alias))


@each_database("default", "postgres")
def test_commit_that_fails(alias: str, celery_app: Celery, receive: Any) -> None:
    """A commit that the database refuses rolls back the completion with the receiver's work."""

    def act() -> None:
        leave(alias)
        Order.objects.using(alias).create(customer_id=123_456)  # is checked at the commit

    receive(act)
    send(alias)
    outcome = work(celery_app, alias)

    assert ("RETRY", IntegrityError) == (outcome.state, type(outcome.error.exc))
    assert ([], {"ready": 1}, {(1, 0, 0)}) == (tags(alias), states(alias), burnt(alias))


@each_kind
def test_broken_transaction(alias: str, celery_app: Celery, receive: Any) -> None:
    """A receiver that goes on in a transaction which is broken has not succeeded."""

    def act() -> None:
        leave(alias)
        with suppress(Boom), transaction.atomic(using=alias, savepoint=False):
            raise Boom

    receive(act)
    send(alias)

    assert "RETRY" == work(celery_app, alias).state
    assert ([], {"ready": 1}) == (tags(alias), states(alias))


@each_kind
def test_retain(alias: str, celery_app: Celery, receive: Any) -> None:
    """A delivery may be kept for a while after its success, and is not opened again."""
    runs: list[int] = []
    receive(lambda number: runs.append(number), retain=3600)
    send(alias, number=7)
    copy, began = message(alias), moment(0)

    assert ["SUCCESS"] * 2 == [copy(celery_app).state for _ in range(2)]

    row = deliveries(alias).get()
    assert ([7], State.DONE, True) == (runs, row.state, are_due(alias, 3600, began))
    assert '"number"' in row.payload
    assert abs((row.finished_at - moment(0)).total_seconds()) < 10
    assert 0 == deliveries(alias).purge(10)
    deliveries(alias).update(due_at=In(-1))
    assert 1 == deliveries(alias).purge(10)


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
def test_retry_without_an_error(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """A receiver may ask for another run and go on: its work is committed together with the time of that."""

    def act(self: Any) -> None:
        leave(alias)
        self.retry(countdown=30, throw=False)

    receive(act, bind=True, atomic=atomic)
    send(alias)
    began = moment(0)

    assert "SUCCESS" == work(celery_app, alias).state
    assert (["effect"], {"ready": 1}, {(1, 0, 0)}) == (tags(alias), states(alias), burnt(alias))
    assert are_due(alias, 30, began)


@each_server
@pytest.mark.parametrize("atomic", [True, False])
def test_unknown_outcome_of_a_commit(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """Where the connection breaks just as the commit has succeeded, the retry finds nothing, and nothing runs twice."""
    runs: list[str] = []

    def act() -> None:
        leave(alias)
        runs.append("run")
        connection = connections[alias]
        original = connection.commit if atomic else connection.cursor

        def break_off(*args: Any) -> Any:
            if atomic:
                original()
            else:
                del connection.cursor
                deliveries(alias).erase()
            connection.connection.close()
            raise OperationalError(2013, "Lost connection to server during query")

        setattr(connection, "commit" if atomic else "cursor", break_off)

    receive(act, atomic=atomic)
    send(alias)

    try:
        outcome = work(celery_app, alias)
    finally:
        connections[alias].__dict__.pop("commit", None)

    assert ("IGNORED", ["run"]) == (outcome.state, runs)
    assert (["effect"], {}) == (tags(alias), states(alias))


@each_server
def test_connection_that_broke_before_the_completion(alias: str, celery_app: Celery, receive: Any) -> None:
    """A receiver without a transaction, whose connection was cut while it did other things, is not run again."""
    runs: list[str] = []

    def act() -> None:
        runs.append("run")
        cut(alias)

    receive(act, atomic=False)
    send(alias)

    assert ("SUCCESS", ["run"], {}) == (work(celery_app, alias).state, runs, states(alias))


def cut(alias: str) -> None:
    """Have the server end the connection of this thread."""
    end = {"postgres": "SELECT pg_terminate_backend(pg_backend_pid())", "mariadb": "KILL CONNECTION_ID()"}
    with suppress(Error):
        execute(alias, end[alias])


# The fence -----------------------------------------------------------------------------------------------------------


@each_server
def test_zombie(alias: str, celery_app: Celery, receive: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A run whose delivery another worker has by now is rolled back as a whole, and said to be superseded."""
    mine: list[bool] = []

    def act(event: Event) -> None:
        leave(alias)
        mine.append(event.still_mine())
        take_over(alias)
        mine.append(event.still_mine())

    receive(act)
    send(alias)

    with hearing(receiver_failed) as heard, hearing(receiver_succeeded) as succeeded:
        outcome = work(celery_app, alias)

    assert ("IGNORED", [True, False]) == (outcome.state, mine)
    assert ([], {"running": 1}, {(0, 0, 0)}) == (tags(alias), states(alias), burnt(alias))
    assert [(LeaseLost, True)] == [(type(told["error"]), told["will_retry"]) for told in heard]
    assert [] == succeeded
    assert 1 == len([record for record in caplog.records if record.name == hold.__name__])


@each_kind
def test_zombie_without_a_transaction(alias: str, celery_app: Celery, receive: Any) -> None:
    """Without a transaction nothing can be rolled back, but the delivery is the other's all the same."""

    def act(event: Event) -> None:
        leave(alias)
        take_over(alias)
        assert not event.still_mine()

    receive(act, atomic=False)
    send(alias)

    assert "IGNORED" == work(celery_app, alias).state
    assert (["effect"], {"running": 1}, {(0, 0, 0)}) == (tags(alias), states(alias), burnt(alias))


@each_server
@pytest.mark.parametrize("meanwhile", ["expired", "completed", "discarded", "retried"])
def test_zombie_and_what_others_did(alias: str, celery_app: Celery, receive: Any, meanwhile: str) -> None:
    """Whatever has become of a delivery meanwhile, a run that comes too late writes nothing."""
    rows = deliveries(alias)

    def act() -> None:
        leave(alias)
        if meanwhile == "expired":
            elsewhere(lambda: (rows.update(due_at=In(-1)), rows.expire(10)))
        if meanwhile == "completed":
            elsewhere(lambda: rows.update(state=State.DONE))
        if meanwhile == "discarded":
            elsewhere(rows.erase)
        if meanwhile == "retried":
            elsewhere(lambda: rows.update(state=State.READY, attempts=1))

    receive(act)
    send(alias)

    assert "IGNORED" == work(celery_app, alias).state
    left = {"expired": {"ready": 1}, "completed": {"done": 1}, "discarded": {}, "retried": {"ready": 1}}
    used = {"expired": {(0, 1, 0)}, "completed": {(0, 0, 0)}, "discarded": set(), "retried": {(1, 0, 0)}}
    assert ([], left[meanwhile], used[meanwhile]) == (tags(alias), states(alias), burnt(alias))


@each_kind
@pytest.mark.parametrize("error", [Boom(), Discard("late"), Fail("late"), RetryAfter(5), OperationalError(), Ignore()])
def test_zombie_that_fails(alias: str, celery_app: Celery, receive: Any, error: Exception) -> None:
    """Nor does a run that ends in any other way change what another worker has: not its time, not its error."""

    def act() -> None:
        take_over(alias)
        before.append(deliveries(alias).values().get())
        raise error

    before: list[Any] = []
    receive(act, atomic=False)
    send(alias)

    with hearing(receiver_discarded) as discarded, hearing(receiver_failed) as failed:
        assert "IGNORED" == work(celery_app, alias).state

    assert before == [deliveries(alias).values().get()]
    assert ([], [(LeaseLost, True)]) == (discarded, [(type(told["error"]), told["will_retry"]) for told in failed])


@each_kind
def test_lease_that_is_lost_is_told_once(
    alias: str, celery_app: Celery, receive: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss is said while the receiver still runs, by the thread that renews, and once."""
    receive(lambda event: (take_over(alias), wait_until(lambda: event.lease.lost, what="the loss")), atomic=False)
    with override_settings(DJANGO_CELERY_SIGNALS={"LEASE": 1, "FAST_PATH_LIMIT": 0}):
        bell.send(sender=None, using=alias)
        assert "IGNORED" == work(celery_app, alias).state

    assert 1 == len([record for record in caplog.records if record.name.endswith("durable.lease")])


@each_kind
def test_run_that_ends_as_it_is_renewed(
    alias: str, celery_app: Celery, receive: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that finds the run just ended, in whatever way, does not say that it was lost."""
    leases: list[Any] = []

    def act(event: Event, error: bool) -> None:
        leases.append(current_task.request.hold.lease)
        if error:
            raise Boom

    receive(act)
    for error in (True, False):
        send(alias, error=error)
        work(celery_app, alias, state=State.READY)
        leases[-1].renew()
        deliveries(alias).erase()

    assert [True, True] == [lease.lost for lease in leases]
    assert [] == [record for record in caplog.records if record.name.endswith("durable.lease")]


# The lease -----------------------------------------------------------------------------------------------------------


@each_server
@pytest.mark.parametrize("atomic", [True, False])
def test_renewed_while_it_runs(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """The lease is renewed while the receiver runs, in a transaction or not; then it completes."""
    keep_running(alias, celery_app, receive, atomic)


@each_database("default")
def test_renewed_on_sqlite(alias: str, celery_app: Celery, receive: Any) -> None:
    """On SQLite the lease of a receiver without a transaction is renewed; within one, the lock is the lease."""
    keep_running(alias, celery_app, receive, False)


def wait_for_renewal(alias: str) -> None:
    """Return as soon as a delivery's lease lasts longer than it does now."""
    ends = seen(alias).due_at
    wait_until(lambda: seen(alias).due_at > ends, what="a renewal")


def keep_running(alias: str, app: Celery, receive: Any, atomic: bool) -> None:
    def act() -> None:
        leave(alias)
        wait_for_renewal(alias)
        wait_for_renewal(alias)

    receive(act, atomic=atomic)
    send(alias)
    with override_settings(DJANGO_CELERY_SIGNALS={"LEASE": 1}):
        assert "SUCCESS" == work(app, alias).state
    assert (["effect"], {}) == (tags(alias), states(alias))


@each_server
@pytest.mark.parametrize("atomic", [True, False])
def test_lease_in_a_transaction_that_sees_the_past(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """Where completing what was renewed meanwhile would fail, a lease lasts for an hour and is not renewed."""
    lasts: list[float] = []

    def act() -> None:
        leave(alias)
        lasts.append((seen(alias).due_at - moment(0)).total_seconds())
        assert atomic is not current_task.request.hold.renews

    receive(act, atomic=atomic)
    send(alias)
    with connecting(alias, isolation_level=REPEATABLE_READ[alias], **past(alias)):
        assert "SUCCESS" == work(celery_app, alias).state

    assert [(not atomic, atomic)] == [(LEASE - 10 < last <= LEASE, 3590 < last <= 3600) for last in lasts]
    assert (["effect"], {}) == (tags(alias), states(alias))


def past(alias: str) -> dict[str, Any]:
    """Return the option by which MariaDB refuses to change what it sees only in the past, as from 11.6 on."""
    return {"init_command": "SET SESSION innodb_snapshot_isolation = ON"} if alias == "mariadb" else {}


@each_server
def test_renewal_is_no_conflict_without_a_transaction(alias: str, celery_app: Celery, receive: Any) -> None:
    """At the same isolation a receiver without a transaction is renewed, and completes."""
    with connecting(alias, isolation_level=REPEATABLE_READ[alias], **past(alias)):
        keep_running(alias, celery_app, receive, False)


@each_database("postgres", transaction=False)
@pytest.mark.parametrize(
    ("own", "project", "seconds"),
    [(None, None, 3600), (90, None, 90), (None, 120, 120), (90, 120, 90), (20, None, LEASE)],
)
def test_length_of_such_a_lease(
    alias: str,
    celery_app: Celery,
    receive: Any,
    monkeypatch: pytest.MonkeyPatch,
    own: int | None,
    project: int | None,
    seconds: float,
) -> None:
    """A time limit ends it sooner: the task's own, or the project's, but never before an ordinary lease would."""
    task = receive(lambda: None, time_limit=own)
    celery_app.conf.task_time_limit = project
    monkeypatch.setattr(hold, "_sees_the_past", lambda using: True)

    assert (float(seconds), False) == hold.lease_of(task, alias)
    together = 3600.0 if seconds == 3600 else max(LEASE, 50 * float(own or project or 0))
    assert (together, False) == hold.lease_of(task, alias, 50)  # as long as all of them may take


LEVELS = [
    ("default", {}, False),
    ("postgres", {}, False),
    ("postgres", {"isolation_level": IsolationLevel.READ_UNCOMMITTED}, False),
    ("postgres", {"isolation_level": IsolationLevel.SERIALIZABLE}, True),
    ("postgres", {"options": r"-c default_transaction_isolation=repeatable\ read"}, True),
    ("mariadb", past("mariadb"), False),
    ("mariadb", {"isolation_level": "repeatable read"}, False),
    ("mariadb", {"isolation_level": "serializable", **past("mariadb")}, True),
]


@pytest.mark.django_db(databases="__all__", transaction=True)
@pytest.mark.parametrize(
    ("alias", "options", "sees"), LEVELS, ids=[f"{alias}-{at}" for at, (alias, *_) in enumerate(LEVELS)]
)
def test_who_sees_the_past(alias: str, options: dict[str, Any], sees: bool) -> None:
    """Every database is asked, once, whether a transaction sees what was before it began."""
    with connecting(alias, **options):
        assert sees == hold._sees_the_past(alias)
        with connections[alias].execute_wrapper(_refuse):
            assert sees == hold._sees_the_past(alias)


def _refuse(*_: Any) -> Any:
    raise AssertionError("It was asked again.")


# What becomes of a failure -------------------------------------------------------------------------------------------


def fail() -> None:
    raise Boom("no stock")


@each_kind
def test_default_policy(alias: str, celery_app: Celery, receive: Any) -> None:
    """A receiver that says nothing is tried again after growing pauses, twenty times, and then it has failed."""
    receive(fail)
    send(alias)

    for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *[600] * 10]:
        began = moment(0)
        outcome = work(celery_app, alias)
        assert ("RETRY", Boom) == (outcome.state, type(outcome.error.exc))
        assert are_due(alias, seconds, began)

    outcome = work(celery_app, alias)
    assert ("FAILURE", Boom) == (outcome.state, type(outcome.error))
    assert ({"failed": 1}, {(21, 0, 0)}) == (states(alias), burnt(alias))


@each_database("default")
@pytest.mark.parametrize(
    ("options", "last"), [({"max_retries": 3}, 3), ({"max_retries": 5}, 5), ({"max_retries": 0}, 0), ({}, 20)], ids=str
)
def test_max_retries(alias: str, celery_app: Celery, receive: Any, options: dict[str, Any], last: int) -> None:
    """``max_retries`` is the end of the default policy, also where it is given as what Celery's default is."""
    receive(fail, **options)
    send(alias)

    for attempts, state in ((last - 1, "RETRY"), (last, "FAILURE")):
        if attempts >= 0:
            deliveries(alias).update(attempts=attempts)
            assert state == work(celery_app, alias).state


@each_database("default")
def test_no_end_of_retries(alias: str, celery_app: Celery, receive: Any) -> None:
    """``max_retries=None`` has no end, and its pauses do not grow for ever."""
    receive(fail, max_retries=None)
    send(alias)
    deliveries(alias).update(attempts=10_000)
    began = moment(0)

    assert "RETRY" == work(celery_app, alias).state
    assert are_due(alias, 600, began)
    assert {(10_001, 0, 0)} == burnt(alias)


@each_kind
def test_what_is_kept_of_a_failure(alias: str, celery_app: Celery, receive: Any) -> None:
    """Every failed attempt leaves its error in the row: type, message, traceback, and what failures are grouped by."""
    receive(fail)
    send(alias)

    work(celery_app, alias)

    row = deliveries(alias).get()
    place = f"{__name__}.fail"
    assert (f"{__name__}.Boom", "no stock", f"{__name__}.Boom in {place}") == (
        row.error_type,
        row.error_message,
        row.fingerprint,
    )
    assert 'raise Boom("no stock")' in row.traceback


def named(self: Any) -> None:
    raise ValueError("told")


@each_database("default")
def test_own_policy(alias: str, celery_app: Celery, receive: Any) -> None:
    """``autoretry_for`` decides: what it names is tried again, by its own rules, until ``max_retries``."""
    task = receive(named, bind=True, autoretry_for=(ValueError,), max_retries=2, default_retry_delay=45)
    send(alias)

    assert ["RETRY", "RETRY", "FAILURE"] == [work(celery_app, alias).state for _ in range(3)]

    row = deliveries(alias).get()
    assert (State.FAILED, 3, "ValueError", f"ValueError in {__name__}.named") == (
        row.state,
        row.attempts,
        row.error_type,
        row.fingerprint,
    )
    assert not hasattr(task, "override_max_retries")


@each_database("default")
def test_delay_of_an_own_policy(alias: str, celery_app: Celery, receive: Any) -> None:
    """The task's own delay is the time until the next run."""
    receive(named, bind=True, autoretry_for=(ValueError,), default_retry_delay=45)
    send(alias)
    began = moment(0)
    work(celery_app, alias)

    assert are_due(alias, 45, began)


@each_database("default")
def test_backoff(alias: str, celery_app: Celery, receive: Any) -> None:
    """``retry_backoff`` counts from the attempts in the row, and keeps to its limits."""
    options = {"retry_backoff": 3, "retry_backoff_max": 20, "retry_jitter": False, "max_retries": 10}
    receive(named, bind=True, autoretry_for=(ValueError,), **options)
    send(alias)

    for seconds in [3, 6, 12, 20, 20]:
        began = moment(0)
        assert "RETRY" == work(celery_app, alias).state
        assert are_due(alias, seconds, began)


@each_database("default")
def test_what_an_own_policy_does_not_name(alias: str, celery_app: Celery, receive: Any) -> None:
    """By Celery's rule what ``autoretry_for`` does not name fails at once."""
    receive(fail, autoretry_for=(ValueError,))
    send(alias)

    assert "FAILURE" == work(celery_app, alias).state
    assert ({"failed": 1}, {(1, 0, 0)}) == (states(alias), burnt(alias))


ASKED: list[tuple[dict[str, Any], int]] = [
    ({"countdown": 7}, 7),
    ({"countdown": 0}, 0),
    ({}, 180),
    ({"eta": timedelta(days=2)}, 2 * 86_400),
]


@each_kind
@pytest.mark.parametrize(("options", "seconds"), ASKED, ids=["countdown", "at once", "default", "eta"])
def test_self_retry(alias: str, celery_app: Celery, receive: Any, options: dict[str, Any], seconds: int) -> None:
    """``self.retry()`` keeps its meaning; the time of the next run is in the row."""

    given = {name: datetime.now(UTC) + value if name == "eta" else value for name, value in options.items()}

    def act(self: Any) -> None:
        leave(alias)
        raise self.retry(exc=Boom("later"), **given)

    receive(act, bind=True)
    send(alias)
    with hearing(receiver_failed) as heard:
        outcome = work(celery_app, alias)

    (left,) = seconds_left(alias)
    assert ("RETRY", {"ready": 1}, {(1, 0, 0)}, []) == (outcome.state, states(alias), burnt(alias), tags(alias))
    assert abs(left - seconds) < 20
    assert [(Boom, True)] == [(type(told["error"]), told["will_retry"]) for told in heard]
    assert "later" == deliveries(alias).get().error_message


@each_database("default")
@pytest.mark.parametrize(("exc", "error"), [(Boom("in the end"), Boom), (None, MaxRetriesExceededError)])
def test_last_self_retry(alias: str, celery_app: Celery, receive: Any, exc: Any, error: type) -> None:
    """The last ``self.retry()`` fails with the error it was given, or with Celery's own."""
    runs: list[int] = []

    def act(self: Any) -> None:
        runs.append(self.request.retries)
        raise self.retry(exc=exc, countdown=1, max_retries=2)

    receive(act, bind=True)
    send(alias)

    outcomes = [work(celery_app, alias) for _ in range(3)]
    assert ["RETRY", "RETRY", "FAILURE"] == [outcome.state for outcome in outcomes]
    assert ([0, 1, 2], error) == (runs, type(outcomes[-1].error))
    assert {"failed": 1} == states(alias)


@each_database("default")
def test_error_after_self_retry(alias: str, celery_app: Celery, receive: Any) -> None:
    """Whoever asks for a retry, goes on and fails has a policy of its own: it has failed."""

    def act(self: Any) -> None:
        self.retry(countdown=30, throw=False)
        raise Boom

    receive(act, bind=True)
    send(alias)

    assert "FAILURE" == work(celery_app, alias).state
    assert {"failed": 1} == states(alias)


@each_kind
def test_retry_after(alias: str, celery_app: Celery, receive: Any) -> None:
    """``RetryAfter`` is the time until the next run, and counts; more of them than ``max_retries`` fail aloud."""

    def act() -> None:
        raise RetryAfter(90, "too many requests")

    receive(act, max_retries=1)
    send(alias)
    began = moment(0)

    assert ("RETRY", {(1, 0, 0)}) == (work(celery_app, alias).state, burnt(alias))
    assert are_due(alias, 90, began)
    outcome = work(celery_app, alias)
    assert ("FAILURE", ReceiverFailed) == (outcome.state, type(outcome.error))
    row = deliveries(alias).get()
    assert (State.FAILED, True) == (
        row.state,
        "asked for more than max_retries: too many requests" in row.error_message,
    )
    assert "in act\n" in row.traceback
    assert row.fingerprint.endswith("test_retry_after.<locals>.act")


@each_kind
@pytest.mark.parametrize("error", [Discard("of no use"), Ignore("of no use")], ids=["Discard", "Ignore"])
def test_discard(alias: str, celery_app: Celery, receive: Any, error: Exception) -> None:
    """What a receiver drops is deleted and told, and its work rolled back."""

    def act() -> None:
        leave(alias)
        raise error

    receive(act)
    send(alias)
    with hearing(receiver_discarded) as heard:
        assert "IGNORED" == work(celery_app, alias).state

    assert ([], {}) == (tags(alias), states(alias))
    assert ["of no use"] == [told["reason"] for told in heard]


ENDS: dict[str, tuple[Exception, str, str]] = {
    "Fail": (Fail("wrong address"), "FAILURE", "failed"),
    "Reject": (Reject("wrong address", requeue=False), "REJECTED", "failed"),
    "Reject and requeue": (Reject("not now", requeue=True), "RETRY", "ready"),
}


@each_database("default")
@pytest.mark.parametrize("name", ENDS)
def test_words_of_celery(alias: str, celery_app: Celery, receive: Any, name: str) -> None:
    """``Fail`` and a rejection end a delivery as failed; a rejection that asks for another try gets one."""
    error, outcome, state = ENDS[name]

    def act() -> None:
        raise error

    receive(act)
    send(alias)
    with hearing(receiver_failed) as heard:
        assert outcome == work(celery_app, alias).state

    assert ({state: 1}, {(1, 0, 0)}) == (states(alias), burnt(alias))
    assert [state == "ready"] == [told["will_retry"] for told in heard]


@each_kind
def test_receivers_are_independent(alias: str, celery_app: Celery, receive: Any) -> None:
    """Of the receivers of one event one succeeds, one waits, one is dropped and one fails."""

    def put_off() -> None:
        raise RetryAfter(10)

    def drop() -> None:
        raise Discard

    tasks = [receive(function) for function in (lambda: leave(alias), put_off, drop)]
    tasks.append(receive(fail, max_retries=0))
    send(alias)

    outcomes = [work(celery_app, alias, receiver=task.name).state for task in tasks]

    assert ["SUCCESS", "RETRY", "IGNORED", "FAILURE"] == outcomes
    assert (["effect"], {"ready": 1, "failed": 1}) == (tags(alias), states(alias))


# The payload ---------------------------------------------------------------------------------------------------------


@each_database("default")
@pytest.mark.parametrize("payload", [None, "", "{", '{"version": 0}'])
def test_damaged_payload(alias: str, celery_app: Celery, receive: Any, payload: str | None) -> None:
    """What cannot be read fails at once, and stays to be looked at (H32)."""
    receive(lambda: None)
    send(alias)
    deliveries(alias).update(payload=payload)

    outcome = work(celery_app, alias)

    assert ("FAILURE", DecodeError) == (outcome.state, type(outcome.error))
    assert ({"failed": 1}, payload) == (states(alias), deliveries(alias).get().payload)


@each_database("default")
def test_newer_payload(alias: str, celery_app: Celery, receive: Any) -> None:
    """What a newer version has written waits for this worker's update, uncharged; after an hour it has failed (H75)."""
    receive(lambda: None, max_retries=0)
    send(alias)
    deliveries(alias).update(payload='{"version": 99}')

    began = moment(0)
    outcome = work(celery_app, alias)
    assert ("RETRY", UnknownVersion) == (outcome.state, type(outcome.error.exc))
    assert ({"ready": 1}, {(0, 0, 1)}) == (states(alias), burnt(alias))
    assert are_due(alias, 60, began)

    deliveries(alias).update(reruns=60)
    assert "FAILURE" == work(celery_app, alias).state
    assert {"failed": 1} == states(alias)


EXPIRIES = {
    "over": ("2020-01-01T00:00:00+00:00", "IGNORED"),
    "over, in another zone": ("2020-01-01T00:00:00+05:00", "IGNORED"),
    "over, in no zone": ("2020-01-01T00:00:00", "IGNORED"),
    "not yet": ("2999-01-01T00:00:00+00:00", "SUCCESS"),
    "not yet, in no zone": ("2999-01-01T00:00:00", "SUCCESS"),
    "never": (None, "SUCCESS"),
}


@each_database("default")
@pytest.mark.parametrize("when", EXPIRIES)
def test_expires(alias: str, celery_app: Celery, receive: Any, when: str) -> None:
    """What has expired when it is opened is dropped, and told: its receiver does not run."""
    expires, state = EXPIRIES[when]
    receive(lambda: leave(alias))
    send(alias)
    deliveries(alias).update(options={"expires": expires} if expires else {})

    with hearing(receiver_discarded) as heard:
        assert state == work(celery_app, alias).state

    over = state == "IGNORED"
    assert ([] if over else ["effect"], {}) == (tags(alias), states(alias))
    assert ["its expires= is over"] * over == [told["reason"] for told in heard]


@each_database("default")
def test_naive_expiry_of_a_sending(alias: str, celery_app: Celery, receive: Any) -> None:
    """A moment without a zone counts as UTC, as Celery has it."""
    receive(lambda: leave(alias), expires=datetime(2020, 1, 1))
    send(alias)

    assert ("IGNORED", {}) == (work(celery_app, alias).state, states(alias))


# Trouble -------------------------------------------------------------------------------------------------------------


def run_twice(alias: str, app: Celery) -> None:
    """Run a delivery that meets trouble once, uncharged, and then succeeds."""
    began = moment(0)
    assert "RETRY" == work(app, alias).state
    assert ([], {"ready": 1}, {(0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))
    assert are_due(alias, 1, began)
    assert "SUCCESS" == work(app, alias).state
    assert (["effect"], {}) == (tags(alias), states(alias))


@each_server
def test_deadlock(alias: str, celery_app: Celery, receive: Any) -> None:
    """A receiver that was ended for a deadlock with somebody else's transaction is run again, uncharged."""
    Customer.objects.using(alias).bulk_create([Customer(name="a"), Customer(name="b"), *[Customer(name="c")] * 50])
    others: list[Other] = []

    def spend(name: str) -> None:
        Customer.objects.using(alias).filter(name=name).update(spent=1)

    def act() -> None:
        leave(alias)
        if not others:
            return
        spend("a")
        others.pop().begin(lambda: spend("a"))
        if alias == "postgres":
            execute(alias, "SET LOCAL deadlock_timeout = '10ms'")  # the other's is a second: this one is ended
            wait_until(lambda: execute(alias, "SELECT 1 FROM pg_locks WHERE NOT granted"), what="the other's wait")
        spend("b")

    receive(act)
    send(alias)

    def begin() -> None:
        Customer.objects.using(alias).filter(name="c").update(spent=2)  # of MariaDB's two the one with less work ends
        spend("b")

    with other_transaction(alias, begin) as other:
        others.append(other)
        run_twice(alias, celery_app)


@each_database("postgres")
def test_serialization_failure(alias: str, celery_app: Celery, receive: Any) -> None:
    """A receiver whose transaction saw a past that is gone is run again, uncharged."""
    Customer.objects.using(alias).create(name="Ada")
    conflicts = [True]

    def act() -> None:
        leave(alias)
        if conflicts:
            conflicts.clear()
            elsewhere(lambda: Customer.objects.using(alias).update(spent=1))
            Customer.objects.using(alias).update(spent=2)

    receive(act)
    send(alias)
    with connecting(alias, isolation_level=IsolationLevel.REPEATABLE_READ):
        run_twice(alias, celery_app)


@each_server
def test_connection_that_breaks(alias: str, celery_app: Celery, receive: Any) -> None:
    """A receiver whose connection was ended, by a restart or a failover, is run again, uncharged."""
    breaks = [True]

    def act() -> None:
        leave(alias)
        if breaks:
            breaks.clear()
            cut(alias)
            leave(alias, "never")

    receive(act)
    send(alias)
    run_twice(alias, celery_app)


@each_server
def test_connection_that_breaks_unnoticed(alias: str, celery_app: Celery, receive: Any) -> None:
    """So is one that does not notice: its work is gone with the connection, and it must not count as done."""
    breaks = [True]

    def act() -> None:
        leave(alias)
        if breaks:
            breaks.clear()
            cut(alias)

    receive(act)
    send(alias)
    run_twice(alias, celery_app)


@each_server
def test_connection_that_breaks_without_a_transaction(alias: str, celery_app: Celery, receive: Any) -> None:
    """Without a transaction, too, a broken connection is no failure of the receiver's."""
    breaks = [True]

    def act() -> None:
        if breaks:
            breaks.clear()
            cut(alias)
            execute(alias, "SELECT 1")
        leave(alias)

    receive(act, atomic=False)
    send(alias)
    run_twice(alias, celery_app)


@each_database("default")
def test_endless_trouble(alias: str, celery_app: Celery, receive: Any) -> None:
    """Trouble that does not end is a failure, after more than an hour of it."""

    def act() -> None:
        raise OperationalError("database is locked")

    receive(act)
    send(alias)
    deliveries(alias).update(reruns=99)
    began = moment(0)

    assert "RETRY" == work(celery_app, alias).state
    assert are_due(alias, 60, began)
    assert ("FAILURE", {(1, 0, 100)}) == (work(celery_app, alias).state, burnt(alias))
    assert {"failed": 1} == states(alias)


@each_database("default")
def test_trouble_and_an_own_policy(alias: str, celery_app: Celery, receive: Any) -> None:
    """What the receiver's own policy names is the policy's, until its end; what it does not name is run uncharged."""

    def act() -> None:
        raise OperationalError("database is locked")

    task = receive(act, autoretry_for=(OperationalError,), max_retries=1, default_retry_delay=5)
    other = receive(act, autoretry_for=(ValueError,))
    send(alias)

    assert ["RETRY", "FAILURE"] == [work(celery_app, alias, receiver=task.name).state for _ in range(2)]
    assert "RETRY" == work(celery_app, alias, receiver=other.name).state
    assert {(2, 0, 0), (0, 0, 1)} == burnt(alias)


@each_database("default")
@pytest.mark.parametrize("attempts", [0, 3])
def test_trouble_and_a_policy_for_everything(alias: str, celery_app: Celery, receive: Any, attempts: int) -> None:
    """``autoretry_for=(Exception,)`` does not mean the database's trouble, which is run uncharged, also at the end."""

    def act() -> None:
        raise OperationalError("database is locked")

    receive(act, autoretry_for=(Exception,), max_retries=3)
    send(alias)
    deliveries(alias).update(attempts=attempts)

    assert ("RETRY", {(attempts, 0, 1)}) == (work(celery_app, alias).state, burnt(alias))


@each_database("default")
def test_trouble_after_self_retry(alias: str, celery_app: Celery, receive: Any) -> None:
    """Trouble in a run that had asked for another one is trouble, and not the end."""

    def act(self: Any) -> None:
        self.retry(countdown=30, throw=False)
        raise OperationalError("database is locked")

    receive(act, bind=True)
    send(alias)

    assert ("RETRY", {(0, 0, 1)}) == (work(celery_app, alias).state, burnt(alias))


@each_kind
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_worker_that_is_stopped(alias: str, celery_app: Celery, receive: Any, error: type[BaseException]) -> None:
    """A run that is ended from outside is a crash that the relay counts at once; its work is rolled back."""

    def act() -> None:
        leave(alias)
        raise error

    receive(act)
    send(alias)

    with pytest.raises(error):
        work(celery_app, alias)
    assert ([], {"running": 1}, {(0, 0, 0)}) == (tags(alias), states(alias), burnt(alias))
    assert (1, []) == deliveries(alias).expire(10)
    assert ({"ready": 1}, {(0, 1, 0)}) == (states(alias), burnt(alias))


@each_server
def test_worker_that_is_stopped_without_a_database(
    alias: str, celery_app: Celery, receive: Any, outage: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the database is away, too, a worker that is stopped waits for it but a moment: the lease will end."""
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 10:
            outage.close()

    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=Clock(), sleep=sleep))

    def act() -> None:
        outage.enter_context(away(alias))
        raise SystemExit

    receive(act, atomic=False)
    send(alias)

    with pytest.raises(SystemExit):
        work(celery_app, alias)
    outage.close()
    assert ({"running": 1}, True) == (states(alias), len(sleeps) < 10)


# Noting how it ended -------------------------------------------------------------------------------------------------


class Clock:
    """A clock that goes on by a fraction of a second whenever somebody looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.005
        return self.now


@pytest.fixture
def outage() -> Iterator[ExitStack]:
    """Ends what a receiver has begun."""
    with ExitStack() as stack:
        yield stack


ENDINGS: dict[str, tuple[Exception | None, str, dict[str, int]]] = {
    "success": (None, "SUCCESS", {}),
    "retry": (Boom(), "RETRY", {"ready": 1}),
    "discard": (Discard(), "IGNORED", {}),
    "fail": (Fail(), "FAILURE", {"failed": 1}),
}


@each_server
@pytest.mark.parametrize("ending", ENDINGS)
def test_database_that_is_away_at_the_end(
    alias: str, celery_app: Celery, receive: Any, outage: ExitStack, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """A worker waits for its database to note how a run has ended, however it did: an outage is no crash."""
    error, outcome, left = ENDINGS[ending]
    naps = iter([lambda: None, lambda: None, outage.close])
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: next(naps)()))
    runs: list[str] = []

    def act() -> None:
        runs.append("run")
        outage.enter_context(away(alias))
        if error is not None:
            raise error

    receive(act, atomic=False)
    send(alias)

    assert outcome == work(celery_app, alias).state
    assert (["run"], left) == (runs, states(alias))
    assert all(crashes == reruns == 0 for _, crashes, reruns in burnt(alias))


@each_server
@pytest.mark.parametrize("ending", ENDINGS)
def test_database_that_stays_away(
    alias: str,
    celery_app: Celery,
    receive: Any,
    outage: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ending: str,
) -> None:
    """After an hour the worker leaves it to the end of the lease, aloud, and tells nobody that it is done."""
    error = ENDINGS[ending][0]
    naps: list[float] = []
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=Clock(), sleep=naps.append))
    monkeypatch.setattr(lease, "PATIENCE", 0.03)

    def act() -> None:
        outage.enter_context(away(alias))
        if error is not None:
            raise error

    receive(act, atomic=False)
    send(alias)
    with hearing(receiver_succeeded) as succeeded, hearing(delivery_failed) as failed:
        assert "IGNORED" == work(celery_app, alias).state
    outage.close()

    assert ({"running": 1}, [], []) == (states(alias), succeeded, failed)
    assert 1 <= len(naps) < 10
    assert 1 == len([record for record in caplog.records if "could not be noted" in record.message])


@each_database("postgres", "mariadb")
def test_error_that_cannot_be_noted(
    alias: str,
    celery_app: Celery,
    receive: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the database refuses for good is not tried again and again: the lease ends, and that is said."""
    monkeypatch.setattr(hold, "described", lambda error, receiver: {"error_type": "x" * 256})
    receive(fail)
    send(alias)

    assert "IGNORED" == work(celery_app, alias).state
    assert {"running": 1} == states(alias)
    assert 1 == len([record for record in caplog.records if "could not be noted" in record.message])


@each_kind
@pytest.mark.parametrize("options", [{}, {"max_retries": 0}, {"retain": 60}], ids=str)
def test_error_after_the_commit(alias: str, celery_app: Celery, receive: Any, options: dict[str, Any]) -> None:
    """An error of what a receiver has left for after its commit is shown, but nothing is undone or runs again."""

    def act() -> None:
        leave(alias)
        transaction.on_commit(fail, using=alias)

    receive(act, **options)
    send(alias)
    with hearing(receiver_failed) as heard, hearing(delivery_failed) as given_up:
        outcome = work(celery_app, alias)

    assert ("FAILURE", Boom) == (outcome.state, type(outcome.error))
    assert (["effect"], {"done": 1} if "retain" in options else {}) == (tags(alias), states(alias))
    assert ([False], []) == ([told["will_retry"] for told in heard], given_up)


@each_kind
def test_error_that_is_nobodys(alias: str, celery_app: Celery, receive: Any) -> None:
    """What goes wrong around a receiver, and not in it, gives the delivery back, uncharged, and is shown."""
    receive(lambda: leave(alias))
    send(alias)
    deliveries(alias).update(options={"expires": "nonsense"})

    outcome = work(celery_app, alias)

    assert ("FAILURE", ValueError) == (outcome.state, type(outcome.error))
    assert ([], {"ready": 1}, {(0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))


@each_database("default")
def test_receiver_that_stands_down(alias: str, celery_app: Celery, receive: Any) -> None:
    """A receiver that gives way to another run, by itself, is told once, and leaves the delivery as it is."""

    def act(event: Event) -> None:
        take_over(alias)
        assert not event.still_mine()
        raise LeaseLost("not mine any more")

    receive(act, atomic=False)
    send(alias)
    with hearing(receiver_failed) as heard:
        assert "IGNORED" == work(celery_app, alias).state

    assert ({"running": 1}, {(0, 0, 0)}) == (states(alias), burnt(alias))
    assert ["not mine any more"] == [str(told["error"]) for told in heard]


# The next of a key ---------------------------------------------------------------------------------------------------

ORDERED: dict[str, Any] = {"ordered": True, "key": lambda key: key}
COALESCED: dict[str, Any] = {"coalesce": True, "key": lambda key: key}


def raising(error: BaseException) -> Any:
    def act(task: Any) -> None:
        raise error

    return act


# What a receiver does, its options, what Celery makes of that, and whether the next of its key begins.
ENDS_OF_TURNS: dict[str, tuple[Any, dict[str, Any], str, bool]] = {
    "success": (lambda task: None, {}, "SUCCESS", True),
    "success without a transaction": (lambda task: None, {"atomic": False}, "SUCCESS", True),
    "kept": (lambda task: None, {"retain": 60}, "SUCCESS", True),
    "discarded": (raising(Discard()), {}, "IGNORED", True),
    "expired": (lambda task: None, {"expires": datetime(2020, 1, 1)}, "IGNORED", True),
    "parked": (raising(Fail()), {"on_failure": "park"}, "FAILURE", True),
    "not ordered": (raising(Fail()), {"ordered": False, "coalesce": True}, "FAILURE", True),
    "blocked": (raising(Fail()), {}, "FAILURE", False),
    "not ordered, blocked": (raising(Fail()), {**COALESCED, "ordered": False, "on_failure": "block"}, "FAILURE", False),
    "spent": (raising(Boom()), {"max_retries": 0}, "FAILURE", False),
    "spent and parked": (raising(Boom()), {"max_retries": 0, "on_failure": "park"}, "FAILURE", True),
    "retried": (raising(Boom()), {}, "RETRY", False),
    "asked for more": (lambda task: task.retry(countdown=5), {}, "RETRY", False),
    "asked for more, and went on": (lambda task: task.retry(countdown=5, throw=False), {}, "SUCCESS", False),
    "trouble": (raising(OperationalError("gone away")), {}, "RETRY", False),
    "stopped": (raising(SystemExit()), {}, "", False),
    "superseded": (lambda task: take_over(task.request.hold.lease.using), {"atomic": False}, "IGNORED", False),
}


@pytest.fixture
def line(receiving: Receiving, celery_app: Celery) -> Any:
    """Sends two events of each of two keys to a receiver; returns what runs the first, and their four deliveries."""

    def line(alias: str, act: Any, **options: Any) -> tuple[Any, list[Any]]:
        def body(self: Any) -> None:
            act(self)

        receiving(bell, body, guarantee="durable", bind=True, **{**ORDERED, **options})
        for key in ("a", "b", "a", "b"):
            bell.send(sender=None, using=alias, key=key)
        deliveries(alias).filter(slot=None).update(folds=False)  # or it would be a part of the first
        take(celery_app)
        rows = list(deliveries(alias).order_by("pk"))
        return message(alias, pk=rows[0].pk), rows

    return line


@each_kind
@pytest.mark.parametrize("end", ENDS_OF_TURNS)
def test_turn_of_the_next(alias: str, celery_app: Celery, line: Any, end: str) -> None:
    """What has ended publishes the next of its key, and no other; what runs again, or blocks its key, publishes
    none."""
    act, options, outcome, passes_on = ENDS_OF_TURNS[end]
    run, (first, other, second, last) = line(alias, act, **options)

    if end == "stopped":
        with pytest.raises(SystemExit):
            run(celery_app)
    else:
        assert outcome == run(celery_app).state

    assert [second.pk] * passes_on == [one.kwargs[ARGUMENT]["id"] for one in take(celery_app)]
    slots = dict(deliveries(alias).values_list("pk", "slot"))
    assert (None if passes_on else first.lane) == slots.get(first.pk)
    assert [first.lane if passes_on else None, other.lane, None] == [slots[row.pk] for row in (second, other, last)]


@each_kind
def test_turn_after_the_commit(alias: str, celery_app: Celery, line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next begins only when everyone can see that the one before it has ended."""
    seen: list[Any] = []

    def look(app: Celery, using: str, lane: str) -> None:
        seen.append((lane, elsewhere(lambda: list(deliveries(alias).order_by("pk").values_list("pk", flat=True)))))

    monkeypatch.setattr(hold, "publish_next", look)
    run, (first, *others) = line(alias, lambda task: leave(alias))
    run(celery_app)

    assert [(first.lane, [row.pk for row in others])] == seen


@each_database("default", "postgres")
def test_turn_after_a_commit_that_failed(alias: str, celery_app: Celery, line: Any) -> None:
    """A completion that is rolled back gives nothing to the next."""
    run, (first, *_) = line(alias, lambda task: Order.objects.using(alias).create(customer_id=123_456))

    assert "RETRY" == run(celery_app).state
    assert first.lane == deliveries(alias).get(pk=first.pk).slot
    assert [] == take(celery_app)


@each_kind
def test_what_a_turn_costs_the_worker(alias: str, celery_app: Celery, receive: Any) -> None:
    """Where nothing waits for it, a delivery that takes turns costs its worker one statement more than another; so does
    one that coalesces."""

    def statements(**options: Any) -> list[str]:
        task = receive(lambda **kwargs: None, **options)
        send(alias, key="a")
        run = message(alias, receiver=task.name)
        with CaptureQueriesContext(connections[alias]) as queries:
            assert "SUCCESS" == run(celery_app).state
        return [query["sql"].split()[0] for query in queries]

    statements()  # asks what the connection sees of the past, once
    plain = statements()
    for options in (ORDERED, COALESCED, {**ORDERED, "debounce": 5}):
        assert [*plain, "SELECT"] == statements(**options)


@each_kind
def test_fence_of_a_key(alias: str, celery_app: Celery, line: Any) -> None:
    """Of the runs of a key, a later one has the larger fence, whichever delivery it is of."""
    fences: list[Any] = []

    def act(task: Any) -> None:
        fences.append(current_event().fence)
        if len(fences) == 1:
            raise Boom

    run, (first, _, second, _) = line(alias, act)
    deliveries(alias).filter(pk=second.pk).update(token=5)
    run(celery_app)
    for pk in (first.pk, second.pk):
        work(celery_app, alias, pk=pk)

    assert 3 == len(set(fences))
    assert sorted(fences) == fences


@each_kind
@pytest.mark.parametrize(("options", "key"), [({}, None), (ORDERED, "a" * 200 + "…")], ids=["plain", "in turn"])
def test_key_of_an_event(alias: str, celery_app: Celery, receive: Any, options: dict[str, Any], key: Any) -> None:
    """A receiver that takes turns is told the key of its event; any other has none."""
    keys: list[Any] = []
    receive(lambda event: keys.append(event.key), **options)
    send(alias, key="a" * 300)
    work(celery_app, alias)

    assert [key] == keys


# Eager ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def eager(celery_app: Celery) -> Celery:
    """An app that runs tasks in the sender's process, as in the tests of a project."""
    celery_app.conf.task_always_eager = True
    celery_app.conf.task_eager_propagates = True
    return celery_app


@each_kind
def test_eager(alias: str, eager: Celery, receive: Any) -> None:
    """An eager receiver runs when the sender commits, through its row, which is gone then (H46)."""
    fences: list[Any] = []

    def act(event: Event) -> None:
        leave(alias)
        fences.append((event.fence is not None, event.still_mine()))

    receive(act)
    with transaction.atomic(using=alias):
        bell.send(sender=None, using=alias)
        assert ([], {"sent": 1}) == (fences, states(alias))

    assert ([(True, True)], ["effect"], {}) == (fences, tags(alias), states(alias))


@each_database("default", "postgres", "mariadb", transaction=False)
def test_eager_in_a_transaction_that_never_commits(
    alias: str, eager: Celery, receive: Any, django_capture_on_commit_callbacks: Any
) -> None:
    """So it does in a test whose transaction is rolled back in the end, which no other connection sees (H46)."""
    mine: list[bool] = []
    receive(lambda event: mine.append(event.still_mine()))

    with django_capture_on_commit_callbacks(using=alias, execute=True):
        bell.send(sender=None, using=alias)

    assert ([True], {}) == (mine, states(alias))


@each_database("default")
def test_eager_turns(alias: str, eager: Celery, receive: Any) -> None:
    """Eager receivers of a key run one after the other; what one of them sends runs after it has ended."""
    seen: list[str] = []

    def act(number: int) -> None:
        seen.append(f"{number} begins")
        if number < 2:
            bell.send(sender=None, using=alias, number=number + 1)
        seen.append(f"{number} ends")

    receive(act, ordered=True, key=lambda: 0)
    bell.send(sender=None, using=alias, number=0)

    assert [f"{number} {word}" for number in range(3) for word in ("begins", "ends")] == seen
    assert {} == states(alias)


@each_kind
def test_eager_retry(alias: str, eager: Celery, receive: Any) -> None:
    """An eager receiver that asks for a retry is run again at once, as Celery does, with the attempts of the row."""
    eager.conf.task_eager_propagates = False  # or Celery shows the retry itself to the sender
    attempts: list[int] = []

    def act(self: Any) -> None:
        attempts.append(self.request.retries)
        if len(attempts) < 3:
            raise self.retry(countdown=600)

    receive(act, bind=True)
    bell.send(sender=None, using=alias)

    assert ([0, 1, 2], {}) == (attempts, states(alias))


@each_kind
def test_eager_error(alias: str, eager: Celery, receive: Any) -> None:
    """An eager receiver's error is shown to the sender, for nobody would come for the row; the row stays."""
    receive(fail)

    with pytest.raises(Boom):
        bell.send(sender=None, using=alias)

    assert ({"ready": 1}, {(1, 0, 0)}) == (states(alias), burnt(alias))


@each_kind
def test_eager_failure(alias: str, eager: Celery, receive: Any) -> None:
    """So is the last error of a receiver that may not be run again."""
    receive(fail, max_retries=0)

    with pytest.raises(Boom):
        bell.send(sender=None, using=alias)

    assert {"failed": 1} == states(alias)


@each_database("default")
def test_eager_error_that_is_kept(alias: str, eager: Celery, receive: Any) -> None:
    """Without ``task_eager_propagates`` the error stays with Celery, as always."""
    eager.conf.task_eager_propagates = False
    receive(fail)

    bell.send(sender=None, using=alias)

    assert {"ready": 1} == states(alias)


@each_database("default", transaction=False)
def test_eager_trouble(
    alias: str, eager: Celery, receive: Any, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any
) -> None:
    """Within somebody's transaction nothing is tried again: that would wait for itself."""

    def row(self: Any) -> Any:
        raise OperationalError("database is locked")

    def act() -> None:
        monkeypatch.setattr(hold.Lease, "row", row)
        raise Boom

    receive(act)
    eager.conf.task_eager_propagates = False
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=time.monotonic))

    with django_capture_on_commit_callbacks(using=alias, execute=True):
        bell.send(sender=None, using=alias)

    assert {"running": 1} == states(alias)
