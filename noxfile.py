"""The version matrix: ``make matrix``, or ``make matrix NOX_ARGS="--session django-6.0"`` for one row of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nox

MATRIX = {"3.11": "5.2", "3.12": "6.0", "3.13": "6.1"}  # Python: Django
DEFAULT = "3.11"  # the row that every machine has to have
LOWEST = ["django==5.2", "celery==5.5.0", "kombu==5.5.2"]

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # an interpreter that is absent is said, and skipped


def add_interpreters_of_pyenv() -> None:
    """Put the interpreters below ``~/.pyenv`` on the path, before pyenv's own commands of the same names."""
    found = sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin"))
    os.environ["PATH"] = os.pathsep.join([*map(str, found), os.environ.get("PATH", "")])


def is_present(python: str) -> bool:
    """Tell whether an interpreter is there and runs."""
    program = shutil.which(f"python{python}")
    return program is not None and subprocess.run([program, "--version"], capture_output=True).returncode == 0


def run_tests(session: nox.Session, *constraints: str) -> None:
    """Install the package with these versions and run the tests."""
    session.install("--editable", ".[test]", *constraints)
    session.run("python", "-m", "pytest", *session.posargs, env={"PYTHONDEVMODE": "1", "PYTHONMALLOC": "pymalloc"})


add_interpreters_of_pyenv()
if not is_present(DEFAULT):
    raise SystemExit(f"The matrix needs Python {DEFAULT}, and there is no python{DEFAULT} on the path.")


for python, django in MATRIX.items():

    @nox.session(name=f"django-{django}", python=python)
    def tests(session: nox.Session, django: str = django) -> None:
        """Run the tests on a pair of Python and Django."""
        run_tests(session, f"django~={django}.0")


@nox.session(python=DEFAULT)
def lowest(session: nox.Session) -> None:
    """Run the tests with the oldest dependencies that are supported."""
    run_tests(session, *LOWEST)
