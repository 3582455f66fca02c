"""Typed values to plain JSON and back, exactly; and the registry that third parties extend.

JSON's own types travel as they are. Everything else becomes a JSON object ``{"$": tag, "v": payload}``, and a
dictionary that could be taken for one is itself wrapped, so that no user data can pass for a tag. Decoding imports
nothing and runs no code of the classes it names beyond plain construction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from django.db import Error as DatabaseFailure

from ..exceptions import DecodeError, EncodeError, InstanceMissing

TAG = "$"
SUBCLASSED = (str, int, float, bytes, tuple, list, dict, set, frozenset)  # see "subclass" in types.py
MAX_NESTING = 64  # levels of containers; deeper ones stay behind

Encode = Callable[[Any], Any]
Decode = Callable[[Any], Any]


class Unencodable(Exception):
    """Inner signal of the codec: this value has no JSON form, because of ``reason``."""

    def __init__(self, value: Any, reason: str) -> None:
        """Keep the value's type and the reason."""
        super().__init__(reason)
        self.value, self.reason = value, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How one type travels."""

    tag: str | None  # names the type in the JSON; None: ``encode`` returns finished JSON, tag and all
    encode: Callable[[Any, Encoder], Any]  # value -> payload, a JSON value
    decode: Callable[[Any, Decoder], Any]  # payload -> value
    subclasses: bool  # whether it also serves subclasses of its type


_by_type: dict[type | str, Codec] = {}
_by_tag: dict[str, Codec] = {}


def register_codec(cls: type | str, *, tag: str, encode: Encode, decode: Decode, subclasses: bool = False) -> None:
    """Teach the codec a type; call it where both the web process and the worker import it.

    Args:
        cls: the type, or its ``"module.Name"`` where importing it just for this would be too early or too costly.
        tag: its name in the JSON, unique; prefix it with your package: ``"money.Money"``.
        encode: returns what represents the value; it may hold anything the codec already knows.
        decode: returns the value again from that. It must only construct: it runs on every message.
        subclasses: serve subclasses, too; they arrive as whatever ``decode`` returns.

    Raises:
        ValueError: when the tag belongs to another type already.
    """
    register(
        cls,
        tag=tag,
        encode=lambda value, encoder: encoder.encode(encode(value)),
        decode=lambda payload, decoder: decode(decoder.decode(payload)),
        subclasses=subclasses,
    )


def register(
    cls: type | str,
    *,
    tag: str,
    encode: Callable[[Any, Encoder], Any],
    decode: Callable[[Any, Decoder], Any],
    subclasses: bool = False,
) -> None:
    """Register a codec that steers the recursion itself; :func:`register_codec` is the public door."""
    known = _by_tag.get(tag)
    if known is not None and _by_type.get(cls) is not known:
        raise ValueError(f"The codec tag {tag!r} is taken by another type; choose one with your package's name in it.")
    _by_type[cls] = _by_tag[tag] = Codec(tag=tag, encode=encode, decode=decode, subclasses=subclasses)
    codec_for.cache_clear()


def register_transparent(cls: type | str, encode: Callable[[Any, Encoder], Any]) -> None:
    """Register a type that travels as something else, such as a lazy string as its text."""
    _by_type[cls] = Codec(tag=None, encode=encode, decode=_no_payload, subclasses=True)
    codec_for.cache_clear()


def _no_payload(payload: Any, decoder: Decoder) -> Any:
    raise DecodeError("This type never travels under a tag of its own.")


@lru_cache(maxsize=1024)
def codec_for(cls: type) -> Codec | None:
    """Return the codec of a type: its own, or one of a base class that serves subclasses."""
    for base in cls.__mro__:
        codec = _by_type.get(base) or _by_type.get(f"{base.__module__}.{base.__qualname__}")
        if codec is not None and (base is cls or codec.subclasses):
            return codec
    return _by_type["subclass"] if issubclass(cls, SUBCLASSED) else None


class Encoder:
    """Turns the values of one sending into JSON; ``replace`` is asked for whatever has no JSON form."""

    def __init__(self, replace: Callable[[Unencodable], Any]) -> None:
        """Begin with nothing seen.

        Args:
            replace: returns the JSON that stands for an unencodable value, or raises.
        """
        self.replace = replace
        self.objects: list[dict[str, Any]] = []  # model instances, each once
        self.seen: dict[Any, tuple[int, Any]] = {}  # identity -> (index into objects, the instance)
        self._inside: set[int] = set()  # identities of the containers around the current value

    def encode(self, value: Any) -> Any:
        """Return the JSON of a value; a stand-in's where it has none."""
        kind = type(value)
        if kind in _ALIKE or (kind is str and value.isascii()):  # most, and nothing to ask
            return value
        try:
            return self.strictly(value)
        except Unencodable as error:
            return self.replace(error)

    def strictly(self, value: Any) -> Any:
        """Return the JSON of a value.

        Raises:
            Unencodable: when it has none (an inner value of it that has none is replaced).
        """
        kind = type(value)
        if kind in _SCALARS:
            return _scalar(kind, value)
        if id(value) in self._inside:  # at once, for a tree whose children know their parent has very many paths
            raise Unencodable(value, "it contains itself")
        if len(self._inside) >= MAX_NESTING:
            raise Unencodable(value, f"it is nested more than {MAX_NESTING} levels deep")
        self._inside.add(id(value))
        try:
            return self._container(kind, value)
        finally:
            self._inside.remove(id(value))

    def _container(self, kind: type, value: Any) -> Any:
        if kind is list:
            return [self.encode(item) for item in value]
        if kind is dict and TAG not in value and all(type(key) is str and not _is_torn(key) for key in value):
            return {key: self.encode(item) for key, item in value.items()}
        codec = codec_for(kind)
        if codec is None:
            raise Unencodable(value, "no codec is registered for its type")
        try:
            payload = codec.encode(value, self)
        except (Unencodable, EncodeError):
            raise
        except Exception as error:
            raise Unencodable(value, f"encoding it raised {type(error).__name__}") from error
        return payload if codec.tag is None else {TAG: codec.tag, "v": payload}

    def all(self, values: Any) -> list[Any]:
        """Return the JSON of each of some values."""
        return [self.encode(value) for value in values]

    def key(self, value: Any) -> Any:
        """Return the JSON of a dictionary's key or a set's member; of one that has lost its hash, a stand-in's."""
        try:
            hash(value)
        except Exception:  # such as a model instance that was deleted since
            return self.replace(Unencodable(value, "it is a key, or a member of a set, and has no hash any more"))
        return self.encode(value)


_ALIKE = frozenset({type(None), bool})  # in JSON as they are
_SCALARS = frozenset({*_ALIKE, int, str, float})
_MAX_DIGITS_BITS = 4096  # Python's own limit on reading an int back from text is 4300 digits


def _scalar(kind: type, value: Any) -> Any:
    if kind is float and not math.isfinite(value):
        return {TAG: "float", "v": repr(value)}
    if kind is int and value.bit_length() > _MAX_DIGITS_BITS:
        return {TAG: "int", "v": hex(value)}
    if kind is str and _is_torn(value):
        return {TAG: "str", "v": list(value)}
    return value


def _is_torn(text: str) -> bool:
    """Tell whether JSON would join two lone surrogates of a text into one character."""
    return not text.isascii() and _TORN.search(text) is not None


_TORN = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class Decoder:
    """Turns the JSON of one envelope back into values; model instances come from ``instance``, each once."""

    def __init__(self, objects: list[Any], instance: Callable[[Any, Decoder], Any]) -> None:
        """Take the envelope's table of instances.

        Args:
            objects: what ``{"$": "obj", "v": index}`` refers to.
            instance: makes an instance from its entry of the table.
        """
        self.objects, self._instance = objects, instance
        self._made: dict[int, Any] = {}

    def decode(self, node: Any) -> Any:
        """Return the value of some JSON.

        Raises:
            DecodeError: when it is not what an encoder writes.
        """
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        if TAG not in node:
            return {key: self.decode(item) for key, item in node.items()}
        return self._tagged(node)

    def _tagged(self, node: dict[str, Any]) -> Any:
        tag = node[TAG]
        codec = _by_tag.get(tag) if isinstance(tag, str) else None
        if codec is None or node.keys() != {TAG, "v"}:
            raise DecodeError(
                f"The envelope holds a value with the tag {tag!r:.80}, which no codec of this process has. "
                "Call register_codec() where the worker imports it, too."
            )
        try:
            return codec.decode(node["v"], self)
        except (DecodeError, InstanceMissing, DatabaseFailure, RecursionError):
            raise
        except Exception as error:  # codecs are given what a message says, and are not only our own
            raise DecodeError(f"The envelope's value with the tag {tag!r} cannot be read: {error!r:.200}") from error

    def instance(self, index: Any) -> Any:
        """Return the model instance at an index of the table, the same object every time."""
        if index not in self._made:
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(self.objects):
                raise DecodeError(f"The envelope refers to the instance number {index!r:.40}, which it does not hold.")
            self._made[index] = self._instance(self.objects[index], self)
        return self._made[index]

    def each(self, nodes: Any) -> Iterator[Any]:
        """Yield the values of a JSON list."""
        if not isinstance(nodes, list):
            raise DecodeError(f"The envelope holds {type(nodes).__name__} where a list belongs.")
        return (self.decode(node) for node in nodes)


# For codecs ------------------------------------------------------------------------------------------------------


def exactly(payload: Any, cls: type) -> Any:
    """Return a payload that is of exactly this type.

    Raises:
        DecodeError: when it is not.
    """
    if type(payload) is not cls:
        raise DecodeError(f"expected {cls.__name__}, found {type(payload).__name__}")
    return payload


def known(value: Any, name: str | None, reason: str) -> str:
    """Return a name that a value travels by.

    Raises:
        Unencodable: when there is none, for this reason.
    """
    if not name:
        raise Unencodable(value, reason)
    return name


def pairs(value: Any, encoder: Encoder) -> list[Any]:
    """Return the items of a dictionary whose keys need not be strings."""
    return [[encoder.key(key), encoder.encode(item)] for key, item in dict.items(value)]


def from_pairs(payload: Any, decoder: Decoder) -> list[tuple[Any, Any]]:
    """Return the items that :func:`pairs` wrote."""
    return [(decoder.decode(key), decoder.decode(item)) for key, item in payload]
