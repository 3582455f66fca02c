"""One sending of a signal, addressed to one receiver: written at the sending, signed, and read in the worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any
from uuid import UUID

from django.core.signals import request_started
from django.db.models import Model
from django.db.models.signals import m2m_changed
from django.dispatch import Signal

from . import conf, names
from .changes import changes_of
from .codec import standins
from .codec.core import TAG, Decoder, Encoder, Unencodable
from .codec.fetching import instance_from
from .codec.instances import InstanceEncoder, as_instance, is_sensitive
from .context import captured
from .event import Event, new_event
from .exceptions import DecodeError, EncodeError

logger = logging.getLogger(__name__)

_warned: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """The deliveries of one receiver and key, which take turns, and how a new one joins them."""

    key: str  # as it is shown
    name: str  # a hash of both, for a database may take capital letters for small ones
    folds: bool  # whether newer ones are folded into it while it waits
    debounce: float = 0.0  # seconds without a newer one, before it may run
    max_wait: float = 0.0  # seconds after which it may run all the same


@dataclass(slots=True, kw_only=True)  # not frozen, by which it would take four times as long to make one
class Envelope:
    """One sending for one receiver, its values already in JSON."""

    event: Event
    signal_names: tuple[str, ...]  # of the signal, the best first; this process may hold it under any of them
    summary: str  # "post_save shop.Order pk=5 created": for logs and Flower, never a field's value
    sender: Any  # JSON
    kwargs: dict[str, Any]  # name -> JSON, in the order of the sending
    objects: list[dict[str, Any]]  # the model instances, each once
    changes: Any  # JSON of Event.changes
    context: dict[str, Any] = field(default_factory=dict)  # what surrounded the sending: language, time zone, more
    lane: Lane | None = None  # where it waits for its turn; kept beside it, in the delivery


@dataclass(slots=True)  # nor is this one
class Sending:
    """What a signal said, as Django hands it to a receiver."""

    signal: Signal
    sender: Any
    kwargs: dict[str, Any]


# Writing ---------------------------------------------------------------------------------------------------------


def write(
    sending: Sending,
    receiver: str,
    *,
    using: str,
    changed: Iterable[str] | None = None,
    snapshot: bool = False,
    users_too: bool = False,
    lane: Lane | None = None,
) -> Envelope:
    """Put a sending into an envelope, as it is now: what happens to its objects later is another sending's.

    Args:
        sending: the signal, its sender and its arguments.
        receiver: name of the task it is addressed to.
        using: alias of the database whose transaction it belongs to.
        changed: names of the fields whose old and new values travel along.
        snapshot: whether instances travel as their values instead of by reference.
        users_too: whether a snapshot of a user holds more than the primary key.
        lane: where it waits for its turn.

    Raises:
        EncodeError: under ``STRICT``, for an argument that cannot be carried.
    """
    signal_names = names.signal_names(sending.signal)
    signal_name = next(iter(signal_names), "")
    summary = summarise(sending, signal_name)
    event = new_event(receiver, signal_name, summary, using)
    writer = _Writer(receiver, signal_names)
    encoder = InstanceEncoder(writer.replace, snapshot=snapshot, users_too=users_too)
    writer.argument = "sender"
    sender = _encode_sender(sending.sender, encoder)
    kwargs = {}
    for name, value in sending.kwargs.items():
        writer.argument = name
        is_raw = type(value) is dict and _is_raw_request(sending, value)
        kwargs[name] = encoder.encode(standins.environ_facts(value) if is_raw else value)
    writer.argument = "changes"
    return Envelope(
        event=event,
        signal_names=signal_names,
        summary=summary,
        sender=sender,
        kwargs=kwargs,
        objects=encoder.objects,
        changes=_changes(sending, changed, encoder) if changed else {},
        context=captured(),
        lane=lane,
    )


def _changes(sending: Sending, changed: Iterable[str], encoder: InstanceEncoder) -> dict[str, list[Any]]:
    """Return the JSON of the old and new values of fields, each as its field would carry it."""
    instance = as_instance(sending.kwargs.get("instance"))
    found: dict[str, list[Any]] = {}
    if instance is None:
        return found
    for name, pair in changes_of(instance, changed).items():
        field: Any = instance._meta.get_field(name)
        secret = is_sensitive(type(instance), field)
        found[name] = [
            encoder.encode(_SECRET) if secret else encoder.of_field(field, instance, value) for value in pair
        ]
    return found


_SECRET = standins.Unavailable("value", "its field is sensitive")


def _is_raw_request(sending: Sending, value: dict[Any, Any]) -> bool:
    """Tell whether it is a WSGI environ or ASGI scope: whoever sends it, it holds cookies and credentials."""
    is_environ = "wsgi.url_scheme" in value and "REQUEST_METHOD" in value
    is_scope = type(value.get("asgi")) is dict and "type" in value
    return sending.signal is request_started or is_environ or is_scope


class _Writer:
    """Decides what becomes of a value that has no JSON form: a stand-in and one warning, or an error under STRICT."""

    def __init__(self, receiver: str, signal_names: Sequence[str]) -> None:
        self.receiver, self.signal_names, self.argument = receiver, signal_names, ""

    def replace(self, error: Unencodable) -> Any:
        reason = standins.expected(error)
        if reason is not None:
            error = Unencodable(error.value, reason)
            if any(name.startswith("django.") for name in self.signal_names):  # what Django sends nobody can change
                return standins.absent(error)
        cls, signal_name = type(error.value), next(iter(self.signal_names), "")
        message = (
            f"{self.receiver} is sent {self.argument!r} of type {cls.__module__}.{cls.__qualname__} by "
            f"{names.short_name(signal_name) or 'an unnamed signal'}, which cannot be carried: {error.reason}. "
            "Send the facts the receiver needs (a primary key, a string), or teach the type with register_codec()."
        )
        if conf.get().STRICT:
            raise EncodeError(message)
        if (signal_name, self.argument) not in _warned:
            _warned.add((signal_name, self.argument))
            logger.warning("%s A stand-in travels in its place. (Said once.)", message)
        return standins.absent(error)


def _encode_sender(sender: Any, encoder: Encoder) -> Any:
    try:
        return encoder.strictly(sender)
    except Unencodable as error:
        place = names.place_of(sender)
        return {TAG: "place", "v": place} if place else encoder.replace(error)


def summarise(sending: Sending, signal_name: str) -> str:
    """Say in a few words what was sent: signal, sender, primary key, what happened to it."""
    instance, action = as_instance(sending.kwargs.get("instance")), sending.kwargs.get("action")
    words = [names.short_name(signal_name) or "signal", _sender_in_words(sending.sender)]
    if instance is not None:
        words.append(_pk_in_words(instance))
    if sending.kwargs.get("created") is True:
        words.append("created")
    if sending.signal is m2m_changed and type(action) is str:
        words.append(action)
    return " ".join(word for word in words if word)


def _pk_in_words(instance: Model) -> str:
    """Show a primary key that says nothing by itself; an e-mail address or a name could be one, too."""
    pk = instance.pk
    if type(pk) is int:
        return f"pk={pk}"
    parts = pk if type(pk) is tuple else (pk,)
    return (
        f"pk={pk}" if all(part is None or type(part) in (int, UUID) for part in parts) else "pk=\N{HORIZONTAL ELLIPSIS}"
    )


def _sender_in_words(sender: Any) -> str:
    instance = as_instance(sender)
    if instance is not None:
        return f"{instance._meta.label} {_pk_in_words(instance)}"
    kind = type(sender)
    if sender is None or issubclass(kind, str):  # not isinstance(), which evaluates lazy objects
        return str.__str__(sender)[:60] if sender is not None else ""
    if issubclass(kind, type) and issubclass(sender, Model):
        return str(sender._meta.label)
    return str(sender.__qualname__ if issubclass(kind, (type, FunctionType)) else kind.__qualname__)


# Reading ---------------------------------------------------------------------------------------------------------


class Reader:
    """Turns the values of an envelope back, one by one, so that only what a receiver asks for is fetched."""

    def __init__(self, envelope: Envelope, instance: Callable[[Any, Decoder], Model] = instance_from) -> None:
        """Read from an envelope; equal references give the same object, which ``instance`` makes."""
        self.envelope = envelope
        self._decoder = Decoder(envelope.objects, instance)

    def value(self, node: Any) -> Any:
        """Return the value of some of the envelope's JSON.

        Raises:
            DecodeError: when it is damaged or names what this process does not have.
            InstanceMissing: when a row it refers to is gone.
        """
        try:
            return self._decoder.decode(node)
        except RecursionError as error:
            raise DecodeError("The envelope is nested too deeply to be read.") from error

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """Return the old and new values of watched fields."""
        decoded = self.value(self.envelope.changes)
        if type(decoded) is not dict or not all(type(pair) is list and len(pair) == 2 for pair in decoded.values()):
            raise DecodeError("The envelope's changes are damaged.")
        return {name: (old, new) for name, (old, new) in decoded.items()}
