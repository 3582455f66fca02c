"""The sending options: what they may be, where their values come from, and which sendings they let through."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from django.contrib.auth.signals import user_logged_in
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_save
from django.dispatch import Signal

from django_celery_signals import ConnectError, ReceiverTask, connect, connections, disconnect, receiver_task
from django_celery_signals.contradictions import check_against_signal, check_together, check_turns
from django_celery_signals.options import (
    NAMES,
    REFUSED,
    SendingOptions,
    merged_with_class,
    read,
)
from tests.drain import take
from tests.making import Tasks
from tests.receiving import ignore
from tests.shop.models import Order, Stamped, Tag

some_signal = Signal()


@pytest.fixture(autouse=True)
def at_once(settings: Any) -> None:
    """Messages leave without waiting for a database."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "immediate"}


def always(**kwargs: Any) -> bool:
    return True


async def coroutine() -> bool:
    return True


class Asks:
    async def __call__(self) -> bool:
        return True


# What they may be --------------------------------------------------------------------------------------------------


MOMENT = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "given", "typed"),
    [
        ("guarantee", "durable", "durable"),
        ("guarantee", "on_commit", "on_commit"),
        ("guarantee", "immediate", "immediate"),
        ("guarantee", None, None),
        ("when", always, always),
        ("changed", "total", ("total",)),
        ("changed", ["total", "status"], ("total", "status")),
        ("created", False, False),
        ("action", "post_*", ("post_*",)),
        ("action", ("pre_add", "post_add"), ("pre_add", "post_add")),
        ("instance", "snapshot", "snapshot"),
        ("raw", True, True),
        ("queue", "mail", "mail"),
        ("priority", 0, 0),
        ("priority", 255, 255),
        ("countdown", 0.5, 0.5),
        ("expires", 60, 60),
        ("expires", timedelta(hours=1), timedelta(hours=1)),
        ("expires", MOMENT, MOMENT),
        ("key", always, always),
        ("coalesce", False, False),
        ("debounce", 0.5, 0.5),
        ("max_wait", 30, 30),
        ("exclude", Order, (Order,)),
        ("exclude", ["shop.Tag", None, Order], ("shop.Tag", None, Order)),
    ],
)
def test_a_value(name: str, given: Any, typed: Any) -> None:
    """An option is what was given, one or several alike, and all others stay open."""
    found = read({name: given}, "here")

    assert typed == getattr(found, name)
    assert {name} >= {other for other in NAMES if getattr(found, other) is not None}


SECONDS = "a number of seconds greater than zero"
EXPIRY = "seconds greater than zero, a timedelta or a datetime"
TO_255 = "a whole number, 0 to 255"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *[
            ("guarantee", value, "'durable' or 'on_commit' or 'immediate'")
            for value in ("always", "ON_COMMIT", True, ["on_commit"])
        ],
        *[("when", value, "a function, and no coroutine function") for value in ("always", 5, True, coroutine, Asks())],
        *[("changed", value, "a list of field names") for value in ([], 5, ["total", 5], {"total": 1})],
        *[("created", value, "True or False") for value in ("yes", 1, 0)],
        *[("action", value, r"one or more patterns such as 'post_\*'") for value in ([], 5, [True])],
        *[("instance", value, "'fetch' or 'snapshot'") for value in ("snap", True, 1)],
        *[("raw", value, "True or False") for value in (1, "yes")],
        *[("queue", value, "the name of a queue") for value in ("", 5, ["mail"])],
        *[("priority", value, TO_255) for value in (True, -1, 256, 5.0, "5")],
        *[
            ("countdown", value, SECONDS)
            for value in (0, -1, True, "5", math.nan, math.inf, timedelta(seconds=5), MOMENT)
        ],
        *[("expires", value, EXPIRY) for value in (0, -5, True, "60", math.nan, math.inf, timedelta(), timedelta(-1))],
        *[("key", value, "a function of the sending's arguments, .*") for value in ("customer_id", 5, coroutine, [])],
        *[("coalesce", value, "True or False") for value in (1, "yes")],
        *[(name, value, SECONDS) for name in ("debounce", "max_wait") for value in (0, -1, True, "5", math.nan)],
        *[("exclude", value, r"senders, by class or as 'app\.Model'") for value in ("Order", "a.b.c", [["x"]], [{}])],
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_value_that_cannot_be(name: str, value: Any, wanted: str) -> None:
    """A value of the wrong kind raises where it is declared, showing the place, the value, and what it may be."""
    with pytest.raises(
        ConnectError, match=rf"^receiver shop\.update: {name}=.* cannot be; it must be {wanted}\.$"
    ) as caught:
        read({name: value}, "receiver shop.update")

    assert f"{name}={value!r} cannot be" in str(caught.value)


@pytest.mark.parametrize("name", ["max_retries", "senders", "Created", "family"])
def test_an_unknown_option(name: str) -> None:
    """A word that is no option raises, and the options there are get listed."""
    with pytest.raises(ConnectError, match=rf"unknown option {name}=\. Sending options are {', '.join(NAMES)}\."):
        read({name: True}, "here")


@pytest.mark.parametrize(("name", "value"), [("weak", False), ("eta", MOMENT)])
def test_an_option_that_is_not_there(name: str, value: Any, tasks: Tasks) -> None:
    """A word that would be in vain raises in ``connect`` and in the decorator, with the reason and the remedy."""
    connecting: list[Callable[[], Any]] = [
        lambda: connect(some_signal, tasks.shared(), **{name: value}),
        lambda: receiver_task(some_signal, name=tasks.name(), **{name: value})(ignore),
    ]

    for declare in connecting:
        with pytest.raises(ConnectError, match=rf"{name}=.* (is not needed|would be one)") as caught:
            declare()
        assert f"{name}={value!r} {REFUSED[name]}" in str(caught.value)
    assert not some_signal.has_listeners()


def test_celerys_handler_of_failures_is_celerys(tasks: Tasks) -> None:
    """``on_failure`` as a function is what Celery calls after a failure."""

    def on_failure(self: Any, *args: Any) -> None: ...

    task = receiver_task(Signal(), name=tasks.name(), on_failure=on_failure)(ignore)

    assert on_failure is task.on_failure.__func__


@pytest.mark.parametrize(
    ("typo", "meant"), [("max_retry", "max_retries"), ("retry_backof", "retry_backoff"), ("sendr", "sender")]
)
def test_misspelled_options_of_celery(typo: str, meant: str) -> None:
    """A word that is almost one of Celery's options is not kept as an attribute that nobody looks at."""
    with pytest.raises(
        ConnectError, match=rf"receiver_task\(ignore\): unknown option {typo}=\. Did you mean {meant}=\?"
    ):
        receiver_task(some_signal, **{typo: 5})(ignore)


# With the signal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "signal", "senders", "message"),
    [
        (
            {"created": True},
            post_delete,
            [Order],
            r"created= needs .* post_delete never does, so created=True would send",
        ),
        ({"created": False}, pre_save, [Order], r"created= needs .* pre_save never does, so created=False would send"),
        ({"created": True}, user_logged_in, [None], r"created= needs .*; user_logged_in never does"),
        (
            {"action": "post_add"},
            post_save,
            [Order],
            r"action= needs m2m_changed; post_save has none, so .*'post_add'.*created=",
        ),
        ({"action": "post_add"}, user_logged_in, [None], r"action= needs m2m_changed; user_logged_in has none"),
        (
            {"action": "post_ad"},
            m2m_changed,
            [None],
            r"action='post_ad' matches no action of m2m_changed.*post_add, pre_remove",
        ),
        ({"action": ["post_*", "added"]}, m2m_changed, [None], r"action='added' matches no action of m2m_changed"),
        ({"changed": "total"}, post_save, [None], r"changed= compares .* here are post_save and sender=None"),
        ({"changed": "total"}, post_save, [Order, None], r"changed= compares .* sender=.*Order.*, None"),
        ({"changed": "total"}, pre_save, [Order], r"changed= compares .* here are pre_save and"),
        ({"changed": "total"}, Signal(), [Order], r"changed= compares .* here are this signal and"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_option_that_a_signal_never_satisfies(options: Any, signal: Any, senders: Any, message: str) -> None:
    """An option that would let nothing through raises, naming the signal, the value, and what has it."""
    with pytest.raises(ConnectError, match=rf"^receiver shop\.update: {message}"):
        check_against_signal(read(options, "here"), signal, senders, "receiver shop.update")


@pytest.mark.parametrize(
    ("options", "signal"),
    [
        ({"created": True, "changed": "total"}, post_save),
        ({"action": ["post_*", "pre_[ar]*", "*clear"]}, m2m_changed),
        ({"created": True, "action": "anything"}, some_signal),
        ({"raw": True, "instance": "snapshot"}, post_delete),
    ],
    ids=["post_save", "m2m_changed", "of a project", "post_delete"],
)
def test_an_option_that_a_signal_satisfies(options: Any, signal: Any) -> None:
    """What a signal says, and what a project's own signal might say, can be asked for."""
    check_against_signal(read(options, "here"), signal, [Order], "here")


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (lambda creatd: True, r"when=: post_save never sends 'creatd'"),
        (lambda event: True, r"when=: post_save never sends 'event'"),
        (lambda instance, /: True, r"when=: the parameter 'instance' is positional-only"),
    ],
    ids=["typo", "event", "position"],
)
def test_a_when_that_could_never_be_called(when: Any, message: str, tasks: Tasks) -> None:
    """``when`` is asked at the sending, and its parameters are checked like a receiver's (H3)."""
    with pytest.raises(ConnectError, match=message):
        connect(post_save, tasks.shared(), sender=Order, when=when)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dispatch_uid": ["mine"]}, r"dispatch_uid=\['mine'\] must be hashable, such as a text"),
        ({"signal_name": 5}, r"signal_name=5 must be a text such as 'shop:order_paid'"),
        ({"signal_name": ""}, r"signal_name='' must be a text"),
        (
            {"exclude": "shop.Ordr"},
            r"exclude: sender='shop\.Ordr' names no installed model\. Did you mean 'shop\.Order'",
        ),
        ({"exclude": [Stamped]}, r"exclude: Stamped is abstract and never sends\. Name its concrete models"),
        ({"sender": [Order, "shop.Ordr"]}, r"sender='shop\.Ordr' names no installed model"),
        ({"sender": [Order, 5]}, r"sender=5 is no model"),
        ({"sender": [Order, Tag], "changed": "total"}, r"changed= names 'total', but shop\.Tag has only"),
        ({"sender": [Order, None], "subclasses": True}, r"subclasses=True needs a class as its sender, but got None"),
        ({"sender": [], "priority": 1}, r"the list sender= is empty"),
    ],
)
def test_an_error_connects_nothing(options: dict[str, Any], message: str, tasks: Tasks) -> None:
    """Whatever is wrong with a connection, and with whichever of its senders, raises before anything is connected."""
    task = tasks.shared()

    with pytest.raises(ConnectError, match=rf"^receiver {task.name}: {message}"):
        connect(post_save, task, **options)

    assert [] == [one for one in connections() if one.receiver == task.name]
    assert False is post_save.disconnect(task.delay, sender=Order)


# Options that go together ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "delay"),
    [
        ({"countdown": 60, "expires": 60}, "countdown=60"),
        ({"countdown": 60, "expires": timedelta(seconds=30)}, "countdown=60"),
        ({"debounce": 2, "expires": 1.5, "countdown": 1}, "debounce=2"),
    ],
)
def test_what_expires_before_it_is_due(options: dict[str, Any], delay: str, tasks: Tasks) -> None:
    """What would always be over before it begins is refused."""
    with pytest.raises(ConnectError, match=rf"expires={re.escape(repr(options['expires']))} is over before {delay} is"):
        connect(post_save, tasks.shared(), sender=Order, **options)


@pytest.mark.parametrize("declared", [{"countdown": 60}, {"debounce": 60}])
def test_what_a_task_lets_expire_before_it_is_due(declared: dict[str, Any], tasks: Tasks) -> None:
    """So is one whose expiry is the task's own: in ``connect()``, and on the task itself for the literal line."""
    (delay,) = (f"{name}={value}" for name, value in declared.items())
    text = rf"expires=30 is over before {delay} is.* later than 60 seconds after the sending"

    task, options = tasks.shared(expires=30), {**declared, "guarantee": "durable"}

    with pytest.raises(ConnectError, match=text):
        connect(some_signal, task, **options)
    with pytest.raises(ConnectError, match=text):
        tasks.shared(expires=30, **options).name  # noqa: B018 - made when it is looked at
    with pytest.raises(ConnectError, match=text):
        receiver_task(some_signal, name=tasks.name(), expires=30, **options)(ignore)
    connect(post_save, task, sender=Order, **options, expires=90)
    disconnect(post_save, task, sender=Order)


@pytest.mark.parametrize("expires", [61, timedelta(minutes=2), datetime(2020, 1, 1, tzinfo=UTC), None])
def test_what_expires_later(expires: Any, tasks: Tasks) -> None:
    """What has time to begin is connected; a moment is nobody's mistake."""
    task = tasks.shared()
    connect(post_save, task, sender=Order, countdown=60, expires=expires)
    assert [task.name] == [one.receiver for one in connections() if one.receiver == task.name]
    assert True is disconnect(post_save, task, sender=Order)


NEEDS_A_ROW = "ordered=, coalesce= and debounce= need the row of a delivery, but"


@pytest.mark.parametrize(
    ("options", "ordered", "signal", "guarantee", "message"),
    [
        ({"debounce": 2, "coalesce": False}, False, post_save, None, "debounce=2 waits for .* coalesce=False out"),
        ({"max_wait": 30}, True, post_save, None, "max_wait=30 bounds debounce=None, which must be given, and shorter"),
        ({"max_wait": 30, "coalesce": True}, False, post_save, None, "max_wait=30 bounds debounce=None"),
        ({"max_wait": 1, "debounce": 2}, False, post_save, None, "max_wait=1 bounds debounce=2, which must be .*short"),
        ({"key": always}, False, post_save, None, r"key= says .* needs ordered=True on the task, or coalesce=True\."),
        ({"key": always, "coalesce": False}, False, post_save, None, "key= says what is taken in turn, so it needs"),
        *[
            (options, ordered, post_save, guarantee, rf"{NEEDS_A_ROW} post_save is received with {words}\. Give")
            for guarantee, words in (
                ("on_commit", "guarantee='on_commit'"),
                ("immediate", "guarantee='immediate'"),
                ("audit", "none, to survive a rollback"),
            )
            for options, ordered in (({}, True), ({"coalesce": True}, False), ({"debounce": 2}, False))
        ],
        ({}, True, Signal(), "immediate", f"{NEEDS_A_ROW} this signal is received with guarantee='immediate'"),
        *[
            (options, ordered, user_logged_in, None, r"user_logged_in sends no instance .* Give key=, a function\.")
            for options, ordered in (({}, True), ({"coalesce": True}, False), ({"debounce": 2}, False))
        ],
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_turns_that_cannot_be(options: Any, ordered: bool, signal: Any, guarantee: Any, message: str) -> None:
    """What is said of turns and coalescing, and contradicts itself or the connection, raises with what to write."""
    with pytest.raises(ConnectError, match=rf"^receiver shop\.update: {message}"):
        check_turns(read(options, "here"), ordered, signal, guarantee, "receiver shop.update")


@pytest.mark.parametrize("guarantee", [None, "durable"])
@pytest.mark.parametrize(
    ("options", "ordered", "signal"),
    [
        ({}, True, post_save),
        ({"key": always}, True, post_save),
        ({"key": always}, True, user_logged_in),
        ({"key": always, "coalesce": True}, False, user_logged_in),
        ({"coalesce": True}, True, m2m_changed),
        ({"debounce": 2, "max_wait": 2}, False, post_delete),
        ({"debounce": 2, "coalesce": True}, False, pre_save),
        ({"coalesce": True}, False, some_signal),
        ({"coalesce": False}, False, user_logged_in),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_turns_that_can_be(options: Any, ordered: bool, signal: Any, guarantee: Any) -> None:
    """Whatever else is said of turns and coalescing can be, and needs no guarantee that is not known yet."""
    check_turns(read(options, "here"), ordered, signal, guarantee, "here")


CHUNK, BATCH = {"batch": False, "chunk_size": 50}, {"batch": True, "chunk_size": None}


@pytest.mark.parametrize(
    ("options", "guarantee", "message"),
    [
        *(
            (
                {name: value},
                "durable",
                r"{word} puts deliveries together, but those of coalesce= and debounce= take "
                r"turns, one by one\. Leave one of the two out\.$",
            )
            for name, value in (("coalesce", True), ("debounce", 2))
        ),
        *(
            (
                {},
                one,
                rf"{{word}} puts the rows of deliveries together, but post_save is received with guarantee='{one}', "
                r"without rows\. Give guarantee='durable', or leave it out\.$",
            )
            for one in ("on_commit", "immediate", "audit")
        ),
    ],
)
@pytest.mark.parametrize(("together", "word"), [(CHUNK, "chunk_size=50"), (BATCH, "batch=True")])
def test_together_that_cannot_be(
    options: Any, guarantee: str, message: str, together: dict[str, Any], word: str
) -> None:
    """What has turns, or no rows, cannot be put together, and the error names the option, the reason and the remedy."""
    with pytest.raises(ConnectError, match=rf"^receiver shop\.update: {message.replace('{word}', word)}"):
        check_together(read(options, "here"), together, post_save, guarantee, "receiver shop.update")


@pytest.mark.parametrize("guarantee", [None, "durable", "on_commit"])
@pytest.mark.parametrize("together", [{"batch": False, "chunk_size": size} for size in (None, 1)])
def test_what_is_not_put_together(together: dict[str, Any], guarantee: Any) -> None:
    """Where nothing is put together, all else can be."""
    check_together(read({"coalesce": True}, "here"), together, post_save, guarantee, "here")


@pytest.mark.parametrize("guarantee", [None, "durable"])
@pytest.mark.parametrize("together", [CHUNK, BATCH])
def test_together_that_can_be(together: dict[str, Any], guarantee: Any) -> None:
    """What waits in rows can be put together, and needs no guarantee that is not known yet."""
    check_together(read({"countdown": 1}, "here"), together, post_save, guarantee, "here")


@pytest.mark.parametrize("guarantee", ["on_commit", "immediate"])
def test_who_takes_no_turns_needs_no_row(guarantee: str) -> None:
    """Every guarantee is for those that say nothing of turns."""
    check_turns(SendingOptions(coalesce=False), False, user_logged_in, guarantee, "here")


# What is given instead of a signal, a task or a function -----------------------------------------------------------


@pytest.mark.parametrize(
    "thing", [ignore, "post_save", Order, Signal, post_save.send, []], ids=lambda thing: type(thing).__name__
)
def test_the_signal_comes_first(thing: Any) -> None:
    """Forgotten parentheses and everything else that is no signal raise at once, and the error shows the decorator."""
    with pytest.raises(
        ConnectError, match=r"is not a django\.dispatch\.Signal\. .*as the first argument: @receiver_task\(post_save"
    ):
        receiver_task(thing)


@pytest.mark.parametrize(
    "thing", ["shop.tasks.update", None, 5, post_save, ReceiverTask], ids=lambda thing: type(thing).__name__
)
def test_the_task_itself_is_connected(thing: Any) -> None:
    """A task's name, its class, or a signal in its place raise, and the error says to give the task itself."""
    with pytest.raises(ConnectError, match=r"is not a Celery task\. Give the task itself\.$") as caught:
        connect(post_save, thing)

    assert repr(thing) in str(caught.value)


def test_a_signature_is_no_task(tasks: Tasks) -> None:
    """A signature, which is a call and not a task, raises as well."""
    with pytest.raises(ConnectError, match=r"is not a Celery task\. Give the task itself\.$"):
        connect(some_signal, tasks.shared().s(5))


@pytest.mark.parametrize("spell", [lambda task: task, lambda task: task.delay, lambda task: task.apply_async])
def test_the_decorator_over_an_ordinary_task(spell: Callable[[Any], Any], celery_app: Celery, tasks: Tasks) -> None:
    """Over a task that knows no signals, in any spelling, the decorator raises and makes no other task of it."""
    task, known = celery_app.task(name=tasks.name())(ignore), set(celery_app.tasks)

    with pytest.raises(
        ConnectError, match=rf"The task '{task.name}' is not a ReceiverTask\. Declare it with @shared_task"
    ):
        receiver_task(some_signal)(spell(task))

    assert known == set(celery_app.tasks)


class Desk:
    """Has methods."""

    def method(self, **kwargs: Any) -> None: ...

    def __call__(self, **kwargs: Any) -> None: ...


NO_FUNCTIONS: dict[str, Any] = {
    "lambda": lambda **kwargs: None,
    "partial": functools.partial(ignore),
    "named partial": functools.update_wrapper(functools.partial(ignore), ignore),
    "cached function": functools.lru_cache(ignore),
    "static method": staticmethod(ignore),
    "class": Desk,
    "callable object": Desk(),
    "built-in function": len,
    "text": "shop.tasks.update",
    "property": property(ignore),
}


@pytest.mark.parametrize("kind", NO_FUNCTIONS)
def test_what_celery_makes_no_task_of(kind: str, tasks: Tasks) -> None:
    """What is no function with a name raises at once: Celery would say so later, and not what to do."""
    thing = NO_FUNCTIONS[kind]

    with pytest.raises(
        ConnectError, match=r"decorates a function or a task; .* is neither\. Write one with def that calls"
    ) as c:
        receiver_task(some_signal, name=tasks.name())(thing)

    assert repr(thing) in str(c.value)


def test_methods_that_are_bound_are_functions(tasks: Tasks, celery_app: Celery) -> None:
    """A bound method is a function to Celery, and to us."""
    signal = Signal()
    task = receiver_task(signal, name=tasks.name())(Desk().method)

    signal.send(sender=None)

    assert [task.name] == [message.task for message in take(celery_app)]


# Where a value comes from ------------------------------------------------------------------------------------------


class Mail(ReceiverTask):
    """A project's base class with options of its own."""

    guarantee = "immediate"
    created = True
    when = always
    queue = "mail"
    priority = 9
    expires = 60


def test_the_tasks_values_are_the_defaults() -> None:
    """What a connection leaves open is as the task declares it; what Celery applies itself is left to Celery."""
    found = merged_with_class(read({"created": False, "instance": "snapshot"}, "here"), Mail, "shop.mail")

    assert SendingOptions(guarantee="immediate", created=False, when=always, instance="snapshot") == found


def test_connections_are_told_apart_at_once() -> None:
    """Equal options have one hash, and others differ in it, whichever of them it is."""
    given = [{"queue": "mail"}, {"queue": "slow"}, {"created": True}, {"when": always}, {"key": always}, {}]
    assert len(given) == len({hash(read(options, "here")) for options in given})
    assert hash(read({"queue": "mail"}, "here")) == hash(SendingOptions(queue="mail"))


def test_a_task_without_values() -> None:
    """A task that declares nothing leaves a connection as it is."""
    own = read({"queue": "mail"}, "here")

    assert own is merged_with_class(own, ReceiverTask, "shop.update")


def test_a_wrong_value_of_a_task() -> None:
    """A value that cannot be raises by the name of the task that declares it."""

    class Wrong(ReceiverTask):
        countdown = "soon"

    with pytest.raises(ConnectError, match=r"^task shop\.wrong: countdown='soon' cannot be"):
        merged_with_class(SendingOptions(), Wrong, "shop.wrong")


def test_a_plain_connection_has_the_tasks_values(tasks: Tasks, celery_app: Celery) -> None:
    """Django's own ``connect`` knows no options, so the task's apply (H1)."""
    signal, task = Signal(), tasks.shared(created=True, countdown=30)
    signal.connect(task.delay)

    for created in (True, False):
        signal.send(sender=None, created=created)

    (message,) = take(celery_app)
    assert message.headers["eta"]
