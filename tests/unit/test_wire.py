"""The envelope as signed text: forgery, versions, size, and what a damaged one does."""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from django.core.signing import Signer, TimestampSigner
from django.db.models.signals import post_save
from django.test import override_settings

from django_celery_signals import DecodeError, NotCarried, wire
from django_celery_signals.codec.standins import Unavailable
from django_celery_signals.exceptions import UnknownVersion
from django_celery_signals.names import find_signal
from django_celery_signals.wire import seal, summary_of, unseal
from tests.carrying import RECEIVER, opened, sealed, sent, some_signal
from tests.shop.models import Order, Tag

SALT = "django_celery_signals.envelope"


def body_of(text: str) -> dict[str, Any]:
    return dict(json.loads(text.rpartition(":")[0]))


def signed(body: Any, salt: str = SALT) -> str:
    return Signer(salt=salt).sign(body if isinstance(body, str) else json.dumps(body))


def changed(**entries: Any) -> str:
    """Return a signed envelope with other entries than the library writes."""
    return signed({**body_of(sealed({"number": 5})), **entries})


# What is written ---------------------------------------------------------------------------------------------------


def test_the_text_is_plain_json_with_a_signature() -> None:
    """An envelope is one object of plain JSON, with its version, and a signature behind it."""
    text = sealed({"number": 5, "order": Order()}, sender=Order, signal=post_save)
    body = body_of(text)

    assert text.isascii()
    assert signed(text.rpartition(":")[0]) == text
    assert {
        "version": 1,
        "signal": "django.db.models.signals:post_save",
        "receiver": RECEIVER,
        "summary": "post_save shop.Order",
        "using": "default",
        "parent_id": None,
        "coalesced": 0,
        "sender": {"$": "class", "v": ["model", "shop.Order"]},
        "kwargs": [["number", 5], ["order", {"$": "obj", "v": 0}]],
        "changes": {},
    } == {key: body[key] for key in body if key not in _OF_THE_MOMENT}


_OF_THE_MOMENT = ("id", "root_id", "sent_at", "chain", "context", "objects", "signal_names")


def test_an_envelope_comes_back_as_it_was() -> None:
    """Everything an envelope holds survives the journey: event, names, context, and values in order (H20, H47)."""
    text = sealed({"b": (1,), "a": {2: b"x"}, "order": Order()}, sender="shop", using="other", changed=["total"])
    one = unseal(text)

    assert one == unseal(seal(one))
    assert ["b", "a", "order"] == list(one.kwargs)
    assert (1,) == opened(text)["b"]
    assert {2: b"x"} == opened(text)["a"]
    assert (0, one.event.id, None) == (one.event.depth, one.event.root_id, one.event.parent_id)
    assert find_signal(*one.signal_names) is some_signal


# Trust -------------------------------------------------------------------------------------------------------------


def test_a_changed_envelope_is_refused() -> None:
    """Whoever controls the broker can change no letter of an envelope, nor its signature."""
    text = sealed({"number": 5})
    for place in (0, len(text) // 3, len(text) // 2, len(text) - 45, len(text) - 1):
        forged = text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :]
        with pytest.raises(DecodeError, match="forged or damaged"):
            unseal(forged)
    assert RECEIVER == unseal(text).event.receiver


@pytest.mark.parametrize(
    "forge",
    [
        lambda text: text.rpartition(":")[0],
        lambda text: text + "=",
        lambda text: text.rpartition(":")[0] + ":",
        lambda text: signed(text.rpartition(":")[0], salt="other"),
        lambda text: Signer().sign(text.rpartition(":")[0]),
        lambda text: TimestampSigner(salt=SALT).sign(text.rpartition(":")[0]),
        lambda text: Signer(salt=SALT, key="other").sign(text.rpartition(":")[0]),
        lambda text: Signer(salt=SALT, algorithm="sha1").sign(text.rpartition(":")[0]),
        lambda text: text.encode(),
        lambda text: pickle.dumps(text),
        lambda text: [text],
        lambda text: None,
        lambda text: {"$": "x"},
        lambda text: "",
        lambda text: "\ud800:\ud800",
        lambda text: text + "\ud800",
    ],
)
def test_a_signature_of_another_make_is_refused(forge: Callable[[str], Any]) -> None:
    """Only text that was signed with the project's key, for this purpose, is read: no bytes, no pickle, no other salt
    or algorithm."""
    with pytest.raises(DecodeError):
        unseal(forge(sealed({"number": 5})))


def test_sender_and_worker_need_the_same_key() -> None:
    """A key that changes is honoured as long as it is among SECRET_KEY_FALLBACKS, and the error says so."""
    text = sealed({"number": 5})
    with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["older", "only for tests"]):
        assert 5 == opened(text)["number"]
    with override_settings(SECRET_KEY="new"), pytest.raises(DecodeError, match="SECRET_KEY_FALLBACKS"):
        unseal(text)


# Versions ----------------------------------------------------------------------------------------------------------


def test_what_a_newer_version_adds_is_ignored() -> None:
    """Entries that this version does not know are passed over (H75)."""
    assert 5 == opened(changed(news=[1], context={"language": "de", "moon": "full"}))["number"]


@pytest.mark.parametrize("version", [2, 10**6])
def test_a_newer_version_is_told_apart(version: int) -> None:
    """An envelope of a newer version is not damaged: the error says to update the workers (H75)."""
    with pytest.raises(UnknownVersion, match=f"has version {version}; this code reads up to 1. Update the workers"):
        unseal(changed(version=version, kwargs="of another shape"))


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.5, None, [1]])
def test_a_version_that_never_was_is_refused(version: Any) -> None:
    """A version that no release wrote is damage (H75)."""
    with pytest.raises(DecodeError, match="there never was") as raised:
        unseal(changed(version=version))
    assert type(raised.value) is DecodeError


# Damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "5", "null", "[]", "[" * 100_000, '{"version": 1e999}', "1" * 5000])
def test_text_that_is_no_envelope_is_refused(text: str) -> None:
    """Signed text that is no JSON object with a version is refused with a DecodeError."""
    with pytest.raises(DecodeError):
        unseal(signed(text))


@pytest.mark.parametrize(
    "entries",
    [
        {"id": 5},
        {"signal": None},
        {"signal_names": 5},
        {"signal_names": [5]},
        {"receiver": ["x"]},
        {"summary": {}},
        {"sent_at": "today"},
        {"sent_at": 5},
        {"using": None},
        {"root_id": 5},
        {"parent_id": 5},
        {"chain": 5},
        {"chain": [5]},
        {"chain": []},
        {"context": []},
        {"objects": {}},
        {"kwargs": {"a": 1}},
        {"kwargs": [["a"]]},
        {"kwargs": [[1, 2]]},
        {"kwargs": [["a", 1, 2]]},
        {"kwargs": None},
        *({"coalesced": value} for value in (None, [], {}, "many", math.inf, math.nan)),
    ],
    ids=repr,
)
def test_an_entry_of_another_kind_is_refused(entries: dict[str, Any]) -> None:
    """An entry that is not of the kind that is written there is refused with a DecodeError."""
    with pytest.raises(DecodeError):
        unseal(changed(**entries))


@pytest.mark.parametrize("name", sorted(body_of(sealed({})).keys() - {"coalesced"}))
def test_a_missing_entry_is_refused(name: str) -> None:
    """An envelope without one of its entries is refused with a DecodeError."""
    body = body_of(sealed({}))
    del body[name]
    with pytest.raises(DecodeError):
        unseal(signed(body))


def test_what_an_older_version_did_not_count() -> None:
    """An envelope without a count of the sendings that it stands for was written before there was one: for none."""
    body = body_of(sealed({}))
    del body["coalesced"]
    assert 0 == unseal(signed(body)).event.coalesced
    assert 7 == unseal(changed(coalesced=7)).event.coalesced


# Summaries ---------------------------------------------------------------------------------------------------------


def test_a_summary_can_be_had_unverified() -> None:
    """The summary is read for logs and monitors without the key, and is never long."""
    text = sealed({"number": 5}, sender=Order, signal=post_save)
    with override_settings(SECRET_KEY="other"):
        assert "post_save shop.Order" == summary_of(text)
    assert "x" * 200 == summary_of(signed({"summary": "x" * 1000}))


@pytest.mark.parametrize("text", [None, 5, b"{}:x", "", "{}:x", "[]:x", "{:x", "[" * 100_000 + ":x"], ids=lambda _: "")
def test_a_summary_of_nonsense_is_harmless(text: Any) -> None:
    """What is no envelope has a summary that says so."""
    assert "unreadable envelope" == summary_of(text)


@pytest.mark.parametrize(
    ("carried", "summary"),
    [
        ({"alias": "default", "id": 5, "token": 7, "receiver": "shop.update"}, "delivery 5 of 'default'"),
        ({"alias": "default", "rows": [[5, 7], [6, 8]], "receiver": "shop.update"}, "2 deliveries of 'default'"),
        ({"rows": [], "alias": "x" * 100}, f"0 deliveries of '{'x' * 79}"),
        ({"rows": "many", "id": 5}, "delivery 5 of None"),
        ({}, "delivery None of None"),
        ({"id": "9" * 100, "alias": "x" * 100}, f"delivery '{'9' * 19} of '{'x' * 79}"),
    ],
    ids=["durable", "several", "none", "no rows", "empty", "long"],
)
def test_the_summary_of_a_deliverys_message(carried: dict[str, Any], summary: str) -> None:
    """Of a durable delivery a message says where it is and no more, and nothing that it claims can be long."""
    assert summary == summary_of(carried)


# Size --------------------------------------------------------------------------------------------------------------

SMALL = {"MAX_ENVELOPE_BYTES": 3000}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, wire.__name__)
    return caplog


@override_settings(DJANGO_CELERY_SIGNALS=SMALL)
def test_the_largest_arguments_stay_behind(log: pytest.LogCaptureFixture) -> None:
    """Of an envelope that is too large the largest arguments stay behind, only as many as need be, and it is logged
    (H64)."""
    arrived = sent({"number": 5, "large": "x" * 2500, "pk_set": set(range(5000)), "medium": "y" * 500})

    assert (5, "y" * 500) == (arrived["number"], arrived["medium"])
    for name in ("pk_set", "large"):
        with pytest.raises(NotCarried, match="larger than MAX_ENVELOPE_BYTES"):
            len(arrived[name])
    assert ["'pk_set'", "'large'"] == [message.split()[3] for message in log.messages]
    assert "xxx" not in log.text


@override_settings(DJANGO_CELERY_SIGNALS={"MAX_ENVELOPE_BYTES": 30_000})
def test_many_arguments_are_not_written_again_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many arguments have to stay behind, the envelope is written as text a few times only (H64)."""
    written: list[int] = []
    dump = wire._dump
    monkeypatch.setattr(wire, "_dump", lambda envelope: written.append(1) or dump(envelope))

    arrived = sent({f"argument_{number}": "x" * 1000 for number in range(100)})

    assert 15 < sum(type(arrived[name]) is str for name in arrived.envelope.kwargs) < 25
    assert len(written) < 10


@override_settings(DJANGO_CELERY_SIGNALS=SMALL)
def test_an_envelope_that_fits_is_left_alone(log: pytest.LogCaptureFixture) -> None:
    """An envelope of just the allowed size travels whole."""
    room = 3000 - len(sealed({"text": ""}).rpartition(":")[0])

    assert "x" * room == sent({"text": "x" * room})["text"]
    assert type(sent({"text": "x" * (room + 1)})["text"]) is Unavailable
    assert 1 == len(log.messages)


@override_settings(DJANGO_CELERY_SIGNALS=SMALL)
def test_an_argument_weighs_what_its_instances_weigh() -> None:
    """An instance counts for every argument that leads to it, and leaves the envelope with the last of them (H64)."""
    large, small = Tag(name="x" * 3000), Tag(name="y")
    holder = Order(notes={"tags": [1]})
    arrived = sent({"text": "z" * 600, "instance": large, "more": [{"deep": (large, small)}], "holder": holder})

    assert "z" * 600 == arrived["text"]
    assert {"tags": [1]} == arrived["holder"].notes
    assert [Unavailable] * 2 == [type(arrived["instance"]), type(arrived["more"])]
    assert "xxx" not in str(arrived.envelope)


@override_settings(DJANGO_CELERY_SIGNALS=SMALL)
def test_an_instance_that_the_sender_needs_stays(log: pytest.LogCaptureFixture) -> None:
    """An instance that is the sender as well stays in the envelope when an argument with it leaves (H64, H67)."""
    tag = Tag(name="x" * 100)
    arrived = sent({"instance": tag, "large": ["y" * 4000, tag]}, sender=tag)

    assert arrived.sender is arrived["instance"]
    assert "x" * 100 == arrived.sender.name
    assert 1 == len(log.messages)


@override_settings(DJANGO_CELERY_SIGNALS=SMALL)
def test_large_changes_stay_behind_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where leaving arguments behind is not enough, old and new values stay behind, too (H64)."""
    monkeypatch.setattr(
        "django_celery_signals.envelope.changes_of", lambda instance, names: {"notes": ("", "x" * 5000)}
    )
    arrived = sent({"instance": Order()}, changed=["notes"])

    [old, new] = arrived.reader.changes()["notes"]
    assert [Unavailable] * 3 == [type(value) for value in (arrived["instance"], old, new)]
