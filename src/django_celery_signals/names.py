"""Names for signals, classes and functions that both processes hold, and the way back from a name.

A name is ``"module:attribute.path"``. Going back looks only at modules that are already imported: a message can never
make a worker import anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from os import register_at_fork
from threading import Lock
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from django.dispatch import Signal

MOST_NAMES = 5  # of one signal, in an envelope

_given: dict[str, Signal] = {}  # name -> signal, as told by ``signal_name=`` or by a connection
_chosen: WeakKeyDictionary[Signal, str] = WeakKeyDictionary()  # the same, the other way round
_places_of_signals: WeakKeyDictionary[Signal, set[str]] = WeakKeyDictionary()
# The chosen name of a signal, and its places, the best first.
_in_order: WeakKeyDictionary[Signal, tuple[str | None, list[str]]] = WeakKeyDictionary()
_scanned: dict[str, Any] = {}  # modules looked through, by name
_scanned_until: tuple[int, str] | None = None
_OWN_SIGNALS = f"{__package__}.signals"  # other modules of the library only import signals
_lock = Lock()
register_at_fork(after_in_child=lambda: globals().update(_lock=Lock()))  # a thread of the parent may hold it


class UnknownSignal(Signal):
    """Stand in for a signal that this process does not hold; it compares unequal to every other."""

    def __init__(self, name: str) -> None:
        """Remember the name it travelled under."""
        super().__init__()
        self.name = name

    def __repr__(self) -> str:
        return f"<UnknownSignal {self.name!r}: no module of this process holds it; pass signal_name= to connect()>"


def path_of(thing: Any) -> str | None:
    """Return the name of a class or function, or None when that name would lead elsewhere."""
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        return None
    paths = (f"{module}:{qualname}", f"types:{qualname}")  # only there are some built-in classes, such as NoneType
    return next((path for path in paths if find(path) is thing), None)


def place_of(thing: Any) -> str | None:
    """Return the name under which some imported module holds this very object, or None."""
    place = _objects(_newest_module()).get(id(thing))
    return place if place is not None and find(place) is thing else None


def _newest_module() -> tuple[int, str]:
    """Return what changes whenever a module is imported, also when another one went away."""
    try:
        return len(sys.modules), next(reversed(sys.modules))
    except RuntimeError:  # another thread imports one just now
        return 0, ""


@lru_cache(maxsize=1)
def _objects(newest_module: tuple[int, str]) -> dict[int, str]:
    """Return where modules hold objects that are neither plain values nor found by a name of their own."""
    places: dict[int, str] = {}
    for module_name, module in list(sys.modules.items()):
        for name, value in list(_content_of(module).items()):
            if not issubclass(type(value), NAMED_OTHERWISE):
                path = f"{module_name}:{name}"
                places[id(value)] = min(path, places.get(id(value), path), key=_preference)
    return places


#: Types of which an object is never looked for by its place.
NAMED_OTHERWISE = (type(None), int, float, str, bytes, tuple, list, dict, type, FunctionType, ModuleType)


def find(path: str) -> Any:
    """Return what an already imported module holds under a name, or None."""
    module, first, further = _parts(path)
    found: Any = _content_of(sys.modules.get(module)).get(first)
    for part in further:
        found = _held(found, part)
    return found


@lru_cache(maxsize=1024)
def _parts(path: str) -> tuple[str, str, list[str]]:
    module, _, qualname = path.partition(":")
    first, *further = qualname.split(".")
    return module, first, further


def _content_of(module: Any) -> dict[str, Any]:
    """Return what a module holds, past its own attribute access: a lazily loaded one would be imported by it."""
    try:
        content: dict[str, Any] = object.__getattribute__(module, "__dict__")
    except AttributeError:  # whatever it is that stands in for a module
        return {}
    return content


def _held(thing: Any, name: str) -> Any:
    """Look into classes and dictionaries only, past getattr(): it could run a property or ``__getattr__``.

    Not into a module that another one holds: every module can be reached by its own name, or should not be.
    """
    if issubclass(type(thing), type):  # not isinstance(), which evaluates lazy objects
        held = next((vars(cls)[name] for cls in thing.__mro__ if name in vars(cls)), None)
        return held.__func__ if type(held) is staticmethod else held
    return thing.get(name) if type(thing) is dict else None


def name_signal(signal: Signal, name: str) -> None:
    """Fix the name a signal travels under; both processes must do so, which a ``connect`` at import time does."""
    with _lock:
        _given[name] = signal
        _chosen[signal] = name
        _in_order.pop(signal, None)


def signal_name(signal: Signal) -> str:
    """Return the name of a signal, or ``""`` when no imported module, class or dictionary holds it."""
    return next(iter(signal_names(signal)), "")


def signal_names(signal: Signal) -> tuple[str, ...]:
    """Return the names of a signal, the best first: another process may hold it under one of the others only."""
    if _scanned_until != _newest_module() or (known := _in_order.get(signal)) is None:
        with _lock:
            _scan()
            places = sorted(_places_of_signals.get(signal, ()), key=_preference)
            known = _in_order[signal] = _chosen.get(signal), places
    chosen, places = known
    found = [] if chosen is None else [chosen]
    for place in places:
        if len(found) == MOST_NAMES:
            break
        if find(place) is signal:  # still: modules may be imported anew, and give a name to something else
            found.append(place)
    return tuple(found)


def known_signals() -> list[Signal]:
    """Return the signals that have a name."""
    with _lock:
        _scan()
        return list({**dict.fromkeys(_places_of_signals), **dict.fromkeys(_chosen)})


@lru_cache(maxsize=1024)
def short_name(name: str) -> str:
    """Return the last part of a signal's name, for people; nothing of a name that only a connection gave it."""
    if name.startswith("connection:"):
        return ""
    return name.rpartition(":")[2].rpartition(".")[2] or name


def find_signal(*names: str) -> Signal:
    """Return the signal of one of those names; an :class:`UnknownSignal` when this process holds none."""
    for name in names:
        signal = _given.get(name) or find(name)
        if isinstance(signal, Signal):
            return signal
    return UnknownSignal(names[0] if names else "")


def _preference(path: str) -> tuple[bool, bool, int, str]:
    """Prefer the module a signal seems to be defined in: Django's, one called ``signals``, the shortest."""
    module = path.partition(":")[0]
    return (not module.startswith("django."), not module.endswith("signals"), path.count("."), path)


def _scan() -> None:
    """Note the signals of the modules imported since the last time."""
    global _scanned_until
    newest = _newest_module()
    if newest == _scanned_until:
        return
    for name, module in list(sys.modules.items()):
        if _scanned.get(name) is not module and (name.partition(".")[0] != __package__ or name == _OWN_SIGNALS):
            _note_signals(name, module)
    _scanned_until = newest


def _note_signals(module_name: str, module: Any) -> None:
    for value, path in _held_by(module_name, module):
        if issubclass(type(value), Signal):  # not isinstance(), which evaluates lazy objects
            _places_of_signals.setdefault(value, set()).add(path)
            _in_order.pop(value, None)
    is_complete = not getattr(_content_of(module).get("__spec__"), "_initializing", False)
    if is_complete and type(module).__name__ != "_LazyModule":  # of importlib, not loaded yet
        _scanned[module_name] = module


def _held_by(module_name: str, module: Any) -> Iterator[tuple[Any, str]]:
    """Yield what a module holds, by itself or in a class or dictionary of its, and under which name."""
    for name, value in list(_content_of(module).items()):
        yield value, f"{module_name}:{name}"
        items = value if type(value) is dict else vars(value) if issubclass(type(value), type) else {}
        inner = [(key, item) for key, item in list(items.items()) if type(key) is str and "." not in key]
        yield from ((item, f"{module_name}:{name}.{key}") for key, item in inner)
