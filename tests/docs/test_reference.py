"""The reference is complete: signatures, defaults, arguments, columns, names and errors are those of the library."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest
from celery import Celery
from django.apps import apps
from django.contrib.auth.models import Permission
from django.dispatch import Signal

import django_celery_signals
import pytest_django_celery_signals
from django_celery_signals import (
    Discard,
    bridge,
    current_event,
    exceptions,
    handover,
    keys,
    names,
    options,
    signals,
    statistics,
    testing,
)
from django_celery_signals.management.commands.signals import Command
from django_celery_signals.models import Delivery, State
from django_celery_signals.observing import logs, opentelemetry, prometheus
from django_celery_signals.receivers import Connection
from django_celery_signals.statistics import Point
from django_celery_signals.task import SPELLINGS, ReceiverTask
from django_celery_signals.wire import ARGUMENT
from tests.docs.pages import ROOT, page_of
from tests.lanes import Stage
from tests.receiving import Receiving

REFERENCE = page_of("docs/reference.md")
TESTING = page_of("docs/testing.md")
ADMIN = page_of("docs/admin.md")
HOW = page_of("docs/how-it-works.md")

APP = "django_celery_signals"
EXCEPTIONS = {value for value in vars(exceptions).values() if isinstance(value, type)}
OBSERVING = {
    f"{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for module, own in [
        (prometheus, ["connect", "disconnect", "serve"]),
        (logs, ["connect", "disconnect"]),
        (opentelemetry, ["connect", "disconnect"]),
    ]
    for name in own
}
STATISTICS = {name: getattr(statistics, name) for name in statistics.__all__ if name.islower()}


def section(page: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of any level."""
    return re.split(r"^#+ ", page.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the rows of the tables in a text, the heads among them."""
    found = [re.split(r"(?<!\\) \| ", row) for row in re.findall(r"^\| (.*) \|$", text, re.MULTILINE)]
    return [cells for cells in found if not cells[0].startswith("---")]


def words(text: str) -> list[str]:
    """Return what stands in backticks and is one word."""
    return re.findall(r"`([\w.]+)`", text)


# Signatures ------------------------------------------------------------------------------------------------------


def public_functions() -> dict[str, Any]:
    """Return what is public and called, by the names that the reference has for it."""
    own = {name: getattr(django_celery_signals, name) for name in django_celery_signals.__all__}
    classes = {django_celery_signals.Event, ReceiverTask, *EXCEPTIONS}
    plain = {name: value for name, value in own.items() if value not in classes and value is not current_event}
    return plain | OBSERVING | STATISTICS


def written(page: str, name: str) -> inspect.Signature:
    """Return the signature by which a page introduces something."""
    terms = re.findall(r"^(`.*`)\n: ", page, re.MULTILINE)
    [arguments] = re.findall(rf"`{re.escape(name)}\((.*?)\)`", "\n".join(terms))
    scope: dict[str, Any] = {}
    exec(f"def function({arguments.replace('…', '...')}): pass", {"REGISTRY": ...}, scope)
    return inspect.signature(scope["function"])


def shape(signature: inspect.Signature) -> list[tuple[Any, ...]]:
    """Return what a signature says to its caller; how the rest of the options is called is nothing to him."""
    return [
        (one.kind, one.kind is one.VAR_KEYWORD or one.name, one.default is one.empty or one.default)
        for one in signature.parameters.values()
    ]


def check_signature(page: str, name: str, function: Any) -> None:
    """Compare the signature on a page with the function's; an ellipsis stands for a default that is an object."""
    said, real = shape(written(page, name)), shape(inspect.signature(function))
    assert [one[:2] for one in real] == [one[:2] for one in said]
    assert [] == [one for one, other in zip(real, said, strict=True) if other[2] not in (..., one[2])]


@pytest.mark.parametrize("name", public_functions())
def test_signatures(name: str) -> None:
    """What is public is called as the reference says, with the defaults that it says."""
    check_signature(REFERENCE, name, public_functions()[name])


@pytest.mark.parametrize(
    ("name", "function"), [("current_event", current_event), ("Deliveries", prometheus.Deliveries)]
)
def test_names_without_arguments(name: str, function: Any) -> None:
    """What takes no argument is named without one."""
    assert re.search(rf"`(?:\w+\.)?{name}\(\)`", REFERENCE)
    assert function() is None or isinstance(function(), prometheus.Deliveries)


@pytest.mark.parametrize("name", [name for name in testing.__all__ if name.islower()])
def test_signatures_of_testing(name: str) -> None:
    """What is there for tests is called as its page says."""
    check_signature(TESTING, name, getattr(testing, name))


def test_testing_is_documented() -> None:
    """The page about tests has all that a sending tells and can be asked, and the fixtures."""
    told = {name for name, value in vars(testing.Sent).items() if isinstance(value, property)}
    told |= {field.name for field in fields(testing.Sent)} - {"envelope"}
    asked = {name for name, value in vars(testing.SentSignals).items() if inspect.isfunction(value) and name[0] != "_"}
    given = {name for name in vars(pytest_django_celery_signals) if name.endswith("_signals") and name[0] != "_"}

    assert told <= set(words(TESTING))
    assert asked == set(re.findall(r"`sent\.(\w+)\(", TESTING))
    assert given == {"sent_signals", "drain_signals"}
    assert given <= set(words(TESTING))


def test_methods_are_documented() -> None:
    """The reference has every spelling of a task, and what an entry of ``connections()`` and a point tell."""
    assert [] == [name for name in SPELLINGS if f"`{name}`" not in REFERENCE]
    entry = REFERENCE.partition("`connections()`\n")[2].partition("\n\n")[0]
    assert {field.name for field in fields(Connection)} == set(words(entry)) & {f.name for f in fields(Connection)}
    point = REFERENCE.partition("`series(")[2].partition("\n\n")[0]
    assert {field.name for field in fields(Point)} <= set(words(point))


# Defaults --------------------------------------------------------------------------------------------------------


def test_running_defaults() -> None:
    """The running options have the defaults that the reference says."""
    said = {cells[0].strip("`"): cells[1] for cells in rows(section(REFERENCE, "## Running options"))[1:]}
    plain = {name: ast.literal_eval(cell.strip("`")) for name, cell in said.items() if cell.count("`") == 2}

    assert set(said) == set(options.RUNNING_NAMES)
    assert {"on_failure", "chunk_size"} == set(said) - set(plain)
    assert plain == {name: getattr(ReceiverTask, name) for name in plain}
    assert ('`"block"` if `ordered`, else `"park"`', "`1`, or `100` with `batch`") == (
        *(said["on_failure"], said["chunk_size"]),
    )


def test_running_defaults_that_depend(receiving: Receiving, settings: Any) -> None:
    """An ordered receiver blocks its key unless told, and others do not; a batch is of a hundred."""
    settings.DJANGO_CELERY_SIGNALS, bell = {}, Signal()
    plain, ordered = receiving(bell), receiving(bell, ordered=True, key=lambda number: number)
    batch = receiving(bell, lambda events: None, batch=True)

    assert [False, True] == [plain.blocks_key, ordered.blocks_key]
    assert [1, 1, 100] == [plain.most_together, ordered.most_together, batch.most_together]


def test_sending_defaults() -> None:
    """The reference names every sending option once, and for how long a debounced one waits."""
    said = {cells[0]: cells[1] for cells in rows(section(REFERENCE, "## Sending options"))[1:]}

    assert sorted(options.NAMES) == sorted(name for cell in said for name in words(cell))
    assert f"{keys.MAX_WAIT} times `debounce`" == said["`max_wait`"]
    assert "`False`" == said["`coalesce`"] == said["`raw`"]
    assert not options.SendingOptions().folds


def arguments_of_command() -> list[Any]:
    """Return each word of the command with each of its own arguments, by the command's own parser."""
    parser = Command().create_parser("manage.py", "signals")
    (chosen,) = [action for action in parser._actions if action.dest == "word"]
    own = {name for action in parser._actions for name in action.option_strings}
    return [
        pytest.param(word, action, id=f"{word} {action.dest}")
        for word, inner in chosen.choices.items()  # type: ignore[union-attr]
        for action in inner._actions
        if not own.intersection(action.option_strings)
    ]


@pytest.mark.parametrize(("word", "action"), arguments_of_command())
def test_arguments_of_the_command(word: str, action: Any) -> None:
    """Each argument is written as it is given: what it takes, what may be chosen, and its default."""
    (line,) = re.findall(rf"^`manage\.py signals {word}( .*)?`$", REFERENCE, re.MULTILINE)
    name = next(iter(action.option_strings), None)
    if name is None:
        many = "…" if action.nargs in ("+", "*") else ""
        bare = f"{action.dest.upper()}{many}"
        assert f" [{bare}]" in line if action.nargs == "*" else f" {bare}" in line
    elif name in line:
        taken = re.findall(rf"{name}(?: ([^\]\s]+))?[\]\s]", f"{line} ")[0]
        if action.nargs == 0:
            assert taken in ("", "|")
        elif action.default is not None:
            assert action.default == type(action.default)(taken)
        else:
            assert "|".join(action.choices or []) in ("", taken)
            assert taken
    else:  # of the filters that several words share
        assert f"`{name}`" in REFERENCE.partition("\nFilters: ")[2].partition("\n\n")[0]


# What it tells, keeps and is called ------------------------------------------------------------------------------


def succeed(**kwargs: Any) -> None:
    """Return."""


def fail(**kwargs: Any) -> None:
    """Raise."""
    raise LookupError


def drop(**kwargs: Any) -> None:
    """Discard the event."""
    raise Discard


@pytest.mark.django_db(transaction=True)
def test_arguments_of_signals(stage: Stage, settings: Any) -> None:
    """Each of the library's own signals has the arguments that the reference names."""
    settings.DJANGO_CELERY_SIGNALS = {}
    told: dict[Signal, set[str]] = {}

    def listen(signal: Signal, sender: str, **facts: Any) -> None:
        told[signal] = {*facts} | told.get(signal, set())

    for signal in signals.LIFECYCLE:
        signal.connect(listen)
    try:
        bell = Signal()
        for function in (succeed, fail, drop):
            stage.receiving(bell, function, max_retries=0)
        bell.send(sender=None)
        assert 3 == stage.work()
        handover.lose("tests.nobody", "", "", LookupError(), event_id="")
    finally:
        for signal in signals.LIFECYCLE:
            signal.disconnect(listen)

    said = {
        cells[0].strip("`"): words(cells[1]) for cells in rows(section(REFERENCE, "## The library's own signals"))[1:]
    }
    assert said.keys() == {name for name, value in vars(signals).items() if value in signals.LIFECYCLE}
    assert {name: sorted(arguments) for name, arguments in said.items()} == {
        name: sorted(told[getattr(signals, name)]) for name in said
    }


def test_row() -> None:
    """The reference has every column of a delivery once, and every state, and the page of states has those, too."""
    table = rows(section(REFERENCE, "### What is in a row"))[1:]
    columns = [name for cells in table for name in words(cells[0])]
    states = next(cells[1] for cells in table if cells[0] == "`state`").partition(", as a number")[0]

    assert sorted(field.name for field in Delivery._meta.fields) == sorted(columns)
    assert sorted(state.label for state in State) == sorted(words(states))
    assert {state.label for state in State} == {
        cells[0].strip("`") for cells in rows(section(HOW, "## The row")) if cells[0].startswith("`")
    }


@pytest.fixture
def called() -> dict[str, list[str]]:
    """What the reference says that things are called."""
    return {cells[0]: re.findall(r"`([^`]+)`", cells[1]) for cells in rows(section(REFERENCE, "## Names"))[1:]}


def test_tables(called: dict[str, list[str]]) -> None:
    """The reference names every table."""
    assert {model._meta.db_table for model in apps.get_app_config(APP).get_models()} == set(called["tables"])


@pytest.mark.django_db
def test_permissions(called: dict[str, list[str]]) -> None:
    """The reference names every permission that a migrated database has, and the admin's page says what it is for."""
    rows_of_them = Permission.objects.filter(content_type__app_label=APP, content_type__model="delivery")
    made = set(rows_of_them.values_list("codename", flat=True))

    assert made == set(called["permissions"])
    assert made == {cells[0].strip("`") for cells in rows(section(ADMIN, "## Permissions"))[1:]}


def test_tasks_and_messages(called: dict[str, list[str]], celery_app: Celery) -> None:
    """The reference names every task of the library's, and the argument of its messages."""
    assert [name for name in celery_app.tasks if name.startswith(f"{APP}.")] == called["task"]
    assert [ARGUMENT] == called["argument of a message"]


def test_threads(called: dict[str, list[str]]) -> None:
    """The reference names every thread that lives as long as its process."""
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))

    assert sorted(re.findall(r'name=f?"(django-celery-signals-[a-z-]*)', source)) == sorted(called["threads"])


def test_loggers(called: dict[str, list[str]]) -> None:
    """All loggers are below the one that the reference names, and the one of records is named."""
    source = "".join(path.read_text() for path in (ROOT / "src" / APP).rglob("*.py"))

    assert {"__name__", f'"{APP}.events"'} == set(re.findall(r"getLogger\((.*?)\)", source))
    assert [APP, f"{APP}.events", "logs.connect()"] == called["loggers"]


def test_extras(called: dict[str, list[str]]) -> None:
    """The reference names the extras that users want, and the plugin of pytest."""
    project = tomllib.loads(page_of("pyproject.toml"))["project"]

    assert {"example", "test", "browser", "lint", "docs", "dev"} == set(project["optional-dependencies"]) - set(
        called["extras"]
    )
    assert list(project["entry-points"]["pytest11"]) == called["plugin of pytest"][:1]


def test_environment() -> None:
    """The library reads one variable of the environment, and the reference names it."""
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))

    assert ["PROMETHEUS_MULTIPROC_DIR"] == re.findall(r"os\.(?:environ|getenv)\W+(?:get\W+)?\"?(\w+)", source)
    assert "`PROMETHEUS_MULTIPROC_DIR`" in REFERENCE


def test_errors() -> None:
    """The reference names every error, and says which of Python's and Django's it is as well."""
    own = {value for value in EXCEPTIONS if value.__module__ == exceptions.__name__}
    said = section(REFERENCE, "## Errors") + section(REFERENCE, "## In a receiver")

    assert [] == [one.__name__ for one in own if not re.search(rf"`{one.__name__}[`(]", said)]
    for cells in rows(section(REFERENCE, "## Errors"))[1:]:
        for base in re.findall(r"\(an? `(\w+)`\)", cells[1]):
            last = getattr(exceptions, words(cells[0])[-1])
            assert base in {one.__name__ for one in last.__mro__}


def test_refused_signals() -> None:
    """The reference names the signals of Django's that have no receiver in a worker."""
    refused = [signal for signal in bridge._NOT_ASYNCHRONOUS if signal not in signals.LIFECYCLE]
    said = REFERENCE.partition("\nSignals that cannot be connected: ")[2]

    assert refused
    assert {names.short_name(names.signal_name(signal)) for signal in refused} == set(words(said))


def test_modules() -> None:
    """What the reference calls a module can be imported under that name."""
    for name in set(re.findall(r"`(django_celery_signals(?:\.[a-z]\w*)+)`", REFERENCE)):
        module, found = name.split(".")[1:], django_celery_signals
        if name not in (f"{APP}.probe", f"{APP}.events"):
            for part in module:
                found = getattr(found, part)
            assert isinstance(found, ModuleType) or found is not None
