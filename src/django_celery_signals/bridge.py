"""What a signal calls: one receiver per task, however it is spelled, which turns a sending into a message.

``task.delay`` is another bound method at every access, and after the project's app is configured the task is another
object. Django tells receivers apart by the identities of ``__self__`` and ``__func__`` and holds them weakly by
default. So every spelling of a task has the same two: the task's :class:`Target`, kept for ever, and :func:`send`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any
from weakref import WeakSet

from celery import Celery
from django.contrib.auth.signals import user_login_failed
from django.core.signals import got_request_exception
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.backends.signals import connection_created
from django.db.models import Model
from django.db.models.signals import (
    class_prepared,
    post_delete,
    post_init,
    post_migrate,
    pre_delete,
    pre_init,
    pre_migrate,
    pre_save,
)
from django.dispatch import Signal

from . import conf, names
from .blocks import is_muted
from .broker import is_fallback, project_app
from .codec.instances import as_instance
from .contradictions import check_turns
from .dispatch import AUDIT, dispatch
from .durable.saving import mind_the_gap
from .envelope import Sending, write
from .exceptions import ConnectError
from .filters import lets_through
from .keys import lane_of, takes_turns
from .options import NOTHING, SendingOptions, merged
from .signals import LIFECYCLE

SNAPSHOT_SIGNALS = (pre_save, pre_delete, post_delete)  # when they arrive the row is not there, not yet or no more
MIGRATION_SIGNALS = (pre_migrate, post_migrate)  # are sent while there is no table for deliveries yet, or no more
AUDIT_SIGNALS = (user_login_failed, got_request_exception)  # must survive the rollback that often goes with them

_NOT_ASYNCHRONOUS: dict[Signal, str] = {
    pre_init: "it is sent while an instance is being made, also by the worker's own fetch, so it would never end",
    post_init: "it is sent for every instance that is loaded, also by the worker's own fetch, so it would never end",
    class_prepared: "it is sent while Django is still loading, before anything can be sent",
    connection_created: "it is sent for every connection, also the worker's own, so it would never end",
    **dict.fromkeys(LIFECYCLE, "it tells about the sending of events, so a receiver that is one would never end"),
}
# Their callers use what a receiver returns or changes, which is gone once the receiver runs elsewhere.
_VETOES = (
    "corsheaders.signals:check_request_enabled",
    "simple_history.signals:pre_create_historical_record",
)


_accepted: WeakSet[Signal] = WeakSet()  # signals found to be none of these


class Target:
    """One task, by its name: what all its spellings share."""

    __slots__ = ("__weakref__", "_app", "name")

    def __init__(self, name: str) -> None:
        """Stand for the task of that name."""
        self.name = name
        self._app: Celery | None = None

    @property
    def app(self) -> Celery:
        """The app that the task was last spelled with: a process may have several, each with a broker of its own."""
        return self._app or project_app()

    @app.setter
    def app(self, app: Celery) -> None:
        if not is_fallback(app):
            self._app = app

    def __repr__(self) -> str:
        return f"<receiver task {self.name}>"


_targets: dict[str, Target] = {}


def target_of(name: str) -> Target:
    """Return the one target of a task, the same for the life of the process."""
    return _targets.setdefault(name, Target(name))


class Spelling:
    """``task.delay``, ``task.apply_async`` or ``task.delay_on_commit``: Celery's call for you, a receiver for a signal.

    ``weakref.WeakMethod``, by which Django holds it, rebuilds it from ``__func__`` and ``__self__`` alone.
    """

    def __init__(
        self,
        function: Callable[..., None],
        target: Target,
        call: Callable[..., Any] | None = None,
        own: SendingOptions | None = None,
    ) -> None:
        """Spell a target.

        Args:
            function: always :func:`send`.
            target: the task.
            call: Celery's method, for calls that no signal makes.
            own: the options of one connection.
        """
        self.__func__, self.__self__ = function, target
        self.call, self.own = call, own or NOTHING
        self.__name__ = getattr(call, "__name__", "receiver")
        self.__qualname__ = f"{target.name}.{self.__name__}"

    def __repr__(self) -> str:
        return f"<{self.__qualname__}>"

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if is_sending(kwargs):
            return self.__func__(self.__self__, self.own, kwargs)
        if self.call is None:
            raise TypeError(f"{self!r} is connected to a signal and can only be called by one.")
        return self.call(*args, **kwargs)


class connectable:
    """Decorate a method of a task so that it can be connected to a signal as it stands."""

    def __init__(self, method: Callable[..., Any]) -> None:
        """Wrap a method that calls the task."""
        self.method = method
        self.__doc__ = method.__doc__

    def __get__(self, task: Any, owner: type | None = None) -> Any:
        if task is None:
            return self.method
        bound = MethodType(self.method, task)
        if not task.name:
            return bound
        target = target_of(task.name)
        target.app = task.app
        return Spelling(send, target, bound)


def is_sending(kwargs: dict[str, Any]) -> bool:
    """Tell whether a call was made by a signal: nobody else has a live Signal to pass."""
    return isinstance(kwargs.get("signal"), Signal)


def send(target: Target, own: SendingOptions, kwargs: dict[str, Any]) -> None:
    """Send what a signal just said to the worker. Returns None, whatever happens: a value could pass for an answer."""
    if is_muted(target.name):
        return
    said = dict(kwargs)
    sending = Sending(said.pop("signal"), said.pop("sender", None), said)
    check_signal(sending.signal, target.name)
    app = target.app
    task: Any = app.tasks.get(target.name)
    options = merged(own, task) if task is not None else own
    if not _is_internal(sending) and lets_through(options, sending, target.name):
        _send(app, target, task, options, sending)


def _send(app: Celery, target: Target, task: Any, options: SendingOptions, sending: Sending) -> None:
    guarantee, lane = guarantee_of(options, sending.signal), None
    if takes_turns(options, task):
        check_turns(options, True, sending.signal, guarantee, f"receiver {target.name}")
        lane = lane_of(options, sending, target.name, getattr(task, "former_names", ()))
    using = alias_of(sending)
    connection = connections[using] if guarantee == "durable" else None  # found once, for that takes a while
    envelope = write(
        sending,
        target.name,
        using=using,
        changed=options.changed,
        snapshot=options.instance == "snapshot" or sending.signal in SNAPSHOT_SIGNALS,
        users_too=options.instance == "snapshot",
        lane=lane,
    )
    if connection is not None:
        mind_the_gap(target.name, sending.signal, sending.sender, connection)
    dispatch(app, task, envelope, guarantee, _of_apply_async(options), connection)


def guarantee_of(options: SendingOptions, signal: Signal) -> str:
    """Return under which guarantee a connection's sendings travel."""
    if options.guarantee is not None:
        return options.guarantee
    if signal in AUDIT_SIGNALS:
        return AUDIT
    default = conf.default_guarantee()
    return "on_commit" if default == "durable" and signal in MIGRATION_SIGNALS else default


def each_signal(signal: Any) -> list[Signal]:
    """Return the signals that one argument names.

    Raises:
        ConnectError: for anything else, as when the decorator's parentheses were forgotten.
    """
    signals = list(signal) if isinstance(signal, Iterable) and not isinstance(signal, str) else [signal]
    for one in signals or [signal]:
        if not isinstance(one, Signal):
            raise ConnectError(
                f"{one!r} is not a django.dispatch.Signal. Give a signal, or a list of signals, as the first argument: "
                "@receiver_task(post_save, sender=...)."
            )
    return signals


def check_signal(signal: Signal, receiver: str) -> None:
    """Refuse a signal that can never have an asynchronous receiver.

    Raises:
        ConnectError: saying why, and what to do instead.
    """
    if signal in _accepted:
        return
    reason = _NOT_ASYNCHRONOUS.get(signal)
    if reason is None and names.signal_name(signal) in _VETOES:
        reason = "its sender acts on what the receiver returns or changes, which comes too late from a worker"
    if reason is not None:
        name = names.short_name(names.signal_name(signal))
        raise ConnectError(
            f"{receiver} cannot be connected to {name}: {reason}. Connect a plain function, and let that call the task "
            "if some of the work can wait."
        )
    _accepted.add(signal)


def alias_of(sending: Sending) -> str:
    """Return the database whose commit a sending waits for: ``using``, else the instance's, else the default."""
    using = sending.kwargs.get("using")
    if isinstance(using, str) and using in connections.settings:
        return using
    main = as_instance(sending.kwargs.get("instance"))
    if main is not None and main._state.db:
        return _written_to(main)
    instances = map(as_instance, (sending.sender, *sending.kwargs.values()))
    aliases = {_written_to(instance) for instance in instances if instance is not None and instance._state.db}
    if len(aliases) == 1:
        return aliases.pop()
    if isinstance(sending.sender, type) and issubclass(sending.sender, Model) and not sending.sender._meta.abstract:
        return str(router.db_for_write(sending.sender))
    return DEFAULT_DB_ALIAS


def _written_to(instance: Model) -> str:
    """Return where an instance would be saved: it may have been read from a replica."""
    return str(router.db_for_write(type(instance), instance=instance))


def _is_internal(sending: Sending) -> bool:
    """Tell whether it is about a migration's model, which is not the installed one, or about a delivery itself."""
    model = type(sending.kwargs.get("instance"))
    return model.__module__ in _NOT_SENT or getattr(sending.sender, "__module__", None) in _NOT_SENT


# Of migrations, and the library's own tables: a receiver of every sender's would be told of itself.
_NOT_SENT = ("__fake__", "django.db.migrations.recorder", f"{__package__}.models")


def _of_apply_async(options: SendingOptions) -> dict[str, Any]:
    names = ("queue", "priority", "countdown", "expires")
    return {name: value for name in names if (value := getattr(options, name)) is not None}
