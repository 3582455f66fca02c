"""Runs that follow one another: each in a context of its own, and what surrounded several alike is restored once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from typing import Any

from .context import beforehand, is_required, of_receiver, restored, varies


@contextmanager
def alike() -> Iterator[Callable[..., Any]]:
    """Give what calls functions one after the other, for what surrounded the sending of each.

    What one of them leaves in context variables, no other sees. Those that were surrounded alike share what only these
    hold: it is restored once, and copied; anything else each restores for itself.
    """
    calls = _Calls()
    try:
        yield calls
    finally:
        calls.end()


class _Calls:
    def __init__(self) -> None:
        self._around: Mapping[str, Any] | None = None
        self._context, self._blocks = copy_context(), ExitStack()

    def __call__(self, around: Mapping[str, Any], function: Callable[..., Any], *args: Any) -> Any:
        if around != self._around:
            self.end()
            self._around, self._context = around, copy_context()
            if not is_required(around) and all(map(varies, of_receiver(around))):
                self._context.run(self._begin, around)
        return self._context.copy().run(function, *args)

    def _begin(self, around: Mapping[str, Any]) -> None:
        self._blocks.enter_context(restored(around))
        beforehand.set(around)

    def end(self) -> None:
        self._context.run(self._blocks.close)
