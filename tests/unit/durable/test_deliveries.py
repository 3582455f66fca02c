"""The relay's statements, each alone and beside any number of others, on every database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction
from django.db.models import F
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from psycopg import IsolationLevel

from django_celery_signals.durable import deliveries as module
from django_celery_signals.durable import rows as rows_module
from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import (
    CRASH_BUDGET,
    MOST_SENDS,
    UNPROBED_AFTER,
    State,
    deliveries,
)
from django_celery_signals.durable.rows import CONFLICTS, new_token
from django_celery_signals.durable.texts import PUBLISHED
from django_celery_signals.models import Delivery
from tests.delivering import burnt, moment, place, place_sent, seconds_left, states
from tests.elsewhere import connecting, elsewhere, execute, other_transaction
from tests.parameters import each_database
from tests.waiting import wait_until

NOBODY = "tests.nobody"
GRACE = 60.0

each_server = each_database("postgres", "mariadb")
each_kind = each_database("default", "postgres", "mariadb", transaction=False)
# A lock that is waited for ends a test soon, with an error.
IMPATIENT: dict[str, dict[str, Any]] = {
    "default": {"timeout": 1},
    "postgres": {"options": "-c lock_timeout=1s"},
    "mariadb": {"init_command": "SET SESSION innodb_lock_wait_timeout = 1"},
}


def placed(alias: str, **columns: Any) -> int:
    """Write one delivery, and return its id."""
    place(alias, NOBODY, **columns)
    return ids(alias)[-1]


def ids(alias: str, **filters: Any) -> list[int]:
    return list(deliveries(alias).filter(**filters).order_by("pk").values_list("pk", flat=True))


def claimed(alias: str, limit: int = 100, grace: float = GRACE) -> list[int]:
    return [row.pk for row in deliveries(alias).claim(limit, grace).rows]


@contextmanager
def before_the_change(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> Iterator[None]:
    """Let somebody else act once, when the ids are known and nothing is changed yet.

    Where one statement does both, its transaction is kept open meanwhile.
    """
    original, at_once, acts = module.DeliveryQuerySet.held, module.DeliveryQuerySet._claimed_at_once, [act]

    @contextmanager
    def held(self: Any, limit: int) -> Iterator[list[int]]:
        with original(self, limit) as found:
            for one in acts.copy():
                acts.clear()
                one()
            yield found

    def claimed_at_once(self: Any, *args: Any) -> list[Any]:
        with transaction.atomic(using=self.db):
            rows = at_once(self, *args)
            for one in acts.copy():
                acts.clear()
                one()
            return rows

    with monkeypatch.context() as patch:
        patch.setattr(module.DeliveryQuerySet, "held", held)
        patch.setattr(module.DeliveryQuerySet, "_claimed_at_once", claimed_at_once)
        yield
    assert not acts


# Claim ---------------------------------------------------------------------------------------------------------------


@each_kind
def test_claim(alias: str) -> None:
    """A claim takes what is due, the longest due first, and leaves it due again after the grace."""
    late, early = placed(alias, due_at=moment(-1)), placed(alias, due_at=moment(-100))
    placed(alias, due_at=moment(100))

    first = deliveries(alias).claim(1, GRACE)
    second = deliveries(alias).claim(100, GRACE)

    assert ([early], [late]) == ([row.pk for row in first.rows], [row.pk for row in second.rows])
    assert first.claim != second.claim
    row = deliveries(alias).get(pk=early)
    assert (State.READY, first.claim) == (row.state, row.claim)
    assert {round(GRACE)} == seconds_left(alias, claim__isnull=False)
    assert [] == claimed(alias)


@each_kind
def test_claimed_rows(alias: str) -> None:
    """A batch is in the order of its ids, and without the payloads, which nobody publishes."""
    for due in (-1, -3, -2):
        place(alias, NOBODY, due_at=moment(due), payload="p" * 100)

    rows = deliveries(alias).claim(100, GRACE).rows

    assert ids(alias) == [row.pk for row in rows]
    if alias == "postgres":  # of which one statement says what a relay must know
        assert not any(hasattr(row, large) for row in rows for large in ("payload", "traceback"))
    else:
        assert [{"payload", "traceback"}] * 3 == [row.get_deferred_fields() for row in rows]


@each_kind
def test_what_is_known_of_a_claim(alias: str) -> None:
    """What a relay is told of a delivery is what the row has."""
    for name, options in (("bare", {}), ("full", {"priority": 3, "é": [None, 1.5]})):
        place(alias, NOBODY, signal=name, options=options, lane="a" * 32, key="k", attempts=2, crashes=1, reruns=4)

    rows = deliveries(alias).claim(100, GRACE).rows

    stored = deliveries(alias).order_by("pk").values(*PUBLISHED)
    told = [{name: getattr(row, "pk" if name == "id" else name) for name in PUBLISHED} for row in rows]
    assert list(stored) == told


@each_kind
@pytest.mark.parametrize("state", [State.SENT, State.RUNNING, State.FAILED, State.DONE])
def test_what_is_not_claimed(alias: str, state: State) -> None:
    """Only what is ready is published, whatever else the relay has to look at."""
    placed(alias, state=state)

    assert [] == claimed(alias)
    assert {state.label: 1} == states(alias)


@each_kind
def test_claim_of_some(alias: str) -> None:
    """A claim keeps to the rows chosen so far."""
    placed(alias, queue="slow")
    wanted = placed(alias, queue="fast")

    assert [wanted] == [row.pk for row in deliveries(alias).filter(queue="fast").claim(100, GRACE).rows]


@each_kind
def test_claim_of_the_dead(alias: str) -> None:
    """What a relay has claimed and left is another's after the grace, and the first one's no more."""
    pk = placed(alias)
    first = deliveries(alias).claim(100, grace=-1)
    second = deliveries(alias).claim(100, GRACE)

    assert [pk] == [row.pk for row in second.rows]
    assert 0 == deliveries(alias).mark(first.claim, [pk], "mails")
    assert 0 == deliveries(alias).release(first.claim, [pk])
    assert 1 == deliveries(alias).mark(second.claim, [pk], "mails")


@each_server
def test_claim_beside_a_claim(alias: str) -> None:
    """A claim passes over what another relay has its hands on, without waiting, and takes the rest (H47)."""
    place(alias, NOBODY, 4)
    first, second, *others = ids(alias)

    def hold() -> None:
        list(deliveries(alias).filter(pk__in=[first, second]).select_for_update())

    with connecting(alias, **IMPATIENT[alias]), other_transaction(alias, hold):
        assert others == claimed(alias)
        assert [] == claimed(alias)

    assert [first, second] == claimed(alias)


@each_database("default", "mariadb")
def test_claim_where_nothing_is_passed_over(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a claim cannot pass over rows, what another relay takes in between is left to it."""
    monkeypatch.setattr(connections[alias].features, "has_select_for_update_skip_locked", False)
    place(alias, NOBODY, 4)
    taken: list[int] = []

    with before_the_change(monkeypatch, lambda: taken.extend(elsewhere(lambda: claimed(alias, 2)))):
        mine = claimed(alias)

    assert ids(alias) == [*taken, *mine]
    assert (2, 2) == (len(taken), len(mine))


@each_server
def test_lower_id_that_commits_late(alias: str) -> None:
    """A row that is committed after others with higher ids is found like any: nobody looks only ahead (H33)."""
    with connecting(alias, **IMPATIENT[alias]), other_transaction(alias, lambda: place(alias, NOBODY)) as sender:
        later = placed(alias)
        assert [later] == claimed(alias)
        sender.commit()
        (earlier,) = claimed(alias)

    assert earlier < later


@each_database("default", also=["other"])
def test_equal_ids(alias: str) -> None:
    """What is done to a delivery in one database leaves the one with its id in another alone."""
    pk = placed(alias)
    place("other", NOBODY)
    deliveries("other").update(id=pk)

    claim = deliveries(alias).claim(100, GRACE)
    assert 1 == deliveries(alias).mark(claim.claim, [pk], "mails")

    assert ({"sent": 1}, {"ready": 1}) == (states(alias), states("other"))
    assert 0 == deliveries("other").mark(claim.claim, [pk], "mails")
    assert [pk] == claimed("other")


# Beside senders that have not committed ------------------------------------------------------------------------------


def verbs(alias: str) -> dict[str, Callable[[], Any]]:
    """Return what is done to rows, by its name; every one finds something to do."""
    rows, claim, most = deliveries(alias), 7, 2000
    mine = ids(alias)
    return {
        "claim": lambda: len(rows.claim(most, GRACE).rows),
        "mark": lambda: rows.mark(claim, mine, "mails"),
        "release": lambda: rows.release(claim, mine),
        "expire": lambda: rows.expire(most)[0],
        "sweep": lambda: rows.sweep("mails", moment(0), most),
        "sweep_unprobed": lambda: rows.sweep_unprobed(most),
        "purge done": lambda: rows.purge(most),
        "purge failed": lambda: rows.purge(most),
        "retry": rows.retry,
        "discard": rows.discard,
    }


def options_of_a_server(alias: str) -> dict[str, Any]:
    """Return connection options with which the server's own isolation counts: of MariaDB, REPEATABLE READ."""
    return {**IMPATIENT[alias], **({"isolation_level": None} if alias == "mariadb" else {})}


BEFORE: dict[str, dict[str, Any]] = {
    "claim": {},
    "mark": {"claim": 7},
    "release": {"claim": 7},
    "expire": {"state": State.RUNNING},
    "sweep": {"state": State.SENT, "due_at": None, "sent_at": moment(-99_999), "queue": "mails"},
    "sweep_unprobed": {"state": State.SENT, "due_at": None, "sent_at": moment(-99_999)},
    "purge done": {"state": State.DONE},
    "purge failed": {"state": State.FAILED},
    "retry": {"state": State.FAILED},
    "discard": {"state": State.FAILED},
}


@each_server
@pytest.mark.parametrize("count", [1, 3, 1500])
@pytest.mark.parametrize("verb", BEFORE)
def test_beside_senders(alias: str, verb: str, count: int) -> None:
    """No verb waits for rows that their senders have not committed, or touches them, at the server's own isolation."""
    with connecting(alias, **options_of_a_server(alias)):
        place(alias, NOBODY, count, **BEFORE[verb])
        act = verbs(alias)[verb]
        with other_transaction(alias, lambda: place(alias, NOBODY, 3, **BEFORE[verb])) as sender:
            assert (min(count, module.STEP) if verb == "purge done" else count) == act()
            sender.commit()

    assert 3 == deliveries(alias).filter(**{"state": State.READY, **BEFORE[verb]}, pk__in=ids(alias)[-3:]).count()


@each_server
@pytest.mark.parametrize("verb", BEFORE)
def test_senders_beside_it(alias: str, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No verb keeps a sender from inserting while it holds the rows that it has found, however long that takes."""
    with connecting(alias, **options_of_a_server(alias)):
        place(alias, NOBODY, 3, **BEFORE[verb])

        def send() -> None:
            place(alias, NOBODY, 3, **BEFORE[verb])
            place_sent(alias, NOBODY, "mails")
            place(alias, NOBODY, due_at=moment(-100_000))

        holds = verb not in ("mark", "release", "retry", "discard")
        with before_the_change(monkeypatch, lambda: elsewhere(send)) if holds else nullcontext():
            assert verbs(alias)[verb]() in (3, 6)  # the purge looks twice

    assert 8 - 3 * (verb in ("purge done", "discard")) - 5 * (not holds) == deliveries(alias).count()


@each_server
def test_workers_beside_a_claim(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker opens, renews and completes what it has while a relay holds other rows."""
    place(alias, NOBODY, 2)
    place(alias, NOBODY, state=State.RUNNING, due_at=moment(50))
    changed: list[int] = []

    def work() -> None:
        running = deliveries(alias).filter(pk=ids(alias)[-1])
        changed.append(running.update(token=F("token") + 1, due_at=In(60)))
        changed.append(running.erase())

    with connecting(alias, **options_of_a_server(alias)), before_the_change(monkeypatch, lambda: elsewhere(work)):
        assert 2 == len(claimed(alias))

    assert [1, 1] == changed


# Mark, release, put back ---------------------------------------------------------------------------------------------


@each_kind
def test_mark(alias: str) -> None:
    """What the broker has confirmed is sent: nobody looks at it again before a probe says that it is lost."""
    place(alias, NOBODY, 3, sends=2)
    claim = deliveries(alias).claim(100, GRACE)
    first, second, third = ids(alias)

    assert 2 == deliveries(alias).mark(claim.claim, [first, third], "mails")

    columns = ("pk", "state", "queue", "due_at", "claim", "sends")
    rows = deliveries(alias).exclude(pk=second).order_by("pk").values_list(*columns)
    assert [(pk, State.SENT, "mails", None, None, 3) for pk in (first, third)] == list(rows)
    assert {"sent": 2, "ready": 1} == states(alias)
    assert 0 == deliveries(alias).mark(claim.claim, [first, third], "mails")


@each_kind
def test_time_of_sending(alias: str) -> None:
    """A publication begins at its claim, before any message of it can arrive."""
    placed(alias)
    claim = deliveries(alias).claim(100, GRACE)
    sent_at = deliveries(alias).get().sent_at

    deliveries(alias).mark(claim.claim, ids(alias), "mails")

    assert sent_at == deliveries(alias).get().sent_at
    assert 0 <= (moment(0) - sent_at).total_seconds() < 5


LATER = {
    "opened": {"state": State.RUNNING, "claim": None},
    "retried": {"state": State.READY, "claim": None, "due_at": moment(600)},
    "claimed again": {"state": State.READY, "claim": 9, "due_at": moment(600)},
    "sent by another": {"state": State.SENT, "claim": None, "due_at": None},
    "failed": {"state": State.FAILED, "claim": None},
    "done": {"state": State.DONE, "claim": None},
}


@each_kind
@pytest.mark.parametrize("meanwhile", LATER)
@pytest.mark.parametrize("verb", ["mark", "release"])
def test_stale_claim(alias: str, meanwhile: str, verb: str) -> None:
    """A relay that was stopped between its claim and its mark changes nothing of what has become of the row since."""
    placed(alias)
    stale = deliveries(alias).claim(100, GRACE)
    deliveries(alias).update(**LATER[meanwhile])
    before = deliveries(alias).values().get()

    arguments: tuple[Any, ...] = ("mails",) if verb == "mark" else (5.0,)
    assert 0 == getattr(deliveries(alias), verb)(stale.claim, ids(alias), *arguments)
    assert before == deliveries(alias).values().get()


@each_kind
@pytest.mark.parametrize("counted", [False, True])
def test_release(alias: str, counted: bool) -> None:
    """What could not be published is given back for some time later; it counts only where the receiver is unknown."""
    place(alias, NOBODY, 2)
    claim = deliveries(alias).claim(100, GRACE)
    first, second = ids(alias)

    assert 1 == deliveries(alias).release(claim.claim, [first], 5, counted=counted)

    row = deliveries(alias).get(pk=first)
    assert (None, None, int(counted)) == (row.claim, row.sent_at, row.reruns)
    assert ({5}, {60}) == (seconds_left(alias, pk=first), seconds_left(alias, pk=second))
    assert (0, 0, 0) in burnt(alias)


@each_kind
def test_nothing_to_mark(alias: str) -> None:
    """Without rows there is no statement."""
    with CaptureQueriesContext(connections[alias]) as queries:
        assert [0, 0] == [deliveries(alias).mark(7, [], "mails"), deliveries(alias).release(7, [])]

    assert 0 == len(queries)


@each_kind
def test_put_back(alias: str) -> None:
    """What its sender could not publish is due at once, as if nobody had tried."""
    place_sent(alias, NOBODY, "mails")
    row = deliveries(alias).get()

    assert 1 == deliveries(alias).put_back(row.pk, row.token)

    after = deliveries(alias).get()
    assert (State.READY, None, 0, row.token) == (after.state, after.sent_at, after.sends, after.token)
    assert [row.pk] == claimed(alias)


@each_kind
@pytest.mark.parametrize("state", [State.READY, State.RUNNING, State.FAILED, State.DONE])
def test_put_back_too_late(alias: str, state: State) -> None:
    """What others have taken in hand meanwhile stays in theirs."""
    pk = placed(alias, state=state, due_at=moment(600))
    token = deliveries(alias).get().token

    assert 0 == deliveries(alias).put_back(pk, token)
    assert {state.label: 1} == states(alias)


@each_kind
def test_put_back_of_another_run(alias: str) -> None:
    """A sender that has slept through a whole run puts back nothing."""
    place_sent(alias, NOBODY, "mails")
    row = deliveries(alias).get()

    assert 0 == deliveries(alias).put_back(row.pk, row.token - 1)
    assert {"sent": 1} == states(alias)


# Expire --------------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(("crashes", "seconds"), [(0, 1), (1, 2), (2, 4), (3, 8)])
def test_expire(alias: str, crashes: int, seconds: int) -> None:
    """A run whose lease has ended begins again, after a pause that grows, and only this counts a crash."""
    placed(alias, state=State.RUNNING, crashes=crashes, attempts=3, reruns=2, sends=1)
    token = deliveries(alias).get().token

    assert (1, []) == deliveries(alias).expire(100)

    row = deliveries(alias).get()
    assert (State.READY, token, None, 0) == (row.state, row.token, row.claim, row.sends)
    assert {(3, crashes + 1, 2)} == burnt(alias)
    assert {seconds} == seconds_left(alias)
    assert (0, []) == deliveries(alias).expire(100)


@each_kind
def test_expire_what_kills_its_workers(alias: str) -> None:
    """What has crashed too often is named, without its payload, and left to whoever gives it up."""
    spent = placed(alias, state=State.RUNNING, crashes=CRASH_BUDGET - 1)
    placed(alias, state=State.RUNNING)

    count, rows = deliveries(alias).expire(100)

    assert (1, [spent]) == (count, [row.pk for row in rows])
    assert {"payload", "traceback"} == rows[0].get_deferred_fields()
    assert {"running": 1, "ready": 1} == states(alias)


@each_kind
def test_what_does_not_expire(alias: str) -> None:
    """A lease that holds, and what is no run, is left alone."""
    placed(alias, state=State.RUNNING, due_at=moment(1))
    for state in (State.READY, State.SENT, State.FAILED, State.DONE):
        placed(alias, state=state)

    assert (0, []) == deliveries(alias).expire(100)
    assert {(0, 0, 0)} == burnt(alias)


@each_kind
def test_expire_in_parts(alias: str) -> None:
    """No statement takes more than it is told to, the longest dead first."""
    for due in (-1, -3, -2):
        place(alias, NOBODY, state=State.RUNNING, due_at=moment(due))

    assert (2, []) == deliveries(alias).expire(2)
    assert ids(alias)[:1] == ids(alias, state=State.RUNNING)


@each_database("default", "mariadb")
def test_renewal_before_the_expiry(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is renewed while a relay looks at it has not ended."""
    monkeypatch.setattr(connections[alias].features, "has_select_for_update_skip_locked", False)
    placed(alias, state=State.RUNNING)

    def renew() -> int:
        return elsewhere(lambda: deliveries(alias).update(due_at=In(60)))

    with before_the_change(monkeypatch, renew):
        assert (0, []) == deliveries(alias).expire(100)

    assert ({"running": 1}, {(0, 0, 0)}) == (states(alias), burnt(alias))


@each_server
def test_expiry_beside_a_completion(alias: str) -> None:
    """A run that is being completed is passed over; it expires only if the completion is rolled back."""
    placed(alias, state=State.RUNNING)
    with connecting(alias, **IMPATIENT[alias]), other_transaction(alias, deliveries(alias).erase):
        assert (0, []) == deliveries(alias).expire(100)

    assert (1, []) == deliveries(alias).expire(100)


# Sweep ---------------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("sends", [0, 1, 2, 9, 10, 40])
def test_sweep(alias: str, sends: int) -> None:
    """What was sent before a probe that has arrived is lost, when it is old enough: twice as old after each sending,
    up to three quarters of an hour."""
    wait = module.SWEPT_AFTER * 2 ** min(sends, module.MOST_SENDS)
    place_sent(alias, NOBODY, "mails", ago=wait - 3, sends=sends)
    place_sent(alias, NOBODY, "mails", ago=wait + 3, sends=sends)

    assert 1 == deliveries(alias).sweep("mails", moment(0), 100)

    young, old = deliveries(alias).order_by("pk")
    assert (State.SENT, State.READY, sends) == (young.state, old.state, old.sends)
    assert [old.pk] == claimed(alias)


@each_kind
def test_what_is_not_swept(alias: str) -> None:
    """Nothing is lost that was sent after the probe, waits in another queue, or is in somebody's hands."""
    place_sent(alias, NOBODY, "mails", ago=1000)
    place_sent(alias, NOBODY, "other", ago=3000)
    for state in (State.READY, State.RUNNING, State.FAILED, State.DONE):
        place_sent(alias, NOBODY, "mails", ago=3000, state=state)
    before = states(alias)

    assert 0 == deliveries(alias).sweep("mails", moment(-2000), 100)
    assert before == states(alias)


@each_kind
def test_sweep_in_parts(alias: str) -> None:
    """No statement takes more than it is told to, the oldest first."""
    for ago in (1000, 3000, 2000):
        place_sent(alias, NOBODY, "mails", ago=ago)

    assert 2 == deliveries(alias).sweep("mails", moment(0), 2)
    assert ids(alias)[:1] == ids(alias, state=State.SENT)


@each_kind
def test_sweep_where_no_probe_can_follow(alias: str) -> None:
    """Where a route names no queue, what was sent long ago is sent again, and after twice as long the next time."""
    wait = module.UNPROBED_AFTER
    for ago, sends in ((wait - 5, 0), (wait + 5, 0), (wait + 5, 1), (2 * wait + 5, 1)):
        place_sent(alias, NOBODY, "", ago=ago, sends=sends)
    place_sent(alias, NOBODY, "mails", ago=99_999)

    assert 2 == deliveries(alias).sweep_unprobed(100)

    pks = ids(alias)
    assert [pks[1], pks[3]] == ids(alias, state=State.READY)


@each_database("default", "mariadb")
def test_opened_before_the_sweep(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker opens while a relay looks at it is not lost."""
    monkeypatch.setattr(connections[alias].features, "has_select_for_update_skip_locked", False)
    place_sent(alias, NOBODY, "mails", ago=1000)

    def open_it() -> int:
        return elsewhere(lambda: deliveries(alias).update(state=State.RUNNING))

    with before_the_change(monkeypatch, open_it):
        assert 0 == deliveries(alias).sweep("mails", moment(0), 100)

    assert {"running": 1} == states(alias)


# Purge and erase -----------------------------------------------------------------------------------------------------

ERROR = {"error_type": "ValueError", "error_message": "m", "traceback": "t", "fingerprint": "ValueError in shop.f"}
TURN = {"key": "ada@example.org", "lane": "a", "slot": "a"}


@each_kind
def test_purge(alias: str) -> None:
    """What was kept after success goes, what failed long ago loses whatever may hold a value, and keeps its cause."""
    placed(alias, state=State.DONE)
    kept = placed(alias, state=State.DONE, due_at=moment(10))
    old = placed(alias, state=State.FAILED, **ERROR, **TURN)
    young = placed(alias, state=State.FAILED, due_at=moment(10), **ERROR)

    assert 2 == deliveries(alias).purge(100)

    assert [kept, old, young] == ids(alias)
    names = ("payload", "key", "error_message", "traceback", "due_at", "error_type", "fingerprint", "slot")
    erased = (None, None, None, None, None, "ValueError", "ValueError in shop.f", "a")
    assert erased == deliveries(alias).filter(pk=old).values_list(*names).get()
    assert "{}" == deliveries(alias).get(pk=young).payload
    assert 0 == deliveries(alias).purge(100)


@each_kind
def test_purge_in_parts(alias: str) -> None:
    """No statement takes more than it is told to."""
    place(alias, NOBODY, 3, state=State.DONE)
    place(alias, NOBODY, 3, state=State.FAILED)

    assert [4, 2, 0] == [deliveries(alias).purge(2) for _ in range(3)]
    assert {"failed": 3} == states(alias)


@each_kind
@pytest.mark.parametrize("state", [State.READY, State.RUNNING, State.SENT])
def test_what_is_not_purged(alias: str, state: State) -> None:
    """Nothing that is open is ever purged, however old."""
    placed(alias, state=state, due_at=moment(-10_000_000))

    assert 0 == deliveries(alias).purge(100)
    assert {state.label: 1} == states(alias)


@each_kind
def test_erase(alias: str) -> None:
    """Rows are deleted in one statement, and counted; of none there is none."""
    place(alias, NOBODY, 3)

    with CaptureQueriesContext(connections[alias]) as queries:
        assert 2 == deliveries(alias).filter(pk__in=ids(alias)[:2]).erase()
        assert 0 == deliveries(alias).filter(pk__in=[]).erase()

    assert 2 == len(queries)
    assert 1 == deliveries(alias).count()


# What people do ------------------------------------------------------------------------------------------------------


@each_kind
def test_retry(alias: str) -> None:
    """A failed delivery starts anew, at once, with nothing used up; its error stays to be read."""
    columns = {**ERROR, "attempts": 3, "crashes": 2, "reruns": 1, "sends": 4, "claim": 7, "finished_at": moment(-5)}
    pk = placed(alias, state=State.FAILED, due_at=moment(1000), **columns)
    token = deliveries(alias).get().token

    assert 1 == deliveries(alias).retry()

    row = deliveries(alias).get()
    assert (State.READY, token, 0, None, None) == (row.state, row.token, row.sends, row.claim, row.finished_at)
    assert ({(0, 0, 0)}, "ValueError") == (burnt(alias), row.error_type)
    assert [pk] == claimed(alias)


@each_kind
def test_retry_of_what_is_erased(alias: str) -> None:
    """What has lost its payload stays failed: there is nothing to give to its receiver."""
    placed(alias, state=State.FAILED, payload=None)
    placed(alias, state=State.FAILED)

    assert 1 == deliveries(alias).retry()
    assert {"failed": 1, "ready": 1} == states(alias)


@each_kind
@pytest.mark.parametrize("verb", ["retry", "discard"])
def test_what_has_not_failed(alias: str, verb: str) -> None:
    """Only what has failed is retried or discarded, whatever else is chosen with it."""
    for state in (State.READY, State.SENT, State.RUNNING, State.DONE):
        placed(alias, state=state)
    before = list(deliveries(alias).order_by("pk").values())

    assert 0 == getattr(deliveries(alias), verb)()
    assert before == list(deliveries(alias).order_by("pk").values())


@each_kind
def test_discard(alias: str) -> None:
    """Discarded deliveries are deleted, those that have lost their payload as well."""
    placed(alias, state=State.FAILED, payload=None)
    placed(alias, state=State.FAILED)

    assert 2 == deliveries(alias).discard()
    assert {} == states(alias)


@each_kind
@pytest.mark.parametrize("verb", ["retry", "discard"])
def test_many_at_once(alias: str, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are chosen, no statement changes very many of them."""
    monkeypatch.setattr(rows_module, "STEP", 2)
    place(alias, NOBODY, 5, state=State.FAILED, queue="mails")
    place(alias, NOBODY, state=State.FAILED, queue="other")

    with CaptureQueriesContext(connections[alias]) as queries:
        assert 5 == getattr(deliveries(alias).filter(queue="mails"), verb)()

    changes = [query for query in queries if query["sql"].startswith(("UPDATE", "DELETE"))]
    assert 3 == len(changes)
    assert 1 == deliveries(alias).failed().count()


@each_database("default", "postgres", "mariadb")
def test_many_keys_at_once(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are discarded, each lets its key go on; what was parked lets nothing go that has its turn."""
    monkeypatch.setattr(rows_module, "STEP", 2)
    for lane in "abc":
        place(alias, NOBODY, state=State.FAILED, lane=lane, slot=lane)
        place(alias, NOBODY, 2, lane=lane, due_at=None)
    place(alias, NOBODY, state=State.RUNNING, lane="d", slot="d", due_at=moment(60))
    place(alias, NOBODY, state=State.FAILED, lane="d")
    place(alias, NOBODY, lane="d", due_at=None)

    assert 4 == deliveries(alias).discard()

    turns = deliveries(alias).order_by("pk").values_list("lane", "slot")
    assert [("a", "a"), ("a", None), ("b", "b"), ("b", None), ("c", "c"), ("c", None), ("d", "d"), ("d", None)] == list(
        turns
    )
    assert 3 == len(claimed(alias))


@each_kind
def test_retried_before_it_is_discarded(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one person retries while another discards it has not failed any more."""
    place(alias, NOBODY, state=State.FAILED)
    rows = deliveries(alias)._failed_in_steps()
    first = next(rows)

    assert 1 == deliveries(alias).retry()
    assert 0 == first.erase()


# Conflicts and replicas ----------------------------------------------------------------------------------------------


def waiting(alias: str) -> bool:
    """Tell whether somebody waits for a lock in a database of PostgreSQL's."""
    return bool(
        execute(alias, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    )


@each_database("postgres")
def test_conflict_above_read_committed(alias: str) -> None:
    """At REPEATABLE READ a statement that met another's is executed once more, and sees what has become of the row."""
    placed(alias, state=State.SENT, sends=1)

    def count() -> int:
        return deliveries(alias).update(sends=F("sends") + 1)

    with (
        connecting(alias, options=r"-c default_transaction_isolation=repeatable\ read"),
        other_transaction(alias, lambda: deliveries(alias).update(sends=10)) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        change = thread.submit(elsewhere, count)
        wait_until(lambda: waiting(alias), what="the second statement")
        other.commit()
        assert 1 == change.result()

    assert 11 == deliveries(alias).get().sends


@each_database("postgres")
def test_conflict_within_a_transaction(alias: str) -> None:
    """Within a transaction the conflict is raised: the whole of it would have to be done again."""
    placed(alias)

    with connecting(alias, isolation_level=IsolationLevel.REPEATABLE_READ), transaction.atomic(using=alias):
        assert 1 == deliveries(alias).count()
        elsewhere(lambda: deliveries(alias).update(sends=5))
        with pytest.raises(OperationalError, match="could not serialize"):
            deliveries(alias).update(sends=6)
        transaction.set_rollback(True, using=alias)

    assert 5 == deliveries(alias).get().sends


class Conflict(Exception):
    """A client's error of a transaction that met another."""

    sqlstate = "40001"


@each_database("default")
@pytest.mark.parametrize(("conflicts", "outcome"), [(0, 7), (CONFLICTS, 7), (CONFLICTS + 1, None)])
def test_endless_conflicts(alias: str, conflicts: int, outcome: int | None) -> None:
    """A statement is repeated a few times, not for ever."""
    left = [conflicts]

    def statement() -> int:
        if not left[0]:
            return 7
        left[0] -= 1
        raise OperationalError("could not serialize") from Conflict()

    try:
        result: int | None = deliveries(alias)._surely(statement)
    except OperationalError:
        result = None
    assert (outcome, 0) == (result, left[0])


class ReadElsewhere:
    """A router that reads from a replica."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "other"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@each_database("default", also=["other"])
@override_settings(DATABASE_ROUTERS=[ReadElsewhere()])
def test_replica(alias: str) -> None:
    """Deliveries are never read from a replica, which may lag behind, nor erased there."""
    place(alias, NOBODY, 2, state=State.FAILED)
    objects = Delivery.objects

    assert 2 == objects.count() == objects.failed().count()
    assert 2 == objects.retry()
    assert 2 == len(objects.claim(100, GRACE).rows)
    assert 2 == objects.filter(claim__isnull=False).erase()


def test_tokens() -> None:
    """A token cannot be guessed, and leaves room to count in a column of 63 bits."""
    tokens = {new_token() for _ in range(1000)}

    assert 1000 == len(tokens)
    assert 2**50 < max(tokens) < 2**60


@each_database
def test_what_no_probe_can_follow_is_sent_again_however_often_it_was(alias: str) -> None:
    """The pauses of what a route without a queue has taken grow up to a bound, and never to an end."""
    longest = UNPROBED_AFTER * 2**MOST_SENDS
    place_sent(alias, NOBODY, "", ago=longest - 60, sends=MOST_SENDS + 1)
    assert 0 == deliveries(alias).sweep_unprobed(10)

    place_sent(alias, NOBODY, "", ago=longest + 60, sends=MOST_SENDS + 5)
    assert 1 == deliveries(alias).sweep_unprobed(10)
