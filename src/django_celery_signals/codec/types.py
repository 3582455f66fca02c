"""The built-in codecs: one entry per type, beside the JSON scalars, lists and dictionaries that need none."""

from __future__ import annotations

import base64
import collections
import fractions
import ipaddress
import json
import pathlib
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from django.http import QueryDict
from django.utils.datastructures import MultiValueDict
from django.utils.functional import LazyObject, Promise, empty

from .. import conf
from .core import Decoder, Encoder, Unencodable, exactly, from_pairs, known, pairs, register, register_transparent


def _text_codec(cls: type, tag: str, to_text: Callable[[Any], str] = str, *, subclasses: bool = False) -> None:
    """Register a type that its own constructor reads back from text."""
    register(
        cls,
        tag=tag,
        encode=lambda value, _: to_text(value),
        decode=lambda payload, _: cls(exactly(payload, str)),
        subclasses=subclasses,
    )


# Numbers ---------------------------------------------------------------------------------------------------------

register(float, tag="float", encode=lambda v, _: repr(v), decode=lambda p, _: float(exactly(p, str)))
register(str, tag="str", encode=lambda v, _: list(v), decode=lambda p, _: "".join(p))
register(int, tag="int", encode=lambda v, _: hex(v), decode=lambda p, _: int(exactly(p, str), 16))
register(complex, tag="complex", encode=lambda v, e: e.all([v.real, v.imag]), decode=lambda p, d: complex(*d.each(p)))
_text_codec(Decimal, "decimal", subclasses=True)
register(
    fractions.Fraction,
    tag="fraction",
    encode=lambda v, e: e.all([v.numerator, v.denominator]),
    decode=lambda p, d: fractions.Fraction(*(exactly(part, int) for part in d.each(p))),
)

# Containers ------------------------------------------------------------------------------------------------------


def _in_order(value: Any, encoder: Encoder) -> list[Any]:
    """Give a set a stable order: where its members do not compare, that of their JSON, which takes longer."""
    members = [encoder.key(member) for member in value]
    try:
        return sorted(members)
    except TypeError:
        return sorted(members, key=json.dumps)


register(dict, tag="dict", encode=pairs, decode=lambda p, d: dict(from_pairs(p, d)))
register(
    collections.OrderedDict,
    tag="ordereddict",
    encode=lambda v, e: [e.all(item) for item in v.items()],  # dict.items() does not see move_to_end()
    decode=lambda p, d: collections.OrderedDict(from_pairs(p, d)),
)
register(
    collections.defaultdict,
    tag="defaultdict",
    encode=lambda v, e: [e.strictly(v.default_factory), pairs(v, e)],
    decode=lambda p, d: collections.defaultdict(d.decode(p[0]), from_pairs(p[1], d)),
)
register(
    collections.deque,
    tag="deque",
    encode=lambda v, e: [v.maxlen, e.all(v)],
    decode=lambda p, d: collections.deque(d.each(p[1]), p[0]),
)
register(tuple, tag="tuple", encode=lambda v, e: e.all(v), decode=lambda p, d: tuple(d.each(p)))
register(set, tag="set", encode=_in_order, decode=lambda p, d: set(d.each(p)))
register(frozenset, tag="frozenset", encode=_in_order, decode=lambda p, d: frozenset(d.each(p)))
register(range, tag="range", encode=lambda v, e: [v.start, v.stop, v.step], decode=lambda p, d: range(*d.each(p)))


def _query_dict(payload: Any, decoder: Decoder) -> Any:
    items, mutable, encoding = payload
    query: Any = QueryDict("", encoding=exactly(encoding, str))
    query._mutable = bool(mutable)
    dict.update(query, from_pairs(items, decoder))  # reading text again would count its fields, and refuse very many
    return query


register(QueryDict, tag="querydict", encode=lambda v, e: [pairs(v, e), v._mutable, v.encoding], decode=_query_dict)
register(
    MultiValueDict,
    tag="multivaluedict",
    encode=pairs,
    decode=lambda p, d: MultiValueDict(from_pairs(p, d)),
)

# Bytes -----------------------------------------------------------------------------------------------------------


def _bytes(value: Any, _: Encoder) -> str:
    limit, view = conf.get().MAX_BINARY_BYTES, memoryview(value)
    if view.ndim != 1 or view.itemsize != 1:
        raise Unencodable(value, "it is not a plain sequence of bytes")
    if view.nbytes > limit:
        raise Unencodable(value, f"it is larger than MAX_BINARY_BYTES ({limit} bytes)")
    return base64.b64encode(value).decode("ascii")


def _bytes_codec(cls: type, tag: str) -> None:
    register(cls, tag=tag, encode=_bytes, decode=lambda p, _: cls(base64.b64decode(exactly(p, str), validate=True)))


_bytes_codec(bytes, "bytes")
_bytes_codec(bytearray, "bytearray")
_bytes_codec(memoryview, "memoryview")

# Time ------------------------------------------------------------------------------------------------------------
# A moment without a zone, or in UTC, is its ISO text; any other keeps its zone beside it, for isoformat() would turn a
# ZoneInfo into a bare offset. A zone that is neither a ZoneInfo with a name nor a fixed offset is folded to its offset.


def _moment(value: datetime | time, encoder: Encoder) -> Any:
    if value.fold == 0 and (value.tzinfo is None or (value.tzinfo is UTC and isinstance(value, datetime))):
        return value.isoformat()
    zone = value.tzinfo
    if zone is not None and type(zone) is not timezone and not (type(zone) is ZoneInfo and zone.key):
        offset = value.utcoffset()
        zone = None if offset is None else timezone(offset)
    return [value.replace(tzinfo=None, fold=0).isoformat(), encoder.strictly(zone), value.fold]


def _moment_from(cls: type[datetime] | type[time]) -> Callable[[Any, Decoder], Any]:
    def decode(payload: Any, decoder: Decoder) -> Any:
        if isinstance(payload, str):
            return cls.fromisoformat(payload)
        text, zone, fold = payload
        return cls.fromisoformat(text).replace(tzinfo=decoder.decode(zone), fold=fold)

    return decode


register(datetime, tag="datetime", encode=_moment, decode=_moment_from(datetime), subclasses=True)
register(time, tag="time", encode=_moment, decode=_moment_from(time), subclasses=True)
register(
    date,
    tag="date",
    encode=lambda v, _: v.isoformat(),
    decode=lambda p, _: date.fromisoformat(exactly(p, str)),
    subclasses=True,
)
register(
    timedelta,
    tag="timedelta",
    encode=lambda v, _: [v.days, v.seconds, v.microseconds],
    decode=lambda p, _: timedelta(p[0], p[1], p[2]),
    subclasses=True,
)
register(
    timezone,
    tag="timezone",
    encode=lambda v, e: e.all([v.utcoffset(None), *v.__getinitargs__()[1:]]),
    decode=lambda p, d: timezone(*d.each(p)) if p != _UTC else UTC,
)
_UTC: list[Any] = [{"$": "timedelta", "v": [0, 0, 0]}]
register(
    ZoneInfo,
    tag="zoneinfo",
    encode=lambda v, _: known(v, v.key, "it has no key"),
    decode=lambda p, _: ZoneInfo(exactly(p, str)),
)


# Identifiers -----------------------------------------------------------------------------------------------------

_text_codec(uuid.UUID, "uuid", subclasses=True)
for _address in ("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "IPv4Interface", "IPv6Interface"):
    _text_codec(getattr(ipaddress, _address), _address.lower())
for _path in (type(pathlib.Path()), pathlib.PurePosixPath, pathlib.PureWindowsPath):
    _text_codec(_path, _path.__name__.lower())

# Lazy values: what they hold when the signal is sent, under the sender's language ----------------------------------


def _lazy(value: Any, encoder: Encoder) -> Any:
    if value._wrapped is empty:
        value._setup()
    return encoder.strictly(value._wrapped)


def _promise(value: Any, encoder: Encoder) -> Any:
    cast = getattr(value, "_proxy____cast", None)  # what django.utils.functional.lazy() calls its evaluation
    return encoder.strictly(cast() if cast is not None else str(value))


register_transparent(LazyObject, _lazy)
register_transparent(Promise, _promise)
