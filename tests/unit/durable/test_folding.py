"""Folding: what several sendings of a key become, and that nothing of them is lost or run twice on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from django.db import OperationalError, connections
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from django_celery_signals.durable import folding
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.folding import fold
from django_celery_signals.durable.hold import Held, opened
from django_celery_signals.durable.reference import Reference
from django_celery_signals.envelope import Envelope, Reader, Sending, write
from django_celery_signals.event import running
from django_celery_signals.exceptions import DecodeError
from django_celery_signals.names import find_signal
from django_celery_signals.wire import dump, parse
from tests.delivering import burnt, moment, states
from tests.elsewhere import elsewhere
from tests.holding import bell, send, work
from tests.parameters import each_database
from tests.receiving import Receiving
from tests.shop.models import Order, PriorityOrder, RushOrder, Tag, WeightClass

each_kind = each_database("default", "postgres", "mariadb")

ring = Signal()


def sent(signal: Signal = ring, changes: Any = None, **kwargs: Any) -> Envelope:
    """Return a sending as it is read from its row."""
    envelope = write(Sending(signal=signal, sender=Order, kwargs=kwargs), "shop.index", using="default")
    return parse(dump(replace(envelope, changes=changes or {})))


def saved(created: bool = False, fields: Any = None, **more: Any) -> Envelope:
    return sent(post_save, created=created, update_fields=frozenset(fields) if fields else None, **more)


def folded(*envelopes: Envelope) -> Envelope:
    """Return what sendings become that waited together, the oldest first, as it is read from its row."""
    found, *rest = envelopes
    for envelope in rest:
        found = parse(dump(fold(found, envelope)))
    return found


def said(envelope: Envelope) -> dict[str, Any]:
    """Return the arguments of a sending that wait in its envelope, but for the database's alias."""
    reader = Reader(envelope)
    return {name: reader.value(node) for name, node in envelope.kwargs.items() if name != "using"}


# The rules -----------------------------------------------------------------------------------------------------------


def test_newest() -> None:
    """A run that stands for several sendings is the newest one's, with its identity, and says of how many others."""
    one, two, three = sent(number=1, only=True), sent(number=2), sent(number=3, more=[])
    found = folded(one, two, three)

    assert {"number": 3, "more": []} == said(found)
    assert replace(three, event=replace(three.event, coalesced=2)) == found


def test_count() -> None:
    """What stands for others already counts for as many: a run that is repeated folds once more."""
    assert 5 == folded(folded(sent(), sent(), sent()), folded(sent(), sent()), sent()).event.coalesced


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([saved(True), saved()], True),
        ([saved(), saved(), saved(True), saved()], True),
        ([saved(), saved()], False),
        ([saved(True), sent(m2m_changed, action="post_add")], True),
        ([saved(), sent(m2m_changed, action="post_add")], False),
        ([sent(pre_save), saved(True)], True),
        ([sent(created=1), sent(created=False)], False),
        ([sent(created="yes"), sent(number=5)], None),
        ([sent(created=True), sent(created="no")], True),
        ([sent(), sent()], None),
    ],
)
def test_created(given: list[Envelope], expected: bool | None) -> None:
    """A run is of a new object if one of its sendings was, also if the newest does not say so; only True counts."""
    assert expected is said(folded(*given)).get("created")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([saved(fields={"a"}), saved(fields={"b", "a"})], frozenset({"a", "b"})),
        ([saved(fields={"a"}), saved(fields={"b"}), saved(fields={"c"})], frozenset({"a", "b", "c"})),
        ([saved(fields={"a"}), saved()], None),
        ([saved(), saved(fields={"a"})], None),
        ([saved(), saved()], None),
        ([saved(fields={"a"}), sent(m2m_changed)], frozenset({"a"})),
        ([saved(), sent(m2m_changed)], None),
        ([sent(m2m_changed), saved(fields={"a"})], frozenset({"a"})),
        ([sent(update_fields={"a"}), sent(update_fields=frozenset("b"))], frozenset({"a", "b"})),
        ([sent(update_fields=frozenset()), sent(update_fields=frozenset())], frozenset()),
        ([sent(update_fields={"a"}), sent(update_fields=["b"])], ["b"]),
        ([sent(update_fields={5}), sent(update_fields={"a"})], {"a"}),
        ([sent(update_fields="a"), sent(update_fields=None)], None),
        ([sent(), sent()], "not there"),
    ],
)
def test_update_fields(given: list[Envelope], expected: Any) -> None:
    """The names of the fields that were saved are those of all sendings, unless one saved them all; what is no set of
    names is the newest's."""
    found = said(folded(*given)).get("update_fields", "not there")

    assert (expected, type(expected)) == (found, type(found))


def test_changes() -> None:
    """A change goes from the first old value to the last new one, and what changed only once is as it was."""
    one = sent(changes={"status": ["new", "paid"], "total": [1, 2]})
    two = sent(changes={"status": ["paid", "sent"], "notes": [None, {"$": "tuple", "v": [1]}]})
    found = folded(one, sent(), two, sent(changes={"status": ["sent", "new"]}))

    assert {"status": ("new", "new"), "total": (1, 2), "notes": (None, (1,))} == Reader(found).changes()


@pytest.mark.parametrize("node", [{"$": "obj", "v": 0}, [[{"$": "obj", "v": 0}]], {"$": "tuple", "v": [{"$": "obj"}]}])
@pytest.mark.parametrize("side", [0, 1])
def test_changes_that_hold_an_instance(node: Any, side: int) -> None:
    """An older change to or from an instance is left out: its instance stays behind with the older sending."""
    pair = [node, 5] if side else [5, node]
    newest = [{"$": "obj", "v": 0}, 7]
    found = fold(sent(changes={"one": pair, "two": pair, "three": [1, 2]}), sent(changes={"two": newest}))

    assert {"two": newest, "three": [1, 2]} == found.changes


def test_instances() -> None:
    """Instances are the newest sending's, and so are the references to them."""
    one, two = sent(instance=Order(pk=1), other=Order(pk=2)), sent(other=Order(pk=3))
    found = fold(one, two)

    assert (two.objects, two.kwargs) == (found.objects, found.kwargs)
    assert [3] == [entry["pk"] for entry in found.objects]


@pytest.mark.parametrize("signal", [pre_delete, post_delete])
def test_delete(signal: Signal) -> None:
    """A delete supersedes what was before it, and nothing of that is added to it."""
    delete = sent(signal, origin="shop")
    found = folded(saved(True, changes={"a": [1, 2]}), saved(fields={"a"}), delete)

    assert (signal, {"origin": "shop"}, {}) == (find_signal(*found.signal_names), said(found), found.changes)
    assert (2, delete.event.id) == (found.event.coalesced, found.event.id)


def test_object_that_comes_back() -> None:
    """What is made anew after a delete is a new object: nothing of the one before it is added."""
    again = saved(True, {"b"}, changes={"b": [3, 4]})
    found = folded(
        saved(fields={"a"}, changes={"a": [1, 2], "b": [1, 2]}), sent(post_delete), again, saved(fields={"c"})
    )

    assert (True, frozenset({"b", "c"})) == (said(found)["created"], said(found)["update_fields"])
    assert {"b": (3, 4)} == Reader(found).changes()
    assert 3 == found.event.coalesced


@pytest.mark.parametrize("signal", [pre_delete, post_delete])
def test_what_follows_a_delete(signal: Signal) -> None:
    """What comes after a delete and saves nothing, such as relations that go with it, leaves the delete standing."""
    delete = sent(signal, origin="shop")
    found = folded(saved(True), delete, sent(m2m_changed, action="post_clear"), sent(number=5))

    assert replace(delete, event=replace(delete.event, coalesced=3)) == found


@pytest.mark.parametrize("signal", [pre_save, post_save])
def test_what_saves_after_a_delete(signal: Signal) -> None:
    """What saves the row anew is the newest, as ever."""
    again = sent(signal, number=5)
    found = folded(saved(True, fields={"a"}, changes={"a": [1, 2]}), sent(post_delete), again)

    assert replace(again, event=replace(again.event, coalesced=2)) == found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Order(pk=1), Order(pk=2)),
        (Order(pk=1), Tag(pk=1)),
        (Order(pk=1), None),
        (None, RushOrder(pk=1)),
        (Order(), Order(pk=1)),
    ],
    ids=repr,
)
def test_two_rows_of_a_key(one: Any, other: Any) -> None:
    """Of two rows that share a key nothing adds up: a run is the newest's, and a delete is of its own row alone."""
    older = saved(True, fields={"a"}, changes={"a": [1, 2]}, **({"instance": one} if one else {}))
    newer = saved(fields={"b"}, **({"instance": other} if other else {}))
    delete = sent(post_delete, **({"instance": one} if one else {}))

    for before in (older, delete):
        assert replace(newer, event=replace(newer.event, coalesced=1)) == fold(before, newer)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Order(pk=1), PriorityOrder(pk=1)),
        (Order(pk=1), RushOrder(pk=1)),
        (RushOrder(pk=1), Order(pk=1)),
        (Order(), Order()),
        (Order(pk="1"), Order(pk=1)),
        (WeightClass(pk=Decimal("2.5")), WeightClass(pk=Decimal("2.50"))),
    ],
    ids=repr,
)
def test_one_row_of_two_classes(one: Any, other: Any) -> None:
    """A row is one, whichever of its classes it comes in, and in whatever form its key is given."""
    found = fold(saved(True, fields={"a"}, instance=one), saved(fields={"b"}, instance=other))

    assert found.kwargs["created"] is True
    assert frozenset({"a", "b"}) == Reader(found).value(found.kwargs["update_fields"])


NAMES = st.sampled_from("abc")
SENDINGS = st.one_of(
    st.fixed_dictionaries(
        {
            "signal": st.just("save"),
            "created": st.booleans(),
            "fields": st.none() | st.frozensets(NAMES),
            "changes": st.dictionaries(NAMES, st.tuples(st.integers(0, 9), st.integers(0, 9))),
        }
    ),
    st.fixed_dictionaries({"signal": st.just("m2m"), "changes": st.just({})}),
    st.fixed_dictionaries({"signal": st.just("delete"), "changes": st.just({})}),
)


@given(st.lists(SENDINGS, min_size=1, max_size=6))
def test_any_sendings(sendings: list[dict[str, Any]]) -> None:
    """Whatever is sent of an object, the run stands for all since it was last deleted, and is the newest."""
    make: dict[str, Callable[..., Envelope]] = {
        "save": lambda created, fields, changes: sent(
            post_save, changes, created=created, update_fields=fields, number=0
        ),
        "m2m": lambda changes: sent(m2m_changed, action="post_add"),
        "delete": lambda changes: sent(post_delete, origin="shop"),
    }
    found = folded(*(make[one["signal"]](**{name: one[name] for name in one if name != "signal"}) for one in sendings))

    kept: list[dict[str, Any]] = []
    for one in sendings:
        if not (one["signal"] == "m2m" and kept and kept[-1]["signal"] == "delete"):  # it brings no row back
            kept.append(one)
    last = kept[-1]["signal"]
    begin = max((at + (last != "delete") for at, one in enumerate(kept) if one["signal"] == "delete"), default=0)
    since = kept[begin:]
    newest: dict[str, Any] = {"save": {"number": 0}, "m2m": {"action": "post_add"}, "delete": {"origin": "shop"}}
    expected = newest[last]
    saves = [one for one in since if one["signal"] == "save"]
    if saves:
        expected["created"] = any(one["created"] for one in saves)
        fields = [one["fields"] for one in saves]
        expected["update_fields"] = None if None in fields else frozenset().union(*fields)
    changes: dict[str, tuple[int, int]] = {}
    for one in since:
        changes.update({name: (changes.get(name, (old,))[0], new) for name, (old, new) in one["changes"].items()})
    assert expected == said(found)
    assert changes == Reader(found).changes()
    assert len(sendings) - 1 == found.event.coalesced


# In the database -----------------------------------------------------------------------------------------------------


@pytest.fixture
def receive(receiving: Receiving) -> Callable[..., Any]:
    """Declares a receiver of the bell that coalesces."""

    def receive(function: Callable[..., Any] = lambda **kwargs: None, **options: Any) -> Any:
        return receiving(bell, function, **{"guarantee": "durable", "coalesce": True, "key": str, **options})

    return receive


def ids(alias: str) -> list[int]:
    return list(deliveries(alias).order_by("pk").values_list("pk", flat=True))


def open_first(alias: str, app: Celery) -> Held:
    """Open the oldest delivery as a worker does that has its message."""
    row = deliveries(alias).order_by("pk")[0]
    assert deliveries(alias).take_turn(row.pk, row.lane)
    return open_it(alias, app, row)


def open_it(alias: str, app: Celery, row: Any) -> Held:
    reference = Reference(alias=alias, id=row.pk, token=row.token, receiver=row.receiver)
    held = opened(app.tasks[row.receiver], reference)
    assert held is not None
    return held


def rows(alias: str) -> list[dict[str, Any]]:
    """Return all that is kept of deliveries, but for what the opening has changed."""
    changed = ("token", "due_at", "state", "sent_at", "claim", "sends")
    found = deliveries(alias).order_by("pk").values()
    return [{name: value for name, value in row.items() if name not in changed} for row in found]


@each_kind
def test_fold_in(alias: str, celery_app: Celery, receive: Any) -> None:
    """What waits behind an opened delivery becomes part of it, in the row, too; what waits elsewhere stays."""
    receive(key=lambda key: key, queue="slow")
    for key, number in (("a", 1), ("b", 2), ("a", 3), ("a", 4)):
        send(alias, key=key, number=number)
    first, other, _, last = deliveries(alias).order_by("pk")
    deliveries(alias).filter(pk=last.pk).update(options={"queue": "slow", "priority": 3})
    held = open_first(alias, celery_app)

    envelope = held.envelope()

    assert ({"key": "a", "number": 4}, 2) == (said(envelope), envelope.event.coalesced)
    assert [first.pk, other.pk] == ids(alias)
    row = deliveries(alias).get(pk=first.pk)
    assert envelope == parse(row.payload)
    columns = (last.event_id, last.signal, last.summary, {"queue": "slow", "priority": 3})
    assert columns == (row.event_id, row.signal, row.summary, row.options)
    assert columns == (held.known.event_id, held.known.signal, held.known.summary, held.known.options)
    assert (State.RUNNING, held.lease.token, first.lane) == (row.state, row.token, row.slot)
    assert other.payload == deliveries(alias).get(pk=other.pk).payload


@each_kind
@pytest.mark.parametrize("newest", ["caused", "first"])
def test_lineage(alias: str, newest: str, celery_app: Celery, receive: Any) -> None:
    """A run that stands for several sendings has the lineage of the newest, in its columns as in its payload."""
    receive(key=lambda number: 0)
    cause = sent(number=0).event
    for one in (newest == "first", newest == "caused"):
        with running(cause) if one else nullcontext():
            send(alias, number=1)
    assert [(0, None), (1, cause.id)] == sorted(deliveries(alias).values_list("depth", "parent_id"))

    event = open_first(alias, celery_app).envelope().event

    (row,) = deliveries(alias).all()
    assert event.id == row.event_id
    caused = (1, cause.id, cause.id) if newest == "caused" else (0, None, None)
    assert caused == (row.depth, row.parent_id, row.root_id)
    assert caused[:2] == (event.depth, event.parent_id)


@each_kind
def test_head_that_is_younger(alias: str, celery_app: Celery, receive: Any) -> None:
    """What is older than the delivery that was opened, and waits behind it, is folded in the order of the sendings."""
    receive(key=lambda number: 0)
    for number in range(3):
        send(alias, number=number, created=number == 0)
    _, second, third = deliveries(alias).order_by("pk")
    deliveries(alias).filter(pk=second.pk).update(slot=second.lane, state=State.SENT)

    envelope = open_it(alias, celery_app, second).envelope()

    assert ({"number": 2, "created": True}, 2) == (said(envelope), envelope.event.coalesced)
    (row,) = deliveries(alias).all()
    assert (second.pk, third.event_id, envelope) == (row.pk, row.event_id, parse(row.payload))


@each_kind
def test_head_that_is_the_newest(alias: str, celery_app: Celery, receive: Any) -> None:
    """What is older takes nothing from the newest sending, be it the one that was opened."""
    receive(key=lambda number: 0)
    for number in range(2):
        send(alias, number=number)
    newest = deliveries(alias).latest("pk")
    deliveries(alias).filter(pk=newest.pk).update(slot=newest.lane, state=State.SENT)

    assert {"number": 1} == said(open_it(alias, celery_app, newest).envelope())
    (row,) = deliveries(alias).all()
    assert (newest.pk, newest.event_id, newest.summary) == (row.pk, row.event_id, row.summary)


@each_kind
def test_nothing_to_fold(alias: str, celery_app: Celery, receive: Any) -> None:
    """Where nothing waits, that is asked, and nothing is written."""
    receive(key=lambda number: 0)
    send(alias, number=1)
    held = open_first(alias, celery_app)

    with CaptureQueriesContext(connections[alias]) as queries:
        assert {"number": 1} == said(held.envelope())
    assert ["SELECT"] == [query["sql"].split()[0] for query in queries]


SOON, LATER = moment(60).isoformat(), moment(3600).isoformat()


@each_database("default")
@pytest.mark.parametrize(
    ("expires", "together"),
    [
        ([SOON, LATER, SOON], LATER),
        ([LATER, SOON], LATER),
        ([SOON, None], None),
        ([None, SOON], None),
        ([None, None], None),
        (["2030-01-01T12:00:00+02:00", "2030-01-01T11:00:00+00:00"], "2030-01-01T11:00:00+00:00"),
    ],
    ids=["middle", "first", "head", "newest", "none", "zones"],
)
def test_expiry(alias: str, celery_app: Celery, receive: Any, expires: list[Any], together: Any) -> None:
    """A run expires with the last of its sendings; if one of them never does, not at all."""
    receive(key=lambda number: 0)
    for number, at in enumerate(expires):
        send(alias, number=number)
        options = {"priority": number} | ({"expires": at} if at else {})
        deliveries(alias).filter(pk=ids(alias)[-1]).update(options=options)
    held = open_first(alias, celery_app)

    held.envelope()

    options = {"priority": len(expires) - 1} | ({"expires": together} if together else {})
    assert options == held.known.options == deliveries(alias).get().options


@each_database("default")
def test_texts_that_a_database_would_refuse(alias: str, celery_app: Celery, receive: Any) -> None:
    """What is shown of a run is what a sending's own row shows, with whatever name (H18)."""
    receive(key=lambda number: 0)
    for sender in ("first", "zero\0half\ud800" + "long" * 100):
        with override_settings(DJANGO_CELERY_SIGNALS={"FAST_PATH_LIMIT": 0}):
            bell.send(sender=sender, using=alias, number=0)
    summary = deliveries(alias).latest("pk").summary

    open_first(alias, celery_app).envelope()
    assert summary == deliveries(alias).get().summary


def write_damage(alias: str, pk: int, damage: Any) -> None:
    """Change what is kept of a delivery."""
    if callable(damage):
        damage = json.dumps(damage(json.loads(deliveries(alias).get(pk=pk).payload)))
    deliveries(alias).filter(pk=pk).update(**({"folds": False} if damage is False else {"payload": damage}))


DAMAGES: dict[str, Any] = {
    "erased": None,
    "empty": "",
    "no JSON": "{",
    "newer version": lambda body: {**body, "version": 2},
    "no event": lambda body: {**body, "id": 5},
    "does not fold": False,
}
# Of another shape than is written, though it can be read as an envelope.
MISSHAPEN: dict[str, Any] = {
    "changes": lambda body: {**body, "changes": ["status"]},
    "change": lambda body: {**body, "changes": {"number": []}},
    "names": lambda body: {**body, "kwargs": [["update_fields", {"$": "frozenset"}]]},
    "kwargs": lambda body: {**body, "kwargs": [["update_fields", {"$": "frozenset", "v": [["a"]]}]]},
}


@each_kind
@pytest.mark.parametrize("kind", DAMAGES)
def test_what_cannot_be_folded(alias: str, celery_app: Celery, receive: Any, kind: str) -> None:
    """What cannot be read, or must not be folded, waits for its turn, and so does what waits behind it."""
    receive(key=lambda number: 0)
    for number in range(5):
        send(alias, number=number)
    first, _, third, *_ = ids(alias)
    write_damage(alias, third, DAMAGES[kind])
    waiting = rows(alias)[2:]

    envelope = open_first(alias, celery_app).envelope()

    assert ({"number": 1}, 1) == (said(envelope), envelope.event.coalesced)
    head, *others = rows(alias)
    assert first == head["id"]
    assert waiting == others


@each_database("default")
@pytest.mark.parametrize("kind", MISSHAPEN)
def test_what_is_misshapen(alias: str, celery_app: Celery, receive: Any, kind: str) -> None:
    """What is of another shape than is ever written does not fail the run before it."""
    receive(key=lambda number: 0)
    for number in range(3):
        send(alias, number=number)
    first, second, _ = ids(alias)
    for pk in (first, second):
        write_damage(alias, pk, lambda body: {**body, "changes": {"number": [1, 2]}})
    write_damage(alias, second, MISSHAPEN[kind])

    assert (2 if kind == "kwargs" else 0) == open_first(alias, celery_app).envelope().event.coalesced


@each_kind
@pytest.mark.parametrize("payload", [None, "{"])
def test_head_that_cannot_be_read(alias: str, celery_app: Celery, receive: Any, payload: str | None) -> None:
    """A delivery that cannot be read itself takes nothing along."""
    receive(key=lambda number: 0)
    for number in range(2):
        send(alias, number=number)
    held = open_first(alias, celery_app)
    deliveries(alias).filter(pk=held.lease.pk).update(payload=payload)
    held.known.payload = payload
    before = rows(alias)

    with pytest.raises(DecodeError):
        held.envelope()
    assert before == rows(alias)


MEANWHILE: dict[str, dict[str, Any]] = {
    "has its turn": {"slot": "x"},
    "is sent": {"state": State.SENT},
    "runs": {"state": State.RUNNING, "due_at": moment(60)},
    "has failed": {"state": State.FAILED},
}


@each_kind
@pytest.mark.parametrize("meanwhile", [*MEANWHILE, "is gone", "lease is lost"])
def test_fold_that_comes_too_late(
    alias: str, celery_app: Celery, receive: Any, meanwhile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of those that wait is in other hands by now, or the delivery itself, nothing is folded at all."""
    receive(key=lambda number: 0)
    for number in range(3):
        send(alias, number=number)
    held = open_first(alias, celery_app)
    known = dict(vars(held.known))
    first, second, _ = ids(alias)
    read, before = folding._read, []

    def read_and_be_late(*args: Any) -> Any:
        found = read(*args)
        if meanwhile == "is gone":
            deliveries(alias).filter(pk=second).erase()
        elif meanwhile == "lease is lost":
            deliveries(alias).filter(pk=first).update(token=7)
        else:
            deliveries(alias).filter(pk=second).update(**MEANWHILE[meanwhile])
        before.extend(rows(alias))
        return found

    monkeypatch.setattr(folding, "_read", read_and_be_late)
    envelope = held.envelope()

    assert ({"number": 0}, 0) == (said(envelope), envelope.event.coalesced)
    assert before == rows(alias)
    assert known == vars(held.known)


@each_database("postgres", "mariadb")
def test_fold_is_one_transaction(alias: str, celery_app: Celery, receive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others see all of what is folded, or nothing: never a sending that is in two rows, or in none."""
    receive(key=lambda number: 0)
    for number in range(3):
        send(alias, number=number)
    held, seen = open_first(alias, celery_app), []
    erase = deliveries(alias).__class__.erase

    def look_and_erase(self: Any) -> int:
        count = erase(self)
        seen.append(elsewhere(lambda: rows(alias)))
        return count

    before = rows(alias)
    monkeypatch.setattr(deliveries(alias).__class__, "erase", look_and_erase)
    held.envelope()

    assert [before] == seen
    assert 1 == len(rows(alias))


@each_kind
def test_more_than_one_run_stands_for(alias: str, celery_app: Celery, receive: Any, monkeypatch: Any) -> None:
    """A run stands for a bounded number of sendings; those behind them are the next run's."""
    monkeypatch.setattr(folding, "MOST", 2)
    receive(key=lambda number: 0)
    for number in range(5):
        send(alias, number=number)

    assert {"number": 2} == said(open_first(alias, celery_app).envelope())
    assert {"running": 1, "ready": 2} == states(alias)


@each_kind
@pytest.mark.parametrize(("heaviest", "last"), [(0, 1), (0.5, 1), (1.5, 1), (2.5, 2), (9, 4)])
def test_more_than_memory_is_for(
    alias: str, celery_app: Celery, receive: Any, monkeypatch: Any, heaviest: float, last: int
) -> None:
    """A run stands for as much as has room in memory, and at least for one more; no other payload is read."""
    receive(key=lambda number: 0)
    for number in range(5):
        send(alias, number=number, text="x" * 500)
    size = len(deliveries(alias).first().payload)
    monkeypatch.setattr(folding, "HEAVIEST", heaviest * size)
    held, read = open_first(alias, celery_app), []
    monkeypatch.setattr(folding, "parse", lambda text: read.append(text) or parse(text))

    assert last == said(held.envelope())["number"]
    assert {"running": 1, "ready": 4 - last} == {"ready": 0, **states(alias)}
    assert 1 + last == len(read)


@each_kind
@pytest.mark.parametrize("code", ["40001", "53300"])
def test_fold_that_meets_another(
    alias: str, celery_app: Celery, receive: Any, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """When the database ends a fold because of another's transaction, the delivery runs alone; an outage is raised."""
    receive(key=lambda number: 0)
    for number in range(2):
        send(alias, number=number)
    held, before = open_first(alias, celery_app), rows(alias)

    def erase(_: Any) -> int:
        error = OperationalError("not now")
        error.sqlstate = code  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(deliveries(alias).__class__, "erase", erase)
    if code == "40001":
        assert {"number": 0} == said(held.envelope())
    else:
        with pytest.raises(OperationalError):
            held.envelope()
    assert before == rows(alias)


@each_kind
def test_run_that_is_repeated(alias: str, celery_app: Celery, receive: Any) -> None:
    """A retry is of all that was folded before, and of what came meanwhile; it has used up its attempts."""
    seen: list[Any] = []

    def act(event: Any, number: int, created: bool) -> None:
        seen.append((number, created, event.coalesced))
        if len(seen) == 1:
            raise ValueError

    receive(act, key=lambda number: 0)
    send(alias, number=0, created=True)
    send(alias, number=1, created=False)
    first, _ = ids(alias)
    assert "RETRY" == work(celery_app, alias, pk=first).state
    assert {(1, 0, 0)} == burnt(alias)
    send(alias, number=2, created=False)

    assert "SUCCESS" == work(celery_app, alias, pk=first).state
    assert [(1, True, 1), (2, True, 2)] == seen
    assert {} == states(alias)
