"""Where Celery's routes lead: the name of the queue that a receiver's messages wait in."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from celery import Celery
from celery.app.routes import MapRoute, Router

logger = logging.getLogger(__name__)

_OF_ROUTES = ("queue", "exchange", "routing_key")


def queue_of(app: Celery, task: Any, receiver: str, options: dict[str, Any]) -> str | None:
    """Return the name of the queue that a receiver's messages go to.

    Args:
        app: the Celery app that publishes.
        task: the receiver; None when the app does not have it.
        receiver: name of the task.
        options: of ``apply_async``.

    Returns:
        None, when the route names an exchange, or cannot be told; publishing will say why.
    """
    router = _fixed_router(app)
    if task is None or router is None:
        return _queue_of(app, task, receiver, options)
    known = vars(task).setdefault("_queues", {})
    get = options.get
    kind = (get("queue"), get("exchange"), get("routing_key"), router)
    name: str | None = known.get(kind)
    if name is None:  # what cannot be told may be told later
        name = known[kind] = _queue_of(app, task, receiver, options)
    return name


def _fixed_router(app: Celery) -> Any | None:
    """Return what routes by the names of tasks alone, so that its answers can be remembered."""
    try:
        router = app.amqp.router
        return router if _are_fixed(router) else None
    except Exception:  # of the project's settings, which _queue_of() will meet as well, and tell of
        return None


def are_fixed(app: Celery) -> bool:
    """Tell whether routes go by the names of tasks alone, and not by what a message holds, or the hour."""
    return _are_fixed(app.amqp.router)


@lru_cache
def _are_fixed(router: Any) -> bool:
    kind = type(router)
    return kind is Router and all(type(route) is MapRoute for route in router.routes)


def _queue_of(app: Celery, task: Any, receiver: str, options: dict[str, Any]) -> str | None:
    declared = {name: getattr(task, name, None) for name in _OF_ROUTES} if task is not None else {}
    given = {name: value for name, value in {**declared, **options}.items() if value is not None}
    try:
        route = app.amqp.router.route(given, task.name if task is not None else receiver, (), {}, task)
        queue = None if route.get("exchange") else route.get("queue") or app.amqp.default_queue
    except Exception as error:  # a route is the project's own code
        logger.warning("The route of %s cannot be told: %r", receiver, error)
        return None
    return str(queue.name) if queue is not None else None
