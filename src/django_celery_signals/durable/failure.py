"""What is kept of a failure: its type, message and traceback, and a fingerprint that failures of one cause share."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

MOST_TEXT = 100_000  # characters of a traceback or a message: enough to read, too few to fill a disk

_OTHERS = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OTHERS_FOLDERS = ("site-packages", "dist-packages")  # of the user's, of the system's
_OWN = str(Path(__file__).resolve().parent.parent)


def described(error: BaseException, receiver: str) -> dict[str, Any]:
    """Return the columns of a delivery that describe an error.

    Args:
        error: what was raised.
        receiver: name of the task, by which failures are grouped that happened outside of the project's code.
    """
    name = type_name(error)
    return {
        "error_type": clean(name)[:255],
        "error_message": clean(_message(error))[:MOST_TEXT],
        "traceback": clean("".join(traceback.format_exception(error)))[-MOST_TEXT:],
        "fingerprint": clean(f"{name} in {_place(error) or receiver}")[:255],
    }


def type_name(error: BaseException) -> str:
    """Return the name of an error's class, with its module unless it is Python's own."""
    module, name = type(error).__module__, type(error).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def clean(text: str) -> str:
    """Escape what a database refuses in a text: zero bytes, and halves of characters."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # a class of the project's own may do anything
        return f"its message cannot be shown: {failure!r}"


def _place(error: BaseException) -> str | None:
    """Return the function of the project's own code in which an error came up, seen from where it was raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((_name(frame) for frame in reversed(frames) if _is_projects(frame)), None)


def _is_projects(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return not file.startswith((*_OTHERS, _OWN, "<")) and not any(name in file for name in _OTHERS_FOLDERS)


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}"
