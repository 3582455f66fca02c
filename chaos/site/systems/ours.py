"""This library."""

from __future__ import annotations

from typing import Any

from django.core.management import call_command
from django.db.models.signals import post_save

from chaos.site import controls, points
from chaos.site.models import Happening
from chaos.site.receivers import ATOMIC, receive
from django_celery_signals import batched, deliveries, receiver_task

FAILED = 4  # a delivery's state
#: Nothing is ever deleted: whoever misses an instance has been told of one that was rolled back.
OPTIONS: dict[str, Any] = {"sender": Happening, "atomic": ATOMIC, "max_retries": 20, "on_missing": "fail"}
ORDERS = controls.TURNS
together = batched


def connect() -> None:
    """Declare a receiver for each kind, and change the library as the rig asks."""
    controls.install()
    points.install()

    @receiver_task(
        post_save, name="free", when=lambda instance: instance.kind == "free", **{**OPTIONS, **controls.OPTIONS}
    )
    def free(instance: Happening, created: bool) -> None:
        receive(instance.pk, lambda: instance)

    if not ORDERS:
        return

    @receiver_task(
        post_save,
        name="ordered",
        when=lambda instance: instance.kind in ("ordered", "late"),
        key=lambda instance: instance.key,
        ordered=True,
        **OPTIONS,
    )
    def ordered(instance: Happening, created: bool) -> None:
        receive(instance.pk, lambda: instance)

    @receiver_task(
        post_save,
        name="folded",
        when=lambda instance: instance.kind == "folded",
        key=lambda instance: instance.key,
        coalesce=True,
        **OPTIONS,
    )
    def folded(instance: Happening, event: Any) -> None:
        receive(instance.pk, lambda: instance, event.coalesced + 1)


def relay() -> None:
    """Relay."""
    call_command("signals", "relay")


def open_count() -> int:
    """Return how many deliveries are open."""
    return int(deliveries("default").exclude(state=FAILED).count())


def left() -> list[dict[str, Any]]:
    """Return what is open, and what was given up with the type of its error."""
    rows = deliveries("default").values_list("summary", "state", "error_type")
    return [
        {"number": int(summary.rpartition("pk=")[2].split()[0]), "given_up": state == FAILED, "error": _bare(error)}
        for summary, state, error in rows
    ]


def _bare(error: str | None) -> str:
    return (error or "").rpartition(".")[2]
