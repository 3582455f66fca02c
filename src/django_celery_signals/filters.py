"""Which sendings a connection is for: what its options let through."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Iterable
from typing import Any

from django.apps import apps
from django.db.models import Model
from django.db.models.signals import ModelSignal, post_save

from . import changes, conf
from .codec.instances import as_instance
from .envelope import Sending
from .options import SendingOptions
from .parameters import accepted

logger = logging.getLogger(__name__)


def lets_through(options: SendingOptions, sending: Sending, receiver: str) -> bool:
    """Decide whether a sending is one that the connection is for; the cheapest question comes first."""
    kwargs = sending.kwargs
    if kwargs.get("raw") is True and not options.raw and isinstance(sending.signal, ModelSignal):
        return False
    if options.created is not None and kwargs.get("created") is not options.created:
        return False
    if options.family is not None and not (
        isinstance(sending.sender, type) and issubclass(sending.sender, options.family)
    ):
        return False
    if options.exclude is not None and any(is_excluded(sending.sender, entry) for entry in options.exclude):
        return False
    if options.action is not None and not _any_match(kwargs.get("action"), options.action):
        return False
    if options.changed is not None and not _has_changed(options.changed, sending, receiver):
        return False
    return options.when is None or _ask(options.when, sending, receiver)


def is_excluded(sender: Any, entry: Any) -> bool:
    """Tell whether a sender is the one that an entry of ``exclude=`` names."""
    label = _label_of(entry)
    if label is None:
        return sender is entry
    return isinstance(sender, type) and issubclass(sender, Model) and label == sender._meta.label_lower


def _label_of(entry: Any) -> str | None:
    """Return the label of the model an entry names; a swapped-out model stands for its replacement."""
    model = entry
    if isinstance(entry, str):
        app_label, _, name = entry.partition(".")
        model = apps.all_models.get(app_label, {}).get(name.lower())
    if isinstance(model, type) and issubclass(model, Model):
        return str(model._meta.swapped or model._meta.label).lower()
    return None


def _any_match(action: Any, patterns: Iterable[str]) -> bool:
    return isinstance(action, str) and any(fnmatch.fnmatchcase(action, pattern) for pattern in patterns)


def _has_changed(names: tuple[str, ...], sending: Sending, receiver: str) -> bool:
    instance = as_instance(sending.kwargs.get("instance"))
    if sending.signal is not post_save or instance is None:
        return True
    if not changes.is_watched(type(instance), names):
        changes.watch(type(instance), names, f"task {receiver}")
        logger.warning(
            "changed=%r of %s begins to work with the instances loaded from now on: a plain post_save.connect() cannot "
            "know the model beforehand. Use receiver_task() or connect().",
            names,
            receiver,
        )
        return True
    changes.settle(instance, sending.kwargs)
    return sending.kwargs.get("created") is True or bool(changes.changes_of(instance, names))


def _ask(when: Callable[..., Any], sending: Sending, receiver: str) -> bool:
    available = {**sending.kwargs, "sender": sending.sender, "signal": sending.signal}
    try:
        return bool(when(**accepted(when, available)))
    except Exception:
        if conf.get().STRICT:
            raise
        logger.exception("when= of %s raised; the event is sent all the same.", receiver)
        return True
