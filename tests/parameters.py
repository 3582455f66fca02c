"""One suite, every database and every broker: the decorators ``@each_database`` and ``@each_broker``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.services import absent

DATABASES = ("default", "other", "postgres", "mariadb")
BROKERS = ("memory", "rabbitmq", "redis")  # usable within one process
DURABLE_BROKERS = ("memory", "rabbitmq", "quorum", "redis")  # the same, with both of RabbitMQ's kinds of queues
WORKER_BROKERS = ("filesystem", "rabbitmq", "redis")  # usable between processes


def each_database(*aliases: Any, transaction: bool = True, also: Sequence[str] = ()) -> Any:
    """Run a test once per database; it gets the name of the alias as ``alias``.

    Args:
        aliases: all of them, if none is named.
        transaction: real transactions, the tables are emptied afterwards; or else all within one that is rolled back.
        also: aliases that every run uses besides its own.
    """

    def parameter(alias: str) -> Any:
        mark = pytest.mark.django_db(databases=list({alias, *also}), transaction=transaction)
        return pytest.param(alias, marks=[mark, *_skips(alias, *also)], id=alias)

    return _decorator("alias", aliases, DATABASES, parameter)


def each_broker(*names: Any) -> Any:
    """Run a test once per broker; it gets the :class:`~tests.brokers.Broker` as ``broker``."""
    return _decorator("broker", names, BROKERS, _broker_parameter, indirect=True)


def each_durable_broker(*names: Any) -> Any:
    """Like ``@each_broker``, with RabbitMQ's quorum queues as one more."""
    return _decorator("broker", names, DURABLE_BROKERS, _broker_parameter, indirect=True)


def each_worker_broker(*names: Any) -> Any:
    """Like ``@each_broker``, for tests in which a worker is a process of its own."""
    return _decorator("broker", names, WORKER_BROKERS, _broker_parameter, indirect=True)


def needs(*services: str) -> pytest.MarkDecorator:
    """Skip a test where a service is missing, as in ``@needs("postgres")``."""
    reasons = [absent()[name] for name in services if name in absent()]
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))


def _broker_parameter(name: str) -> Any:
    return pytest.param(name, marks=_skips("rabbitmq" if name == "quorum" else name), id=name)


def _skips(*services: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.skip(reason=absent()[name]) for name in services if name in absent()]


def _decorator(
    argument: str, names: tuple[Any, ...], every: Sequence[str], parameter: Callable[[str], Any], **options: Any
) -> Any:
    bare = len(names) == 1 and callable(names[0])
    chosen = every if bare or not names else names
    if unknown := set(chosen) - {*DATABASES, *DURABLE_BROKERS, *WORKER_BROKERS}:
        raise ValueError(f"There is no {', '.join(map(repr, sorted(unknown)))} to choose.")
    decorate = pytest.mark.parametrize(argument, [parameter(name) for name in chosen], **options)
    return decorate(names[0]) if bare else decorate
