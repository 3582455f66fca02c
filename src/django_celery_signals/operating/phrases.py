"""The phrases of which sentences about a connection are made."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from django.db.models.signals import post_delete, post_save, pre_delete, pre_save

from ..connected import Connected
from ..senders import label_of


def either(words: Iterable[str], last: str = "or") -> str:
    """Return "a, b or c"."""
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


def seconds(value: float) -> str:
    """Return a duration in words."""
    return f"{value:g} {'second' if value == 1 else 'seconds'}"


def function_name(function: Any) -> str:
    """Return where a function is found; of a lambda its line, for it has no name."""
    while isinstance(function, partial):
        function = function.func
    if getattr(function, "__name__", "") == "<lambda>":
        return f"{function.__module__}.<lambda>:{function.__code__.co_firstlineno}"
    if not hasattr(function, "__qualname__"):  # an object that can be called
        return f"{type(function).__module__}.{type(function).__qualname__}"
    return f"{function.__module__}.{function.__qualname__}"


def key_in_words(one: Connected) -> str:
    """Return what the sendings of a connection have in common that take turns."""
    if one.options.key is not None:
        return f"the same key, which is what {function_name(one.options.key)} returns (key=),"
    return f"the same {label_of(one.sender_class)}" if _sends_itself(one) else "the same instance"


def _sends_itself(one: Connected) -> bool:
    return one.signal in (pre_save, post_save, pre_delete, post_delete) and one.sender_class is not None


def late_in_words(alias: str) -> str:
    """Say why saves in a database are not atomic."""
    return f"The SQLite database {alias!r} has no transaction_mode IMMEDIATE (dcs.W001)."
