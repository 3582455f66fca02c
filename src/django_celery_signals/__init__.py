"""Connect Celery tasks directly to Django signals."""

from .codec import register_codec
from .event import Event, current_event
from .exceptions import (
    ConnectError,
    DecodeError,
    DetachedInstance,
    Discard,
    EncodeError,
    Fail,
    InstanceMissing,
    LoopDetected,
    NotCarried,
    PublishError,
    PublishTimeout,
    RetryAfter,
    SettingsError,
    SignalTaskError,
)
from .receivers import connect, connections, disconnect, receiver_task
from .task import ReceiverTask

__version__ = "0.1.0"

__all__ = [
    "ConnectError",
    "DecodeError",
    "DetachedInstance",
    "Discard",
    "EncodeError",
    "Event",
    "Fail",
    "InstanceMissing",
    "LoopDetected",
    "NotCarried",
    "PublishError",
    "PublishTimeout",
    "ReceiverTask",
    "RetryAfter",
    "SettingsError",
    "SignalTaskError",
    "connect",
    "connections",
    "current_event",
    "disconnect",
    "receiver_task",
    "register_codec",
]
