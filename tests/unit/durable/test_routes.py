"""Where Celery's routes lead: the queue that a row names is the one in which its message lies."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from django_celery_signals import ReceiverTask
from django_celery_signals.durable import routes
from django_celery_signals.durable.routes import queue_of
from tests.drain import take
from tests.making import Tasks
from tests.project.celery import disconnect
from tests.receiving import ignore


@pytest.fixture
def routed(celery_app: Celery) -> Any:
    """Sets ``task_routes``, and other settings of Celery's."""

    def routed(task_routes: Any = None, **settings: Any) -> None:
        celery_app.conf.update(task_routes=task_routes, **settings)
        disconnect()

    return routed


declared_on_the_task = pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")


def lies_in(app: Celery, queue: str) -> bool:
    return 1 == len(take(app, queue))


def named(app: Celery, receiver: str, options: dict[str, Any]) -> str | None:
    """Return where the library says that the messages of a name go."""
    return queue_of(app, app.tasks.get(receiver), receiver, options)


def published(app: Celery, task: Any, **options: Any) -> str | None:
    """Publish a message, and return where the library says that it goes."""
    found = named(app, task.name, options)
    task.apply_async(**options)
    return found


def test_without_a_route(celery_app: Celery, tasks: Tasks) -> None:
    """A task that says nothing has the default queue."""
    queue = published(celery_app, tasks.shared())

    assert queue == celery_app.conf.task_default_queue
    assert lies_in(celery_app, queue)


@pytest.mark.parametrize("route", ["mail", {"queue": "mail"}], ids=["name", "dict"])
def test_a_route_by_name(route: Any, celery_app: Celery, tasks: Tasks, routed: Any) -> None:
    """``task_routes`` names the queue for a task, or for a pattern."""
    routed({"tests.made_*": route})

    assert "mail" == published(celery_app, tasks.shared())
    assert lies_in(celery_app, "mail")


@declared_on_the_task
def test_the_queue_of_a_connection(celery_app: Celery, tasks: Tasks) -> None:
    """The option ``queue`` of the sending is where it goes."""
    assert "slow_lane" == published(celery_app, tasks.shared(queue="mail"), queue="slow_lane")
    assert lies_in(celery_app, "slow_lane")


@declared_on_the_task
def test_the_queue_of_a_task(celery_app: Celery, tasks: Tasks) -> None:
    """A task may declare its queue, as Celery has it."""
    assert "mail" == published(celery_app, tasks.shared(queue="mail"))
    assert lies_in(celery_app, "mail")


def test_the_sending_has_the_last_word(celery_app: Celery, tasks: Tasks, routed: Any) -> None:
    """Where Celery prefers the option to the route, so does the row."""
    routed({"tests.made_*": "mail"})

    assert "slow_lane" == published(celery_app, tasks.shared(), queue="slow_lane")
    assert lies_in(celery_app, "slow_lane")


def test_a_route_that_is_a_function(celery_app: Celery, tasks: Tasks, routed: Any) -> None:
    """A project's own function is given the task and the options of the sending, as when it is published."""
    seen: list[Any] = []

    def route(name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any = None, **more: Any) -> Any:
        seen.append((name, options.get("priority"), task))
        return {"queue": "urgent" if options.get("priority") else "mail"}

    routed(route)
    task = tasks.shared()

    assert "urgent" == published(celery_app, task, priority=5, expires=None)
    assert lies_in(celery_app, "urgent")
    assert "mail" == published(celery_app, task)
    assert [(task.name, 5), (task.name, None)] == [told[:2] for told in seen[::2]] == [told[:2] for told in seen[1::2]]
    assert all(told[2].name == task.name for told in seen)


def test_a_declared_queue(celery_app: Celery, tasks: Tasks, routed: Any) -> None:
    """A queue with an exchange and a routing key of its own is known by its name."""
    queue = Queue("feed", Exchange("feeds", type="topic"), routing_key="feed.#")
    routed({"tests.made_*": {"queue": "feed", "routing_key": "feed.new"}}, task_queues=[queue])

    assert "feed" == published(celery_app, tasks.shared())
    assert lies_in(celery_app, "feed")


@declared_on_the_task
@pytest.mark.parametrize("place", ["options", "task", "route"])
def test_an_exchange_leads_anywhere(place: str, celery_app: Celery, tasks: Tasks, routed: Any) -> None:
    """Where the route names an exchange, what is bound to it is the broker's affair, and no queue is known."""
    where = {"exchange": "fan", "routing_key": "out"}
    options, declared = (where if place == "options" else {}), (where if place == "task" else {})
    if place == "route":
        routed({"tests.made_*": {**where, "queue": "mail"}})

    task = tasks.shared(**declared)

    assert named(celery_app, task.name, options) is None


def test_a_route_without_a_queue(celery_app: Celery, tasks: Tasks, routed: Any) -> None:
    """A route that names an exchange and no queue has no name either."""
    routed({"tests.made_*": {"exchange": "fan", "routing_key": "out"}})

    assert named(celery_app, tasks.shared().name, {}) is None


def test_a_route_without_anything(celery_app: Celery, tasks: Tasks, routed: Any) -> None:
    """A route that says something else, such as a priority, leaves the queue to Celery, which has the default one."""
    routed({"tests.made_*": {"priority": 5}})

    assert celery_app.conf.task_default_queue == published(celery_app, tasks.shared())
    assert lies_in(celery_app, celery_app.conf.task_default_queue)


def test_a_task_that_the_app_does_not_have(celery_app: Celery, routed: Any) -> None:
    """A receiver that is unknown here has the routes of its name."""
    routed({"shop.*": "mail"})

    assert "mail" == named(celery_app, "shop.elsewhere", {})
    assert celery_app.conf.task_default_queue == named(celery_app, "tests.nowhere", {})


def test_a_task_under_a_former_name(celery_app: Celery, tasks: Tasks, routed: Any) -> None:
    """A receiver that was renamed since has the routes of its name now, by which Celery publishes it."""
    routed({"shop.*": "old", "tests.made_*": "new"})
    task = celery_app.task(base=ReceiverTask, name=tasks.name(), former_names=["shop.former"])(ignore)
    tasks.names.append("shop.former")

    assert "new" == named(celery_app, "shop.former", {}) == named(celery_app, task.name, {})


def test_a_route_that_raises(celery_app: Celery, tasks: Tasks, routed: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An error in a project's route is logged and leaves the queue unknown; to publish will raise it again."""
    error = LookupError("no such route")

    def route(*args: Any, **options: Any) -> Any:
        raise error

    routed(route)
    task = tasks.shared()

    assert named(celery_app, task.name, {}) is None
    [record] = [record for record in caplog.records if record.name == routes.logger.name]
    assert (logging.WARNING, (task.name, error)) == (record.levelno, record.args)


def test_a_queue_that_celery_may_not_make(celery_app: Celery, tasks: Tasks, routed: Any) -> None:
    """With ``task_create_missing_queues`` off, a name that is not among the queues is unknown."""
    routed(None, task_queues=[Queue("mail")], task_create_missing_queues=False)

    assert named(celery_app, tasks.shared().name, {"queue": "mial"}) is None
    assert "mail" == named(celery_app, tasks.shared().name, {"queue": "mail"})


def test_settings_that_cannot_be_read(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether routes are fixed may not be known, either; that breaks no sending."""

    def fail(router: Any) -> bool:
        raise ValueError("task_queues")

    monkeypatch.setattr(routes, "_are_fixed", fail)
    task = celery_app.task(base=ReceiverTask, name="tests.routes.unfixed")(ignore)

    assert celery_app.conf.task_default_queue == named(celery_app, task.name, {})
