"""A port in front of a server that misbehaves on purpose: it cuts, delays, or accepts and never answers."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any


class Proxy:
    """Passes everything on, until it is told to do otherwise."""

    def __init__(self, port: int) -> None:
        """Listen in front of a server on this machine."""
        self._behind = ("127.0.0.1", port)
        self._delay, self._silent, self._refusing = 0.0, False, False
        self._cuts_at = b""  # what a client says before it is cut off, once
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)

    def cut(self) -> None:
        """Break off all connections."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            _end(one)

    def cut_after(self, said: bytes) -> None:
        """Break off the next connection whose client says this: it is passed on, and the answer is not."""
        self._cuts_at = said

    def delay(self, seconds: float) -> None:
        """Hold every chunk back for a while, in both directions."""
        self._delay = seconds

    def be_silent(self) -> None:
        """Accept, and swallow whatever comes, also on the connections that exist."""
        self._silent = True

    def refuse(self) -> None:
        """Break off all connections, and every new one at once."""
        self._refusing = True
        self.cut()

    def heal(self) -> None:
        """Pass everything on again; what was silent is broken off."""
        was_silent, self._delay, self._silent, self._refusing, self._cuts_at = self._silent, 0.0, False, False, b""
        if was_silent:
            self.cut()

    def close(self) -> None:
        """End it."""
        self._refusing = True
        _end(self._listener)
        self.cut()

    def _start(self, function: Any, *args: Any) -> None:
        threading.Thread(target=function, args=args, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._refusing:
                    _end(client)
                else:
                    self._start(self._join, client)

    def _join(self, client: socket.socket) -> None:
        server = socket.socket()
        try:
            server.connect(self._behind)
        except OSError:  # it is down
            _end(client)
            return
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets |= {client, server}
        self._start(self._pass_on, server, client, False)
        self._pass_on(client, server, True)

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_client: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                if self._delay:
                    time.sleep(self._delay)
                if self._silent:
                    continue
                cuts = is_client and self._cuts_at and self._cuts_at in chunk
                if cuts:
                    self._cuts_at = b""
                    _shut(source)  # first, or the answer would be faster
                sink.sendall(chunk)
                if cuts:
                    time.sleep(0.2)  # the server has it by then
                    break
        for one in (source, sink):
            _end(one)
        with self._lock:
            self._sockets -= {source, sink}


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def _end(one: socket.socket) -> None:
    _shut(one)
    one.close()
