"""What a durable delivery's message holds: where the row is, and what opens it. No value of the sending."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import connections

from ..exceptions import DecodeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The way from a message to its row."""

    alias: str  # of the database
    id: int
    token: int  # nobody guesses it; a message that has it needs no signature
    receiver: str  # name of the task when the row was written

    def carried(self) -> dict[str, Any]:
        """Return what the broker carries."""
        return {"alias": self.alias, "id": self.id, "token": self.token, "receiver": self.receiver}


def read(carried: Mapping[str, Any], names: tuple[str, ...]) -> Reference:
    """Read what a message carries; fields that this version does not know are ignored.

    Args:
        carried: the message's argument.
        names: of the task that got it, now and before.

    Raises:
        DecodeError: when it is damaged, or names what this process does not have.
    """
    try:
        reference = Reference(
            alias=carried["alias"], id=carried["id"], token=carried["token"], receiver=carried["receiver"]
        )
    except KeyError as error:
        raise DecodeError(f"The message of a delivery is without its {error}.") from error
    if not (_is_key(reference.id) and _is_key(reference.token)):
        raise DecodeError(f"The message of a delivery has {reference.id!r:.80}, {reference.token!r:.80} for numbers.")
    if reference.alias not in list(connections):
        raise DecodeError(
            f"The message names the database alias {reference.alias!r:.80}, which this process does not have: its "
            "DATABASES differ from the sender's."
        )
    if reference.receiver not in names:
        raise DecodeError(f"The delivery is addressed to {reference.receiver!r:.120}, not to {names[0]!r}.")
    return reference


def _is_key(value: Any) -> bool:
    """Tell whether a value is a number that a column can hold."""
    return type(value) is int and -(2**63) <= value < 2**63
