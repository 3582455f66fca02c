"""Codecs of things that both processes hold and that travel by name, and of values built from such a class.

Only what is already imported is found again, and nothing of it is run beyond the built-in types' own construction.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Callable
from enum import Enum, Flag
from functools import lru_cache
from typing import Any

from django.apps import AppConfig, apps
from django.db.migrations import Migration
from django.db.models import Model
from django.dispatch import Signal

from .. import names
from ..exceptions import DecodeError
from .core import SUBCLASSED, Decoder, Encoder, Unencodable, exactly, from_pairs, known, pairs, register
from .fields import is_installed
from .standins import Unavailable


def _path(value: Any, _: Encoder) -> str:
    return known(value, names.path_of(value), "no imported module holds it under its own name")


class _NotHere(DecodeError):
    """Inner signal: this process has not imported what a name leads to."""


def _found(path: Any, cls: type | tuple[type, ...]) -> Any:
    thing = names.find(exactly(path, str))
    if thing is None:
        raise _NotHere(path)
    if not issubclass(type(thing), cls):  # not isinstance(), which evaluates lazy objects
        raise DecodeError(f"{path!r:.120} leads to a {type(thing).__name__}")
    return thing


def _or_absent(decode: Callable[[Any, Decoder], Any]) -> Callable[[Any, Decoder], Any]:
    """Let a stand-in arrive where the name leads nowhere: the rest of the event is none the worse for it."""

    def decode_or_stand_in(payload: Any, decoder: Decoder) -> Any:
        try:
            return decode(payload, decoder)
        except _NotHere as error:
            path = str(error).replace(":", ".")
            return Unavailable(path, "no imported module of this process holds it; import it where the worker starts")

    return decode_or_stand_in


def _class(value: type, encoder: Encoder) -> Any:
    if not issubclass(value, Model) or value._meta.abstract:
        return _path(value, encoder)
    if not is_installed(value):  # e.g. a historical model of a migration
        raise Unencodable(value, "it is not the installed model of that name")
    return ["model", value._meta.label]


def _class_from(payload: Any, _: Decoder) -> Any:
    if isinstance(payload, str):
        return _found(payload, type)
    _kind, label = payload
    return apps.get_model(exactly(label, str))


def _enum(value: Enum, encoder: Encoder) -> list[Any]:
    name = value.name if value.name in type(value).__members__ else None  # a combination of flags has no name
    return [_path(type(value), encoder), name, None if name else encoder.strictly(value.value)]


def _enum_from(payload: Any, decoder: Decoder) -> Any:
    path, name, value = payload
    cls = _found(path, type)
    if not issubclass(cls, Enum):
        raise DecodeError(f"{path!r:.120} is no Enum")
    if name is not None:
        return cls.__members__[exactly(name, str)]
    if not issubclass(cls, Flag):
        raise DecodeError(f"{path!r:.120} has no such member")
    return cls(decoder.decode(value))


def _signal_names(value: Signal, _: Encoder) -> list[str]:
    known(value, names.signal_name(value), "no imported module holds this signal")
    return list(names.signal_names(value))


register(type, tag="class", encode=_class, decode=_or_absent(_class_from), subclasses=True)
register(Enum, tag="enum", encode=_enum, decode=_or_absent(_enum_from), subclasses=True)
for _kind in (types.FunctionType, types.BuiltinFunctionType):
    register(
        _kind,
        tag=f"{_kind.__name__}",
        encode=_path,
        decode=_or_absent(lambda p, _, kind=_kind: _found(p, kind)),  # type: ignore[misc]
    )
register(
    Signal,
    tag="signal",
    encode=_signal_names,
    decode=lambda p, d: names.find_signal(*(exactly(name, str) for name in d.each(p))),
    subclasses=True,
)
register(
    AppConfig,
    tag="app",
    encode=lambda v, _: v.label,
    decode=lambda p, _: apps.get_app_config(exactly(p, str)),
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
    if isinstance(value, _UNSEEN) or isinstance(object.__getstate__(value), tuple):  # a tuple: it has slots
        raise Unencodable(value, "it keeps more than its content and its __dict__; teach it with register_codec()")
    cls: Any = type(value)
    base = next(base for base in SUBCLASSED if issubclass(cls, base))
    if not _can_be_built(cls, base):
        raise Unencodable(
            value, f"Python cannot build one from a plain {base.__name__}; teach it with register_codec()"
        )
    if base is dict:
        plain: Any = pairs(value, encoder)
    elif base in (list, tuple):
        plain = encoder.all(base.__iter__(value))
    elif base in (set, frozenset):
        plain = [encoder.key(member) for member in base.__iter__(value)]
    else:
        plain = encoder.strictly(_PLAIN[base](value))
    return [_path(cls, encoder), base.__name__, plain, encoder.encode(dict(getattr(value, "__dict__", {})))]


@lru_cache(maxsize=1024)
def _can_be_built(cls: Any, base: Any) -> bool:
    """Tell whether the base can make an object of the class: not of one with a layout of its own, in C."""
    try:
        base.__new__(cls, *(() if base in _FILL else (base(),)))
    except TypeError:
        return False
    return True


# These keep an order or a factory where only their own code sees it.
_UNSEEN = (collections.OrderedDict, collections.defaultdict)

# The base's own conversions: they return the bare value and run no method that the subclass may have overridden.
_PLAIN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
}


_FILL: dict[Any, Callable[[Any, Any], None]] = {list: list.extend, dict: dict.update, set: set.update}


def _subclass_from(payload: Any, decoder: Decoder) -> Any:
    path, base_name, plain, attributes = payload
    cls = _found(path, type)
    base = next(base for base in SUBCLASSED if base.__name__ == base_name)
    if not issubclass(cls, base) or issubclass(cls, (Enum, bool, *_UNSEEN)):
        raise DecodeError(f"{path!r:.120} is no plain subclass of {base_name!r:.20}")
    content = dict(from_pairs(plain, decoder)) if base is dict else exactly(decoder.decode(plain), _carried_as(base))
    value = base.__new__(cls, *(() if base in _FILL else (content,)))
    if fill := _FILL.get(base):
        fill(value, content)
    if attributes:
        value.__dict__.update(decoder.decode(attributes))
    return value


def _carried_as(base: type) -> type:
    return base if base in _PLAIN else list


register("subclass", tag="subclass", encode=_subclass, decode=_or_absent(_subclass_from))

# PostgreSQL's ranges, without importing a driver ---------------------------------------------------------------------


def _range(value: Any, encoder: Encoder) -> list[Any]:
    bounds = value._bounds or "[)"  # lower_inc and upper_inc tell another truth for an infinite bound
    return [_path(type(value), encoder), *encoder.all([value.lower, value.upper]), bounds, value.isempty]


def _range_from(payload: Any, decoder: Decoder) -> Any:
    path, lower, upper, bounds, is_empty = payload
    cls = _found(path, type)
    if not issubclass(cls, tuple(filter(None, map(names.find, _RANGES)))):
        raise DecodeError(f"{path!r:.120} is no range")
    return cls(decoder.decode(lower), decoder.decode(upper), bounds, empty=is_empty)


_RANGES = ("psycopg.types.range:Range", "psycopg2._range:Range")


register("psycopg.types.range.Range", tag="range.psycopg", encode=_range, decode=_range_from, subclasses=True)
register("psycopg2._range.Range", tag="range.psycopg2", encode=_range, decode=_range_from, subclasses=True)

# A sender that is a module-level object of no class the codec knows: found again by its place.


def _thing(path: Any, _: Decoder) -> Any:
    thing = _found(path, object)
    if issubclass(type(thing), names.NAMED_OTHERWISE):
        raise DecodeError(f"{path!r:.120} leads to a {type(thing).__name__}, which has no place")
    return thing


register("place", tag="place", encode=lambda v, _: v, decode=_or_absent(_thing))
