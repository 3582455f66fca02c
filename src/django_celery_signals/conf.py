"""The settings dict ``DJANGO_CELERY_SIGNALS``, read once, checked, and reset by ``override_settings``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.signals import setting_changed

from .exceptions import SettingsError

NAME = "DJANGO_CELERY_SIGNALS"
GUARANTEE_NAMES = ("durable", "on_commit", "immediate")
REQUEST_EXTRAS = ("query_string", "session_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The library's settings, with their defaults."""

    GUARANTEE: str | None = None  # of receivers that name none; None: "durable", or "on_commit" without the app
    STRICT: bool = False  # raise at the sending what could only be carried as a stand-in; for tests and development
    AUTODISCOVER: tuple[str, ...] = ("receivers", "tasks")  # modules of every app, imported in every process
    SENSITIVE_FIELDS: tuple[
        str, ...
    ] = ()  # left out of snapshots: "field" or "app.Model.field", beside the built-in words
    PUBLISH_TIMEOUT: float = 2.0  # seconds a request waits for the broker, at most
    FAST_PATH_LIMIT: int = 50  # durable deliveries of one commit that its process publishes; the relay does the rest
    LEASE: float = 25.0  # seconds after which a receiver counts as crashed whose worker no longer renews them
    EMBED_RELAY: bool = True  # run the relay in the main process of every worker
    ATOMIC_SAVES: bool = True  # save models with durable receivers in a transaction together with their deliveries
    FAILED_PAYLOAD_DAYS: float = 30.0  # after which a failed delivery keeps its cause, but no value any more
    STATISTICS_DAYS: float = 7.0  # for which figures of each minute are kept; 0: none are counted
    MAX_DEPTH: int = 8  # how many receivers may have caused one another before a sending is refused
    REQUEST_EXTRAS: tuple[str, ...] = ()  # of a request, beside its facts: "query_string", "session_key"
    MAX_BINARY_BYTES: int = 1024 * 1024  # a longer binary value stays behind
    MAX_ENVELOPE_BYTES: int = 8 * 1024 * 1024  # of a larger envelope, the largest arguments stay behind


def is_positive(value: Any) -> bool:
    """Tell whether a value is a number above zero that is not infinite; True is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _are_strings(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(item, str) for item in value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "GUARANTEE": (
        lambda value: value is None or value in GUARANTEE_NAMES,
        f"one of {', '.join(map(repr, GUARANTEE_NAMES))}",
    ),
    "STRICT": (lambda value: isinstance(value, bool), "True or False"),
    "AUTODISCOVER": (_are_strings, "a list of module names such as ['receivers', 'tasks']"),
    "SENSITIVE_FIELDS": (_are_strings, "a list of field names such as ['iban', 'shop.Customer.birthday']"),
    "PUBLISH_TIMEOUT": (is_positive, "a number of seconds greater than zero"),
    "FAST_PATH_LIMIT": (lambda value: type(value) is int and value >= 0, "a whole number; 0: leave all to the relay"),
    "LEASE": (lambda value: is_positive(value) and value >= 1, "a number of seconds, at least 1"),
    "EMBED_RELAY": (lambda value: isinstance(value, bool), "True or False"),
    "ATOMIC_SAVES": (lambda value: isinstance(value, bool), "True or False"),
    "FAILED_PAYLOAD_DAYS": (is_positive, "a number of days greater than zero"),
    "STATISTICS_DAYS": (
        lambda value: is_positive(value) or (type(value) in (int, float) and value == 0),
        "a number of days; 0: count nothing",
    ),
    "MAX_DEPTH": (lambda value: is_positive(value) and isinstance(value, int), "a whole number of at least 1"),
    "REQUEST_EXTRAS": (
        lambda value: _are_strings(value) and set(value) <= set(REQUEST_EXTRAS),
        f"a list of {', '.join(map(repr, REQUEST_EXTRAS))}",
    ),
    "MAX_BINARY_BYTES": (lambda value: type(value) is int and value >= 0, "a number of bytes"),
    "MAX_ENVELOPE_BYTES": (lambda value: type(value) is int and value >= 1024, "a number of bytes, at least 1024"),
}


def read(given: Mapping[str, Any]) -> Settings:
    """Check a settings dict and return it typed.

    Raises:
        SettingsError: for an unknown key or a value that cannot be.
    """
    if not isinstance(given, Mapping):
        raise SettingsError(f"{NAME} is {given!r}, but must be a dict such as {{'GUARANTEE': 'on_commit'}}.")
    known = [field.name for field in fields(Settings)]
    for key, value in given.items():
        if key not in known:
            raise SettingsError(f"{NAME} has the unknown key {key!r}. Known keys: {', '.join(known)}.")
        accepts, wanted = _RULES[key]
        if not accepts(value):
            raise SettingsError(f"{NAME}[{key!r}] is {value!r}, but must be {wanted}.")
    typed: dict[str, Any] = {key: tuple(value) if _are_strings(value) else value for key, value in given.items()}
    return Settings(**typed)


@cache
def get() -> Settings:
    """Return the settings in force."""
    return read(getattr(settings, NAME, {}))


def default_guarantee() -> str:
    """Return the guarantee of receivers that name none: without the app there is no table to keep deliveries in."""
    return get().GUARANTEE or ("durable" if "django_celery_signals" in apps.app_configs else "on_commit")


def _reset(*, setting: str, **_: Any) -> None:
    if setting == NAME:
        get.cache_clear()


setting_changed.connect(_reset, dispatch_uid="django_celery_signals.conf")
