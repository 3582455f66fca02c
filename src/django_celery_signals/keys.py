"""What a sending is about: its key, by which receivers take events in order, or let newer ones stand for older ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db.models import Model

from . import conf
from .codec.instances import as_instance, has_pk, line_of
from .context import scope
from .envelope import Lane, Sending
from .exceptions import ConnectError
from .options import SendingOptions
from .parameters import accepted

logger = logging.getLogger(__name__)

SHOWN = 200  # characters of a key that are shown
MAX_WAIT = 15  # times debounce=, unless max_wait= says another bound

_PLAIN = (str, int, UUID, Decimal, date, time, timedelta)


def takes_turns(options: SendingOptions, task: Any) -> bool:
    """Tell whether the sendings of a connection have keys; of a task or of its class."""
    return bool(getattr(task, "ordered", False)) or options.folds


def lane_of(options: SendingOptions, sending: Sending, receiver: str, former: Sequence[str] = ()) -> Lane | None:
    """Return the lane of a sending; None where it has no key, and is delivered without waiting for any other.

    Args:
        options: of the connection.
        sending: what is sent.
        receiver: name of the task it is for.
        former: names that it had before; its lanes keep the first, for something may wait there.

    Raises:
        ConnectError: under ``STRICT``, for a key that cannot be; else that is logged, and the sending has none.
    """
    try:
        key = _key(options.key, sending, receiver)
    except Exception:
        if conf.get().STRICT:
            raise
        logger.exception("The key of a sending to %s cannot be told; it is delivered out of turn.", receiver)
        return None
    if key is None:
        return None
    debounce = options.debounce or 0.0
    return Lane(
        key=key if len(key) <= SHOWN else f"{key[:SHOWN]}\N{HORIZONTAL ELLIPSIS}",
        name=_hashed(f"{next(iter(former), receiver)}\0{scope()}{key}"),
        folds=options.folds,
        debounce=debounce,
        max_wait=options.max_wait or MAX_WAIT * debounce,
    )


def _key(function: Callable[..., Any] | None, sending: Sending, receiver: str) -> str | None:
    if function is None:
        instance = as_instance(sending.kwargs.get("instance"))
        if instance is None:
            raise ConnectError(
                f"{receiver} takes the events of a key in turn, but this signal has no instance= to be the key. Say "
                "what it is about: key=lambda order_id, **_: order_id."
            )
        return key_of(instance)
    available = {**sending.kwargs, "sender": sending.sender, "signal": sending.signal}
    return _as_text(function(**accepted(function, available)), receiver)


def _as_text(value: Any, receiver: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, Model):  # evaluates a lazy one, such as a request's user
        return key_of(as_instance(value) or value)
    if isinstance(value, _PLAIN):
        return _in_words(value)
    if isinstance(value, (tuple, list)):
        return json.dumps([_as_text(part, receiver) for part in value], ensure_ascii=False)
    raise ConnectError(
        f"{receiver}: key= returned {value!r:.120}, which names nothing for certain. Return a text, a number, a UUID, "
        "an instance, a tuple of these, or None for a sending without a key."
    )


def _in_words(value: Any) -> str:
    """Return the text of a value, the same for equal ones."""
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    if isinstance(value, datetime) and value.utcoffset() is not None:
        return value.astimezone(UTC).isoformat()
    return str.__str__(value) if isinstance(value, str) else str(value)


def key_of(instance: Model) -> str | None:
    """Return the key of a row, the same for every class it has; None before it has a primary key."""
    if not has_pk(instance):
        return None
    try:
        parts = [_pk_in_words(field, getattr(instance, field.attname)) for field in type(instance)._meta.pk_fields]
    except ValidationError:  # it has none that a row could have
        return None
    return f"{line_of(type(instance))[-1]._meta.label}:{','.join(parts)}"


def _pk_in_words(field: Any, value: Any) -> str:
    """Show a primary key that says nothing by itself; an e-mail address or a name could be one, too."""
    while field.remote_field is not None:
        field = field.target_field
    value = field.to_python(value)
    return str(value) if type(value) in (int, UUID) else _hashed(_in_words(value))


def _hashed(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
