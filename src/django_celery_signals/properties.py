"""The properties of messages to RabbitMQ as bytes, of which all that is alike in a task's messages is made only once.

py-amqp writes the twenty headers of every message anew, which takes it longer than all else that it does for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from struct import pack
from types import FunctionType
from typing import Any

import amqp
from amqp import serialization
from kombu import Producer
from kombu.transport import pyamqp

_CONTENT = ("content_type", "content_encoding")
_OWN = ("correlation_id", "reply_to")  # which every message has for itself
_FOR_OTHERS = ("argsrepr", "kwargsrepr")  # which Celery lets through, and AMQP does not know
_OFF = ("compression", "retry", "timeout", "confirm_timeout")  # kombu's own work
_KNOWN = {"exchange", "routing_key", "delivery_mode", "priority", "retry_policy", *_CONTENT, *_OWN, *_FOR_OTHERS, *_OFF}


class Properties:
    """What the messages of one template have in common, in the order in which py-amqp would write it."""

    def __init__(self, headers: Mapping[str, Any], own: frozenset[str], options: Mapping[str, Any]) -> None:
        """Write down what is alike.

        Args:
            headers: of any of the messages.
            own: names of those that each message has for itself.
            options: of ``kombu.Producer.publish``.
        """
        self._way = {"exchange": options["exchange"], "routing_key": options["routing_key"]}
        self._alike = {name: options[name] for name in (*_CONTENT, "delivery_mode")}
        self._alike["priority"] = options.get("priority", 0)
        sample: Any = amqp.Message(**self._alike, **dict.fromkeys(_OWN, ""), application_headers={})
        whole = sample._serialize_properties()  # flags, content, headers, delivery_mode and priority, own
        headers_at = len(whole[:2] + _dumps("ss", *map(options.get, _CONTENT)))
        self._begin = whole[:headers_at]
        self._middle = whole[headers_at + len(_dumps("F", {})) : -len(_dumps("ss", "", ""))]
        self._table: list[tuple[bytes, str]] = []  # what is alike, and whose value comes then
        self._end = b""
        for name, value in headers.items():
            if name in own:
                name_alone = _dumps("F", {name: None})[4:-1]
                self._table.append((self._end + name_alone, name))
                self._end = b""
            else:
                self._end += _dumps("F", {name: value})[4:]

    def publish(self, channel: Any, body: str, options: Mapping[str, Any]) -> None:
        """Publish a message as ``kombu.Producer.publish`` would.

        Args:
            channel: of py-amqp.
            body: of the message.
            options: of ``kombu.Producer.publish``.
        """
        headers = options["headers"]
        others = {name: options[name] for name in (*_OWN, *_FOR_OTHERS) if name in options}
        octets = body.encode(self._alike["content_encoding"])
        message = _Written(octets, **self._alike, **others, application_headers=headers)
        table = b"".join([part for alike, name in self._table for part in (alike, _item(headers[name]))]) + self._end
        own = [_short(options[name]) for name in _OWN]
        message.written = b"".join((self._begin, pack(">I", len(table)), table, self._middle, *own))
        message.sizes = _sizes(message)
        channel.basic_publish(message, **self._way, mandatory=options.get("mandatory", False))


class _Written(amqp.Message):
    """A message whose properties are written already. A py-amqp that does not ask for them so, writes them itself."""

    written: bytes
    sizes: tuple[int, int]  # then, of the properties and of the headers

    def _serialize_properties(self) -> bytes:
        if self.sizes != _sizes(self):  # someone on the way has added some
            others: Any = super()
            octets: bytes = others._serialize_properties()
            return octets
        return self.written


def _sizes(message: Any) -> tuple[int, int]:
    return len(message.properties), len(message.properties["application_headers"])


def _dumps(kinds: str, *values: Any) -> bytes:
    octets: bytes = serialization.dumps(kinds, values)
    return octets


def _item(value: Any) -> bytes:
    if type(value) is str:
        octets = value.encode("utf-8", "surrogatepass")
        return pack(">cI", b"S", len(octets)) + octets
    return _other_item(value)


@lru_cache
def _other_item(value: Any) -> bytes:
    return _dumps("F", {"": value})[5:]


def _short(text: str) -> bytes:
    octets = text.encode("utf-8", "surrogatepass")
    return pack("B", len(octets)) + octets


def properties_of(headers: Mapping[str, Any], own: frozenset[str], options: Mapping[str, Any]) -> Properties | None:
    """Return the properties of a template's messages; None where kombu has more to do than to write them."""
    if not _KNOWN.issuperset(options) or any(options.get(name) for name in _OFF):
        return None
    if type(options["exchange"]) is not str or options.get("delivery_mode") not in (1, 2):
        return None
    return Properties(headers, own, options)


def is_plain(producer: Any, channel: Any) -> bool:
    """Tell whether a producer does what kombu's does, in a channel of py-amqp's: nobody looks on or changes it."""
    kind = type(producer)
    is_kombus = home_of(kind.publish) == home_of(kind._publish) == Producer.__module__
    prepare = getattr(type(channel), "prepare_message", None)
    return is_kombus and "publish" not in vars(producer) and home_of(prepare) == pyamqp.__name__


def home_of(function: Any) -> Any:
    """Return the module that a function's code is in; ``__module__`` would be copied to what is wrapped around it."""
    return function.__globals__["__name__"] if type(function) is FunctionType else None
