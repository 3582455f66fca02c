"""Two hundred thousand damaged and crafted envelopes: each is read or refused, and none does anything else."""

from __future__ import annotations

import collections
import decimal
import enum
import json
import random
import string
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.signing import Signer
from django.db.models import signals
from django.http import QueryDict
from django.test import RequestFactory
from django.utils.safestring import mark_safe
from psycopg.types.range import Range

from django_celery_signals import DecodeError, InstanceMissing, wire
from django_celery_signals.codec import core
from django_celery_signals.exceptions import UnknownVersion
from tests.carrying import opened, sealed
from tests.shop.models import Comment, Country, Customer, Everything, Order, OrderLine, Parcel, Profile, Tag, User

CHUNKS, SIZE = 20, 10_000


class Colour(enum.Enum):
    RED = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: Any
    y: Any


VALUES: list[Any] = [
    [None, True, 5, 10**2000, 1.5, float("nan"), "text", "\ud83d\ude00", b"bytes", bytearray(b"x"), memoryview(b"y")],
    [complex(1, 2), decimal.Decimal("1.50"), Fraction(1, 3), range(5), {1, "a"}, frozenset({2}), (1, (2,)), {3: 4}],
    [collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]), collections.Counter("ab")],
    [collections.deque([1], maxlen=3), QueryDict("a=1&a=2"), Point(1, "y"), mark_safe("<b>"), {"$": "tuple", "v": []}],
    [datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")), date(2024, 1, 1)],
    [timedelta(1, 2, 3), UTC, ZoneInfo("Asia/Tokyo"), uuid.UUID(int=5), Colour.RED, Access.READ | Access.WRITE],
    [int, Order, len, json.dumps, signals.post_save, AnonymousUser(), Range(1, 5), object()],
]


def rows() -> Iterator[Any]:
    """Save an instance with each kind of primary key."""
    customer = Customer.objects.create(name="Ada")
    order = Order.objects.create(customer=customer)
    yield from (customer, order, User.objects.create_user("ada"), Tag.objects.create(name="a"))
    yield OrderLine.objects.create(order=order, number=1)
    yield from (Parcel.objects.create(), Country.objects.create(code="de"), Profile.objects.create(customer=customer))
    yield Order.objects.only("status").get(pk=order.pk)


@pytest.fixture
def envelopes(db: None) -> list[str]:
    """The JSON of sendings that between them hold everything that travels."""
    instances = list(rows())
    requests = [RequestFactory().get("/", REMOTE_ADDR="192.0.2.1") for _ in range(2)]
    requests[0].user = instances[2]
    made: list[str] = []
    for value in (*VALUES, requests):
        made.append(sealed({"value": value}, sender=Order))
    for instance in instances:
        made.append(sealed({"instance": instance, "same": [instance]}, sender=type(instance), signal=signals.post_save))
    for instance in (*instances, Everything(file="a.txt", json={"a": [1]}), Comment(text="x")):
        made.append(sealed({"instance": instance, "created": True}, sender=instance, snapshot=True))
    return [text.rpartition(":")[0] for text in made]


# Mutations ---------------------------------------------------------------------------------------------------------

TAGS = sorted(core._by_tag)
NAMES = ("builtins:int", "shop.Order", "json:dumps", "django.conf:settings", "id", "str", "list", "default", "nobody")
LETTERS = string.ascii_letters + string.digits + '"$[]{}:,.-+\\u\x00ü\ud800'


def _scrap(chance: random.Random) -> Any:
    """Make up some JSON of the kind that codecs look for."""
    kind = chance.randrange(12)
    if kind == 0:
        return {"$": chance.choice(TAGS), "v": _scrap(chance)}
    if kind == 1:
        return [_scrap(chance) for _ in range(chance.randrange(4))]
    if kind == 2:
        return {chance.choice(NAMES): _scrap(chance), chance.choice(("$", "v", "values")): _scrap(chance)}
    if kind == 3:
        return chance.choice(NAMES)
    if kind == 4:
        return "".join(chance.choices(LETTERS, k=chance.randrange(8)))
    return chance.choice((None, True, False, 0, 1, -1, 2**70, 1.5, 1e300, "", [], {}, {"$": "obj", "v": 0}))


def _places(node: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Collect every container of some JSON with each of its keys."""
    for key, inner in node.items() if type(node) is dict else enumerate(node):
        found.append((node, key))
        if type(inner) in (dict, list):
            _places(inner, found)
    return found


def by_structure(text: str, other: str, chance: random.Random) -> str:
    """Replace, remove, wrap or exchange parts of the JSON, and sign it."""
    body = json.loads(text)
    for _ in range(chance.choice((1, 1, 2))):
        node, key = chance.choice(_places(body, []))
        kind = chance.randrange(5)
        if kind == 0:
            del node[key]
        elif kind == 1:
            node[key] = {"$": chance.choice(TAGS), "v": node[key]}
        elif kind == 2:
            there, place = chance.choice(_places(json.loads(other), []))
            node[key] = there[place]
        else:
            node[key] = _scrap(chance)
    return _sign(json.dumps(body))


def by_letter(text: str, other: str, chance: random.Random) -> str:
    """Damage the text of the JSON, and sign it."""
    return _sign(_damaged(text, other, chance))


def without_key(text: str, other: str, chance: random.Random) -> str:
    """Damage an envelope as somebody does who has not the key."""
    return _damaged(_sign(text), _sign(other), chance)


def _damaged(text: str, other: str, chance: random.Random) -> str:
    place, kind = chance.randrange(len(text)), chance.randrange(4)
    length = chance.choice((1, 1, 2, 10, 100))
    if kind == 0:
        return text[:place] + text[place + length :]
    if kind == 1:
        return text[:place] + chance.choice(LETTERS) + text[place + 1 :]
    if kind == 2:
        start = chance.randrange(len(other))
        return text[:place] + other[start : start + length] + text[place + chance.choice((0, length)) :]
    return text[:place] + str(chance.choice((0, -1, 2**64, "1e999", "null", "[]", '{"$":"obj","v":0}'))) + text[place:]


def _sign(text: str) -> str:
    return Signer(salt=wire._SALT).sign(text.encode("utf-8", "replace").decode())


MUTATIONS: tuple[Callable[[str, str, random.Random], str], ...] = (by_structure, by_structure, by_letter, without_key)


def outcome_of(text: str) -> str:
    """Read all of an envelope, as a receiver would that takes everything."""
    try:
        arrived = opened(text)
        arrived.sender  # noqa: B018
        arrived.reader.changes()
        for name in arrived.envelope.kwargs:
            arrived[name]
    except (DecodeError, UnknownVersion):
        return "refused"
    except InstanceMissing:
        return "row missing"
    return "read"


@pytest.mark.parametrize("seed", range(CHUNKS))
def test_a_damaged_envelope_is_read_or_refused(envelopes: list[str], seed: int) -> None:
    """Whatever is done to an envelope, before it was signed or after, it is read or refused with a DecodeError; nothing
    is imported for it, and nothing else is raised but that a row is missing."""
    chance = random.Random(seed)
    assert {"read"} == {outcome_of(_sign(text)) for text in envelopes}
    imported = set(sys.modules)
    outcomes: collections.Counter[str] = collections.Counter()

    for number in range(SIZE):
        text, other = chance.choice(envelopes), chance.choice(envelopes)
        outcomes[outcome_of(MUTATIONS[number % len(MUTATIONS)](text, other, chance))] += 1

    assert {"refused", "read", "row missing"} == set(outcomes)
    assert min(outcomes["refused"], outcomes["read"]) > SIZE // 10
    # Where the machine has no such file, Python looks for a time zone in its package of time zones.
    assert set() == {name.partition(".")[0] for name in set(sys.modules) - imported} - {"tzdata", "importlib"}
