"""The shape of the package: one way, without cycles; small modules and functions; every public name is meant."""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import django_celery_signals

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "django_celery_signals"
PAGE = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    """Return the name of a module within the package, ``codec.core``; a folder's is its own, the package's is empty."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Migrations are Django's work: they name what they need by its full path, and nothing in the package needs them.
FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "migrations"}
MODULES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)

# The flow, from the signal to the receiver's function; a module imports none that stands before it.
FLOW = [
    *("receivers", "task", "execution", "durable.hold", "bridge", "dispatch", "durable.relay", "durable.outbox"),
    *("handover", "template", "carried", "keys", "options", "wire", "envelope", "publisher", "event"),
]
# What stands beside the flow, which does without it.
BESIDE = ("checks", "management", "observing", "operating", "statistics", "testing", "apps", "models")
# What the library may need at run time. Everything else is the user's choice.
REQUIRED = {"django", "celery", "kombu", "amqp", "asgiref"}
# The one package more that a module needs, whose user imports it.
EXTRAS = {"observing.opentelemetry": "opentelemetry", "observing.prometheus": "prometheus_client"}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method of a module."""
    yield from (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def own_imports(module: str) -> set[str]:
    """Return the package's modules that a module imports."""
    parts = module.split(".") if module else []
    folder = parts if FILES[module].name == "__init__.py" else parts[:-1]
    found: set[str] = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) + 1 - node.level], *filter(None, [node.module])]
            names = {".".join([*base, alias.name]) for alias in node.names}
            found |= names & MODULES.keys() or {".".join(base)}
    return found


def other_imports(tree: ast.AST) -> set[str]:
    """Return the packages that a module imports, besides this one."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


@cache
def reached_from(module: str) -> frozenset[str]:
    """Return what a module needs, directly or not; itself, where there is a cycle."""
    found: set[str] = set()
    ahead = [module]
    while ahead:
        needed = own_imports(ahead.pop()) - found
        found |= needed
        ahead.extend(needed)
    return frozenset(found)


def nesting(node: ast.AST, depth: int = 0) -> int:
    """Return how many blocks stand within one another; an ``elif`` is no block of its own."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
            deepest = max(deepest, nesting(child, depth + (isinstance(child, BLOCKS) and not is_elif)))
    return deepest


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function, its decorators and docstring among them."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_there_is_no_cycle() -> None:
    """No module needs itself by way of others."""
    assert MODULES.keys() - {""} >= reached_from("") > {"codec.core", *FLOW}
    assert [] == [module for module in MODULES if module in reached_from(module)]


@pytest.mark.parametrize("place", range(len(FLOW)), ids=FLOW)
def test_the_flow_has_one_direction(place: int) -> None:
    """A stage needs no stage that comes before it."""
    assert set() == reached_from(FLOW[place]) & set(FLOW[:place])


@pytest.mark.parametrize("stage", FLOW)
def test_the_flow_needs_nothing_beside_it(stage: str) -> None:
    """What looks at the flow, or is told by it, can be taken away."""
    assert [] == [module for module in reached_from(stage) if module.split(".")[0] in BESIDE]


@pytest.mark.parametrize("module", MODULES)
def test_imports_stand_at_the_top(module: str) -> None:
    """No import hides in a function."""
    hidden = [
        node
        for function in functions(MODULES[module])
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]

    assert [] == hidden


@pytest.mark.parametrize("module", MODULES)
def test_only_django_and_celery_are_needed(module: str) -> None:
    """Whatever else is imported comes with Python, or with Django and Celery; a leaf may need one package more."""
    extras = other_imports(MODULES[module]) - sys.stdlib_module_names - REQUIRED
    assert extras == ({EXTRAS[module]} if module in EXTRAS else set())


def test_nothing_needs_what_observes() -> None:
    """What is for one tool is imported by its user, and by no module of the package."""
    observing = {module for module in MODULES if module.startswith("observing.")}
    assert observing >= EXTRAS.keys()
    assert [] == [module for module in MODULES if own_imports(module) & observing]


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_small(module: str) -> None:
    """A module has at most 300 lines, and is named on the page that explains the flow."""
    path = FILES[module]

    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    assert path.name == "__init__.py" or f"`{path.name}`" in PAGE


def test_functions_are_small() -> None:
    """Nine functions of ten have at most 20 lines, none more than 40 beside its docstring; none nests deeper than 3."""
    every = [function for tree in MODULES.values() for function in functions(tree)]

    assert statistics.quantiles(map(length, every), n=10)[-1] <= 20
    assert [] == [function.name for function in every if length(function) - docstring_length(function) > 40]
    assert [] == [function.name for function in every if nesting(function) > 3]


def docstring_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function's docstring."""
    return len((ast.get_docstring(function, clean=False) or "").splitlines())


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_explain_themselves(module: str) -> None:
    """A module that is not empty, and each public class and function of it, begins with a sentence."""
    tree = MODULES[module]
    public = [node for node in tree.body if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and node.name[0] != "_"]

    assert not tree.body or re.match(r"\S.*\.", ast.get_docstring(tree) or "", re.DOTALL)
    assert [] == [node.name for node in public if not ast.get_docstring(node)]


def test_public_names_are_listed() -> None:
    """``__all__`` is sorted, and names what the package offers and nothing else."""
    offered = {name for name, value in vars(django_celery_signals).items() if _is_offered(name, value)}

    assert sorted(django_celery_signals.__all__) == django_celery_signals.__all__
    assert offered == set(django_celery_signals.__all__)


def _is_offered(name: str, value: object) -> bool:
    return not name.startswith("_") and callable(value)
