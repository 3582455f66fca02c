"""What Django's signals hold of the library, however it was connected; and what else they call."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from django.apps import apps
from django.db.models import Model
from django.db.models.signals import m2m_changed, post_migrate, post_save, pre_save
from django.dispatch import Signal

from django_celery_signals import connect, disconnect
from django_celery_signals.changes import watch
from django_celery_signals.connected import ANY, Connected, connected, plain
from tests.making import KINDS, Tasks
from tests.receiving import Receiving, ignore
from tests.shop.models import Invoice, Order, Stamped, Tag

bell = Signal()
gong = Signal()


class Shelf:
    """Holds a signal, as a model or a service may."""

    rung = Signal()


class Cellar:
    """A sender that is no model."""


@pytest.fixture
def plainly() -> Iterator[Callable[..., None]]:
    """Connects as Django does, and takes it back, without a reference to the receiver meanwhile."""
    before: list[tuple[Signal, list[Any]]] = []

    def connect_plainly(signal: Signal, receiver: Any, **options: Any) -> None:
        before.append((signal, list(signal.receivers)))
        Signal.connect(signal, receiver, **options)

    yield connect_plainly
    for signal, receivers in reversed(before):
        signal.receivers = receivers


def of(task: Any) -> list[Connected]:
    """Return the connections of a task."""
    return [one for one in connected() if one.receiver == task.name]


def test_declared(receiving: Receiving) -> None:
    """A receiver is found with its signal, sender, task, app and options."""
    task = receiving(post_save, sender=Tag, guarantee="durable", countdown=5)

    [one] = of(task)

    assert (post_save, "django.db.models.signals:post_save") == (one.signal, one.signal_name)
    assert ("shop.Tag", Tag, None) == (one.sender, one.sender_class, one.uid)
    assert (receiving.app, task) == (one.app, one.task)
    assert ("durable", 5) == (one.guarantee, one.options.countdown)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weak", [True, False], ids=["weak", "strong"])
@pytest.mark.parametrize("spelling", ["delay", "apply_async", "delay_on_commit"])
def test_plain_connect(tasks: Tasks, plainly: Callable[..., None], kind: str, weak: bool, spelling: str) -> None:
    """What a plain connect() made is found, however the task was made and spelled; nobody need hold the spelling."""
    task = getattr(tasks, kind)()
    plainly(bell, getattr(task, spelling), weak=weak)
    gc.collect()

    [one] = of(task)

    assert (bell, ANY, None, None) == (one.signal, one.sender, one.sender_class, one.uid)


def test_both_ways(receiving: Receiving, plainly: Callable[..., None]) -> None:
    """A connection that was made in both ways is one, as it is to Django."""
    task = receiving(bell, countdown=5)
    plainly(bell, task.delay)

    assert [5] == [one.options.countdown for one in of(task)]


def test_options_of_the_task(tasks: Tasks, plainly: Callable[..., None]) -> None:
    """What a plain connect() cannot say, the task says."""
    task = tasks.shared(guarantee="immediate", debounce=3)
    plainly(bell, task.delay)

    assert [("immediate", 3)] == [(one.guarantee, one.options.debounce) for one in of(task)]


@pytest.mark.parametrize(
    ("signal", "given", "label", "cls"),
    [
        (post_save, None, ANY, None),
        (post_save, "shop.Tag", "shop.Tag", Tag),
        (m2m_changed, "shop.Order.tags", "shop.Order_tags", Order.tags.through),
        (bell, Cellar, "Cellar", Cellar),
        (post_migrate, apps.get_app_config("shop"), "<ShopConfig: shop>", None),
    ],
    ids=["every", "model", "through", "class", "app"],
)
def test_senders(receiving: Receiving, signal: Signal, given: Any, label: str, cls: type | None) -> None:
    """A sender has its label, and its class where it is one."""
    task = receiving(signal, sender=given)

    assert [(label, cls)] == [(one.sender, one.sender_class) for one in of(task)]


@pytest.mark.parametrize(
    ("sender", "label"), [(Tag, "shop.Tag"), (None, ANY), (Cellar, "an object"), ("till 5", "an object")]
)
def test_senders_of_a_plain_connect(tasks: Tasks, plainly: Callable[..., None], sender: Any, label: str) -> None:
    """Of the sender of a plain connect() Django keeps the identity: what is neither a model nor named is an object."""
    task = tasks.shared()
    plainly(bell, task.delay, sender=sender)

    assert [label] == [one.sender for one in of(task)]


def test_several_senders(receiving: Receiving) -> None:
    """Each sender is a connection of its own."""
    task = receiving([pre_save, post_save], sender=[Tag, "shop.Order"])

    assert [
        ("django.db.models.signals:post_save", "shop.Order"),
        ("django.db.models.signals:post_save", "shop.Tag"),
        ("django.db.models.signals:pre_save", "shop.Order"),
        ("django.db.models.signals:pre_save", "shop.Tag"),
    ] == [(one.signal_name, one.sender) for one in of(task)]


@pytest.mark.parametrize("uid", [None, "twice"])
@pytest.mark.parametrize("base", [Stamped, Tag])
def test_subclasses(tasks: Tasks, base: type[Model], uid: str | None) -> None:
    """A sender together with its subclasses is named as such, with the dispatch_uid that was given, and no other."""
    task = tasks.shared()
    connect(post_save, task, sender=base, subclasses=True, dispatch_uid=uid)

    [one] = of(task)
    assert disconnect(post_save, task, sender=base, subclasses=True, dispatch_uid=uid)

    assert (f"{base._meta.label} and its subclasses", base, uid) == (one.sender, one.sender_class, one.uid)
    assert one.options.family is base


def test_dispatch_uid(receiving: Receiving, plainly: Callable[..., None]) -> None:
    """A dispatch_uid that was given is known, and makes a second connection."""
    task = receiving(bell)
    plainly(bell, task.delay, dispatch_uid="twice")

    assert [None, "twice"] == [one.uid for one in of(task)]


def test_unresolved_task(receiving: Receiving, celery_app: Celery) -> None:
    """A task that its app does not have is found by its name, with the options of the connection alone."""
    task = receiving(bell, countdown=5)
    del celery_app._tasks[task.name]

    assert [(None, 5)] == [(one.task, one.options.countdown) for one in of(task)]


@pytest.mark.parametrize(
    ("signal", "name"),
    [(bell, f"{__name__}:bell"), (Shelf.rung, f"{__name__}:Shelf.rung")],
    ids=["module", "class"],
)
def test_signals_of_the_project(tasks: Tasks, plainly: Callable[..., None], signal: Signal, name: str) -> None:
    """A signal is found that a module of the project holds, by itself or in a class, and known by that name."""
    task = tasks.shared()
    plainly(signal, task.delay)

    assert [name] == [one.signal_name for one in of(task)]


def test_signal_without_a_name(tasks: Tasks, receiving: Receiving, plainly: Callable[..., None]) -> None:
    """A signal that nothing holds is found where connect() has seen it; a plain connect() to it is not."""
    seen, unseen, task = Signal(), Signal(), tasks.shared()
    plainly(unseen, task.delay)
    declared = receiving(seen)

    assert ([], [seen]) == (of(task), [one.signal for one in of(declared)])
    assert of(declared)[0].signal_name.startswith("connection:")


def test_order(receiving: Receiving, plainly: Callable[..., None]) -> None:
    """Connections are sorted by signal, sender, receiver and dispatch_uid, whichever was made first."""
    late = receiving(post_save, sender=Tag)
    early = receiving(post_save, sender=Order)
    ringing = receiving(gong)
    plainly(bell, ringing.delay, dispatch_uid="b")
    plainly(bell, ringing.delay, dispatch_uid="a")
    mine = (late.name, early.name, ringing.name)

    found = [one for one in connected() if one.receiver in mine]

    assert [early.name, late.name, *[ringing.name] * 3] == [one.receiver for one in found]
    assert [None, None, "a", "b", None] == [one.uid for one in found]


# Other receivers -----------------------------------------------------------------------------------------------------


def function(**kwargs: Any) -> None: ...


async def coroutine(**kwargs: Any) -> None: ...


class Listener:
    def method(self, **kwargs: Any) -> None: ...


def test_plain_receivers(receiving: Receiving, plainly: Callable[..., None]) -> None:
    """Functions, methods and coroutines are found in the order in which Django calls them; tasks are none of them."""
    listener = Listener()
    plainly(bell, coroutine)
    receiving(bell)
    plainly(bell, listener.method, weak=False)
    plainly(bell, function, sender=Tag)

    assert [
        (listener.method, ANY, None, False),
        (function, "shop.Tag", Tag, False),
        (coroutine, ANY, None, True),
    ] == [(one.receiver, one.sender, one.sender_class, one.is_async) for one in plain(bell)]


def test_plain_receivers_that_are_gone(plainly: Callable[..., None]) -> None:
    """What nobody holds any more is no receiver."""
    listener = Listener()
    plainly(bell, listener.method)
    [(_, reference, *_)] = bell.receivers
    assert 1 == len(plain(bell))

    del listener

    assert (None, []) == (reference(), plain(bell))


def test_senders_of_plain_receivers(plainly: Callable[..., None]) -> None:
    """A sender that is neither a model nor named by a connection is an object."""
    plainly(bell, ignore, sender=Cellar)

    assert [("an object", None)] == [(one.sender, one.sender_class) for one in plain(bell)]


def test_our_own_receivers() -> None:
    """What the library itself connects, to follow changed=, is nobody's business."""
    watch(Invoice, ("number",), "a test")

    assert [] == [one for one in plain(post_save) if one.sender_class is Invoice]
