"""The codec: plain JSON for every value, data that looks like tags, the registry, and what a damaged value does."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import OperationalError
from hypothesis import example, given
from hypothesis import strategies as st

from django_celery_signals import DecodeError, EncodeError, InstanceMissing, NotCarried, register_codec
from django_celery_signals.codec import core, standins
from django_celery_signals.codec.core import MAX_NESTING, TAG, Decoder, Encoder, Unencodable
from tests.carrying import carried, exact, from_json, to_json


class Money:
    """A type of the project's own."""

    def __init__(self, amount: int, currency: str) -> None:
        self.amount, self.currency = amount, currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Coin(Money):
    """A subclass of it."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The registry, to be changed for one test."""
    monkeypatch.setattr(core, "_by_type", dict(core._by_type))
    monkeypatch.setattr(core, "_by_tag", dict(core._by_tag))
    core.codec_for.cache_clear()
    yield
    core.codec_for.cache_clear()


# JSON's own types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, -1, 2**64, 1.5, -0.0, 5e-324, 1.7976931348623157e308, "", "text", "ü\0\U0001f600", [], {}],
    ids=repr,
)
def test_scalars_travel_as_they_are(value: Any) -> None:
    """H61: What JSON can say needs no tag, and comes back with its type: 1 is not True, and -0.0 keeps its sign."""
    assert exact(value) == exact(to_json(value))
    assert exact(value) == exact(carried(value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=repr)
def test_floats_that_are_no_numbers_travel(value: float) -> None:
    """H61: NaN and the infinities, which are no JSON, travel under a tag."""
    assert {"$": "float", "v": repr(value)} == to_json(value)
    assert exact(value) == exact(carried(value))


@pytest.mark.parametrize(
    "value", [10**1233, -(2**4096), 10**5000, 2**100_000 + 1], ids=["1e1233", "2**4096", "big", "huge"]
)
def test_integers_of_any_size_travel(value: int) -> None:
    """H61: An integer with more digits than Python reads back from text travels all the same."""
    assert value == carried(value)


@pytest.mark.parametrize("text", ["\ud800", "\udfff alone", "\udc00\ud800", "a\ud83d\ude00b", "\U0001f600"], ids=ascii)
def test_surrogates_stay_as_they_are(text: str) -> None:
    """H61: Lone surrogates come back lone, also a pair of them, which JSON alone would join into one character."""
    assert exact(text) == exact(carried(text))
    assert exact({text: [text]}) == exact(carried({text: [text]}))


# Data that looks like ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"$": "decimal", "v": "1"},
        {"$": "obj", "v": 0},
        {"$": None},
        {"$": "absent", "v": ["a", "b"], "more": 1},
        {"a": {"$": {"$": "tuple", "v": []}, "v": ({"$": 1},)}},
        {"__type__": "decimal", "__value__": "1"},
        {"__type__": "nothing", "__value__": [{"__type__": "uuid", "__value__": "x"}]},
        {"v": 1},
        [["$", "tuple"], ["v", []]],
    ],
    ids=repr,
)
def test_data_that_looks_like_a_tag_stays_data(value: Any) -> None:
    """H70: A dictionary that could be taken for a tag of ours or of kombu's arrives as the dictionary it is."""
    assert exact(value) == exact(carried(value))


def test_no_kombu_type_is_registered() -> None:
    """H70: Nothing is added to kombu's registry, so other tasks' messages stay as they are."""
    from kombu.utils.json import _encoders

    ours = [cls for cls in _encoders if "django_celery_signals" in f"{cls.__module__} {_encoders[cls]}"]
    assert ours == []


# Nesting -----------------------------------------------------------------------------------------------------------


def nested(levels: int, innermost: Any = "in") -> Any:
    for _ in range(levels):
        innermost = [innermost]
    return innermost


def test_deep_nesting_travels_up_to_a_limit() -> None:
    """A value nested as deep as the limit allows travels; what lies deeper stays behind, and only that."""
    assert nested(MAX_NESTING) == carried(nested(MAX_NESTING))
    innermost = carried(nested(MAX_NESTING + 1))
    for _ in range(MAX_NESTING):
        [innermost] = innermost
    assert type(innermost) is standins.Unavailable
    with pytest.raises(NotCarried, match="64 levels"):
        innermost.pop()


def test_a_value_inside_itself_becomes_a_stand_in() -> None:
    """H18: A container that contains itself is carried up to the repetition, and no way round is walked twice."""
    parent: dict[str, Any] = {"name": "parent"}
    parent["children"] = [{"name": str(number), "parent": parent, "again": [parent]} for number in range(3)]
    encoded = to_json(parent)
    arrived = from_json(encoded)
    assert [child["name"] for child in arrived["children"]] == ["0", "1", "2"]
    assert type(arrived["children"][2]["again"][0]) is standins.Unavailable
    assert len(json.dumps(encoded)) < 2000


def test_one_value_twice_is_not_a_cycle() -> None:
    """A list that occurs twice side by side arrives twice."""
    row = [1, (2,)]
    assert [row, row, {"row": row}] == carried([row, row, {"row": row}])


# The registry ------------------------------------------------------------------------------------------------------


def register_money(**options: Any) -> None:
    register_codec(
        Money,
        tag="tests.Money",
        encode=lambda money: (money.amount, money.currency),
        decode=lambda parts: Money(*parts),
        **options,
    )


@pytest.mark.usefixtures("registry")
def test_a_registered_type_travels() -> None:
    """A type of the project's own travels by what its codec returns, which may hold anything that travels."""
    register_money()
    assert {"price": [Money(5, "EUR")]} == carried({"price": [Money(5, "EUR")]})


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(("options", "arrives"), [({}, standins.Unavailable), ({"subclasses": True}, Money)])
def test_subclasses_travel_when_asked(options: dict[str, Any], arrives: type) -> None:
    """A codec serves subclasses only when told to, and they arrive as what it builds."""
    register_money(**options)
    assert arrives is type(carried(Coin(1, "EUR")))


@pytest.mark.usefixtures("registry")
def test_a_type_can_be_registered_by_name() -> None:
    """A codec can name its type as text, so that the type need not be imported for it."""
    register_codec(f"{__name__}.Money", tag="m", encode=lambda money: money.amount, decode=lambda p: Money(p, "EUR"))
    assert Money(3, "EUR") == carried(Money(3, "USD"))


@pytest.mark.usefixtures("registry")
def test_a_tag_belongs_to_one_type() -> None:
    """A second type under a taken tag is refused; the same type may be registered again."""
    register_money()
    register_money()
    with pytest.raises(ValueError, match=r"'tests\.Money' is taken"):
        register_codec(Coin, tag="tests.Money", encode=vars, decode=lambda parts: Coin(**parts))
    with pytest.raises(ValueError, match="'decimal' is taken"):
        register_codec(Money, tag="decimal", encode=vars, decode=lambda parts: Money(**parts))


@pytest.mark.usefixtures("registry")
def test_registering_late_counts_at_once() -> None:
    """A type that could not travel a moment ago does as soon as its codec is registered."""
    assert type(carried(Money(1, "EUR"))) is standins.Unavailable
    register_money()
    assert Money(1, "EUR") == carried(Money(1, "EUR"))


@pytest.mark.usefixtures("registry")
def test_a_codec_that_fails_to_encode_leaves_a_stand_in() -> None:
    """H18: A codec that raises while encoding costs its value, not the sending."""
    register_codec(Money, tag="m", encode=lambda money: money.nothing, decode=lambda parts: parts)
    price, rest = carried([Money(1, "EUR"), "rest"])
    assert "encoding it raised AttributeError" in repr(price)
    assert rest == "rest"


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), OSError("x"), StopIteration(), AssertionError()])
def test_a_codec_that_fails_to_decode_is_a_decode_error(error: Exception) -> None:
    """Whatever a codec raises while decoding comes out as a DecodeError that names the tag."""

    def fail(parts: Any) -> Any:
        raise error

    register_codec(Money, tag="tests.Money", encode=vars, decode=fail)
    with pytest.raises(DecodeError, match=r"tag 'tests\.Money' cannot be read") as raised:
        carried([Money(1, "EUR")])
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [InstanceMissing("gone"), OperationalError("down")])
def test_missing_rows_and_databases_are_no_decode_error(error: Exception) -> None:
    """H53: That a row is gone, or that its database is down, is told apart from a damaged envelope."""

    def fail(entry: Any, decoder: Decoder) -> Any:
        raise error

    with pytest.raises(type(error)) as raised:
        Decoder([{}], fail).decode([{"$": "obj", "v": 0}])
    assert raised.value is error


# Encoding ----------------------------------------------------------------------------------------------------------


def test_an_error_of_the_strict_mode_passes_unchanged() -> None:
    """H18: What replaces an inner value may refuse it, and its error names the inner value, not what is around it."""

    def refuse(error: Unencodable) -> Any:
        raise EncodeError(type(error.value).__name__)

    for value in (object(), [object()], (object(),), {1: {object()}}, collections.deque([object()])):
        with pytest.raises(EncodeError, match=r"^object$"):
            Encoder(refuse).encode(value)


def test_an_inner_value_without_a_form_costs_only_itself() -> None:
    """H18: Of a container, only the values that cannot travel become stand-ins."""
    arrived = carried({"a": 1, "b": (2, object()), "c": {object: object()}})
    assert arrived["a"] == 1
    assert arrived["b"][0] == 2
    assert [type(arrived["b"][1]), type(arrived["c"][object])] == [standins.Unavailable] * 2


# Decoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "node",
    [
        {"$": "unheard of", "v": 1},
        {"$": 5, "v": 1},
        {"$": ["tuple"], "v": []},
        {"$": None, "v": 1},
        {"$": "tuple"},
        {"$": "tuple", "v": [], "more": 1},
        {"$": "tuple", "v": "text"},
        {"$": "set", "v": [[]]},
        {"$": "dict", "v": [[1]]},
        {"$": "dict", "v": 5},
        {"$": "dict", "v": [[[], 1]]},
        {"$": "obj", "v": 0},
        {"$": "obj", "v": -1},
        {"$": "obj", "v": "0"},
        {"$": "obj", "v": []},
        {"$": "obj", "v": True},
        {"$": "subclass", "v": []},
        {"$": "instance", "v": 1},
    ],
    ids=repr,
)
def test_what_no_encoder_writes_is_refused(node: Any) -> None:
    """A node that no encoder writes is refused with a DecodeError, however deep it lies."""
    with pytest.raises(DecodeError):
        from_json(node)
    with pytest.raises(DecodeError):
        from_json({"a": [{"$": "tuple", "v": [node]}]})


def test_an_unknown_tag_names_the_remedy() -> None:
    """The error for a tag without a codec says what to register, and where."""
    with pytest.raises(DecodeError, match=r"'money\.Money'.*register_codec\(\) where the worker imports it"):
        from_json({"$": "money.Money", "v": 1})


def test_one_place_in_the_table_is_one_object() -> None:
    """H67: Each entry of the table of instances is made once, whatever refers to it."""
    made: list[Any] = []

    def make(entry: Any, decoder: Decoder) -> Any:
        made.append(entry)
        return object()

    decoder = Decoder(["first", "second"], make)
    first, second, again = decoder.decode([{"$": "obj", "v": 0}, {"$": "obj", "v": 1}, {"$": "obj", "v": 0}])
    assert first is again
    assert first is not second
    assert made == ["first", "second"]


# Properties --------------------------------------------------------------------------------------------------------

texts = st.text(st.one_of(st.characters(), st.sampled_from("$v\ud800\udbff\udc00\udfff")))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**4090, max_value=2**4100),
    st.floats(),
    texts,
)
keys = st.one_of(texts, st.sampled_from(["$", "v", "__type__", "__value__"]))
plain_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
)


@given(plain_values)
@example({"$": {"v": {"$": [math.nan, -0.0]}}})
def test_plain_values_come_back_exactly(value: Any) -> None:
    """H61, H70: Any value of JSON's own kinds comes back exactly, whatever its texts and keys look like."""
    assert exact(value) == exact(carried(value))


junk = st.recursive(
    scalars | st.sampled_from(sorted(core._by_tag)),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(keys, inner, max_size=4)
        | st.fixed_dictionaries({TAG: st.sampled_from(sorted(core._by_tag)), "v": inner})
    ),
    max_leaves=20,
)


@given(junk, st.randoms(use_true_random=False))
def test_any_json_is_read_or_refused(node: Any, chance: random.Random) -> None:
    """Any JSON whatever is decoded or refused with a DecodeError."""
    with contextlib.suppress(DecodeError):
        Decoder([{}, None], lambda entry, decoder: chance).decode(node)
