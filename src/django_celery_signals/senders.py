"""The senders a connection names: classes, objects, lazy strings, lists; resolved now or when the model is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.db.models import Model

from .exceptions import ConnectError

Use = Callable[[Any], None]

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
    for one in sender if isinstance(sender, (list, tuple, set, frozenset)) else [sender]:
        if isinstance(one, str):
            _when_loaded(one, use, place)
        elif isinstance(one, type) and issubclass(one, Model):
            _model(one, use, place, subclasses)
        else:
            use(one)


def label_of(sender: Any) -> str:
    """Return a stable word for a sender."""
    if isinstance(sender, type) and issubclass(sender, Model):
        return str(sender._meta.label)
    return str(getattr(sender, "__qualname__", None) or repr(sender)) if sender is not None else "*"


def _when_loaded(text: str, use: Use, place: str) -> None:
    match = _LAZY.fullmatch(text)
    if match is None:
        raise ConnectError(
            f"{place}: sender={text!r} is not 'app.Model' or 'app.Model.field'. Django tells other strings apart "
            "by identity, so one would never match: connect without sender= and choose with when=lambda sender: ..."
        )
    app_label, model_name, field_name = match.groups()
    if apps.models_ready:
        _check_known(app_label, model_name, text, place)

    def found(model: type[Model]) -> None:
        if field_name is None:
            _model(model, use, place, subclasses=True)
        else:
            _through(model, field_name, use, place)

    apps.lazy_model_operation(found, (app_label, model_name.lower()))


def _check_known(app_label: str, model_name: str, text: str, place: str) -> None:
    try:
        apps.get_registered_model(app_label, model_name)
    except LookupError as error:
        raise ConnectError(f"{place}: sender={text!r} names no installed model ({error}).") from error


def _through(model: type[Model], field_name: str, use: Use, place: str) -> None:
    if model._meta.swapped:  # its relations have no through model
        _when_loaded(f"{model._meta.swapped}.{field_name}", use, place)
        return
    field = next((field for field in model._meta.many_to_many if field.name == field_name), None)
    if field is None:
        raise ConnectError(f"{place}: {model._meta.label} has no many-to-many field {field_name!r}.")
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
            f"{place}: {model.__name__} is abstract and never sends. Name the concrete models, or add subclasses=True."
        )
    else:
        use(model)
