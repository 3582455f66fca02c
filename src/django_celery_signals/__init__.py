"""Connect Celery tasks directly to Django signals."""

from .blocks import muted, send_saved
from .codec import register_codec
from .context import register_context
from .durable.batch import batched
from .durable.deliveries import deliveries
from .durable.erasure import forget
from .durable.relay import Relay
from .event import Event, current_event
from .exceptions import (
    ConnectError,
    ContextLost,
    DecodeError,
    DeliveryRefused,
    DetachedInstance,
    Discard,
    EncodeError,
    Fail,
    InstanceMissing,
    LeaseLost,
    LoopDetected,
    NotCarried,
    PublishError,
    PublishTimeout,
    RetryAfter,
    SettingsError,
    SignalTaskError,
    UnknownReceiver,
    WorkerLost,
)
from .receivers import connect, connections, disconnect, receiver_task
from .task import ReceiverTask

__version__ = "0.1.0"

__all__ = [
    "ConnectError",
    "ContextLost",
    "DecodeError",
    "DeliveryRefused",
    "DetachedInstance",
    "Discard",
    "EncodeError",
    "Event",
    "Fail",
    "InstanceMissing",
    "LeaseLost",
    "LoopDetected",
    "NotCarried",
    "PublishError",
    "PublishTimeout",
    "ReceiverTask",
    "Relay",
    "RetryAfter",
    "SettingsError",
    "SignalTaskError",
    "UnknownReceiver",
    "WorkerLost",
    "batched",
    "connect",
    "connections",
    "current_event",
    "deliveries",
    "disconnect",
    "forget",
    "muted",
    "receiver_task",
    "register_codec",
    "register_context",
    "send_saved",
]
