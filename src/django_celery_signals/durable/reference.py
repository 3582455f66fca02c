"""What a durable delivery's message holds: where the row is, or several are, and what opens it. No value of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    folds: bool = False  # whether others may wait behind it, to be folded into it: who opens it asks at once

    def carried(self) -> dict[str, Any]:
        """Return what the broker carries."""
        carried = {"alias": self.alias, "id": self.id, "token": self.token, "receiver": self.receiver}
        return {**carried, "folds": True} if self.folds else carried


MOST = 500  # deliveries that a message may refer to


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The way from one message to several rows of a receiver."""

    alias: str
    receiver: str
    rows: Sequence[tuple[int, int]]  # id and token of each

    def carried(self) -> dict[str, Any]:
        """Return what the broker carries."""
        return {"alias": self.alias, "receiver": self.receiver, "rows": self.rows}


def is_chunk(carried: Any) -> bool:
    """Tell whether a message refers to several rows."""
    return isinstance(carried, Mapping) and "rows" in carried


def read(carried: Mapping[str, Any], names: tuple[str, ...]) -> Reference:
    """Read what a message carries; fields that this version does not know are ignored.

    Args:
        carried: the message's argument.
        names: of the task that got it, now and before.

    Raises:
        DecodeError: when it is damaged, or names what this process does not have.
    """
    try:
        way = {name: carried[name] for name in ("alias", "id", "token", "receiver")}
        reference = Reference(**way, folds=carried.get("folds") is True)
    except KeyError as error:
        raise DecodeError(f"The message of a delivery is without its {error}.") from error
    _check_numbers(reference.id, reference.token)
    _check_address(reference, names)
    return reference


def read_chunk(carried: Mapping[str, Any], names: tuple[str, ...]) -> Chunk:
    """Read what a message of several carries.

    Args:
        carried: the message's argument.
        names: of the task that got it, now and before.

    Raises:
        DecodeError: when it is damaged, or names what this process does not have.
    """
    try:
        rows = [(pk, token) for pk, token in carried["rows"]]
        if not 0 < len(rows) <= MOST:
            raise ValueError(f"it refers to {len(rows)} deliveries")
        chunk = Chunk(alias=carried["alias"], receiver=carried["receiver"], rows=rows)
    except (KeyError, TypeError, ValueError) as error:
        raise DecodeError(f"The message of several deliveries is damaged: {error!r:.120}") from error
    for pk, token in chunk.rows:
        _check_numbers(pk, token)
    _check_address(chunk, names)
    return chunk


def _check_numbers(pk: Any, token: Any) -> None:
    if not (_is_key(pk) and _is_key(token)):
        raise DecodeError(f"The message of a delivery has {pk!r:.80}, {token!r:.80} for numbers.")


def _check_address(found: Reference | Chunk, names: tuple[str, ...]) -> None:
    if found.alias not in list(connections):
        raise DecodeError(
            f"The message names the database alias {found.alias!r:.80}, which this process does not have: its "
            "DATABASES differ from the sender's."
        )
    if found.receiver not in names:
        raise DecodeError(f"The delivery is addressed to {found.receiver!r:.120}, not to {names[0]!r}.")


def _is_key(value: Any) -> bool:
    """Tell whether a value is a number that a column can hold."""
    return type(value) is int and -(2**63) <= value < 2**63
