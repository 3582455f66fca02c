"""Servers of the rig's own: on free ports, with data folders of their own, to be killed and wiped."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 90.0  # seconds for a server to begin to answer
PORTS = 20_000, 32_000  # below those that systems give to connections


def free_port() -> int:
    """Return a port that nobody uses, and that no connection is given while the server is away."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def program(name: str, *folders: str) -> str:
    """Return the path of a server's program.

    Raises:
        FileNotFoundError: saying what is to be installed.
    """
    for folder in folders:
        for found in sorted(Path("/").glob(folder.lstrip("/")), reverse=True):
            if (found / name).exists():
                return str(found / name)
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if path is None:
        raise FileNotFoundError(
            f"The rig starts its own servers and needs {name}; install it, as from Debian's packages."
        )
    return path


@dataclass(kw_only=True)
class Server:
    """A server process, and its folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    user: str | None = None  # whom it runs as, when the rig is root and the server refuses that
    _popen: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """Return what to execute."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Return what it needs beside the rig's own environment."""
        return {}

    def prepare(self) -> None:
        """Make what the first start needs."""

    def answers(self) -> bool:
        """Tell whether it can be used."""
        raise NotImplementedError

    def begin(self) -> None:
        """Make it and start it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.user:
            shutil.chown(self.folder, self.user)
        self.prepare()
        self.start()

    def start(self) -> None:
        """Start it again, with the data that it had."""
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._popen = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                user=self.user,
                start_new_session=True,
            )
        until = time.monotonic() + PATIENCE
        while not self.answers():
            if self._popen.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.command()[0]} does not answer; see {log.name}")
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        """The process, while it is started."""
        assert self._popen is not None
        return self._popen.pid

    def stop(self) -> None:
        """End it and its children at once, as a power cut of its machine would."""
        if self._popen is None:
            return
        for pid in (*children(self._popen.pid), self._popen.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self._popen = None

    def end(self) -> None:
        """Stop it for good."""
        self.stop()

    def run(self, *command: str, check: bool = True) -> None:
        """Execute one of the server's own tools."""
        environment = {**os.environ, **self.environment()}
        subprocess.run(command, cwd=self.folder, env=environment, user=self.user, check=check, capture_output=True)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started; PostgreSQL's have groups of their own."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(child) for child in found.stdout.split()]


def tried(act: Callable[[], Any]) -> bool:
    """Tell whether something can be done."""
    try:
        act()
    except Exception:
        return False
    return True
