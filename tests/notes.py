"""What an error says beside its message."""

from __future__ import annotations


def notes_of(error: BaseException) -> list[str]:
    """Return its notes, and its cause's: Django makes an error of its own of the client's, whose notes it has not."""
    return [*getattr(error, "__notes__", []), *getattr(error.__cause__, "__notes__", [])]
