"""What is typed into the search box: an object, an event's id, a key, the number of a delivery."""

from __future__ import annotations

import re

from django.apps import apps
from django.db.models import Q

_OBJECT = re.compile(r"(\w+\.\w+)(?::| +pk=| +)(\S+)")  # "shop.Order pk=5", "shop.Order 5", "shop.Order:5"
_EVENT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def about(text: str, *, keys: bool) -> Q:
    """Return the condition that deliveries are about what was typed.

    Args:
        text: what was typed.
        keys: whether whoever asks may know keys; a search for one would tell.
    """
    found = _OBJECT.fullmatch(text)
    if found is not None:
        return _about_object(_label(found[1]), found[2], keys=keys)
    if text.startswith("key="):
        return Q(key=text.removeprefix("key=")) if keys else Q(pk__in=())
    named = Q(key=text) if keys else Q()
    if _EVENT.fullmatch(text):
        return Q(event_id=text.lower()) | _in_summary(f"pk={text.lower()}") | named
    return Q(summary__icontains=text) | Q(receiver=text) | named


def _about_object(label: str, pk: str, *, keys: bool) -> Q:
    told = _in_summary(f"{label} pk={pk}")
    return told | Q(key=f"{label}:{pk}") | Q(key__contains=f'"{label}:{pk}"') if keys else told


def _in_summary(words: str) -> Q:
    """Look for whole words, for ``pk=5`` is not ``pk=55``; what was sent comes first, what happened to it last."""
    return Q(summary__endswith=f" {words}") | Q(summary__contains=f" {words} ")


def _label(text: str) -> str:
    """Return the name of a model as summaries have it."""
    try:
        return str(apps.get_model(text)._meta.label)
    except LookupError:
        return text
