"""A port in front of a broker that misbehaves on purpose: it refuses, never answers, is slow, or breaks off."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from tests.brokers import Broker

_DEFAULT_PORTS = {"amqp": 5672, "redis": 6379}


class Peer:
    """A TCP port in front of a server. It begins by passing everything on."""

    def __init__(self, host: str, port: int) -> None:
        """Listen on a free port of this machine.

        Args:
            host: of the server behind.
            port: of the server behind.
        """
        self._behind = (host, port)
        self._delay, self._silent, self._ending = 0.0, False, threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = _bound(0)
        self.port = int(self._listener.getsockname()[1])
        self._listen()

    def be_slow(self, seconds: float) -> None:
        """Hold every chunk back for a while, in both directions."""
        self._delay = seconds

    def be_silent(self) -> None:
        """Accept, and swallow whatever comes, also on the connections that exist."""
        self._silent = True

    def refuse(self) -> None:
        """Break off every connection and refuse new ones."""
        self._stop_listening()
        self.cut()
        self._listener = _bound(self.port)  # bound but not listening: nobody else gets the port

    def recover(self) -> None:
        """Break off what is there and pass everything on again."""
        self._delay, self._silent = 0.0, False
        self.refuse()
        self._listen()

    def cut(self) -> None:
        """Break off every connection, as a restart of the server does."""
        while self._sockets:
            with suppress(OSError):
                self._sockets[-1].shutdown(socket.SHUT_RDWR)
            self._sockets.pop().close()

    def close(self) -> None:
        """End everything."""
        self._ending.set()
        self._stop_listening()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        self.cut()

    def _listen(self) -> None:
        self._listener.listen()
        self._start(self._accept, self._listener)

    def _stop_listening(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def _start(self, function: Any, *args: Any) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._sockets.append(client)
                if not self._silent:
                    self._join(client)

    def _join(self, client: socket.socket) -> None:
        server = socket.create_connection(self._behind)
        self._sockets.append(server)
        self._start(self._pass_on, client, server)
        self._start(self._pass_on, server, client)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                self._ending.wait(self._delay)
                if not self._silent:
                    sink.sendall(chunk)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def in_front_of(broker: Broker) -> Iterator[Peer]:
    """Open a port in front of a broker."""
    parts = urlsplit(broker.url)
    peer = Peer(parts.hostname or "127.0.0.1", parts.port or _DEFAULT_PORTS[parts.scheme])
    try:
        yield peer
    finally:
        peer.close()


def settings_through(peer: Peer, broker: Broker) -> dict[str, Any]:
    """Return the Celery settings that lead to a broker through a peer."""
    parts = urlsplit(broker.url)
    user, at, _ = parts.netloc.rpartition("@")
    url = parts._replace(netloc=f"{user}{at}127.0.0.1:{peer.port}").geturl()
    return {**broker.settings(), "broker_url": url}


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener
