"""What ``apply_async`` would publish, found out once and filled in for each message.

Celery works out every header of every message anew, which takes it longer than the broker takes to have it. Of the
messages to one task few things differ. Where something looks on, or may decide by what a message holds (a listener to
Celery's signals, a router, a task's own ``apply_async``), there is no template, and Celery itself publishes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from weakref import WeakSet

from celery import Celery, Task, signals
from celery.app.amqp import AMQP
from celery.contrib.django.task import DjangoTask
from celery.utils import uuid
from kombu import serialization

from .durable.routes import are_fixed
from .properties import home_of, is_plain, properties_of
from .wire import ARGUMENT

_ROUTING = ("queue", "priority")  # of the options, those that change where a message goes
_KNOWN = {*_ROUTING, "task_id", "retries", "root_id", "parent_id", "expires"}
_OWN = frozenset({"id", "retries", "root_id", "parent_id", "argsrepr"})  # headers that each message has for itself
_PLACE = "__place__"  # where a message's own values belong
_in_json = json.JSONEncoder(check_circular=False).encode  # dumps() asks of each message whether it holds itself
_BEFORE, _AFTER, _SENT = signals.before_task_publish, signals.after_task_publish, signals.task_sent


class Template:
    """The publications for one task, but for what differs from message to message."""

    def __init__(self, body: Any, options: dict[str, Any]) -> None:
        """Keep what was recorded.

        Args:
            body: of the message, with a place where its argument belongs.
            options: of ``kombu.Producer.publish``.
        """
        kind, encoding, text = serialization.dumps(body, options.pop("serializer"))
        if not isinstance(encoding, str):  # which kombu would fill in, but not for a message that Celery makes
            raise ValueError(f"The serializer of {kind} names no encoding.")
        before, after = text.split(json.dumps(_PLACE))
        self._before, self._after = before, after
        self._headers = options.pop("headers")
        self._declare = options.pop("declare")
        self._declared: WeakSet[Any] = WeakSet()  # channels
        self._each_time = [one for one in self._declare or () if not one.can_cache_declaration]  # may vanish by itself
        self._options = {**options, "content_type": kind, "content_encoding": encoding}
        self._properties = properties_of(self._headers, _OWN, self._options)

    def filled(self, app: Celery, argument: Any, given: Mapping[str, Any], summary: str) -> tuple[str, dict[str, Any]]:
        """Return a message's body, and its options of ``kombu.Producer.publish``.

        Args:
            app: that publishes.
            argument: what the message carries.
            given: the message's options.
            summary: what was sent, in words.
        """
        own_id = given.get("task_id") or uuid()
        headers = self._headers.copy()
        headers["id"] = own_id
        headers["retries"] = given.get("retries", 0)
        headers["root_id"] = given.get("root_id") or own_id
        headers["parent_id"] = given.get("parent_id")
        headers["argsrepr"] = summary
        options = self._options.copy()
        options["headers"] = headers
        options["argsrepr"] = summary  # which Celery lets through
        options["correlation_id"] = own_id
        options["reply_to"] = app.thread_oid
        return f"{self._before}{_in_json(argument)}{self._after}", options

    def publish(self, producer: Any, body: str, options: dict[str, Any]) -> None:
        """Publish what was filled in; what it needs is declared once in a channel, as far as Celery does that.

        Raises:
            kombu.exceptions.OperationalError: when the broker does not take it.
        """
        connection = producer.connection  # which a broker that says goodbye takes from the channel
        try:
            channel = producer.channel
            declare = (self._each_time if channel in self._declared else self._declare) or ()
            if self._properties is not None and is_plain(producer, channel):
                for entity in declare:
                    producer.maybe_declare(entity)
                self._properties.publish(channel, body, options)
            else:
                producer.publish(body, declare=list(declare), **options)
            self._declared.add(channel)
        except Exception:
            with connection._reraise_as_library_errors():
                raise


def template_for(app: Celery, task: Any, options: Mapping[str, Any]) -> Template | None:
    """Return the template of a task's messages with some options of ``apply_async``; None where there can be none."""
    amqp = app.amqp  # which to look up takes as long as all the rest
    if not _KNOWN.issuperset(options) or not _is_plain(app, amqp, task, type(task)):
        return None
    if not (options.get("root_id") and options.get("parent_id")) and app.current_worker_task:
        return None  # Celery takes more of a task that is running
    if options.get("expires", task.expires) is not None:  # the broker is told how much time is left
        return None
    try:
        router = amqp.router
    except Exception:  # of the project's settings, which Celery will meet as well, and tell of
        return None
    templates = vars(task).setdefault("_templates", {})
    routing = options.get("queue"), options.get("priority")
    kind = (*routing, os.getpid(), router)  # a forked child has another name, which is its "origin"
    if kind not in templates:
        templates[kind] = _template(app, task, {name: options[name] for name in _ROUTING if name in options})
    return templates[kind]  # type: ignore[no-any-return]


def _is_plain(app: Celery, amqp: Any, task: Any, cls: Any) -> bool:
    """Tell whether nobody but Celery has a hand in what is published for a task."""
    if _BEFORE.receivers or _AFTER.receivers or _SENT.receivers:
        return False
    if "apply_async" in vars(task) or "send_task" in vars(app):
        return False
    is_own = _are_own(cls.apply_async, DjangoTask.apply_async, cls.shadow_name, type(app).send_task)
    return is_own and type(amqp) is AMQP


@lru_cache
def _are_own(apply_async: Any, celerys: Any, shadow_name: Any, send_task: Any) -> bool:
    homes = [home_of(function) for function in (apply_async, celerys, shadow_name, send_task)]
    return homes == [f"{__package__}.task", Task.__module__, Task.__module__, Celery.__module__]


class _Recorder:
    """A producer that takes down what it is to publish."""

    def __init__(self, app: Celery) -> None:
        self.connection = app.connection_for_write()  # which connects to nothing
        self.taken: list[tuple[Any, dict[str, Any]]] = []

    def publish(self, body: Any, **options: Any) -> None:
        self.taken.append((body, options))


def _template(app: Celery, task: Any, routing: dict[str, Any]) -> Template | None:
    if app.conf.task_always_eager or app.conf.task_send_sent_event or not are_fixed(app):
        return None
    recorder = _Recorder(app)
    try:
        apply_plainly(task, _PLACE, recorder, {"task_id": _PLACE, "expires": None, **routing}, _PLACE)
        ((body, options),) = recorder.taken
        return Template(body, options)
    except Exception:  # what cannot be published will say so when it is
        return None


def apply_plainly(task: Any, argument: Any, producer: Any, options: Mapping[str, Any], summary: str) -> None:
    """Have Celery publish a message, once.

    Args:
        task: what it is for.
        argument: what the message carries.
        producer: of kombu; Celery's own if it is None.
        options: of ``apply_async``.
        summary: what was sent, in words.
    """
    options = {"retry": False, "producer": producer, "argsrepr": summary, **options}
    task.apply_async(kwargs={ARGUMENT: argument}, **options)
