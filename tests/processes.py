"""Real processes for the tests: Celery workers, web servers, commands. Each is ended by its own id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.db import connections

from tests import run
from tests.brokers import Broker
from tests.project.celery import GIVEN_SETTINGS
from tests.settings import GIVEN_DATABASES
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent


def environment(broker: Broker | None = None, settings: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the environment in which a process sees this test's databases and broker.

    Args:
        broker: where the process finds its messages, or puts them.
        settings: further Celery settings; they must be JSON.
    """
    names = {alias: str(connections[alias].settings_dict["NAME"]) for alias in connections}
    celery = {**(broker.settings() if broker else {}), **(settings or {})}
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        # An alias whose database was not made for this run is somebody else's: it is kept from the process.
        GIVEN_DATABASES: json.dumps({alias: name for alias, name in names.items() if run.NAME in name}),
        GIVEN_SETTINGS: json.dumps(celery),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A running command, and the file with what it says."""

    popen: subprocess.Popen[bytes]
    log_file: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def is_running(self) -> bool:
        return self.popen.poll() is None

    def wait_for(self, text: str, *, timeout: float = 30) -> None:
        """Return as soon as the process has said the text."""

        def said() -> bool:
            if text in self.log:
                return True
            if not self.is_running():
                code = self.popen.returncode
                raise AssertionError(f"The process ended with {code} before saying {text!r}:\n{self.log}")
            return False

        wait_until(said, timeout=timeout, what=f"{text!r} in {self.log_file.name}")

    def wait(self, *, timeout: float = 30) -> int:
        """Wait for the end of the process and return its exit code."""
        return self.popen.wait(timeout)

    def stop(self, *, timeout: float = 15) -> int:
        """Ask the process to end, make it end if it does not, and return its exit code."""
        if self.is_running():
            self.popen.terminate()
        try:
            return self.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End the process and its children at once, as a power cut would."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # it leads a group of its own
        return self.popen.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The processes of one test; the fixture ``processes`` stops them all at its end."""

    folder: Path
    started: list[Process] = field(default_factory=list)

    def start(
        self,
        *command: str,
        name: str = "process",
        ready: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        timeout: float = 30,
    ) -> Process:
        """Start a command, and wait until it has said ``ready``.

        Args:
            command: ``python`` stands for the interpreter of the tests.
            name: of its log file.
            env: all of its environment; by default ``environment()``.
            cwd: the folder it is started in.
            timeout: seconds to wait for ``ready``.
        """
        program = [sys.executable if part == "python" and not index else part for index, part in enumerate(command)]
        log_file = self.folder / f"{name}-{len(self.started)}.log"
        with log_file.open("wb") as log:
            popen = subprocess.Popen(
                program,
                cwd=cwd,
                env=environment() if env is None else env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = Process(popen=popen, log_file=log_file)
        self.started.append(process)
        if ready is not None:
            process.wait_for(ready, timeout=timeout)
        return process

    def worker(
        self,
        broker: Broker,
        *,
        pool: str = "solo",
        concurrency: int = 1,
        modules: Sequence[str] = (),
        queues: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> Process:
        """Start a Celery worker of the tests' app, and wait until it is ready.

        Args:
            pool: "solo", "prefork", "threads" or "gevent".
            modules: to import, with the receivers the test needs.
            queues: to consume beside the broker's default queue.
            settings: further Celery settings; they must be JSON.
            env: further environment variables.
            options: further options of ``celery worker``.
        """
        command = ["python", "-m", "celery", "--app=tests.project", "worker", f"--pool={pool}"]
        command += [f"--concurrency={concurrency}", "--loglevel=INFO", f"--hostname={broker.queue}@localhost"]
        command += [f"--queues={','.join([broker.queue, *queues])}"]
        command += ["--without-gossip", "--without-mingle"]
        command += ["--heartbeat-interval=1"]  # an idle worker notices only at its next beat that it was told to stop
        command += [f"--include={','.join(modules)}"] if modules else []
        whole_env = {**environment(broker, settings), "C_FORCE_ROOT": "1", **(env or {})}
        return self.start(*command, *options, name=f"worker-{pool}", ready=" ready.", env=whole_env)

    def stop(self) -> None:
        """Stop all that still run, side by side."""
        for process in self.started:
            if process.is_running():
                process.popen.terminate()
        for process in self.started:
            process.stop()

    def logs(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each log, and what was said."""
        for process in self.started:
            yield process.log_file.name, process.log
