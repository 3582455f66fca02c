"""The parameters of receivers: what a function can be given, and whether a signal gives it what it needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from django.contrib.auth import signals as auth_signals
from django.core.signals import got_request_exception, request_finished, request_started, setting_changed
from django.db.models import signals as model_signals
from django.dispatch import Signal

from . import names
from .exceptions import ConnectError

Body = tuple[Callable[..., Any], bool]  # a task's function, and whether it is given the task itself first


def accepted(function: Callable[..., Any], available: dict[str, Any]) -> dict[str, Any]:
    """Return those of some arguments that a function can be given by name."""
    named, takes_all = parameters(function)
    return dict(available) if takes_all else {name: available[name] for name in named if name in available}


def parameters(function: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """Return a function's parameters, name -> whether it is required, and whether it has ``**kwargs``."""
    found = inspect.signature(function).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {p.name: p.default is p.empty for p in found if p.kind in by_name}
    return named, any(p.kind is p.VAR_KEYWORD for p in found)


_ALWAYS = {"sender", "signal"}
_MIGRATION = {"app_config", "verbosity", "interactive", "using", "stdout", "plan", "apps"}
_SENT: dict[Signal, set[str]] = {
    model_signals.pre_save: {"instance", "raw", "using", "update_fields"},
    model_signals.post_save: {"instance", "created", "raw", "using", "update_fields"},
    model_signals.pre_delete: {"instance", "using", "origin"},
    model_signals.post_delete: {"instance", "using", "origin"},
    model_signals.m2m_changed: {"instance", "action", "reverse", "model", "pk_set", "using", "raw"},
    request_started: {"environ", "scope"},
    request_finished: set(),
    got_request_exception: {"request"},
    model_signals.pre_migrate: _MIGRATION,
    model_signals.post_migrate: _MIGRATION,
    auth_signals.user_logged_in: {"request", "user"},
    auth_signals.user_logged_out: {"request", "user"},
    auth_signals.user_login_failed: {"request", "credentials"},
    setting_changed: {"setting", "value", "enter"},
}


def never_sends(signal: Signal, name: str) -> bool:
    """Tell whether an argument is one that a signal of Django's never has."""
    return signal in _SENT and name not in _SENT[signal]


def check_parameters(signal: Signal, name: str, body: Body | None, also: frozenset[str] = frozenset()) -> None:
    """Refuse a function with a parameter that a signal of Django's never fills, or that cannot be given by name.

    Args:
        signal: what the function is for; of another's signal the arguments are not known.
        name: what to call the function in an error.
        body: the function, and whether its first parameter is none of the signal's.
        also: what it is given beside the signal's arguments.

    Raises:
        ConnectError: naming the parameter and what the signal sends.
    """
    if body is None:
        return
    found = _parameters_of(name, *body)
    required = [p for p in found if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for parameter in required:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConnectError(
                f"{name}: the parameter {parameter.name!r} is positional-only, but signals pass names. Drop the '/'."
            )
        if never_sends(signal, parameter.name) and parameter.name not in _ALWAYS | also:
            sent = ", ".join(sorted(_SENT[signal] | _ALWAYS | also))
            remedy = _OF_SELF if parameter.name == "self" else "Give the parameter a default, or drop it."
            raise ConnectError(
                f"{name}: {names.short_name(names.signal_name(signal))} never sends {parameter.name!r}, which the "
                f"function requires. It sends {sent}. {remedy}"
            )


def _parameters_of(name: str, function: Callable[..., Any], skip_first: bool) -> list[inspect.Parameter]:
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConnectError(f"{name}: the parameters of {function!r} cannot be told. Wrap it in a function.") from error
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConnectError(f"{name}: {function!r} is a generator function: called, it runs nothing. Drop the yield.")
    return found[skip_first:]


def check_batch(name: str, body: Body | None) -> None:
    """Refuse a function that cannot be given the events of a batch.

    Raises:
        ConnectError: saying what it is to look like.
    """
    if body is None:
        return
    found, function = _parameters_of(name, *body), body[0]
    others = [p.name for p in found if p.name != "events" and p.default is p.empty and p.kind in _NAMED]
    others += [p.name for p in found if p.kind is p.POSITIONAL_ONLY]
    takes = [p for p in found if (p.name == "events" and p.kind in _NAMED) or p.kind is p.VAR_KEYWORD]
    if others or not takes:
        own = getattr(function, "__name__", "receiver")
        raise ConnectError(
            f"{name}: with batch=True the function is given a list of events, and nothing else, but it is "
            f"{own}{inspect.signature(function)}. Write: def {own}(events), where event.kwargs has what each signal "
            "was sent with."
        )


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_OF_SELF = "Where self is to be the task, add bind=True; a method is no receiver, so move it out of its class."
