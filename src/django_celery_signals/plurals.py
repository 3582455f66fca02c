"""Numbers of things in words, for logs and commands."""

from __future__ import annotations


def quantity(number: int, one: str = "delivery", many: str = "deliveries") -> str:
    """Return "1 delivery", "2 deliveries"."""
    return f"{number} {one if number == 1 else many}"
