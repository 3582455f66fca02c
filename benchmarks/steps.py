"""``python -m benchmarks.steps``: what a durable sending's Python does, and how long each step of it takes.

Each step is repeated by itself, of one sending, without a database. Then all of it is in the processor's caches, so the
sum is less than a sending takes among other work, which is in the last line.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from timeit import repeat
from typing import Any

from chaos.report import circumstances

from .__main__ import RESULTS

COUNT, TIMES = 20_000, 7  # the least of so many times


def steps() -> dict[str, Callable[[], Any]]:
    """Return the steps of one sending, in their order, each as what can be repeated."""
    site = import_module("benchmarks.contenders.sending")
    site.make_ready()
    order, task = site._an_order(), site._receive()
    from django.dispatch import Signal

    inner = ("bridge", "context", "dispatch", "envelope", "event", "filters", "names", "options", "wire")
    bridge, context, dispatch, envelope, event, filters, names, options, wire = map(_ours, inner)
    batch, outbox = (_ours(f"durable.{name}") for name in ("batch", "outbox"))
    encoder_of = _ours("codec.instances").InstanceEncoder

    kept: dict[str, Any] = {}
    write = bridge.write

    def keep(sending: Any, *args: Any, **given: Any) -> Any:
        made = write(sending, *args, **given)
        kept.update(sending=sending, args=args, given=given, made=made)
        return made

    def written(*_: Any) -> None:
        """No database."""

    bridge.write, batch.insert = keep, written
    many = site._many(lambda one, count: _batched(site._save_sends, one, count), order)
    many(1)
    bridge.write = write
    sending, made = kept["sending"], kept["made"]
    app, target, own = task.app, bridge.target_of(task.name), options.NOTHING
    merged, name = options.merged(own, app.tasks[task.name]), names.signal_name(sending.signal)
    text = wire.dump(made)
    kwargs = {"signal": sending.signal, "sender": sending.sender, **sending.kwargs}
    plain = Signal()
    plain.connect(_plain, sender=sending.sender)

    def chosen() -> None:
        bridge.is_muted(target.name)
        bridge.is_sending(kwargs)
        bridge.check_signal(sending.signal, target.name)
        options.merged(own, app.tasks.get(target.name))
        bridge._is_internal(sending)
        filters.lets_through(merged, sending, target.name)
        bridge.guarantee_of(merged, sending.signal)
        bridge.alias_of(sending)

    def encoded() -> None:
        encoder = encoder_of(_refuse, snapshot=False, users_too=False)
        envelope._encode_sender(sending.sender, encoder)
        for value in sending.kwargs.values():
            encoder.encode(value)

    def lineage() -> None:
        dispatch._lineage(app, app.tasks.get(target.name))
        dispatch._absolute(app, {})

    def row() -> None:
        outbox.dump, dump = (lambda _: text), outbox.dump  # which is a step of its own
        try:
            outbox.row_of(app, task, made, {}, sent=False)
        finally:
            outbox.dump = dump

    return {
        "Django's Signal.send(), to a receiver that does nothing": lambda: plain.send(**_given(kwargs)),
        "whether, how and where it is sent": chosen,
        "the signal's names and a summary": lambda: (
            names.signal_names(sending.signal),
            envelope.summarise(sending, name),
        ),
        "the event: its id, time, cause": lambda: event.new_event(target.name, name, made.summary, "default"),
        "sender and arguments": encoded,
        "language and time zone": context.captured,
        "what the running task hands down, an expiry": lineage,
        "the envelope as JSON": lambda: wire.dump(made),
        "the row, but for that": row,
        "all, 500 of them in one block": lambda: many(500),
    }


def _ours(name: str) -> Any:
    return import_module(f"django_celery_signals.{name}")


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what a caller gives to ``send()``."""
    return {name: value for name, value in kwargs.items() if name != "signal"}


def _plain(sender: Any, **_: Any) -> None: ...


def _refuse(error: Exception) -> Any:
    raise error


def _batched(send: Callable[[Any], None], one: Any, count: int) -> None:
    from django_celery_signals import batched

    with batched():
        for _ in range(count):
            send(one)


def main() -> int:
    """Measure, and write it down."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.site.settings")
    lines = ["| step | |", "| --- | ---: |"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BENCHMARKS_SITE"] = json.dumps({"database": "sqlite", "folder": folder})
        for name, step in steps().items():
            each = 500 if name.startswith("all") else 1
            step()
            least = min(repeat(step, number=COUNT // each, repeat=TIMES)) / (COUNT // each) / each
            lines.append(f"| {name} | {least * 1e6:.1f} µs |")
            print(lines[-1])
    facts = "\n".join(f"- {name}: {fact}" for name, fact in circumstances().items())
    command = "- command: python -m benchmarks.steps"
    text = "\n".join(lines)
    (RESULTS / "steps.md").write_text(f"# What a sending's Python does\n\n{text}\n\n{command}\n{facts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
