"""Names for signals, classes and objects that both processes hold."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from celery.local import Proxy
from django.contrib.auth.signals import user_logged_in
from django.core.signals import request_started
from django.db.models.signals import ModelSignal, m2m_changed, post_save
from django.dispatch import Signal
from django.test.signals import setting_changed
from django.utils.functional import SimpleLazyObject

from django_celery_signals import names
from django_celery_signals.names import (
    MOST_NAMES,
    find,
    find_signal,
    name_signal,
    path_of,
    place_of,
    short_name,
    signal_name,
    signal_names,
)
from django_celery_signals.signals import event_sent

here = Signal()
in_dictionary = {"paid": Signal(), "sent": Signal(), "with.dot": Signal(), 5: Signal()}


class Workflow:
    started = ModelSignal()


class Machine:
    """An object that lives in a module, and is equal to every other."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Machine)

    def __hash__(self) -> int:
        return 1


machine, second_machine = Machine(), Machine()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., types.ModuleType]:
    """Makes modules that are imported for one test."""

    def make(name: str, **contents: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


# Signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal", "name"),
    [
        (post_save, "django.db.models.signals:post_save"),
        (m2m_changed, "django.db.models.signals:m2m_changed"),
        (request_started, "django.core.signals:request_started"),
        (setting_changed, "django.core.signals:setting_changed"),
        (user_logged_in, "django.contrib.auth.signals:user_logged_in"),
        (here, f"{__name__}:here"),
        (in_dictionary["paid"], f"{__name__}:in_dictionary.paid"),
        (Workflow.started, f"{__name__}:Workflow.started"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_signal_is_found_where_it_lives(signal: Signal, name: str) -> None:
    """H21: A signal's name is its place in a module, a module's dictionary or a class, and leads back to it."""
    assert name == signal_name(signal)
    assert signal is find_signal(name)


def test_the_name_is_the_same_in_every_process(module: Callable[..., types.ModuleType]) -> None:
    """H21: Of several places, the module called signals wins, then the shortest path, whatever was imported first."""
    signal = Signal()
    module("aaa.views", paid=signal)
    module("zzz.payments.signals", paid=signal)
    module("aaa.signals_of_old", paid=signal)
    assert signal_name(signal) == "zzz.payments.signals:paid"
    other = Signal()
    module("bbb.deep.down.models", closed=other)
    module("ccc.models", closed=other)
    assert signal_name(other) == "ccc.models:closed"


def test_a_signal_of_no_module_has_no_name() -> None:
    """H21: A signal that no module holds has the empty name, which leads to a null object."""
    signal = Signal()
    assert signal_name(signal) == ""
    assert type(find_signal("")) is names.UnknownSignal


def test_a_signal_without_a_name_is_looked_for_again_after_an_import(module: Callable[..., types.ModuleType]) -> None:
    """H21: A signal not found yet is found once its module is imported, and not searched for at every sending."""
    signal = Signal()
    assert signal_name(signal) == ""
    made = module("late.signals")
    vars(made)["late"] = signal
    assert signal_name(signal) == "late.signals:late"


def test_a_search_in_vain_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """H5: A signal of no module is not searched for in every module at every sending."""
    signal = Signal()
    signal_name(signal)
    monkeypatch.setattr(names, "_held_by", lambda name, module: pytest.fail("searched again"))
    assert signal_name(signal) == ""
    monkeypatch.setattr(names, "_scanned_until", None)
    assert signal_name(signal) == ""


def test_another_thread_imports_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sending does not fail because another thread imports something just now."""

    class Changing(dict[str, Any]):
        def __reversed__(self) -> Any:
            raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(names, "sys", types.SimpleNamespace(modules=Changing(sys.modules)))
    assert "django.db.models.signals:post_save" == signal_name(post_save)


def test_only_new_modules_are_searched(
    module: Callable[..., types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """H5, H21: After an import only the new module is looked through, and again only while it is being imported."""
    signal_name(Signal())
    searched: list[str] = []
    search = names._held_by
    monkeypatch.setattr(names, "_held_by", lambda name, module: searched.append(name) or search(name, module))
    signal = Signal()
    made = module("shop.half", __spec__=types.SimpleNamespace(_initializing=True))
    assert signal_name(signal) == ""
    vars(made)["late"] = signal
    module("shop.after_half")
    assert signal_name(signal) == "shop.half:late"
    assert searched == ["shop.half", "shop.half", "shop.after_half"]


def test_a_signal_has_several_names(module: Callable[..., types.ModuleType]) -> None:
    """H21, H75: A signal travels under the best of its names, so that a worker that holds it elsewhere finds it."""
    signal = Signal()
    for number in range(MOST_NAMES + 1):
        module(f"shop.views{number}", paid=signal)
    assert signal_names(signal) == tuple(f"shop.views{number}:paid" for number in range(MOST_NAMES))
    assert find_signal("gone.signals:paid", "json:dumps", "shop.views3:paid") is signal
    assert repr(find_signal("gone.signals:paid", "gone:paid")).startswith("<UnknownSignal 'gone.signals:paid'")
    assert type(find_signal()) is names.UnknownSignal


def test_djangos_own_names_come_first(module: Callable[..., types.ModuleType]) -> None:
    """H21: A signal of Django's is named after Django's module, wherever else it was imported to."""
    module("aaa.signals", post_save=post_save)
    assert signal_names(post_save)[:1] == ("django.db.models.signals:post_save",)


def test_a_name_that_leads_elsewhere_by_now_is_dropped(module: Callable[..., types.ModuleType]) -> None:
    """H21: A signal no longer travels under a name that was given to another one."""
    signal = Signal()
    made = module("shop.moving_signals", paid=signal)
    module("shop.staying_signals", paid=signal)
    assert len(signal_names(signal)) == 2
    made.paid = Signal()  # type: ignore[attr-defined]
    assert signal_names(signal) == ("shop.staying_signals:paid",)


def test_a_given_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """H21: A name given at connect is the one a signal travels under, and it needs no module."""
    monkeypatch.setattr(names, "_given", dict(names._given))
    signal = Signal()
    name_signal(signal, "shop.paid")
    assert signal_name(signal) == "shop.paid"
    assert find_signal("shop.paid") is signal


def test_keys_that_a_path_cannot_hold_are_passed_over() -> None:
    """H21: A key that is no text, or holds a dot, is no name."""
    assert signal_name(in_dictionary["with.dot"]) == ""
    assert signal_name(in_dictionary[5]) == ""  # type: ignore[index]


def test_what_is_no_signal_is_not_taken_for_one() -> None:
    """H21: A name that leads to something else leads to a null object."""
    for path in ("json:dumps", f"{__name__}:machine", "nowhere:x", f"{__name__}:in_dictionary"):
        assert type(find_signal(path)) is names.UnknownSignal


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("a.b:post_save", "post_save"),
        ("a.b:C.started", "started"),
        ("shop.paid", "paid"),
        ("paid", "paid"),
        ("", ""),
        ("connection:shop.tasks.pay:*", ""),
    ],
)
def test_short_names_are_for_people(name: str, short: str) -> None:
    """A signal's short name is the last part of its name; the name of a connection says nothing of the signal."""
    assert short == short_name(name)


def test_searching_evaluates_nothing(module: Callable[..., types.ModuleType]) -> None:
    """H66b: Looking for a name evaluates no lazy object of any module, and makes Celery choose no app."""
    evaluated: list[str] = []
    lazy = SimpleLazyObject(lambda: evaluated.append("lazy object"))

    task = Proxy(lambda: evaluated.append("shared task"))

    module("lazy.signals", lazy=lazy, task=task)
    assert signal_name(Signal()) == ""
    assert place_of(object()) is None
    find("lazy.signals:lazy.inner")
    assert evaluated == []


def test_lazily_loaded_modules_stay_unloaded(module: Callable[..., types.ModuleType]) -> None:
    """A module that is loaded at its first use, or that raises whatever it is asked, is left alone (H23)."""

    class Touchy(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            raise ImportError("loading this module fails")

    sys.modules["shop.touchy"] = Touchy("shop.touchy")
    sys.modules["shop.nothing"] = object()  # type: ignore[assignment]
    try:
        assert signal_name(Signal()) == ""
        assert place_of(object()) is None
        assert find("shop.touchy:paid") is None
        assert find("shop.nothing:paid") is None
    finally:
        del sys.modules["shop.touchy"], sys.modules["shop.nothing"]


def test_the_librarys_own_modules_give_no_name() -> None:
    """A signal has no name from a module of this library that merely imports it; the library's own have one."""
    assert [] == [name for name in signal_names(post_save) if name.startswith("django_celery_signals.")]
    assert "django_celery_signals.signals:event_sent" == signal_name(event_sent)


def test_a_module_that_is_loaded_late_is_searched_then(module: Callable[..., types.ModuleType]) -> None:
    """A module behind importlib's lazy loader is looked through once it is loaded (H21)."""
    lazy = type("_LazyModule", (types.ModuleType,), {})("shop.lazily")
    sys.modules["shop.lazily"] = lazy
    signal = Signal()
    try:
        assert signal_name(signal) == ""
        lazy.__class__ = types.ModuleType
        vars(lazy)["late"] = signal
        module("shop.after_lazily")
        assert signal_name(signal) == "shop.lazily:late"
    finally:
        del sys.modules["shop.lazily"]


# Things ------------------------------------------------------------------------------------------------------------


def test_a_path_leads_back_or_is_none() -> None:
    """H22: A class or function has a path only when that path leads back to it."""
    assert path_of(Workflow) == f"{__name__}:Workflow"
    assert find(f"{__name__}:Workflow") is Workflow
    assert path_of(type("Workflow", (), {"__module__": __name__})) is None
    assert path_of(machine) is None
    assert path_of(type(None)) == "types:NoneType"


def test_an_object_is_found_by_identity() -> None:
    """H22: An object that lives in a module is told from one that is merely equal."""
    assert place_of(machine) == f"{__name__}:machine"
    assert place_of(second_machine) == f"{__name__}:second_machine"
    assert place_of(Machine()) is None


def test_an_object_that_has_moved_has_no_place(module: Callable[..., types.ModuleType]) -> None:
    """H22: A place counts only as long as the object is there."""
    made = module("shop.moving", thing=Machine())
    thing = made.thing
    assert place_of(thing) == "shop.moving:thing"
    made.thing = Machine()  # type: ignore[attr-defined]
    assert place_of(thing) is None


def test_objects_are_not_searched_for_at_every_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """H22: Senders that live in no module, such as views, do not cost a search of all modules each."""
    place_of(object())
    monkeypatch.setattr(names, "_preference", lambda path: pytest.fail("searched again"))
    assert [place_of(object()) for _ in range(3)] == [None] * 3
    names._objects.cache_clear()
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        place_of(object())
