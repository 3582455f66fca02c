"""The chaos rig can go red: each safeguard that is taken out of the library shows in a column of its own."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.cells import BY_NAME
from chaos.databases import FOLDERS
from chaos.rig import Options
from chaos.round import play
from chaos.servers import program
from chaos.verdict import COLUMNS
from tests.services import are_required

SHORT: dict[str, Any] = {
    "events": 60,
    "seed": 7,
    "lease": 2,
    "patience": 25,
    "calm": (0.5, 1.0),
    "long": 0.0,
    "receiver_faults": False,
    "imports": 0.0,
}

#: What is taken out; what is done then; the column that shows it, and those that may show it as well.
CONTROLS: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    (  # what goes on after its delivery was run by another may also come after the next of its key
        "no fence",
        {"faults": ("stopped in the body",)},
        "duplicate_effects",
        ("needless_runs", "overlaps", "order_inversions"),
    ),
    (
        "no renewal",
        {"lease": 1, "long": 0.1, "faults": ("nothing",)},
        "duplicate_runs",
        ("failed", "quarantined", "stuck"),
    ),
    ("claim by last seen", {"library": {"FAST_PATH_LIMIT": 0}, "faults": ("late commit",)}, "stuck", ()),
    ("promote inside", {"busy": 1.0, "pause": 0.2, "faults": ("paused before commit",) * 2}, "stuck", ()),
    ("ungated fold", {"busy": 1.0, "linger": 0.3, "faults": ("published twice",) * 3}, "lost", ("overlaps",)),
    ("delete on publish", {"faults": ("worker killed", "broker lost the half")}, "lost", ()),
    ("plain on_commit", {"faults": ("worker killed", "broker lost the half")}, "lost", ()),
    ("publish before commit", {"faults": ("nothing",)}, "ghosts", ()),
]
#: What may be there in the library as it is: a worker that dies takes runs with it.
ALLOWED = ("duplicate_runs",)


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
@pytest.mark.parametrize(("control", "given", "column", "others"), CONTROLS, ids=[control for control, *_ in CONTROLS])
def test_control(control: str, given: dict[str, Any], column: str, others: tuple[str, ...]) -> None:
    """A library without one of its safeguards is caught, in the column for that, and the whole one is not."""
    bad, good = (_found(control=name, **given) for name in (control, ""))

    assert {column} <= bad.keys() <= {column, *others, *ALLOWED}, bad
    assert good.keys() <= set(ALLOWED) - ({column} if column in ALLOWED else set()), good


def _found(**given: Any) -> dict[str, int]:
    """Play, and return the columns that are not zero."""
    options = Options(cell=BY_NAME["postgres-redis-atomic"], **{**SHORT, **given})
    verdict = play(options, lambda *_: None)
    return {name: count for name in COLUMNS if (count := getattr(verdict, name))}
