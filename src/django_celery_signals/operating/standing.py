"""``status``: how deliveries stand."""

from __future__ import annotations

from django.core.management.base import OutputWrapper
from django.db.models import Count

from ..durable.deliveries import deliveries
from ..durable.rows import State
from ..durable.texts import LARGE
from .choosing import add_database, aliases
from .words import Options, Word


def _status(options: Options, out: OutputWrapper) -> None:
    """Count what there is, and show one line for each blocked key: what failed, and how many wait behind it."""
    for alias in aliases(options):
        rows = deliveries(alias)
        counts = dict(rows.order_by().values_list("state").annotate(Count("pk")))
        words = ", ".join(f"{counts.get(state.value, 0)} {state.label}" for state in State)
        out.write(f"{alias}: {words}, {rows.waiting().count()} of the ready ones wait for their key's turn")
        blocked = rows.blocked().order_by("finished_at", "pk").defer(*LARGE)
        for row in blocked.iterator(chunk_size=500):
            out.write(
                f"{alias}:{row.pk}  blocked since {row.finished_at:%Y-%m-%d %H:%M:%S}  {row.receiver}  "
                f"key={row.known_key}  behind={row.behind or 0}  {row.summary}  {row.fingerprint}"
            )


WORDS = [
    Word(
        name="status",
        help="count the deliveries, and show the keys that a failed one blocks",
        teaches="Count the deliveries of each database by their states, and show the keys that a failed one blocks, "
        "with how many wait behind each. Example: manage.py signals status --database default",
        add_arguments=add_database,
        run=_status,
    )
]
