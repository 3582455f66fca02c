"""Turns: of a lane one delivery has the slot, the others wait for it, and somebody always lets the next one have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connections, transaction
from django.test.utils import CaptureQueriesContext

from django_celery_signals.durable.clock import In
from django_celery_signals.durable.deliveries import DeliveryQuerySet, State, deliveries
from tests.delivering import moment, place, seconds_left, states
from tests.elsewhere import elsewhere
from tests.parameters import each_database

NOBODY = "tests.nobody"

each_kind = each_database("default", "postgres", "mariadb", transaction=False)
each_commit = each_database("default", "postgres", "mariadb")

# What has its turn, and what stands in nobody's way.
HOLDERS: dict[str, dict[str, Any]] = {
    "admitted": {"state": State.READY},
    "sent": {"state": State.SENT},
    "running": {"state": State.RUNNING},
    "blocked": {"state": State.FAILED},
}
NO_HOLDERS: dict[str, dict[str, Any]] = {
    "parked": {"state": State.FAILED},
    "done": {"state": State.DONE},
    "another's": {"lane": "b", "slot": "b", "state": State.RUNNING},
    "another's that waits": {"lane": "b"},
    "whose lane begins alike": {"lane": "aa"},
    "without a lane": {"lane": None},
}


def placed(alias: str, lane: str | None = "a", **columns: Any) -> int:
    """Write a delivery, by default one that waits for its turn, and return its id."""
    place(alias, NOBODY, **{"due_at": None, "lane": lane, **columns})
    return int(deliveries(alias).latest("pk").pk)


def holder(alias: str, kind: str = "running", lane: str = "a") -> int:
    """Write a delivery that has its turn."""
    return placed(alias, lane, slot=lane, **HOLDERS[kind])


def row(alias: str, pk: int) -> Any:
    return deliveries(alias).get(pk=pk)


def holding(alias: str) -> list[int]:
    """Return what has a slot."""
    return ids(deliveries(alias).filter(slot__isnull=False).order_by("pk"))


def ids(rows: Any) -> list[int]:
    return list(rows.values_list("pk", flat=True))


def is_sent(found: Any) -> bool:
    """Tell whether a delivery is as one that was published just now."""
    fresh = deliveries(found._state.db).filter(pk=found.pk, sent_at__gt=In(-20), sent_at__lte=In(0)).exists()
    columns = (found.state, found.due_at, found.claim, found.sends, found.slot)
    return fresh and (State.SENT, None, None, 1, found.lane) == columns


@contextmanager
def before_it_wins(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> Iterator[None]:
    """Let another process act once, when the choice is made and the slot is not given yet."""
    original, acts = DeliveryQuerySet._win, [act]

    def win(self: Any, *args: Any, **changes: Any) -> int:
        for one in acts.copy():
            acts.clear()
            elsewhere(one)
        return original(self, *args, **changes)

    with monkeypatch.context() as patch:
        patch.setattr(DeliveryQuerySet, "_win", win)
        yield
    assert not acts


@each_kind
def test_waiting(alias: str) -> None:
    """What is ready, in a lane and without its slot waits for its turn, the oldest of a lane first; nothing else."""
    first, other, second = placed(alias, "a"), placed(alias, "B"), placed(alias, "a", due_at=moment(60))
    for columns in ({"lane": None}, {"slot": "a"}, *({"state": state} for state in State if state != State.READY)):
        placed(alias, **columns)

    assert {first, second, other} == set(ids(deliveries(alias).waiting()))
    assert [first, second] == ids(deliveries(alias).waiting("a"))
    assert [other] == ids(deliveries(alias).waiting("B"))


# The sender takes the turn -------------------------------------------------------------------------------------------


@each_commit
@pytest.mark.parametrize("beside", [None, *NO_HOLDERS])
def test_take_turn(alias: str, beside: str | None) -> None:
    """Where nothing of its lane is under way or waits, a delivery has its turn, in one statement, as if published."""
    for columns in [NO_HOLDERS[beside]] if beside else []:
        placed(alias, **columns)
    pk = placed(alias)
    placed(alias)  # which came later
    connections[alias].ensure_connection()

    with CaptureQueriesContext(connections[alias]) as queries:
        assert deliveries(alias).take_turn(pk, "a")

    assert ["UPDATE"] == [query["sql"].split()[0] for query in queries]
    assert is_sent(row(alias, pk))


@each_kind
@pytest.mark.parametrize("kind", [*HOLDERS, "earlier"])
@pytest.mark.parametrize("is_older", [True, False])
def test_turn_of_another(alias: str, kind: str, is_older: bool) -> None:
    """While another has the slot, whether it came before or after, or waits longer, a delivery goes on waiting; the
    database has nothing to refuse."""
    pk = 0 if is_older else placed(alias)
    other = placed(alias) if kind == "earlier" else holder(alias, kind)
    pk = pk or placed(alias)
    before = list(deliveries(alias).order_by("pk").values())

    refused: list[Any] = []

    def note_refusal(execute: Any, sql: Any, *args: Any) -> Any:
        try:
            return execute(sql, *args)
        except DatabaseError as error:
            refused.append(error)
            raise

    with connections[alias].execute_wrapper(note_refusal):
        assert (kind == "earlier" and not is_older) == deliveries(alias).take_turn(pk, "a")
    assert [] == refused
    if kind != "earlier":
        assert before == list(deliveries(alias).order_by("pk").values())
        assert [other] == holding(alias)


@each_kind
@pytest.mark.parametrize("columns", [{"slot": "a"}, *({"state": state} for state in State if state != State.READY)])
def test_what_takes_no_turn(alias: str, columns: dict[str, Any]) -> None:
    """What is in other hands already, such as a relay's that was faster, takes no turn."""
    pk = placed(alias, **columns)

    assert not deliveries(alias).take_turn(pk, "a")


@each_commit
def test_turn_that_another_takes_first(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who loses the race for a slot is told so by the database, and nothing else of it is lost."""
    pk, other = placed(alias), placed(alias)
    with before_it_wins(monkeypatch, lambda: deliveries(alias).filter(pk=other).update(slot="a")):
        assert not deliveries(alias)._win([pk], slot="a")

    with transaction.atomic(using=alias):
        assert 0 == deliveries(alias)._win([pk], slot="a")
        placed(alias, "b")  # the transaction goes on
    assert [other] == holding(alias)
    assert {"ready": 3} == states(alias)


# The end of one gives it to the next ---------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("publishing", [True, False])
def test_pass_turn(alias: str, publishing: bool) -> None:
    """What waits longest has the next turn: published by who gives it, if that can publish, else due for the relay."""
    placed(alias, "b")
    for columns in NO_HOLDERS.values():
        placed(alias, **columns)
    pk = placed(alias, claim=7)
    placed(alias)

    found = deliveries(alias).pass_turn("a", publishing=publishing)

    after = row(alias, pk)
    if publishing:
        assert found is not None
        assert (pk, after.token) == (found.pk, found.token)
        assert is_sent(after)
    else:
        assert found is None
        assert (State.READY, "a", None, 0) == (after.state, after.slot, after.claim, after.sends)
        assert {0} == seconds_left(alias, pk=pk)
        assert [pk] == [claimed.pk for claimed in deliveries(alias).claim(10, 60).rows]


@each_kind
@pytest.mark.parametrize("kind", [*HOLDERS, None])
def test_turn_that_is_not_passed(alias: str, kind: str | None) -> None:
    """While one has the turn, or where nobody waits, there is nothing to give; one statement says so."""
    if kind:
        placed(alias)
        holder(alias, kind)
    before = list(deliveries(alias).order_by("pk").values())

    with CaptureQueriesContext(connections[alias]) as queries:
        assert deliveries(alias).pass_turn("a", publishing=True) is None

    assert (before, 1) == (list(deliveries(alias).order_by("pk").values()), len(queries))


@each_kind
@pytest.mark.parametrize(
    ("options", "ago", "left"),
    [
        ({"countdown": 60}, 10, 50),
        ({"countdown": 60}, 90, None),
        ({"debounce": 60, "max_wait": 900}, 10, 50),
        ({"debounce": 60, "max_wait": 900}, 90, 0),
        ({"debounce": 30, "max_wait": 900, "countdown": 60}, 10, 50),
        ({"queue": "mails"}, 0, None),
    ],
    ids=str,
)
def test_turn_of_what_is_to_wait(alias: str, options: dict[str, Any], ago: float, left: int | None) -> None:
    """A countdown, and the quiet before what is debounced, count from the sending; the relay sees to the rest of it.

    What is debounced is always the relay's, which knows whether something newer waits.
    """
    pk = placed(alias, options=options, created_at=moment(-ago))
    found = deliveries(alias).pass_turn("a", publishing=True)

    assert (left is None) == (found is not None)
    after = row(alias, pk)
    assert "a" == after.slot
    if left is None:
        assert is_sent(after)
    else:
        assert (State.READY, {left}) == (after.state, seconds_left(alias))


@each_commit
@pytest.mark.parametrize("publishing", [True, False])
@pytest.mark.parametrize("meanwhile", ["the same", "another"])
def test_turn_that_another_gives_first(
    alias: str, publishing: bool, meanwhile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two who give the same turn, to the same or to two, one does; only that one publishes."""
    first, second = placed(alias), placed(alias)
    chosen = first if meanwhile == "the same" else second

    def act() -> None:
        deliveries(alias).filter(pk=chosen).update(slot="a", state=State.SENT)

    with before_it_wins(monkeypatch, act):
        assert deliveries(alias).pass_turn("a", publishing=publishing) is None

    assert [chosen] == holding(alias)
    assert {"sent": 1, "ready": 1} == states(alias)


# The relay admits ----------------------------------------------------------------------------------------------------


def admitted(alias: str, limit: int = 100, meanwhile: Callable[[], None] = lambda: None) -> list[int]:
    """Claim what is due, and return what of it may be published."""
    claim = deliveries(alias).claim(limit, 60)
    return [each.pk for each in deliveries(alias).admit(claim.claim, claim.rows, meanwhile)]


def due(alias: str, lane: str | None = "a", **columns: Any) -> int:
    return placed(alias, lane, due_at=moment(-1), **columns)


@each_kind
def test_admit(alias: str) -> None:
    """Of each lane the oldest is admitted, if its turn has come; the others are due no more, until it ends."""
    a, b, plain, b2, a2, a3 = (due(alias, lane) for lane in ("a", "b", None, "b", "a", "a"))
    given = due(alias, "c", slot="c")
    held = due(alias, "d")
    holder(alias, "running", "d")
    placed(alias, "e")
    late = due(alias, "e")

    assert [a, b, plain, given] == admitted(alias)

    assert {a: "a", b: "b", plain: None, given: "c"} == dict(
        deliveries(alias).filter(claim__isnull=False).values_list("pk", "slot")
    )
    for pk in (a2, a3, b2, held, late):
        after = row(alias, pk)
        assert (State.READY, None, None, None, None) == (
            after.state,
            after.slot,
            after.due_at,
            after.claim,
            after.sent_at,
        )
    assert [] == admitted(alias)


@each_kind
def test_nothing_asks_for_a_turn(alias: str) -> None:
    """A batch in which nothing waits for others costs no statement more."""
    due(alias, None)
    due(alias, "a", slot="a")
    claim = deliveries(alias).claim(100, 60)

    with CaptureQueriesContext(connections[alias]) as queries:
        assert claim.rows == deliveries(alias).admit(claim.claim, claim.rows)
    assert 0 == len(queries)


@each_kind
@pytest.mark.parametrize("count", [2, 20])
def test_statements_of_a_batch(alias: str, count: int) -> None:
    """However many lanes a batch has, they are admitted by as many statements."""
    for number in range(count):
        due(alias, f"{number}")
        due(alias, f"{number}")
    claim = deliveries(alias).claim(100, 60)

    with CaptureQueriesContext(connections[alias]) as queries:
        assert count == len(deliveries(alias).admit(claim.claim, claim.rows))
    assert 3 == len([query for query in queries if query["sql"].startswith(("SELECT", "UPDATE"))])


@each_commit
def test_admitted_beside_a_sender(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another takes one of the slots just then, that one waits, and all the others are admitted."""
    lanes = {lane: due(alias, lane) for lane in "abc"}
    rival, calls = placed(alias, "b"), []

    with before_it_wins(monkeypatch, lambda: deliveries(alias).filter(pk=rival).update(slot="b", state=State.SENT)):
        assert [lanes["a"], lanes["c"]] == admitted(alias, meanwhile=lambda: calls.append(True))

    assert 3 + 2 == len(calls)  # while turns are taken one by one, and for each that is looked at
    assert [lanes["a"], lanes["c"], rival] == holding(alias)
    assert None is row(alias, lanes["b"]).due_at is row(alias, lanes["b"]).claim


@each_commit
@pytest.mark.parametrize("columns", [{"claim": 7}, {"state": State.SENT, "slot": "a", "claim": None}], ids=str)
def test_admitted_too_late(alias: str, columns: dict[str, Any]) -> None:
    """What another relay has claimed meanwhile, or its sender has published, is left to that one."""
    pk = due(alias)
    claim = deliveries(alias).claim(100, 60)
    deliveries(alias).update(**columns)
    before = deliveries(alias).values().get()

    assert [] == [one.pk for one in deliveries(alias).admit(claim.claim, claim.rows)]
    assert ([pk], before) == (ids(deliveries(alias)), deliveries(alias).values().get())


# What is debounced ---------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(
    ("ago", "newest", "left"),
    [
        (20, 5, 15),  # seconds since the first and the newest were sent, and until it is quiet
        (20, 19, 1),
        (40, 21, None),
        (90, 5, 10),  # max_wait is over before
        (101, 0, None),
        (40, None, None),
    ],
)
def test_debounce(alias: str, ago: float, newest: float | None, left: int | None) -> None:
    """A debounced delivery waits for as long as newer ones come, but not for ever; then all at once are published."""
    options = {"debounce": 20, "max_wait": 100}
    pk = due(alias, options=options, created_at=moment(-ago), slot="a")
    if newest is not None:
        placed(alias, options=options, created_at=moment(-ago))
        placed(alias, options=options, created_at=moment(-newest))

    assert ([pk] if left is None else []) == admitted(alias)

    after = row(alias, pk)
    assert "a" == after.slot
    if left is not None:
        assert (None, None) == (after.claim, after.sent_at)
        assert seconds_left(alias, pk=pk) <= {left - 1, left}


@each_kind
def test_debounce_of_many(alias: str) -> None:
    """Each lane of a batch has a quiet of its own; what waits behind none is published."""
    options = {"debounce": 20, "max_wait": 100}
    heads = [due(alias, lane, options=options, created_at=moment(-30)) for lane in "abcd"]
    plain = due(alias, None)
    for lane, ago in (("a", 5), ("b", 10), ("c", 25)):
        placed(alias, lane, options=options, created_at=moment(-ago))

    assert [*heads[2:], plain] == admitted(alias)
    left = [seconds_left(alias, pk=pk).pop() for pk in heads[:2]]
    assert left in ([15, 10], [14, 9], [15, 9], [14, 10])


# The worker reads ----------------------------------------------------------------------------------------------------


@each_kind
def test_followers(alias: str) -> None:
    """What waits in a lane is read, the oldest first, with the size of each payload instead of itself."""
    holder(alias)
    large = {"traceback": "why"}
    behind = [placed(alias, options={"number": number}, payload="x" * number, **large) for number in range(4)]
    for columns in ({"lane": "b"}, {"lane": None}, {"state": State.FAILED}, {"state": State.DONE}):
        placed(alias, **columns)

    with CaptureQueriesContext(connections[alias]) as queries:
        found = deliveries(alias).followers("a", 3)

    assert behind[:3] == [one.pk for one in found]
    assert 1 == len(queries)
    assert [(None, n, {"number": n}) for n in range(3)] == [(one.payload, one.size, one.options) for one in found]
    kept = deliveries(alias).filter(pk__in=behind[:3]).order_by("pk").values()
    assert [{**row, "payload": None, "traceback": None} for row in kept] == [
        {name: getattr(one, name) for name in (field.attname for field in one._meta.concrete_fields)} for one in found
    ]


# What is left behind -------------------------------------------------------------------------------------------------


@each_kind
def test_strays(alias: str) -> None:
    """Lanes in which deliveries wait though none has the slot are found, each once."""
    for lane in "abcdef":
        placed(alias, lane)
        placed(alias, lane)
    for lane, kind in zip("bcde", HOLDERS, strict=True):
        holder(alias, kind, lane)
    placed(alias, "g", state=State.FAILED)
    placed(alias, None)

    placed(alias, "h", due_at=moment(60))
    placed(alias, "h")

    assert (["a", "f"], "") == deliveries(alias).strays("", 100)


@each_kind
def test_strays_in_parts(alias: str) -> None:
    """No statement looks at more lanes than it is told to; a lane of many costs no more than one of few."""
    for lane in "abbbbbcd":
        placed(alias, lane)
    holder(alias, lane="c")

    seen, after = [], ""
    for _ in range(3):
        lanes, after = deliveries(alias).strays(after, 2)
        seen.append((lanes, after))
    assert [(["a", "b"], "b"), (["d"], "d"), ([], "")] == seen


# What people do ------------------------------------------------------------------------------------------------------


@each_commit
@pytest.mark.parametrize("verb", ["drop", "discard"])
@pytest.mark.parametrize("in_transaction", [True, False])
def test_drop(alias: str, verb: str, in_transaction: bool) -> None:
    """What is deleted lets the next of its key go on; in a transaction, after its commit."""
    kind = "blocked" if verb == "discard" else "running"
    heads = [holder(alias, kind, lane) for lane in "ab"]
    parked = placed(alias, state=State.FAILED)
    behind = [placed(alias, lane) for lane in "aba"]
    kept = holder(alias, "sent", "c")
    rows = deliveries(alias).filter(pk__in=[*heads, parked])

    if in_transaction:
        with transaction.atomic(using=alias):
            assert 3 == getattr(rows, verb)()
            assert [kept] == holding(alias)
    else:
        assert 3 == getattr(rows, verb)()

    assert [*behind[:2], kept] == sorted(holding(alias))
    assert {0} == seconds_left(alias, pk__in=behind[:2])
    assert [*behind, kept] == sorted(ids(deliveries(alias)))


@each_commit
def test_drop_of_what_waits(alias: str) -> None:
    """What waits behind something that is deleted goes on at once, also if that had no turn yet; what is parked has
    none to pass."""
    first, second = placed(alias, due_at=moment(60)), placed(alias)
    parked, behind = placed(alias, "b", state=State.FAILED), placed(alias, "b")

    assert 2 == deliveries(alias).filter(pk__in=[first, parked]).drop()

    assert [second] == holding(alias)
    assert {0} == seconds_left(alias, pk=second)
    assert [second, behind] == ids(deliveries(alias).order_by("pk"))


@each_commit
def test_drop_that_is_rolled_back(alias: str) -> None:
    """What is not deleted after all keeps its turn."""
    head = holder(alias, "blocked")
    placed(alias)

    with transaction.atomic(using=alias):
        deliveries(alias).discard()
        transaction.set_rollback(True, using=alias)

    assert [head] == holding(alias)


@each_database("default")
def test_error_after_a_drop(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a commit an error is no more the caller's: the relay finds what is left behind."""
    holder(alias, "blocked")
    placed(alias)

    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError("away")

    monkeypatch.setattr(DeliveryQuerySet, "pass_turn", fail)
    with transaction.atomic(using=alias):
        assert 1 == deliveries(alias).discard()
    assert {"ready": 1} == states(alias)


@each_kind
def test_blocked(alias: str) -> None:
    """What has failed and blocks its key is listed, with the number of those that wait behind it."""
    one, two, free = (holder(alias, "blocked", lane) for lane in "abc")
    placed(alias, "d", state=State.FAILED)
    holder(alias, "running", "e")
    for lane in "aababe":
        placed(alias, lane)
    placed(alias, "a", state=State.DONE)

    deliveries(alias).filter(pk__in=[one, free]).update(key="its own")
    deliveries(alias).filter(lane__in="ab", state=State.READY).update(key="behind")

    found = {each.pk: each.behind or 0 for each in deliveries(alias).blocked()}
    assert {one: 3, two: 2, free: 0} == found
    keys = dict(deliveries(alias).blocked().values_list("pk", "known_key"))
    assert {one: "its own", two: "behind", free: "its own"} == keys
    assert [5, 3, 0] == [deliveries(alias).filter(pk__in=pks).behind() for pks in ([one, two, free], [one], [free])]
    assert 5 == deliveries(alias).behind() == deliveries(alias).failed().behind()


@each_kind
def test_retry_of_what_blocks(alias: str) -> None:
    """What blocks its key and is retried is the next of it."""
    head, younger = holder(alias, "blocked"), due(alias)

    assert 1 == deliveries(alias).retry()
    assert [head] == admitted(alias)
    assert ("a", None) == (row(alias, head).slot, row(alias, younger).slot)


@each_kind
@pytest.mark.parametrize("is_busy", [True, False])
def test_retry_of_what_was_parked(alias: str, is_busy: bool) -> None:
    """What was parked and is retried waits for the turn of its key, and has it before all that are younger."""
    parked = placed(alias, state=State.FAILED)
    running = holder(alias) if is_busy else 0
    younger = due(alias)

    assert 1 == deliveries(alias).retry()
    assert ([] if is_busy else [parked]) == admitted(alias)
    assert [running or parked] == holding(alias)
    deliveries(alias).filter(slot="a").erase()
    deliveries(alias).pass_turn("a")
    assert [parked if is_busy else younger] == holding(alias)
