"""What a signal calls: one object per task, None as its answer, and the signals it refuses."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import weakref
from collections.abc import Callable
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction
from celery import Celery
from celery.result import AsyncResult
from django.apps import apps
from django.db.backends.signals import connection_created
from django.db.migrations.state import ProjectState
from django.db.models.signals import (
    class_prepared,
    m2m_changed,
    post_delete,
    post_init,
    post_migrate,
    post_save,
    pre_delete,
    pre_init,
    pre_save,
)
from django.db.utils import ConnectionRouter
from django.dispatch import Signal
from django.test import override_settings

from django_celery_signals import ConnectError, bridge, connect, deliveries
from django_celery_signals.bridge import Spelling, alias_of, send, target_of
from django_celery_signals.envelope import Sending
from django_celery_signals.event import Event, running
from django_celery_signals.models import QueueProbe
from django_celery_signals.signals import LIFECYCLE, event_lost
from tests.drain import drain, take
from tests.making import Tasks
from tests.receiving import Receiving, hearing
from tests.shop.models import Article, Club, Customer, Invoice, Membership, Order, Stamped, Tag

SPELLINGS = ("delay", "apply_async", "delay_on_commit", "apply_async_on_commit")
NEVER_ENDING = [pre_init, post_init, class_prepared, connection_created, *LIFECYCLE]


@pytest.fixture(autouse=True)
def at_once(settings: Any) -> None:
    """Messages leave without waiting for a database."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate"}


def sending(sender: Any = None, signal: Signal = post_save, **kwargs: Any) -> Sending:
    return Sending(signal=signal, sender=sender, kwargs=kwargs)


# Spellings ---------------------------------------------------------------------------------------------------------


def test_every_access_has_the_same_identity(tasks: Tasks) -> None:
    """By what Django tells receivers apart, all spellings of a task are one, and those of two tasks are two (H1)."""
    task, other = tasks.shared(), tasks.shared()

    identities = {(id(one.__self__), id(one.__func__)) for name in SPELLINGS for one in [getattr(task, name)]}

    assert 1 == len(identities)
    assert task.delay.__self__ is not other.delay.__self__
    assert task.delay is not task.delay


def test_a_weak_method_of_a_spelling_lives(tasks: Tasks) -> None:
    """Python's own weak reference to a bound method, by which Django holds a spelling, is never dead (H2)."""
    task = tasks.shared()

    reference = weakref.WeakMethod(task.delay)
    gc.collect()

    assert isinstance(reference(), Spelling)
    assert target_of(task.name) is reference().__self__


@pytest.mark.parametrize("in_a_thread", [False, True])
def test_the_app_of_the_task_publishes(tasks: Tasks, celery_app: Celery, in_a_thread: bool) -> None:
    """In a process with several Celery apps an event goes to the broker of the app that the task was made with."""
    task, signal = tasks.of_app(), Signal()
    signal.connect(task.delay)
    warehouse = tasks.another_app()
    warehouse.conf.task_default_queue = "warehouse"
    warehouse.set_current()

    if in_a_thread:
        thread = Thread(target=signal.send, kwargs={"sender": None})
        thread.start()
        thread.join(10)
    else:
        signal.send(sender=None)

    assert [1, 0] == [len(take(celery_app)), len(take(warehouse))]


def test_an_app_without_a_project_publishes_nothing(tasks: Tasks, celery_app: Celery) -> None:
    """The unconfigured app, which Celery makes for a task that is touched too early, never publishes (H1)."""
    fallback = Celery("fallback", loader="default", set_as_current=False)
    target = target_of(tasks.name())
    try:
        target.app = fallback
    finally:
        fallback.close()

    assert celery_app is target.app


def test_a_spelling_without_a_signal_is_celerys_method(tasks: Tasks, celery_app: Celery) -> None:
    """Called by a person, ``delay`` and ``apply_async`` are what Celery says they are."""
    task = tasks.shared(lambda number: None)

    results = [task.delay(5), task.apply_async((5,)), task.apply_async(kwargs={"number": 5}, countdown=1)]

    assert all(isinstance(result, AsyncResult) for result in results)
    assert [([5], {}), ([5], {}), ([], {"number": 5})] == [(one.args, one.kwargs) for one in take(celery_app)]


def test_what_the_registry_connects_is_called_by_signals_only() -> None:
    """The receiver that ``connect`` makes has no ordinary call to fall back on, and says so."""
    receiver = Spelling(send, target_of("tests.somewhere"))

    with pytest.raises(TypeError, match="can only be called by one"):
        receiver(5)


def test_what_a_spelling_looks_like(tasks: Tasks) -> None:
    """In a debugger, a spelling shows its task and its method, and a target its task."""
    task = tasks.shared()

    assert f"<{task.name}.apply_async>" == repr(task.apply_async)
    assert f"<receiver task {task.name}>" == repr(target_of(task.name))
    assert "delay" == task.delay.__name__


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_django_accepts_a_spelling_while_debugging(spelling: str, tasks: Tasks, settings: Any) -> None:
    """With ``DEBUG``, Django looks at a receiver's signature, and finds what it wants (H1, H3)."""
    settings.DEBUG, signal, task = True, Signal(), tasks.shared(lambda number: None)

    signal.connect(getattr(task, spelling))

    assert signal.has_listeners()
    assert True is signal.disconnect(getattr(task, spelling))


# Answers -----------------------------------------------------------------------------------------------------------


async def coroutine(**kwargs: Any) -> str:
    return "an answer"


def answer(**kwargs: Any) -> str:
    return "an answer"


WAYS: dict[str, Callable[[Signal], Any]] = {
    "send": lambda signal: signal.send(sender=None),
    "send_robust": lambda signal: signal.send_robust(sender=None),
    "asend": lambda signal: async_to_sync(signal.asend)(sender=None),
    "asend_robust": lambda signal: async_to_sync(signal.asend_robust)(sender=None),
}


@pytest.mark.django_db
@pytest.mark.parametrize("body", [answer, coroutine])
@pytest.mark.parametrize("eager", [False, True], ids=["queued", "eager"])
@pytest.mark.parametrize("way", WAYS)
def test_every_answer_is_none(way: str, eager: bool, body: Any, tasks: Tasks, celery_app: Celery) -> None:
    """Whatever is connected, however it is sent and wherever it runs, a signal's caller is told None (H14)."""
    celery_app.conf.task_always_eager = eager
    signal, task = Signal(), tasks.shared(body)
    for name in SPELLINGS:
        signal.connect(getattr(task, name), dispatch_uid=name)
    connect(signal, task)

    answers = WAYS[way](signal)

    assert [None] * 5 == [answer for _, answer in answers]


def test_a_sending_that_is_let_pass_is_answered_with_none(tasks: Tasks, celery_app: Celery) -> None:
    """An answer of False or True could be a veto or a permission, so also a sending that is none is None (H14)."""
    signal = Signal()
    connect(signal, tasks.shared(), when=lambda: False)

    assert [None] == [answer for _, answer in signal.send(sender=None)]
    assert [] == take(celery_app)


@pytest.mark.django_db
def test_a_coroutine_function_is_connected_synchronously(tasks: Tasks, celery_app: Celery) -> None:
    """What is connected of an ``async def`` task is a plain function to Django, and the worker runs it (H13)."""
    arrived: list[Any] = []

    async def body(number: int) -> None:
        await asyncio.sleep(0)
        arrived.append(number)

    signal, task = Signal(), tasks.shared(body)
    signal.connect(task.delay)
    signal.send(sender=None, number=5)
    before = list(arrived)
    results = drain(celery_app)

    assert not iscoroutinefunction(task.delay)
    assert not inspect.iscoroutinefunction(task.delay)
    assert ([], [5]) == (before, arrived)
    assert ["SUCCESS"] == [result.state for result in results]


# Refused signals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", NEVER_ENDING)
def test_signals_that_would_never_end_are_refused(signal: Signal, tasks: Tasks) -> None:
    """A signal that the worker's own work sends, or that comes too early, cannot be connected (H15, H27)."""
    task = tasks.shared()

    with pytest.raises(ConnectError, match=r"cannot be connected to .*: it .*Connect a plain function") as caught:
        connect(signal, task)

    assert task.name in str(caught.value)
    assert not signal.disconnect(task.delay)


def test_a_plain_connect_to_a_refused_signal_raises_when_it_sends(tasks: Tasks, celery_app: Celery) -> None:
    """Django's own connect asks nobody, so the first sending says why it cannot be (H27)."""
    task = tasks.shared()
    post_init.connect(task.delay, sender=Tag)
    try:
        with pytest.raises(ConnectError, match="also by the worker's own fetch, so it would never end"):
            Tag(name="new")
    finally:
        post_init.disconnect(task.delay, sender=Tag)

    assert [] == take(celery_app)


@pytest.mark.parametrize("veto", bridge._VETOES)
def test_vetoes_are_refused(veto: str, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's signal whose sender acts on the answers cannot be connected, and the reason is told (H15)."""
    module_name, name = veto.split(":")
    module, signal = ModuleType(module_name), Signal()
    setattr(module, name, signal)
    monkeypatch.setitem(sys.modules, module_name, module)

    with pytest.raises(ConnectError, match=rf"cannot be connected to {name}: its sender acts on what the receiver"):
        connect(signal, tasks.shared())


# Sending -----------------------------------------------------------------------------------------------------------


def test_a_signal_of_an_event_that_goes_in_circles_is_lost(tasks: Tasks, celery_app: Celery, settings: Any) -> None:
    """A sending beyond ``MAX_DEPTH`` is told as lost, and raises nothing into the receiver that sends it (H28)."""
    settings.DJANGO_CELERY_SIGNALS = {"MAX_DEPTH": 1, "GUARANTEE": "on_commit"}
    signal, task = Signal(), tasks.shared()
    connect(signal, task)
    event: Any = dict.fromkeys(Event.__dataclass_fields__) | {"chain": ("first", "second")}

    with hearing(event_lost) as heard, running(Event(**event)):
        answers = signal.send(sender=None)

    (told,) = heard
    assert [None] == [answer for _, answer in answers]
    assert task.name == told["receiver"]
    assert "first\n  second\n" in str(told["error"])
    assert [] == take(celery_app)


def test_a_task_that_this_process_does_not_have_is_lost(settings: Any, celery_app: Celery) -> None:
    """A target whose task the app does not know is told as lost, with the module to import (H32)."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "on_commit"}
    signal = Signal()
    signal.connect(Spelling(send, target_of("tests.nowhere")), weak=False)

    with hearing(event_lost) as heard:
        signal.send(sender=None)

    assert ["tests.nowhere"] == [told["receiver"] for told in heard]
    assert "import its module in this process" in str(heard[0]["error"])


@pytest.mark.parametrize("way", WAYS)
def test_asynchronous_and_robust_sendings(way: str, tasks: Tasks, celery_app: Celery) -> None:
    """However a signal is sent, its task gets one message (H23, H24)."""
    signal, task = Signal(), tasks.shared()
    connect(signal, task)

    WAYS[way](signal)

    assert [task.name] == [message.task for message in take(celery_app)]


@pytest.mark.parametrize("sender", ["door", None, 5, object(), Order, len])
def test_any_sender_of_a_plain_signal(sender: Any, tasks: Tasks, celery_app: Celery) -> None:
    """A signal that does not cache takes every sender there is (H22, H25)."""
    signal = Signal()
    connect(signal, tasks.shared())

    signal.send(sender=sender)

    assert 1 == len(take(celery_app))


@pytest.mark.parametrize("sender", ["door", None, 5, ["list"]])
def test_a_caching_signals_demand_is_djangos(sender: Any, tasks: Tasks, celery_app: Celery) -> None:
    """A caching signal refuses senders without weak references, as it does without our receiver; others go (H25)."""
    signal = Signal(use_caching=True)
    connect(signal, tasks.shared())

    with pytest.raises(TypeError, match="weak reference"):
        signal.send(sender=sender)
    signal.send(sender=Order)

    assert 1 == len(take(celery_app))


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("signal", "act"),
    [
        (pre_save, lambda tag: tag.save()),
        (pre_delete, lambda tag: tag.delete()),
        (post_delete, lambda tag: tag.delete()),
    ],
)
def test_rows_that_are_not_there_travel_as_values(
    signal: Signal, act: Any, receiving: Receiving, celery_app: Celery
) -> None:
    """Where a reference would lead nowhere, or to other values, the values themselves are sent (H51)."""
    arrived: list[Any] = []
    receiving(signal, lambda instance: arrived.append((instance.pk, instance.name)), sender=Tag)
    tag = Tag.objects.create(name="old")
    take(celery_app)
    expected = (tag.pk, "as it was")

    tag.name = "as it was"
    act(tag)
    Tag.objects.filter(pk=expected[0]).update(name="later")
    drain(celery_app)

    assert [expected] == arrived


# Turns -------------------------------------------------------------------------------------------------------------


DURABLE = {"GUARANTEE": "durable", "FAST_PATH_LIMIT": 0}


@pytest.mark.django_db
def test_turns_of_a_plain_connection(tasks: Tasks, settings: Any) -> None:
    """Django's own connect knows no options, so what the task declares of turns holds, for each of its sendings."""
    settings.DJANGO_CELERY_SIGNALS = DURABLE
    signal = Signal()
    for options in ({"ordered": True}, {"coalesce": True}, {"debounce": 5}, {}, {"coalesce": False}):
        signal.connect(tasks.shared(**options).delay)

    for pk in (5, "5", 6):
        signal.send(sender=None, instance=Order(pk=pk))

    rows = list(deliveries("default").order_by("pk"))
    keys = ["shop.Order:5"] * 3 + [None] * 2
    assert [*keys, *keys, *("shop.Order:6" if key else None for key in keys)] == [row.key for row in rows]
    assert [False, True, True, False, False] == [row.folds for row in rows[:5]]
    assert [{}, {}, {"debounce": 5, "max_wait": 75}, {}, {}] == [row.options for row in rows[:5]]
    assert [row.lane for row in rows[:5]] == [row.lane for row in rows[5:10]]
    assert 6 == len({row.lane for row in rows if row.lane})


@pytest.mark.parametrize("option", [{"ordered": True}, {"coalesce": True}, {"debounce": 5}])
def test_turns_without_a_row(option: dict[str, Any], tasks: Tasks, celery_app: Celery) -> None:
    """Where a plain connection has no row to wait in, the first sending says so, and nothing is sent."""
    signal = Signal()
    task = tasks.shared(**option)
    signal.connect(task.delay)

    with pytest.raises(ConnectError, match=r"is received with guarantee='immediate'\. Give guarantee='dura") as caught:
        signal.send(sender=None, instance=Order(pk=5))

    assert str(caught.value).startswith(f"receiver {task.name}: ")
    assert [] == take(celery_app)


@pytest.mark.django_db
@pytest.mark.parametrize("strict", [True, False])
def test_sending_without_a_key(strict: bool, tasks: Tasks, settings: Any) -> None:
    """A sending whose key cannot be told raises under STRICT; else it is delivered, and waits for no other."""
    settings.DJANGO_CELERY_SIGNALS = {**DURABLE, "STRICT": strict}
    signal, task = Signal(), tasks.shared(ordered=True)
    signal.connect(task.delay)

    if strict:
        with pytest.raises(ConnectError, match=rf"^{task.name} takes the events of a key in turn, but this signal has"):
            signal.send(sender=None, number=5)
    else:
        signal.send(sender=None, number=5)
    signal.send(sender=None, instance=Order())

    assert [(None, None)] * (2 - strict) == list(deliveries("default").values_list("key", "lane"))


# Where it belongs --------------------------------------------------------------------------------------------------


def saved(model: Any, alias: str | None) -> Any:
    instance = model(pk=1)
    instance._state.db = alias
    return instance


ALIASES: dict[str, tuple[Sending, str]] = {
    "using": (sending(Order, using="other", instance=saved(Order, "default")), "other"),
    "an alias nobody knows": (sending(Order, using="nowhere", instance=saved(Order, "other")), "other"),
    "using that is no alias": (sending(using=5), "default"),
    "the instance": (sending(Order, instance=saved(Order, "other"), user=saved(Customer, "default")), "other"),
    "an instance never saved": (sending(Order, instance=Order()), "routed"),
    "the only other instance": (sending("shop", user=saved(Customer, "other")), "other"),
    "several on one database": (sending("shop", one=saved(Tag, "other"), two=saved(Order, "other")), "other"),
    "several on two databases": (sending("shop", one=saved(Tag, "other"), two=saved(Tag, "default")), "default"),
    "an instance that sends": (sending(saved(Tag, "other"), number=5), "other"),
    "a model that sends": (sending(Tag), "routed"),
    "an abstract model that sends": (sending(Stamped), "default"),
    "another class": (sending(Celery), "default"),
    "nobody": (sending(None), "default"),
}


@pytest.mark.parametrize("case", ALIASES)
def test_the_database_of_a_sending(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``using`` names the database, else the instance, else the only one among the arguments, else the model (H33)."""

    def db_for_write(self: ConnectionRouter, model: Any, instance: Any = None) -> str:
        return (instance is not None and instance._state.db) or "routed"

    monkeypatch.setattr(ConnectionRouter, "db_for_write", db_for_write, raising=False)
    given, expected = ALIASES[case]

    assert expected == alias_of(given)


class FromReplicas:
    """Sends all writes to one database."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@override_settings(DATABASE_ROUTERS=["tests.unit.test_bridge.FromReplicas"])
@pytest.mark.parametrize("name", ["instance", "order"])
def test_an_instance_read_from_a_replica(name: str) -> None:
    """A sending belongs to where its instance would be saved, not to the replica it was read from (H48)."""
    assert "default" == alias_of(sending("shop", **{name: saved(Order, "other")}))


# Who is a sender ---------------------------------------------------------------------------------------------------


@pytest.fixture
def historical() -> Any:
    """A model as a migration sees it."""
    return ProjectState.from_apps(apps).apps.get_model("shop", "Tag")


@pytest.mark.django_db
def test_historical_models_send_nothing(historical: Any, receiving: Receiving, celery_app: Celery) -> None:
    """What a migration saves reaches no task, also one that receives from every sender (H9, H29)."""
    receiving(post_save)
    receiving(post_save, sender=Tag)
    receiving(m2m_changed)

    instance = historical.objects.create(name="migrated")
    post_save.send(sender=Tag, instance=instance, created=True, raw=False, using="default", update_fields=None)

    assert "__fake__" == historical.__module__
    assert [] == take(celery_app)


@pytest.mark.django_db
def test_deliveries_send_nothing(receiving: Receiving, celery_app: Celery) -> None:
    """A receiver of every sender's is told neither of deliveries nor of probes, whoever saves or deletes them (H9)."""
    receiving([pre_save, post_save, pre_delete, post_delete])
    receiving(post_save, sender=Tag, guarantee="durable")
    Tag.objects.create(name="gift")
    before = len(take(celery_app))

    for row in (deliveries("default").get(), QueueProbe(queue="mail", token=5)):
        row.save()
        row.delete()

    assert 2 == before
    assert [] == take(celery_app)


@pytest.mark.django_db
def test_a_receiver_of_every_sender(receiving: Receiving, celery_app: Celery) -> None:
    """Without a sender, a receiver copes with every model there is, also the generated ones (H9)."""
    receiving(m2m_changed)
    receiving(post_save)
    order = Order.objects.create(customer=Customer.objects.create(name="Ada"))
    order.tags.add(Tag.objects.create(name="gift"))
    Club.objects.create(name="Readers").members.add(order.customer)
    Article.objects.create(title="News", deleted=True)

    messages = take(celery_app)
    results = [celery_app.tasks[message.task].apply(kwargs=message.kwargs).state for message in messages]

    summaries = [" ".join(message.body["summary"].split()[:2]) for message in messages]
    assert {"SUCCESS"} == set(results)
    assert [
        "post_save shop.Customer",
        "post_save shop.Order",
        "post_save shop.Tag",
        "m2m_changed shop.Order_tags",
        "m2m_changed shop.Order_tags",
        "post_save shop.Club",
        f"m2m_changed {Membership._meta.label}",
        f"m2m_changed {Membership._meta.label}",
        "post_save shop.Article",
    ] == summaries


@pytest.mark.django_db
def test_post_migrate_travels(receiving: Receiving, celery_app: Celery) -> None:
    """``post_migrate`` arrives with its app, its database and its plan; what cannot travel stays behind (H29)."""
    arrived: list[Any] = []
    receiving(
        post_migrate, lambda app_config, using, plan: arrived.append((app_config, using, plan)), guarantee="immediate"
    )
    shop = apps.get_app_config("shop")

    post_migrate.send(sender=shop, app_config=shop, verbosity=0, interactive=False, using="default", plan=[], apps=apps)
    drain(celery_app)

    assert [(shop, "default", [])] == arrived


# Writes without a signal -------------------------------------------------------------------------------------------


WITHOUT_SIGNAL: dict[str, Callable[[Any], Any]] = {
    "update": lambda tag: Tag.objects.update(name="x"),
    "bulk_create": lambda tag: Tag.objects.bulk_create([Tag(name="x")]),
    "bulk_update": lambda tag: Tag.objects.bulk_update([tag], ["name"]),
    "no update_fields": lambda tag: tag.save(update_fields=[]),
    "_raw_delete": lambda tag: Tag.objects.all()._raw_delete("default"),
}


@pytest.mark.django_db
@pytest.mark.parametrize("write", WITHOUT_SIGNAL)
def test_writes_that_send_no_signal(write: str, receiving: Receiving, celery_app: Celery) -> None:
    """Django sends nothing for some writes, so no task starts for them (H26)."""
    tag = Tag.objects.create(name="old")
    for signal in (pre_save, post_save, pre_delete, post_delete):
        receiving(signal, sender=Tag)

    WITHOUT_SIGNAL[write](tag)

    assert [] == take(celery_app)


@pytest.mark.django_db
def test_the_cost_of_receiving_deletions(
    receiving: Receiving, celery_app: Celery, django_assert_num_queries: Any
) -> None:
    """Without a receiver of deletions Django deletes in one query; with one it loads the rows first (H26)."""
    Invoice.objects.bulk_create([Invoice(number=str(number)) for number in range(5)])
    with django_assert_num_queries(1):
        Invoice.objects.filter(number="4").delete()

    receiving(post_delete, sender=Invoice)
    with django_assert_num_queries(2):
        Invoice.objects.all().delete()

    assert 4 == len(take(celery_app))
