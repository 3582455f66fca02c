"""The values of fields that no codec knows: the field itself puts them into text; and the files of file fields."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from django.apps import apps
from django.db import models
from django.db.models.fields.files import FieldFile

from ..exceptions import DecodeError
from .core import Decoder, Encoder, Unencodable, exactly, register

Field: TypeAlias = "models.Field[Any, Any]"


def is_installed(cls: type[models.Model]) -> bool:
    """Tell whether a class is the installed model of its name; a migration's are not."""
    meta: Any = cls._meta
    return meta.app_label in apps.app_configs and apps.all_models[meta.app_label].get(meta.model_name) is cls


def to_text(field: Field, instance: models.Model, value: Any) -> str | None:
    """Return the text that a field makes of its value, as for fixtures; None when it does not read the same from it."""
    if isinstance(field, models.JSONField):
        return json.dumps(value, cls=field.encoder)  # whatever comes of it: a fetch gives the same
    if issubclass(type(value), (bytes, bytearray, memoryview)):
        return None  # as text it would slip past MAX_BINARY_BYTES
    text = field.value_to_string(_with(instance, field.attname, value))
    back = _from_text(field, text)
    equal = is_equal(back, value)
    return text if equal or (equal is None and type(back) is type(value)) else None


def _with(instance: models.Model, name: str, value: Any) -> models.Model:
    """Return the instance as it is when a field has this value, which may be an earlier one."""
    other: models.Model = object.__new__(type(instance))
    other.__dict__.update(instance.__dict__, **{name: value})
    return other


def _from_text(field: Any, text: str) -> Any:
    if isinstance(field, models.JSONField):
        return json.loads(text, cls=field.decoder)
    return getattr(field, "output_field", field).to_python(text)


def is_equal(one: Any, other: Any) -> bool | None:
    """Compare two values of a field; None where their class has no equality, or one that gives no plain answer."""
    cls: Any = type(one)
    try:
        return bool(one == other) or (None if cls.__eq__ is object.__eq__ else False)
    except Exception:
        return None


def is_expression(value: Any) -> bool:
    """Tell ``F()`` and the like, of which only the database knows the value. Evaluates no lazy object."""
    return hasattr(type(value), "resolve_expression")


def _read(payload: Any, _: Decoder) -> Any:
    label, attname, text = payload
    field = next((field for field in apps.get_model(label)._meta.concrete_fields if field.attname == attname), None)
    if field is None:
        raise DecodeError(f"The envelope names the field {attname!r:.80}, which {label!r:.80} does not have.")
    return _from_text(field, exactly(text, str))


register("field", tag="field", encode=lambda v, _: v, decode=_read)


def _file(value: FieldFile, encoder: Encoder) -> list[Any]:
    if value.instance is None:
        raise Unencodable(value, "it belongs to no instance")
    return [encoder.strictly(value.instance), value.field.name, value.name]


def _file_from(payload: Any, decoder: Decoder) -> FieldFile:
    instance = decoder.decode(payload[0])
    field: Any = type(instance)._meta.get_field(payload[1])
    file: FieldFile = field.attr_class(instance, field, payload[2])
    return file


register(FieldFile, tag="fieldfile", encode=_file, decode=_file_from, subclasses=True)
