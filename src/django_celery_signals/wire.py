"""The envelope on the wire: one string of signed JSON, so that no serializer's own tags can meet the user's data."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

from django.core.signing import BadSignature, Signer

from . import conf
from .codec import TAG
from .envelope import Envelope
from .event import Event
from .exceptions import DecodeError, UnknownVersion

logger = logging.getLogger(__name__)

VERSION = 1
_SALT = "django_celery_signals.envelope"


def seal(envelope: Envelope) -> str:
    """Return an envelope as signed JSON text, of at most ``MAX_ENVELOPE_BYTES``: the largest arguments stay behind."""
    text = _dump(envelope, envelope.kwargs)
    limit = conf.get().MAX_ENVELOPE_BYTES
    kwargs = dict(envelope.kwargs)
    for name in sorted(kwargs, key=lambda name: -len(json.dumps(kwargs[name]))) if len(text) > limit else ():
        reason = f"the sending was larger than MAX_ENVELOPE_BYTES ({limit} bytes)"
        logger.warning(
            "%s: the argument %r of %s stays behind: %s.", envelope.event.receiver, name, envelope.summary, reason
        )
        kwargs[name] = {TAG: "absent", "v": ["argument", reason]}
        text = _dump(envelope, kwargs)
        if len(text) <= limit:
            break
    return Signer(salt=_SALT).sign(text)


def _dump(envelope: Envelope, kwargs: dict[str, Any]) -> str:
    event = envelope.event
    body = {
        "version": VERSION,
        "id": event.id,
        "signal": event.signal_name,
        "receiver": event.receiver,
        "summary": envelope.summary,
        "sent_at": event.sent_at.isoformat(),
        "using": event.using,
        "root_id": event.root_id,
        "parent_id": event.parent_id,
        "chain": list(event.chain),
        "context": envelope.context,
        "sender": envelope.sender,
        "kwargs": list(kwargs.items()),  # a list keeps the order through any JSON library
        "objects": envelope.objects,
        "changes": envelope.changes,
    }
    return json.dumps(body, separators=(",", ":"), allow_nan=False)


def unseal(sealed: Any) -> Envelope:
    """Verify and read what :func:`seal` wrote. Fields that this version does not know are ignored.

    Raises:
        DecodeError: when the signature or anything below it is wrong.
        UnknownVersion: when a newer version wrote it.
    """
    try:
        text = Signer(salt=_SALT).unsign(sealed)
    except (BadSignature, TypeError, AttributeError) as error:
        raise DecodeError(
            "The envelope's signature does not match: it was forged or damaged, or sender and worker differ in "
            "SECRET_KEY (keep the old key in SECRET_KEY_FALLBACKS while you change it)."
        ) from error
    return parse(text)


def summary_of(sealed: Any) -> str:
    """Return an envelope's summary without trusting it: for logs and monitors only."""
    try:
        return str(json.loads(sealed.rpartition(":")[0])["summary"])[:200]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return "unreadable envelope"


def parse(text: str) -> Envelope:
    """Read an envelope from its JSON text.

    Raises:
        DecodeError: when it is not what :func:`seal` signs.
    """
    try:
        body = json.loads(text)
        version = body["version"]
        if type(version) is int and version > VERSION:
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
    if not isinstance(body["objects"], list) or not isinstance(body["context"], dict):
        raise DecodeError("The envelope's objects or context are of the wrong type.")
    chain = tuple(_text(step) for step in body["chain"])
    event = Event(
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
    )
    return Envelope(
        event=event,
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
