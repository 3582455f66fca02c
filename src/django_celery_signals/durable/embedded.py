"""The relay inside of a worker: a thread of its main process, so that a small project needs no further one."""

from __future__ import annotations

import logging
import os
import threading
from functools import cache
from typing import Any

from celery.signals import worker_ready, worker_shutdown, worker_shutting_down
from django.db import connections

from .. import conf
from .relay import Relay, keeping

logger = logging.getLogger(__name__)

LONGEST_BATCH = 5.0  # seconds for which a new child waits for it, at most
PATIENCE = 15.0  # seconds for which the end of a worker waits for the relay's batch

_running: list[tuple[Relay, threading.Thread]] = []


def start(sender: Any = None, **_: Any) -> None:
    """Start the relay of a worker that is ready, unless ``EMBED_RELAY`` is off."""
    if not conf.get().EMBED_RELAY:
        return
    for alias in keeping():  # one for each: a database that does not answer must not delay the others
        relay = Relay(app=getattr(sender, "app", None), databases=[alias])
        if connections[alias].vendor == "sqlite":
            relay.guard = _guard()
        thread = threading.Thread(target=relay.run, name=f"django-celery-signals-relay-{alias}", daemon=True)
        _running.append((relay, thread))
        thread.start()


@cache
def _guard() -> threading.Lock:
    """Return what a relay holds while it is busy with SQLite: meanwhile no child of the worker is forked.

    SQLite has locks that are the whole process's. A child that is forked while another thread has one of them inherits
    it locked, and waits for ever when it opens its own connection.
    """
    guard, held = threading.Lock(), []

    def wait() -> None:
        held.append(guard.acquire(timeout=LONGEST_BATCH))

    def go_on() -> None:
        if held.pop():
            guard.release()

    os.register_at_fork(before=wait, after_in_parent=go_on, after_in_child=go_on)
    return guard


def stop(**_: Any) -> None:
    """Tell the relay to end after its batch."""
    for relay, _thread in _running:
        relay.stop()


def join(**_: Any) -> None:
    """Wait until it has ended."""
    stop()
    while _running:
        _running.pop()[1].join(PATIENCE)


def embed() -> None:
    """Let every worker of this process have a relay."""
    worker_ready.connect(start, dispatch_uid=f"{__name__}.start")
    worker_shutting_down.connect(stop, dispatch_uid=f"{__name__}.stop")
    worker_shutdown.connect(join, dispatch_uid=f"{__name__}.join")
