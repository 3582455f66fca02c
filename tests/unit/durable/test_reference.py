"""What a durable delivery's message holds, and how a worker reads it."""

from __future__ import annotations

from typing import Any

import pytest

from django_celery_signals import DecodeError
from django_celery_signals.durable.reference import Chunk, Reference, is_chunk, read, read_chunk

CARRIED = {"alias": "default", "id": 5, "token": 2**60, "receiver": "shop.tasks.index"}
NAMES = ("shop.tasks.index", "shop.tasks.old_index")


def test_what_is_carried() -> None:
    """The broker carries where the row is, what opens it, and for whom it is; nothing else."""
    reference = Reference(**CARRIED)

    assert CARRIED == reference.carried()
    assert reference == read(reference.carried(), NAMES)


def test_a_former_name() -> None:
    """A message from before a task was renamed is read (H75)."""
    assert "shop.tasks.old_index" == read({**CARRIED, "receiver": "shop.tasks.old_index"}, NAMES).receiver


def test_fields_of_a_newer_version() -> None:
    """What a newer version says beside is ignored (H75)."""
    assert Reference(**CARRIED) == read({**CARRIED, "priority": 3}, NAMES)


@pytest.mark.parametrize("name", CARRIED)
def test_a_missing_field(name: str) -> None:
    """Without one of its fields a message is damaged (H32)."""
    carried = {key: value for key, value in CARRIED.items() if key != name}

    with pytest.raises(DecodeError, match=rf"^The message of a delivery is without its '{name}'\.$"):
        read(carried, NAMES)


@pytest.mark.parametrize("value", ["5", 5.0, True, None, [5], 2**63, -(2**63) - 1], ids=repr)
@pytest.mark.parametrize("name", ["id", "token"])
def test_no_number(name: str, value: Any) -> None:
    """What is no whole number of a column opens no row (H32)."""
    with pytest.raises(DecodeError, match="for numbers"):
        read({**CARRIED, name: value}, NAMES)


@pytest.mark.parametrize("alias", ["elsewhere", "", None, 7, ["default"], {"default": 1}], ids=repr)
def test_an_unknown_database(alias: Any) -> None:
    """The database is one that the process has, or the error says that the settings differ (H32, H48)."""
    with pytest.raises(DecodeError, match="DATABASES differ from the sender's"):
        read({**CARRIED, "alias": alias}, NAMES)


@pytest.mark.parametrize("receiver", ["shop.tasks.other", "", None, 7, ["shop.tasks.index"]], ids=repr)
def test_another_receiver(receiver: Any) -> None:
    """A message for one task cannot be sent to another (H32)."""
    with pytest.raises(DecodeError, match=r"^The delivery is addressed to .*, not to 'shop\.tasks\.index'\.$"):
        read({**CARRIED, "receiver": receiver}, NAMES)


@pytest.mark.parametrize("name", ["alias", "receiver", "id"])
def test_long_nonsense(name: str) -> None:
    """An error shows the beginning of what was sent, and no more."""
    with pytest.raises(DecodeError) as caught:
        read({**CARRIED, name: "x" * 10_000}, NAMES)

    assert len(str(caught.value)) < 400


# Of several ----------------------------------------------------------------------------------------------------------

SEVERAL = {"alias": "default", "receiver": "shop.tasks.index", "rows": [[5, 2**60], [6, -7]]}


def test_what_is_carried_of_several() -> None:
    """A message of several has the id and the token of each, and no more; so it comes back from any serializer."""
    chunk = read_chunk(SEVERAL, NAMES)

    assert Chunk(alias="default", receiver="shop.tasks.index", rows=[(5, 2**60), (6, -7)]) == chunk
    assert chunk == read_chunk({**chunk.carried(), "new": 1}, NAMES)
    assert "shop.tasks.old_index" == read_chunk({**SEVERAL, "receiver": "shop.tasks.old_index"}, NAMES).receiver


@pytest.mark.parametrize(
    ("carried", "several"), [(SEVERAL, True), (CARRIED, False), ("sealed", False), (None, False), ([], False)]
)
def test_which_has_several(carried: Any, several: bool) -> None:
    """A message says itself whether it has several."""
    assert several is is_chunk(carried)


@pytest.mark.parametrize("name", SEVERAL)
def test_a_missing_field_of_several(name: str) -> None:
    """Without one of its fields a message is damaged (H32)."""
    carried = {key: value for key, value in SEVERAL.items() if key != name}

    with pytest.raises(DecodeError, match=rf"^The message of several deliveries is damaged: KeyError\('{name}'\)"):
        read_chunk(carried, NAMES)


NO_PAIRS: list[Any] = [5, None, [5], [[5]], [[5, 6, 7]], "rows", [], [None], [[5, 6]] * 501]


@pytest.mark.parametrize("rows", NO_PAIRS, ids=lambda rows: repr(rows)[:20])
def test_no_pairs(rows: Any) -> None:
    """What are no pairs of numbers open no rows (H32)."""
    with pytest.raises(DecodeError, match="The message of several deliveries is damaged"):
        read_chunk({**SEVERAL, "rows": rows}, NAMES)


@pytest.mark.parametrize("value", ["5", 5.0, True, None, [5], 2**63], ids=repr)
@pytest.mark.parametrize("place", [0, 1])
def test_no_number_of_several(value: Any, place: int) -> None:
    """One that has no number of a column is refused with all (H32)."""
    pair = [value, 7] if place == 0 else [7, value]
    with pytest.raises(DecodeError, match="for numbers"):
        read_chunk({**SEVERAL, "rows": [[5, 6], pair]}, NAMES)


@pytest.mark.parametrize("change", [{"alias": "elsewhere"}, {"alias": 7}, {"receiver": "shop.tasks.other"}], ids=str)
def test_another_address_of_several(change: dict[str, Any]) -> None:
    """The database is one that the process has, and the receiver is the task (H32, H48)."""
    with pytest.raises(DecodeError, match=r"DATABASES differ|is addressed to"):
        read_chunk({**SEVERAL, **change}, NAMES)


def test_long_nonsense_of_several() -> None:
    """An error shows the beginning of what was sent, and no more."""
    for change in ({"rows": [["x" * 10_000, 5]]}, {"alias": "x" * 10_000}, {"rows": "x" * 10_000}):
        with pytest.raises(DecodeError) as caught:
            read_chunk({**SEVERAL, **change}, NAMES)
        assert len(str(caught.value)) < 400
