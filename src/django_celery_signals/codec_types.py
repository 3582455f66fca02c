"""The built-in codecs: one entry per type, beside the JSON scalars, lists and dictionaries that need none."""

from __future__ import annotations

import base64
import collections
import fractions
import ipaddress
import json
import pathlib
import types
import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from typing import Any
from zoneinfo import ZoneInfo

from django.apps import AppConfig, apps
from django.db.migrations import Migration
from django.db.models import Model
from django.dispatch import Signal
from django.http import QueryDict
from django.utils.datastructures import MultiValueDict
from django.utils.functional import LazyObject, Promise, empty

from . import conf, names
from .codec import SUBCLASSED, Decoder, Encoder, Unencodable, register, register_transparent
from .exceptions import DecodeError


def _exactly(payload: Any, cls: type) -> Any:
    if type(payload) is not cls:
        raise DecodeError(f"expected {cls.__name__}, found {type(payload).__name__}")
    return payload


def _text_codec(cls: type, tag: str, to_text: Callable[[Any], str] = str, *, subclasses: bool = False) -> None:
    """Register a type that its own constructor reads back from text."""
    register(
        cls,
        tag=tag,
        encode=lambda value, _: to_text(value),
        decode=lambda payload, _: cls(_exactly(payload, str)),
        subclasses=subclasses,
    )


# Numbers ---------------------------------------------------------------------------------------------------------

register(float, tag="float", encode=lambda v, _: repr(v), decode=lambda p, _: float(_exactly(p, str)))
register(int, tag="int", encode=lambda v, _: hex(v), decode=lambda p, _: int(_exactly(p, str), 16))
register(
    complex, tag="complex", encode=lambda v, e: e.all([v.real, v.imag]), decode=lambda p, d: complex(*d.each(p))
)
_text_codec(Decimal, "decimal", subclasses=True)
_text_codec(fractions.Fraction, "fraction")

# Containers ------------------------------------------------------------------------------------------------------


def _in_order(value: Any, encoder: Encoder) -> list[Any]:
    """Give a set a stable order, also across types that do not compare: that of the members' JSON."""
    return sorted(encoder.all(value), key=json.dumps)


def _pairs(value: Any, encoder: Encoder) -> list[Any]:
    return [[encoder.encode(key), encoder.encode(item)] for key, item in dict.items(value)]


def _from_pairs(payload: Any, decoder: Decoder) -> list[tuple[Any, Any]]:
    return [(decoder.decode(key), decoder.decode(item)) for key, item in payload]


register(dict, tag="dict", encode=_pairs, decode=lambda p, d: dict(_from_pairs(p, d)))
register(
    collections.OrderedDict,
    tag="ordereddict",
    encode=_pairs,
    decode=lambda p, d: collections.OrderedDict(_from_pairs(p, d)),
)
register(
    collections.defaultdict,
    tag="defaultdict",
    encode=lambda v, e: [e.strictly(v.default_factory), _pairs(v, e)],
    decode=lambda p, d: collections.defaultdict(d.decode(p[0]), _from_pairs(p[1], d)),
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
register(
    range, tag="range", encode=lambda v, e: [v.start, v.stop, v.step], decode=lambda p, d: range(*d.each(p))
)
register(
    QueryDict,
    tag="querydict",
    encode=lambda v, _: [v.urlencode(), v._mutable, v.encoding],
    decode=lambda p, _: QueryDict(p[0], mutable=p[1], encoding=p[2]),
)
register(
    MultiValueDict,
    tag="multivaluedict",
    encode=lambda v, e: [[e.encode(key), e.encode(items)] for key, items in v.lists()],
    decode=lambda p, d: MultiValueDict(_from_pairs(p, d)),
)

# Bytes -----------------------------------------------------------------------------------------------------------


def _bytes(value: Any, _: Encoder) -> str:
    limit = conf.get().MAX_BINARY_BYTES
    if memoryview(value).nbytes > limit:
        raise Unencodable(value, f"it is larger than MAX_BINARY_BYTES ({limit} bytes)")
    return base64.b64encode(value).decode("ascii")


def _bytes_codec(cls: type, tag: str) -> None:
    register(cls, tag=tag, encode=_bytes, decode=lambda p, _: cls(base64.b64decode(_exactly(p, str), validate=True)))


_bytes_codec(bytes, "bytes")
_bytes_codec(bytearray, "bytearray")
_bytes_codec(memoryview, "memoryview")

# Time ------------------------------------------------------------------------------------------------------------
# A moment without a zone, or in UTC, is its ISO text; any other keeps its zone beside it, for isoformat() would turn a
# ZoneInfo into a bare offset. A zone that is neither a ZoneInfo nor a fixed offset is folded to its offset.


def _moment(value: datetime | time, encoder: Encoder) -> Any:
    if value.fold == 0 and (value.tzinfo is None or (value.tzinfo is timezone.utc and isinstance(value, datetime))):
        return value.isoformat()
    zone = value.tzinfo
    if zone is not None and type(zone) not in (ZoneInfo, timezone):
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
    decode=lambda p, _: date.fromisoformat(_exactly(p, str)),
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
    encode=lambda v, e: e.all([v.utcoffset(None), *v.__getinitargs__()[1:]]),  # type: ignore[attr-defined]
    decode=lambda p, d: timezone(*d.each(p)) if p != _UTC else timezone.utc,
)
_UTC = [{"$": "timedelta", "v": [0, 0, 0]}]
register(
    ZoneInfo,
    tag="zoneinfo",
    encode=lambda v, _: _known(v, v.key, "it has no key"),
    decode=lambda p, _: ZoneInfo(_exactly(p, str)),
)


def _known(value: Any, name: str | None, reason: str) -> str:
    if not name:
        raise Unencodable(value, reason)
    return name


# Identifiers -----------------------------------------------------------------------------------------------------

_text_codec(uuid.UUID, "uuid", subclasses=True)
for _address in ("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "IPv4Interface", "IPv6Interface"):
    _text_codec(getattr(ipaddress, _address), _address.lower())
for _path in (type(pathlib.Path()), pathlib.PurePosixPath, pathlib.PureWindowsPath):
    _text_codec(_path, _path.__name__.lower())

# Things both processes hold: they travel by name, and only what is already imported is found again --------------------


def _path(value: Any, _: Encoder) -> str:
    return _known(value, names.path_of(value), "no imported module holds it under its own name")


def _found(path: Any, cls: type | tuple[type, ...]) -> Any:
    thing = names.find(_exactly(path, str))
    if thing is None or not isinstance(thing, cls):
        raise DecodeError(f"no imported module of this process holds {path!r:.120}; import it where the worker starts")
    return thing


def _class(value: type, encoder: Encoder) -> Any:
    if not issubclass(value, Model) or value._meta.abstract:
        return _path(value, encoder)
    try:
        known = apps.get_model(value._meta.label) is value
    except LookupError:
        known = False
    if not known:  # e.g. a historical model of a migration
        raise Unencodable(value, "it is not the installed model of that name")
    return ["model", value._meta.label]


def _class_from(payload: Any, _: Decoder) -> Any:
    if isinstance(payload, str):
        return _found(payload, type)
    _kind, label = payload
    return apps.get_model(_exactly(label, str))


def _enum(value: Enum, encoder: Encoder) -> list[Any]:
    members = type(value).__members__
    name = value.name if isinstance(value.name, str) and value.name in members else None
    return [_path(type(value), encoder), name, None if name else encoder.strictly(value.value)]


def _enum_from(payload: Any, decoder: Decoder) -> Any:
    path, name, value = payload
    cls = _found(path, type)
    if not issubclass(cls, Enum):
        raise DecodeError(f"{path!r:.120} is no Enum")
    if name is not None:
        return cls.__members__[_exactly(name, str)]
    if not issubclass(cls, Flag):
        raise DecodeError(f"{path!r:.120} has no such member")
    return cls(decoder.decode(value))


register(type, tag="class", encode=_class, decode=_class_from, subclasses=True)
register(Enum, tag="enum", encode=_enum, decode=_enum_from, subclasses=True)
for _kind in (types.FunctionType, types.BuiltinFunctionType):
    register(
        _kind, tag=f"{_kind.__name__}", encode=_path, decode=lambda p, _, kind=_kind: _found(p, kind)  # type: ignore[misc]
    )
register(
    Signal,
    tag="signal",
    encode=lambda v, _: _known(v, names.signal_name(v), "no imported module holds this signal"),
    decode=lambda p, _: names.find_signal(_exactly(p, str)),
    subclasses=True,
)
register(
    AppConfig,
    tag="app",
    encode=lambda v, _: v.label,
    decode=lambda p, _: apps.get_app_config(_exactly(p, str)),
    subclasses=True,
)
register(
    Migration,
    tag="migration",
    encode=lambda v, _: [v.app_label, v.name],
    decode=lambda p, _: Migration(name=p[1], app_label=p[0]),
    subclasses=True,
)
register(
    "django.contrib.auth.models.AnonymousUser",
    tag="anonymous",
    encode=lambda v, _: None,
    decode=lambda p, _: _found("django.contrib.auth.models:AnonymousUser", type)(),
    subclasses=True,
)

# Subclasses of the built-in types: a named tuple, a SafeString, a str or dict class of the project's own --------------


def _subclass(value: Any, encoder: Encoder) -> list[Any]:
    base = next(base for base in SUBCLASSED if isinstance(value, base))
    if base is dict:
        plain: Any = _pairs(value, encoder)
    elif base in (list, tuple, set, frozenset):
        plain = encoder.all(base.__iter__(value))
    else:
        plain = encoder.strictly(_PLAIN[base](value))
    return [_path(type(value), encoder), base.__name__, plain, encoder.encode(dict(getattr(value, "__dict__", {})))]


# The base's own conversions: they return the bare value and run no method that the subclass may have overridden.
_PLAIN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
}


def _subclass_from(payload: Any, decoder: Decoder) -> Any:
    path, base_name, plain, attributes = payload
    cls = _found(path, type)
    base = next(base for base in SUBCLASSED if base.__name__ == base_name)
    if not issubclass(cls, base) or issubclass(cls, (Enum, bool, collections.OrderedDict)):
        raise DecodeError(f"{path!r:.120} is no plain subclass of {base_name!r:.20}")
    content = dict(_from_pairs(plain, decoder)) if base is dict else decoder.decode(plain)
    value = base.__new__(cls, *(() if base in (list, dict, set) else (content,)))
    {list: list.extend, dict: dict.update, set: set.update}.get(base, lambda *_: None)(value, content)
    if attributes:
        value.__dict__.update(decoder.decode(attributes))
    return value


register("subclass", tag="subclass", encode=_subclass, decode=_subclass_from)

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

# PostgreSQL's ranges, without importing a driver ---------------------------------------------------------------------


def _range(value: Any, encoder: Encoder) -> list[Any]:
    bounds = ("[" if value.lower_inc else "(") + ("]" if value.upper_inc else ")")
    return [_path(type(value), encoder), *encoder.all([value.lower, value.upper]), bounds, value.isempty]


def _range_from(payload: Any, decoder: Decoder) -> Any:
    path, lower, upper, bounds, is_empty = payload
    if not path.startswith(("psycopg.types.range:", "psycopg2._range:")):
        raise DecodeError(f"{path!r:.120} is no range")
    return _found(path, type)(decoder.decode(lower), decoder.decode(upper), bounds, empty=is_empty)


register("psycopg.types.range.Range", tag="range.psycopg", encode=_range, decode=_range_from, subclasses=True)
register("psycopg2._range.Range", tag="range.psycopg2", encode=_range, decode=_range_from, subclasses=True)

# A sender that is a module-level object of no class the codec knows: found again by its place.
register("place", tag="place", encode=lambda v, _: v, decode=lambda p, _: _found(p, object))
