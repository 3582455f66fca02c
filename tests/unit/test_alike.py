"""What surrounded several sendings alike is restored once; each of their runs has what surrounded it all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from django.utils import translation

from django_celery_signals import context, register_context
from django_celery_signals.alike import alike
from django_celery_signals.context import restored

tenant: ContextVar[Any] = ContextVar("tenant", default=None)
ACME, OTHER = {"tenant": "acme", "language": "de"}, {"tenant": "other"}


@pytest.fixture(autouse=True)
def entered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The values of a carrier that are restored; it is kept in a variable."""
    monkeypatch.setattr(context, "_carriers", dict(context._carriers))
    register_context("tenant", variable=tenant)
    found: list[Any] = []
    watch("tenant", found, monkeypatch)
    return found


def watch(name: str, found: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Note what a carrier restores, and that it has left it."""
    carrier = context._carriers[name]

    @contextmanager
    def restore(value: Any) -> Iterator[None]:
        found.append(value)
        with carrier.restore(value):
            yield
        found.append(f"left {value}")

    replaced = {field: getattr(carrier, field) for field in ("name", "capture", "required", "scope", "varies")}
    monkeypatch.setitem(context._carriers, name, context.Carrier(**replaced, restore=restore))


def seen(around: Any) -> Any:
    """Return what a run sees that restores what surrounded it."""
    with restored(around):
        return tenant.get(), translation.get_language()


def test_alike_ones(entered: list[Any]) -> None:
    """What follows one another alike is restored once, and left when something else comes, or nothing."""
    with alike() as call:
        found = [call(around, seen, dict(around)) for around in (ACME, ACME, OTHER, ACME)]
        assert ["acme", "left acme", "other", "left other", "acme"] == entered

    assert [("acme", "de"), ("acme", "de"), ("other", "en"), ("acme", "de")] == found
    assert "left acme" == entered[-1]
    assert (None, "en") == seen({})


def test_what_one_changes(entered: list[Any]) -> None:
    """It is restored anew for the next; who resets what he has changed costs nothing."""

    def change(*, resets: bool) -> Any:
        with restored(ACME):
            before, token = tenant.get(), tenant.set("changed")
            if resets:
                tenant.reset(token)
            return before

    with alike() as call:
        found = [call(ACME, partial(change, resets=resets)) for resets in (True, False, True)]

    assert ["acme"] * 3 == found
    assert ["acme", "left acme"] * 2 == entered
    assert tenant.get() is None


@pytest.mark.parametrize("values", [({"n": []}, {"n": []}), (1, True)], ids=["list", "numbers"])
def test_what_could_be_changed_in_its_place(entered: list[Any], values: tuple[Any, Any]) -> None:
    """Each has its own value, and not an equal one."""

    def get() -> Any:
        with restored({"tenant": value}):
            return tenant.get()

    with alike() as call:
        for value in values:
            assert call({"tenant": value}, get) is value


def test_within_a_run(entered: list[Any]) -> None:
    """What a run sends to a receiver of this very process has it restored, for the run may have changed it."""

    def nested() -> Any:
        with restored(ACME):
            tenant.set("changed")
            return seen(ACME)

    with alike() as call:
        assert ("acme", "de") == call(ACME, nested)

    assert ["acme", "acme", "left acme", "left acme"] == entered


def test_what_no_variable_holds(entered: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A carrier that restores by itself does so for each."""
    others: list[Any] = []
    register_context("other", capture=lambda: None, restore=lambda value: inside(others, value))

    with alike() as call:
        for _ in range(2):
            call({**ACME, "other": "a"}, seen, {**ACME, "other": "a"})

    assert ["a", "a"] == others
    assert ["acme", "left acme"] * 2 == entered


@contextmanager
def inside(found: list[Any], value: Any) -> Iterator[None]:
    """Note a value."""
    found.append(value)
    yield


@pytest.mark.parametrize("required", [["tenant"], ["nobody"]])
def test_what_is_required(entered: list[Any], required: list[str]) -> None:
    """What must not be missing is restored for each, where it can be noted that it is."""
    with alike() as call:
        call({**ACME, "$required": required}, lambda: None)

    assert [] == entered


def test_run_that_fails(entered: list[Any]) -> None:
    """An error is passed on, and what was restored is left."""
    with pytest.raises(ZeroDivisionError), alike() as call:
        call(ACME, lambda: 1 // 0)

    assert ["acme", "left acme"] == entered
    assert tenant.get() is None
