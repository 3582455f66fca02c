"""The sending options: what they may be, where their values come from, and which sendings they let through."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from django.contrib.auth.models import User as SwappedOut
from django.contrib.auth.signals import user_logged_in
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_save
from django.dispatch import Signal

from django_celery_signals import ConnectError, ReceiverTask, changes, connect, connections, receiver_task
from django_celery_signals.envelope import Sending
from django_celery_signals.options import (
    NAMES,
    REFUSED,
    SendingOptions,
    check_against_signal,
    lets_through,
    merged_with_class,
    of_family,
    read,
)
from tests.drain import take
from tests.making import Tasks
from tests.receiving import ignore
from tests.shop.models import Customer, Invoice, Order, PriorityOrder, RushOrder, Stamped, Tag, User, WeightClass

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


def passes(options: dict[str, Any], sender: Any = Order, signal: Signal = post_save, **kwargs: Any) -> bool:
    """Tell whether a connection with these options lets a sending through."""
    return lets_through(read(options, "here"), Sending(signal=signal, sender=sender, kwargs=kwargs), "shop.update")


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


NOT_YET: list[tuple[str, Any]] = [
    ("key", "customer_id"),
    ("coalesce", True),
    ("debounce", 5),
    ("ordered", True),
    ("on_failure", "park"),
    ("weak", False),
    ("eta", MOMENT),
]


@pytest.mark.parametrize(("name", "value"), NOT_YET)
def test_an_option_that_is_not_there(name: str, value: Any, tasks: Tasks) -> None:
    """A word that would be in vain raises in ``connect`` and in the decorator, with the reason and the remedy."""
    connecting: list[Callable[[], Any]] = [
        lambda: connect(some_signal, tasks.shared(), **{name: value}),
        lambda: receiver_task(some_signal, name=tasks.name(), **{name: value})(ignore),
    ]

    for declare in connecting:
        with pytest.raises(ConnectError, match=rf"{name}=.* (is not there yet|is not needed|would be one)") as caught:
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


# What is let through -----------------------------------------------------------------------------------------------


def test_everything_by_default() -> None:
    """Without options every sending is let through, except what a fixture saves (H30)."""
    assert passes({}, instance=Order(), created=False, raw=False)
    assert passes({}, signal=some_signal, sender=None)
    assert not passes({}, raw=True)


@pytest.mark.parametrize(
    ("options", "signal", "raw", "expected"),
    [
        ({"raw": True}, post_save, True, True),
        ({"raw": True}, post_save, False, True),
        ({"raw": False}, post_save, True, False),
        ({}, m2m_changed, True, False),
        ({}, some_signal, True, True),
        ({}, post_save, "yes", True),
    ],
)
def test_raw(options: Any, signal: Any, raw: Any, expected: bool) -> None:
    """Fixtures are let through on request; ``raw`` of a project's own signal means what the project says (H30)."""
    assert expected is passes(options, signal=signal, raw=raw)


@pytest.mark.parametrize(
    ("created", "sent", "expected"),
    [
        (True, {"created": True}, True),
        (True, {"created": False}, False),
        (False, {"created": False}, True),
        (False, {"created": True}, False),
        (True, {}, False),
        (False, {}, False),
        (True, {"created": 1}, False),
    ],
)
def test_created(created: bool, sent: dict[str, Any], expected: bool) -> None:
    """``created`` lets through what says exactly that."""
    assert expected is passes({"created": created}, **sent)


@pytest.mark.parametrize(
    ("patterns", "action", "expected"),
    [
        ("post_*", "post_add", True),
        ("post_*", "pre_add", False),
        ("*_add", "pre_add", True),
        (["pre_clear", "post_clear"], "post_clear", True),
        ("post_add", "POST_ADD", False),
        ("post_*", None, False),
        ("*", 5, False),
    ],
)
def test_action(patterns: Any, action: Any, expected: bool) -> None:
    """``action`` lets through what one of its patterns fits, letter by letter."""
    assert expected is passes({"action": patterns}, signal=m2m_changed, action=action)


def test_action_of_a_signal_without() -> None:
    """A sending that has no action fits no pattern."""
    assert not passes({"action": "*"}, signal=some_signal)


an_order = Order(pk=1)


@pytest.mark.parametrize(
    ("exclude", "sender", "expected"),
    [
        (Order, Order, False),
        (Order, Customer, True),
        (Order, PriorityOrder, True),
        ("shop.Order", Order, False),
        ("shop.order", Order, False),
        ("shop.Order", RushOrder, True),
        (["shop.Tag", Customer], Customer, False),
        ("shop.Order_tags", Order.tags.through, False),
        ("auth.User", User, False),
        (SwappedOut, User, False),
        ([None], None, False),
        ([None], Order, True),
        (an_order, an_order, False),
        (an_order, Order(pk=1), True),
        ("shop.Order", "shop.Order", True),
        ("nowhere.Model", Order, True),
        (Stamped, Invoice, True),
    ],
)
def test_exclude(exclude: Any, sender: Any, expected: bool) -> None:
    """``exclude`` leaves out these senders, by class, text or identity, and no subclass of theirs (H9, H10, H12)."""
    assert expected is passes({"exclude": exclude}, sender=sender)


@pytest.mark.parametrize(
    ("family", "sender", "expected"),
    [
        (Order, Order, True),
        (Order, PriorityOrder, True),
        (Order, RushOrder, True),
        (Order, Tag, False),
        (Stamped, Invoice, True),
        (Order, None, False),
        (Order, an_order, False),
        (Order, "shop.Order", False),
    ],
)
def test_a_family(family: Any, sender: Any, expected: bool) -> None:
    """With subclasses, a class and all that derive from it are let through (H10)."""
    options = of_family(SendingOptions(), family, "here")

    assert expected is lets_through(options, Sending(signal=post_save, sender=sender, kwargs={}), "shop.update")


def test_a_family_keeps_no_values() -> None:
    """``changed`` keeps values of the models it names, so it does not go with subclasses, and the error says so."""
    with pytest.raises(
        ConnectError, match=r"changed= keeps values per model; list the models instead of subclasses=True"
    ):
        of_family(SendingOptions(changed=("total",)), Order, "here")


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (lambda: True, True),
        (lambda: 0, False),
        (lambda: None, False),
        (lambda number: number > 4, True),
        (lambda sender, signal: sender is Order and signal is post_save, True),
        (lambda absent=False: absent, False),
        (lambda **sent: set(sent) == {"number", "sender", "signal"}, True),
        (functools.partial(lambda limit, number: number > limit, 9), False),
    ],
    ids=["yes", "zero", "none", "an argument", "sender and signal", "a default", "everything", "a partial"],
)
def test_when(when: Any, expected: bool) -> None:
    """``when`` is given the arguments it names, and decides by what it returns."""
    assert expected is passes({"when": when}, number=5)


def broken(**kwargs: Any) -> bool:
    raise LookupError("no such shop")


def test_a_when_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """When the question fails, the event is sent all the same, and the error logged with the receiver's name (H23)."""
    with caplog.at_level(logging.ERROR):
        assert passes({"when": broken})

    assert "when= of shop.update raised; the event is sent all the same." in caplog.text
    assert "LookupError: no such shop" in caplog.text


def test_a_when_that_raises_under_strict(settings: Any) -> None:
    """Under ``STRICT`` it is raised, for tests and development (H23)."""
    settings.DJANGO_CELERY_SIGNALS = {"STRICT": True}

    with pytest.raises(LookupError, match="no such shop"):
        passes({"when": broken})


def test_when_is_asked_last() -> None:
    """What another option keeps out is not asked about."""
    assert not passes({"when": broken, "created": True}, created=False)


def test_changed_of_what_has_no_row() -> None:
    """``changed`` keeps nothing out that is no save of an instance."""
    assert passes({"changed": "total"}, signal=some_signal)
    assert passes({"changed": "total"}, instance=5)


@pytest.mark.django_db
@pytest.mark.parametrize("made", ["plain", "by the library"])
def test_changed(made: str, tasks: Tasks, celery_app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """``changed`` lets through what is new or changed; after a plain connect, from the next load on, and it says so."""
    task = tasks.shared(changed=["price"])
    if made == "plain":
        changes._watched.pop(WeightClass, None)
        post_save.connect(task.delay, sender=WeightClass)
    else:
        connect(post_save, task, sender=WeightClass)

    row = WeightClass.objects.create(limit="2.50", price=3)
    row.save()
    row = WeightClass.objects.get()
    row.save()
    row.price = 4
    row.save()
    post_save.disconnect(task.delay, sender=WeightClass)

    sent = [dict(message.body["kwargs"])["created"] for message in take(celery_app)]
    assert ([True, False, False] if made == "plain" else [True, False]) == sent
    assert (made == "plain") is ("begins to work with the instances loaded from now on" in caplog.text)
