"""What a durable delivery's message holds, and how a worker reads it."""

from __future__ import annotations

from typing import Any

import pytest

from django_celery_signals import DecodeError
from django_celery_signals.durable.reference import Reference, read

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
