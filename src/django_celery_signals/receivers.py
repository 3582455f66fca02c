"""Declare receivers and connect them: ``receiver_task``, ``connect``, ``disconnect``, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.apps import apps
from django.dispatch import Signal

from . import changes, conf, contradictions, names, options
from .bridge import Spelling, Target, check_signal, each_signal, guarantee_of, send, target_of
from .declaring import body_and_class, is_task, make_task, name_of, running_option
from .durable.saving import is_save, make_atomic
from .exceptions import ConnectError
from .parameters import Body, check_batch, check_parameters
from .senders import check_model, check_senders, each_sender, label_of, several


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One entry of the registry: a receiver, connected to a signal and a sender."""

    receiver: str  # name of the task
    signal: Signal
    sender: Any  # as Django knows it; None: every sender
    dispatch_uid: Any
    options: options.SendingOptions


_connections: dict[tuple[Any, ...], Connection] = {}


def connections() -> list[Connection]:
    """Return what ``connect`` and ``receiver_task`` have connected; a plain ``signal.connect`` leaves no entry."""
    return list(_connections.values())


def receiver_task(
    signal: Signal | Iterable[Signal],
    /,
    *,
    sender: Any = None,
    dispatch_uid: Any = None,
    signal_name: str | None = None,
    subclasses: bool = False,
    **given: Any,
) -> Callable[[Any], Any]:
    """Make a function a Celery shared task and connect it to a signal; it then runs in a worker.

    Stacks like Django's ``@receiver``. An existing task is only connected. Connecting twice is harmless.

    Args:
        signal: one signal, or several.
        sender: as for ``Signal.connect``; also ``"app.Model"``, ``"app.Model.field"`` for a many-to-many relation's
            through model, and a list of these.
        dispatch_uid: as for ``Signal.connect``; tells apart two connections of one task to one signal and sender.
        signal_name: the name the signal travels under, where no module, class or dictionary of a module holds it.
        subclasses: also receive what subclasses of ``sender`` send.
        given: sending options of this connection, running options of the task, and any option of a Celery task.

    Raises:
        ConnectError: for a declaration that can never work.
    """
    signals = each_signal(signal)
    sending = {name: given.pop(name) for name in list(given) if name in options.NAMES}

    def declare(function: Any) -> Any:
        task = function if is_task(function) else make_task(function, given)
        if task is function and given:
            raise ConnectError(
                f"receiver_task: {task.name} is a task already, so {', '.join(sorted(given))} would be ignored. "
                "Give these options where the task is made: in its own decorator, or in the lowest @receiver_task."
            )
        where = {"dispatch_uid": dispatch_uid, "signal_name": signal_name, "subclasses": subclasses}
        _connect(signals, task, sender, where, sending)
        return task

    return declare


def connect(
    signal: Signal | Iterable[Signal],
    task: Any,
    /,
    *,
    sender: Any = None,
    dispatch_uid: Any = None,
    signal_name: str | None = None,
    subclasses: bool = False,
    **given: Any,
) -> None:
    """Connect a task to a signal, as ``signal.connect(task.delay, ...)`` does, with sending options.

    Args:
        signal: one signal, or several.
        task: a task of the class :class:`ReceiverTask`, or its ``delay``, ``apply_async`` or ``delay_on_commit``.
        sender: see :func:`receiver_task`, also for the arguments below.
        dispatch_uid: see there.
        signal_name: see there.
        subclasses: see there.
        given: sending options.

    Raises:
        ConnectError: for a connection that can never work.
    """
    where = {"dispatch_uid": dispatch_uid, "signal_name": signal_name, "subclasses": subclasses}
    _connect(signal, task, sender, where, given)


def disconnect(
    signal: Signal | Iterable[Signal],
    task: Any,
    /,
    *,
    sender: Any = None,
    dispatch_uid: Any = None,
    subclasses: bool = False,
) -> bool:
    """Undo a connection, however it was made; return whether there was one.

    Args:
        signal: as it was connected.
        task: the task, or any spelling of it.
        sender: as it was connected.
        dispatch_uid: as it was connected.
        subclasses: as it was connected.
    """
    name, senders, found = name_of(task), several(sender), []

    def undo(one: Signal, resolved: Any) -> None:
        key, django_sender, uid = _identity(name, one, resolved, dispatch_uid, subclasses)
        known = _connections.pop(key, None)
        gone = Signal.disconnect(one, _spelling(name), sender=django_sender, dispatch_uid=uid)
        found.append(gone or known is not None)

    for one in each_signal(signal):
        each_sender(senders, partial(undo, one), f"disconnect({name})", subclasses=subclasses)
    return any(found)


# The connection --------------------------------------------------------------------------------------------------


def _connect(
    signal: Signal | Iterable[Signal], task: Any, sender: Any, where: dict[str, Any], given: dict[str, Any]
) -> None:
    name = name_of(task)
    body, cls = body_and_class(task, name)
    place, signals, senders = f"receiver {name}", each_signal(signal), several(sender)
    own = options.merged_with_class(options.read(given, place), cls, name)
    contradictions.check_delay(own, running_option(name, cls, "expires"), place)
    each_sender(own.exclude or (), lambda _: None, f"{place}: exclude")
    _check_where(where, signals, place)
    together = {option: running_option(name, cls, option) for option in ("batch", "chunk_size")}
    for one in signals:
        if where["signal_name"]:
            names.name_signal(one, where["signal_name"])
        _check(one, name, body, own, senders, bool(together["batch"]))
        known = own.guarantee or (guarantee_of(own, one) if apps.apps_ready else None)
        contradictions.check_turns(own, bool(running_option(name, cls, "ordered")), one, known, place)
        contradictions.check_together(own, together, one, known, place)
        each_sender(
            senders, partial(_prepare, one, name, own, where["subclasses"]), place, subclasses=where["subclasses"]
        )
    for one in signals:
        link = partial(_link, one, name, own, where["dispatch_uid"], where["subclasses"])
        each_sender(senders, link, place, subclasses=where["subclasses"])


def _check_where(where: dict[str, Any], signals: list[Signal], place: str) -> None:
    signal_name, dispatch_uid = where["signal_name"], where["dispatch_uid"]
    if signal_name is not None and (not isinstance(signal_name, str) or not signal_name):
        raise ConnectError(f"{place}: signal_name={signal_name!r} must be a text such as 'shop:order_paid'.")
    if signal_name and len(signals) > 1:
        raise ConnectError(f"{place}: signal_name={signal_name!r} names one signal; connect them one by one.")
    if not options.is_hashable(dispatch_uid):
        raise ConnectError(f"{place}: dispatch_uid={dispatch_uid!r} must be hashable, such as a text.")


def _check(
    signal: Signal, name: str, body: Body | None, own: options.SendingOptions, senders: list[Any], is_batch: bool
) -> None:
    check_signal(signal, name)
    if is_batch:
        check_batch(name, body)
    else:
        check_parameters(signal, name, body, also=frozenset({"event"}))
    if own.when is not None:
        check_parameters(signal, f"receiver {name}: when=", (own.when, False))
    if own.key is not None:
        check_parameters(signal, f"receiver {name}: key=", (own.key, False))
    contradictions.check_against_signal(own, signal, senders, f"receiver {name}")
    check_senders(signal, senders, f"receiver {name}")


def _prepare(signal: Signal, name: str, own: options.SendingOptions, subclasses: bool, sender: Any) -> None:
    """Do with one sender all that may fail, before any is connected."""
    check_model(signal, sender, f"receiver {name}")
    if subclasses:
        own = options.of_family(own, sender, f"receiver {name}")
    if own.changed:
        changes.watch(sender, own.changed, f"receiver {name}")
    if is_save(signal, sender) and (own.guarantee or conf.default_guarantee()) == "durable":
        make_atomic(sender)


def _link(
    signal: Signal, name: str, own: options.SendingOptions, dispatch_uid: Any, subclasses: bool, sender: Any
) -> None:
    """Connect one signal and one sender, now that the sender is known; a repetition with other options replaces."""
    key, django_sender, uid = _identity(name, signal, sender, dispatch_uid, subclasses)
    if subclasses:
        own = options.of_family(own, sender, f"receiver {name}")
    known = _connections.get(key)
    if known is None or known.options != own:  # unknown, it may still be connected: by a plain signal.connect()
        Signal.disconnect(signal, _spelling(name), sender=django_sender, dispatch_uid=uid)
    _connections[key] = Connection(receiver=name, signal=signal, sender=sender, dispatch_uid=dispatch_uid, options=own)
    # Signal's own method: a ModelSignal would look a string up as a model, and each_sender() has done that.
    Signal.connect(signal, _spelling(name, own), sender=django_sender, weak=False, dispatch_uid=uid)
    if not names.signal_name(signal):
        names.name_signal(signal, f"connection:{name}:{label_of(sender)}")


def _identity(
    name: str, signal: Signal, sender: Any, dispatch_uid: Any, subclasses: bool
) -> tuple[tuple[Any, ...], Any, Any]:
    """Return the registry's key, and the sender and dispatch_uid by which Django knows the connection."""
    key = (name, id(signal), id(sender), dispatch_uid, subclasses)
    if not subclasses:
        return key, sender, dispatch_uid
    # With the sender's label, for to Django all of these have the same sender: None.
    own_uid = f"django_celery_signals:{name}:{label_of(sender)}:subclasses"
    return key, None, own_uid if dispatch_uid is None else f"{own_uid}:{dispatch_uid}"


def _spelling(name: str, own: options.SendingOptions | None = None) -> Spelling:
    target: Target = target_of(name)
    return Spelling(send, target, own=own)
