"""What a name on the command line means: a model, a many-to-many field, a signal; and what is connected to it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist
from django.core.management.base import CommandError
from django.db.models import Model
from django.dispatch import Signal

from .. import names
from ..connected import ANY, Connected, Plain, connected, plain, signals
from ..filters import is_excluded


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a name means: one of the three."""

    model: type[Model] | None = None
    relation: Any = None  # a many-to-many field, together with its model
    signal: Signal | None = None


def subject_of(text: str) -> Subject:
    """Return what a name means: ``app.Model``, ``app.Model.field``, or a signal's, with its module or without.

    Raises:
        CommandError: for an unknown name, with those that are close to it.
    """
    model, field = _model_and_field(text)
    if model is not None:
        return Subject(model=model, relation=_relation(model, field) if field else made_for(model))
    found = [one for one in signals() if is_named(one, text)]
    if len(found) > 1:
        those = ", ".join(sorted(map(names.signal_name, found)))
        raise CommandError(f"{text!r} is the name of several signals: {those}. Give one of these.")
    if not found:
        raise CommandError(
            f"{text!r} is no installed model ('app.Model'), no many-to-many field ('app.Model.field') and no signal of "
            f"an imported module ('post_save', 'app.signals:name').{did_you_mean(text, _all_names())}"
        )
    return Subject(signal=found[0])


def _model_and_field(text: str) -> tuple[type[Model] | None, str]:
    app_label, _, rest = text.partition(".")
    name, _, field = rest.partition(".")
    for model in apps.get_models(include_auto_created=True, include_swapped=True):
        if model._meta.label_lower == f"{app_label}.{name}".lower():
            return _installed(model), field
    return None, ""


def _installed(model: type[Model]) -> type[Model]:
    """A swapped-out model never sends: its replacement does."""
    return apps.get_model(str(model._meta.swapped)) if model._meta.swapped else model


def _relation(model: type[Model], name: str) -> Any:
    label, own = model._meta.label, [one.name for one in relations_of(model)]
    try:
        field: Any = model._meta.get_field(name)
    except FieldDoesNotExist as error:
        every = [one.name for one in model._meta.get_fields()]
        raise CommandError(f"{label} has no field {name!r}.{did_you_mean(name, itself(every))}") from error
    if not field.many_to_many:
        raise CommandError(
            f"{label}.{name} is no many-to-many field, so it has no signal of its own: a save of {label} is one, and "
            f"changed= may look at {name}. Explain {label}; its many-to-many fields are {', '.join(own) or 'none'}."
        )
    return field


def relations_of(model: type[Model]) -> list[Any]:
    """Return the many-to-many fields of a model, its own and those that lead to it; of one that is both, its own."""
    found = [one for one in model._meta.get_fields() if one.many_to_many and through_of(one) is not None]
    by_sender: dict[Any, Any] = {}
    for one in sorted(found, key=lambda one: one.auto_created):  # its own first
        by_sender.setdefault(through_of(one), one)
    return list(by_sender.values())


def through_of(relation: Any) -> Any:
    """Return what sends the changes of a many-to-many field, seen from either side; None: nothing does."""
    if relation.auto_created:
        return relation.through
    return getattr(relation.remote_field, "through", None)


def made_for(model: Any) -> Any:
    """Return the many-to-many field for which Django made a through model; None for any other sender."""
    owner: Any = model._meta.auto_created if isinstance(model, type) and issubclass(model, Model) else None
    own = owner._meta.local_many_to_many if owner else ()
    return next((one for one in own if one.remote_field.through is model), None)


def sender_name(sender: Any, label: str) -> str:
    """Return what to call a sender: the through model that Django made of a relation by the name of its field."""
    field = made_for(sender)
    return label if field is None else f"{field.model._meta.label}.{field.name}"


def is_named(signal: Signal, text: str) -> bool:
    """Tell whether a signal has a name: ``shop.signals:paid``, ``shop.signals.paid`` or ``paid``."""
    known = names.signal_names(signal)
    return any(text in (one, one.replace(":", "."), names.short_name(one)) for one in known)


def shown_name(signal_name: str) -> str:
    """Return what to call a signal."""
    return names.short_name(signal_name) or "(unnamed)"


def _all_names() -> dict[str, str]:
    """Return what may be meant, by what may have been written for it."""
    models = apps.get_models()
    labels = {model._meta.label: model._meta.label for model in models}
    fields = [f"{model._meta.label}.{one.name}" for model in models for one in model._meta.local_many_to_many]
    every = [name for signal in signals() for name in names.signal_names(signal)[:1]]
    bare = {model.__name__: model._meta.label for model in models}
    return {**bare, **labels, **itself([*fields, *every, *map(names.short_name, every)])}


def itself(known: Iterable[str]) -> dict[str, str]:
    """Return names that are to be written as they are, for :func:`did_you_mean`."""
    return {name: name for name in known}


def did_you_mean(text: str, known: Mapping[str, str]) -> str:
    """Return a sentence that names what is close to a text, or nothing.

    Args:
        text: what was written.
        known: what may be meant, by what may have been written for it.
    """
    lower = {written.lower(): meant for written, meant in known.items()}
    close = dict.fromkeys(lower[one] for one in difflib.get_close_matches(text.lower(), lower, n=3))
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def sent_to(signal: Signal, sender: Any) -> Iterator[Connected]:
    """Yield the tasks that a sender's signal calls."""
    for one in connected():
        if one.signal is signal and _is_for(one, sender):
            yield one


def _is_for(one: Connected, sender: Any) -> bool:
    if any(is_excluded(sender, entry) for entry in one.options.exclude or ()):
        return False
    family = one.options.family
    return issubclass(sender, family) if family is not None else one.sender == ANY or one.sender_class is sender


def called_at_once(signal: Signal, sender: Any) -> list[Plain]:
    """Return the other receivers that a sender's signal calls, in Django's order."""
    return [one for one in plain(signal) if one.sender == ANY or one.sender_class is sender]
