"""Read the site, in a process that has its settings: ``python -m chaos.collect look``."""

from __future__ import annotations

import json
import sys

import django


def main(what: str) -> None:
    """Print it as JSON."""
    django.setup()
    from .site import reading  # needs the models, and they need Django set up

    json.dump(getattr(reading, what)(), sys.stdout, default=str)


if __name__ == "__main__":
    main(*sys.argv[1:])
