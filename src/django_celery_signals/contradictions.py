"""Options that contradict one another, their task, or the signal: refused where they are written."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.db.models.signals import m2m_changed, post_save

from . import conf, names
from .exceptions import ConnectError
from .options import SendingOptions
from .parameters import never_sends

M2M_ACTIONS = ("pre_add", "post_add", "pre_remove", "post_remove", "pre_clear", "post_clear")


def check_against_signal(options: SendingOptions, signal: Any, senders: list[Any], where: str) -> None:
    """Refuse an option that a signal of Django's can never satisfy.

    Raises:
        ConnectError: naming the signal that has what the option asks for.
    """
    name = _name_of(signal)
    if options.changed and (signal is not post_save or any(one is None for one in senders)):
        raise ConnectError(
            f"{where}: changed= compares saved values, so it works with post_save and a sender= only; here are {name} "
            f"and sender={', '.join(map(repr, senders))}."
        )
    if options.created is not None and never_sends(signal, "created"):
        raise ConnectError(
            f"{where}: created= needs a signal that says so, such as post_save; {name} never does, so "
            f"created={options.created} would send nothing."
        )
    if options.action and never_sends(signal, "action"):
        raise ConnectError(
            f"{where}: action= needs m2m_changed; {name} has none, so action={options.action!r} would send nothing. "
            "created= tells saves apart."
        )
    idle = [pattern for pattern in options.action or () if not fnmatch.filter(M2M_ACTIONS, pattern)]
    if idle and signal is m2m_changed:
        raise ConnectError(
            f"{where}: action={idle[0]!r} matches no action of m2m_changed. There are {', '.join(M2M_ACTIONS)}."
        )


def check_delay(options: SendingOptions, of_task: Any, where: str) -> None:
    """Refuse a sending that would have expired before it is due.

    Args:
        options: of the connection.
        of_task: its ``expires``, which counts where the connection has none.
        where: what to call the place in an error.

    Raises:
        ConnectError: saying what to write instead.
    """
    given = of_task if options.expires is None else options.expires
    expires = given.total_seconds() if isinstance(given, timedelta) else given
    for name, delay in (("countdown", options.countdown), ("debounce", options.debounce)):
        if delay is not None and isinstance(expires, (int, float)) and delay >= expires:
            raise ConnectError(
                f"{where}: expires={given!r} is over before {name}={delay} is, so nothing would ever run. "
                f"Let it expire later than {delay} seconds after the sending."
            )


def check_turns(options: SendingOptions, ordered: bool, signal: Any, guarantee: str | None, where: str) -> None:
    """Refuse options about the order of events, or their coalescing, that contradict one another.

    Args:
        options: of the connection.
        ordered: whether the task takes events in order.
        signal: what it is connected to.
        guarantee: of the connection, where it is known by now.
        where: what to call the place in an error.

    Raises:
        ConnectError: saying what to write instead.
    """
    debounce, max_wait = options.debounce, options.max_wait
    if debounce is not None and options.coalesce is False:
        raise ConnectError(f"{where}: debounce={debounce} waits for what it can coalesce. Leave coalesce=False out.")
    if max_wait is not None and (debounce is None or max_wait < debounce):
        raise ConnectError(
            f"{where}: max_wait={max_wait} bounds debounce={debounce}, which must be given, and shorter."
        )
    asking = ordered or options.folds
    if options.key is not None and not asking:
        raise ConnectError(
            f"{where}: key= says what is taken in turn, so it needs ordered=True on the task, or coalesce=True."
        )
    if asking and guarantee not in (None, "durable"):
        has_none = f"guarantee={guarantee!r}" if guarantee in conf.GUARANTEE_NAMES else "none, to survive a rollback"
        raise ConnectError(
            f"{where}: ordered=, coalesce= and debounce= need the row of a delivery, but {_name_of(signal)} is "
            f"received with {has_none}. Give guarantee='durable', or leave them out."
        )
    if asking and options.key is None and never_sends(signal, "instance"):
        raise ConnectError(
            f"{where}: {_name_of(signal)} sends no instance that could be the key. Give key=, a function."
        )


def check_together(
    options: SendingOptions, together: Mapping[str, Any], signal: Any, guarantee: str | None, where: str
) -> None:
    """Refuse what contradicts a task's ``batch=`` or ``chunk_size=``.

    Args:
        options: of the connection.
        together: these options of the task.
        signal: what it is connected to.
        guarantee: of the connection, where it is known by now.
        where: what to call the place in an error.

    Raises:
        ConnectError: saying what to leave out.
    """
    word = "batch=True" if together["batch"] else f"chunk_size={together['chunk_size']}"
    if not together["batch"] and (together["chunk_size"] or 1) == 1:
        return
    if options.folds:
        raise ConnectError(
            f"{where}: {word} puts deliveries together, but those of coalesce= and debounce= take turns, one by one. "
            "Leave one of the two out."
        )
    if guarantee not in (None, "durable"):
        raise ConnectError(
            f"{where}: {word} puts the rows of deliveries together, but {_name_of(signal)} is received with "
            f"guarantee={guarantee!r}, without rows. Give guarantee='durable', or leave it out."
        )


def _name_of(signal: Any) -> str:
    return names.short_name(names.signal_name(signal)) or "this signal"
