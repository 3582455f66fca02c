"""A port in front of a broker that misbehaves on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from chaos.proxy import Proxy
from tests.brokers import Broker

_DEFAULT_PORTS = {"amqp": 5672, "redis": 6379}


@contextmanager
def in_front_of(broker: Broker) -> Iterator[Proxy]:
    """Open a port in front of a broker."""
    parts = urlsplit(broker.url)
    proxy = Proxy(parts.port or _DEFAULT_PORTS[parts.scheme], parts.hostname or "127.0.0.1")
    try:
        yield proxy
    finally:
        proxy.close()


def settings_through(proxy: Proxy, broker: Broker) -> dict[str, Any]:
    """Return the Celery settings that lead to a broker through a proxy."""
    parts = urlsplit(broker.url)
    user, at, _ = parts.netloc.rpartition("@")
    url = parts._replace(netloc=f"{user}{at}127.0.0.1:{proxy.port}").geturl()
    return {**broker.settings(), "broker_url": url}
