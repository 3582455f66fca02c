"""Several deliveries of one message: each is as if it had run alone, and what is no single one's harms none of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest
from celery import Celery, current_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.signals import task_postrun
from django.core.cache import caches
from django.db import Error, IntegrityError, OperationalError, connections, transaction
from django.db.models import F
from django.dispatch import Signal
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation
from psycopg import IsolationLevel

from django_celery_signals import Discard, Event, Fail, RetryAfter, current_event, policy
from django_celery_signals import together as module
from django_celery_signals.durable import hold, lease, savepoints
from django_celery_signals.durable import together as durable_together
from django_celery_signals.durable.deliveries import State, deliveries
from django_celery_signals.durable.packing import packed
from django_celery_signals.durable.reference import Chunk
from django_celery_signals.exceptions import DecodeError, LeaseLost
from django_celery_signals.signals import (
    delivery_failed,
    receiver_discarded,
    receiver_failed,
    receiver_started,
    receiver_succeeded,
)
from django_celery_signals.wire import ARGUMENT
from tests.delivering import are_due, burnt, moment, place, seconds_left, states
from tests.drain import drain
from tests.elsewhere import connecting, elsewhere, execute, other_transaction
from tests.holding import MESSAGE, bell, message_together, send, trace, work, work_together
from tests.making import Tasks
from tests.parameters import each_database, needs
from tests.receiving import Receiving, hearing
from tests.shop.models import Country, Customer, Order, Parcel, Product, RushOrder, Tag
from tests.waiting import wait_until

each_kind = each_database("default", "postgres", "mariadb")
each_server = each_database("postgres", "mariadb")

TABLE = "django_celery_signals_delivery"
MANY_KINDS = ("default", "postgres", "mariadb")


class Boom(Exception):
    """What receivers raise here."""


@pytest.fixture
def receive(receiving: Receiving) -> Any:
    """Declares a durable receiver of the bell whose deliveries can be put together."""
    return lambda function, **options: receiving(
        bell, function, **{"guarantee": "durable", "chunk_size": None if options.get("batch") else 50, **options}
    )


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jitter is chance; here every pause has its full length, and waiting for a database is short."""
    monkeypatch.setattr(policy.random, "uniform", lambda low, high: high)
    for one in (lease, hold, durable_together):
        monkeypatch.setattr(one, "PAUSE", 0.01)


def leave(alias: str, name: str = "effect") -> None:
    """Leave an effect."""
    Tag.objects.using(alias).create(name=name)


def tags(alias: str) -> list[str]:
    """Return the effects of receivers."""
    return sorted(Tag.objects.using(alias).values_list("name", flat=True))


def send_each(alias: str, *names: str) -> list[int]:
    """Send an event for each name, and return the deliveries' ids."""
    for name in names:
        send(alias, name=name)
    return list(deliveries(alias).order_by("pk").values_list("pk", flat=True))


def customers(alias: str, count: int) -> list[Customer]:
    return [Customer.objects.using(alias).create(name=f"customer {number}") for number in range(count)]


# All succeed ---------------------------------------------------------------------------------------------------------


def kinds_of(queries: Any) -> dict[str, int]:
    """Count statements by what they do to what."""
    found: Counter[str] = Counter()
    for query in queries:
        verb, _, rest = query["sql"].lstrip().partition(" ")
        about = [name for name in (TABLE, "shop_customer", "shop_tag") if name in rest]
        found[" ".join([verb, *about])] += bool(about) or verb in ("SAVEPOINT", "RELEASE")
    return {kind: count for kind, count in found.items() if count}


@each_kind
@pytest.mark.parametrize("count", [2, 7])
def test_all_succeed(alias: str, celery_app: Celery, receive: Any, count: int) -> None:
    """However many there are: one statement opens them, one fetches their instances, and one completes them."""
    receive(lambda instance, using: leave(using, instance.name))
    for customer in customers(alias, count):
        send(alias, instance=customer)
    arrives = message_together(alias)

    with CaptureQueriesContext(connections[alias]) as queries:
        assert "SUCCESS" == arrives(celery_app).state

    assert ([f"customer {number}" for number in range(count)], {}) == (tags(alias), states(alias))
    # On PostgreSQL Django sees only the end of the last one.
    seen = {"RELEASE": 1} if alias == "postgres" else {"SAVEPOINT": count, "RELEASE": count}
    assert {
        f"UPDATE {TABLE}": 1,
        **({f"SELECT {TABLE}": 1} if alias == "mariadb" else {}),  # which does not return what was opened
        "SELECT shop_customer": 1,
        **seen,
        "INSERT shop_tag": count,
        f"DELETE {TABLE}": 1,
    } == kinds_of(queries.captured_queries)


@each_database("postgres")
def test_statements_that_are_prepared_at_once(
    alias: str, celery_app: Celery, receive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two statements at once cannot be prepared: where all are, each savepoint has its own."""
    monkeypatch.setitem(connections[alias].settings_dict["OPTIONS"], "prepare_threshold", 0)
    receive(leave)
    send_each(alias, "a", "b")
    arrives = message_together(alias)

    with CaptureQueriesContext(connections[alias]) as queries:
        assert "SUCCESS" == arrives(celery_app).state

    kinds = kinds_of(queries.captured_queries)
    assert (2, 2) == (kinds["SAVEPOINT"], kinds["RELEASE"])


@each_database("postgres", also=["default"])
def test_savepoint_of_another_database(alias: str) -> None:
    """In a database whose transaction it is not, it is a transaction of its own."""
    with transaction.atomic(using=alias), savepoints.savepoints(alias) as savepoint:
        for fails in (True, False):
            with suppress(Boom), savepoint(using="default"):
                leave("default", "bad" if fails else "good")
                if fails:
                    raise Boom

    assert ["good"] == tags("default")


@each_kind
def test_instance_that_is_saved_again_after_a_failure(alias: str, celery_app: Celery, receive: Any) -> None:
    """What one delivery has saved and lost is no news of the next one's: it compares with what is committed."""
    told: list[Any] = []
    customer, connection = Customer.objects.using(alias).create(name="Ada"), connections[alias]

    def act(using: str, name: str) -> None:
        told.append(tuple(connection.savepoint_ids))
        customer.name = name
        customer.save(using=using)
        if name == "bad":
            raise Boom

    receive(act)
    send_each(alias, "a", "bad", "b")

    assert "SUCCESS" == message_together(alias)(celery_app).state
    assert 3 == len(set(told))  # by which it is known what has become of what was saved
    customer.refresh_from_db(using=alias)
    assert "b" == customer.name


@each_database("postgres")
def test_connection_that_says_nothing_of_itself(
    alias: str, celery_app: Celery, receive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client's connection is asked by the end of each savepoint whether its transaction is broken."""

    def act(using: str, name: str) -> None:
        if name == "b":
            with suppress(Error), connections[using].cursor() as cursor:
                cursor.execute("SELECT no_such_column")
        else:
            leave(using, name)

    receive(act)
    send_each(alias, "a", "b", "c")
    arrives = message_together(alias)
    monkeypatch.setattr(savepoints, "_is_whole", lambda connection, **_: False)

    with CaptureQueriesContext(connections[alias]) as queries:
        assert "SUCCESS" == arrives(celery_app).state

    assert (["a", "c"], {"ready": 1}) == (tags(alias), states(alias))
    kinds = kinds_of(queries.captured_queries)
    assert 3 == kinds["RELEASE"]  # each is asked


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("batch", [True, False])
def test_retain(alias: str, celery_app: Celery, receive: Any, atomic: bool, batch: bool) -> None:
    """What succeeded together may be kept for a while, and is not opened again."""
    receive(lambda events=None: leave(alias), retain=3600, atomic=atomic, batch=batch)
    send_each(alias, "a", "b")
    copy, began = message_together(alias), moment(0)

    assert ["SUCCESS"] * 2 == [copy(celery_app).state for _ in range(2)]
    assert (["effect"] * (1 if batch else 2), {"done": 2}) == (tags(alias), states(alias))
    assert are_due(alias, 3600, began)
    assert not deliveries(alias).filter(finished_at=None).exists()


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
def test_copies(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """A message of several that arrives again, while they run or afterwards, does nothing."""

    def act(using: str, name: str) -> None:
        leave(using, name)
        if alias != "default" or not atomic:  # there a copy would wait for the lock
            assert "SUCCESS" == elsewhere(lambda: copy(celery_app)).state

    receive(act, atomic=atomic)
    send_each(alias, "a", "b")
    copy = message_together(alias)

    assert ["SUCCESS"] * 2 == [copy(celery_app).state for _ in range(2)]
    assert (["a", "b"], {}) == (tags(alias), states(alias))


@each_kind
def test_some_are_in_other_hands(alias: str, celery_app: Celery, receive: Any) -> None:
    """Of a message's deliveries only those run that nobody else has, or has had."""
    receive(lambda using, name: leave(using, name))
    first, second, third = send_each(alias, "a", "b", "c")
    arrives = message_together(alias)
    deliveries(alias).filter(pk=first).update(state=State.RUNNING)
    deliveries(alias).filter(pk=third).update(token=F("token") + 1)

    assert "SUCCESS" == arrives(celery_app).state
    assert (["b"], {"running": 1, "ready": 1}) == (tags(alias), states(alias))
    assert not deliveries(alias).filter(pk=second).exists()


@each_kind
def test_damaged_message(alias: str, celery_app: Celery, receive: Any) -> None:
    """A message that cannot be read fails, and the rows stay for a message that can."""
    task = receive(lambda: None)
    send(alias)
    carried = {"alias": alias, "receiver": task.name, "rows": [["one", "two"]]}

    outcome = trace(celery_app, task.name, MESSAGE, {ARGUMENT: carried}, 0)

    assert ("FAILURE", DecodeError, {"ready": 1}) == (outcome.state, type(outcome.error), states(alias))


# Each by itself ------------------------------------------------------------------------------------------------------


def ask_and_go_on(self: Any) -> None:
    self.retry(countdown=30, throw=False)


def ask_and_fail(self: Any) -> None:
    self.retry(countdown=30, throw=False)
    raise Boom("after it has asked")


def break_the_transaction(self: Any) -> None:
    with suppress(Boom), transaction.atomic(using=current_event().using, savepoint=False):
        raise Boom


def swallow(self: Any) -> None:
    with suppress(IntegrityError):
        Parcel.objects.using(current_event().using).bulk_create([Parcel(id=PARCEL), Parcel(id=PARCEL)])


PARCEL = "00000000-0000-4000-8000-000000000001"


def raising(make: Callable[[], BaseException]) -> Callable[[Any], None]:
    def act(self: Any) -> None:
        raise make()

    return act


#: What a receiver does, and what its task says.
OUTCOMES: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "error": (raising(lambda: ValueError("no stock")), {}),
    "last error": (raising(lambda: ValueError("no stock")), {"max_retries": 0}),
    "error it names": (
        raising(lambda: ValueError("told")),
        {"autoretry_for": (ValueError,), "default_retry_delay": 45},
    ),
    "error it does not name": (raising(Boom), {"autoretry_for": (ValueError,)}),
    "Discard": (raising(lambda: Discard("of no use")), {}),
    "RetryAfter": (raising(lambda: RetryAfter(90, "too many")), {}),
    "last RetryAfter": (raising(lambda: RetryAfter(90, "too many")), {"max_retries": 0}),
    "Fail": (raising(lambda: Fail("wrong address")), {}),
    "Ignore": (raising(lambda: Ignore("of no use")), {}),
    "Reject": (raising(lambda: Reject("wrong", requeue=False)), {}),
    "Reject and requeue": (raising(lambda: Reject("not now", requeue=True)), {}),
    "retry()": (lambda self: self.retry(exc=Boom("later"), countdown=45), {}),
    "last retry()": (lambda self: self.retry(exc=Boom("later"), max_retries=0), {}),
    "retry() without an end": (ask_and_go_on, {}),
    "retry() and an error": (ask_and_fail, {}),
    "trouble": (raising(lambda: OperationalError("database is locked")), {}),
    "broken transaction": (break_the_transaction, {}),
    "set_rollback()": (lambda self: transaction.set_rollback(True, using=current_event().using), {}),
    "swallowed error": (swallow, {}),
}


@each_kind
@pytest.mark.parametrize("name", OUTCOMES)
def test_each_has_its_own_outcome(alias: str, celery_app: Celery, receive: Any, name: str) -> None:
    """Whatever a receiver does, its delivery fares as if it had run alone, and those beside it are done."""
    outcome, options = OUTCOMES[name]

    def act(self: Any, using: str, name: str) -> None:
        leave(using, name)
        if name == "guilty":
            outcome(self)

    receive(act, bind=True, **options)
    compare(celery_app, alias, lambda: send(alias, name="guilty"))


def compare(app: Celery, alias: str, send_it: Callable[[], None]) -> None:
    """Run a delivery alone, and then between two good ones, and see that it fares the same."""
    send_it()
    alone = fate(alias, lambda: work(app, alias))
    for model in (Tag, Parcel):
        model.objects.using(alias).all().delete()
    deliveries(alias).erase()

    send_each(alias, "good")
    send_it()
    send_each(alias, "good")
    together = fate(alias, lambda: work_together(app, alias))

    assert ["good", "good"] == [tag for tag in together.pop("tags") if tag == "good"]
    assert {**alone, "succeeded": alone["succeeded"] + 2, "tags": None} == {**together, "tags": None}
    assert alone["tags"] == [tag for tag in tags(alias) if tag != "good"]


SIGNALS = (receiver_failed, receiver_discarded, delivery_failed)
LASTING = ("state", "attempts", "crashes", "reruns", "sends", "error_type", "error_message", "fingerprint", "payload")


def fate(alias: str, act: Callable[[], Any]) -> dict[str, Any]:
    """Do something, and return what has become of the one delivery that is left, and what was told."""
    with ExitStack() as stack:
        heard = {number: stack.enter_context(hearing(signal)) for number, signal in enumerate(SIGNALS)}
        done = stack.enter_context(hearing(receiver_succeeded))
        act()
    rows = [{name: getattr(row, name) for name in LASTING} for row in deliveries(alias).all()]
    told = [
        (number, type(facts.get("error")), facts.get("reason"), facts.get("will_retry"))
        for number, every in heard.items()
        for facts in every
    ]
    for row in rows:
        row["payload"] = row["payload"] and len(row["payload"])
    due = sorted(round(seconds / 5) for seconds in seconds_left(alias, due_at__isnull=False))
    return {"rows": rows, "told": told, "due": due, "tags": tags(alias), "succeeded": len(done)}


def spoilt(alias: str, **columns: Any) -> Callable[[], None]:
    """Return what sends, and changes what was written."""

    def send_it() -> None:
        send(alias, name="guilty")
        deliveries(alias).filter(pk=deliveries(alias).latest("pk").pk).update(**columns)

    return send_it


def deep(alias: str) -> None:
    """Send what is the last of a chain that is too long."""
    send(alias, name="guilty")
    row = deliveries(alias).latest("pk")
    body = json.loads(row.payload)
    deliveries(alias).filter(pk=row.pk).update(payload=json.dumps({**body, "chain": ["step"] * 1000}))


UNREADABLE: dict[str, Callable[[str], Callable[[], None]]] = {
    "damaged": partial(spoilt, payload="{"),
    "erased": partial(spoilt, payload=None),
    "newer": partial(spoilt, payload='{"version": 99}'),
    "expired": partial(spoilt, options={"expires": "2020-01-01T00:00:00+00:00"}),
    "chain": lambda alias: partial(deep, alias),
}


@each_kind
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_does_not_run(alias: str, celery_app: Celery, receive: Any, name: str) -> None:
    """What is damaged, expired or the end of a loop does not run, as if it had come alone; the others do."""
    receive(lambda using, name: leave(using, name))
    compare(celery_app, alias, UNREADABLE[name](alias))


@each_kind
@pytest.mark.parametrize("on_missing", ["discard", "retry", "fail"])
def test_missing_instance(alias: str, celery_app: Celery, receive: Any, on_missing: str) -> None:
    """A row that is gone is a matter of the delivery that refers to it, as ``on_missing`` says."""
    receive(lambda using, name, instance=None: leave(using, name), on_missing=on_missing)

    def send_it() -> None:
        customer = Customer.objects.using(alias).create(pk=1000, name="Ada")
        send(alias, name="guilty", instance=customer)
        Customer.objects.using(alias).filter(pk=customer.pk).delete()

    compare(celery_app, alias, send_it)


@each_kind
def test_effects_of_many_failures(alias: str, celery_app: Celery, receive: Any) -> None:
    """Of many deliveries every other one fails: exactly the effects of those that succeeded are there."""

    def act(using: str, number: int) -> None:
        leave(using, f"{number:02}")
        if number % 2:
            raise Boom

    receive(act)
    for number in range(20):
        send(alias, number=number)

    work_together(celery_app, alias)
    assert [f"{number:02}" for number in range(0, 20, 2)] == tags(alias)
    assert ({"ready": 10}, {(1, 0, 0)}) == (states(alias), burnt(alias))


@each_database("default")
def test_limit_of_another_one(alias: str, celery_app: Celery, receive: Any) -> None:
    """How often one asks to be tried at most is nothing to the next of the message."""

    def act(self: Any, name: str) -> None:
        raise self.retry(exc=Boom(), max_retries=0) if name == "never" else Boom

    receive(act, bind=True)
    send_each(alias, "never", "often")

    work_together(celery_app, alias)
    assert {"failed": 1, "ready": 1} == states(alias)


@each_database("postgres")
def test_deadlock_that_a_savepoint_survives(alias: str, celery_app: Celery, receive: Any) -> None:
    """It is about locks that the others have taken: all let go of theirs, and run again by themselves, uncharged."""
    guilty = deadlock(alias)

    def act(using: str, name: str) -> None:
        leave(using, name)
        if name == "guilty":
            next(guilty)

    receive(act)
    send_each(alias, "a", "guilty", "b")

    work_together(celery_app, alias)
    guilty.close()
    assert ([], {"ready": 3}, {(0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))


@each_kind
def test_the_same_row_twice(alias: str, celery_app: Celery, receive: Any) -> None:
    """Of two deliveries about one row the second sees what the first has saved, and not what the first had in hand."""
    product = Product.objects.using(alias).create(sku="tea")

    def act(instance: Product) -> None:
        instance.views += 1
        instance.save()
        instance.views = 100

    receive(act)
    for _ in range(3):
        send(alias, instance=product)

    assert "SUCCESS" == work_together(celery_app, alias).state
    product.refresh_from_db()
    assert (3, {}) == (product.views, states(alias))


@each_kind
def test_the_same_row_after_a_failure(alias: str, celery_app: Celery, receive: Any) -> None:
    """What a delivery that failed has done to a row is undone before the next one looks at it."""
    product = Product.objects.using(alias).create(sku="tea")

    def act(instance: Product, name: str) -> None:
        instance.views += 1
        instance.save()
        if name == "guilty":
            raise Boom

    receive(act)
    for name in ("good", "guilty", "good"):
        send(alias, instance=product, name=name)

    work_together(celery_app, alias)
    product.refresh_from_db()
    assert (2, {"ready": 1}, {(1, 0, 0)}) == (product.views, states(alias), burnt(alias))


MODELS: dict[str, Callable[[str, int], Any]] = {
    "number": lambda alias, at: Customer.objects.using(alias).create(name=str(at)),
    "uuid": lambda alias, at: Parcel.objects.using(alias).create(weight=at),
    "text": lambda alias, at: Country.objects.using(alias).create(code=f"a{at}", name=str(at)),
    "child": lambda alias, at: RushOrder.objects.using(alias).create(
        customer=Customer.objects.using(alias).create(name=str(at)), courier=str(at)
    ),
}


@each_kind
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["fetch", "snapshot"])
def test_kinds_of_instances(alias: str, celery_app: Celery, receive: Any, name: str, how: str) -> None:
    """Whatever the primary key, the receiver gets the row of its own delivery; all are one query, or none."""
    found: list[Any] = []
    receive(lambda instance: found.append(instance), instance=how)
    sent = [MODELS[name](alias, at) for at in range(3)]
    for instance in sent:
        send(alias, instance=instance)

    table = type(sent[0])._meta.db_table
    with CaptureQueriesContext(connections[alias]) as queries:
        assert "SUCCESS" == work_together(celery_app, alias).state

    assert sent == found
    assert [type(one) for one in sent] == [type(one) for one in found]
    assert (how == "fetch") == sum(table in query["sql"] for query in queries.captured_queries)


@each_database("default", also=["other"])
def test_instances_of_another_database(alias: str, celery_app: Celery, receive: Any) -> None:
    """An instance is fetched from where it was saved, also beside the deliveries' database."""
    found: list[Any] = []
    receive(lambda instance: found.append((instance._state.db, instance.name)))
    for using in ("default", "other"):
        customer = Customer.objects.using(using).create(pk=5, name=f"of {using}")
        send(alias, instance=customer)

    work_together(celery_app, alias)
    assert [("default", "of default"), ("other", "of other")] == found


# What the receiver sees ----------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
def test_request(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """Each sees the request of its own delivery: id, retries, event; the message's is there again in the end."""
    seen: list[Any] = []

    def act(self: Any, event: Event) -> None:
        request = current_task.request
        assert current_event() == event
        assert self.request.hold.known.event_id == event.id
        seen.append((request.id, request.retries, event.fence is not None, event.still_mine()))

    task = receive(act, bind=True, atomic=atomic)
    for _ in range(3):
        send(alias)
    second = deliveries(alias).order_by("pk")[1]
    deliveries(alias).filter(pk=second.pk).update(attempts=2)
    ids = list(deliveries(alias).order_by("pk").values_list("event_id", flat=True))
    after: list[Any] = []

    def listener(sender: Any, **kwargs: Any) -> None:
        after.append((sender.request.id, vars(sender.request).get("hold")))

    task_postrun.connect(listener, sender=task)
    work_together(celery_app, alias)
    task_postrun.disconnect(listener, sender=task)

    assert [(ids[0], 0, True, True), (ids[1], 2, True, True), (ids[2], 0, True, True)] == seen
    assert [(MESSAGE, None)] == after
    assert current_event() is None


@each_database("default")
@pytest.mark.parametrize("atomic", [True, False])
def test_language_and_zone(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """Each runs in its own sending's language and time zone."""
    seen: list[Any] = []
    receive(lambda: seen.append((translation.get_language(), str(timezone.get_current_timezone()))), atomic=atomic)
    contexts = [("de", "Europe/Berlin"), ("fr", "Asia/Tokyo")]
    for language, zone in contexts:
        with translation.override(language), timezone.override(zone):
            send(alias)

    work_together(celery_app, alias)
    assert contexts == seen
    assert "en" == translation.get_language()


@each_database("default")
@pytest.mark.parametrize("atomic", [True, False])
def test_what_a_receiver_changes_around_it(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """A language or a zone that one leaves is not the next one's, though both were sent in the same."""
    seen: list[Any] = []

    def act(name: str) -> None:
        seen.append((translation.get_language(), str(timezone.get_current_timezone())))
        if name == "c":
            translation.deactivate_all()
            timezone.deactivate()
        elif name != "a":
            translation.activate("fr")
            timezone.activate("Asia/Tokyo")
        if name == "bad":
            raise Discard("on purpose")

    receive(act, atomic=atomic)
    with translation.override("de"), timezone.override("Europe/Berlin"):
        send_each(alias, "a", "bad", "b", "c", "a")

    work_together(celery_app, alias)
    assert [("de", "Europe/Berlin")] * 5 == seen
    assert ("en", "UTC") == (translation.get_language(), str(timezone.get_current_timezone()))


@each_database("default")
def test_what_a_receiver_keeps_in_its_context(alias: str, celery_app: Celery, receive: Any) -> None:
    """Django keeps its caches, and their connections, in the context: they are the same for all of a message."""
    seen: list[Any] = []
    receive(lambda: seen.append(caches["default"]))
    send_each(alias, "a", "b")

    copy_context().run(work_together, celery_app, alias)
    assert seen[0] is seen[1]


@each_kind
def test_what_is_told(alias: str, celery_app: Celery, receive: Any) -> None:
    """Starts and failures are told of each; a success only when it is committed."""
    committed: list[Any] = []

    def act(name: str) -> None:
        if name == "guilty":
            raise Boom

    def listener(event: Event, **kwargs: Any) -> None:
        committed.append(elsewhere(lambda: states(alias)))

    receive(act)
    send_each(alias, "a", "guilty", "b")
    ids = list(deliveries(alias).order_by("pk").values_list("event_id", flat=True))
    receiver_succeeded.connect(listener)
    try:
        with ExitStack() as stack:
            started, succeeded, failed = (
                stack.enter_context(hearing(one)) for one in (receiver_started, receiver_succeeded, receiver_failed)
            )
            work_together(celery_app, alias)
    finally:
        receiver_succeeded.disconnect(listener)

    assert ids == [told["event"].id for told in started]
    assert [ids[0], ids[2]] == [told["event"].id for told in succeeded]
    assert all(told["runtime"] >= 0 for told in succeeded)
    assert [(ids[1], Boom, True)] == [(one["event"].id, type(one["error"]), one["will_retry"]) for one in failed]
    assert 2 == len(committed)
    assert all(set(found) <= {"running", "ready"} and sum(found.values()) == 1 for found in committed)


@each_kind
def test_hooks(alias: str, celery_app: Celery, receive: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What receivers do after the commit is done in their order; one that fails keeps none of the others from it."""
    done: list[Any] = []

    def after(name: str) -> None:
        done.append((name, elsewhere(lambda: tags(alias))))
        if name == "b":
            raise Boom("after the commit")

    def act(using: str, name: str) -> None:
        leave(using, name)
        transaction.on_commit(lambda: after(name), using=using)
        if name == "guilty":
            raise Boom

    receive(act)
    send_each(alias, "a", "b", "guilty", "c")

    assert "SUCCESS" == work_together(celery_app, alias).state
    assert [(name, ["a", "b", "c"]) for name in "abc"] == done
    assert {"ready": 1} == states(alias)
    assert any("after the commit" in record.getMessage() for record in caplog.records)


@each_kind
def test_hooks_of_any_kind(alias: str, celery_app: Celery, receive: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What fails without a name, as a partial does, keeps none from its hook; each is about its own event."""
    done: list[Any] = []

    def after(name: str) -> None:
        event: Any = current_event()
        done.append((name, event.id, translation.get_language()))
        raise Boom(f"after {name}")

    def act(using: str, name: str) -> None:
        transaction.on_commit(partial(after, name), using=using)

    receive(act)
    with translation.override("de"):
        send_each(alias, "a", "b")
    ids = dict(zip("ab", deliveries(alias).order_by("pk").values_list("event_id", flat=True), strict=True))

    assert "SUCCESS" == work_together(celery_app, alias).state
    assert [("a", ids["a"], "de"), ("b", ids["b"], "de")] == done
    assert {} == states(alias)
    assert {"after a", "after b"} <= {str(record.exc_info[1]) for record in caplog.records if record.exc_info}


@each_database("default")
def test_hook_of_a_batch(alias: str, celery_app: Celery, receive: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What fails after a batch is committed is logged, and the batch is done all the same."""

    def late() -> None:
        raise Boom

    def act(events: list[Event]) -> None:
        transaction.on_commit(partial(late), using=alias)

    receive(act, batch=True)
    send_each(alias, "a", "b")
    with hearing(receiver_succeeded) as succeeded:
        assert "SUCCESS" == work_together(celery_app, alias).state

    assert ({}, 2) == (states(alias), len(succeeded))
    assert any("on_commit" in record.getMessage() for record in caplog.records)


@each_database("default")
def test_outcome_in_its_context(alias: str, celery_app: Celery, receive: Any) -> None:
    """What is called when a delivery is given up, later, is still about its event, and so are listeners of ours."""
    seen: list[Any] = []

    def act(name: str) -> None:
        if name == "a":
            raise Fail

    task = receive(act)
    task.on_failed(lambda event: seen.append(current_event() and current_event().id == event.id))  # type: ignore[union-attr]
    send_each(alias, "a", "b")

    def listen(event: Event, **_: Any) -> None:
        seen.append(current_event() and current_event().id == event.id)  # type: ignore[union-attr]

    receiver_succeeded.connect(listen)
    try:
        work_together(celery_app, alias)
    finally:
        receiver_succeeded.disconnect(listen)
    assert [True, True] == seen


@each_database("default")
def test_time_limit_while_all_are_given_back(
    alias: str, celery_app: Celery, receive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the wait for a database, nothing is renewed any more that nobody runs."""

    def act(name: str) -> None:
        raise SoftTimeLimitExceeded

    def surely(*_: Any, **__: Any) -> int:
        raise SoftTimeLimitExceeded

    receive(act)
    send_each(alias, "a", "b")
    monkeypatch.setattr(durable_together, "surely", surely)
    monkeypatch.setattr(durable_together, "lease_of", lambda *_: (60.0, True))
    work_together(celery_app, alias)

    assert [] == lease.keeper(alias)._leases


@each_database("default")
def test_language_of_a_batch(alias: str, celery_app: Celery, receive: Any) -> None:
    """It is that of the sendings, where they have the same."""
    seen: list[str | None] = []
    receive(lambda events: seen.append(translation.get_language()), batch=True)
    for languages in (("de", "de"), ("de", "fr")):
        for language in languages:
            with translation.override(language):
                send(alias, name=language)
        work_together(celery_app, alias)

    assert ["de", translation.get_language()] == seen


@each_database("default")
def test_what_is_logged(alias: str, celery_app: Celery, receive: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What Celery would have said of a task that ends like this is said of each: a retry, a failure, nothing else."""
    caplog.set_level("INFO", module.__name__)

    def act(name: str) -> None:
        raise {"retry": Boom("again"), "fail": Fail("for good"), "discard": Discard("of no use")}[name]

    receive(act)
    send_each(alias, "retry", "fail", "discard")

    work_together(celery_app, alias)
    said = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == module.__name__]
    assert ["INFO", "ERROR"] == [level for level, _ in said]
    assert ("runs again" in said[0][1], "failed" in said[1][1]) == (True, True)
    assert "for good" in said[1][1]


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
def test_former_name(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """Deliveries under a name that the task had before run together as well."""
    task = receive(lambda using, name: leave(using, name), former_names=["tests.formerly"], atomic=atomic)
    send_each(alias, "a", "b")
    deliveries(alias).update(receiver="tests.formerly")
    carried = message_together(alias)
    try:
        assert "SUCCESS" == carried(celery_app).state
    finally:
        celery_app._tasks.pop("tests.formerly")
    assert task.name in celery_app.tasks
    assert (["a", "b"], {}) == (tags(alias), states(alias))


# What ends all -------------------------------------------------------------------------------------------------------


def spend(alias: str, name: str) -> None:
    Customer.objects.using(alias).filter(name=name).update(spent=1)


def deadlock(alias: str) -> Iterator[None]:
    """Meet a deadlock with another connection, of which this one is the victim; closed, the other one ends as well."""
    Customer.objects.using(alias).bulk_create([Customer(name="a"), Customer(name="b"), *[Customer(name="c")] * 50])
    return _deadlock(alias)


def _deadlock(alias: str) -> Iterator[None]:
    def begin() -> None:
        Customer.objects.using(alias).filter(name="c").update(spent=2)  # of MariaDB's two the one with less work ends
        spend(alias, "b")

    with other_transaction(alias, begin) as other:
        spend(alias, "a")
        other.begin(lambda: spend(alias, "a"))
        if alias == "postgres":
            execute(alias, "SET LOCAL deadlock_timeout = '10ms'")  # the other's is a second: this one is ended
            wait_until(lambda: execute(alias, "SELECT 1 FROM pg_locks WHERE NOT granted"), what="the other's wait")
        spend(alias, "b")
    yield


def cut(alias: str) -> None:
    """Have the server end the connection of this thread."""
    end = {"postgres": "SELECT pg_terminate_backend(pg_backend_pid())", "mariadb": "KILL CONNECTION_ID()"}
    with suppress(Error):
        execute(alias, end[alias])


def cut_and_go_on(alias: str) -> None:
    cut(alias)
    leave(alias, "never")


def break_a_constraint(alias: str) -> None:
    Order.objects.using(alias).create(customer_id=123_456)  # is checked at the commit


def meet_a_deadlock(alias: str) -> None:
    next(_deadlock(alias))


def swallow_a_deadlock(alias: str) -> None:
    with suppress(OperationalError):
        meet_a_deadlock(alias)


def swallow_a_deadlock_in_a_block(alias: str) -> None:
    with suppress(OperationalError), transaction.atomic(using=alias):
        meet_a_deadlock(alias)


def stop(error: type[BaseException]) -> Callable[[str], None]:
    def act(alias: str) -> None:
        raise error

    return act


AUTORETRY = {"autoretry_for": (Exception,), "max_retries": 3}

ENDS: list[tuple[str, str, Callable[[str], None], dict[str, Any]]] = [
    *((alias, "constraint at the COMMIT", break_a_constraint, {}) for alias in ("default", "postgres")),
    ("mariadb", "deadlock", meet_a_deadlock, {}),
    ("mariadb", "deadlock, with a policy for everything", meet_a_deadlock, AUTORETRY),
    ("mariadb", "swallowed deadlock", swallow_a_deadlock, {}),
    ("mariadb", "swallowed deadlock in a block", swallow_a_deadlock_in_a_block, {}),
    *((alias, "lost connection", cut_and_go_on, {}) for alias in ("postgres", "mariadb")),
    *((alias, "lost connection, unnoticed", cut, {}) for alias in ("postgres", "mariadb")),
    *((alias, "closed connection", lambda alias: connections[alias].close(), {}) for alias in MANY_KINDS),
    *((alias, "time limit", stop(SoftTimeLimitExceeded), {}) for alias in MANY_KINDS),
    ("default", "time limit, with a policy for everything", stop(SoftTimeLimitExceeded), AUTORETRY),
    *((alias, "end of the worker", stop(SystemExit), {}) for alias in MANY_KINDS),
    ("default", "interrupt", stop(KeyboardInterrupt), {}),
]


@pytest.mark.django_db(databases=["default", "postgres", "mariadb"], transaction=True)
@pytest.mark.parametrize(
    ("alias", "name", "end", "options"),
    [pytest.param(*one, marks=needs(one[0]), id=f"{one[1]}-{one[0]}") for one in ENDS],
)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])
def test_what_ends_all(
    alias: str, celery_app: Celery, receive: Any, name: str, end: Any, options: dict[str, Any], place: int
) -> None:
    """What is no single one's gives all of them back: nothing is committed or counted, and each then runs alone."""
    Customer.objects.using(alias).bulk_create([Customer(name="a"), Customer(name="b"), *[Customer(name="c")] * 50])
    ends = [end]

    def act(using: str, name: str) -> None:
        leave(using, name)
        if name == str(place) and ends:
            ends.pop()(using)

    task = receive(act, **options)
    began, ids = moment(0), send_each(alias, "0", "1", "2")

    with hearing(receiver_succeeded) as succeeded, suppress(SystemExit, KeyboardInterrupt):
        work_together(celery_app, alias)

    assert ([], []) == (ends, succeeded)
    assert ([], {"ready": 3}, {(0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))
    assert are_due(alias, 0, began)
    assert not deliveries(alias).exclude(claim=None).exists()
    assert [[pk] for pk in ids] == [[row.pk for row in pack] for pack in packed(celery_app, deliveries(alias), alias)]
    assert ["SUCCESS"] * 3 == [work(celery_app, alias, pk=pk).state for pk in ids]
    assert (["0", "1", "2"], {}, 0) == (tags(alias), states(alias), task.request.retries or 0)


@each_database("default", "postgres")
def test_the_guilty_one_is_charged_alone(alias: str, celery_app: Celery, receive: Any) -> None:
    """Run by themselves, those that have been with the guilty one succeed, and it alone counts an attempt."""

    def act(using: str, name: str) -> None:
        leave(using, name)
        if name == "guilty":
            break_a_constraint(using)

    receive(act)
    ids = send_each(alias, "a", "guilty", "b")
    work_together(celery_app, alias)

    assert ["SUCCESS", "RETRY", "SUCCESS"] == [work(celery_app, alias, pk=pk).state for pk in ids]
    assert (["a", "b"], {"ready": 1}, {(1, 0, 1)}) == (tags(alias), states(alias), burnt(alias))


@each_database("default")
def test_the_reason_is_said(alias: str, celery_app: Celery, receive: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The log says how many run again one by one, and why."""
    caplog.set_level("INFO", module.__name__)

    def act() -> None:
        raise SoftTimeLimitExceeded("too slow")

    receive(act)
    send_each(alias, "a", "b")
    work_together(celery_app, alias)

    (said,) = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert "2 deliveries will run again, one by one" in said
    assert "SoftTimeLimitExceeded" in said


@each_server
@pytest.mark.parametrize("place", [0, 2])
def test_one_that_another_run_has(alias: str, celery_app: Celery, receive: Any, place: int) -> None:
    """If another worker has one of them by now, nothing is committed, and the others run again, uncharged."""

    def act(using: str, name: str) -> None:
        leave(using, name)
        if name == "1":
            other = deliveries(alias).filter(pk=ids[place])
            assert 1 == elsewhere(lambda: other.update(token=F("token") + 1))

    receive(act)
    ids = send_each(alias, "0", "1", "2")

    with hearing(receiver_succeeded) as succeeded:
        work_together(celery_app, alias)

    assert ([], [], {"running": 1, "ready": 2}) == (succeeded, tags(alias), states(alias))
    lost = deliveries(alias).filter(pk=ids[place])
    assert [(State.RUNNING, 0, 0, 0)] == list(lost.values_list("state", "attempts", "crashes", "reruns"))
    assert {(0, 0, 1)} == set(deliveries(alias).exclude(pk=ids[place]).values_list("attempts", "crashes", "reruns"))


@each_server
def test_one_that_fails_and_another_run_has(alias: str, celery_app: Celery, receive: Any) -> None:
    """One that has failed here changes nothing of what another worker has, and the others are done."""

    def act(using: str, name: str, event: Event) -> None:
        leave(using, name)
        if name == "guilty":
            elsewhere(lambda: deliveries(alias).filter(event_id=event.id).update(token=F("token") + 1))
            raise Boom

    receive(act)
    send_each(alias, "a", "guilty", "b")

    with hearing(receiver_failed) as failed:
        work_together(celery_app, alias)

    assert (["a", "b"], {"running": 1}, {(0, 0, 0)}) == (tags(alias), states(alias), burnt(alias))
    assert [LeaseLost] == [type(told["error"]) for told in failed]


@each_server
def test_one_that_asked_for_more_and_another_run_has(alias: str, celery_app: Celery, receive: Any) -> None:
    """If another worker has one that asked for another run and went on, nothing is committed either."""

    def act(self: Any, using: str, name: str, event: Event) -> None:
        leave(using, name)
        if name == "guilty":
            self.retry(countdown=5, throw=False)
            elsewhere(lambda: deliveries(alias).filter(event_id=event.id).update(token=F("token") + 1))

    receive(act, bind=True)
    send_each(alias, "a", "guilty", "b")
    work_together(celery_app, alias)

    assert ([], {"running": 1, "ready": 2}, {(0, 0, 0), (0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))


@each_server
def test_unknown_outcome_of_a_commit(alias: str, celery_app: Celery, receive: Any) -> None:
    """Where the connection breaks just as the commit has succeeded, nothing runs twice."""

    def act(using: str, name: str) -> None:
        leave(using, name)
        connection = connections[alias]
        original = type(connection).commit

        def break_off() -> None:
            original(connection)
            connection.connection.close()
            raise OperationalError(2013, "Lost connection to server during query")

        connection.__dict__["commit"] = break_off

    receive(act)
    send_each(alias, "a", "b")
    try:
        work_together(celery_app, alias)
    finally:
        connections[alias].__dict__.pop("commit", None)

    assert (["a", "b"], {}) == (tags(alias), states(alias))


@each_kind
def test_expire(alias: str, celery_app: Celery, receive: Any) -> None:
    """Of several that died together none is charged, and they are not put together again; one alone is charged."""
    task = receive(lambda: None)
    place(alias, task, 3)
    chunk = chunk_of(alias)
    assert 3 == len(deliveries(alias).open_together(chunk, -1))
    place(alias, task, state=State.RUNNING, due_at=moment(-1))

    assert (4, []) == deliveries(alias).expire(10)

    assert {"ready": 4} == states(alias)
    assert [(0, 0, 1)] * 3 + [(0, 1, 0)] == list(
        deliveries(alias).order_by("pk").values_list("attempts", "crashes", "reruns")
    )
    assert not deliveries(alias).exclude(claim=None).exists()
    assert [1] * 4 == [len(pack) for pack in packed(celery_app, deliveries(alias), alias)]


@each_kind
def test_expire_of_what_has_crashed_often(alias: str, receive: Any) -> None:
    """Not even one that had crashed as often as it may is charged for the others' end."""
    place(alias, receive(lambda: None), 2, crashes=4)
    deliveries(alias).open_together(chunk_of(alias), -1)

    assert (2, []) == deliveries(alias).expire(10)
    assert ({"ready": 2}, {(0, 4, 1)}) == (states(alias), burnt(alias))


def chunk_of(alias: str) -> Chunk:
    rows = list(deliveries(alias).order_by("pk"))
    return Chunk(alias=alias, receiver=rows[0].receiver, rows=[(row.pk, row.token) for row in rows])


# Leases --------------------------------------------------------------------------------------------------------------


def ends(alias: str) -> list[Any]:
    """Return when the leases end, as others see it."""
    return elsewhere(lambda: list(deliveries(alias).order_by("pk").values_list("due_at", flat=True)))


@each_server
@pytest.mark.parametrize("options", [{"atomic": True}, {"atomic": False}, {"batch": True}], ids=str)
def test_leases_are_renewed(alias: str, celery_app: Celery, receive: Any, options: dict[str, Any]) -> None:
    """While one of them runs, the leases of all are renewed; in the end none is."""
    kept: list[Any] = []

    def act(**kwargs: Any) -> None:
        if not kept:
            before = ends(alias)
            wait_until(lambda: all(now > then for now, then in zip(ends(alias), before, strict=True)), what="renewals")
            kept.extend(lease.keeper(alias)._leases)

    receive(act, **options)
    send_each(alias, "a", "b", "c")
    with override_settings(DJANGO_CELERY_SIGNALS={"LEASE": 1}):
        assert "SUCCESS" == work_together(celery_app, alias).state

    assert (3, [], {}) == (len(kept), lease.keeper(alias)._leases, states(alias))


@each_server
def test_leases_beside_one_that_asked_for_more(alias: str, celery_app: Celery, receive: Any) -> None:
    """One that asked for another run and went on keeps the others' leases from nothing."""

    def act(self: Any, using: str, name: str) -> None:
        leave(using, name)
        if name == "a":
            self.retry(countdown=30, throw=False)
            return
        for _ in range(3):  # each time it would be in vain behind a statement that waits for this transaction
            before = ends(alias)[1]
            wait_until(lambda: ends(alias)[1] > before, what="a renewal")  # noqa: B023

    receive(act, bind=True)
    send_each(alias, "a", "b")
    with override_settings(DJANGO_CELERY_SIGNALS={"LEASE": 1}):
        work_together(celery_app, alias)
    assert (["a", "b"], {"ready": 1}, {(1, 0, 0)}) == (tags(alias), states(alias), burnt(alias))


@each_database("postgres")
def test_lease_in_a_transaction_that_sees_the_past(alias: str, celery_app: Celery, receive: Any) -> None:
    """Where leases cannot be renewed, they last as long as all may take."""
    lasts: list[float] = []
    receive(lambda: lasts.append((ends(alias)[0] - moment(0)).total_seconds()), time_limit=90)
    send_each(alias, "a", "b")
    with connecting(alias, isolation_level=IsolationLevel.REPEATABLE_READ):
        assert "SUCCESS" == work_together(celery_app, alias).state

    assert [True, True] == [170 < last <= 180 for last in lasts]
    assert {} == states(alias)


# Without a transaction -----------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("name", [name for name in OUTCOMES if "transaction" not in name and "rollback" not in name])
def test_each_has_its_own_outcome_without_a_transaction(
    alias: str, celery_app: Celery, receive: Any, name: str
) -> None:
    """Without a transaction, too, each fares as if it had run alone, and is noted at once."""
    outcome, options = OUTCOMES[name]

    def act(self: Any, using: str, name: str) -> None:
        leave(using, name)
        if name == "guilty":
            outcome(self)

    receive(act, bind=True, atomic=False, **options)
    compare(celery_app, alias, lambda: send(alias, name="guilty"))


@each_kind
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_does_not_run_without_a_transaction(alias: str, celery_app: Celery, receive: Any, name: str) -> None:
    """Nor does that differ of what does not run."""
    receive(lambda using, name: leave(using, name), atomic=False)
    compare(celery_app, alias, UNREADABLE[name](alias))


@each_kind
def test_completed_at_once(alias: str, celery_app: Celery, receive: Any) -> None:
    """Without a transaction each is completed before the next one begins."""
    seen: list[dict[str, int]] = []
    receive(lambda: seen.append(elsewhere(lambda: states(alias))), atomic=False)
    send_each(alias, "a", "b", "c")

    assert "SUCCESS" == work_together(celery_app, alias).state
    assert [{"running": 3}, {"running": 2}, {"running": 1}] == seen


@each_kind
@pytest.mark.parametrize("error", [SoftTimeLimitExceeded, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("options", [{}, AUTORETRY], ids=["bare", "policy"])
def test_what_ends_all_without_a_transaction(
    alias: str, celery_app: Celery, receive: Any, error: type[BaseException], options: dict[str, Any]
) -> None:
    """What is done is done; the one that ran when the time was over, and those behind it, run alone, uncharged."""

    def act(using: str, name: str) -> None:
        leave(using, name)
        if name == "b":
            raise error

    receive(act, atomic=False, **options)
    ids = send_each(alias, "a", "b", "c")
    with suppress(SystemExit, KeyboardInterrupt):
        work_together(celery_app, alias)

    assert (["a", "b"], {"ready": 2}, {(0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))
    assert ids[1:] == list(deliveries(alias).order_by("pk").values_list("pk", flat=True))


@each_server
def test_connection_that_breaks_without_a_transaction(alias: str, celery_app: Celery, receive: Any) -> None:
    """Without a transaction a broken connection costs its own delivery a run that does not count."""
    breaks = [True]

    def act(using: str, name: str) -> None:
        if breaks and name == "b":
            breaks.clear()
            cut(using)
            execute(using, "SELECT 1")
        leave(using, name)

    receive(act, atomic=False)
    send_each(alias, "a", "b", "c")
    work_together(celery_app, alias)

    assert (["a", "c"], {"ready": 1}, {(0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))


@each_kind
def test_one_that_another_run_has_without_a_transaction(alias: str, celery_app: Celery, receive: Any) -> None:
    """Without a transaction one that another worker has by now is its own, and the others are done."""

    def act(using: str, name: str, event: Event) -> None:
        leave(using, name)
        if name == "b":
            elsewhere(lambda: deliveries(alias).filter(event_id=event.id).update(token=F("token") + 1))

    receive(act, atomic=False)
    send_each(alias, "a", "b", "c")
    work_together(celery_app, alias)

    assert (["a", "b", "c"], {"running": 1}, {(0, 0, 0)}) == (tags(alias), states(alias), burnt(alias))


# Trouble before, and after -------------------------------------------------------------------------------------------


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


@each_server
def test_database_that_is_away_at_the_opening(alias: str, celery_app: Celery, receive: Any) -> None:
    """Where the database does not answer, the message fails and the rows stay: they are published again."""
    receive(lambda: None)
    send_each(alias, "a", "b")
    arrives = message_together(alias)

    with away(alias):
        outcome = arrives(celery_app)

    assert ("FAILURE", OperationalError) == (outcome.state, type(outcome.error))
    assert ({"ready": 2}, {(0, 0, 0)}) == (states(alias), burnt(alias))


@each_kind
@pytest.mark.parametrize("options", [{"atomic": True}, {"atomic": False}, {"batch": True}], ids=str)
def test_instances_that_cannot_be_fetched_together(
    alias: str, celery_app: Celery, receive: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If what all refer to cannot be fetched, for the database is away, all run again, uncharged."""

    def refuse(*args: Any) -> None:
        raise OperationalError("away")

    receive(lambda **kwargs: leave(alias), **options)
    send_each(alias, "a", "b")
    monkeypatch.setattr(module, "Fetched", refuse)

    assert "SUCCESS" == work_together(celery_app, alias).state
    assert ([], {"ready": 2}, {(0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))


DAMAGED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no such entry": lambda body: {**body, "objects": []},
    "no database": lambda body: {**body, "objects": [{**body["objects"][0], "db": []}]},
    "unknown database": lambda body: {**body, "objects": [{**body["objects"][0], "db": "nowhere"}]},
    "unknown model": lambda body: {**body, "objects": [{**body["objects"][0], "model": "shop.Nothing"}]},
    "unknown key": lambda body: {**body, "objects": [{**body["objects"][0], "pk": {"$": "nothing", "v": 1}}]},
    "key of another type": lambda body: {**body, "objects": [{**body["objects"][0], "pk": "one"}]},
    "no entry": lambda body: {**body, "objects": [5]},
    "nested": lambda body: {**body, "kwargs": [["instance", nested(900)]]},
}


def nested(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_reference(alias: str, celery_app: Celery, receive: Any, name: str, atomic: bool) -> None:
    """A reference that is damaged is a matter of the delivery that has it, and the others are fetched together."""
    task = receive(lambda instance, using: leave(using, instance.name), atomic=atomic)
    for customer in customers(alias, 3):
        send(alias, instance=customer)
    row = deliveries(alias).order_by("pk")[1]
    body = DAMAGED[name](json.loads(row.payload))
    deliveries(alias).filter(pk=row.pk).update(payload=json.dumps(body))

    assert "SUCCESS" == work_together(celery_app, alias).state
    left = deliveries(alias).get()
    assert (["customer 0", "customer 2"], row.pk) == (tags(alias), left.pk)
    assert (1, 0, 0) == (left.attempts, left.crashes, left.reruns)
    assert task.name == left.receiver


@each_database("postgres")
def test_listener_that_breaks_the_transaction(alias: str, celery_app: Celery, receive: Any) -> None:
    """If another's code leaves the transaction broken that all run in, all run again, alone."""

    def listener(**kwargs: Any) -> None:
        with suppress(Error):
            execute(alias, "SELECT nothing FROM nowhere")

    receive(lambda using, name: leave(using, name))
    ids = send_each(alias, "a", "b")
    receiver_started.connect(listener)
    try:
        work_together(celery_app, alias)
        assert ([], {"ready": 2}, {(0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))
        assert ["SUCCESS"] * 2 == [work(celery_app, alias, pk=pk).state for pk in ids]
    finally:
        receiver_started.disconnect(listener)


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
def test_error_while_it_is_noted(
    alias: str, celery_app: Celery, receive: Any, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If how one has ended cannot even be said, it runs again, uncharged; what is done is done."""

    def act(using: str, name: str) -> None:
        leave(using, name)
        if name == "guilty":
            raise Boom

    def refuse(*args: Any) -> None:
        raise LookupError("nobody expects this")

    receive(act, atomic=atomic)
    send_each(alias, "a", "guilty")
    monkeypatch.setattr(hold.Held, "raised", refuse)

    assert ("FAILURE" if atomic else "SUCCESS") == work_together(celery_app, alias).state
    assert (["a"] if atomic else ["a", "guilty"]) == tags(alias)
    assert ({"ready": 1}, {(0, 0, 1)}) == (states(alias), burnt(alias))


@each_server
def test_worker_that_is_stopped_without_a_database(
    alias: str, celery_app: Celery, receive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the database is away, too, a worker that is stopped waits but a moment: the leases will end."""
    patient: list[float | None] = []
    original = durable_together.surely

    def surely(*args: Any, patience: float | None = None) -> int:
        patient.append(patience)
        return original(*args, patience=patience)

    def act() -> None:
        raise SystemExit

    monkeypatch.setattr(durable_together, "surely", surely)
    receive(act)
    send_each(alias, "a", "b")
    with pytest.raises(SystemExit):
        work_together(celery_app, alias)
    assert [durable_together.PAUSE] == patient


# All at once ---------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
def test_batch(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """The receiver is called once with all events, each with what its signal was sent with, and all are completed."""
    calls: list[list[Event]] = []

    def act(events: list[Event]) -> None:
        calls.append(events)
        for event in events:
            leave(alias, event.kwargs["instance"].name)

    receive(act, batch=True, atomic=atomic)
    for customer in customers(alias, 3):
        send(alias, instance=customer, name=f"sent of {customer.name}")
    ids = list(deliveries(alias).order_by("pk").values_list("event_id", flat=True))

    with (
        CaptureQueriesContext(connections[alias]) as queries,
        hearing(receiver_started) as started,
        hearing(receiver_succeeded) as succeeded,
    ):
        assert "SUCCESS" == work_together(celery_app, alias).state

    (events,) = calls
    assert ids == [event.id for event in events]
    assert [{"signal", "sender", "using", "instance", "name"}] * 3 == [event.kwargs.keys() for event in events]
    assert [(bell, None, alias)] * 3 == [
        (event.kwargs["signal"], event.kwargs["sender"], event.kwargs["using"]) for event in events
    ]
    assert [True] * 3 == [event.kwargs["name"] == f"sent of {event.kwargs['instance'].name}" for event in events]
    assert ids == [told["event"].id for told in started] == [told["event"].id for told in succeeded]
    found = kinds_of(queries.captured_queries)
    assert (1, 1) == (found["SELECT shop_customer"], found[f"DELETE {TABLE}"])
    assert (["customer 0", "customer 1", "customer 2"], {}) == (tags(alias), states(alias))


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
def test_batch_of_one(alias: str, celery_app: Celery, receive: Any, atomic: bool) -> None:
    """A delivery that comes alone is a list of one, in its sending's language."""
    calls: list[Any] = []
    receive(
        lambda events: calls.append(([event.kwargs["name"] for event in events], translation.get_language())),
        batch=True,
        atomic=atomic,
    )
    with translation.override("de"):
        send(alias, name="a")

    assert "SUCCESS" == work(celery_app, alias).state
    assert ([(["a"], "de")], {}) == (calls, states(alias))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("spelling", ["delay", "apply_async_on_commit"])
def test_batch_without_rows(celery_app: Celery, tasks: Tasks, spelling: str) -> None:
    """Connected without a word of ours, and without rows, its sendings come as lists of one as well."""
    calls: list[Any] = []

    def act(events: list[Event]) -> None:
        calls.append([event.kwargs["name"] for event in events])

    signal, task = Signal(), tasks.shared(act, batch=True)
    signal.connect(getattr(task, spelling))
    for name in "ab":
        signal.send(sender=None, name=name)

    assert ["SUCCESS"] * 2 == [result.state for result in drain(celery_app)]
    assert [["a"], ["b"]] == calls


@each_kind
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_not_in_the_batch(alias: str, celery_app: Celery, receive: Any, name: str) -> None:
    """What does not run is settled as if it had come alone, and is not in the list."""

    def act(events: list[Event]) -> None:
        for event in events:
            leave(alias, event.kwargs["name"])

    receive(act, batch=True)
    compare(celery_app, alias, UNREADABLE[name](alias))


@each_kind
@pytest.mark.parametrize("on_missing", ["discard", "retry", "fail"])
@pytest.mark.parametrize("atomic", [True, False])
def test_missing_instance_of_a_batch(
    alias: str, celery_app: Celery, receive: Any, on_missing: str, atomic: bool
) -> None:
    """So is one whose row is gone, as ``on_missing`` says."""

    def act(events: list[Event]) -> None:
        for event in events:
            leave(alias, event.kwargs["name"])

    receive(act, batch=True, on_missing=on_missing, atomic=atomic)

    def send_it() -> None:
        customer = Customer.objects.using(alias).create(pk=1000, name="Ada")
        send(alias, name="guilty", instance=customer)
        Customer.objects.using(alias).filter(pk=customer.pk).delete()

    compare(celery_app, alias, send_it)


@each_database("default")
def test_batch_of_none(alias: str, celery_app: Celery, receive: Any) -> None:
    """Where no event can be had, the receiver is not called."""
    calls: list[Any] = []
    receive(lambda events: calls.append(events), batch=True)
    send_each(alias, "a", "b")
    deliveries(alias).update(payload="{")

    assert "SUCCESS" == work_together(celery_app, alias).state
    assert ([], {"failed": 2}) == (calls, states(alias))


@each_kind
@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize(
    "error", [Boom(), Discard(), Fail(), RetryAfter(5), Ignore(), SoftTimeLimitExceeded(), SystemExit()], ids=repr
)
def test_batch_that_fails(alias: str, celery_app: Celery, receive: Any, atomic: bool, error: BaseException) -> None:
    """When the call fails, each event is given to the receiver alone, and nothing has counted by then."""
    calls: list[list[str]] = []

    def act(events: list[Event]) -> None:
        calls.append([event.kwargs["name"] for event in events])
        for event in events:
            leave(alias, event.kwargs["name"])
        if len(events) > 1:
            raise error

    receive(act, batch=True, atomic=atomic)
    began, ids = moment(0), send_each(alias, "a", "b", "c")
    with suppress(SystemExit), hearing(receiver_succeeded) as succeeded:
        work_together(celery_app, alias)

    assert ([], {"ready": 3}, {(0, 0, 1)}) == (succeeded, states(alias), burnt(alias))
    assert are_due(alias, 5 if isinstance(error, RetryAfter) else 0, began)
    assert ([] if atomic else ["a", "b", "c"]) == tags(alias)
    assert ["SUCCESS"] * 3 == [work(celery_app, alias, pk=pk).state for pk in ids]
    assert [["a", "b", "c"], ["a"], ["b"], ["c"]] == calls
    assert {} == states(alias)


@each_kind
def test_the_guilty_one_of_a_batch(alias: str, celery_app: Celery, receive: Any) -> None:
    """Run by themselves, only the one that fails again counts an attempt."""

    def act(events: list[Event]) -> None:
        for event in events:
            leave(alias, event.kwargs["name"])
            if event.kwargs["name"] == "guilty":
                raise Boom

    receive(act, batch=True)
    ids = send_each(alias, "a", "guilty", "b")
    work_together(celery_app, alias)

    assert ["SUCCESS", "RETRY", "SUCCESS"] == [work(celery_app, alias, pk=pk).state for pk in ids]
    assert (["a", "b"], {"ready": 1}, {(1, 0, 1)}) == (tags(alias), states(alias), burnt(alias))


@each_kind
@pytest.mark.parametrize("throw", [True, False])
@pytest.mark.parametrize("atomic", [True, False])
def test_retry_in_a_batch(alias: str, celery_app: Celery, receive: Any, throw: bool, atomic: bool) -> None:
    """``self.retry()`` speaks of all, so each runs alone, and asks for itself."""

    def act(self: Any, events: list[Event]) -> None:
        self.retry(countdown=30, throw=throw)

    receive(act, batch=True, bind=True, atomic=atomic)
    ids = send_each(alias, "a", "b")

    work_together(celery_app, alias)
    assert ({"ready": 2}, {(0, 0, 1)}) == (states(alias), burnt(alias))
    began = moment(0)
    for pk in ids:
        work(celery_app, alias, pk=pk)
    assert ({"ready": 2}, {(1, 0, 1)}) == (states(alias), burnt(alias))
    assert are_due(alias, 30, began)


@each_database("default")
def test_depth_of_a_batch(alias: str, celery_app: Celery, receive: Any) -> None:
    """What a batch sends has come as far as the event that had come farthest."""
    depths: list[int] = []
    receive(lambda events: depths.append(current_event().depth), batch=True)
    for steps in (1, 3, 2):
        send(alias)
        row = deliveries(alias).latest("pk")
        body = {**json.loads(row.payload), "chain": ["step"] * steps}
        deliveries(alias).filter(pk=row.pk).update(payload=json.dumps(body))

    work_together(celery_app, alias)
    assert [2] == depths
    assert current_event() is None


@each_server
def test_batch_of_which_another_run_has_one(alias: str, celery_app: Celery, receive: Any) -> None:
    """If another worker has one of a batch by now, nothing is committed, and the others run again, alone."""

    def act(events: list[Event]) -> None:
        leave(alias)
        elsewhere(lambda: deliveries(alias).filter(event_id=events[1].id).update(token=F("token") + 1))

    receive(act, batch=True)
    send_each(alias, "a", "b", "c")
    work_together(celery_app, alias)

    assert ([], {"running": 1, "ready": 2}) == (tags(alias), states(alias))
    assert {(0, 0, 0), (0, 0, 1)} == burnt(alias)


@each_database("default", "postgres")
def test_batch_whose_commit_fails(alias: str, celery_app: Celery, receive: Any) -> None:
    """A commit that the database refuses is no success of a batch."""

    def act(events: list[Event]) -> None:
        leave(alias)
        break_a_constraint(alias)

    receive(act, batch=True)
    send_each(alias, "a", "b")
    work_together(celery_app, alias)

    assert ([], {"ready": 2}, {(0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))


@each_kind
def test_time_limit_before_the_batch(
    alias: str, celery_app: Celery, receive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit that ends while the events are read is nobody's either."""

    def exceed(*args: Any) -> None:
        raise SoftTimeLimitExceeded

    receive(lambda events: leave(alias), batch=True)
    send_each(alias, "a", "b")
    monkeypatch.setattr("django_celery_signals.execution._wanted", exceed)

    work_together(celery_app, alias)
    assert ([], {"ready": 2}, {(0, 0, 1)}) == (tags(alias), states(alias), burnt(alias))


@each_database("default")
def test_coroutine(alias: str, celery_app: Celery, receive: Any) -> None:
    """A receiver that is a coroutine function runs to its end for each."""
    done: list[str] = []

    async def act(name: str) -> None:
        done.append(name)

    receive(act)
    send_each(alias, "a", "b")

    assert "SUCCESS" == work_together(celery_app, alias).state
    assert (["a", "b"], {}) == (done, states(alias))


@each_kind
def test_copy_beside_another_message(alias: str, celery_app: Celery, receive: Any) -> None:
    """A delivery that is in two messages, for it was published twice, runs in one of them."""
    runs: list[str] = []

    def act(using: str, name: str) -> None:
        runs.append(name)
        if name == "a":
            elsewhere(lambda: other(celery_app))

    receive(act, atomic=False)
    first, second, third = send_each(alias, "a", "b", "c")
    other = message_together(alias, pk__in=[first, third])

    assert "SUCCESS" == work_together(celery_app, alias, pk__in=[first, second]).state
    assert (["a", "c", "b"], {}) == (runs, states(alias))
