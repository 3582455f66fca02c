"""What others watch with, told by the library's own signals. A module may need a package, and nothing needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needing(package: str, *, extra: str) -> Iterator[None]:
    """Import what a module needs, or say how to get it.

    Raises:
        ImportError: when it is not there.
    """
    try:
        yield
    except ImportError as error:
        text = f'This needs {package}, which cannot be imported: pip install "django-celery-signals[{extra}]"'
        raise ImportError(text, name=error.name, path=error.path) from error
