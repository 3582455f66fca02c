"""``ReceiverTask``: a Celery task that a Django signal can call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from celery.contrib.django.task import DjangoTask

from .bridge import connectable, is_sending, send, target_of
from .conf import is_positive
from .contradictions import check_delay
from .durable.failing import hooks
from .durable.reference import MOST, is_chunk
from .exceptions import ConnectError
from .execution import call, execute
from .options import NOTHING, RUNNING_NAMES, merged_with_class
from .policy import seconds_until
from .together import execute_together
from .wire import ARGUMENT, summary_of

AFTER_FAILURE = ("block", "park")
ON_MISSING = ("discard", "retry", "fail")
# Deliveries in one message, at most: each has a savepoint, and of more PostgreSQL forgets which it can look up in
# memory (64 subtransactions that write: PGPROC_MAX_CACHED_SUBXIDS). A batch has none.
MOST_IN_CHUNK, MOST_IN_BATCH, BATCH = 50, MOST, 100
SPELLINGS = ("delay", "apply_async", "delay_on_commit", "apply_async_on_commit")


class ReceiverTask(DjangoTask):  # type: ignore[type-arg]
    """Base of tasks that can be connected to signals: ``@shared_task(base=ReceiverTask)``, or for a whole project
    ``Celery("proj", task_cls="django_celery_signals:ReceiverTask")``.

    One rule for ``task(...)``, ``delay``, ``apply_async`` and ``delay_on_commit``: a call with ``signal=`` a Django
    signal came from one, and is sent; it returns None. Every other call is Celery's own. ``run`` is always the
    function itself.
    """

    abstract = True
    Request = "django_celery_signals.request:EventRequest"

    #: Run the receiver in a transaction on the event's database: its work there happens as a whole or not at all.
    atomic: bool = True
    #: What happens when an instance that travelled by reference is gone: "discard", "retry" or "fail".
    on_missing: str = "discard"
    #: Names the task had before, whose messages it still takes.
    former_names: tuple[str, ...] = ()
    #: Seconds for which a durable delivery is kept after success; 0: it is deleted.
    retain: float = 0
    #: Take the events of a key, which is the instance unless key= says otherwise, one by one and the oldest first.
    ordered: bool = False
    #: What a failed delivery does to its key: "block" or "park"; by default it blocks the key of an ordered receiver.
    #: Written as on_failure="park", a name that Celery has for a method.
    after_failure: str | None = None
    #: Deliveries that the relay may put into one message where many wait; the worker runs each by itself.
    chunk_size: int | None = None
    #: Give the receiver the deliveries of a message all at once, as ``events``.
    batch: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep a project's own version of a calling method connectable."""
        super().__init_subclass__(**options)
        _part_from_handler(cls)
        for name in SPELLINGS:
            method = inspect.getattr_static(cls, name)
            if inspect.isfunction(method):
                setattr(cls, name, connectable(method))

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run here and now; in a worker, run what the message says."""
        request = self.request
        if is_sending(kwargs) and kwargs["signal"] is not (request.kwargs or {}).get("signal"):
            return send(target_of(str(self.name)), NOTHING, kwargs)
        if request.called_directly:
            return super().__call__(*args, **kwargs)
        if ARGUMENT in kwargs:
            carried = kwargs[ARGUMENT]
            return execute_together(self, carried) if is_chunk(carried) else execute(self, carried)
        return call(self, *args, **kwargs)

    @connectable
    def delay(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the task in a worker; connected to a signal, be its receiver."""
        return DjangoTask.delay(self, *args, **kwargs)

    @connectable
    def delay_on_commit(self, /, *args: Any, **kwargs: Any) -> None:
        """Call the task in a worker after the commit; connected to a signal, be its receiver."""
        DjangoTask.delay_on_commit(self, *args, **kwargs)

    @connectable
    def apply_async_on_commit(self, /, *args: Any, **kwargs: Any) -> None:
        """Call the task in a worker after the commit, with options; connected to a signal, be its receiver."""
        DjangoTask.apply_async_on_commit(self, *args, **kwargs)

    @connectable
    def apply_async(self, /, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Call the task in a worker, with Celery's options; connected to a signal, be its receiver."""
        if kwargs and ARGUMENT in kwargs:
            if "argsrepr" not in options:  # of a retry
                options["argsrepr"] = summary_of(kwargs[ARGUMENT])
            options.update(kwargsrepr="{}", ignore_result=True, add_to_parent=False)
        return DjangoTask.apply_async(self, args, kwargs, *more, **options)

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Any:
        """Return what ``retry()`` sends; of a durable delivery nothing, for the row has the time of the next run."""
        hold = (request or self.request).__dict__.get("hold")
        if hold is None:
            return super().signature_from_request(request, *args, **options)
        hold.asked = True
        return _Postponed(hold, options.get("eta") or options.get("countdown"))

    def on_failed(self, function: Any) -> Any:
        """Decorate what is called when a durable delivery of this receiver is given up.

        It is given what it names of ``event`` (None, when that cannot be read) and ``error``, and runs in the
        transaction that notes the failure: in a worker, or in the relay when no worker survives the receiver.
        """
        place = (function.__module__, function.__qualname__)
        others = [other for other in hooks[str(self.name)] if (other.__module__, other.__qualname__) != place]
        hooks[str(self.name)] = [*others, function]
        return function

    @property
    def blocks_key(self) -> bool:
        """Whether a delivery that has failed keeps the younger ones of its key waiting, until someone decides."""
        return self.ordered if self.after_failure is None else self.after_failure == "block"

    @property
    def most_together(self) -> int:
        """How many deliveries one message may refer to; 1: none are put together."""
        return self.chunk_size or (BATCH if self.batch else 1)

    @property
    def override_max_retries(self) -> int | None:
        """The limit of the last ``retry()`` of the running request.

        Celery keeps it on the task, where another thread's request would find it, and the next one of this thread.
        """
        try:
            limit: int | None = self.request.__dict__["override_max_retries"]
        except KeyError:
            raise AttributeError("This request has not been retried yet.") from None
        return limit

    @override_max_retries.setter
    def override_max_retries(self, limit: int | None) -> None:
        self.request.__dict__["override_max_retries"] = limit

    @override_max_retries.deleter
    def override_max_retries(self) -> None:
        del self.request.__dict__["override_max_retries"]

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check the options, take messages under former names, and exempt events from Celery's argument check.

        Raises:
            ConnectError: for an option that cannot be.
        """
        super().on_bound(app)
        _part_from_handler(cls)  # once more: Celery's annotations come after the class
        check_delay(merged_with_class(NOTHING, cls, str(cls.name)), cls.expires, f"task {cls.name}")
        given = {name: getattr(cls, name) for name in RUNNING_NAMES}
        check_running({**given, "on_failure": cls.after_failure}, f"task {cls.name}")
        # app.tasks would finish loading the app while it is still making this very task.
        for name in cls.former_names:
            app._tasks.setdefault(name, app._tasks[cls.name])  # type: ignore[attr-defined]
        _let_events_pass(cls)


def _part_from_handler(cls: Any) -> None:
    """Keep ``on_failure="park"`` under a name of its own, and leave Celery the handler that it calls by that name."""
    if not callable(cls.on_failure):
        cls.after_failure = cls.on_failure or cls.after_failure
        handlers = (vars(base).get("on_failure") for base in cls.__mro__)
        cls.on_failure = next(filter(callable, handlers))


class _Postponed:
    """What ``retry()`` believes to send."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}

    def __init__(self, hold: Any, when: Any) -> None:
        self.hold, self.when = hold, when

    def apply_async(self) -> None:
        self.hold.retry_in = seconds_until(self.when)


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "atomic": (lambda value: isinstance(value, bool), "True or False"),
    "on_missing": (lambda value: value in ON_MISSING, " or ".join(map(repr, ON_MISSING))),
    "former_names": (_are_names, "a list of names"),
    "retain": (lambda value: value == 0 or is_positive(value), "a number of seconds"),
    "ordered": (lambda value: isinstance(value, bool), "True or False"),
    "chunk_size": (
        lambda value: value is None or (type(value) is int and 1 <= value <= MOST_IN_BATCH),
        f"a whole number, 1 to {MOST_IN_CHUNK}, or with batch=True to {MOST_IN_BATCH}",
    ),
    "batch": (lambda value: isinstance(value, bool), "True or False"),
    "on_failure": (
        lambda value: value is None or value in AFTER_FAILURE or callable(value),  # Celery's handler of that name
        " or ".join(map(repr, AFTER_FAILURE)),
    ),
}


def check_running(given: Mapping[str, Any], where: str) -> None:
    """Check the running options among a task's options.

    Args:
        given: options of a task, of any kind.
        where: what to call the place in an error.

    Raises:
        ConnectError: for a value that cannot be.
    """
    for name in RUNNING_NAMES:
        accepts, wanted = _RULES[name]
        if name in given and not accepts(given[name]):
            raise ConnectError(f"{where}: {name}={given[name]!r} cannot be; it must be {wanted}.")
    _check_together(given, where)


def _check_together(given: Mapping[str, Any], where: str) -> None:
    size, batch = given.get("chunk_size") or 1, given.get("batch", False)
    if given.get("ordered") and (batch or size > 1):
        word = "batch=True" if batch else f"chunk_size={size}"
        raise ConnectError(
            f"{where}: {word} puts deliveries together, but with ordered=True they take turns, one by one. Leave one "
            "of the two out."
        )
    if size > MOST_IN_CHUNK and not batch:
        raise ConnectError(
            f"{where}: chunk_size={size} is too many: each delivery has a savepoint in one transaction, and "
            f"{MOST_IN_CHUNK} is what databases bear well. A receiver with batch=True may have {MOST_IN_BATCH}."
        )


def _let_events_pass(cls: Any) -> None:
    """Celery checks a call against the function's signature before it publishes; an envelope has its own."""
    check = getattr(cls, "__header__", None)
    if check is None or getattr(check, "lets_events_pass", False):
        return

    def check_unless_event(*args: Any, **kwargs: Any) -> Any:
        return None if ARGUMENT in kwargs else check(*args, **kwargs)

    check_unless_event.lets_events_pass = True  # type: ignore[attr-defined]
    cls.__header__ = staticmethod(check_unless_event)
