"""Declaring and connecting: one receiver per task, options in their place, errors that say what to write instead."""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal

from django_celery_signals import ConnectError, ReceiverTask, connect, connections, disconnect, receiver_task, receivers
from tests.drain import drain, take
from tests.making import KINDS, Tasks
from tests.processes import ROOT, environment
from tests.receiving import Receiving, ignore
from tests.shop.models import Customer, Order, PriorityOrder, RushOrder, Tag

SPELLINGS = ("delay", "apply_async", "delay_on_commit", "apply_async_on_commit")

order_paid = Signal()


@pytest.fixture(autouse=True)
def at_once(settings: Any) -> None:
    """Messages leave without waiting for a database."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate"}


@pytest.fixture
def signal() -> Iterator[Signal]:
    """A signal of the test's own; what is connected to it is forgotten at the end."""
    signal = Signal()
    yield signal
    for connection in [one for one in connections() if one.signal is signal]:
        receivers._connections = {key: one for key, one in receivers._connections.items() if one is not connection}


# One receiver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_spelling_is_one_receiver(kind: str, tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """Whatever the spelling, and as often as it is connected, a task is one receiver and gets one message (H1)."""
    task = getattr(tasks, kind)()

    for spelling in SPELLINGS:
        signal.connect(getattr(task, spelling), sender=Order)
        connect(signal, getattr(task, spelling), sender=Order)
    connect(signal, task, sender=Order)
    receiver_task(signal, sender=Order)(task)
    signal.send(sender=Order, number=5)

    assert 1 == len(signal.receivers)
    assert [task.name] == [message.task for message in take(celery_app)]


MAKE: dict[str, Callable[[Signal, Any], Any]] = {
    **{name: lambda signal, task, name=name: signal.connect(getattr(task, name), sender=Order) for name in SPELLINGS},
    "connect": lambda signal, task: connect(signal, task, sender=Order),
    "receiver_task": lambda signal, task: receiver_task(signal, sender=Order)(task),
}
UNDO: dict[str, Callable[[Signal, Any], bool]] = {
    **{
        name: lambda signal, task, name=name: signal.disconnect(getattr(task, name), sender=Order) for name in SPELLINGS
    },
    "disconnect": lambda signal, task: disconnect(signal, task, sender=Order),
    "disconnect(delay)": lambda signal, task: disconnect(signal, task.delay, sender=Order),
}


@pytest.mark.parametrize("undone", UNDO)
@pytest.mark.parametrize("made", MAKE)
def test_any_spelling_disconnects_any_other(made: str, undone: str, tasks: Tasks, signal: Signal) -> None:
    """A connection is undone by any spelling of its task, and the answer is True once (H1)."""
    task = tasks.shared()
    MAKE[made](signal, task)

    assert True is UNDO[undone](signal, task)
    assert False is UNDO[undone](signal, task)
    assert not signal.has_listeners(Order)


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_survives_garbage_collection(kind: str, tasks: Tasks, celery_app: Celery) -> None:
    """Nobody but the library needs to hold what was connected, in whatever way (H2)."""
    task, signals = getattr(tasks, kind)(), [Signal() for _ in MAKE]
    for make, signal in zip(MAKE.values(), signals, strict=True):
        make(signal, task)

    gc.collect()
    for signal in signals:
        signal.send(sender=Order, number=5)

    assert len(MAKE) == len(take(celery_app))


def test_the_same_receiver_under_several_apps(tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """A shared task is another object in every app, and still one receiver (H1)."""
    task = tasks.shared()
    signal.connect(task.delay, sender=Order)
    here = task._get_current_object()

    tasks.another_app().set_current()
    there = task._get_current_object()
    signal.connect(task.delay, sender=Order)

    assert here is not there
    assert 1 == len(signal.receivers)
    assert True is signal.disconnect(task.delay, sender=Order)


LITERAL = """
import gc, json, os, sys, threading

import django
from django.conf import settings

def at_once(action):
    action()

def never(action):
    pass

def in_a_thread(action):
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()

early, configured = globals()[sys.argv[1]], sys.argv[2] == "configured"

if configured:
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_celery_signals", "tests.shop"],
        AUTH_USER_MODEL="shop.User",
        USE_TZ=True,
        SECRET_KEY="only for a test",
        DJANGO_CELERY_SIGNALS={"GUARANTEE": "on_commit"},
    )
else:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()

from celery import Celery, shared_task
from django.db.models.signals import post_save
from django_celery_signals import ReceiverTask, connect, receiver_task
from django_celery_signals.handover import counts
from tests.drain import drain
from tests.shop.models import Order

arrived = []

@shared_task(base=ReceiverTask, ignore_result=True)
def literal(sender, signal, instance, created, update_fields, raw, using):
    arrived.append([sender is Order, signal is post_save, created, update_fields, raw, using])

@receiver_task(post_save, sender=Order, instance="snapshot")
def declared(sender, instance, created, **kwargs):
    arrived.append([sender is Order, instance.pk, created])

spelled = []
early(lambda: spelled.append(literal.delay))
early(lambda: post_save.connect(literal.delay, sender=Order))
early(lambda: connect(post_save, literal.apply_async, sender=Order))

app = Celery("project", broker="memory://")
app.conf.task_default_queue = "project"
post_save.connect(literal.delay_on_commit, sender=Order)
in_a_thread(lambda: post_save.connect(literal.delay, sender=Order))
connect(post_save, literal, sender=Order, instance="snapshot")
gc.collect()
receivers = len(post_save.receivers)

def send():
    order = Order(pk=5)
    post_save.send(sender=Order, instance=order, created=True, update_fields=None, raw=False, using="default")

send()
in_a_thread(send)
results = [result.state for result in drain(app)]

spelled.append(literal.delay)
gone = [post_save.disconnect(spelling, sender=Order) for spelling in (spelled[0], spelled[-1])]
print(json.dumps([receivers, results, arrived, gone, dict(counts)]))
"""


@pytest.mark.parametrize(
    ("early", "settings_from"), [("never", "module"), ("at_once", "configured"), ("in_a_thread", "module")]
)
def test_before_and_after_the_project_is_loaded(early: str, settings_from: str, tmp_path: Path) -> None:
    """A task that is touched before the project's app exists sends there afterwards, in every thread (H1, H2, H71)."""
    receivers, results, arrived, gone, counts = outcome_of(LITERAL, tmp_path, early, settings_from)

    assert 2 == receivers
    assert ["SUCCESS"] * 4 == results
    literal, declared = [True, True, True, None, False, "default"], [True, 5, True]
    assert sorted([literal, literal, declared, declared], key=len) == sorted(arrived, key=len)
    assert [True, False] == gone
    assert {"sent": 4} == counts


def outcome_of(code: str, folder: Path, *arguments: str) -> Any:
    """Import a module in a process of its own and return the JSON it prints last."""
    (folder / "page.py").write_text(code)
    env = {name: value for name, value in environment().items() if name != "DJANGO_SETTINGS_MODULE"}
    env["PYTHONPATH"] = os.pathsep.join([str(folder), env["PYTHONPATH"]])
    command = [sys.executable, "-c", "import page", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Identity ----------------------------------------------------------------------------------------------------------


def test_the_same_task_on_two_senders(tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """Two senders of one task are two connections (H4)."""
    task = tasks.shared()
    connect(signal, task, sender=Order)
    connect(signal, task, sender=Tag)

    signal.send(sender=Order)
    signal.send(sender=Customer)
    signal.send(sender=Tag)

    assert [Order, Tag] == [one.sender for one in connections() if one.signal is signal]
    assert 2 == len(take(celery_app))


def test_two_tasks_on_one_sender(tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """Two tasks of one sender are two connections (H4)."""
    one, other = tasks.shared(), tasks.shared()
    connect(signal, one, sender=Order)
    connect(signal, other, sender=Order)

    signal.send(sender=Order)

    assert [one.name, other.name] == [message.task for message in take(celery_app)]


def test_dispatch_uid_tells_connections_of_one_task_apart(tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """The same task, signal and sender connected under two ``dispatch_uid`` receives twice, each as it says (H4)."""
    task = tasks.shared()
    connect(signal, task, sender=Order, dispatch_uid="first", priority=1)
    connect(signal, task, sender=Order, dispatch_uid="second", priority=2)

    signal.send(sender=Order)

    assert [1, 2] == [message.properties["priority"] for message in take(celery_app)]
    assert True is disconnect(signal, task, sender=Order, dispatch_uid="first")
    assert True is signal.disconnect(sender=Order, dispatch_uid="second")
    assert not signal.has_listeners(Order)


def test_a_given_dispatch_uid_wins(tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """As with Django's own connect, the second task under a ``dispatch_uid`` is not connected (H4)."""
    first, second = tasks.shared(), tasks.shared()
    signal.connect(first.delay, sender=Order, dispatch_uid="mine")
    signal.connect(second.delay, sender=Order, dispatch_uid="mine")

    signal.send(sender=Order)

    assert [first.name] == [message.task for message in take(celery_app)]


def test_options_of_a_repetition_replace(tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """Connecting again with other options changes the connection instead of adding one (H4)."""
    task = tasks.shared()
    for priority in (1, 2, 2):
        connect(signal, task, sender=Order, priority=priority)

    signal.send(sender=Order)

    assert [2] == [message.properties["priority"] for message in take(celery_app)]
    assert [2] == [one.options.priority for one in connections() if one.signal is signal]


def test_options_after_a_plain_connect(tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """``connect`` gives its options to a connection that a plain ``signal.connect`` made, which takes none away."""
    task = tasks.shared()
    signal.connect(task.delay, sender=Order)
    connect(signal, task, sender=Order, priority=3)
    signal.connect(task.delay, sender=Order)

    signal.send(sender=Order)

    assert [3] == [message.properties["priority"] for message in take(celery_app)]


def test_the_registry_knows_what_the_library_connected(tasks: Tasks, signal: Signal) -> None:
    """``connections`` lists what ``connect`` did and ``disconnect`` undoes; a plain connect leaves no entry."""
    plain, known = tasks.shared(), tasks.shared()
    signal.connect(plain.delay, sender=Order)
    connect(signal, known, sender=Order, dispatch_uid="mine", queue="mail")

    (entry,) = [one for one in connections() if one.signal is signal]
    assert (known.name, Order, "mine", "mail") == (
        entry.receiver,
        entry.sender,
        entry.dispatch_uid,
        entry.options.queue,
    )

    disconnect(signal, known, sender=Order, dispatch_uid="mine")
    assert [] == [one for one in connections() if one.signal is signal]


def test_repeated_connections_keep_nothing(tasks: Tasks, signal: Signal) -> None:
    """Connecting a thousand times leaves one receiver and no finalizer per time (H5)."""
    task = tasks.shared()
    connect(signal, task, sender=Order)
    before = set(weakref.finalize._registry)

    for _ in range(1000):
        connect(signal, task, sender=Order)

    assert 1 == len(signal.receivers)
    assert set() == set(weakref.finalize._registry) - before


# One file, two modules ---------------------------------------------------------------------------------------------


RECEIVERS = """
import functools

from django.dispatch import Signal
from django_celery_signals import receiver_task
from tests.unit.test_receivers import logged, order_paid

@receiver_task(order_paid, priority=4)
@logged
def count_payment(**kwargs): ...
"""


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as projects write them: the wrapper's code is in this file, its names are the function's."""

    @functools.wraps(function)
    def wrapper(**kwargs: Any) -> Any:
        return function(**kwargs)

    return wrapper


@dataclass(frozen=True, slots=True)
class Modules:
    """Imports files as modules; what they connect to ``order_paid`` is undone."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def import_file(self, name: str, file_name: str) -> ModuleType:
        file = self.folder / file_name
        file.write_text(RECEIVERS)
        return self.load(name, file)

    def load(self, name: str, file: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        self.monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    def execute(self, name: str) -> ModuleType:
        module = ModuleType(name)
        self.monkeypatch.setitem(sys.modules, name, module)
        exec(RECEIVERS, vars(module))
        return module


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, celery_app: Celery) -> Iterator[Modules]:
    yield Modules(tmp_path, monkeypatch)
    for connection in [one for one in connections() if one.signal is order_paid]:
        task = celery_app._tasks.pop(connection.receiver)
        disconnect(order_paid, task)


def test_one_file_under_two_names_is_one_receiver(modules: Modules, celery_app: Celery) -> None:
    """A file that is imported both as ``shop.receivers`` and as ``site.shop.receivers`` receives once (H4)."""
    one = modules.import_file("shop_receivers", "receivers.py")
    other = modules.import_file("site_shop_receivers", "receivers.py")

    order_paid.send(sender=None)

    assert one.count_payment is other.count_payment
    assert ["shop_receivers.count_payment"] == [message.task for message in take(celery_app)]


def test_equal_names_in_two_files_are_two_receivers(modules: Modules, celery_app: Celery) -> None:
    """Functions of the same name in different files stay apart, also behind one shared decorator (H4)."""
    modules.import_file("shop_receivers", "shop.py")
    modules.import_file("blog_receivers", "blog.py")

    order_paid.send(sender=None)

    expected = ["shop_receivers.count_payment", "blog_receivers.count_payment"]
    assert expected == [message.task for message in take(celery_app)]


def test_equal_names_in_modules_without_a_file_are_two_receivers(modules: Modules, celery_app: Celery) -> None:
    """Functions of the same name that were typed into two consoles stay apart (H4)."""
    modules.execute("first_console")
    modules.execute("second_console")

    order_paid.send(sender=None)

    assert 2 == len(take(celery_app))


@pytest.mark.filterwarnings("ignore:.*is already registered")  # newer versions of Celery warn
def test_running_a_module_again_adds_no_receiver(modules: Modules, celery_app: Celery) -> None:
    """A module that is executed again, as a reloader does, receives once (H4)."""
    modules.import_file("shop_receivers", "receivers.py")
    modules.import_file("shop_receivers", "receivers.py")

    order_paid.send(sender=None)

    assert 1 == len(take(celery_app))


def test_an_iterator_of_senders_serves_every_signal(signal: Signal, tasks: Tasks) -> None:
    """Senders that can be gone through only once are connected to, and taken from, each of several signals (H8)."""
    task, both = tasks.shared(), [signal, Signal()]

    connect(both, task, sender=iter([Order, Tag]))
    assert 4 == len([one for one in connections() if one.receiver == task.name])

    assert disconnect(both, task, sender=iter([Order, Tag]))
    assert [] == [one for one in connections() if one.receiver == task.name]


def test_two_functions_of_one_task_name(signal: Signal, tasks: Tasks) -> None:
    """A second function under a task name, of which Celery would run the first only, is refused (H4)."""
    name = tasks.name()

    def one(**kwargs: Any) -> None: ...

    def other(**kwargs: Any) -> None: ...

    receiver_task(signal, name=name)(one)
    with pytest.raises(ConnectError, match=rf"{name}' is taken by .*one of .*test_receivers\.py.*name=\.\.\."):
        receiver_task(signal, name=name)(other)


@pytest.mark.filterwarnings("ignore:.*is already registered")  # newer versions of Celery warn
def test_two_functions_of_one_name_in_one_module(signal: Signal, modules: Modules) -> None:
    """A function that is overwritten in its own module is refused; the module itself may be loaded again (H4)."""
    file = modules.folder / "twins.py"
    file.write_text("from tests.unit.test_receivers import order_paid, receiver_task\n" + TWIN * 2)

    with pytest.raises(ConnectError, match=r"twins\.twin' is taken by twin of"):
        modules.load("twins", file)
    file.write_text("from tests.unit.test_receivers import order_paid, receiver_task\n\n" + TWIN)
    modules.load("twins", file)


TWIN = """
@receiver_task(order_paid)
def twin(**kwargs): ...
"""


def test_a_function_made_anew_without_values_of_its_own(signal: Signal) -> None:
    """A receiver inside a function that is called twice, such as ``ready()``, is one receiver (H4)."""

    def ready() -> Any:
        @receiver_task(signal)
        def made_when_ready(**kwargs: Any) -> None: ...

        return made_when_ready

    ready()
    assert 1 == len([one for one in connections() if one.signal is signal])
    task = ready()
    assert 1 == len([one for one in connections() if one.signal is signal])
    assert disconnect(signal, task)


def test_methods_of_two_objects(signal: Signal) -> None:
    """A bound method is another receiver for each object, and is refused under the name of the first (H4)."""

    class Counter:
        def count_for_an_object(self, **kwargs: Any) -> None: ...

    first = receiver_task(signal)(Counter().count_for_an_object)
    with pytest.raises(ConnectError, match="count_for_an_object' is taken by"):
        receiver_task(signal)(Counter().count_for_an_object)
    disconnect(signal, first)


def test_a_function_made_anew_needs_a_name_of_its_own(signal: Signal) -> None:
    """What a factory decorates is another function each time, and is refused under the name of the first (H4)."""

    def make(sender: Any) -> Any:
        @receiver_task(signal, sender=sender)
        def made_by_a_factory(**kwargs: Any) -> Any:
            return sender

        return made_by_a_factory

    first = make(Order)
    with pytest.raises(ConnectError, match="made_by_a_factory' is taken by"):
        make(Tag)
    disconnect(signal, first, sender=Order)


def test_a_task_of_another_app_is_sent_there(signal: Signal, tasks: Tasks, celery_app: Celery) -> None:
    """``connect(signal, task)`` sends through the app of the task, whichever app is the current one (H1)."""
    warehouse = tasks.another_app()
    warehouse.conf.task_default_queue = "warehouse"
    task = warehouse.task(base=ReceiverTask, name=tasks.name())(ignore)
    celery_app.set_current()

    connect(signal, task)
    signal.send(sender=None)

    assert [0, 1] == [len(take(celery_app)), len(take(warehouse))]


# Declaring ---------------------------------------------------------------------------------------------------------


def test_receiver_task_makes_a_shared_task(tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """The decorated function is a Celery task of the class ``ReceiverTask``, with Celery's options, and connected."""
    task = receiver_task(signal, sender=Order, name=tasks.name(), max_retries=7, time_limit=30)(ignore)

    signal.send(sender=Order)

    assert isinstance(task, ReceiverTask)
    assert (7, 30) == (task.max_retries, task.time_limit)
    assert [task.name] == [message.task for message in take(celery_app)]


def test_the_name_of_a_task_is_where_its_function_is(modules: Modules) -> None:
    """Without ``name=``, a task is called after its module and function, whatever app it is made for."""
    assert "shop_receivers.count_payment" == modules.import_file("shop_receivers", "receivers.py").count_payment.name


def test_receiver_task_stacks(tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """Several decorators over one function are one task with several connections, each with its own options."""
    outer = receiver_task(signal, sender=Tag, priority=2)
    inner = receiver_task(signal, sender=Order, priority=1, name=tasks.name(), max_retries=7)
    task = outer(inner(ignore))

    signal.send(sender=Order)
    signal.send(sender=Tag)

    assert [(task.name, 1), (task.name, 2)] == [(m.task, m.properties["priority"]) for m in take(celery_app)]


@pytest.mark.parametrize("option", [{"max_retries": 3}, {"atomic": False}, {"base": ReceiverTask}])
def test_options_of_a_task_on_top_of_a_task(option: dict[str, Any], tasks: Tasks, signal: Signal) -> None:
    """Options that only the making of a task can take raise when there is a task already, and say where they belong."""
    task = tasks.shared()

    with pytest.raises(ConnectError, match="in its own decorator, or in the lowest @receiver_task") as caught:
        receiver_task(signal, **option)(task)

    assert next(iter(option)) in str(caught.value)
    assert task.name in str(caught.value)


def test_several_signals_and_senders(tasks: Tasks, celery_app: Celery) -> None:
    """A list of signals and a list of senders connect each pair, and are disconnected alike (H8)."""
    signals, senders, task = [Signal(), Signal()], [Order, "shop.Tag"], tasks.shared()
    connect(signals, task, sender=senders)

    for signal in signals:
        for sender in (Order, Tag, Customer):
            signal.send(sender=sender)

    assert 4 == len(take(celery_app))
    assert True is disconnect(signals[0], task, sender=Order)
    assert True is disconnect(signals, task, sender=senders)
    assert [False, False] == [signal.has_listeners(sender) for signal in signals for sender in [Order]]
    assert False is disconnect(signals, task, sender=senders)


def test_disconnect_needs_the_same_sender(tasks: Tasks, signal: Signal) -> None:
    """What was connected for one sender is not disconnected for another (H8)."""
    task = tasks.shared()
    connect(signal, task, sender=Order)

    assert False is disconnect(signal, task)
    assert False is disconnect(signal, task, sender=Tag)
    assert True is disconnect(signal, task, sender=Order)


@pytest.mark.django_db
def test_the_worker_needs_no_connection(tasks: Tasks, signal: Signal, celery_app: Celery) -> None:
    """A message runs by its task's name; only the sending process needs the connection (H16)."""
    arrived: list[Any] = []
    task = tasks.shared(lambda number: arrived.append(number))
    connect(signal, task)
    signal.send(sender=None, number=5)
    disconnect(signal, task)

    drain(celery_app)

    assert [5] == arrived


@pytest.mark.django_db
def test_signal_name(tasks: Tasks, celery_app: Celery) -> None:
    """``signal_name`` gives a signal that no module holds the name under which the worker finds it."""
    arrived: list[Any] = []
    hidden = [Signal()]
    connect(hidden[0], tasks.shared(lambda signal: arrived.append(signal)), signal_name="tests:hidden")

    hidden[0].send(sender=None)
    (message,) = take(celery_app)
    celery_app.tasks[message.task].apply(kwargs=message.kwargs)

    assert "tests:hidden" == message.body["signal"]
    assert hidden == arrived


@pytest.mark.django_db
def test_a_signal_without_a_name_is_named_by_its_connection(tasks: Tasks, celery_app: Celery) -> None:
    """A signal that no module holds travels under the name of its connection, which both processes make."""
    arrived: list[Any] = []
    hidden, task = [Signal()], tasks.shared(lambda signal: arrived.append(signal))
    connect(hidden[0], task, sender=Order)

    hidden[0].send(sender=Order)
    (message,) = take(celery_app)
    celery_app.tasks[message.task].apply(kwargs=message.kwargs)

    assert f"connection:{task.name}:shop.Order" == message.body["signal"]
    assert hidden == arrived


@pytest.mark.django_db
def test_a_receiver_of_subclasses(tasks: Tasks, celery_app: Celery) -> None:
    """``subclasses=True`` receives what proxies and children of the sender send, and is disconnected alike (H10)."""
    task = tasks.shared()
    for uid in (None, "second"):
        connect(post_save, task, sender=Order, subclasses=True, dispatch_uid=uid)

    for model in (Order, PriorityOrder, RushOrder, Tag):
        post_save.send(sender=model, instance=model(pk=5), created=True, raw=False, using="default")

    assert ["shop.Order", "shop.PriorityOrder", "shop.RushOrder"] == sorted(
        {message.body["summary"].split()[1] for message in take(celery_app)}
    )
    for uid in (None, "second"):
        assert disconnect(post_save, task, sender=Order, subclasses=True, dispatch_uid=uid)
    assert not disconnect(post_save, task, sender=Order, subclasses=True)


# Errors ------------------------------------------------------------------------------------------------------------


def test_a_plain_function_is_no_task(signal: Signal) -> None:
    """Connecting a function that is no task raises and shows the decorator."""
    with pytest.raises(ConnectError, match=r"ignore.* is not a Celery task\. Decorate it: @receiver_task\(signal"):
        connect(signal, ignore)


@pytest.mark.parametrize("spell", [lambda task: task, lambda task: task.delay, lambda task: task.apply_async])
def test_an_ordinary_task_is_no_receiver(spell: Callable[[Any], Any], signal: Signal, celery_app: Celery) -> None:
    """Connecting an ordinary Celery task, in any spelling, raises and names both remedies."""
    task = celery_app.task(name="tests.ordinary")(ignore)

    with pytest.raises(
        ConnectError, match=r"base=ReceiverTask.*task_cls='django_celery_signals:ReceiverTask'"
    ) as caught:
        connect(signal, spell(task))

    assert "'tests.ordinary'" in str(caught.value)
    celery_app._tasks.pop("tests.ordinary")


@pytest.mark.parametrize("thing", [5, "shop.tasks.update", functools.partial(ignore)])
def test_receiver_task_decorates_functions(thing: Any, signal: Signal) -> None:
    """What has no name to be called by raises, showing the thing."""
    with pytest.raises(ConnectError, match="decorates a function or a task") as caught:
        receiver_task(signal)(thing)

    assert repr(thing) in str(caught.value)


@pytest.mark.parametrize("thing", ["post_save", 5, None, [post_save, "post_delete"], [None]])
def test_only_signals_can_be_connected(thing: Any, tasks: Tasks) -> None:
    """What is no signal raises, and nothing is connected, not even the signals beside it."""
    task = tasks.shared()

    with pytest.raises(ConnectError, match=r"is not a django\.dispatch\.Signal\. Give a signal, or a list of signals"):
        connect(thing, task, sender=Order)

    assert False is disconnect(post_save, task, sender=Order)


@pytest.mark.parametrize("base", [object, Celery, "ReceiverTask"])
def test_the_base_must_be_a_receiver_task(base: Any, signal: Signal) -> None:
    """``base`` must keep what makes a task a receiver."""
    with pytest.raises(ConnectError, match=r"base=.* must be a subclass of ReceiverTask"):
        receiver_task(signal, base=base)(ignore)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("guarante", "guarantee"), ("change", "changed"), ("onmissing", "on_missing"), ("dispatch_id", "dispatch_uid")],
)
def test_typos_in_the_decorator_are_caught(typo: str, meant: str, signal: Signal) -> None:
    """A word that is almost an option of ours is not passed on to Celery, which would keep it silently."""
    with pytest.raises(
        ConnectError, match=rf"receiver_task\(ignore\): unknown option {typo}=\. Did you mean {meant}=\?"
    ):
        receiver_task(signal, **{typo: "x"})(ignore)


def test_options_of_celery_and_of_the_project_pass(tasks: Tasks, signal: Signal) -> None:
    """Other words are attributes of the task, as in Celery's own decorator."""
    task = receiver_task(signal, name=tasks.name(), expires=60, rate_limit="9/s", owner="shop team")(ignore)

    assert ("9/s", "shop team") == (task.rate_limit, task.owner)


@pytest.mark.parametrize(
    "option",
    [
        {"atomic": False},
        {"on_missing": "fail"},
        {"former_names": ["old"]},
        {"ordered": True},
        {"on_failure": "park"},
        {"chunk_size": 50},
        {"batch": True},
    ],
)
def test_running_options_belong_to_the_decorator(option: dict[str, Any], tasks: Tasks, signal: Signal) -> None:
    """A running option given to ``connect`` raises and names the decorator, for a worker knows only the task."""
    (name,) = option

    with pytest.raises(ConnectError, match=rf"{name}= belongs to the task.*@receiver_task\(\.\.\., {name}=\.\.\.\)"):
        connect(signal, tasks.shared(), **option)


def test_unknown_options_of_connect(tasks: Tasks, signal: Signal) -> None:
    """An option that ``connect`` does not have raises, names the receiver and lists the options there are."""
    task = tasks.shared()

    with pytest.raises(
        ConnectError, match=r"unknown option max_retries=\. Sending options are guarantee, when, "
    ) as caught:
        connect(signal, task, max_retries=3)

    assert task.name in str(caught.value)


def test_one_name_is_not_for_several_signals(tasks: Tasks) -> None:
    """``signal_name`` with a list of signals raises: the worker could not tell them apart."""
    with pytest.raises(ConnectError, match="signal_name='mine' names one signal; connect them one by one"):
        connect([Signal(), Signal()], tasks.shared(), signal_name="mine")


def test_an_error_connects_nothing(tasks: Tasks) -> None:
    """When one of several signals cannot be connected, none is."""
    task = tasks.shared(lambda created, **kwargs: None)

    with pytest.raises(ConnectError):
        connect([post_save, pre_save], task, sender=Order)

    assert False is disconnect([post_save, pre_save], task, sender=Order)


@pytest.mark.parametrize("kind", ["decorated", "shared", "spelled", "bound", "by class"])
def test_parameters_that_never_come(kind: str, tasks: Tasks) -> None:
    """A required parameter that Django's signal never sends raises when connecting, for every kind of task (H3)."""

    def body(instance: Any, creatd: bool, **kwargs: Any) -> None: ...

    def bound(self: Any, instance: Any, creatd: bool) -> None: ...

    class ByClass(ReceiverTask):
        name = tasks.name()

        def run(self, creatd: bool) -> None: ...

    connecting = {
        "decorated": lambda: receiver_task(post_save, sender=Order, name=tasks.name())(body),
        "shared": lambda: connect(post_save, tasks.shared(body), sender=Order),
        "spelled": lambda: connect(post_save, tasks.shared(body).delay, sender=Order),
        "bound": lambda: receiver_task(post_save, sender=Order, name=tasks.name(), bind=True)(bound),
        "by class": lambda: connect(post_save, tasks.app.register_task(ByClass()), sender=Order),
    }
    with pytest.raises(
        ConnectError, match=r"post_save never sends 'creatd', which the function requires\. It sends creat"
    ):
        connecting[kind]()


def test_a_target_that_was_only_named_is_connected_unseen(tasks: Tasks, signal: Signal) -> None:
    """A spelling that carries no task, as the registry gives it, is connected by its name alone."""
    task = tasks.shared()

    connect(signal, receivers._spelling(task.name), sender=Order)

    assert True is disconnect(signal, task, sender=Order)


def test_options_on_the_task_are_checked_when_connecting(tasks: Tasks) -> None:
    """What the task declares is part of the connection, and fails there when it can never work."""
    with pytest.raises(
        ConnectError, match="guarantee='always' cannot be; it must be 'durable' or 'on_commit' or 'immediate'"
    ) as caught:
        connect(order_paid, tasks.shared(guarantee="always"))
    assert "task tests.made" in str(caught.value)

    with pytest.raises(ConnectError, match="created= needs a signal that says so"):
        connect(post_delete, tasks.shared(created=True), sender=Order)


# Receivers that take turns -----------------------------------------------------------------------------------------


class Ordered(ReceiverTask):
    """A project's base class of tasks that take events in order."""

    ordered = True


MAKE_ORDERED: dict[str, Callable[[Tasks, dict[str, Any]], None]] = {
    "decorated": lambda tasks, given: receiver_task(order_paid, name=tasks.name(), ordered=True, **given)(ignore),
    "by its base": lambda tasks, given: receiver_task(order_paid, name=tasks.name(), base=Ordered, **given)(ignore),
    "shared": lambda tasks, given: connect(order_paid, tasks.shared(ordered=True), **given),
    "spelled": lambda tasks, given: connect(order_paid, tasks.shared(ordered=True).delay, **given),
    "by class": lambda tasks, given: connect(
        order_paid,
        tasks.app.register_task(type("Made", (Ordered,), {"name": tasks.name(), "run": staticmethod(ignore)})()),
        **given,
    ),
}
of_order = {"key": lambda order_id: order_id}


@pytest.fixture
def paid() -> Iterator[None]:
    """What a test connects to the signal is disconnected in the end."""
    yield
    for one in [one for one in connections() if one.signal is order_paid]:
        disconnect(order_paid, receivers._spelling(one.receiver))


@pytest.mark.parametrize("kind", MAKE_ORDERED)
@pytest.mark.usefixtures("paid")
def test_an_ordered_receiver_needs_a_row(kind: str, tasks: Tasks) -> None:
    """Whatever makes a receiver ordered, it cannot be connected where there is no row to wait in."""
    make = MAKE_ORDERED[kind]
    with pytest.raises(ConnectError, match=r"received with guarantee='immediate'\. Give guarantee='durable'"):
        make(tasks, {})
    with pytest.raises(ConnectError, match="order_paid is received with guarantee='on_commit'"):
        make(tasks, {**of_order, "guarantee": "on_commit"})
    assert not order_paid.has_listeners()

    make(tasks, {**of_order, "guarantee": "durable"})
    assert [of_order["key"]] == [one.options.key for one in connections() if one.signal is order_paid]


@pytest.mark.parametrize("kind", MAKE_ORDERED)
@pytest.mark.usefixtures("paid")
def test_an_ordered_receiver_before_the_project_is_loaded(
    kind: str, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is known what the project's guarantee is, only one that is named can be refused."""
    monkeypatch.setattr(receivers.apps, "apps_ready", False)

    MAKE_ORDERED[kind](tasks, {})
    with pytest.raises(ConnectError, match="is received with guarantee='immediate'"):
        MAKE_ORDERED[kind](tasks, {"guarantee": "immediate"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"key": lambda order_id: order_id}, "key= says what is taken in turn, so it needs ordered=True on the task"),
        ({"coalesce": True}, "ordered=, coalesce= and debounce= need the row of a delivery"),
        ({"debounce": 5}, "ordered=, coalesce= and debounce= need the row of a delivery"),
        ({"max_wait": 5}, "max_wait=5 bounds debounce=None"),
    ],
)
def test_turns_that_cannot_be(given: dict[str, Any], message: str, tasks: Tasks) -> None:
    """What contradicts itself raises in ``connect``, in the decorator, and on the task, and connects nothing."""
    declare: list[Callable[[], Any]] = [
        lambda: connect(order_paid, tasks.shared(), **given),
        lambda: receiver_task(order_paid, name=tasks.name(), **given)(ignore),
    ]
    if "key" not in given:  # a function among Celery's options of a task is a method of it
        declare.append(lambda: connect(order_paid, tasks.shared(**given)))

    for act in declare:
        with pytest.raises(ConnectError, match=message):
            act()
    assert not order_paid.has_listeners()


# Receivers whose deliveries are put together -----------------------------------------------------------------------


class Chunked(ReceiverTask):
    """A project's base class of tasks whose deliveries go together."""

    chunk_size = 20


MAKE_TOGETHER: dict[str, Callable[[Tasks, dict[str, Any]], None]] = {
    "decorated": lambda tasks, given: receiver_task(order_paid, name=tasks.name(), chunk_size=20, **given)(ignore),
    "by its base": lambda tasks, given: receiver_task(order_paid, name=tasks.name(), base=Chunked, **given)(ignore),
    "shared": lambda tasks, given: connect(order_paid, tasks.shared(chunk_size=20), **given),
    "spelled": lambda tasks, given: connect(order_paid, tasks.shared(chunk_size=20).delay, **given),
    "by class": lambda tasks, given: connect(
        order_paid,
        tasks.app.register_task(type("Made", (Chunked,), {"name": tasks.name(), "run": staticmethod(ignore)})()),
        **given,
    ),
}


@pytest.mark.parametrize("kind", MAKE_TOGETHER)
@pytest.mark.usefixtures("paid")
def test_deliveries_that_go_together_need_rows(kind: str, tasks: Tasks) -> None:
    """Whatever makes deliveries go together, their receiver cannot be connected where there are none."""
    make = MAKE_TOGETHER[kind]
    with pytest.raises(ConnectError, match=r"chunk_size=20 .* order_paid .* guarantee='immediate', without rows"):
        make(tasks, {})
    with pytest.raises(ConnectError, match=r"chunk_size=20 puts .* those of coalesce= and debounce= take turns"):
        make(tasks, {"guarantee": "durable", "debounce": 2, "key": lambda order_id: order_id})
    assert not order_paid.has_listeners()

    make(tasks, {"guarantee": "durable"})
    assert order_paid.has_listeners()


@pytest.mark.usefixtures("paid")
def test_deliveries_that_go_together_after_all(tasks: Tasks) -> None:
    """What a receiver says for itself counts, and not what its base class says."""
    receiver_task(order_paid, name=tasks.name(), base=Chunked, chunk_size=1)(ignore)
    assert order_paid.has_listeners()


@pytest.mark.usefixtures("paid")
def test_function_of_a_batch(tasks: Tasks) -> None:
    """With ``batch=True`` it is the events that a function must take, whatever the signal sends."""

    def index(events: list[Any]) -> None: ...
    def update(instance: Any, **kwargs: Any) -> None: ...

    for made in (
        lambda function: receiver_task(order_paid, name=tasks.name(), batch=True, guarantee="durable")(function),
        lambda function: connect(order_paid, tasks.shared(function, batch=True), guarantee="durable"),
    ):
        with pytest.raises(ConnectError, match=r"with batch=True .* it is update\(.*Write: def update\(events\)"):
            made(update)
        made(index)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chunk_size": 51}, "chunk_size=51 is too many"),
        ({"chunk_size": 0}, "chunk_size=0 cannot be"),
        ({"batch": "yes"}, "batch='yes' cannot be"),
        ({"batch": True, "ordered": True}, "batch=True puts deliveries together, but with ordered=True"),
    ],
)
def test_together_that_cannot_be(given: dict[str, Any], message: str) -> None:
    """What contradicts itself raises in the decorator, which names where it stands, and connects nothing."""
    with pytest.raises(ConnectError, match=message):
        receiver_task(order_paid, guarantee="durable", **given)(ignore)
    assert not order_paid.has_listeners()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (lambda instnce: instnce, r"key=: post_save never sends 'instnce', which the function requires"),
        (lambda event: event, r"key=: post_save never sends 'event'"),
        (lambda instance, /: instance, r"key=: the parameter 'instance' is positional-only"),
    ],
    ids=["typo", "event", "position"],
)
def test_a_key_that_could_never_be_told(key: Any, message: str, tasks: Tasks) -> None:
    """``key`` is asked at the sending, and its parameters are checked like a receiver's (H3)."""
    with pytest.raises(ConnectError, match=rf"receiver tests\.made_\d+: {message}"):
        connect(post_save, tasks.shared(), sender=Order, key=key, coalesce=True, guarantee="durable")


@pytest.mark.parametrize("signal", [pre_save, post_save, pre_delete, post_delete, m2m_changed])
def test_a_receiver_of_everything_fits_every_signal(signal: Signal, receiving: Receiving) -> None:
    """``**kwargs``, defaults and our own words are never in the way (H3)."""

    def body(signal: Any, sender: Any, event: Any, extra: int = 5, **kwargs: Any) -> None: ...

    receiving(signal, body)
