"""The scene of one test of durable deliveries: a database, a broker, and processes that send, relay and work."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import durable_tasks
from tests.brokers import Broker
from tests.crashing import Crashes
from tests.parameters import needs
from tests.processes import Process, Processes, environment
from tests.project import durable_settings
from tests.reports import Reports

REAL_PAUSES = "DCS_TESTS_REAL_PAUSES"  # in the environment of a process: leave the library's pauses as they are
CRASH_BUDGET = "DCS_TESTS_CRASH_BUDGET"  # in the environment: that budget, for it takes a quarter of a minute to spend
ROLES = "tests.durable_roles"
BEGIN = f"import sys, django; django.setup(); import {ROLES}; {ROLES}.main(*sys.argv[1:])"


@dataclass(kw_only=True)
class Scene:
    """Starts processes that see one database and one broker."""

    alias: str
    broker: Broker
    processes: Processes
    folder: Path
    ports: dict[str, int] = field(default_factory=dict)  # of peers in front of databases, by alias
    sqlite_timeout: float = 20  # seconds
    apps: list[str] = field(default_factory=list)  # further ones
    keep: int = 0  # seconds for which processes keep a connection; 0: it is closed after each task
    celery: dict[str, Any] = field(default_factory=dict)  # further settings of Celery's
    settings: dict[str, Any] = field(default_factory=dict)  # further ones of the library's

    @property
    def reports(self) -> Reports:
        """What the receivers of the workers have reported."""
        return Reports(self.folder / "reports")

    def crashes(self, *points: str, **options: Any) -> Crashes:
        """Plan crashes."""
        return Crashes(folder=self.folder / "crashes", points=points, **options)

    def environment(self, crashes: Crashes | None = None, **settings: Any) -> dict[str, str]:
        """Return the environment of a process.

        Args:
            crashes: the plan, if it is to crash.
            settings: of the library.
        """
        given = {
            "settings": {**self.settings, **settings},
            "apps": self.apps,
            "alias": self.alias,
            "ports": self.ports,
            "sqlite_timeout": self.sqlite_timeout,
            "keep": self.keep,
        }
        return {
            **environment(self.broker, self.celery),
            **self.reports.environment,
            **(crashes.environment if crashes else {}),
            "DJANGO_SETTINGS_MODULE": durable_settings.__name__,
            durable_settings.GIVEN: json.dumps(given),
        }

    def send(self, *names: str, role: str = "send", crashes: Crashes | None = None) -> Process:
        """Start a process that sends one event for each name, and ends."""
        return self._start(role, self.alias, *names, env=self.environment(crashes))

    def start(self, role: str, *arguments: str) -> Process:
        """Start another one of the roles."""
        return self._start(role, self.alias, *arguments, env=self.environment())

    def relay(self, crashes: Crashes | None = None, *, batch: int = 500) -> Process:
        """Start a relay."""
        return self._start("relay", self.alias, str(batch), env=self.environment(crashes), ready="relaying")

    def _start(self, role: str, *arguments: str, **options: Any) -> Process:
        return self.processes.start("python", "-c", BEGIN, role, *arguments, name=role, **options)

    def worker(
        self,
        crashes: Crashes | None = None,
        *,
        pool: str = "solo",
        concurrency: int = 1,
        env: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Process:
        """Start a worker.

        Args:
            crashes: the plan, if it is to crash.
            pool: Celery's.
            concurrency: Celery's.
            env: further environment variables.
            settings: of the library.
        """
        return self.processes.worker(
            self.broker,
            pool=pool,
            concurrency=concurrency,
            modules=[durable_tasks.__name__, ROLES],
            settings={"worker_lost_wait": 0.1, **self.celery},
            env={**self.environment(crashes, **settings), **(env or {})},
        )


def each_pair(*pairs: tuple[str, str], rarely: Collection[str] = ()) -> Any:
    """Run a test once per pair of a database and a broker; it gets them in its ``scene``.

    On the databases named by ``rarely`` only ``make exhaustive`` runs it, for it takes long.
    """
    found = [_pair(*pair, *([pytest.mark.exhaustive] if pair[0] in rarely else [])) for pair in pairs]
    return pytest.mark.parametrize(("alias", "broker"), found, indirect=["broker"])


def _pair(alias: str, broker: str, *more: Any) -> Any:
    marks = [pytest.mark.django_db(databases=[alias], transaction=True), needs(alias), needs(broker), *more]
    return pytest.param(alias, broker, marks=marks, id=f"{alias}-{broker}")
