"""Carry values as the library does, without a broker in between, and compare what arrives exactly."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, time, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from django.dispatch import Signal
from django.http import QueryDict
from django.utils.datastructures import MultiValueDict

from django_celery_signals.codec import standins
from django_celery_signals.codec.core import Decoder, Encoder
from django_celery_signals.envelope import Envelope, Reader, Sending, write
from django_celery_signals.wire import seal, unseal

RECEIVER = "tests.carrying.receiver"

some_signal = Signal()


def to_json(value: Any) -> Any:
    """Return what the codec makes of a value, as it looks after the journey through JSON text."""
    return json.loads(json.dumps(Encoder(standins.absent).encode(value), allow_nan=False))


def from_json(node: Any) -> Any:
    """Return what the codec reads from JSON that holds no model instance."""
    return Decoder([], _no_instance).decode(node)


def carried(value: Any) -> Any:
    """Return a value after the journey."""
    return from_json(to_json(value))


def _no_instance(entry: Any, decoder: Decoder) -> Any:
    raise AssertionError(f"There is no instance to be had, but {entry!r} was asked for.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A sending after its journey through one signed envelope."""

    envelope: Envelope
    reader: Reader

    @property
    def sender(self) -> Any:
        return self.reader.value(self.envelope.sender)

    def __getitem__(self, name: str) -> Any:
        return self.reader.value(self.envelope.kwargs[name])


def sealed(kwargs: dict[str, Any], *, signal: Signal = some_signal, sender: Any = None, **options: Any) -> str:
    """Return the signed envelope of a sending."""
    sending = Sending(signal=signal, sender=sender, kwargs=kwargs)
    return seal(write(sending, RECEIVER, **{"using": "default", **options}))


def opened(text: str) -> Arrived:
    """Verify and open a signed envelope."""
    envelope = unseal(text)
    return Arrived(envelope=envelope, reader=Reader(envelope))


def sent(kwargs: dict[str, Any], **options: Any) -> Arrived:
    """Return a sending after its journey."""
    return opened(sealed(kwargs, **options))


def exact(value: Any) -> Any:
    """Return a description of a value that is equal only for one of exactly the same type and content, all through."""
    return (type(value), _content(value), exact(vars(value)) if _has_attributes(value) else None)


def _has_attributes(value: Any) -> bool:
    return isinstance(value, (str, int, float, bytes, list, tuple, dict, set, frozenset)) and bool(
        getattr(value, "__dict__", None)
    )


def _content(value: Any) -> Any:
    for kinds, describe in _DESCRIPTIONS:
        if isinstance(value, kinds):
            return describe(value)
    return value


def _items(value: dict[Any, Any]) -> list[Any]:
    return [(exact(key), exact(dict.__getitem__(value, key))) for key in value]


_DESCRIPTIONS: tuple[tuple[Any, Any], ...] = (
    (float, float.__repr__),  # tells NaN, infinities and the negative zero apart
    (complex, repr),
    (Decimal, lambda value: repr(value.as_tuple())),
    (str, lambda value: [ord(letter) for letter in str.__str__(value)]),
    (deque, lambda value: (value.maxlen, [exact(item) for item in value])),
    (list, lambda value: [exact(item) for item in list.__iter__(value)]),
    (tuple, lambda value: [exact(item) for item in value]),
    ((set, frozenset), lambda value: sorted((exact(item) for item in value), key=repr)),
    (defaultdict, lambda value: (value.default_factory, _items(value))),
    (QueryDict, lambda value: (value._mutable, value.encoding, _items(value))),
    (MultiValueDict, _items),
    (dict, _items),
    (memoryview, bytes),
    (datetime, lambda value: (value.replace(tzinfo=None, fold=0), exact(value.tzinfo), value.fold)),
    (time, lambda value: (value.replace(tzinfo=None, fold=0), exact(value.tzinfo), value.fold)),
    (ZoneInfo, lambda value: value.key),
    (timezone, repr),
)


def leaves(node: Any) -> Iterator[Any]:
    """Yield every scalar and key of some JSON."""
    if isinstance(node, dict):
        yield from node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from leaves(inner)
    if not isinstance(node, (dict, list)):
        yield node
