"""What surrounded several sendings alike is restored once, for their runs that follow one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from .context import beforehand, is_required, is_there, of_receiver, restored, varies


@contextmanager
def alike() -> Iterator[Callable[..., Any]]:
    """Give what calls functions, one after the other, each where what surrounded some sending has been restored.

    Between those that were surrounded alike it stays, unless one of them has changed it: to look takes a third of the
    time. Of what may not stay, nothing is restored here; each does so for itself.
    """
    calls = _Calls()
    try:
        yield calls
    finally:
        calls.end()


class _Calls:
    def __init__(self) -> None:
        self._around: Mapping[str, Any] | None = None
        self._blocks = ExitStack()

    def __call__(self, around: Mapping[str, Any], function: Callable[..., Any], *args: Any) -> Any:
        if around != self._around or not is_there(of_receiver(around)):
            self.end()
            if _may_stay(around):
                self._blocks.enter_context(restored(around))
                self._around = around
        token = beforehand.set(self._around)
        try:
            return function(*args)
        finally:
            beforehand.reset(token)

    def end(self) -> None:
        self._around = None
        self._blocks.close()


def _may_stay(around: Mapping[str, Any]) -> bool:
    """Tell whether what is restored for one run may stay for the next: texts that only context variables hold."""
    values = of_receiver(around)
    return not is_required(around) and all(varies(name) and type(values[name]) is str for name in values)
