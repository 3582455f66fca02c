"""The envelope on the wire: one string of signed JSON, so that no serializer's own tags can meet the user's data."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.core.signing import BadSignature, Signer

from . import conf
from .codec.core import TAG
from .envelope import Envelope
from .event import event_of
from .exceptions import DecodeError, UnknownVersion
from .plurals import quantity

logger = logging.getLogger(__name__)

ARGUMENT = "__event__"  # the one keyword argument of a message about an event: an envelope, or a row's reference
VERSION = 1
_SALT = "django_celery_signals.envelope"


def seal(envelope: Envelope) -> str:
    """Return an envelope as signed JSON text, for whoever carries it must not be able to change it."""
    return Signer(salt=_SALT).sign(dump(envelope))


def dump(envelope: Envelope) -> str:
    """Return an envelope as JSON text, of at most ``MAX_ENVELOPE_BYTES``: the largest arguments stay behind."""
    text, limit = _dump(envelope), conf.get().MAX_ENVELOPE_BYTES
    return text if len(text) <= limit else _dump_lightened(envelope, limit, len(text) - limit)


def _dump_lightened(envelope: Envelope, limit: int, excess: int) -> str:
    """Leave arguments behind, those with the largest instances first, until the rest is small enough."""
    reason = f"the sending was larger than MAX_ENVELOPE_BYTES ({limit} bytes)"
    absent = {TAG: "absent", "v": ["argument", reason]}
    weights = {name: _weight(envelope, name) for name in envelope.kwargs}
    for name in sorted(weights, key=lambda name: weights[name], reverse=True):
        logger.warning(
            "%s: the argument %r of %s stays behind: %s.", envelope.event.receiver, name, envelope.summary, reason
        )
        envelope = replace(envelope, kwargs={**envelope.kwargs, name: absent})
        excess -= weights[name] - len(json.dumps(absent))
        if excess > 0:
            continue  # certainly too large still: what two arguments hold counts in both, but is in the text once
        text = _dump(_without_unused_objects(envelope))
        if len(text) <= limit:
            return text
    envelope = _without_unused_objects(envelope)
    return _dump(replace(envelope, changes={name: [absent, absent] for name in envelope.changes}))


def _weight(envelope: Envelope, name: str) -> int:
    node = envelope.kwargs[name]
    return len(json.dumps([node, *(envelope.objects[index] for index in objects_in(node, envelope.objects, set()))]))


def _without_unused_objects(envelope: Envelope) -> Envelope:
    used = objects_in([envelope.sender, envelope.changes, envelope.kwargs], envelope.objects, set())
    return replace(envelope, objects=[entry if index in used else {} for index, entry in enumerate(envelope.objects)])


def objects_in(node: Any, objects: list[Any], found: set[int]) -> set[int]:
    """Collect the places of the instances that some JSON refers to."""
    inner = node if isinstance(node, list) else list(node.values()) if isinstance(node, dict) else []
    if isinstance(node, dict) and node.get(TAG) == "obj" and node["v"] not in found:
        found.add(node["v"])
        inner = [objects[node["v"]]]
    for item in inner:
        if isinstance(item, (list, dict)):
            objects_in(item, objects, found)
    return found


def _dump(envelope: Envelope) -> str:
    event = envelope.event
    body = {
        "id": event.id,
        "summary": envelope.summary,
        "sent_at": event.sent_at.isoformat(),
        "root_id": event.root_id,
        "parent_id": event.parent_id,
        "chain": list(event.chain),
        "coalesced": event.coalesced,
        "context": envelope.context,
        "sender": envelope.sender,
        "kwargs": list(envelope.kwargs.items()),  # a list keeps the order through any JSON library
        "objects": envelope.objects,
        "changes": envelope.changes,
    }
    return _head(event.signal_name, envelope.signal_names, event.receiver, event.using) + _in_json(body)[1:]


@lru_cache(maxsize=1024)
def _head(signal_name: str, signal_names: tuple[str, ...], receiver: str, using: str) -> str:
    """Return how the text begins, which is the same for all sendings of a connection."""
    facts = {"signal": signal_name, "signal_names": signal_names, "receiver": receiver, "using": using}
    return _in_json({"version": VERSION, **facts})[:-1] + ","


# Which dumps() would make each time, and ask of each container whether it holds itself: the codec has refused that,
# and a context has been written as JSON before.
_in_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


def unseal(sealed: Any) -> Envelope:
    """Verify and read what :func:`seal` wrote. Fields that this version does not know are ignored.

    Raises:
        DecodeError: when the signature or anything below it is wrong.
        UnknownVersion: when a newer version wrote it.
    """
    try:
        text = Signer(salt=_SALT).unsign(sealed)
    except (BadSignature, TypeError, AttributeError, ValueError) as error:
        raise DecodeError(
            "The envelope's signature does not match: it was forged or damaged, or sender and worker differ in "
            "SECRET_KEY (keep the old key in SECRET_KEY_FALLBACKS while you change it)."
        ) from error
    return parse(text)


def summary_of(sealed: Any) -> str:
    """Return the summary of what a message carries without trusting it: for logs and monitors only."""
    if isinstance(sealed, dict) and isinstance(sealed.get("rows"), list):
        return f"{quantity(len(sealed['rows']))} of {sealed.get('alias')!r:.80}"
    if isinstance(sealed, dict):
        return f"delivery {sealed.get('id')!r:.20} of {sealed.get('alias')!r:.80}"
    try:
        return str(json.loads(sealed.rpartition(":")[0])["summary"])[:200]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return "unreadable envelope"


def parse(text: str) -> Envelope:
    """Read an envelope from its JSON text.

    Raises:
        DecodeError: when it is not what :func:`dump` writes.
    """
    try:
        body = json.loads(text)
        version = body["version"]
        if type(version) is not int or version < 1:
            raise DecodeError(f"The envelope has the version {version!r:.40}, which there never was.")
        if version > VERSION:
            raise UnknownVersion(
                f"The envelope has version {version}; this code reads up to {VERSION}. Update the workers."
            )
        return _from_body(body)
    except DecodeError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DecodeError(f"The envelope is damaged: {error!r:.200}") from error


def _from_body(body: dict[str, Any]) -> Envelope:
    kwargs = {_text(name): node for name, node in body["kwargs"]}
    chain = tuple(_text(step) for step in body["chain"])
    if not isinstance(body["objects"], list) or not isinstance(body["context"], dict) or not chain:
        raise DecodeError("The envelope's objects, context or chain are not what they must be.")
    event = event_of(
        id=_text(body["id"]),
        signal_name=_text(body["signal"]),
        receiver=_text(body["receiver"]),
        sent_at=datetime.fromisoformat(body["sent_at"]),
        using=_text(body["using"]),
        changes={},
        depth=len(chain) - 1,
        root_id=_text(body["root_id"]),
        parent_id=None if body["parent_id"] is None else _text(body["parent_id"]),
        chain=chain,
        coalesced=int(body.get("coalesced", 0)),
    )
    return Envelope(
        event=event,
        signal_names=tuple(_text(name) for name in body["signal_names"]),
        summary=_text(body["summary"]),
        sender=body["sender"],
        kwargs=kwargs,
        objects=body["objects"],
        changes=body["changes"],
        context=body["context"],
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DecodeError(f"The envelope holds {type(value).__name__} where text belongs.")
    return value
