"""One structured log record for each of the library's own signals: for formatters that write JSON, and for Sentry.

Its fields tell names, ids, types and durations: nothing of what was sent, and no error's text.
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal

from ..durable.failure import type_name
from ..event import Event
from ..signals import (
    delivery_failed,
    event_lost,
    event_sent,
    receiver_discarded,
    receiver_failed,
    receiver_started,
    receiver_succeeded,
)

PREFIX = "dcs_"  # of every field, for a record of logging has names such as "name" and "args" itself
DEFAULT = logging.getLogger("django_celery_signals.events")

#: What a record says, and its level; of a failure that is to be repeated see below.
SAYING: dict[Signal, tuple[int, str]] = {
    event_sent: (logging.INFO, "Event sent to %s"),
    event_lost: (logging.ERROR, "Event lost for %s"),
    receiver_started: (logging.INFO, "Receiver started: %s"),
    receiver_succeeded: (logging.INFO, "Receiver succeeded: %s"),
    receiver_failed: (logging.ERROR, "Receiver failed: %s"),
    receiver_discarded: (logging.INFO, "Event discarded by %s"),
    delivery_failed: (logging.ERROR, "Delivery given up for %s"),
}
AGAIN = (logging.WARNING, "Receiver failed, and will run again: %s")


def connect(logger: logging.Logger = DEFAULT) -> None:
    """Let this process write a record for each of the library's signals; call it once or more often.

    Args:
        logger: that writes them.
    """
    for signal in SAYING:
        signal.connect(_listener(logger), weak=False, dispatch_uid=_uid(logger))


def disconnect(logger: logging.Logger = DEFAULT) -> None:
    """Undo it, for tests."""
    for signal in SAYING:
        signal.disconnect(dispatch_uid=_uid(logger))


def _uid(logger: logging.Logger) -> str:
    return f"{__name__}:{logger.name}"


def _listener(logger: logging.Logger) -> Any:
    def listen(sender: str, signal: Signal, **facts: Any) -> None:
        level, words = AGAIN if facts.get("will_retry") else SAYING[signal]
        if logger.isEnabledFor(level):
            found = fields(sender, facts)
            logger.log(level, words, sender, extra={f"{PREFIX}{name}": value for name, value in found.items()})

    return listen


def fields(receiver: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says, without the prefix: always the same fields, None where a signal does not say."""
    event: Event | None = facts.get("event")
    runtime: float | None = facts.get("runtime")
    known = {name: getattr(event, name, None) for name in ("signal_name", "using", "root_id", "parent_id", "depth")}
    return {
        "receiver": receiver,
        "event_id": event.id if event is not None else facts.get("event_id"),
        **known,
        **{name: facts[name] for name in ("signal_name", "using") if name in facts},
        "runtime_ms": None if runtime is None else round(runtime * 1000, 3),
        "will_retry": facts.get("will_retry"),
        "error_type": type_name(facts["error"]) if "error" in facts else None,
    }
