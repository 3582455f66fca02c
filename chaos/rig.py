"""The rig: servers behind proxies, processes that are started again when they end, and the faults they live with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from .brokers import BROKERS, Broker
from .cells import Cell
from .databases import DATABASES
from .proxy import Proxy
from .servers import Server

ROOT = Path(__file__).resolve().parent.parent
GIVEN, QUEUE = "CHAOS_SITE", "chaos"
LONG = 0.0005  # the part of the runs that take longer than a lease


@dataclass(kw_only=True)
class Role:
    """A process that is to run, whatever happens to it."""

    name: str
    command: Callable[[], list[str]]
    popen: subprocess.Popen[bytes] | None = None
    is_wanted: bool = True
    said: int = 0  # bytes that its log had before it began

    @property
    def pid(self) -> int:
        return self.popen.pid if self.popen is not None else 0

    def is_running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def ended(self) -> int | None:
        """Return how it ended, if it did: the exit code, or minus the signal."""
        return self.popen.poll() if self.popen is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for."""

    cell: Cell
    events: int
    seed: int
    lease: float = 30.0  # seconds
    busy: float = 0.05  # the part of what has a key that goes to one key
    linger: float = 0.004  # seconds that a receiver takes, at most
    long: float = LONG
    pause: float = 0.004  # seconds between two sendings of a sender, at least
    imports: float = 0.1  # the part of the sendings that are of many
    most_open: int = 200  # what waits before senders pause: what recovers is to be the fault, not a backlog
    control: str = ""
    system: str = "ours"
    interpreter: str = sys.executable  # of the site's processes: peers have an environment of their own
    faults: tuple[str, ...] = ()  # their names; empty: all
    receiver_faults: bool = True
    calm: tuple[float, float] = (1.0, 3.0)  # seconds between two faults
    patience: float | None = None  # seconds without progress at the end, after which the rest is stuck
    library: Mapping[str, Any] = field(default_factory=dict)  # further settings of the library


@dataclass(kw_only=True)
class Rig:
    """Everything that runs."""

    options: Options
    folder: Path
    servers: dict[str, Server] = field(default_factory=dict)  # "database", "broker"
    proxies: dict[str, Proxy] = field(default_factory=dict)
    roles: list[Role] = field(default_factory=list)
    chance: random.Random = field(default_factory=random.Random)
    incarnations: int = 0
    deaths: list[str] = field(default_factory=list)  # of processes that nobody has ended, with their last words

    @property
    def idle(self) -> int:
        """Seconds for which a transaction may do nothing: its locks are then released. Longer than any receiver."""
        return max(15, round(3 * self.options.lease))

    @property
    def broker(self) -> Broker:
        return cast(Broker, self.servers["broker"])

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    @property
    def points(self) -> Path:
        return self.folder / "points"

    # The site ----------------------------------------------------------------------------------------------------

    def given(self, *, directly: bool = False) -> dict[str, Any]:
        """Return the site's settings; ``directly``: past the proxies."""
        cell, ports = self.options.cell, self.servers if directly else self.proxies
        return {
            "database": cell.database,
            "database_port": ports["database"].port if "database" in ports else "",
            "file": str(self.folder / "site.sqlite3"),
            "broker": self.broker.url(ports["broker"].port),
            "atomic": cell.atomic,
            "seed": self.options.seed,
            "lease": self.options.lease,
            "idle": self.idle,
            "embedded": self.options.cell.broker == "redis",  # every worker is a relay as well, as by default
            "busy": self.options.busy,
            "linger": self.options.linger,
            "long": self.options.long,
            "pause": self.options.pause,
            "imports": self.options.imports,
            "most_open": self.options.most_open,
            "control": self.options.control,
            "system": self.options.system,
            "library": dict(self.options.library),
            "receiver_faults": self.options.receiver_faults,
            "ledger": str(self.ledger),
            "points": str(self.points),
        }

    def environment(self, *, directly: bool = False) -> Mapping[str, str]:
        """Return the environment of the site's processes."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        return {
            **os.environ,
            "PYTHONPATH": path,
            "DJANGO_SETTINGS_MODULE": "chaos.site.settings",
            "C_FORCE_ROOT": "1",
            "PYTHONUNBUFFERED": "1",
            GIVEN: json.dumps(self.given(directly=directly)),
        }

    def python(self, *command: str) -> list[str]:
        """Return a command of the site's."""
        return [self.options.interpreter, *command]

    # Processes ---------------------------------------------------------------------------------------------------

    def start(self, role: Role) -> None:
        """Start a process."""
        with self.log(role).open("ab") as log:
            role.said = log.tell()
            role.popen = subprocess.Popen(
                role.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self.environment(),
                start_new_session=True,
            )

    def keep_running(self) -> None:
        """Start again what has ended, as an init system does."""
        for role in self.roles:
            if role.is_wanted and not role.is_running():
                if role.ended() not in (None, 0, -signal.SIGKILL):
                    self.deaths.append(f"{role.name}: {role.ended()}, after {self.last_words(role)!r}")
                self.clear(role)
                self.start(role)

    def log(self, role: Role) -> Path:
        """Return where a process writes what it has to say."""
        return self.folder / f"{role.name}.log"

    def last_words(self, role: Role) -> str:
        """Return the last line of its log, or the one by which a worker says why it ends."""
        lines = self.log(role).read_bytes()[role.said :].decode(errors="replace").splitlines()
        return next((line for line in reversed(lines) if "Unrecoverable error" in line), lines[-1] if lines else "")

    def wait(self, seconds: float) -> None:
        """Let time pass, while processes that end are started again."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.keep_running()
            time.sleep(0.1)

    def clear(self, role: Role) -> None:
        """Kill what is left of a process's group."""
        if role.popen is not None:
            with suppress(ProcessLookupError):
                os.killpg(role.pid, signal.SIGKILL)
            role.popen.wait()

    def signal(self, role: Role, number: signal.Signals) -> None:
        """Send a signal to a process and its children."""
        if role.is_running():
            with suppress(ProcessLookupError):
                os.killpg(role.pid, number)

    def of(self, kind: str) -> list[Role]:
        """Return the roles of a kind: "sender", "relay" or "worker"."""
        return [role for role in self.roles if role.name.startswith(kind)]

    def stop(self, *roles: Role, timeout: float = 20) -> None:
        """Ask processes to end, and make those end that do not."""
        for role in roles:
            role.is_wanted = False
            if role.is_running():
                with suppress(ProcessLookupError):
                    os.kill(role.pid, signal.SIGCONT)
                    os.kill(role.pid, signal.SIGTERM)
        until = time.monotonic() + timeout
        for role in roles:
            if role.popen is not None:
                with suppress(subprocess.TimeoutExpired):
                    role.popen.wait(max(0.0, until - time.monotonic()))
            self.clear(role)

    def heal(self) -> None:
        """End every fault."""
        for proxy in self.proxies.values():
            proxy.heal()
        for server in self.servers.values():
            if not server.answers():
                server.stop()
                server.start()
        for role in self.roles:
            self.signal(role, signal.SIGCONT)
        for point in self.points.glob("*"):
            point.unlink(missing_ok=True)

    def next_incarnation(self) -> int:
        """Return the number of a sender that there has not been."""
        self.incarnations += 1
        return self.incarnations


def _roles(rig: Rig) -> Iterator[Role]:
    def role(name: str, *arguments: str) -> Role:
        return Role(name=name, command=lambda: rig.python("-m", "chaos.site.roles", *arguments))

    for number in range(2):
        yield Role(
            name=f"sender-{number}",
            command=lambda: rig.python("-m", "chaos.site.roles", "sender", str(rig.next_incarnation())),
        )
    if rig.options.system == "events":  # its relays are its workers
        yield from (role(f"worker-{number}", "relay") for number in range(2))
        return
    yield from (role(f"relay-{number}", "relay") for number in range(2))
    # SQLite has one lock: a second worker would only wait for it.
    for number in range(1 if rig.options.cell.database == "sqlite" else 2):
        options = ["--pool=prefork", "--concurrency=2", f"--hostname=chaos{number}@localhost", "--loglevel=WARNING"]
        options += ["--without-gossip", "--without-mingle", f"--queues={QUEUE}"]
        command = rig.python("-m", "celery", "--app=chaos.site", "worker", *options)
        yield Role(name=f"worker-{number}", command=partial(list, command))


@contextmanager
def running(options: Options) -> Iterator[Rig]:
    """Start servers, proxies and processes, and end them all."""
    folder = Path(tempfile.mkdtemp(prefix="dcs_chaos_"))
    folder.chmod(0o755)  # some servers run as another user
    rig = Rig(options=options, folder=folder, chance=random.Random(options.seed))
    with ExitStack() as stack:
        stack.callback(_remove, rig)
        rig.ledger.mkdir()
        rig.points.mkdir()
        kinds = {"database": DATABASES.get(options.cell.database), "broker": BROKERS[options.cell.broker]}
        for use, kind in kinds.items():
            if kind is not None:  # SQLite is none
                server = rig.servers[use] = kind(folder=folder / use)
                stack.callback(server.end)
                server.begin()
                proxy = rig.proxies[use] = Proxy(server.port)
                stack.callback(proxy.close)
        command = rig.python("-m", "chaos.site.roles", "prepare")
        subprocess.run(command, cwd=ROOT, env=rig.environment(directly=True), check=True)
        rig.roles.extend(_roles(rig))
        for role in rig.roles:
            stack.callback(rig.clear, role)
        rig.keep_running()
        yield rig


def _remove(rig: Rig) -> None:
    if "CHAOS_KEEP" not in os.environ:
        shutil.rmtree(rig.folder, ignore_errors=True)
