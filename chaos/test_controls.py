"""The chaos rig can go red: each safeguard that is taken out of the library shows in a column of its own."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.cells import BY_NAME
from chaos.databases import FOLDERS
from chaos.rig import Options
from chaos.round import play
from chaos.servers import program
from tests.services import are_required

SHORT: dict[str, Any] = {"events": 60, "seed": 7, "lease": 2, "patience": 8, "calm": (0.5, 1.0), "long": 0.0}

#: What is taken out; what is done then; the columns that show it.
CONTROLS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("no fence", {"faults": ("stopped with a lock",)}, ("duplicate_effects",)),
    ("no renewal", {"lease": 1, "long": 0.1, "faults": ("nothing",)}, ("duplicate_runs",)),
    ("claim by last seen", {"library": {"FAST_PATH_LIMIT": 0}, "faults": ("late commit",)}, ("stuck",)),
    ("promote inside", {"busy": 1.0, "pause": 0.2, "faults": ("paused before commit",)}, ("stuck",)),
    ("ungated fold", {"busy": 1.0, "linger": 0.3, "faults": ("published twice",) * 3}, ("lost",)),
    ("delete on publish", {"faults": ("worker killed", "broker lost the half")}, ("lost",)),
    ("plain on_commit", {"faults": ("worker killed", "broker lost the half")}, ("lost",)),
    ("publish before commit", {"faults": ("nothing",)}, ("ghosts",)),
]


@pytest.fixture
def servers() -> None:
    """The programs of the servers that the rig starts."""
    try:
        for name in ("postgres", "redis-server"):
            program(name, *FOLDERS)
    except FileNotFoundError as error:
        if are_required():
            raise
        pytest.skip(str(error))


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize(("control", "given", "columns"), CONTROLS, ids=[control for control, *_ in CONTROLS])
def test_control(control: str, given: dict[str, Any], columns: tuple[str, ...]) -> None:
    """A library without one of its safeguards is caught."""
    options = Options(cell=BY_NAME["postgres-redis-atomic"], control=control, **{**SHORT, **given})

    verdict = play(options, lambda *_: None)

    assert all(getattr(verdict, column) for column in columns), verdict
