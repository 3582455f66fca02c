"""The parameters of receivers: what a function is given, and what is refused before anything is sent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.signals import user_logged_in
from django.core.signals import request_finished, setting_changed
from django.db.models.signals import m2m_changed, post_delete, post_migrate, post_save, pre_save
from django.dispatch import Signal

from django_celery_signals import ConnectError
from django_celery_signals.parameters import accepted, check_batch, check_parameters, never_sends, parameters

some_signal = Signal()


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Shop:
    def method(self, instance: Any, **kwargs: Any) -> None: ...

    @classmethod
    def of_class(cls, instance: Any) -> None: ...

    @staticmethod
    def static(instance: Any) -> None: ...

    def __call__(self, instance: Any) -> None: ...


def plain(sender: Any, instance: Any, created: bool = False) -> None: ...
def everything(**kwargs: Any) -> None: ...
def nothing() -> None: ...
def any_position(*args: Any) -> None: ...
def keyword_only(*, instance: Any, limit: int = 5) -> None: ...
def by_position(instance: Any, /, **kwargs: Any) -> None: ...
def by_position_with_default(instance: Any = None, /, **kwargs: Any) -> None: ...
async def coroutine(instance: Any) -> None: ...


def generator(instance: Any) -> Iterator[int]:
    yield 1


async def async_generator(instance: Any) -> Any:
    yield 1


FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, bool], bool]] = {
    "plain": (plain, {"sender": True, "instance": True, "created": False}, False),
    "everything": (everything, {}, True),
    "nothing": (nothing, {}, False),
    "any position": (any_position, {}, False),
    "keyword only": (keyword_only, {"instance": True, "limit": False}, False),
    "by position": (by_position, {}, True),
    "coroutine": (coroutine, {"instance": True}, False),
    "wrapped": (logged(plain), {"sender": True, "instance": True, "created": False}, False),
    "partial": (functools.partial(plain, created=True), {"sender": True, "instance": True, "created": False}, False),
    "bound method": (Shop().method, {"instance": True}, True),
    "method": (Shop.method, {"self": True, "instance": True}, True),
    "class method": (Shop.of_class, {"instance": True}, False),
    "static method": (Shop.static, {"instance": True}, False),
    "callable object": (Shop(), {"instance": True}, False),
    "lambda": (lambda instance=None: None, {"instance": False}, False),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_what_a_function_takes(kind: str) -> None:
    """A function's parameters are those it can be given by name, also behind decorators (H3)."""
    function, named, takes_all = FUNCTIONS[kind]

    assert (named, takes_all) == parameters(function)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (plain, ["sender", "instance"]),
        (everything, ["sender", "instance", "extra"]),
        (nothing, []),
        (any_position, []),
        (keyword_only, ["instance"]),
    ],
)
def test_a_function_is_given_what_it_names(function: Callable[..., Any], names: list[str]) -> None:
    """Of what there is, a function is given what it names, or everything (H3, H17)."""
    available = {"sender": 1, "instance": 2, "extra": 3}

    assert {name: available[name] for name in names} == accepted(function, available)
    assert accepted(everything, available) is not available


@pytest.mark.parametrize(
    ("signal", "name", "never"),
    [
        (post_save, "created", False),
        (pre_save, "created", True),
        (post_delete, "update_fields", True),
        (post_delete, "origin", False),
        (m2m_changed, "pk_set", False),
        (m2m_changed, "raw", False),
        (request_finished, "environ", True),
        (user_logged_in, "instance", True),
        (setting_changed, "enter", False),
        (some_signal, "whatever", False),
    ],
)
def test_what_a_signal_never_sends(signal: Signal, name: str, never: bool) -> None:
    """Of Django's signals it is known what they send; of others nothing is (H3, H17)."""
    assert never is never_sends(signal, name)


ACCEPTED = [plain, everything, nothing, any_position, keyword_only, by_position_with_default, coroutine, Shop().method]


@pytest.mark.parametrize("function", ACCEPTED, ids=lambda function: function.__name__)
def test_functions_that_a_signal_can_call(function: Callable[..., Any]) -> None:
    """Defaults, ``**kwargs`` and no parameters at all are fine with every signal that sends the rest (H3)."""
    check_parameters(post_save, "shop.update", (function, False))


@pytest.mark.parametrize("signal", [post_save, some_signal])
def test_what_is_not_known_is_not_checked(signal: Signal) -> None:
    """A task of which only the name is known is connected as it is."""
    check_parameters(signal, "shop.update", None)


def test_parameters_beside_the_signals() -> None:
    """What the library itself gives counts as sent, as do the sender and the signal (H3)."""

    def look(sender: Any, signal: Any, event: Any) -> None: ...

    check_parameters(post_migrate, "shop.look", (look, False), also=frozenset({"event"}))
    with pytest.raises(ConnectError, match=r"shop\.look: post_migrate never sends 'event'"):
        check_parameters(post_migrate, "shop.look", (look, False))


def test_the_first_parameter_of_a_bound_task() -> None:
    """A bound task's first parameter is the task, whatever it is called (H3)."""

    def bound(task: Any, instance: Any) -> None: ...

    check_parameters(post_save, "shop.update", (bound, True))
    with pytest.raises(ConnectError, match="never sends 'task'"):
        check_parameters(post_save, "shop.update", (bound, False))


def test_a_parameter_that_never_comes() -> None:
    """A required parameter that is never sent raises, naming it, what is sent, and the remedy (H3)."""

    def update(instance: Any, creatd: bool) -> None: ...

    with pytest.raises(ConnectError) as caught:
        check_parameters(post_save, "shop.update", (update, False))

    assert (
        "shop.update: post_save never sends 'creatd', which the function requires. It sends created, instance, raw, "
        "sender, signal, update_fields, using. Give the parameter a default, or drop it."
    ) == str(caught.value)


def test_a_method_is_no_receiver() -> None:
    """A function with a ``self`` is told apart: it is a method, or the task itself was meant (H3)."""
    with pytest.raises(ConnectError, match=r"never sends 'self'.*add bind=True; a method is no receiver"):
        check_parameters(post_save, "shop.method", (Shop.method, False))


@pytest.mark.parametrize("signal", [post_save, some_signal])
def test_positions_are_never_given(signal: Signal) -> None:
    """A parameter that can only be given by position raises for every signal: signals pass names (H3)."""
    with pytest.raises(ConnectError, match=r"shop\.update: the parameter 'instance' is positional-only.*Drop the '/'"):
        check_parameters(signal, "shop.update", (by_position, False))


@pytest.mark.parametrize("function", [generator, async_generator])
def test_a_generator_function_would_run_nothing(function: Callable[..., Any]) -> None:
    """A generator function raises: calling it makes a generator, of which nobody takes anything (H3)."""
    with pytest.raises(ConnectError, match=rf"{function.__name__} .* is a generator function.*Drop the yield"):
        check_parameters(some_signal, "shop.update", (function, False))


def test_parameters_that_cannot_be_told() -> None:
    """What has no signature that Python can read raises, with the way around it."""

    def hidden() -> None: ...

    hidden.__signature__ = 5  # type: ignore[attr-defined]

    with pytest.raises(ConnectError, match=r"the parameters of .*hidden.* cannot be told\. Wrap it in a function"):
        check_parameters(some_signal, "shop.update", (hidden, False))


# A list of events ----------------------------------------------------------------------------------------------------


def events_only(events: Any) -> None: ...
def events_by_name(*, events: Any, limit: int = 5) -> None: ...
def events_with_default(events: Any = ()) -> None: ...
def events_and_more(events: Any, **kwargs: Any) -> None: ...
def events_by_position(events: Any, /) -> None: ...
def position_and_events(one: Any, /, events: Any) -> None: ...


def events_and_sender(events: Any, sender: Any) -> None: ...
async def events_awaited(events: Any) -> None: ...
def task_and_events(self: Any, events: Any) -> None: ...


def events_generated(events: Any) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    "body",
    [
        None,
        *((one, False) for one in (events_only, events_by_name, events_with_default, events_and_more, everything)),
        (events_awaited, False),
        (task_and_events, True),
        (functools.partial(events_and_sender, sender=None), False),
        (logged(events_only), False),
    ],
)
def test_batches_that_can_be(body: Any) -> None:
    """With ``batch=True`` a function has a parameter for the events, and none beside it that must be given."""
    check_batch("shop.index", body)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ((plain, False), r"plain\(sender: .*\. Write: def plain\(events\), where event\.kwargs has"),
        ((nothing, False), r"nothing\(\).*\. Write: def nothing\(events\)"),
        ((any_position, False), r"any_position\(\*args"),
        ((events_by_position, False), r"events_by_position\(events: .*, /\)"),
        ((events_and_sender, False), r"events_and_sender\(events: .*, sender"),
        ((position_and_events, False), r"position_and_events\(one: .*, /, events"),
        ((task_and_events, False), r"task_and_events\(self"),
        ((functools.partial(events_and_sender, events=None), False), r"receiver\(.*Write: def receiver\(events\)"),
        ((Shop(), False), r"receiver\(instance"),
    ],
)
def test_batches_that_cannot_be(body: Any, shown: str) -> None:
    """A function that could not be given the events raises, with what it is, and what to write instead."""
    words = r"^shop\.index: with batch=True the function is given a list of events, and nothing else, but it is .*"
    with pytest.raises(ConnectError, match=f"{words}{shown}"):
        check_batch("shop.index", body)


def test_a_batch_that_would_run_nothing() -> None:
    """Nor is a generator function a receiver of events, or what has no parameters that can be read."""

    def hidden() -> None: ...

    hidden.__signature__ = 5  # type: ignore[attr-defined]

    with pytest.raises(ConnectError, match=r"is a generator function.*Drop the yield"):
        check_batch("shop.index", (events_generated, False))
    with pytest.raises(ConnectError, match=r"cannot be told\. Wrap it in a function"):
        check_batch("shop.index", (hidden, False))
