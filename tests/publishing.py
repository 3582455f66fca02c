"""Publications that publish nothing, for tests of those who hand them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def do_nothing(producer: Any) -> None:
    """Publish nothing, successfully."""


def failing(error: BaseException) -> Callable[[Any], None]:
    """Return a publication that raises."""

    def publish(producer: Any) -> None:
        raise error

    return publish
