"""The Django app: which modules it imports when a process starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.apps import AppConfig, apps
from django.dispatch import Signal

from django_celery_signals import SettingsError, connections, disconnect
from tests.drain import take

CONFIG = "django_celery_signals"

door_opened = Signal()

DECLARES = """
from django_celery_signals import receiver_task
from tests.unit.test_apps import door_opened

@receiver_task(door_opened, name="{name}")
def greet(**kwargs): ...
"""


@dataclass(frozen=True, slots=True)
class Package:
    """An installed app of the test's own."""

    folder: Path
    name: str

    def write(self, module: str, code: str) -> None:
        (self.folder / f"{module}.py").write_text(code)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, celery_app: Celery) -> Iterator[Package]:
    folder = tmp_path / "doorkeeper"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(apps.app_configs, "doorkeeper", AppConfig.create("doorkeeper"))
    yield Package(folder, "doorkeeper")
    for connection in [one for one in connections() if one.signal is door_opened]:
        disconnect(door_opened, celery_app.tasks[connection.receiver])
    for name in [name for name in sys.modules if name.partition(".")[0] == "doorkeeper"]:
        del sys.modules[name]


def ready() -> None:
    apps.get_app_config(CONFIG).ready()


def test_the_app_is_found_by_the_packages_name() -> None:
    """The package's name in INSTALLED_APPS is enough."""
    config = apps.get_app_config(CONFIG)

    assert (CONFIG, CONFIG, "DjangoCelerySignalsConfig") == (config.name, config.label, type(config).__name__)


def test_receivers_and_tasks_are_imported(package: Package, celery_app: Celery) -> None:
    """``receivers`` and ``tasks`` of every app are imported, and what they declare is connected (H74)."""
    package.write("receivers", DECLARES.format(name="doorkeeper.receive"))
    package.write("tasks", DECLARES.format(name="doorkeeper.work").replace("greet", "wave"))
    package.write("models_like", "raise AssertionError")

    ready()
    door_opened.send(sender=None)

    assert ["doorkeeper.receive", "doorkeeper.work"] == sorted(message.task for message in take(celery_app))


def test_importing_again_adds_nothing(package: Package, celery_app: Celery) -> None:
    """A second start in one process, as tests make it, connects nothing twice (H4)."""
    package.write("receivers", DECLARES.format(name="doorkeeper.receive"))

    ready()
    ready()
    door_opened.send(sender=None)

    assert 1 == len(take(celery_app))


def test_other_modules_on_request(package: Package, settings: Any, celery_app: Celery) -> None:
    """``AUTODISCOVER`` names the modules, instead of the usual ones (H74)."""
    settings.DJANGO_CELERY_SIGNALS = {"GUARANTEE": "on_commit", "AUTODISCOVER": ["handlers"]}
    package.write("receivers", "raise AssertionError")
    package.write("handlers", DECLARES.format(name="doorkeeper.handle"))

    ready()
    door_opened.send(sender=None)

    assert ["doorkeeper.handle"] == [message.task for message in take(celery_app)]


def test_nothing_on_request(package: Package, settings: Any) -> None:
    """An empty ``AUTODISCOVER`` imports nothing."""
    settings.DJANGO_CELERY_SIGNALS = {"AUTODISCOVER": []}
    package.write("receivers", "raise AssertionError")

    ready()

    assert "doorkeeper.receivers" not in sys.modules


def test_apps_without_these_modules(package: Package) -> None:
    """An app that has none of the modules is no error."""
    ready()

    assert not [name for name in sys.modules if name.startswith("doorkeeper.")]


@pytest.mark.parametrize(
    ("code", "error"),
    [("import nowhere_at_all", ModuleNotFoundError), ("5 / 0", ZeroDivisionError), ("def", SyntaxError)],
)
def test_an_error_in_a_module_is_raised(code: str, error: type[Exception], package: Package) -> None:
    """A module that cannot be imported stops the process: silence would mean events that are never sent (H74)."""
    package.write("receivers", code)

    with pytest.raises(error):
        ready()


def test_wrong_settings_stop_the_start(settings: Any) -> None:
    """Settings that cannot be are found when the process starts, not at the first sending."""
    settings.DJANGO_CELERY_SIGNALS = {"AUTODISCOVER": "receivers"}

    with pytest.raises(SettingsError, match="AUTODISCOVER"):
        ready()
