"""The project's Celery app and its broker: which app it is, how to connect in time, which errors mean what."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from amqp.exceptions import ConnectionError as AMQPConnectionError
from celery import Celery
from celery._state import _get_active_apps, get_current_app  # type: ignore[attr-defined]
from celery.loaders.default import Loader as FallbackLoader
from django.core.signals import setting_changed
from kombu import Connection
from kombu.exceptions import OperationalError

from . import conf
from .exceptions import PublishTimeout


def project_app() -> Celery:
    """Return the project's Celery app, also in threads started before it was loaded.

    A ``@shared_task`` touched too early makes Celery fall back to an unconfigured app, which then stays the default of
    every thread but the one that loads the project's own. Publishing there would go to ``amqp://localhost``.
    """
    app: Celery = get_current_app()
    if is_fallback(app):
        others: list[Celery] = [other for other in _get_active_apps() if not is_fallback(other)]
        if len(others) == 1:
            return others[0]
    return app


def loaded_app() -> Celery:
    """Return the project's app with the tasks that its workers have: also those in none of the apps' usual modules."""
    app = project_app()
    app.loader.import_default_modules()
    return app


def is_fallback(app: Celery) -> bool:
    """Tell whether an app is the unconfigured one that Celery makes when it is asked too early."""
    return isinstance(app.loader, FallbackLoader)


def is_eager(app: Celery) -> bool:
    """Tell whether an app runs tasks at once, instead of sending them.

    Celery looks every setting up anew, under several names in several places, which is as much work as all of a
    message. What Django's settings say is remembered until they change; what the app's own say is looked up.
    """
    settings: Any = app.conf
    own = (settings.changes or {}).get("task_always_eager")
    if own is not None:
        return bool(own)
    known = _eager.get(app)
    if known is None or known[0] is not settings:
        known = _eager[app] = settings, bool(settings.task_always_eager)
    return known[1]


_eager: WeakKeyDictionary[Celery, tuple[Any, bool]] = WeakKeyDictionary()


def _forget(**_: Any) -> None:
    _eager.clear()


setting_changed.connect(_forget, dispatch_uid="django_celery_signals.broker")


def connection_for(app: Celery, *, confirms: bool = True) -> Connection:
    """Return a new connection that tries each of the broker's hosts once, and fails in time where the transport can.

    Args:
        app: whose broker it is.
        confirms: whether RabbitMQ is to confirm each message before the next one is sent.
    """
    timeout = conf.get().PUBLISH_TIMEOUT
    connection = app.connection_for_write()
    hosts = len(connection.alt) or 1
    share = timeout if hosts == 1 else timeout / (hosts + 0.5)  # leaves time to publish after the last of them
    connection.connect_timeout = share  # of each; given to connection_for_write(), it would be that of all together
    once = {"max_retries": hosts - 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    bounded: dict[str, Any] = {}
    if connection.transport_cls in ("amqp", "amqps", "pyamqp"):
        # Confirmed, "sent" means: the broker has it, not: it is in a socket's buffer.
        bounded = {"confirm_publish": confirms, "read_timeout": timeout, "write_timeout": timeout}
    elif connection.transport_cls in ("redis", "rediss", "sentinel"):
        bounded = {"socket_timeout": share, "socket_connect_timeout": share}
    given = connection.transport_options or {}
    connection.transport_options = {**bounded, **given, **once, "connect_retries_timeout": timeout}
    return connection


def is_outage(error: BaseException) -> bool:
    """Tell whether an error speaks of the broker rather than of the message. Celery translates most that do."""
    return isinstance(error, (OperationalError, OSError, AMQPConnectionError, PublishTimeout))


def may_be_renewed(connection: Connection, error: Exception) -> bool:
    """Tell whether a new connection may help. Celery makes an OperationalError of most such errors."""
    errors = (*connection.recoverable_connection_errors, *connection.recoverable_channel_errors)
    return isinstance(error, (OperationalError, *errors))
