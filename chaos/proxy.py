"""A port in front of a server that misbehaves on purpose: it cuts, delays, refuses, or accepts and never answers."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import suppress
from typing import Any


class Proxy:
    """Passes everything on, until it is told to do otherwise."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Listen on a free port of this machine, in front of a server."""
        self._behind = (host, port)
        self._delay, self._silent = 0.0, False
        self._cuts_at: re.Pattern[bytes] | None = None  # what a client says before it is cut off, once
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._ending, self._lock = threading.Event(), threading.Lock()
        self._listener = _bound(0)
        self.port = int(self._listener.getsockname()[1])
        self._listen()

    def cut(self) -> int:
        """Break off all connections, as a restart of the server does; return how many sockets they had."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            _end(one)
        return len(sockets)

    def cut_after(self, said: re.Pattern[bytes]) -> None:
        """Break off the next connection whose client says this: it is passed on, and the answer is not."""
        self._cuts_at = said

    def has_cut(self) -> bool:
        """Tell whether that has happened."""
        return self._cuts_at is None

    def delay(self, seconds: float) -> None:
        """Hold every chunk back for a while, in both directions."""
        self._delay = seconds

    def be_silent(self) -> None:
        """Accept, and swallow whatever comes, also on the connections that exist."""
        self._silent = True

    def refuse(self) -> None:
        """Break off all connections, and refuse new ones."""
        _end(self._listener)
        self.cut()
        self._listener = _bound(self.port)  # bound but not listening: nobody else gets the port

    def heal(self) -> None:
        """Pass everything on again; what was silent is broken off, for nobody repeats what was swallowed."""
        was_silent, self._delay, self._silent, self._cuts_at = self._silent, 0.0, False, None
        if was_silent:
            self.cut()
        if not self._listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._listen()

    def close(self) -> None:
        """End it."""
        self._ending.set()
        _end(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join(5)
        self.cut()  # what was accepted meanwhile

    def _listen(self) -> None:
        self._listener.listen(128)
        self._start(self._accept, self._listener)

    def _start(self, function: Any, *args: Any) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._join(client)

    def _join(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._behind)
        except OSError:  # it is down
            _end(client)
            return
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets |= {client, server}
        self._start(self._pass_on, server, client, False)
        self._start(self._pass_on, client, server, True)

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_client: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                if self._delay:
                    self._ending.wait(self._delay)
                if self._silent:
                    continue
                cuts = is_client and self._cuts_at is not None and self._cuts_at.search(chunk)
                if cuts:
                    self._cuts_at = None
                    _shut(source)  # first, or the answer would be faster
                sink.sendall(chunk)
                if cuts:
                    time.sleep(0.2)  # the server has it by then
                    break
        for one in (source, sink):
            _end(one)
        with self._lock:
            self._sockets -= {source, sink}


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def _end(one: socket.socket) -> None:
    _shut(one)
    one.close()
