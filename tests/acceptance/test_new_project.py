"""The literal line in a project that was made a moment ago, as when somebody tries the library for the first time."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.docs.pages import block_with, page_of
from tests.processes import Process, Processes
from tests.reports import whole_lines
from tests.waiting import wait_until

CELERY = """
    import os

    from celery import Celery

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")

    app = Celery({arguments})
    app.config_from_object("django.conf:settings", namespace="CELERY")
    app.autodiscover_tasks()
"""
PROJECT = """
    from .celery import app as celery_app

    __all__ = ("celery_app",)
"""
SETTINGS = """

    INSTALLED_APPS += ["shop", "django_celery_signals"]

    CELERY_BROKER_URL = "filesystem://"
    CELERY_BROKER_TRANSPORT = "proj.folder:Transport"
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": BASE_DIR / "messages",
        "data_folder_out": BASE_DIR / "messages",
        "control_folder": BASE_DIR / "messages",
        "polling_interval": 0.05,
    }
"""
# As it comes, the worker may read a message that its relay's thread is still writing, and end.
FOLDER = block_with(page_of("docs/tutorial.md"), "class Channel(filesystem.Channel)")
MODELS = """

    class M(models.Model):
        name = models.CharField(max_length=50)
"""
TASKS = """
    import json

    from celery import shared_task
    from django.conf import settings
    from django.db.models.signals import post_save
    {imports}
    from shop.models import M


    @shared_task({arguments})
    def task(sender, instance, created, update_fields, raw, using, signal, **kwargs):
        got = {{
            "sender is M": sender is M,
            "instance": [type(instance) is M, instance.pk, instance.name],
            "created": created,
            "update_fields": update_fields and [type(update_fields).__name__, *update_fields],
            "raw": raw,
            "using": using,
            "signal is post_save": signal is post_save,
            "others": sorted(kwargs),
        }}
        with open(settings.BASE_DIR / "got", "a") as file:
            file.write(json.dumps(got) + "\\n")


    post_save.connect(task.delay, sender=M)
"""
SAVING = """
    from django.db import transaction
    from shop.models import M

    with transaction.atomic():
        first = M.objects.create(name="first")
    with transaction.atomic():
        M.objects.create(name="ghost")
        transaction.set_rollback(True)
    first.name = "second"
    first.save(update_fields=["name"])
"""
SPELLINGS = [
    pytest.param(
        '"proj"',
        "from django_celery_signals import ReceiverTask",
        "base=ReceiverTask, ignore_result=True",
        id="base",
    ),
    pytest.param('"proj", task_cls="django_celery_signals:ReceiverTask"', "", "ignore_result=True", id="task_cls"),
]
# The environment of a shell, with nothing of the tests' own.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "DCS_"))}
CLEAN.update(PYTHONUNBUFFERED="1", C_FORCE_ROOT="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A Django project of its own, and what runs in it."""

    folder: Path
    processes: Processes

    def add(self, name: str, text: str, **parts: str) -> None:
        """Add text to one of the project's files."""
        with (self.folder / name).open("a") as file:
            file.write(dedent(text).format(**parts) if parts else dedent(text))

    def start(self, *command: str, **options: Any) -> Process:
        """Start a command in the project's folder."""
        return self.processes.start("python", *command, name="new", env=CLEAN, cwd=self.folder, **options)

    def run(self, *command: str) -> None:
        """Run a command to its end."""
        process = self.start(*command)
        assert 0 == process.wait(), process.log

    def received(self, count: int) -> list[dict[str, Any]]:
        """Return what the task wrote, as soon as it did so that often."""
        file = self.folder / "got"
        wait_until(lambda: len(whole_lines(file)) >= count, what=f"{count} runs of the task")
        return [json.loads(line) for line in whole_lines(file)]


@pytest.fixture(scope="module")
def started_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first commands of Django's tutorial make, with one model."""
    folder = tmp_path_factory.mktemp("started")
    project = Project(folder=folder, processes=Processes(folder=folder))
    project.run("-m", "django", "startproject", "proj", ".")
    project.run("manage.py", "startapp", "shop")
    (folder / "messages").mkdir()
    project.add("proj/settings.py", SETTINGS)
    project.add("proj/folder.py", FOLDER)
    project.add("shop/models.py", MODELS)
    project.run("manage.py", "makemigrations", "shop")
    project.run("manage.py", "migrate")
    return folder


@pytest.fixture
def project(started_project: Path, processes: Processes, tmp_path: Path) -> Project:
    """A new project for one test."""
    return Project(folder=shutil.copytree(started_project, tmp_path / "new"), processes=processes)


@pytest.mark.parametrize(("app", "imports", "task"), SPELLINGS)
def test_literal_line(project: Project, app: str, imports: str, task: str) -> None:
    """In a fresh project, post_save.connect(task.delay, sender=M) runs the task in a worker with what Django sends."""
    project.add("proj/celery.py", CELERY, arguments=app)
    project.add("proj/__init__.py", PROJECT)
    project.add("shop/tasks.py", TASKS, imports=imports, arguments=task)

    project.run("manage.py", "shell", "-c", dedent(SAVING))
    worker = project.start("-m", "celery", "-A", "proj", "worker", "--pool=solo", "--loglevel=INFO")

    same = {
        "sender is M": True,
        "instance": [True, 1, "second"],
        "raw": False,
        "using": "default",
        "signal is post_save": True,
        "others": [],
    }
    assert [
        {**same, "created": True, "update_fields": None},
        {**same, "created": False, "update_fields": ["frozenset", "name"]},
    ] == project.received(2)
    worker.kill()
