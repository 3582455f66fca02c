"""ReceiverTask: a signal's call is sent, every other call is Celery's own, and a task's options are checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain, chord, group, shared_task
from celery.app.task import Context
from celery.beat import Scheduler
from celery.contrib.django.task import DjangoTask
from celery.exceptions import MaxRetriesExceededError, Retry
from celery.result import AsyncResult
from celery.schedules import schedule
from django.db.models.signals import post_save
from django.dispatch import Signal

from django_celery_signals import ConnectError, ReceiverTask, connect, current_event, disconnect, receiver_task
from django_celery_signals.bridge import Spelling
from django_celery_signals.durable.failing import hooks
from django_celery_signals.wire import ARGUMENT
from tests.drain import drain, run, take
from tests.making import KINDS, Tasks
from tests.receiving import Receiving
from tests.shop.models import Order, Tag

some_signal = Signal()


@pytest.fixture(autouse=True)
def at_once(settings: Any) -> None:
    """Messages leave without waiting for a database."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate"}


@pytest.fixture
def eager(celery_app: Celery) -> Celery:
    """The app, which runs what it is told to send."""
    celery_app.conf.task_always_eager = True
    return celery_app


def add(x: int = 0, y: int = 0) -> int:
    return x + y


def total(numbers: list[int]) -> int:
    return sum(numbers)


# The one rule ------------------------------------------------------------------------------------------------------


CALLS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "call": lambda task: task,
    "delay": lambda task: task.delay,
    "apply_async": lambda task: task.apply_async,
    "delay_on_commit": lambda task: task.delay_on_commit,
    "apply_async_on_commit": lambda task: task.apply_async_on_commit,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_with_a_signal_is_sent(call: str, kind: str, tasks: Tasks, celery_app: Celery) -> None:
    """Called as a signal calls, every kind of task sends one event, runs nothing here, and answers None (H14)."""
    task = getattr(tasks, kind)()

    answer = CALLS[call](task)(signal=some_signal, sender=Order, number=5)

    (message,) = take(celery_app)
    assert answer is None
    assert (task.name, [], [ARGUMENT]) == (message.task, message.args, list(message.kwargs))
    assert [["number", 5]] == message.body["kwargs"]


@pytest.mark.parametrize("signal", [None, "post_save", 5, {"signal": "post_save"}])
def test_an_argument_that_is_no_signal_is_celerys(signal: Any, tasks: Tasks, celery_app: Celery) -> None:
    """An argument that is merely called ``signal`` makes no event of a call (H19)."""
    task = tasks.shared(lambda signal, sender=None: signal)
    kwargs = {"signal": signal, "sender": "door"}

    results = [task.delay(**kwargs), task.apply_async(kwargs=kwargs), task.apply_async((signal, "door"))]

    assert all(isinstance(result, AsyncResult) for result in results)
    assert [([], kwargs), ([], kwargs), ([signal, "door"], {})] == [(one.args, one.kwargs) for one in take(celery_app)]
    assert signal == task(**kwargs)


def test_a_direct_call_runs_here(tasks: Tasks, celery_app: Celery) -> None:
    """Without ``signal=`` a call runs the function here and now, as in a unit test."""
    task = tasks.shared(lambda sender, instance, created=False: (sender, instance, created))
    tag = Tag(name="gift")

    assert (Tag, tag, True) == task(sender=Tag, instance=tag, created=True)
    assert (Tag, tag, False) == task.run(sender=Tag, instance=tag)
    assert [] == take(celery_app)


def test_run_is_the_function(tasks: Tasks, celery_app: Celery) -> None:
    """``task.run`` is the body, whatever it is given: also with a live signal nothing is sent."""
    task = tasks.shared(lambda signal, number: (signal, number))

    assert (some_signal, 5) == task.run(signal=some_signal, number=5)
    assert [] == take(celery_app)


def test_an_eager_call_with_a_signal_runs_the_function(tasks: Tasks, celery_app: Celery) -> None:
    """``task.apply`` is a worker's call, made here: the function runs, also with a live signal among its arguments."""
    task = tasks.shared(lambda signal, number: (signal, number))

    assert (some_signal, 5) == task.apply(kwargs={"signal": some_signal, "number": 5}).get()
    assert [] == take(celery_app)


def test_a_task_that_calls_another(tasks: Tasks, celery_app: Celery) -> None:
    """In a worker, a task that calls another directly runs it there; called with a signal, the other is sent."""
    inner = tasks.shared(lambda number=0, **kwargs: number + 1)
    outer = tasks.shared(lambda number: [inner(number), inner(signal=some_signal, number=number)])
    outer.delay(5)

    (result,) = [run(celery_app, message) for message in take(celery_app)]

    assert [6, None] == result.get()
    assert [inner.name] == [message.task for message in take(celery_app)]


# Celery's own calls ------------------------------------------------------------------------------------------------


ORDINARY: dict[str, Callable[[Any], Any]] = {
    "delay": lambda task: task.delay(5),
    "delay with names": lambda task: task.delay(x=5, y=2),
    "apply_async": lambda task: task.apply_async((5, 2)),
    "apply_async with names": lambda task: task.apply_async(kwargs={"x": 5}),
    "apply_async with options": lambda task: task.apply_async([5], {"y": 2}, expires=60, priority=3, headers={"a": 1}),
    "reprs of the caller's own": lambda task: task.apply_async((5,), argsrepr="(…)", kwargsrepr="{…}"),
    "signature": lambda task: task.s(5).delay(2),
    "immutable signature": lambda task: task.si(5, y=2).apply_async(),
    "signature with options": lambda task: task.s(5).set(priority=3).apply_async(),
    "named": lambda task: task.app.send_task(task.name, (5,), {"y": 2}),
}


@pytest.mark.parametrize("call", ORDINARY)
def test_an_ordinary_call_is_that_of_an_ordinary_task(call: str, tasks: Tasks, celery_app: Celery) -> None:
    """Message by message, a receiver task is called like a task of Celery's own class."""
    receiver, ordinary = tasks.shared(add), shared_task(name=tasks.name())(add)

    answers = [ORDINARY[call](receiver), ORDINARY[call](ordinary)]
    ours, celerys = take(celery_app)

    differing = {"task", "id", "root_id", "expires"}
    headers = [{key: one.headers[key] for key in one.headers.keys() - differing} for one in (ours, celerys)]
    assert all(isinstance(answer, AsyncResult) for answer in answers)
    assert (celerys.args, celerys.kwargs) == (ours.args, ours.kwargs)
    assert headers[1] == headers[0]
    assert celerys.properties["priority"] == ours.properties["priority"]
    assert (celerys.headers["expires"] is None) == (ours.headers["expires"] is None)


@pytest.mark.parametrize("call", ["delay_on_commit", "apply_async_on_commit"])
@pytest.mark.django_db
def test_an_ordinary_call_on_commit(
    call: str, tasks: Tasks, celery_app: Celery, django_capture_on_commit_callbacks: Any
) -> None:
    """Called by a person, ``delay_on_commit`` waits for the commit and answers None, as Celery says."""
    task = tasks.shared(add)
    arguments = {"delay_on_commit": (5, 2), "apply_async_on_commit": ((5, 2),)}[call]

    with django_capture_on_commit_callbacks(execute=True):
        answer = getattr(task, call)(*arguments)
        before = take(celery_app)

    assert (None, []) == (answer, before)
    assert [(task.name, [5, 2])] == [(message.task, message.args) for message in take(celery_app)]


def test_the_limit_of_a_retry_belongs_to_its_request(tasks: Tasks) -> None:
    """What ``retry(max_retries=…)`` leaves for Celery's autoretry ends with the request it was said in."""
    task = tasks.of_app()
    task.request_stack.push(Context())
    task.override_max_retries = 3
    mine = task.override_max_retries
    task.request_stack.push(Context())
    others = hasattr(task, "override_max_retries")
    task.request_stack.pop()
    del task.override_max_retries
    afterwards = hasattr(task, "override_max_retries")
    task.request_stack.pop()

    assert (3, False, False) == (mine, others, afterwards)


def test_a_task_without_a_name_is_left_to_celery(tasks: Tasks) -> None:
    """A task class that no app has named yet has Celery's own methods, which nothing can be connected by."""

    class Unnamed(ReceiverTask):
        """Not registered anywhere."""

    assert not isinstance(Unnamed().delay, Spelling)
    assert Unnamed.delay is ReceiverTask.delay


def test_beat(tasks: Tasks, celery_app: Celery) -> None:
    """Celery's scheduler calls a receiver task like any other."""
    task, scheduler = tasks.shared(add), Scheduler(celery_app, lazy=True)
    entry = scheduler.Entry(
        name="nightly", task=task.name, schedule=schedule(60), args=(5,), kwargs={"y": 2}, app=celery_app
    )

    scheduler.apply_async(entry, advance=False)
    (result,) = drain(celery_app)

    assert 7 == result.get()


def test_a_wrong_call_is_refused_as_by_celery(tasks: Tasks, celery_app: Celery) -> None:
    """Celery checks an ordinary call against the function, and lets an event pass, which it cannot judge (H73)."""
    task = tasks.shared(lambda number: None)

    with pytest.raises(TypeError, match="number"):
        task.delay()
    task.delay(signal=some_signal)

    assert [[ARGUMENT]] == [list(message.kwargs) for message in take(celery_app)]


def test_a_task_that_is_bound_again_is_checked_once(tasks: Tasks, celery_app: Celery) -> None:
    """Binding a task a second time adds no second layer to Celery's check of its arguments (H73)."""
    task = tasks.of_app()
    check = type(task).__header__

    type(task).on_bound(celery_app)

    assert check is type(task).__header__


# Canvas ------------------------------------------------------------------------------------------------------------


CANVAS: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {
    "chain": (lambda add, total: chain(add.s(1, 2), add.s(3), add.s(y=4)), 10),
    "operator": (lambda add, total: add.s(1, 2) | add.si(5, 6), 11),
    "group": (lambda add, total: group(add.s(number, 1) for number in range(3)), [1, 2, 3]),
    "chord": (lambda add, total: chord([add.s(number, 1) for number in range(3)], total.s()), 6),
    "map": (lambda add, total: add.map([1, 2]), [1, 2]),
    "starmap": (lambda add, total: add.starmap([(1, 2), (3, 4)]), [3, 7]),
    "chunks": (lambda add, total: add.chunks([(1, 2), (3, 4)], 1), [[3], [7]]),
}


@pytest.mark.parametrize("canvas", CANVAS)
def test_canvas(canvas: str, tasks: Tasks, eager: Celery) -> None:
    """Receiver tasks take part in Celery's canvas, in every place."""
    work, expected = CANVAS[canvas]

    assert expected == work(tasks.shared(add), tasks.shared(total)).apply_async().get()


def test_callbacks(tasks: Tasks, eager: Celery) -> None:
    """Receiver tasks are called back with results and after errors."""
    told: list[Any] = []
    note = tasks.shared(lambda *args: told.append(args[-1]))
    fail = tasks.shared(lambda: [][0])

    tasks.shared(add).apply_async((1, 2), link=[note.s(), note.si("done")])
    fail.apply_async(link_error=note.si("failed"))

    assert [3, "done", "failed"] == told


# In a worker -------------------------------------------------------------------------------------------------------


def test_messages_from_before_the_conversion(tasks: Tasks, celery_app: Celery) -> None:
    """Messages of an ordinary task that has become a receiver task meanwhile still run, as does a call by name."""
    name = tasks.name()
    ordinary = celery_app.task(name=name)(add)
    ordinary.delay(5)
    ordinary.apply_async((5,), {"y": 2}, countdown=1)
    celery_app.send_task(name, kwargs={"x": 5, "y": 3})
    celery_app._tasks.pop(name)

    celery_app.task(name=name, base=ReceiverTask)(add)

    assert [5, 7, 8] == [result.get() for result in drain(celery_app)]


@pytest.mark.parametrize("bind", [False, True])
def test_coroutine_functions(bind: bool, tasks: Tasks, celery_app: Celery) -> None:
    """An ``async def`` task is run to its end by the worker; called directly, it is a coroutine (H13)."""

    async def plain(number: int) -> int:
        await asyncio.sleep(0)
        return number + 1

    async def bound(self: Any, number: int) -> int:
        return await plain(number) if self.name == task.name else 0

    task = tasks.shared(bound if bind else plain, bind=bind)
    task.delay(5)

    assert [6] == [result.get() for result in drain(celery_app)]
    assert 6 == asyncio.run(task(5))
    assert 6 == asyncio.run(task.run(5))


def test_a_bound_task_knows_itself(tasks: Tasks, celery_app: Celery) -> None:
    """``bind=True`` gives the task itself first, to an ordinary call and to a direct one."""
    task = tasks.shared(lambda self, number=0: (self.name, self.request.called_directly, number), bind=True)
    task.delay(5)

    assert [[task.name, False, 5]] == [list(result.get()) for result in drain(celery_app)]
    assert (task.name, True, 5) == task(5)


@pytest.mark.django_db
def test_a_bound_receiver_knows_itself_and_its_event(receiving: Receiving, celery_app: Celery) -> None:
    """A bound receiver is given the task itself, beside what the signal sends; an ordinary call has no event."""
    known: list[Any] = []

    def look(self: Any, number: int) -> None:
        event = current_event()
        known.append((self.name, number, event and event.receiver))

    task = receiving(some_signal, look, bind=True)
    some_signal.send(sender=None, number=5)
    task.delay(6)
    drain(celery_app)

    assert [(task.name, 5, task.name), (task.name, 6, None)] == known


# Classes of a project's own ----------------------------------------------------------------------------------------


class Counting(ReceiverTask):
    """A project's base class, which has a say in every call."""

    calls: list[str] = []

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append("delay")
        return super().delay(*args, **kwargs)

    def apply_async(self, *args: Any, **options: Any) -> Any:
        self.calls.append("apply_async")
        return super().apply_async(*args, **{**options, "headers": {"shop": "north"}})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append("call")
        return super().__call__(*args, **kwargs)


@pytest.fixture
def counting(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A task of that class, and nothing counted yet."""
    monkeypatch.setattr(Counting, "calls", [])
    return shared_task(base=Counting, name=tasks.name())(number_or_zero)


def number_or_zero(number: int = 0) -> int:
    return number


def test_ordinary_calls_of_a_projects_class(counting: Any, celery_app: Celery) -> None:
    """A project's own ``delay``, ``apply_async`` and ``__call__`` are used for ordinary calls."""
    counting.delay(5)
    (message,) = take(celery_app)
    result = run(celery_app, message)

    assert ["delay", "apply_async", "call"] == counting.calls
    assert ("north", 5) == (message.headers["shop"], result.get())


@pytest.mark.django_db
@pytest.mark.parametrize("spelling", ["delay", "apply_async", "delay_on_commit"])
def test_events_of_a_projects_class(spelling: str, counting: Any, celery_app: Celery) -> None:
    """Every spelling of such a task is its one receiver; events use its ``apply_async`` and ``__call__`` (H1)."""
    some_signal.connect(getattr(counting, spelling))
    connect(some_signal, counting)

    some_signal.send(sender=None, number=5)
    (message,) = take(celery_app)
    result = run(celery_app, message)

    assert ["apply_async", "call"] == counting.calls
    assert ("north", "SUCCESS") == (message.headers["shop"], result.state)
    assert ("some_signal", "{}") == (message.headers["argsrepr"], message.headers["kwargsrepr"])
    assert True is some_signal.disconnect(counting.delay)


def test_methods_of_the_class_itself_are_functions() -> None:
    """On the class, a calling method is the plain function, for ``super()`` by name and for documentation."""
    assert "delay" == Counting.delay.__name__
    assert "Celery" in str(ReceiverTask.apply_async.__doc__)
    assert issubclass(ReceiverTask, DjangoTask)


# What monitors show ------------------------------------------------------------------------------------------------


def test_what_a_monitor_shows_of_an_event(tasks: Tasks, celery_app: Celery) -> None:
    """An event shows signal, sender and key, stores no result, and nothing of its values is in the headers."""
    task = tasks.shared()
    connect(post_save, task, sender=Tag)
    post_save.send(sender=Tag, instance=Tag(pk=5, name="hidden"), created=True, raw=False, using="default")
    (message,) = take(celery_app)
    post_save.disconnect(task.delay, sender=Tag)

    assert "post_save shop.Tag pk=5 created" == message.headers["argsrepr"]
    assert ("{}", True) == (message.headers["kwargsrepr"], message.headers["ignore_result"])
    assert "hidden" not in repr(message.headers)


def test_a_result_of_an_event_is_never_handed_out(tasks: Tasks, celery_app: Celery) -> None:
    """A message with an event that somebody publishes again is summarised again, and forged text harms nothing."""
    task = tasks.shared()

    task.apply_async(kwargs={ARGUMENT: "no envelope"})
    task.apply_async(kwargs={ARGUMENT: "no envelope"}, argsrepr="from before")

    assert ["unreadable envelope", "from before"] == [message.headers["argsrepr"] for message in take(celery_app)]


# Declared on the task ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"atomic": "yes"}, r"atomic='yes' cannot be; it must be True or False"),
        ({"on_missing": "ignore"}, r"on_missing='ignore' cannot be; it must be 'discard' or 'retry' or 'fail'"),
        ({"former_names": "shop.old"}, r"former_names='shop.old' cannot be; it must be a list of names"),
        ({"former_names": ["shop.old", 5]}, r"former_names=\['shop.old', 5\] cannot be"),
        ({"retain": -1}, r"retain=-1 cannot be; it must be a number of seconds"),
        ({"retain": "1h"}, r"retain='1h' cannot be; it must be a number of seconds"),
        ({"ordered": 1}, r"ordered=1 cannot be; it must be True or False"),
        *[
            (
                {"chunk_size": size, **more},
                rf"chunk_size={size!r} cannot be; it must be a whole number, 1 to 50, or with",
            )
            for size in (0, -1, True, 2.0, "50", 501)
            for more in ({}, {"batch": True})
        ],
        ({"batch": 1}, r"batch=1 cannot be; it must be True or False"),
        ({"chunk_size": 51}, r"chunk_size=51 is too many: each .* 50 is what .* with batch=True may have 500\."),
        ({"chunk_size": 2, "ordered": True}, r"chunk_size=2 puts .* with ordered=True they take turns.* Leave one"),
        ({"batch": True, "ordered": True}, r"batch=True puts .* with ordered=True they take turns.* Leave one"),
        ({"on_failure": "retry"}, r"on_failure='retry' cannot be; it must be 'block' or 'park'"),
        ({"after_failure": 5}, r"on_failure=5 cannot be; it must be 'block' or 'park'"),
        ({"guarantee": "always"}, r"guarantee='always' cannot be; it must be 'durable' or 'on_commit' or 'immediate'"),
        ({"when": "always"}, r"when='always' cannot be; it must be a function"),
        ({"countdown": -1}, r"countdown=-1 cannot be; it must be a number of seconds greater than zero"),
        ({"action": 5}, r"action=5 cannot be"),
    ],
)
def test_a_task_declares_what_can_be(option: dict[str, Any], message: str, tasks: Tasks, celery_app: Celery) -> None:
    """A task whose own options can never work is not made, and the error names the task, the value and the remedy."""
    with pytest.raises(ConnectError, match=message) as caught:
        celery_app.task(base=ReceiverTask, name=tasks.name(), **option)(add)

    assert f"task {tasks.names[-1]}" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 1),
        ({"chunk_size": None}, 1),
        ({"chunk_size": 1}, 1),
        ({"chunk_size": 1, "ordered": True}, 1),
        ({"chunk_size": 50}, 50),
        ({"batch": True}, 100),
        ({"batch": True, "chunk_size": 1}, 1),
        ({"batch": True, "chunk_size": 500}, 500),
        ({"batch": False, "chunk_size": 2}, 2),
    ],
    ids=str,
)
def test_how_many_go_together(options: dict[str, Any], most: int, tasks: Tasks) -> None:
    """How many deliveries a message may have is what the task says; a batch that says nothing has a hundred."""
    assert most == tasks.shared(**options).most_together


@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")
def test_celerys_options_of_the_same_name_stay_celerys(tasks: Tasks, celery_app: Celery) -> None:
    """``priority`` and ``expires`` of a task are Celery's, which applies them to every call, an event's as well."""
    task = tasks.shared(priority=3, expires=60)
    task.delay()
    task.delay(signal=some_signal)

    messages = take(celery_app)

    assert [3, 3] == [message.properties["priority"] for message in messages]
    assert [True, True] == [message.headers["expires"] is not None for message in messages]


@pytest.mark.django_db
def test_former_names(tasks: Tasks, celery_app: Celery) -> None:
    """A task takes ordinary messages under the names it had before, but no name that another task has (H75)."""
    old, other = tasks.name(), tasks.name()
    elsewhere = celery_app.task(name=other)(total)
    task = tasks.shared(add, former_names=[old, other])
    celery_app.send_task(old, (5,))
    celery_app.send_task(other, ([5, 6],))

    assert [5, 11] == [result.get() for result in drain(celery_app)]
    assert task.name == celery_app.tasks[old].name
    assert celery_app.tasks[other] is elsewhere


# Of a durable delivery ---------------------------------------------------------------------------------------------


@pytest.fixture
def hold() -> SimpleNamespace:
    """What a worker holds of a durable delivery, as far as the task looks at it."""
    return SimpleNamespace(asked=False, retry_in=None)


@pytest.fixture
def held(tasks: Tasks, celery_app: Celery, hold: SimpleNamespace) -> Iterator[Any]:
    """A task that a worker is running for that delivery."""
    task = celery_app.tasks[tasks.shared(max_retries=2).name]
    task.push_request(args=[], kwargs={ARGUMENT: {}}, retries=1, called_directly=False, delivery_info={}, hold=hold)
    yield task
    task.pop_request()


@pytest.mark.parametrize("option", ["countdown", "eta"])
def test_a_retry_of_a_durable_delivery_waits_in_its_row(
    option: str, held: Any, hold: SimpleNamespace, celery_app: Celery
) -> None:
    """``retry()`` sends nothing to the broker: the row has the time of the next run."""
    later = 30 if option == "countdown" else datetime.now(UTC) + timedelta(seconds=30)

    with pytest.raises(Retry):
        held.retry(**{option: later})

    assert hold.asked
    assert 20 < hold.retry_in <= 30
    assert [] == take(celery_app)


def test_a_retry_that_lets_the_receiver_go_on(held: Any, hold: SimpleNamespace, celery_app: Celery) -> None:
    """``retry(throw=False)`` returns what it would raise, and the delay is Celery's default one."""
    answer = held.retry(throw=False)

    assert isinstance(answer, Retry)
    assert (True, held.default_retry_delay) == (hold.asked, hold.retry_in)
    assert [] == take(celery_app)


@pytest.mark.parametrize("cause", [None, OSError("away")])
def test_the_last_retry_of_a_durable_delivery(cause: Exception | None, held: Any, hold: SimpleNamespace) -> None:
    """After ``max_retries`` Celery's error is raised, or the one given to it, and no further run is planned."""
    held.request.retries = 2

    with pytest.raises(OSError if cause else MaxRetriesExceededError):
        held.retry(exc=cause)

    assert (True, None) == (hold.asked, hold.retry_in)


def test_an_ordinary_retry_is_sent(held: Any, celery_app: Celery) -> None:
    """What holds no delivery is sent again by Celery, also from a request that is handed over."""
    del held.request.hold

    with pytest.raises(Retry):
        held.retry(countdown=30)
    signature = held.signature_from_request(Context(args=[], kwargs={"number": 5}))

    [message] = take(celery_app)
    assert 2 == message.headers["retries"]
    assert {"number": 5} == signature.kwargs


def test_what_is_called_when_a_delivery_fails(tasks: Tasks) -> None:
    """``@task.on_failed`` keeps functions under the task's name, each of them once, however often it is loaded."""
    one, other = tasks.shared(), tasks.shared()

    def declare() -> Any:
        @one.on_failed
        def note(event: Any, error: Exception) -> str:
            return "noted"

        return note

    @one.on_failed
    def tell(**facts: Any) -> None: ...

    first, second = declare(), declare()
    other.on_failed(tell)

    assert "noted" == first(None, OSError())
    assert [tell, second] == hooks[one.name]
    assert [tell] == hooks[other.name]


@pytest.mark.parametrize("seconds", [0, 60, 0.5])
def test_a_task_may_keep_what_is_done(seconds: float, tasks: Tasks, celery_app: Celery) -> None:
    """``retain`` is a number of seconds; without it, nothing is kept."""
    assert seconds == celery_app.tasks[tasks.shared(retain=seconds).name].retain
    assert 0 == celery_app.tasks[tasks.shared().name].retain


# What a failure does to a key ----------------------------------------------------------------------------------------


class Parking(ReceiverTask):
    """A project's base class of receivers that are ordered and let others pass."""

    ordered = True
    on_failure = "park"  # type: ignore[assignment]


class Blocking(Parking):
    """One that does not, and looks at its failures as Celery has it."""

    after_failure = "block"

    def on_failure(self, *args: Any) -> None: ...


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({}, False),
        ({"ordered": True}, True),
        ({"ordered": True, "on_failure": "park"}, False),
        ({"ordered": True, "on_failure": "block"}, True),
        ({"on_failure": "block"}, True),
        ({"on_failure": "park"}, False),
        ({"on_failure": None, "ordered": True}, True),
        ({"base": Parking}, False),
        ({"base": Parking, "on_failure": "block"}, True),
        ({"base": Parking, "ordered": False}, False),
        ({"base": Blocking}, True),
        ({"base": Blocking, "on_failure": "park"}, False),
    ],
    ids=str,
)
def test_who_blocks_its_key(options: dict[str, Any], blocks: bool, tasks: Tasks, celery_app: Celery) -> None:
    """A failed delivery blocks its key if the receiver is ordered, unless its ``on_failure`` says otherwise."""
    made = celery_app.task(**{"base": ReceiverTask, "name": tasks.name(), **options})(add)
    declared = receiver_task(some_signal, **{"name": tasks.name(), **options}, coalesce=True, guarantee="durable")(add)
    disconnect(some_signal, declared)

    for task in (made, declared):
        assert blocks is task.blocks_key
        task.on_failure(OSError(), "id", (), {}, None)  # Celery's handler, which is there in any case


class Mixin:
    """What a project adds to its tasks."""

    on_failure = "park"


class Mixed(Mixin, ReceiverTask):
    """A task whose options come from elsewhere."""

    ordered = True


@pytest.mark.parametrize("way", ["mixin", "annotation", "annotation of none"])
def test_words_that_come_another_way(way: str, tasks: Tasks, celery_app: Celery) -> None:
    """However ``on_failure`` is said, it says what a failure does to a key, and leaves Celery its handler."""
    name = tasks.name()
    if way != "mixin":
        celery_app.conf.task_annotations = {name: {"on_failure": "park" if way == "annotation" else None}}
    task = celery_app.task(base=Mixed if way == "mixin" else Parking, name=name)(add)

    assert ("park", False) == (task.after_failure, task.blocks_key)
    task.on_failure(OSError(), "id", (), {}, None)


def test_celerys_handler_of_failures(tasks: Tasks, celery_app: Celery) -> None:
    """``on_failure`` as a function is Celery's handler, and says nothing of keys; as a word it is none."""
    told: list[Any] = []

    def on_failure(self: Any, error: Exception, *args: Any) -> None:
        told.append((self.name, type(error)))

    def fail() -> None:
        raise ZeroDivisionError

    one = celery_app.task(base=ReceiverTask, name=tasks.name(), on_failure=on_failure, ordered=True)(fail)
    two = celery_app.task(base=ReceiverTask, name=tasks.name(), on_failure="park", ordered=True)(fail)
    for task in (one, two):
        task.apply()

    assert [(one.name, ZeroDivisionError)] == told
    assert (True, False) == (one.blocks_key, two.blocks_key)
    assert ("block", "park") == (Blocking.after_failure, Parking.after_failure)
    assert Parking.on_failure is ReceiverTask.on_failure is not Blocking.on_failure
