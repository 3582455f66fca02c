"""What is published: a source archive and a wheel, which hold what is meant, and need Django and Celery only."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from textwrap import dedent
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

import django_celery_signals

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = f"django_celery_signals-{django_celery_signals.__version__}"
LEFT_OUT = {".editorconfig", ".pre-commit-config.yaml"}  # of the source archive: what only somebody with git needs

# What nobody may leave behind, whatever else comes along.
MEANT = {
    *("py.typed", "static/django_celery_signals/admin.css", "migrations/0001_initial.py", "admin/__init__.py"),
    *("templates/admin/django_celery_signals/delivery/change_list.html", "management/commands/signals.py"),
}

IMPORTS = """
    import importlib, pkgutil, sys

    import django
    from django.conf import settings

    settings.configure(INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.admin",
                                       "django.contrib.messages", "django_celery_signals"])
    django.setup()

    import django_celery_signals

    for module in pkgutil.walk_packages(django_celery_signals.__path__, "django_celery_signals."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            print(module.name, "|", error)
    print(*sorted({"pytest", "rich", "prometheus_client", "opentelemetry"} & sys.modules.keys()))
"""
WITHOUT = """\
django_celery_signals.observing.opentelemetry | This needs opentelemetry, which cannot be imported: \
pip install "django-celery-signals[opentelemetry]"
django_celery_signals.observing.prometheus | This needs prometheus_client, which cannot be imported: \
pip install "django-celery-signals[prometheus]"

"""

CELERY = """
    import os

    from celery import Celery

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
    app = Celery("proj", broker="memory://")
    app.config_from_object("django.conf:settings", namespace="CELERY")
"""
SETTINGS = """
    INSTALLED_APPS += ["shop", "django_celery_signals"]
    DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 20}
"""
RECEIVERS = """
    from django.contrib.auth.models import User
    from django.db.models.signals import post_save
    from django_celery_signals import receiver_task


    @receiver_task(post_save, sender=User)
    def welcome(instance, **kwargs):
        print(f"Welcome, {instance.username}.")
"""
SAVING = """
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django_celery_signals import deliveries

    call_command("makemigrations", check_changes=True)
    User.objects.create(username="ada")
    print(deliveries("default").get().summary)
"""


def said(*command: str | Path, cwd: Path) -> str:
    """Run a command, which must succeed, apart from this environment, and return what it said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DJANGO", "COV_"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def sources() -> list[str]:
    """Return the files of the project, also those that are not committed yet."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in found.split("\0") if path and (ROOT / path).exists()]


@dataclass(frozen=True)
class Built:
    """What is published."""

    folder: Path

    @property
    def archive(self) -> Path:
        """The source archive."""
        return self.folder / f"{NAME}.tar.gz"

    @property
    def wheel(self) -> Path:
        """The wheel, which was built from the source archive."""
        return self.folder / f"{NAME}-py3-none-any.whl"

    def files(self) -> set[str]:
        """Return what the wheel holds, without its own metadata."""
        with ZipFile(self.wheel) as wheel:
            return {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}

    def said(self, name: str) -> str:
        """Return a file of the wheel's metadata."""
        with ZipFile(self.wheel) as wheel:
            return wheel.read(f"{NAME}.dist-info/{name}").decode()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of all processes of the run, which one of them fills while the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "packaging"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes away from a folder."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def built(shared: Path) -> Built:
    """What a clean copy of the project is built into."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout knows which files belong to the project")
    result = Built(shared / "packages")
    with alone(shared):
        if not result.wheel.exists():
            for path in sources():
                (shared / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, shared / "copy" / path)
            # Without an environment of its own, which would be filled from the network; what it needs is checked.
            said(*(sys.executable, "-m", "build", "--no-isolation", "--outdir", result.folder), cwd=shared / "copy")
    return result


def needed(*names: str) -> Iterator[Distribution]:
    """Yield installed distributions, and what they need without any extra."""
    seen, ahead = set[str](), list(names)
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.add(name)
        yield (found := distribution(name))
        wanted = map(Requirement, found.requires or [])
        ahead += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


@pytest.fixture(scope="session")
def python(built: Built, shared: Path) -> Path:
    """The Python of an environment with the wheel, Django, Celery and what these need, in the versions of this run."""
    interpreter = shared / "env" / "bin" / "python"
    with alone(shared):
        if not (shared / "ready").exists():
            venv.create(shared / "env", symlinks=True)
            place = next((shared / "env" / "lib").glob("python3.*")) / "site-packages"
            for one in needed("django", "celery"):
                for top in {file.parts[0] for file in one.files or []} - {"..", "__pycache__"}:
                    (place / top).symlink_to(Path(str(one.locate_file(top))).resolve())
            pip = [sys.executable, "-m", "pip", "--python", interpreter]
            said(*pip, "install", "--quiet", "--no-index", "--no-deps", built.wheel, cwd=shared)
            assert "No broken requirements found.\n" == said(*pip, "check", cwd=shared)
            (shared / "ready").touch()
    return interpreter


def test_archives(built: Built) -> None:
    """The index would take both; the wheel has each file of the package, the source archive those of the project."""
    said(sys.executable, "-m", "twine", "check", "--strict", built.archive, built.wheel, cwd=built.folder)
    project = set(sources())
    with tarfile.open(built.archive) as archive:
        packed = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}

    assert {path.removeprefix("src/") for path in project if path.startswith("src/")} == built.files()
    assert {f"django_celery_signals/{name}" for name in MEANT} <= built.files()
    assert "pytest_django_celery_signals.py" in built.files()
    assert project - LEFT_OUT | {"PKG-INFO"} == packed


def test_metadata(built: Built) -> None:
    """The wheel needs Django and Celery and nothing else, brings its licence, and lends pytest its fixtures."""
    lines = built.said("METADATA").partition("\n\n")[0].splitlines()

    needs = [line for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert ["Requires-Dist: celery>=5.5", "Requires-Dist: django>=5.2"] == sorted(needs)
    assert {"License-Expression: BSD-3-Clause", "Description-Content-Type: text/markdown"} <= set(lines)
    assert (ROOT / "LICENSE").read_text() == built.said("licenses/LICENSE")
    assert "[pytest11]\ndjango_celery_signals = pytest_django_celery_signals\n" == built.said("entry_points.txt")


def test_imports(python: Path, tmp_path: Path) -> None:
    """With Django and Celery alone every module can be imported, but for two which say what they need."""
    assert WITHOUT == said(python, "-c", dedent(IMPORTS), cwd=tmp_path)


def test_project(python: Path, tmp_path: Path) -> None:
    """A project that was made a moment ago migrates, has nothing to be warned of, and lists what is connected."""
    said(python, "-m", "django", "startproject", "proj", tmp_path, cwd=tmp_path)
    (tmp_path / "shop").mkdir()
    files = {"proj/celery.py": CELERY, "proj/settings.py": SETTINGS, "shop/receivers.py": RECEIVERS}
    files |= {"proj/__init__.py": "from .celery import app\n", "shop/__init__.py": ""}
    for name, text in files.items():
        with open(tmp_path / name, "a") as file:
            file.write(dedent(text))

    def manage(*words: str) -> str:
        return said(python, "manage.py", *words, cwd=tmp_path)

    assert "Applying django_celery_signals.0001_initial... OK" in manage("migrate")
    nothing = "System check identified no issues (0 silenced).\n"
    assert nothing == manage("check", "--fail-level", "WARNING", "--database", "default")
    assert "shop.receivers.welcome" in manage("signals", "list")
    last = manage("shell", "-c", dedent(SAVING)).splitlines()[-2:]
    assert ["No changes detected", "post_save auth.User pk=1 created"] == last
