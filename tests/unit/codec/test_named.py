"""What travels by name: classes, functions, signals, apps, migrations, ranges; and that decoding imports nothing."""

from __future__ import annotations

import collections
import datetime
import json
import sys
import types
from decimal import Decimal
from typing import Any

import pytest
from django.apps import AppConfig, apps
from django.contrib.auth.models import AbstractUser, AnonymousUser
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections, migrations, models
from django.db.migrations.state import ModelState, ProjectState
from django.db.models.signals import post_save
from django.dispatch import Signal
from django.utils.functional import SimpleLazyObject
from psycopg.types.range import Range

from django_celery_signals import DecodeError
from django_celery_signals.codec.standins import Unavailable
from tests.carrying import carried, exact, from_json, some_signal, to_json
from tests.shop.models import Article, LiveManager, Order, PriorityOrder, RushOrder, Stamped, User

HERE = __name__


class Outer:
    class Inner:
        @staticmethod
        def function() -> None: ...


class Meta(type):
    pass


class WithMeta(metaclass=Meta):
    pass


def function() -> None: ...


renamed = function
nameless = lambda: None  # noqa: E731 - a function that is not found under its own name


class Plain(AppConfig):
    pass


# Classes and functions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "thing",
    [
        int,
        type,
        collections.OrderedDict,
        Outer,
        Outer.Inner,
        WithMeta,
        WSGIHandler,
        function,
        renamed,
        Outer.Inner.function,
        json.dumps,
        len,
        collections.namedtuple,
        LiveManager,
        Stamped,
        AbstractUser,
    ],
    ids=lambda thing: thing.__qualname__,
)
def test_classes_and_functions_arrive_as_themselves(thing: Any) -> None:
    """H22: A class or function that both processes hold arrives as that very object."""
    assert thing is carried(thing)


@pytest.mark.parametrize(
    "model", [Order, PriorityOrder, RushOrder, Article, User, Order.tags.through], ids=lambda model: model._meta.label
)
def test_models_travel_by_their_label(model: Any) -> None:
    """H10, H12, H22: Installed models, proxies and generated through models included, travel by label."""
    assert {"$": "class", "v": ["model", model._meta.label]} == to_json(model)
    assert model is carried(model)


def historical() -> type[models.Model]:
    state = ProjectState()
    state.add_model(ModelState("shop", "Tag", [("id", models.BigAutoField(primary_key=True))]))
    return state.apps.get_model("shop.Tag")


def local_function() -> Any:
    return lambda: None


@pytest.mark.parametrize(
    "make",
    [
        local_function,
        lambda: nameless,
        lambda: type("Local", (), {}),
        lambda: type("dict", (), {"__module__": "builtins"}),
        historical,
        lambda: Order().save,
        lambda: types.new_class("Nowhere", exec_body=lambda names: names.update(__module__="not.imported")),
    ],
    ids=["local function", "lambda", "local class", "false name", "historical model", "method", "no module"],
)
def test_what_has_no_name_of_its_own_becomes_a_stand_in(make: Any) -> None:
    """H18, H29: What is not found again under its own name, a migration's model included, becomes a stand-in."""
    assert type(carried(make())) is Unavailable


# Trust -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "path"),
    [
        ("class", "antigravity:fly"),
        ("class", "xmlrpc.server:SimpleXMLRPCServer"),
        ("function", "xmlrpc.client:dumps"),
        ("builtin_function_or_method", "xmlrpc.client:dumps"),
        ("enum", ["xmlrpc.client:Colour", "RED", None]),
        ("subclass", ["xmlrpc.client:Text", "str", "x", {}]),
        ("place", "xmlrpc.client:MAXINT"),
        ("place", "json:"),
        ("place", ":"),
        ("place", ""),
        ("class", "builtins:int.__class__.__bases__"),
    ],
    ids=repr,
)
def test_decoding_imports_nothing(tag: str, path: Any) -> None:
    """H18, H75: For a name that no imported module holds nothing is imported: a stand-in says what to import where."""
    before = set(sys.modules)
    arrived = from_json({"$": tag, "v": path})
    assert type(arrived) is Unavailable
    assert "import it where the worker starts" in repr(arrived)
    assert {"antigravity", "xmlrpc.client", "xmlrpc.server"} & (set(sys.modules) - before) == set()


@pytest.mark.parametrize(
    ("tag", "path"),
    [
        ("class", "json:dumps"),
        ("class", "django.conf:settings"),
        ("function", "json:JSONDecoder"),
        ("function", "builtins:len"),
        ("place", "tests.settings:SECRET_KEY"),
        ("place", "tests.settings:DATABASES"),
        ("place", "json:dumps"),
        ("place", "json:decoder"),
        ("place", 5),
        ("class", ["model"]),
        ("class", ["model", 5]),
        ("class", ["model", "shop.Nothing"]),
        ("class", ["model", "a.b.c"]),
        ("class", ["model", "x"]),
        ("class", None),
        ("signal", 5),
        ("signal", [5]),
        ("signal", "shop.signals:paid"),
        ("app", "nothing"),
        ("app", {}),
    ],
    ids=repr,
)
def test_a_name_of_the_wrong_kind_is_refused(tag: str, path: Any) -> None:
    """A crafted name that leads to something of another kind, such as a setting, is refused with a DecodeError."""
    with pytest.raises(DecodeError):
        from_json({"$": tag, "v": path})


def test_looking_a_name_up_evaluates_no_lazy_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """H66b: A crafted name that leads to a lazy object is refused, or finds it, without evaluating it."""
    lazy = SimpleLazyObject(lambda: pytest.fail("It was evaluated."))
    monkeypatch.setitem(globals(), "lazy", lazy)
    with pytest.raises(DecodeError, match="SimpleLazyObject"):
        from_json({"$": "class", "v": f"{HERE}:lazy"})
    assert from_json({"$": "place", "v": f"{HERE}:lazy"}) is lazy
    assert type(from_json({"$": "place", "v": f"{HERE}:lazy.inner"})) is Unavailable


def test_looking_a_name_up_runs_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads through a property or a module's __getattr__ leads nowhere."""

    class Trap:
        @property
        def inner(self) -> Any:
            raise AssertionError("Looking up ran a property.")

    module = types.ModuleType("tests.trap")
    module.trap = Trap()  # type: ignore[attr-defined]
    module.__getattr__ = lambda name: pytest.fail("Looking up ran __getattr__.")  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "tests.trap", module)
    for path in ("tests.trap:trap.inner", "tests.trap:nothing", "tests.trap:trap.__class__.inner.fget"):
        assert type(from_json({"$": "place", "v": path})) is Unavailable


# Signals -----------------------------------------------------------------------------------------------------------


def test_signals_arrive_as_themselves() -> None:
    """H21: A signal among the arguments arrives as the live object."""
    for signal in (post_save, some_signal):
        assert signal is carried(signal)


def test_a_signal_is_found_under_any_of_its_names() -> None:
    """H21, H75: A signal travels under all its names, and one that this process holds is enough."""
    assert to_json(post_save)["v"][0] == "django.db.models.signals:post_save"
    assert from_json({"$": "signal", "v": ["moved.signals:paid", f"{HERE}:some_signal"]}) is some_signal


def test_a_signal_of_no_module_becomes_a_stand_in() -> None:
    """H18, H21: A signal that no module holds becomes a stand-in."""
    assert type(carried(Signal())) is Unavailable


def test_a_signal_the_worker_lacks_is_a_null_object() -> None:
    """H21: A signal whose name leads nowhere in the worker arrives as a signal without receivers, not as an error."""
    arrived = from_json({"$": "signal", "v": ["shop.signals:paid", "shop.models:paid"]})
    assert isinstance(arrived, Signal)
    assert arrived != post_save
    assert arrived.send(sender=None) == []
    assert "'shop.signals:paid'" in repr(arrived)


# Apps, migrations, users -------------------------------------------------------------------------------------------


def test_apps_arrive_as_installed() -> None:
    """H29: An app's configuration arrives as the installed one of that label."""
    for config in apps.get_app_configs():
        assert config is carried(config)


def test_migrations_travel_as_app_and_name() -> None:
    """H29: A migration, of which post_migrate's plan consists, travels as its app and name."""

    class Initial(migrations.Migration):
        operations = [migrations.RunSQL("")]

    [(arrived, backwards)] = carried([(Initial("0001_initial", "shop"), False)])
    assert (type(arrived), arrived.app_label, arrived.name, backwards) == (
        migrations.Migration,
        "shop",
        "0001_initial",
        False,
    )
    assert arrived.operations == []


def test_an_anonymous_user_arrives() -> None:
    """H69: An AnonymousUser arrives as one, is falsy as a member of a group and authenticated by nobody."""
    arrived = carried(AnonymousUser())
    assert type(arrived) is AnonymousUser
    assert not arrived.is_authenticated
    assert AnonymousUser() == arrived


# Ranges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        Range(1, 5),
        Range(1, 5, "[]"),
        Range(None, 5, "()"),
        Range(Decimal("1.5"), None, "(]"),
        Range(None, None),
        Range(datetime.date(2024, 1, 1), datetime.date(2024, 2, 1), "(]"),
        Range(datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), None),
        Range(empty=True),
    ],
    ids=repr,
)
def test_ranges_come_back(value: Range[Any]) -> None:
    """H56: PostgreSQL's ranges come back with bounds, emptiness and the types of their ends."""
    arrived = carried(value)
    assert type(arrived) is Range
    assert value == arrived
    assert [exact(value.lower), exact(value.upper)] == [exact(arrived.lower), exact(arrived.upper)]
    assert value.bounds == arrived.bounds


@pytest.mark.parametrize(
    "payload",
    [
        ["psycopg.types.range:Range", 1, 2, "<>", False],
        ["psycopg.types.range:RangeInfo", 1, 2, "[)", False],
        ["psycopg.types.range:fail_dump", 1, 2, "[)", False],
        ["psycopg.types.range:re.RegexFlag", 1, 2, "[)", False],  # what a module imports is not its own
        ["functools:partial", len, 2, "[)", False],
        ["builtins:print", 1, 2, "[)", False],
        [5, 1, 2, "[)", False],
        ["psycopg.types.range:Range", 1],
    ],
    ids=repr,
)
def test_a_crafted_range_is_refused(payload: Any) -> None:
    """A message builds no range but PostgreSQL's, and only with bounds that exist."""
    with pytest.raises(DecodeError):
        from_json({"$": "range.psycopg", "v": payload})


def test_a_connection_becomes_a_stand_in() -> None:
    """H18: A live connection becomes a stand-in that names its type."""
    assert "DatabaseWrapper" in repr(carried(connections["default"]))
