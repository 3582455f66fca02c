"""What surrounds a sending, and is there again while its receiver runs: language, time zone, and what a project adds.

A carrier has a name, captures a value at the sending, and restores it in the worker. It travels beside the arguments,
so no receiver finds it among them. Whatever goes wrong with one at the sending never breaks a save. In the worker one
that must not be missing, such as the tenant whose data a receiver would write, keeps it from running instead.
"""

from __future__ import annotations

import json
import logging
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from datetime import timezone as fixed
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from django.utils import timezone, translation

from .exceptions import ContextLost

logger = logging.getLogger(__name__)

#: Beside the values: names of carriers that must be restored, and of those whose value could not be captured.
REQUIRED, LOST = "$required", "$lost"

Restore = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """One thing that surrounds a sending."""

    name: str
    capture: Callable[[], Any]  # JSON; None: there is nothing to carry
    restore: Restore  # for as long as the block lasts
    required: bool = False  # whether a receiver must not run without it
    scope: bool = False  # whether the same key is another one for each of its values
    varies: bool = False  # whether a context variable holds it, which a copy of the context has as well


_carriers: dict[str, Carrier] = {}
_told: set[tuple[str, str]] = set()

#: Whether what is restored is for what follows a run, and no other run.
follows: ContextVar[bool] = ContextVar("follows", default=False)
#: What has been restored already, for whoever asks for it first.
beforehand: ContextVar[Mapping[str, Any] | None] = ContextVar("beforehand", default=None)


def register_context(
    name: str,
    *,
    capture: Callable[[], Any] | None = None,
    restore: Restore | None = None,
    variable: ContextVar[Any] | None = None,
    required: bool = False,
    scope: bool = False,
) -> None:
    """Carry something from the sending to the receiver; call it where both the web process and the worker import it.

    Args:
        name: by which it travels, and by which receivers find its value in ``event.context``.
        capture: returns its value as plain JSON (texts, numbers, lists, dictionaries), and None where there is none. It
            is called at every sending, so it must be quick, and must not ask a database. When it raises, or returns
            something else, that is logged and the event travels without it.
        restore: given the value, returns a context manager that sets it, and afterwards resets it.
        variable: instead of both: a context variable, which is read and set.
        required: whether a receiver must not run without it. Where there was nothing to carry, ``restore`` is given
            None. While it cannot be restored, a delivery waits, for about an hour; then it is failed with
            :class:`~django_celery_signals.ContextLost`, and kept. So is at once one whose value could not be captured.
        scope: whether the same key is another one for each of its values, as the order 5 of two tenants is.

    Raises:
        ValueError: for a name that is taken or none, and for neither, or both, of what can be given.
    """
    if not str(name).isidentifier() or name in (None, ""):
        raise ValueError(f"register_context({name!r}): the name must be a word such as 'tenant'.")
    if name in _carriers:
        raise ValueError(f"register_context({name!r}): the name is taken. Choose another, or register it once.")
    varies = variable is not None
    if variable is not None and capture is None and restore is None:
        capture, restore = (lambda: variable.get(None)), _setting(variable)
    elif variable is not None or capture is None or restore is None:
        raise ValueError(f"register_context({name!r}): give capture= and restore=, or variable= alone.")
    _carriers[name] = Carrier(
        name=name, capture=capture, restore=restore, required=required, scope=scope, varies=varies
    )


def _setting(variable: ContextVar[Any]) -> Restore:
    @contextmanager
    def restore(value: Any) -> Iterator[None]:
        token = variable.set(value)
        try:
            yield
        finally:
            variable.reset(token)

    return restore


# At the sending --------------------------------------------------------------------------------------------------


def captured() -> dict[str, Any]:
    """Return what surrounds this moment; never an error."""
    return _captured(_carriers.values())


def scope() -> str:
    """Return what tells the same key apart, such as the tenant; nothing, unless a carrier says so."""
    scopes = [carrier for carrier in _carriers.values() if carrier.scope]
    return json.dumps(_captured(scopes), sort_keys=True) if scopes else ""


def _captured(carriers: Iterable[Carrier]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for carrier in carriers:
        try:
            value = carrier.capture()
            if value is not None and type(value) not in (str, int, bool):
                json.dumps(value, allow_nan=False)  # raises for what is none
        except Exception as error:
            found.setdefault(LOST, []).append(carrier.name)
            _tell(carrier.name, "captured", error)
        else:
            if value is None and not carrier.required:
                continue
            found[carrier.name] = value
        if carrier.required:
            found.setdefault(REQUIRED, []).append(carrier.name)
    return found


def _tell(name: str, done: str, error: Exception) -> None:
    if (name, done) not in _told:
        _told.add((name, done))
        logger.error("The context %r could not be %s. (Said once.)", name, done, exc_info=error)


# In the worker ---------------------------------------------------------------------------------------------------


def of_receiver(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a receiver sees of it."""
    return {name: value for name, value in context.items() if not name.startswith("$")}


def is_there(values: Mapping[str, Any]) -> bool:
    """Tell whether values that have been restored, by name, are still what would be captured."""
    return _captured(_carriers[name] for name in values) == values


def varies(name: str) -> bool:
    """Tell whether a context variable holds what is carried by a name, which a copy of the context has as well."""
    return name in _carriers and _carriers[name].varies


def is_required(context: Mapping[str, Any]) -> bool:
    """Tell whether something of it must be restored."""
    return bool(context.get(REQUIRED))


@contextmanager
def restored_again(context: Mapping[str, Any]) -> Iterator[None]:
    """Restore it for what follows a run, its commit's hooks and what is told of it; what cannot be is logged.

    That runs in a copy of the run's own context, which has what context variables hold.
    """
    beside = {name: value for name, value in context.items() if not varies(name)}
    if not beside:
        yield
        return
    with ExitStack() as blocks:
        token = follows.set(True)
        try:
            blocks.enter_context(restored(beside))
        except ContextLost:
            logger.exception("What follows a run is done without its context.")
        finally:
            follows.reset(token)
        yield


@contextmanager
def restored(context: Mapping[str, Any]) -> Iterator[None]:
    """Restore what surrounded a sending, for as long as the block lasts; afterwards all is as it was before.

    Raises:
        ContextLost: for what is required, and could not be captured or cannot be restored.
    """
    if beforehand.get() == context:
        beforehand.set(None)  # whoever changes it now, and sends within, has it restored
        yield
        return
    required = context.get(REQUIRED, ())
    lost = [name for name in required if name in context.get(LOST, ())]
    if lost:
        raise ContextLost(f"The context {lost[0]!r} could not be captured when the event was sent; its log says why.")
    blocks: list[_Restored] = []
    try:
        for name, value in of_receiver(context).items():
            if (carrier := _carriers.get(name)) is not None:
                blocks.append(_Restored(carrier, value, name in required))
            elif name in required:
                raise ContextLost(
                    f"The event carries the context {name!r}, without which its receiver must not run, but this worker "
                    f"does not know it. Call register_context({name!r}, ...) where the worker imports it, too.",
                    may_pass=True,
                )
        yield
    finally:
        _end(blocks)


def _end(blocks: list[_Restored]) -> None:
    """Leave all of them, the last first, also when one is interrupted from outside."""
    try:
        if blocks:
            blocks.pop().end()
    finally:
        if blocks:
            _end(blocks)


class _Restored:
    """A carrier's value while a receiver runs. What the receiver raises is not the carrier's to see, or to swallow."""

    def __init__(self, carrier: Carrier, value: Any, required: bool) -> None:
        self.name = carrier.name
        self.block: AbstractContextManager[Any] | None = None
        try:
            block = carrier.restore(value)
            block.__enter__()
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            if required:
                message = f"The context {self.name!r} could not be restored: {error!r}"
                raise ContextLost(message, may_pass=True) from error
            _tell(self.name, "restored", error)
        else:
            self.block = block

    def end(self) -> None:
        try:
            if self.block is not None:
                self.block.__exit__(None, None, None)
        except Exception:
            logger.exception("The context %r could not be reset, and may be another receiver's now.", self.name)


# Django's own ----------------------------------------------------------------------------------------------------


def _zone_name() -> str:
    """Return the name of the zone; of one without, such as a bare offset, its offset now, as ``UTC+05:30``."""
    zone = timezone.get_current_timezone()
    key = getattr(zone, "key", None)
    if isinstance(key, str):
        return key
    return str(fixed(zone.utcoffset(datetime.now(UTC).replace(tzinfo=zone)) or timedelta()))


def _in_zone(name: Any) -> AbstractContextManager[Any]:
    zone = _zone(name) if isinstance(name, str) else None
    return timezone.override(zone) if zone is not None else nullcontext()


def _zone(name: str) -> tzinfo | None:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return _offset(name)


def _offset(name: str) -> tzinfo | None:
    """Return the zone of a name such as ``UTC+05:30``, which Python gives to a bare offset; None of any other."""
    try:
        return datetime.strptime(name, "UTC%z").tzinfo
    except ValueError:
        return None


def _in_language(language: Any) -> AbstractContextManager[Any]:
    return translation.override(language if isinstance(language, str) and language else None)


def _language() -> str:
    """Return the language; where translation is switched off there is none, which is something to restore as well."""
    return translation.get_language() or ""


_carriers["language"] = Carrier(name="language", capture=_language, restore=_in_language, varies=True)
_carriers["timezone"] = Carrier(name="timezone", capture=_zone_name, restore=_in_zone, varies=True)
