"""The project's Celery app, a connection that is bounded in time, and what errors mean."""

from __future__ import annotations

from typing import Any

import pytest
from amqp.exceptions import ConnectionForced, NotFound
from celery import Celery
from django.test import override_settings
from kombu.exceptions import EncodeError, OperationalError

from django_celery_signals import PublishError, PublishTimeout
from django_celery_signals import broker as module
from django_celery_signals.broker import connection_for, is_eager, is_outage, project_app

TIMEOUT = 0.3
CONFIRMED = {"confirm_publish": True, "read_timeout": TIMEOUT, "write_timeout": TIMEOUT}
ONCE = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}
SHORT = override_settings(DJANGO_CELERY_SIGNALS={"PUBLISH_TIMEOUT": TIMEOUT})


# The connection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://broker//", CONFIRMED),
        ("pyamqp://broker//", CONFIRMED),
        ("redis://broker/0", {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}),
        ("memory://", {}),
    ],
)
@SHORT
def test_connection_is_bounded_where_the_transport_can(celery_app: Celery, url: str, expected: dict[str, Any]) -> None:
    """RabbitMQ confirms what it took, Redis gets its timeouts, and nobody tries more than once."""
    celery_app.conf.broker_url = url

    connection = connection_for(celery_app)

    assert {**expected, **ONCE, "connect_retries_timeout": TIMEOUT} == connection.transport_options
    assert TIMEOUT == connection.connect_timeout


@pytest.mark.parametrize("given", [{}, {"confirm_publish": True}], ids=["alone", "project"])
@SHORT
def test_connection_without_a_confirm_for_each(celery_app: Celery, given: dict[str, Any]) -> None:
    """Who waits for many confirms at once has none for each message, unless the project wants them."""
    celery_app.conf.broker_url = "amqp://broker//"
    celery_app.conf.broker_transport_options = given

    options = connection_for(celery_app, confirms=False).transport_options

    assert {**CONFIRMED, "confirm_publish": bool(given)} == {name: options[name] for name in CONFIRMED}


@SHORT
def test_connection_keeps_the_projects_options(celery_app: Celery) -> None:
    """The project's own transport options win over the publisher's, except for the number of tries."""
    celery_app.conf.broker_url = "redis://broker/0"
    celery_app.conf.broker_transport_options = {"socket_timeout": 9, "global_keyprefix": "mine:", "max_retries": 99}

    options = connection_for(celery_app).transport_options

    assert (9, "mine:", 0) == (options["socket_timeout"], options["global_keyprefix"], options["max_retries"])


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
@SHORT
def test_connection_tries_every_host_once(celery_app: Celery, scheme: str) -> None:
    """Of several brokers each is tried once, for a share of the time, so that a silent one leaves some to the next."""
    celery_app.conf.broker_url = ";".join(f"{scheme}://{host}/" for host in ("one", "two", "three"))

    connection = connection_for(celery_app)

    assert (2, TIMEOUT) == tuple(map(connection.transport_options.get, ("max_retries", "connect_retries_timeout")))
    assert TIMEOUT > 3 * connection.connect_timeout > TIMEOUT / 2
    assert TIMEOUT > 3 * connection.transport_options.get("socket_timeout", connection.connect_timeout)


# Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OperationalError("kombu's"), True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (ConnectionForced("shutdown"), True),
        (PublishTimeout("not within 2 s"), True),
        (PublishError("no such task"), False),
        (NotFound("no exchange"), False),
        (EncodeError("not JSON"), False),
        (ValueError(), False),
        (SystemExit(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_the_broker_or_of_the_message(error: BaseException, expected: bool) -> None:
    """What speaks of the broker is an outage, for every message; anything else concerns the one message."""
    assert expected is is_outage(error)


# The app -----------------------------------------------------------------------------------------------------------


def test_project_app_is_the_current_one(celery_app: Celery) -> None:
    """The current app is the project's when it was configured."""
    assert celery_app is project_app()


def test_project_app_past_celerys_fallback(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread for which Celery fell back to an unconfigured app publishes through the project's all the same."""
    fallback = Celery("fallback", loader="default", set_as_current=False)
    monkeypatch.setattr(module, "get_current_app", lambda: fallback)
    monkeypatch.setattr(module, "_get_active_apps", lambda: {fallback, celery_app})

    assert celery_app is project_app()
    fallback.close()


def test_project_app_is_not_guessed(celery_app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two apps to choose from, or none, Celery's own choice stands."""
    fallback = Celery("fallback", loader="default", set_as_current=False)
    second = Celery("second", set_as_current=False)
    monkeypatch.setattr(module, "get_current_app", lambda: fallback)

    for others in (set(), {celery_app, second}):
        monkeypatch.setattr(module, "_get_active_apps", lambda others=others: {fallback, *others})
        assert fallback is project_app()
    fallback.close()
    second.close()


# Eager -------------------------------------------------------------------------------------------------------------


def test_eager_by_the_apps_own_setting(celery_app: Celery) -> None:
    """What is set on the app counts from then on, and no longer than that."""
    assert not is_eager(celery_app)
    celery_app.conf.task_always_eager = True
    assert is_eager(celery_app)
    celery_app.conf.task_always_eager = False
    assert not is_eager(celery_app)
    celery_app.conf.update(task_always_eager=True)
    assert is_eager(celery_app)


def test_eager_by_djangos_settings(celery_app: Celery) -> None:
    """What Django's settings say counts as long as they say so, as within a test."""
    assert not is_eager(celery_app)
    with override_settings(CELERY_TASK_ALWAYS_EAGER=True):
        assert is_eager(celery_app)
        assert is_eager(celery_app)
        celery_app.conf.task_always_eager = False
        assert not is_eager(celery_app)
        del celery_app.conf.changes["task_always_eager"]
        assert is_eager(celery_app)
    assert not is_eager(celery_app)


def test_eager_of_an_app_that_is_not_loaded() -> None:
    """An app that has read no settings yet has those that it was made with; another app has its own."""
    assert is_eager(Celery("made", task_always_eager=True, set_as_current=False))
    assert not is_eager(Celery("other", set_as_current=False))
