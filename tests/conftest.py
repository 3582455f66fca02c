"""Fixtures of all tests, and the rules by which a run starts and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from celery import Celery
from celery._state import _on_app_finalizers
from django.db import connections
from django.db.models import signals
from django.dispatch import Signal

from tests import brokers, run
from tests.brokers import Broker
from tests.making import Tasks
from tests.processes import Processes
from tests.project.celery import app, configure, disconnect
from tests.receiving import Receiving
from tests.services import SERVICES, absent, are_required

hypothesis.settings.register_profile("home", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=300, print_blob=True)


def pytest_configure(config: pytest.Config) -> None:
    if are_required() and absent():
        raise pytest.UsageError("In CI every service is required. " + "; ".join(absent().values()))
    hypothesis.settings.load_profile("ci" if are_required() else "home")
    if _leads(config):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a run that is told to end cleans up as well
        run.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _leads(config):
        run.end()


def pytest_report_header() -> list[str]:
    found = [name for name in SERVICES if name not in absent()]
    return [f"services: {', '.join(found) or 'none'}", *(f"skipping: {reason}" for reason in absent().values())]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show what the processes of a failed test said."""
    report = yield
    processes = getattr(item, "funcargs", {}).get("processes")
    if report.failed and isinstance(processes, Processes):
        report.sections.extend(processes.logs())
    return report


def _leads(config: pytest.Config) -> bool:
    """Tell the process that began the run from those that pytest-xdist started."""
    return not hasattr(config, "workerinput")


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """Leave the databases to ``run.end()``: it removes them after a run that was aborted, too."""
    return True


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    yield
    with django_db_blocker.unblock():
        connections.close_all()


@pytest.fixture(autouse=True)
def celery_app() -> Iterator[Celery]:
    """The app of the tests, with an empty broker in memory; its settings and tasks are those of before, afterwards."""
    app.finalize()
    saved, tasks, shared = dict(app.conf.changes), dict(app.tasks), set(_on_app_finalizers)
    app.set_current()
    yield app
    app.set_current()
    _on_app_finalizers.intersection_update(shared)  # shared tasks, which every app made later would be given
    for name in app.tasks.keys() - tasks.keys():
        del app._tasks[name]
    if app.conf.changes != saved:
        app.conf.changes.clear()
        app.conf.changes.update(saved)
        disconnect()
    brokers.forget_memory()


@pytest.fixture(autouse=True)
def all_disconnected(celery_app: Celery) -> Iterator[None]:
    """No test leaves a receiver at a signal of Django's models: the tests after it would send to it."""
    before = _connected()
    yield
    assert set() == _connected() - before


def _connected() -> set[Any]:
    theirs = {name: value for name, value in vars(signals).items() if isinstance(value, Signal)}
    keys = {(name, receiver[0]) for name, signal in theirs.items() for receiver in signal.receivers}
    return {(name, key) for name, key in keys if key[0] != "django_celery_signals.changes"}  # what is watched stays so


@pytest.fixture
def receiving(celery_app: Celery) -> Iterator[Receiving]:
    """Declares receivers, which end with the test."""
    receiving = Receiving(app=celery_app)
    yield receiving
    receiving.end()


@pytest.fixture
def tasks(celery_app: Celery) -> Iterator[Tasks]:
    """Makes tasks in every way there is, which end with the test."""
    tasks = Tasks(app=celery_app)
    yield tasks
    tasks.end()


@pytest.fixture
def stuck() -> Iterator[Callable[[Any], None]]:
    """A publication that does not come back before the test ends."""
    end = threading.Event()

    def publish(producer: Any) -> None:
        end.wait(30)

    yield publish
    end.set()


@pytest.fixture
def broker(request: pytest.FixtureRequest, celery_app: Celery, tmp_path: Path) -> Iterator[Broker]:
    """A queue of the test's own at the broker that ``@each_broker`` names; the app publishes there."""
    broker = brokers.make(getattr(request, "param", "memory"), tmp_path)
    configure(broker.settings())
    yield broker
    disconnect()
    broker.clear(broker)


@pytest.fixture
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """Starts workers, servers and commands, and stops them at the end."""
    if "broker" in request.fixturenames:
        request.getfixturevalue("broker")  # cleared only after its workers are gone
    started = Processes(folder=tmp_path)
    yield started
    started.stop()
