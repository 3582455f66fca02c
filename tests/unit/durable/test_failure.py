"""What is kept of a failure: readable, bounded, and alike for failures of one cause."""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from django_celery_signals.durable import failure
from django_celery_signals.durable.deliveries import deliveries
from django_celery_signals.durable.failure import clean, described
from django_celery_signals.exceptions import ReceiverFailed
from django_celery_signals.wire import parse
from tests.delivering import place
from tests.parameters import each_database

RECEIVER = "shop.tasks.index"


class Unspeakable(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def raised(function: Callable[[], Any]) -> dict[str, Any]:
    """Return what is kept of what a function raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever it is
        function()
    return described(caught.value, RECEIVER)


def module_at(path: Path, code: str, name: str = "made") -> ModuleType:
    """Return a module as if it had been imported from a place."""
    module = ModuleType(name)
    exec(compile(code, str(path), "exec"), module.__dict__)
    return module


def test_columns() -> None:
    """An error is kept by its type with its module, its message, and its traceback as Python prints it."""

    def fail() -> None:
        raise ReceiverFailed("no stock for 7")

    kept = raised(fail)

    assert ("django_celery_signals.exceptions.ReceiverFailed", "no stock for 7") == (
        kept["error_type"],
        kept["error_message"],
    )
    assert kept["traceback"].startswith("Traceback (most recent call last):\n")
    assert "raise ReceiverFailed" in kept["traceback"]
    assert kept["traceback"].endswith("ReceiverFailed: no stock for 7\n")


def test_errors_of_python() -> None:
    """Python's own errors are named as everybody calls them."""
    assert "ZeroDivisionError" == raised(lambda: 1 / 0)["error_type"]


def test_chain_of_errors() -> None:
    """The traceback shows what an error came from."""

    def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    kept = raised(fail)
    assert "KeyError: 'first'" in kept["traceback"]
    assert "was the direct cause" in kept["traceback"]


# The fingerprint -----------------------------------------------------------------------------------------------------


def outer(text: str) -> Any:
    return json.loads(text)


def test_the_projects_own_code() -> None:
    """Failures are alike when the same error comes up from the same function of the project's own code, however deep
    in others' code it was raised, and whatever it says."""
    one, other = raised(lambda: outer("{")), raised(lambda: outer("[1,"))

    assert f"json.decoder.JSONDecodeError in {__name__}.outer" == one["fingerprint"] == other["fingerprint"]
    assert one["error_message"] != other["error_message"]


def test_the_function_nearest_to_the_error() -> None:
    """Of several functions of the project the innermost counts, with the class or function that it is part of."""

    class Shop:
        def close(self) -> None:
            raise ValueError

    def inner() -> None:
        Shop().close()

    place = "test_the_function_nearest_to_the_error.<locals>.Shop.close"
    assert f"ValueError in {__name__}.{place}" == raised(inner)["fingerprint"]


@pytest.mark.parametrize("name", ["stdlib", "purelib"])
def test_code_of_others(name: str) -> None:
    """Code of Python and of installed packages is not the project's own."""
    module = module_at(Path(sysconfig.get_path(name)) / "others.py", "def fail(): raise ValueError")

    error = _error_of(module.fail)
    assert f"ValueError in {RECEIVER}" == described(error, RECEIVER)["fingerprint"]


@pytest.mark.parametrize("folder", ["/root/.local/lib/python3/site-packages", "/usr/lib/python3/dist-packages"])
def test_packages_in_other_places(folder: str) -> None:
    """So is what is installed for one user, or by the system."""
    module = module_at(Path(folder) / "others.py", "def fail(): raise ValueError")

    assert f"ValueError in {RECEIVER}" == described(_error_of(module.fail), RECEIVER)["fingerprint"]


def test_code_of_this_library() -> None:
    """This library's code is not the project's own, wherever it is imported from."""
    with pytest.raises(ValueError, match="damaged") as caught:
        parse("{")
    error = caught.value.with_traceback(caught.value.__traceback__.tb_next)  # type: ignore[union-attr]

    fingerprint = described(error, RECEIVER)["fingerprint"]
    assert f"django_celery_signals.exceptions.DecodeError in {RECEIVER}" == fingerprint


def test_code_without_a_file() -> None:
    """Nor is what was never in a file."""
    module = module_at(Path("<string>"), "def fail(): raise ValueError")

    assert f"ValueError in {RECEIVER}" == described(_error_of(module.fail), RECEIVER)["fingerprint"]


def test_code_without_a_module() -> None:
    """A function that belongs to no module is known by its own name."""
    module = module_at(Path("/project/shop.py"), "def fail(): raise ValueError")
    del module.__dict__["__name__"]

    assert "ValueError in ?.fail" == described(_error_of(module.fail), RECEIVER)["fingerprint"]


def test_error_that_was_never_raised() -> None:
    """An error without a traceback is grouped by its receiver."""
    kept = described(ValueError("told"), RECEIVER)

    assert (f"ValueError in {RECEIVER}", "ValueError: told\n") == (kept["fingerprint"], kept["traceback"])


def _error_of(function: Callable[[], Any]) -> BaseException:
    """Return what a function raises, with a traceback that begins in it."""
    try:
        function()
    except Exception as error:
        return error.with_traceback(error.__traceback__.tb_next)  # type: ignore[union-attr]
    raise AssertionError("It raised nothing.")


# What databases and disks can bear -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain Ж 🔔", "plain Ж 🔔"), ("a\x00b", "a\\x00b"), ("half \ud83d of one", "half \\ud83d of one")],
    ids=ascii,
)
def test_clean_text(text: str, expected: str) -> None:
    """What a database refuses in a text is written in letters."""
    assert expected == clean(text)


@each_database
def test_whatever_an_error_says_can_be_kept(alias: str) -> None:
    """No name and no message of an error keeps it from being noted: neither length nor odd characters."""
    error = type("Ж" * 300, (Exception,), {"__module__": "m" * 100})("\x00 \ud83d 🔔" + "x" * 1_000_000)

    place(alias, "tests.nobody", **described(error, "r" * 255))

    row = deliveries(alias).get()
    assert (255, 255) == (len(row.error_type), len(row.fingerprint))
    assert failure.MOST_TEXT == len(row.error_message) == len(row.traceback)
    assert row.error_message.startswith("\\x00 \\ud83d 🔔xxx")


def test_the_end_of_a_long_traceback() -> None:
    """Of a long traceback the end is kept, where the error is; of a long message the beginning."""
    kept = described(ValueError("begin" + "x" * failure.MOST_TEXT + "end"), RECEIVER)

    assert ("beginx", "xend\n") == (kept["error_message"][:6], kept["traceback"][-5:])


def test_error_that_cannot_speak() -> None:
    """An error whose own message fails is kept as well, with the reason."""

    def fail() -> None:
        raise Unspeakable

    kept = raised(fail)
    assert "its message cannot be shown: RuntimeError('no words')" == kept["error_message"]
    assert f"{__name__}.Unspeakable" == kept["error_type"]
    assert sys.exc_info() == (None, None, None)
