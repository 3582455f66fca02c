"""``list``: what is connected."""

from __future__ import annotations

from argparse import ArgumentParser

from django.core.management.base import OutputWrapper

from .. import conf
from ..broker import project_app
from ..durable import saving
from ..durable.routes import queue_of
from ..names import short_name, signal_name
from ..receivers import connections as connected
from ..senders import label_of
from .words import Options, Word


def _add_nothing(parser: ArgumentParser) -> None: ...


def _list(options: Options, out: OutputWrapper) -> None:
    """Show one line for each connection; what a plain ``signal.connect`` made is known to Django alone."""
    app, default = project_app(), conf.default_guarantee()
    for one in connected():
        queue = queue_of(app, one.receiver, {"queue": one.options.queue}) or "(by its route)"
        out.write(
            f"{short_name(signal_name(one.signal))}  {label_of(one.sender)}  {one.receiver}  "
            f"guarantee={one.options.guarantee or default}  queue={queue}"
        )
    atomic = ", ".join(sorted(model._meta.label for model in saving.models())) or "none"
    out.write(f"models whose saves are atomic: {atomic if conf.get().ATOMIC_SAVES else 'none (ATOMIC_SAVES)'}")


WORDS = [
    Word(
        name="list",
        help="show what is connected, and the models whose saves are atomic for it",
        teaches="Show one line for each connection: signal, sender, receiver, guarantee, queue; then the models whose "
        "saves are atomic because of ATOMIC_SAVES.",
        add_arguments=_add_nothing,
        run=_list,
    )
]
