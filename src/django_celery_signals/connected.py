"""Which tasks are connected to which signals, as Django knows it, however they were connected."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from asgiref.sync import iscoroutinefunction
from celery import Celery
from django.apps import apps
from django.dispatch import Signal

from . import names, receivers
from .bridge import Spelling, Target, guarantee_of, target_of
from .options import NOTHING, SendingOptions, merged
from .senders import label_of
from .task import ReceiverTask

ANY = "*"  # the label of every sender
OBJECT = "an object"  # the label of one that is neither a class that is known nor named by a connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """A task that a signal calls."""

    signal: Signal
    signal_name: str  # "module:name"; empty for one that no module holds
    receiver: str  # name of the task
    sender: str  # a label, such as "shop.Order"; "*": every sender
    sender_id: int  # how Django tells senders apart
    sender_class: type | None  # the model, or another class; None: every sender, or an object that is none
    uid: Any  # dispatch_uid; None: none was given
    app: Celery  # that has the task
    task: Any  # None: the app has no task of that name
    options: SendingOptions  # of the connection, filled in with those of the task

    @property
    def guarantee(self) -> str:
        """What is promised: "durable", "on_commit", "immediate" or "audit"."""
        return guarantee_of(self.options, self.signal)


def connected() -> list[Connected]:
    """Return every task that is connected to a signal, by the names of signal, sender and task.

    A plain ``connect()`` to a signal that no module, class or dictionary of a module holds is not found.
    """
    senders = _senders()
    found = [one for signal in signals() for one in _of(signal, senders)]
    return sorted(found, key=lambda one: (one.signal_name, one.sender, one.receiver, str(one.uid)))


def signals() -> list[Signal]:
    """Return the signals that have a name, and those that a connection of ours was made to."""
    return list(dict.fromkeys([*(one.signal for one in receivers.connections()), *names.known_signals()]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A receiver that Django calls at once, where the signal is sent: no task of ours."""

    receiver: Any  # a function, a bound method or another callable
    sender: str  # as of :class:`Connected`
    sender_class: type | None
    is_async: bool


def plain(signal: Signal) -> list[Plain]:
    """Return the other receivers of a signal, in the order in which Django calls them; none of the library's own."""
    senders = _senders()
    found = [
        Plain(receiver=receiver, sender=label, sender_class=sender if isinstance(sender, type) else None, is_async=own)
        for receiver, sender, label, own in _others(signal, senders)
    ]
    return sorted(found, key=lambda one: one.is_async)  # coroutines are run after all others, at the same time


def _others(signal: Signal, senders: dict[int, Any]) -> Iterator[tuple[Any, Any, str, bool]]:
    for (_, sender_id), receiver in _held_by(signal):
        if receiver is None or isinstance(receiver, (Spelling, ReceiverTask)) or _is_ours(receiver):
            continue
        sender = senders.get(sender_id)
        label = label_of(sender) if sender is not None else ANY if sender_id == id(None) else OBJECT
        yield receiver, sender, label, iscoroutinefunction(receiver)


def _is_ours(receiver: Any) -> bool:
    return str(getattr(receiver, "__module__", "")).partition(".")[0] == __package__


def _held_by(signal: Signal) -> Iterator[tuple[Any, Any]]:
    """Yield the receivers of a signal, each behind what Django tells it apart by; None: it is gone."""
    for key, held, *_ in list(signal.receivers):  # what more there is depends on Django's version
        yield key, held() if isinstance(held, weakref.ReferenceType) else held


def _of(signal: Signal, senders: dict[int, Any]) -> Iterator[Connected]:
    for (uid, sender_id), held in _held_by(signal):
        if isinstance(held, Spelling):
            own_id: Any = id(held.__self__), id(held.__func__)  # how Django tells it apart without a dispatch_uid
            target, own = held.__self__, held.own
        elif isinstance(held, ReceiverTask):  # as signal.connect(task) leaves it
            own_id, target, own = id(held), target_of(str(held.name)), NOTHING
        else:
            continue
        yield _connected(signal, target, own, (None if uid == own_id else uid, sender_id), senders)


def _connected(
    signal: Signal, target: Target, own: SendingOptions, key: tuple[Any, int], senders: dict[int, Any]
) -> Connected:
    uid, sender_id = key
    sender = own.family or senders.get(sender_id)
    task: Any = target.app.tasks.get(target.name)
    return Connected(
        signal=signal,
        signal_name=names.signal_name(signal),
        receiver=target.name,
        sender=_label(own, sender, sender_id),
        sender_id=sender_id,
        sender_class=sender if isinstance(sender, type) else None,
        uid=_given_uid(own, uid),
        app=target.app,
        task=task,
        options=merged(own, task) if task is not None else own,
    )


def _given_uid(own: SendingOptions, uid: Any) -> Any:
    """Return the ``dispatch_uid`` that was given; a connection to a family of senders has one of its own around it."""
    return uid if own.family is None else str(uid).partition(":subclasses:")[2] or None


def _label(own: SendingOptions, sender: Any, sender_id: int) -> str:
    if sender is not None:
        return f"{label_of(sender)} and its subclasses" if own.family else label_of(sender)
    return ANY if sender_id == id(None) else OBJECT


def _senders() -> dict[int, Any]:
    """Return what a sender may be, by how Django tells it apart."""
    known: list[Any] = [one.sender for one in receivers.connections()]
    known += apps.get_models(include_auto_created=True, include_swapped=True)
    known += apps.get_app_configs()  # of migration signals
    return {id(one): one for one in known if one is not None}
