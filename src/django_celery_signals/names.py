"""Names for signals, classes and functions that both processes hold, and the way back from a name.

A name is ``"module:attribute.path"``. Going back looks only at modules that are already imported: a message can never
make a worker import anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from django.dispatch import Signal

_given: dict[str, Signal] = {}  # name -> signal, as told by ``signal_name=`` or by a connection
_found: WeakKeyDictionary[Signal, str] = WeakKeyDictionary()
_missed: WeakKeyDictionary[Signal, int] = WeakKeyDictionary()  # how many modules there were when it was not found
_lock = Lock()


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
    path = f"{module}:{qualname}"
    return path if find(path) is thing else None


def place_of(thing: Any) -> str | None:
    """Return the name under which some imported module holds this very object, or None."""
    place = _all_places(len(sys.modules)).get(id(thing))
    return place if place is not None and find(place) is thing else None


@lru_cache(maxsize=1)
def _all_places(module_count: int) -> dict[int, str]:
    """Return where modules held objects when the last one was imported: a search at every sending would take long."""
    places: dict[int, str] = {}
    for value, names in _held_by_modules():
        if type(value) not in _NAMED_OTHERWISE:
            path = _path(names)
            known = places.setdefault(id(value), path)
            if known is not path:
                places[id(value)] = min(known, path, key=_preference)
    return places


_NAMED_OTHERWISE = {type(None), bool, int, float, str, bytes, type}  # a function may be known by another name, too


def find(path: str) -> Any:
    """Return what an already imported module holds under a name, or None."""
    module, _, qualname = path.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = _held(found, part)
    return found


def _held(thing: Any, name: str) -> Any:
    """Look into the object's own namespace only: getattr() could run a property or a module's ``__getattr__``."""
    if issubclass(type(thing), type):  # not isinstance(), which evaluates lazy objects
        held = next((vars(cls)[name] for cls in thing.__mro__ if name in vars(cls)), None)
        return held.__func__ if type(held) is staticmethod else held
    return (thing if type(thing) is dict else getattr(thing, "__dict__", {})).get(name)


def name_signal(signal: Signal, name: str) -> None:
    """Fix the name a signal travels under; both processes must do so, which a ``connect`` at import time does."""
    with _lock:
        _given[name] = signal
        _found[signal] = name


def signal_name(signal: Signal) -> str:
    """Return the name of a signal, or ``""`` when no imported module, class or dictionary holds it."""
    name = _found.get(signal)
    if name is None:
        if _missed.get(signal) == len(sys.modules):  # searched in vain, and nothing was imported since
            return ""
        name = min(_places(signal), key=_preference, default="")
        with _lock:
            if name:
                _found[signal] = name
            else:
                _missed[signal] = len(sys.modules)
    return name


def short_name(name: str) -> str:
    """Return the last part of a signal's name, for people."""
    return name.rpartition(":")[2].rpartition(".")[2] or name


def find_signal(name: str) -> Signal:
    """Return the signal of that name; an :class:`UnknownSignal` when this process holds none."""
    signal = _given.get(name) or find(name)
    return signal if isinstance(signal, Signal) else UnknownSignal(name)


def _preference(path: str) -> tuple[bool, int, str]:
    """Prefer the module a signal seems to be defined in: one called ``signals``, then the shortest, then by name."""
    module = path.partition(":")[0]
    return (not module.endswith("signals"), path.count("."), path)


def _places(thing: Any) -> Iterator[str]:
    return (_path(names) for value, names in _held_by_modules() if value is thing)


def _path(names: tuple[str, ...]) -> str:
    return f"{names[0]}:{'.'.join(names[1:])}"


def _held_by_modules() -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Yield what modules hold, by themselves or in a class or dictionary of theirs, and under which names."""
    for module_name, module in list(sys.modules.items()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            yield value, (module_name, name)
            if type(value) is dict or issubclass(type(value), type):
                for key, inner in list((value if type(value) is dict else vars(value)).items()):
                    if type(key) is str and "." not in key:
                        yield inner, (module_name, name, key)
