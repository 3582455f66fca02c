"""When a sending leaves: after the commit it belongs to, in order, whatever else fails; and how long that may take."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from celery import Celery
from django.apps import apps
from django.contrib.auth import authenticate
from django.contrib.auth.signals import user_login_failed
from django.core.signals import got_request_exception
from django.db import DatabaseError, IntegrityError, connections, transaction
from django.db.models.signals import m2m_changed, post_delete, post_migrate, post_save, pre_migrate, pre_save
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, TestCase, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path

from chaos.proxy import Proxy
from django_celery_signals import PublishError, handover
from django_celery_signals import breaker as breaker_module
from django_celery_signals.publisher import Publisher, publisher
from django_celery_signals.signals import event_lost, event_sent
from tests.brokers import Broker
from tests.drain import arrived, drain, take
from tests.parameters import each_broker, each_database, needs
from tests.project.celery import app, configure, disconnect
from tests.proxies import in_front_of, settings_through
from tests.receiving import Receiving, hearing
from tests.shop.models import Customer, Order, RushOrder, Tag
from tests.waiting import wait_until

TIMEOUT = 0.5
BOUND = 3 * TIMEOUT

doorbell = Signal()


def summaries(app: Celery) -> list[str]:
    """Take what was published, and say what it was."""
    return [message.body["summary"] for message in take(app)]


class Undo(Exception):
    """Makes a block roll back."""


# Commit and rollback -----------------------------------------------------------------------------------------------


@each_database
def test_published_at_the_outermost_commit(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """A sending leaves when the outermost block of its own database commits, not at a savepoint's end (H33)."""
    receiving(post_save, sender=Tag)

    with transaction.atomic(using=alias):
        with transaction.atomic(using=alias):
            tag = Tag.objects.using(alias).create(name="new")
        after_savepoint = take(celery_app)

    assert [] == after_savepoint
    assert [f"post_save shop.Tag pk={tag.pk} created"] == summaries(celery_app)


TWO = pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param("default", "other", marks=pytest.mark.django_db(transaction=True, databases=["default", "other"])),
        pytest.param(
            "postgres",
            "mariadb",
            marks=[
                pytest.mark.django_db(transaction=True, databases=["postgres", "mariadb"]),
                needs("postgres", "mariadb"),
            ],
        ),
    ],
)


@TWO
def test_each_database_has_its_own_commit(celery_app: Celery, receiving: Receiving, one: str, two: str) -> None:
    """Of two transactions at once, each publishes its own sendings when it commits, and the other's not (H33)."""
    receiving(post_save, sender=Tag)

    with transaction.atomic(using=one):
        first = Tag(name="one", pk=101)
        first.save(using=one)
        with transaction.atomic(using=two):
            Tag(name="two", pk=102).save(using=two)
        at_inner_commit = summaries(celery_app)

    assert ["post_save shop.Tag pk=102 created"] == at_inner_commit
    assert ["post_save shop.Tag pk=101 created"] == summaries(celery_app)


@TWO
def test_each_database_has_its_own_rollback(celery_app: Celery, receiving: Receiving, one: str, two: str) -> None:
    """A rollback on one database takes back its own sendings only (H33, H36)."""
    receiving(post_save, sender=Tag)

    with transaction.atomic(using=two), suppress(Undo), transaction.atomic(using=one):
        Tag(name="one", pk=101).save(using=one)
        Tag(name="two", pk=102).save(using=two)
        raise Undo

    assert ["post_save shop.Tag pk=102 created"] == summaries(celery_app)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("spelling", ["delay", "apply_async", "delay_on_commit"])
def test_the_literal_line_waits_for_the_right_database(celery_app: Celery, receiving: Receiving, spelling: str) -> None:
    """Also task.delay_on_commit, which knows no database, waits for the sending's when it is connected (H33)."""
    task = receiving(doorbell)
    post_save.connect(getattr(task, spelling), sender=Tag)
    try:
        with transaction.atomic(using="other"):
            Tag.objects.using("other").create(name="new")
            inside = take(celery_app)
    finally:
        assert post_save.disconnect(getattr(task, spelling), sender=Tag)

    assert [] == inside
    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_database_of_the_instance(celery_app: Celery, receiving: Receiving) -> None:
    """A signal without using= waits for the commit of the database that its instance is from (H33)."""
    receiving(doorbell)
    tag = Tag.objects.using("other").create(name="new")

    with transaction.atomic(using="other"):
        doorbell.send(sender=None, instance=tag)
        doorbell.send(sender=tag)
        inside = take(celery_app)

    assert [] == inside
    assert 2 == len(take(celery_app))


@each_database
@pytest.mark.parametrize("how", ["exception", "set_rollback"])
def test_nothing_after_a_rollback(celery_app: Celery, receiving: Receiving, alias: str, how: str) -> None:
    """What was rolled back never was: no message leaves (H36)."""
    receiving([post_save, pre_save, post_delete], sender=Tag)

    with suppress(Undo), transaction.atomic(using=alias):
        Tag.objects.using(alias).create(name="ghost").delete()
        if how == "exception":
            raise Undo
        transaction.set_rollback(True, using=alias)

    assert [] == take(celery_app)


@each_database
def test_savepoint_rollback_takes_the_inner_sendings_back(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """A savepoint that rolls back takes back what was sent inside of it, and nothing else (H36)."""
    receiving(post_save, sender=Tag)

    def save(pk: int) -> None:
        Tag(pk=pk, name="new").save(using=alias, force_insert=True)

    with transaction.atomic(using=alias):
        save(1)
        with suppress(Undo), transaction.atomic(using=alias):
            save(2)
            with transaction.atomic(using=alias):
                save(3)
            raise Undo
        with transaction.atomic(using=alias):
            save(4)

    assert [f"post_save shop.Tag pk={pk} created" for pk in (1, 4)] == summaries(celery_app)


@each_database("default", "postgres")  # MariaDB checks foreign keys at once
def test_nothing_when_the_commit_fails(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """A foreign key that is found broken at COMMIT takes every sending of the transaction back (H36)."""
    receiving(post_save)

    @transaction.atomic(using=alias)
    def save() -> None:
        Tag.objects.using(alias).create(name="new")
        Order.objects.using(alias).create(customer_id=999_999)

    with pytest.raises(IntegrityError):
        save()

    assert [] == take(celery_app)


@each_database
def test_durable_block(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """A durable block is the outermost one, and publishes at its end (H45)."""
    receiving(post_save, sender=Tag)

    with transaction.atomic(using=alias, durable=True):
        Tag.objects.using(alias).create(name="new")
        inside = take(celery_app)

    assert [] == inside
    assert 1 == len(take(celery_app))


@each_database
def test_broken_transaction(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """A sending inside a transaction that an SQL error has broken raises nothing of its own, and never leaves (H41)."""
    receiving([post_save, doorbell], sender=None)

    with suppress(Undo), transaction.atomic(using=alias):
        tag = Tag.objects.using(alias).create(name="new")
        with suppress(DatabaseError), connections[alias].cursor() as cursor:
            cursor.execute("SELECT there_is_no_such_column")
        answers = doorbell.send_robust(sender=tag, instance=tag)
        raise Undo

    assert [None] == [answer for _, answer in answers]
    assert [] == take(celery_app)


@pytest.mark.django_db(transaction=True)
def test_block_marked_for_rollback(celery_app: Celery, receiving: Receiving) -> None:
    """Sending inside a block that can only roll back needs no query, and is taken back with it (H41)."""
    receiving(doorbell)

    with transaction.atomic():
        tag = Tag.objects.create(name="new")
        transaction.set_rollback(True)
        doorbell.send(sender=tag, instance=tag)

    assert [] == take(celery_app)


# Order and content -------------------------------------------------------------------------------------------------


@each_database
def test_events_tell_what_was_when_they_were_sent(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """Each event holds the instance as it was at its sending: [v1, v2, delete], not what it became later (H35)."""
    seen: list[Any] = []

    def look(instance: Tag, event: Any) -> None:
        seen.append((event.signal_name.rpartition(".")[2], instance.name, instance.pk))

    receiving([post_save, post_delete], look, sender=Tag, instance="snapshot")
    with transaction.atomic(using=alias):
        tag = Tag.objects.using(alias).create(name="v1")
        pk = tag.pk
        tag.name = "v2"
        tag.save()
        tag.name = "never saved"
        tag.delete()
    results = drain(celery_app)

    assert ["SUCCESS"] * 3 == [result.state for result in results]
    assert ["v1", "v2", "never saved"] == [name for _, name, _ in seen]
    assert [pk] * 3 == [key for _, _, key in seen]
    assert ["signals:post_save", "signals:post_save", "signals:post_delete"] == [name for name, _, _ in seen]


@each_database
def test_sendings_keep_their_order(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """The sendings of one transaction are published in their order, across receivers and savepoints (H37)."""
    first = receiving(post_save, sender=Tag)
    second = receiving([post_save, post_delete], sender=Tag)

    with transaction.atomic(using=alias):
        Tag(pk=1, name="one").save(using=alias, force_insert=True)
        with transaction.atomic(using=alias):
            Tag(pk=2, name="two").save(using=alias, force_insert=True)
        Tag.objects.using(alias).get(pk=1).delete()

    assert [
        (first.name, "post_save shop.Tag pk=1 created"),
        (second.name, "post_save shop.Tag pk=1 created"),
        (first.name, "post_save shop.Tag pk=2 created"),
        (second.name, "post_save shop.Tag pk=2 created"),
        (second.name, "post_delete shop.Tag pk=1"),
    ] == [(message.task, message.body["summary"]) for message in take(celery_app)]


# Failures among others ---------------------------------------------------------------------------------------------


@pytest.fixture
def unlucky(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], None]:
    """Lets the publication of that number fail, counted from 1."""
    publish, count = Publisher.publish, iter(range(1, 1000))

    def let_fail(number: int, error: Exception) -> None:
        def fail_once(self: Publisher, *args: Any) -> None:
            if next(count) == number:
                raise error
            publish(self, *args)

        monkeypatch.setattr(Publisher, "publish", fail_once)

    return let_fail


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [PublishError("The broker is away."), RuntimeError("A fault of ours.")])
def test_failing_publication_stops_no_other(
    celery_app: Celery, receiving: Receiving, unlucky: Callable[[int, Exception], None], error: Exception
) -> None:
    """One failing publication stops neither the others, nor the request and its own hooks (H31, H38)."""
    hooks: list[str] = []
    receiving(post_save, sender=Tag)
    unlucky(2, error)

    with transaction.atomic():
        transaction.on_commit(lambda: hooks.append("before"))
        for pk in (1, 2, 3):
            Tag.objects.create(pk=pk, name="new")
        transaction.on_commit(lambda: hooks.append("after"))

    assert [f"post_save shop.Tag pk={pk} created" for pk in (1, 3)] == summaries(celery_app)
    assert ["before", "after"] == hooks


@pytest.mark.django_db(transaction=True)
def test_failing_publication_in_autocommit(
    celery_app: Celery, receiving: Receiving, unlucky: Callable[[int, Exception], None]
) -> None:
    """Without a transaction a failing publication reaches the sender no more than with one (H31)."""
    receiving(post_save, sender=Tag)
    unlucky(1, PublishError("The broker is away."))

    with hearing(event_lost) as heard:
        Tag.objects.create(name="new")
        Tag.objects.create(name="newer")

    assert 1 == len(heard)
    assert 1 == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
def test_failing_hook_of_the_request(celery_app: Celery, receiving: Receiving) -> None:
    """A hook of the request's own that raises stops the later ones, ours too, unless it is robust (H38)."""
    receiving(post_save, sender=Tag)

    def fail() -> None:
        raise Undo

    @transaction.atomic
    def save(pk: int, robust: bool) -> None:
        Tag.objects.create(pk=pk, name="before the hook")
        transaction.on_commit(fail, robust=robust)
        Tag.objects.create(pk=pk + 1, name="after the hook")

    save(1, robust=True)
    with pytest.raises(Undo):
        save(3, robust=False)

    assert [f"post_save shop.Tag pk={pk} created" for pk in (1, 2, 3)] == summaries(celery_app)


@each_database
def test_sent_from_a_hook(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """What an on_commit hook saves or sends is published as well (H39)."""
    receiving(post_save, sender=Tag)

    def save(pk: int) -> None:
        Tag(pk=pk, name="new").save(using=alias, force_insert=True)

    def save_in_a_block() -> None:
        with transaction.atomic(using=alias):
            save(2)
            transaction.on_commit(lambda: save(3), using=alias)

    with transaction.atomic(using=alias):
        transaction.on_commit(save_in_a_block, using=alias)
        save(1)

    assert {f"post_save shop.Tag pk={pk} created" for pk in (1, 2, 3)} == set(summaries(celery_app))


# Autocommit --------------------------------------------------------------------------------------------------------


@each_database
def test_published_outside_of_every_block(
    celery_app: Celery, receiving: Receiving, monkeypatch: pytest.MonkeyPatch, alias: str
) -> None:
    """Publishing begins after whatever block Django opens for a call: a worker finds the row (H34)."""
    publish, blocks = handover.publish, []

    def look_and_publish(message: Any, patience: Any) -> None:
        blocks.append(connections[alias].in_atomic_block)
        publish(message, patience)

    monkeypatch.setattr(handover, "publish", look_and_publish)
    receiving([post_save, post_delete, m2m_changed])
    tags, orders = Tag.objects.using(alias), Order.objects.using(alias)

    customer = Customer(name="Ada")
    customer.save(using=alias)
    order = orders.create(customer=customer)
    RushOrder.objects.using(alias).create(customer=customer, courier="Bo")
    tag, _ = tags.get_or_create(name="new")
    tags.update_or_create(name="new", defaults={"name": "newer"})
    order.tags.add(tag)
    order.tags.set([])
    order.tags.set([tag])
    order.tags.clear()
    order.delete()

    assert set(blocks) == {False}
    assert len(blocks) == len(take(celery_app)) >= 12


@each_database
def test_sending_around_a_migration(celery_app: Celery, receiving: Receiving, alias: str) -> None:
    """pre_migrate and post_migrate are sent without a query of ours: no table need exist yet (H42)."""
    config = apps.get_app_config("shop")

    def migrate() -> int:
        with CaptureQueriesContext(connections[alias]) as queries:
            for signal in (pre_migrate, post_migrate):
                signal.send(sender=config, app_config=config, using=alias, verbosity=0, interactive=False, plan=[])
        return len(queries)

    migrate()  # Django fills its own tables
    without = migrate()
    receiving([pre_migrate, post_migrate], sender=config)

    assert without == migrate()
    assert [alias, alias] == [dict(message.body["kwargs"])["using"] for message in take(celery_app)]


# Requests ----------------------------------------------------------------------------------------------------------


def save_and_answer(request: HttpRequest) -> HttpResponse:
    Tag.objects.create(name="new")
    return HttpResponse("saved")


def save_and_fail(request: HttpRequest) -> HttpResponse:
    Tag.objects.create(name="ghost")
    raise Undo


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[bytes]:
        Tag.objects.create(name="new")
        yield b"saved"

    return StreamingHttpResponse(lines())


async def save_in_a_thread(request: HttpRequest) -> HttpResponse:
    await sync_to_async(save_in_a_block)()
    return HttpResponse("saved")


async def save_in_a_thread_and_fail(request: HttpRequest) -> HttpResponse:
    await sync_to_async(save_in_a_block_and_fail)()
    return HttpResponse("never reached")


async def save_through_the_async_api(request: HttpRequest) -> HttpResponse:
    await Tag.objects.acreate(name="new")
    return HttpResponse("saved")


async def send_async(request: HttpRequest) -> HttpResponse:
    await doorbell.asend(sender=None)
    return HttpResponse("sent")


async def send_from_the_loop(request: HttpRequest) -> HttpResponse:
    doorbell.send(sender=None)
    return HttpResponse("sent")


@transaction.atomic
def save_in_a_block() -> None:
    Tag.objects.create(name="new")


@transaction.atomic
def save_in_a_block_and_fail() -> None:
    Tag.objects.create(name="ghost")
    raise Undo


VIEWS: list[Callable[..., Any]] = [
    save_and_answer,
    save_and_fail,
    stream,
    save_in_a_thread,
    save_in_a_thread_and_fail,
    save_through_the_async_api,
    send_async,
    send_from_the_loop,
]
urlpatterns = [path(f"{view.__name__}/", view) for view in VIEWS]

here = override_settings(ROOT_URLCONF=__name__)


@pytest.fixture
def atomic_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)


@here
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("atomic_requests")
def test_atomic_request(celery_app: Celery, receiving: Receiving) -> None:
    """Under ATOMIC_REQUESTS a view's sendings leave when its transaction commits (H44)."""
    blocks: list[bool] = []
    receiving(post_save, sender=Tag, when=lambda: blocks.append(connections["default"].in_atomic_block) or True)

    assert b"saved" == Client().get("/save_and_answer/").content
    assert [True] == blocks
    assert 1 == len(take(celery_app))


@here
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("atomic_requests")
def test_atomic_request_that_fails(celery_app: Celery, receiving: Receiving) -> None:
    """Under ATOMIC_REQUESTS a view that raises sends nothing but the news that it raised (H43, H44)."""
    receiving(post_save, sender=Tag)
    witness = receiving(got_request_exception)

    response = Client(raise_request_exception=False).get("/save_and_fail/")

    assert 500 == response.status_code
    assert [witness.name] == [message.task for message in take(celery_app)]
    assert not Tag.objects.exists()


@here
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("atomic_requests")
def test_streaming_response(celery_app: Celery, receiving: Receiving) -> None:
    """What a streaming response saves is outside of the request's transaction, and leaves at once (H44)."""
    receiving(post_save, sender=Tag)

    response = Client().get("/stream/")
    before = take(celery_app)

    assert b"saved" == b"".join(response)
    assert [] == before
    assert 1 == len(take(celery_app))


@here
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("save_in_a_thread", 1),
        ("save_in_a_thread_and_fail", 0),
        ("save_through_the_async_api", 1),
        ("send_async", 1),
        ("send_from_the_loop", 1),
    ],
)
def test_async_view(celery_app: Celery, receiving: Receiving, view: str, expected: int) -> None:
    """An async view sends like any other: after the commit of what it had done, and nothing on rollback (H24, H44)."""
    receiving([post_save], sender=Tag)
    receiving(doorbell)

    response = async_to_sync(AsyncClient(raise_request_exception=False).get)(f"/{view}/")

    assert (200 if expected else 500) == response.status_code
    assert expected == len(take(celery_app))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("send", ["send", "send_robust", "asend", "asend_robust"])
def test_every_way_to_send(celery_app: Celery, receiving: Receiving, send: str) -> None:
    """send, send_robust, asend and asend_robust all wait for the commit, and are answered None (H14, H23, H24)."""
    receiving(doorbell)

    with transaction.atomic():
        method = getattr(doorbell, send)
        answers = async_to_sync(method)(sender=None) if inspect.iscoroutinefunction(method) else method(sender=None)
        inside = take(celery_app)

    assert [None] == [answer for _, answer in answers]
    assert [] == inside
    assert 1 == len(take(celery_app))


# Audit -------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_failed_login_survives_the_rollback(celery_app: Celery, receiving: Receiving) -> None:
    """A failed login is sent at once, although the transaction around it rolls back (H43, H65)."""
    receiving(user_login_failed)

    with suppress(Undo), transaction.atomic():
        assert authenticate(username="eve", password="guess") is None
        raise Undo

    (message,) = take(celery_app)
    assert message.body["signal"].endswith("user_login_failed")
    assert "guess" not in message.sealed


# The tests of a project --------------------------------------------------------------------------------------------


class TestProject(TestCase):
    databases = {"default", "other"}

    @pytest.fixture(autouse=True)
    def set_up(self, celery_app: Celery, receiving: Receiving) -> None:
        self.app = celery_app
        receiving(post_save, sender=Tag)

    def test_nothing_leaves(self) -> None:
        """In a TestCase nothing commits, so nothing leaves (H46)."""
        Tag.objects.create(name="new")
        with transaction.atomic():
            Tag.objects.create(name="new")

        assert [] == take(self.app)

    def test_captured_hooks_are_ours(self) -> None:
        """captureOnCommitCallbacks(execute=True) publishes what was sent inside of it (H46)."""
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            tag = Tag.objects.create(name="new")

        assert 1 == len(callbacks)
        assert [f"post_save shop.Tag pk={tag.pk} created"] == summaries(self.app)

    def test_each_database_is_captured_on_its_own(self) -> None:
        """captureOnCommitCallbacks captures the hooks of one database (H46)."""
        with self.captureOnCommitCallbacks(execute=True) as of_default:
            with self.captureOnCommitCallbacks(using="other", execute=True) as of_other:
                Tag.objects.using("other").create(pk=7, name="new")
            after_other = summaries(self.app)

        assert (0, 1) == (len(of_default), len(of_other))
        assert ["post_save shop.Tag pk=7 created"] == after_other
        assert [] == take(self.app)

    def test_hooks_of_hooks_are_captured(self) -> None:
        """What captured hooks save is published, too (H39, H46)."""
        with self.captureOnCommitCallbacks(execute=True):
            transaction.on_commit(lambda: Tag.objects.create(name="new"))

        assert 1 == len(take(self.app))

    def test_rolled_back_sendings_are_not_captured(self) -> None:
        """A savepoint's rollback counts in a TestCase as well (H36, H46)."""
        with self.captureOnCommitCallbacks(execute=True) as callbacks, suppress(Undo), transaction.atomic():
            Tag.objects.create(name="ghost")
            raise Undo

        assert [] == callbacks
        assert [] == take(self.app)


# A broker that is away ---------------------------------------------------------------------------------------------

FAULTS: dict[str, Callable[[Proxy], None]] = {
    "refused": Proxy.refuse,
    "silent": Proxy.be_silent,
    "slow": lambda proxy: proxy.delay(TIMEOUT / 2),
}

short = override_settings(DJANGO_CELERY_SIGNALS={"GUARANTEE": "on_commit", "PUBLISH_TIMEOUT": TIMEOUT})
each_fault = pytest.mark.parametrize("fault", FAULTS)


@pytest.fixture
def proxy(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Stands between the app and its broker."""
    monkeypatch.setattr(breaker_module, "FIRST_PAUSE", 4 * TIMEOUT)  # longer than a test needs, on a busy machine, too
    with in_front_of(broker) as proxy, short:
        configure(settings_through(proxy, broker))
        yield proxy
        disconnect()


def save_tags(count: int = 1) -> float:
    """Save some tags in one transaction, and return how long that took."""
    start = time.monotonic()
    with transaction.atomic():
        for _ in range(count):
            Tag.objects.create(name="new")
    return time.monotonic() - start


MANY = 30


@each_fault
@each_broker("rabbitmq", "redis")
@pytest.mark.django_db(transaction=True)
def test_broker_that_is_away_costs_a_bounded_time(
    broker: Broker, proxy: Proxy, receiving: Receiving, fault: str
) -> None:
    """A commit of many messages never fails for the broker, and waits so long, and once, until it is back (H31)."""
    receiving(post_save, sender=Tag)
    FAULTS[fault](proxy)

    with hearing(event_lost) as lost, hearing(event_sent) as sent:
        first, second = save_tags(MANY), save_tags(MANY)
        errors = [told["error"] for told in lost]
        tried = ["circuit breaker" not in str(error) and "already" not in str(error) for error in errors]
        proxy.heal()
        wait_until(lambda: (save_tags(), sent)[1], what="the broker's recovery")
        after = save_tags(MANY)

    assert first < BOUND
    assert second < TIMEOUT
    assert after < BOUND
    assert tried[0]
    assert fault == "refused" or not any(tried[1:])  # what costs nothing may be tried more often
    assert MANY < len(sent) == Tag.objects.count() - len(lost)
    wait_until(lambda: broker.message_count() >= len(sent), what="the messages")


@pytest.mark.parametrize("fault", ["refused", "silent"])
@each_broker("rabbitmq", "redis")
@pytest.mark.django_db(transaction=True)
def test_second_host_takes_over(broker: Broker, proxy: Proxy, receiving: Receiving, fault: str) -> None:
    """When the first host of a broker refuses or never answers, the event goes to the second one in time (H31)."""
    receiving(post_save, sender=Tag)
    FAULTS[fault](proxy)
    through = settings_through(proxy, broker)
    configure({**through, "broker_url": [through["broker_url"], broker.url]})

    with hearing(event_lost) as lost:
        save_tags()

    assert [] == lost
    assert 1 == len(arrived(broker))


@each_fault
@each_broker("rabbitmq", "redis")
@pytest.mark.django_db(transaction=True)
def test_kept_connection_that_fails_costs_a_bounded_time(
    broker: Broker, proxy: Proxy, receiving: Receiving, fault: str
) -> None:
    """A broker that goes away after it was there is bounded in the same way (H31)."""
    receiving(post_save, sender=Tag)
    save_tags()
    FAULTS[fault](proxy)
    if fault == "slow":
        proxy.delay(2 * TIMEOUT)

    with hearing(event_lost) as lost:
        first, second = save_tags(MANY), save_tags(MANY)

    assert first < BOUND
    assert second < TIMEOUT
    assert 2 * MANY == len(lost)


@each_broker("rabbitmq", "redis")
@pytest.mark.django_db(transaction=True)
def test_broker_that_becomes_slow_costs_a_bounded_time(broker: Broker, proxy: Proxy, receiving: Receiving) -> None:
    """Messages that each take their time, though none too long, are bounded all together, commit by commit (H31)."""
    receiving(post_save, sender=Tag)
    save_tags()
    proxy.delay(TIMEOUT / 8)

    with hearing(event_lost) as lost, hearing(event_sent) as sent:
        took = [save_tags(MANY) for _ in range(2)]

    assert max(took) < BOUND
    assert sent
    assert 2 * MANY == len(lost) + len(sent)
    wait_until(lambda: broker.message_count() > len(sent), what="the messages")


@each_fault
@each_broker("rabbitmq", "redis")
@pytest.mark.django_db(transaction=True)
def test_immediate_says_that_the_broker_is_away(proxy: Proxy, receiving: Receiving, fault: str) -> None:
    """An immediate sending raises PublishError in bounded time, and at once the second time (H31)."""
    receiving(doorbell, guarantee="immediate")
    FAULTS[fault](proxy)
    took: list[float] = []

    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(PublishError):
            doorbell.send(sender=None)
        took.append(time.monotonic() - start)

    assert took[0] < BOUND
    assert took[1] < TIMEOUT


@each_broker("rabbitmq", "redis")
@pytest.mark.django_db(transaction=True)
def test_failed_login_while_the_broker_is_away(proxy: Proxy, receiving: Receiving) -> None:
    """A login that fails while the broker never answers fails like any other, in bounded time (H31, H43)."""
    receiving(user_login_failed)
    proxy.be_silent()
    start = time.monotonic()

    with hearing(event_lost) as lost:
        user = authenticate(username="eve", password="guess")

    assert user is None
    assert time.monotonic() - start < BOUND
    assert 1 == len(lost)


@each_broker("rabbitmq", "redis")
@pytest.mark.django_db(transaction=True)
def test_broker_that_was_restarted(broker: Broker, proxy: Proxy, receiving: Receiving) -> None:
    """A kept connection that was broken off meanwhile is replaced: no event is lost (H31)."""
    receiving(post_save, sender=Tag)

    with hearing(event_lost) as lost:
        for _ in range(3):
            save_tags()
            proxy.cut()

    assert [] == lost
    publisher().lines(app).breaker.check()
    wait_until(lambda: broker.message_count() >= 3, what="the messages")
