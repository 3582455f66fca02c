"""Which tasks are connected to which signals, as Django knows it, however they were connected."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from celery import Celery
from django.apps import apps
from django.dispatch import Signal

from . import names, receivers
from .bridge import Spelling, Target, guarantee_of, target_of
from .options import SendingOptions, merged
from .senders import label_of
from .task import ReceiverTask

ANY = "*"  # the label of every sender


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
    signals = {one.signal: None for one in receivers.connections()} | dict.fromkeys(names.known_signals())
    senders = _senders()
    found = [one for signal in signals for one in _of(signal, senders)]
    return sorted(found, key=lambda one: (one.signal_name, one.sender, one.receiver, str(one.uid)))


def _of(signal: Signal, senders: dict[int, Any]) -> Iterator[Connected]:
    for (uid, sender_id), held, *_ in list(signal.receivers):  # what more there is depends on Django's version
        spelling = held() if isinstance(held, weakref.ReferenceType) else held
        if isinstance(spelling, Spelling):
            yield _connected(signal, spelling.__self__, spelling.own, (uid, sender_id), senders)
        elif isinstance(spelling, ReceiverTask):  # as signal.connect(task) leaves it
            yield _connected(signal, target_of(str(spelling.name)), SendingOptions(), (uid, sender_id), senders)


def _connected(
    signal: Signal, target: Target, own: SendingOptions, key: tuple[Any, int], senders: dict[int, Any]
) -> Connected:
    uid, sender_id = key
    sender = own.family or senders.get(sender_id)
    task: Any = target.app.tasks.get(target.name)
    is_given = not (isinstance(uid, (int, tuple)) or own.family)
    return Connected(
        signal=signal,
        signal_name=names.signal_name(signal),
        receiver=target.name,
        sender=_label(own, sender, sender_id),
        sender_id=sender_id,
        sender_class=sender if isinstance(sender, type) else None,
        uid=uid if is_given else None,
        app=target.app,
        task=task,
        options=merged(own, task) if task is not None else own,
    )


def _label(own: SendingOptions, sender: Any, sender_id: int) -> str:
    if sender is not None:
        return f"{label_of(sender)} and its subclasses" if own.family else label_of(sender)
    return ANY if sender_id == id(None) else "an object"


def _senders() -> dict[int, Any]:
    """Return what a sender may be, by how Django tells it apart."""
    known: list[Any] = [one.sender for one in receivers.connections()]
    known += apps.get_models(include_auto_created=True, include_swapped=True)
    known += apps.get_app_configs()  # of migration signals
    return {id(one): one for one in known if one is not None}
