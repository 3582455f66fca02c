"""The built-in codecs: every type comes back exactly, in value and type, or as a stand-in that says why."""

from __future__ import annotations

import collections
import enum
import fractions
import io
import ipaddress
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from django.http import QueryDict
from django.test import override_settings
from django.utils import translation
from django.utils.datastructures import ImmutableList, MultiValueDict
from django.utils.functional import SimpleLazyObject, lazy
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy
from hypothesis import example, given
from hypothesis import strategies as st

from django_celery_signals import DecodeError
from django_celery_signals.codec.standins import Unavailable
from tests.carrying import carried, exact, from_json, to_json
from tests.unit.codec.test_core import keys, scalars, texts

BERLIN = ZoneInfo("Europe/Berlin")


class Point(NamedTuple):
    x: Any
    y: Any = 0


class Name(str):
    """Text with attributes, and methods that lie."""

    def __new__(cls, *args: Any) -> Name:
        raise AssertionError("No constructor runs while decoding.")

    def __str__(self) -> str:
        return "a lie"

    def __len__(self) -> int:
        return -1


class Row(dict[Any, Any]):
    """A dictionary with attributes, and methods that lie."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("No constructor runs while decoding.")

    def items(self) -> Any:
        raise AssertionError("No method runs while encoding.")


class Numbers(list[Any]):
    def __iter__(self) -> Any:
        raise AssertionError("No method runs while encoding.")


class Names(frozenset[Any]):
    pass


class Group(set[Any]):
    pass


class Kilo(float):
    pass


class Count(int):
    pass


class Token(bytes):
    pass


class Slotted(str):
    __slots__ = ("note",)


class Ordered(collections.OrderedDict[Any, Any]):
    pass


class Defaults(collections.defaultdict[Any, Any]):
    pass


class Offset(tzinfo):
    """A zone of somebody's own."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None if moment is None else timedelta(hours=3)

    def tzname(self, moment: datetime | None) -> str:
        return "own"

    def dst(self, moment: datetime | None) -> None:
        return None


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Colour(enum.Enum):
    RED = (255, 0, 0)
    ROUGE = RED
    GREEN = object()


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Status(enum.StrEnum):
    NEW = "new"


def with_attributes(value: Any, **attributes: Any) -> Any:
    value.__dict__.update(attributes)
    return value


def moved() -> collections.OrderedDict[str, int]:
    ordered = collections.OrderedDict(a=1, b=2, c=3)
    ordered.move_to_end("a")
    return ordered


def query_dict(text: str, **options: Any) -> QueryDict:
    return QueryDict(text, **options)


def kind(value: Any) -> str:
    return type(value).__name__


# Numbers, containers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        complex(-0.0, float("nan")),
        complex(1, -0.0),
        Decimal("1.10"),
        Decimal("-0"),
        Decimal("1E+400"),
        Decimal("NaN"),
        Decimal("sNaN12"),
        Decimal("-Infinity"),
        fractions.Fraction(-1, 3),
        fractions.Fraction(10**5000, 3),
        (),
        (1, [2, (3,)]),
        set(),
        {1, "1", None, (2,), frozenset({3})},
        frozenset({"a", 1.5}),
        range(5),
        range(10, -10, -3),
        {1: "a", None: "b", (1, 2): "c", 1.5: "d", "e": "f", Level.HIGH: "g"},
        {True: "only"},
        {b"k": {date(2020, 1, 1): 1}},
        collections.OrderedDict([("b", 1), (2, "a")]),
        moved(),
        collections.defaultdict(list, {"a": [1]}),
        collections.defaultdict(None, {1: 2}),
        collections.Counter("hello"),
        collections.deque([1, (2,)], maxlen=5),
        collections.deque(),
        MultiValueDict({"a": ["1", 2], "empty": []}),
    ],
    ids=kind,
)
def test_numbers_and_containers_come_back(value: Any) -> None:
    """H61, H64: Decimals, fractions, tuples, sets and dictionaries with any keys come back with type and order."""
    assert exact(value) == exact(carried(value))
    assert exact([value, {"in": (value,)}]) == exact(carried([value, {"in": (value,)}]))


def test_a_set_is_written_the_same_way_in_every_process() -> None:
    """H64: A set is written in one order in every process, also when its members do not compare."""
    sets = [{"b", 3, None, (1,), "a", 2.5}, frozenset({3, "x", b"y"}), {"ü", "\ud800", "x"}]
    program = (
        "import json, django; from django.conf import settings; settings.configure(); django.setup();"
        "import django_celery_signals; from django_celery_signals.codec import core;"
        f"print(json.dumps(core.Encoder(None).encode({sets!a})))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}  # other than this process's, which is random
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert json.loads(said.stdout) == to_json(sets)


def test_a_large_set_of_keys_travels() -> None:
    """H64: The keys of a hundred thousand rows travel in less than a megabyte."""
    pk_set = set(range(100_000))
    assert pk_set == carried(pk_set)
    assert len(json.dumps(to_json(pk_set))) < 2**20


@pytest.mark.parametrize(
    "value",
    [
        query_dict(""),
        query_dict("a=1&a=2&b=&c=%20%C3%BC"),
        query_dict("a=%FC", encoding="latin-1"),
        query_dict("a=1", mutable=True),
        query_dict("&".join(f"f{number}=1" for number in range(900)), mutable=True),
    ],
    ids=kind,
)
def test_query_dicts_come_back(value: QueryDict) -> None:
    """H17: A QueryDict comes back with its lists, its encoding, and as mutable as it was."""
    assert exact(value) == exact(carried(value))
    assert value.urlencode() == carried(value).urlencode()


def test_a_query_dict_of_any_size_comes_back() -> None:
    """H17: A QueryDict that holds what no form can send comes back all the same."""
    query = QueryDict(mutable=True)
    query.setlist("none", [])
    query.update({"number": 5, "torn": "\udc00"})
    query.update({f"field{number}": "" for number in range(2000)})
    assert exact(query) == exact(carried(query))


# Bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("content", [b"", b"\x00\xff"])
def test_bytes_come_back(kind: Callable[[bytes], Any], content: bytes) -> None:
    """H56, H61: Bytes of all three kinds come back, memoryviews from PostgreSQL's bytea included."""
    assert exact(kind(content)) == exact(carried(kind(content)))


@override_settings(DJANGO_CELERY_SIGNALS={"MAX_BINARY_BYTES": 10})
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda content: with_attributes(Token(content), a=1)])
def test_long_binary_values_stay_behind(kind: Callable[[bytes], Any]) -> None:
    """H61: A binary value longer than MAX_BINARY_BYTES stays behind and says so; one just as long travels."""
    assert kind(b"x" * 10) == carried(kind(b"x" * 10))
    assert "larger than MAX_BINARY_BYTES (10 bytes)" in repr(carried(kind(b"x" * 11)))


def test_other_views_of_memory_stay_behind() -> None:
    """H18: A memoryview that is no plain sequence of bytes becomes a stand-in, not something else."""
    view = memoryview(b"12345678")
    for other in (view.cast("I"), view.cast("B", (2, 4)), view[::2]):
        assert type(carried(other)) is Unavailable


# Time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        datetime(2024, 2, 29, 23, 59, 59, 999999),
        datetime(2024, 2, 29, tzinfo=UTC),
        datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN),
        datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
        datetime(2024, 10, 27, 2, 30, fold=1),
        datetime(2024, 10, 27, 2, 30, tzinfo=UTC, fold=1),
        datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "home")),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=1))),
        datetime.min,
        datetime.max,
        time(1, 2, 3, 4),
        time(1, 2, tzinfo=UTC),
        time(1, 2, tzinfo=BERLIN, fold=1),
        time(1, 2, tzinfo=timezone(timedelta(hours=1))),
        date.min,
        date(2024, 2, 29),
        timedelta.min,
        timedelta.max,
        timedelta(days=-1, seconds=5, microseconds=7),
        UTC,
        timezone(timedelta(hours=5, minutes=45)),
        BERLIN,
    ],
    ids=repr,
)
def test_moments_come_back(value: Any) -> None:
    """H61: Moments keep microseconds, zone and fold; what is naive stays naive, and a ZoneInfo stays one."""
    assert exact(value) == exact(carried(value))


def test_an_unknown_zone_is_folded_to_its_offset() -> None:
    """H61: A zone of somebody's own arrives as the offset it had at that moment."""
    arrived = carried(datetime(2024, 1, 1, 12, tzinfo=Offset()))
    assert exact(datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=3)))) == exact(arrived)
    assert exact(time(12)) == exact(carried(time(12, tzinfo=Offset())))
    assert type(carried(Offset())) is Unavailable


def test_a_zone_without_a_name_is_folded_to_its_offset() -> None:
    """H61: A ZoneInfo read from a file has no name to travel by: its moments arrive with the offset."""
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    nameless = ZoneInfo.from_file(io.BytesIO(b"TZif" + bytes(16) + counts + struct.pack(">lBB", 7200, 0, 0) + b"OWN\0"))
    arrived = carried(datetime(2024, 7, 1, tzinfo=nameless))
    assert exact(datetime(2024, 7, 1, tzinfo=timezone(timedelta(hours=2)))) == exact(arrived)
    assert type(carried(nameless)) is Unavailable


@pytest.mark.parametrize("name", ["Europe", "x" * 300, "../../etc/passwd", "/etc/passwd", "", "a\0b", "\ud800"])
def test_a_zone_that_is_none_is_refused(name: str) -> None:
    """A message that names a folder, a foreign file or nonsense as time zone is refused with a DecodeError."""
    with pytest.raises(DecodeError, match="zoneinfo"):
        from_json({"$": "zoneinfo", "v": name})


# Identifiers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        uuid.UUID(int=0),
        uuid.UUID("12345678-1234-4678-9234-567812345678"),
        *(ipaddress.ip_address(text) for text in ("127.0.0.1", "::1", "fe80::1%eth0")),
        *(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "2001:db8::/32")),
        *(ipaddress.ip_interface(text) for text in ("10.1.2.3/8", "2001:db8::1/64")),
        pathlib.Path("a/../ü"),
        pathlib.PurePosixPath("/x/y"),
        pathlib.PureWindowsPath("c:\\x"),
    ],
    ids=repr,
)
def test_identifiers_come_back(value: Any) -> None:
    """H54, H61: UUIDs, addresses, networks and paths come back with their type."""
    assert exact(value) == exact(carried(value))


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (type("D", (Decimal,), {})("1.5"), Decimal("1.5")),
        (type("U", (uuid.UUID,), {})(int=5), uuid.UUID(int=5)),
        (type("T", (datetime,), {})(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)),
        (type("A", (date,), {})(2024, 1, 1), date(2024, 1, 1)),
        (type("L", (timedelta,), {})(1), timedelta(1)),
    ],
    ids=["Decimal", "UUID", "datetime", "date", "timedelta"],
)
def test_subclasses_of_values_arrive_as_their_base(value: Any, arrives: Any) -> None:
    """Subclasses of the date types, Decimal and UUID, as some packages make, arrive as the type they extend."""
    assert exact(arrives) == exact(carried(value))


# Subclasses of the built-in types ----------------------------------------------------------------------------------


def made(cls: type, base: type, content: Any, **attributes: Any) -> Any:
    """Make an instance past the class's own constructor."""
    value = base.__new__(cls, content)
    if base in (list, dict, set):
        base.__init__(value, content)  # type: ignore[misc]
    return with_attributes(value, **attributes)


SUBCLASSED = [
    Point(1),
    Point([2], y=Point(3, None)),
    made(Name, str, "Ada", note=Decimal(1)),
    made(Name, str, "\ud800\udfff"),
    made(Row, dict, {1: "a", "$": "b"}, note=(1,), inner={"$": 1}),
    made(Numbers, list, [1, (2,)], note="n"),
    Names({1, "a"}),
    Group({(1, 2)}),
    Kilo("-0.0"),
    Kilo("nan"),
    Count(10**2000),
    with_attributes(Token(b"\x00"), note=None),
    mark_safe("<b>&</b>"),
    format_html("<i>{}</i>", "<"),
    ImmutableList([1, 2], warning="Do not."),
]


@pytest.mark.parametrize("value", SUBCLASSED, ids=kind)
def test_subclasses_of_built_in_types_come_back(value: Any) -> None:
    """H61, H64: Named tuples, SafeString and the project's own subclasses keep class, content and attributes, and
    none of their code runs."""
    assert exact(value) == exact(carried(value))


def test_attributes_may_lead_back() -> None:
    """H18: An attribute that leads back to its owner costs itself only."""
    row = Group({1})
    row.__dict__["owner"] = row
    arrived = carried(row)
    assert arrived == {1}
    assert type(arrived.owner) is Unavailable


@pytest.mark.parametrize(
    "value",
    [Ordered(a=1), Defaults(list, a=[1]), pytest.param("slotted", id="Slotted")],
    ids=kind,
)
def test_subclasses_that_would_lose_something_stay_behind(value: Any) -> None:
    """H18: A subclass that keeps more than its content and attributes becomes a stand-in, not something less."""
    if value == "slotted":
        value = Slotted("text")
        value.note = 1
    arrived = carried([value])
    assert type(arrived[0]) is Unavailable
    assert "register_codec()" in repr(arrived[0])


def test_classes_nobody_can_find_stay_behind() -> None:
    """H18: An instance of a class that no module holds becomes a stand-in."""
    local = type("Local", (dict,), {})
    assert type(carried(local(a=1))) is Unavailable


def test_classes_with_a_layout_of_their_own_stay_behind() -> None:
    """H18: An instance of a subclass whose memory is laid out in C becomes a stand-in, for no plain value makes one."""
    stat, version = carried([os.stat("."), sys.version_info])
    assert "Python cannot build one from a plain tuple" in repr(stat)
    assert type(version) is Unavailable


HERE = __name__


@pytest.mark.parametrize(
    "payload",
    [
        [f"{HERE}:Point", "list", [], {}],
        [f"{HERE}:Point", "tuple", 5, {}],
        [f"{HERE}:Token", "bytes", 10**11, {}],
        [f"{HERE}:Count", "int", "7", {}],
        [f"{HERE}:Name", "str", {"$": "class", "v": f"{HERE}:Name"}, {}],
        [f"{HERE}:Row", "dict", [[1, 2, 3]], {}],
        [f"{HERE}:Group", "set", [1], 5],
        [f"{HERE}:Point", "tuple", [], {"x": 1}],
        [f"{HERE}:Level", "int", 1, {}],
        [f"{HERE}:Ordered", "dict", [], {}],
        [f"{HERE}:Defaults", "dict", [], {}],
        ["builtins:bool", "int", 1, {}],
        [f"{HERE}:exact", "str", "", {}],
        [f"{HERE}:Name", "complex", "", {}],
        [5, "str", "", {}],
    ],
    ids=repr,
)
def test_a_crafted_subclass_is_refused(payload: Any) -> None:
    """A message can build only what an encoder could have written: the right content for a plain subclass."""
    with pytest.raises(DecodeError):
        from_json({"$": "subclass", "v": payload})


@pytest.mark.parametrize("path", [f"{HERE}:Nothing", "nowhere:Nothing", HERE, ""])
@pytest.mark.parametrize(("tag", "rest"), [("subclass", ["str", "", {}]), ("enum", ["LOW", None])])
def test_a_class_that_is_not_imported_leaves_a_stand_in(path: str, tag: str, rest: list[Any]) -> None:
    """H18, H75: A value whose class this process has not imported arrives as a stand-in that names the class, beside
    the values that can be read."""
    arrived, other = from_json([{"$": tag, "v": [path, *rest]}, 5])
    assert type(arrived) is Unavailable
    assert f"<Unavailable {path.replace(':', '.')}: no imported module of this process holds it" in repr(arrived)
    assert other == 5


# Enumerations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [*Level, *Colour, Colour.ROUGE, Access.READ, Access.READ | Access.WRITE, Access(0), *Status, uuid.SafeUUID.safe],
    ids=str,
)
def test_members_of_enumerations_come_back(value: enum.Enum) -> None:
    """H62: A member of an enumeration, aliases and combined flags included, arrives as the very member."""
    assert value is carried(value)


@pytest.mark.parametrize(
    "payload",
    [
        [f"{HERE}:Level", "MIDDLE", None],
        [f"{HERE}:Level", None, 1],
        [f"{HERE}:Level", ["LOW"], None],
        [f"{HERE}:Level", "__init__", None],
        [f"{HERE}:Point", "x", None],
        [f"{HERE}:Access", None, "x"],
        [f"{HERE}:Access", None, 4096],
        [f"{HERE}:Status", None, "new", 1],
        ["enum:Flag", None, 1],
    ],
    ids=repr,
)
def test_only_known_members_are_built(payload: Any) -> None:
    """H62: A message that names no member of a known enumeration is refused."""
    with pytest.raises(DecodeError):
        from_json({"$": "enum", "v": payload})


# Lazy values -------------------------------------------------------------------------------------------------------


def test_lazy_text_travels_in_the_senders_language() -> None:
    """H63: Lazy text is resolved when the signal is sent, in the language of the sender."""
    yes = gettext_lazy("Yes")
    with translation.override("de"):
        encoded = to_json([yes, format_lazy("{}!", yes)])
    with translation.override("fr"):
        assert ["Ja", "Ja!"] == from_json(encoded)


@pytest.mark.parametrize("value", ["text", SafeString("<b>"), 5, [1, (2,)], Decimal("1.5")], ids=repr)
def test_lazy_results_travel_as_what_they_are(value: Any) -> None:
    """H63: What lazy() wraps travels as the value it evaluates to."""
    assert exact(value) == exact(carried(lazy(lambda: value, type(value))()))


def test_lazy_objects_are_unwrapped_however_deep() -> None:
    """H66b: Lazy objects are evaluated when the signal is sent, once, also inside one another and around lazy text."""
    calls = []

    def make() -> Any:
        calls.append(1)
        return SimpleLazyObject(lambda: SimpleLazyObject(lambda: {"lazy": gettext_lazy("Yes"), "key": (1,)}))

    value = SimpleLazyObject(make)
    expected = {"lazy": "Yes", "key": (1,)}
    assert [exact(expected)] * 2 == [exact(item) for item in carried([value, value])]
    assert calls == [1]


def test_a_lazy_object_that_fails_becomes_a_stand_in() -> None:
    """H18, H66b: A lazy object that cannot be evaluated costs its value, not the sending."""
    arrived = carried([SimpleLazyObject(lambda: 1 / 0), 5])
    assert "raised ZeroDivisionError" in repr(arrived[0])
    assert arrived[1] == 5


def test_a_lazy_object_around_none_is_none() -> None:
    """H66b: A lazy object that holds None arrives as None, not as something that is never None."""
    assert carried(SimpleLazyObject(lambda: None)) is None


# What cannot travel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        object(),
        iter([1]),
        (item for item in ()),
        lambda: 1,
        list[int],
        re.compile("x"),
        ...,
        sys,
    ],
    ids=kind,
)
def test_other_types_become_stand_ins(value: Any) -> None:
    """H18: What has no codec arrives as a stand-in that knows its type."""
    arrived = carried(value)
    assert type(arrived) is Unavailable
    assert f"{type(value).__module__}.{type(value).__qualname__}" in repr(arrived)


# Damaged values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "payload"),
    [
        ("float", 1.5),
        ("float", "one"),
        ("int", 5),
        ("int", "0xg"),
        ("str", 5),
        ("str", [1]),
        ("complex", [1, 2, 3]),
        ("complex", ["1", "2"]),
        ("decimal", "1,5"),
        ("decimal", 1.5),
        ("fraction", [1, 0]),
        ("fraction", ["1e9999999999", 1]),
        ("fraction", "1e9999999999"),
        ("range", [1.5]),
        ("range", []),
        ("range", [0, 5, 0]),
        ("deque", [-1, []]),
        ("deque", [10**30, []]),
        ("defaultdict", [5, []]),
        ("defaultdict", [None]),
        ("querydict", ["a=1", False, "utf-8"]),
        ("querydict", [[], False, None]),
        ("bytes", "***"),
        ("bytes", "YQ"),
        ("bytes", 10**12),
        ("bytearray", 10**12),
        ("datetime", "today"),
        ("datetime", ["2024-01-01", 5, 0]),
        ("datetime", ["2024-01-01", None, 2]),
        ("datetime", [1, None, 0]),
        ("time", "25:00"),
        ("date", "2024-02-30"),
        ("date", 20240101),
        ("timedelta", [10**30, 0, 0]),
        ("timedelta", [1]),
        ("timezone", [{"$": "timedelta", "v": [5, 0, 0]}]),
        ("timezone", []),
        ("uuid", "x"),
        ("ipv4address", "1.2.3"),
        ("ipv4network", "1.2.3.4/8"),
        ("posixpath", None),
    ],
    ids=repr,
)
def test_a_damaged_value_is_refused(tag: str, payload: Any) -> None:
    """A payload that its codec cannot have written is refused with a DecodeError, at once and in little memory."""
    with pytest.raises(DecodeError):
        from_json({"$": tag, "v": payload})


# Properties --------------------------------------------------------------------------------------------------------

zones = st.one_of(st.none(), st.just(UTC), st.timezones(), st.just(timezone(timedelta(minutes=-90), "own")))


def folded(moments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda moment, fold: moment.replace(fold=fold), moments, st.sampled_from([0, 1]))


leaves = st.one_of(
    scalars,
    st.binary(max_size=20),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.dates(),
    folded(st.datetimes(timezones=zones)),
    folded(st.times(timezones=zones)),
    st.timedeltas(),
    st.uuids(),
    st.ip_addresses(),
    st.builds(range, st.integers(), st.integers(), st.integers().filter(bool)),
    st.sampled_from([*Level, *Colour, *Access, *Status, Access.READ | Access.WRITE]),
    st.builds(mark_safe, texts),
    st.builds(Count, st.integers()),
    st.builds(Kilo, st.floats()),
    st.builds(Token, st.binary(max_size=5)),
    st.sampled_from([BERLIN, UTC, int, Point, collections.OrderedDict, json.dumps, len]),
)
hashable = st.recursive(
    leaves.filter(lambda value: not (isinstance(value, Decimal) and value.is_snan())),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3), st.builds(Point, inner, inner)
    ),
    max_leaves=4,
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    mappings = st.dictionaries(hashable, inner, max_size=3)
    lists = st.lists(inner, max_size=3)
    return st.one_of(
        lists,
        lists.map(tuple),
        lists.map(collections.deque),
        st.builds(collections.deque, lists, st.integers(3, 5)),
        st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
        mappings,
        mappings.map(collections.OrderedDict),
        st.builds(collections.defaultdict, st.sampled_from([None, int, list, dict]), mappings),
        st.dictionaries(hashable, st.integers(), max_size=3).map(collections.Counter),
        st.dictionaries(texts, lists, max_size=3).map(MultiValueDict),
        st.builds(Point, inner, inner),
        st.builds(lambda items, note: made(Row, dict, items, note=note), mappings, inner),
        st.builds(lambda items, note: made(Numbers, list, items, note=note), lists, inner),
        st.builds(lambda text, note: made(Name, str, text, note=note), texts, inner),
    )


values = st.recursive(leaves, containers, max_leaves=15)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of the strategy, which has many parts
@given(values)
@example({-0.0: [float("nan"), 10**5000], (1, None): {"$": {"\ud800\udc00": Point(1)}}})
def test_every_value_comes_back_exactly(value: Any) -> None:
    """H61, H62, H64: What is built from the types that travel comes back exactly, in value and type, all through."""
    assert exact(value) == exact(carried(value))


@given(st.dictionaries(st.text(), st.lists(st.text()), max_size=5), st.booleans())
def test_every_query_dict_comes_back_exactly(lists: dict[str, list[str]], mutable: bool) -> None:
    """H17: Every QueryDict comes back exactly."""
    query = QueryDict(mutable=True)
    for key, items in lists.items():
        query.setlist(key, items)
    query._mutable = mutable
    assert exact(query) == exact(carried(query))
