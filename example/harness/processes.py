"""Processes that the demonstration starts and stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
GRACE = 15  # seconds that a process gets to stop by itself
LOG_LINES = 25


class ProcessDied(Exception):
    """A process ended although it was needed."""


class Child:
    """A running process, and the file that its output goes to."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        """Start it, out of reach of the terminal's Ctrl-C: stopping it is for :meth:`stop`.

        Args:
            name: what to call it in messages.
            arguments: the command line, after ``python``.
            log: file for what it prints.
        """
        self.name, self.log = name, log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Do nothing while it runs.

        Raises:
            ProcessDied: with the end of its log, when it does not.
        """
        code = self._process.poll()
        if code is not None:
            raise ProcessDied(f"The {self.name} ended with exit code {code}. Its last lines:\n{self.last_lines()}")

    def last_lines(self) -> str:
        """Return the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_LINES:])

    def kill(self) -> None:
        """End it at once with everything it started, as a power cut would: nothing is finished, nothing cleaned up."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own
        self._process.wait()

    def stop(self) -> None:
        """End it: politely, then, after a while, with everything it started."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def running(child: Child) -> Iterator[Child]:
    """Stop a process at the end, whatever happens until then."""
    try:
        yield child
    finally:
        child.stop()


def worker(queue: str, log: Path) -> Child:
    """Start a Celery worker with two processes."""
    options = ["--pool=prefork", "--concurrency=2", "--loglevel=INFO", f"--queues={queue}", f"--hostname={queue}@%h"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return Child("worker", ["-m", "celery", "--app=config", "worker", *options, *quiet], log)


def site(port: int, log: Path) -> Child:
    """Start the site on this machine's own address."""
    os.environ["FLIGHTS_DEBUG"] = "1"
    return Child("site", ["manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"], log)
