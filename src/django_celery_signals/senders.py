"""The senders a connection names: classes, objects, lazy strings, lists; resolved now or when the model is loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any

from django.apps import apps
from django.db.models import Model
from django.db.models.signals import ModelSignal, m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.dispatch import Signal

from .exceptions import ConnectError

Use = Callable[[Any], None]

_OF_ROWS = (pre_save, post_save, pre_delete, post_delete)
_OTHER_TEXT = (
    "Django tells other strings apart by identity, so one would never match: connect without sender= and choose with "
    "when=lambda sender: ..."
)
_LAZY = re.compile(r"(\w+)\.(\w+)(?:\.(\w+))?")


def each_sender(sender: Any, use: Use, place: str, *, subclasses: bool = False) -> None:
    """Call ``use`` with every sender that ``sender`` names, at once or as soon as its model is there.

    Args:
        sender: a model or another class or object, None, ``"app.Model"``, ``"app.Model.field"``, or a list of these.
        use: called with what Django knows the sender by.
        place: what to call the declaration in an error.
        subclasses: whether an abstract model may be named, for its subclasses' sake.

    Raises:
        ConnectError: for a sender that never sends.
    """
    for one in several(sender):
        if isinstance(one, str):
            _when_loaded(one, use, place)
        elif isinstance(one, type) and issubclass(one, Model):
            _model(one, use, place, subclasses)
        else:
            use(one)


def several(sender: Any) -> list[Any]:
    """Return the senders that one argument names; an iterator, such as ``app_config.get_models()``, is used up."""
    return list(sender) if isinstance(sender, (list, tuple, set, frozenset, Iterator)) else [sender]


def check_senders(signal: Signal, senders: list[Any], place: str) -> None:
    """Refuse what can be no sender of a signal.

    Raises:
        ConnectError: naming the sender, and what to write instead.
    """
    if not senders:
        raise ConnectError(
            f"{place}: the list sender= is empty, so nothing would be connected. Leave sender= out for all."
        )
    for one in senders:
        if isinstance(signal, ModelSignal) and one is not None and not isinstance(one, (str, type)):
            raise ConnectError(
                f"{place}: sender={one!r} is no model, but models send this signal. Name the class, 'app.Model', or, "
                "for the through model of a many-to-many field, 'app.Model.field'."
            )


def check_model(signal: Signal, model: Any, place: str) -> None:
    """Refuse a model that never sends a signal, as far as that can be told by now.

    Raises:
        ConnectError: naming what sends it.
    """
    if not apps.models_ready or not isinstance(model, type) or not issubclass(model, Model):
        return
    if signal in _OF_ROWS and model._meta.auto_created:
        raise ConnectError(
            f"{place}: {model._meta.label} is the generated through model of a many-to-many field, which sends nothing "
            "but m2m_changed. Connect to that."
        )
    fields: list[Any] = [
        *model._meta.many_to_many,
        *(one.field for one in model._meta.related_objects if one.many_to_many),
    ]
    if signal is m2m_changed and fields and not _is_through(model):
        named = [f"{field.model._meta.label}.{field.name}" for field in fields]
        raise ConnectError(
            f"{place}: {model._meta.label} never sends m2m_changed, the through models of its relations do. Name them: "
            f"sender={named}."
        )


def _is_through(model: type[Model]) -> bool:
    fields: Any = (field for owner in model._meta.apps.get_models() for field in owner._meta.local_many_to_many)
    return any(field.remote_field.through is model for field in fields)


def label_of(sender: Any) -> str:
    """Return a stable word for a sender."""
    if isinstance(sender, type) and issubclass(sender, Model):
        return str(sender._meta.label)
    return str(getattr(sender, "__qualname__", None) or repr(sender)) if sender is not None else "*"


def _when_loaded(text: str, use: Use, place: str) -> None:
    match = _LAZY.fullmatch(text)
    if match is None:
        raise ConnectError(f"{place}: sender={text!r} is not 'app.Model' or 'app.Model.field'. {_OTHER_TEXT}")
    app_label, model_name, field_name = match.groups()
    if apps.models_ready:
        _check_known(app_label, model_name, text, place)

    def found(model: type[Model]) -> None:
        if field_name is None:
            _model(model, use, place, subclasses=True)
        else:
            _through(model, field_name, use, place)

    found.__qualname__ = place  # what Django's check for lazy references shows of it
    apps.lazy_model_operation(found, (app_label, model_name.lower()))


def _check_known(app_label: str, model_name: str, text: str, place: str) -> None:
    try:
        apps.get_registered_model(app_label, model_name)
    except LookupError as error:
        labels = {model._meta.label_lower: model._meta.label for model in apps.get_models(include_auto_created=True)}
        close = difflib.get_close_matches(f"{app_label}.{model_name}".lower(), labels, n=1)
        remedy = f"Did you mean {labels[close[0]]!r}?" if close else f"Check INSTALLED_APPS. {_OTHER_TEXT}"
        raise ConnectError(f"{place}: sender={text!r} names no installed model. {remedy}") from error


def _through(model: type[Model], field_name: str, use: Use, place: str) -> None:
    if model._meta.swapped:  # its relations have no through model
        _when_loaded(f"{model._meta.swapped}.{field_name}", use, place)
        return
    field = next((field for field in model._meta.many_to_many if field.name == field_name), None)
    if field is None:
        fields = ", ".join(field.name for field in model._meta.many_to_many) or "none"
        raise ConnectError(
            f"{place}: {model._meta.label} has no many-to-many field {field_name!r}. It has {fields}; a relation is "
            "named by the model that declares it."
        )
    through = field.remote_field.through
    if isinstance(through, str):
        _when_loaded(through if "." in through else f"{model._meta.app_label}.{through}", use, place)
    else:
        use(through)


def _model(model: type[Model], use: Use, place: str, subclasses: bool) -> None:
    """A swapped-out model never sends: its replacement does."""
    if model._meta.swapped:
        _when_loaded(str(model._meta.swapped), use, place)
    elif model._meta.abstract and not subclasses:
        raise ConnectError(
            f"{place}: {model.__name__} is abstract and never sends. Name its concrete models, or, for "
            "sender= only, add subclasses=True."
        )
    else:
        use(model)
