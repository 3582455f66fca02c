"""The processes of the project that are no workers: ``python -m chaos.site.roles sender 7``."""

from __future__ import annotations

import os
import sys

import django


def main(role: str, *arguments: str) -> None:
    """Be one of them."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chaos.site.settings")
    django.setup()
    from . import sender, systems  # need the models, and they need Django set up

    if role == "sender":
        sender.Sender(int(arguments[0])).run()
    elif role == "late":
        sender.late(int(arguments[0]), float(arguments[1]))
    elif role == "prepare":
        sender.prepare()
    else:
        print("relaying", flush=True)
        systems.system().relay()


if __name__ == "__main__":
    main(*sys.argv[1:])
