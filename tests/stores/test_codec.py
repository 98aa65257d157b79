"""What a state may hold, as JSON and back; what is refused; what of old texts is still read."""

from __future__ import annotations

import gc
import io
import json
import os
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import warnings
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum, auto
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType, ModuleType
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel

import shoal
from shoal import (
    Codec,
    ErrorInfo,
    NobodyAccepted,
    PositionedList,
    RetryLater,
    State,
    StateList,
    StateMap,
)
from shoal.errors import (
    DefinitionError,
    NotData,
    NotDecodable,
    NotEncodable,
    Rejected,
    SavedError,
    UpdateTooLarge,
)
from shoal.stores._codec.tags import MAX_DEPTH, UNPACKERS
from shoal.stores._sql.sizes import LARGE, UpdateSizes, size_of

HERE = __name__
T = TypeVar("T")


class Color(Enum):
    RED = 1
    BLUE = (0, 0, 255)


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    LOW = "low"


class Rights(Flag):
    READ = auto()
    WRITE = auto()


class Bits(IntFlag):
    ONE = 1


@dataclass
class Point:
    x: Any
    y: Any = 0
    _: KW_ONLY
    label: str = ""

    @cached_property
    def norm(self) -> int:
        return self.x**2 + self.y**2


@dataclass(frozen=True, slots=True)
class Pixel:
    x: Any
    seen: list[int] = field(default_factory=list[int])


@dataclass
class Counted:
    """It changes what it is given, so running it again would not give the same."""

    n: int
    doubled: int = field(init=False)
    scale: InitVar[int] = 2

    def __post_init__(self, scale: int) -> None:
        self.n += 1
        self.doubled = self.n * scale


@dataclass
class Lazy:
    x: int
    later: int = field(init=False)


class Outer:
    @dataclass
    class Inner:
        x: Any


class Pair(NamedTuple):
    a: Any
    b: Any = None


class Page(BaseModel):
    url: str
    size: int = 0
    tags: set[str] = Field(default_factory=set)
    parent: Page | None = None
    body: Any = None


class Picky(BaseModel):
    """Its validator refuses what it has made itself."""

    model_config = ConfigDict(extra="allow")
    n: int
    _cached: int = PrivateAttr(default=7)

    @cached_property
    def twice(self) -> int:
        return 2 * self.n


class Urls(RootModel[list[str]]):
    pass


class Box(BaseModel, Generic[T]):
    item: T


@dataclass
class Crate(Generic[T]):
    item: T


class Custom(Exception):
    def __init__(self, url: str, *, status: int) -> None:
        super().__init__(f"{url}: {status}")
        self.url = url
        self.status = status


class Needy(Exception):
    def __init__(self, a: int, b: int) -> None:
        self.sum = a + b


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def set_status(self, value: object) -> None:
        RAN.append("setter")

    status = property(None, set_status)


class Money:
    def __init__(self, amount: Decimal, currency: str) -> None:
        self.amount = amount
        self.currency = currency

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.amount)


class Bag(list[int]):
    pass


class Title(str):
    __slots__ = ()


@pytest.fixture
def codec() -> Codec:
    return Codec()


def raised(error: BaseException, cause: BaseException | None = None, *notes: str) -> BaseException:
    for note in notes:
        error.add_note(note)
    error.__cause__ = cause
    return error


def shape(value: object) -> object:
    """``value`` with its types all the way down: what is the same in every way compares equal."""
    kind = type(value)
    v = cast("Any", value)
    if isinstance(value, BaseExceptionGroup):
        return kind, value.message, [shape(e) for e in v.exceptions], error_shape(v)
    if isinstance(value, BaseException):
        letters = sorted(str(value))  # of a set's members, which may stand in another order there
        return kind, [shape(arg) for arg in value.args], letters, error_shape(value)
    if isinstance(value, datetime | time):
        return kind, value.isoformat(), value.fold, repr(value.tzinfo)
    if isinstance(value, Enum):
        return kind, value.name, value.value
    if isinstance(value, BaseModel):
        inner = (shape(vars(value)), shape(v.__pydantic_extra__), shape(v.__pydantic_private__))
        return kind, inner, value.model_fields_set
    if isinstance(value, StateMap):
        return kind, shape(v.__reduce__()[1])
    if isinstance(value, PositionedList):
        return kind, shape(v._map)
    if isinstance(value, dict | OrderedDict | MappingProxyType | State):
        extra = v.default_factory if kind is defaultdict else None
        return kind, [(shape(key), shape(item)) for key, item in v.items()], extra
    if isinstance(value, set | frozenset):
        return kind, sorted((shape(member) for member in v), key=repr)
    if isinstance(value, list | tuple | StateList | deque):
        return kind, [shape(item) for item in v], getattr(v, "maxlen", None)
    if hasattr(kind, "__dataclass_fields__"):
        names = list(v.__dataclass_fields__)
        return kind, [(name, shape(getattr(value, name, ...))) for name in names]
    return kind, hex(value) if isinstance(value, int) else repr(value)


def named(value: object) -> str:
    """The id of a test: the same in each process, so without addresses or the order of a set."""
    if isinstance(value, int):
        return hex(value)
    return ascii(value)[:60] if isinstance(value, str | float | bytes) else type(value).__name__


def error_shape(error: BaseException) -> object:
    return shape(dict(vars(error))), shape(error.__cause__)


def assert_same(codec: Codec, value: object) -> None:
    text = codec.encode(value)
    json.loads(text)  # it is JSON for everybody
    assert "\\u0000" not in text.replace("\\\\", "")  # which Postgres refuses
    assert text.encode()
    assert shape(codec.decode(text)) == shape(value)


DAY = datetime(2026, 1, 2)  # noqa: DTZ001 # naive ones are data too

PLAIN = cast("list[object]", [
    None, True, False, 0, -1, 2**63, -(2**63), 2**64, -(2**70), 10**4299, 0.0, -0.0, 1.5, 1e22,
    5e-324,
    "", "a", "ü", "𝄞", '\n"\\/', "@", "a@b.c", "$5", "\\u0000", [], [1, [2, []]], {},
    {"a": {"b": []}},
    {"": 1, "$tag": 2, "ü": 3}, {"email": "me@home"}, ["@me", "\\u0000"],
])  # fmt: skip

TAGGED = cast("list[object]", [
    10**4300, -(10**4300), 10**9999, float("nan"), float("inf"), -float("inf"), [float("nan")],
    "\0", "a\0\\x00", "\ud800", "\ud83d\ude00", "\0ü𝄞\\", {"\0": 1}, {"\ud800": "\udfff"},
    {"@": "tuple", "value": [1]}, {"@": 1}, {"@@": 2}, {"@type": 3}, {"a": {"@": None}},
    {1: "a"}, {(1, 2): "b"}, {1: 1, "1": 2}, {None: 0, True: 1, 2.5: 2, frozenset({1}): [3]},
    {Color.RED: {Word.LOW: 1}}, {b"": b"\0\xff"},
    (), (1,), ((),), [(1, (2,)), [3]], {"a": (1, {"b": {2}})}, set(), {1, 2}, {"a", 1}, {(1, 2)},
    frozenset(), frozenset([frozenset({1})]), b"", b"\0\xff", bytearray(b"ab"), 1j,
    complex(-0.0, 2),
    range(3), range(9, 0, -2), range(10**700), Fraction(3, 2), UUID(int=7),
    Decimal("1.10"), Decimal("-0"), Decimal("NaN"), Decimal("sNaN"), Decimal("1E+9999"),
    Decimal("-Inf"),
    Path("a/b"), Path(), Path("/"), PurePosixPath("a"), PureWindowsPath("c:\\x"),
    Path(os.fsdecode(b"\xff")),
    date(2026, 1, 2), date.max, timedelta(days=-1, microseconds=3), timedelta.max,
    time(), time(1, 2, 3, 4, fold=1), time(1, tzinfo=UTC), time(1, tzinfo=ZoneInfo("Europe/Rome")),
    DAY, DAY.max, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Rome")),
    datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Rome")),
    datetime(1800, 1, 1, tzinfo=ZoneInfo("Europe/Rome")),  # +00:49:56
    datetime(2026, 1, 2, tzinfo=ZoneInfo("UTC")), datetime.min.replace(tzinfo=timezone.max),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1, seconds=1, microseconds=1))),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(microseconds=1))),
    time(1, 2, tzinfo=timezone(timedelta(microseconds=-1))),
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1), "CET")),
    UTC, timezone(timedelta(hours=-3)), timezone(timedelta(0), "GMT"), ZoneInfo("Europe/Rome"),
    Color.RED, Color.BLUE, Level.LOW, Word.LOW, Rights.READ, Rights.READ | Rights.WRITE, Rights(0),
    Bits.ONE, Bits(9),
    deque([1, (2,)]), deque([1], maxlen=3), OrderedDict(b=1, a=2), Counter("aab"), Counter({1: 2}),
    MappingProxyType({"a": (1,)}), defaultdict(list, a=[1]), defaultdict(None, {1: 2}),
    Point(1), Point((1,), Point(2), label="\0"), Pixel({1}, [2]), Counted(1), Lazy(1),
    Outer.Inner(b"x"),
    Pair(1), Pair(Pair((1,)), {2}),
    Page(url="a"), Page(url="a", size=0, tags={"x"}, parent=Page(url="b"), body=(1, 2)),
    Page.model_construct(url="", size="no int"), Picky(n=1),
    Picky.model_validate({"n": 1, "@more": (2,)}),
    Urls(["a"]),
    State(), State({"a": (1,), "b": [2]}), StateList(), StateList([1, (2,)]),
    StateList([1]).append(2),
    StateMap(), StateMap({"a": 1, "b": (2,)}), StateMap({1: 2, "1": 3}),
    StateMap({"a": 1}).put("b", 2),
    StateMap[str, object]({"@": 0}).put("b", (1,), 2.0).put("c", 3, 1.5).put("b", 4).put("d", 5),
    PositionedList(StateMap[int, object]()),
    PositionedList(StateMap[int, object]().put_all([(3, "c", 3.0), (1, ("a",), 1.0)])),
    PositionedList(StateMap[int, object]().put_all([(3, "c", 1.0), (1, "a", None)])),
    ErrorInfo(type="ValueError", message="no", traceback="..."),
])  # fmt: skip

ERRORS = cast("list[BaseException]", [
    ValueError(), ValueError("no"), ValueError(1, (2,)), KeyError("k"), StopIteration(3),
    SystemExit(2),
    OSError(2, "No such file", "x"), FileNotFoundError(2, "No", "a", None, "b"),
    KeyboardInterrupt(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ImportError("no", name="n", path="p"),
    SyntaxError("bad", ("f", 1, 2, "x")), TimeoutError("late"),
    raised(ValueError("a"), KeyError("b"), "n1", "n2"),
    raised(ValueError(), raised(KeyError(), OSError(1, "a")), "\0"),
    Custom("http://a", status=500), Needy(1, 2),
    ExceptionGroup("many", [ValueError(1), ExceptionGroup("more", [KeyError("k")])]),
    BaseExceptionGroup("all", [KeyboardInterrupt(), raised(ValueError(1), None, "noted")]),
    NobodyAccepted("nobody", [Rejected("no", (1,)), RetryLater(3.0)]), shoal.StepTimeout("late"),
    shoal.errors.MissingField("f"), NotEncodable("no", "state['a']"),
    SavedError("gone:Error", "what it was"),
    raised(SavedError("gone:Error", ""), KeyError(1), "note"),
])  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=named)
def test_what_is_json_is_stored_as_json(codec: Codec, value: object):
    assert_same(codec, value)
    assert json.loads(codec.encode(value)) == value


@pytest.mark.parametrize("value", TAGGED + cast("list[object]", ERRORS), ids=named)
def test_everything_comes_back_as_it_was(codec: Codec, value: object):
    assert_same(codec, value)
    assert_same(codec, [value])
    assert_same(codec, {"a": ({"b": value},)})
    assert_same(codec, Point(Pair(Page.model_construct(url="", body=value))))


def test_what_a_loaded_collection_becomes_next_is_what_the_saved_one_would(codec: Codec):
    saved = StateMap({"a": 1}).put("b", 2, 5.0).put("c", 3, 3.0)
    loaded = codec.decode(codec.encode(saved))
    for each in (saved, loaded):
        after = each.put("c", 4, 5.0).put("d", 5)
        assert list(after.items()) == [("a", 1), ("b", 2), ("c", 4), ("d", 5)]


def test_what_a_property_has_cached_is_not_saved(codec: Codec):
    point, model = Point(3, 4), Picky(n=2)
    assert (point.norm, model.twice) == (25, 4)
    for value in (point, model):
        text = codec.encode(value)
        assert "norm" not in text
        assert "twice" not in text
        assert codec.decode(text) == value


def test_what_a_generic_dataclass_was_made_for_is_not_saved(codec: Codec):
    crate = Crate[int](1)
    assert "__orig_class__" in vars(crate)
    text = codec.encode([crate])
    assert text == codec.encode([Crate(1)])
    assert codec.decode(text) == [crate]


# -- any value there is ----------------------------------------------------------------------------

characters = st.characters(exclude_categories=())  # half surrogate pairs too
texts = st.text(characters, max_size=5) | st.text(st.sampled_from('@\0\\ud8"a'), max_size=6)
zones = (
    st.none()
    | st.just(UTC)
    | st.timezones()
    | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
)
hashable_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=4)
    | st.datetimes(timezones=zones)
    | st.times()
    | st.dates()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
    | st.builds(PurePosixPath, texts)
    | st.sampled_from([Color.RED, Level.LOW, Word.LOW, Rights(3), Bits(5)])
)
hashables = st.recursive(
    hashable_leaves,
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3) | inner.map(Pair),
    max_leaves=4,
)
leaves = hashable_leaves | st.floats() | st.complex_numbers() | st.builds(bytearray, st.binary())


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=4)
    by_text = st.dictionaries(texts, inner, max_size=4)
    by_any = st.dictionaries(hashables, inner, max_size=4)
    return (
        lists
        | by_text
        | by_any
        | st.sets(hashables, max_size=4)
        | lists.map(tuple)
        | lists.map(deque)
        | lists.map(StateList)
        | by_text.map(State)
        | by_any.map(StateMap)
        | st.lists(st.tuples(hashables, inner, st.none() | st.floats(0, 9))).map(
            lambda entries: StateMap[Any, Any]().put_all(entries)
        )
        | by_any.map(OrderedDict)
        | st.tuples(inner, texts).map(lambda both: Point(both[0], label=both[1]))
        | inner.map(Pixel)
        | st.tuples(inner, inner).map(Pair._make)
        | inner.map(lambda item: Page(url="a", body=item))
        | inner.map(lambda item: Picky.model_construct(None, n=item, more=item))
        | lists.map(lambda args: ValueError(*args))
        | st.tuples(lists, inner).map(
            lambda both: raised(KeyError(*both[0]), OSError(both[1]), "n")
        )
    )


values = st.recursive(leaves, containers, max_leaves=12)


@settings(deadline=None, max_examples=300)
@given(values)
def test_any_value_comes_back_as_it_was(value: object):
    assert_same(Codec(), value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)


@settings(deadline=None, max_examples=200)
@given(json_values)
def test_the_fast_way_and_the_slow_way_write_the_same(value: object):
    codec = Codec()
    text = codec.encode(value)
    codec._plain = lambda value: None
    assert codec.encode(value) == text


@settings(deadline=None, max_examples=200)
@given(values, st.data())
def test_whatever_becomes_of_a_text_it_is_read_or_refused(value: object, data: st.DataObject):
    text = Codec().encode(value)
    at = data.draw(st.integers(0, len(text)))
    damaged = text[:at] + data.draw(st.text(max_size=2)) + text[at + data.draw(st.integers(0, 3)) :]
    try:
        Codec().decode(damaged)
    except NotDecodable:
        return


# -- golden texts: what was stored once is read for ever -------------------------------------------

GOLDEN: dict[str, object] = {
    '{"a":[1,null,true,1.5,"ü"]}': {"a": [1, None, True, 1.5, "ü"]},
    '{"@@":1,"@@type":2}': {"@": 1, "@type": 2},
    '{"@":"str","value":"a\\\\x00\\\\ud800\\\\\\\\"}': "a\0\ud800\\",
    '{"@":"float","value":"nan"}': float("nan"),
    '{"@":"float","value":"-inf"}': -float("inf"),
    '{"@":"dict","value":[[1,"a"],[{"@":"tuple","value":[2]},"b"]]}': {1: "a", (2,): "b"},
    '{"@":"tuple","value":[1,{"@":"set","value":["a","b"]}]}': (1, {"b", "a"}),
    '{"@":"frozenset","value":[1,2]}': frozenset({2, 1}),
    '{"@":"bytes","value":"AP8="}': b"\0\xff",
    '{"@":"bytearray","value":"AP8="}': bytearray(b"\0\xff"),
    '{"@":"complex","value":[1.0,-2.0]}': 1 - 2j,
    '{"@":"range","value":[0,5,2]}': range(0, 5, 2),
    '{"@":"Decimal","value":"1.10"}': Decimal("1.10"),
    '{"@":"Fraction","value":"3/2"}': Fraction(3, 2),
    '{"@":"UUID","value":"00000000-0000-0000-0000-000000000007"}': UUID(int=7),
    '{"@":"Path","value":"a/b"}': Path("a/b"),
    '{"@":"PurePosixPath","value":"a/b"}': PurePosixPath("a/b"),
    '{"@":"PureWindowsPath","value":"c:\\\\a"}': PureWindowsPath("c:\\a"),
    '{"@":"date","value":"2026-01-02"}': date(2026, 1, 2),
    '{"@":"time","value":"03:04:05"}': time(3, 4, 5),
    '{"@":"timedelta","value":[1,2,3]}': timedelta(1, 2, 3),
    '{"@":"datetime","value":"2026-01-02T03:04:05"}': DAY.replace(hour=3, minute=4, second=5),
    '{"@":"datetime","value":"2026-01-02T03:04:05+00:00"}': datetime(
        2026, 1, 2, 3, 4, 5, tzinfo=UTC
    ),
    '{"@":"datetime","value":"2026-10-25T02:30:00+01:00",'
    '"zone":{"@":"zone","value":"Europe/Rome"},"fold":1}': datetime(
        2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Rome")
    ),
    '{"@":"timezone","value":[0,3600,0],"name":"CET"}': timezone(timedelta(hours=1), "CET"),
    '{"@":"deque","value":[1],"maxlen":3}': deque([1], maxlen=3),
    '{"@":"OrderedDict","value":{"b":1,"a":2}}': OrderedDict(b=1, a=2),
    '{"@":"Counter","value":{"a":2}}': Counter(a=2),
    '{"@":"mappingproxy","value":{"a":2}}': MappingProxyType({"a": 2}),
    '{"@":"defaultdict","value":{"a":[]},"factory":"list"}': defaultdict(list, a=[]),
    f'{{"@":"enum","@type":"{HERE}:Color","name":"RED"}}': Color.RED,
    f'{{"@":"flag","@type":"{HERE}:Rights","value":3}}': Rights.READ | Rights.WRITE,
    f'{{"@":"dataclass","@type":"{HERE}:Point","x":1,"y":2,"label":""}}': Point(1, 2),
    f'{{"@":"dataclass","@type":"{HERE}:Outer.Inner","x":1}}': Outer.Inner(1),
    f'{{"@":"namedtuple","@type":"{HERE}:Pair","a":1,"b":null}}': Pair(1),
    f'{{"@":"model","@type":"{HERE}:Urls","root":["a"]}}': Urls(["a"]),
    f'{{"@":"model","@type":"{HERE}:Picky","n":1,"@extra":{{"b":2}},"@private":{{"_cached":7}}}}': (
        Picky.model_validate({"n": 1, "b": 2})
    ),
    f'{{"@":"model","@type":"{HERE}:Page","url":"a","size":0,"tags":{{"@":"set","value":[]}},"parent":null,'
    '"body":null,"@unset":["size","tags","parent","body"]}': Page(url="a"),
    '{"@":"error","@type":"builtins:ValueError","text":"no","args":["no"],"notes":["n"],'
    '"cause":{"@":"error","@type":"builtins:KeyError","text":"1","args":[1]}}': raised(
        ValueError("no"), KeyError(1), "n"
    ),
    f'{{"@":"error","@type":"{HERE}:Custom","text":"u: 1","args":["u: 1"],'
    '"state":{"url":"u","status":1}}': (Custom("u", status=1)),
    '{"@":"error","@type":"builtins:ExceptionGroup","text":"m (1 sub-exception)",'
    '"args":["m",[{"@":"error","@type":"builtins:ValueError","text":"1","args":[1]}]]}': (
        ExceptionGroup("m", [ValueError(1)])
    ),
    '{"@":"error","@type":"gone:Error","text":"was"}': SavedError("gone:Error", "was"),
    '{"@":"State","value":{"a":1}}': State(a=1),
    '{"@":"StateList","value":[1]}': StateList([1]),
    '{"@":"StateMap","value":{"a":1,"b":2}}': StateMap({"a": 1, "b": 2}),
    '{"@":"StateMap","value":{"a":1,"b":2,"c":3},"positions":[-1,null,2.5]}': (
        StateMap({"a": 1}).put("b", 2).put("c", 3, 2.5)
    ),
    '{"@":"PositionedList","value":["c","a"],"at":[2,0]}': PositionedList(
        StateMap[int, str]().put_all([(2, "c", 2.0), (0, "a", 0.0)])
    ),
    '{"@":"PositionedList","value":["c"],"at":[2],"positions":[null]}': PositionedList(
        StateMap[int, str]().put_all([(2, "c", None)])
    ),
    '{"@":"dataclass","@type":"shoal:ErrorInfo","type":"E","message":"m","traceback":"t"}': (
        ErrorInfo(type="E", message="m", traceback="t")
    ),
}


VAST = {"int", "ratio"}
"""Tags whose texts are too long to stand here."""


@pytest.mark.parametrize(("text", "value"), GOLDEN.items(), ids=named)
def test_the_stored_format_never_changes(codec: Codec, text: str, value: object):
    assert codec.encode(value) == text
    assert shape(codec.decode(text)) == shape(value)


def test_every_tag_has_a_golden_text_and_is_in_the_table(codec: Codec):
    of_objects = {"enum", "flag", "dataclass", "namedtuple", "model", "error"}
    assert {*codec._unpackers} == {*UNPACKERS} | of_objects
    table = (Path(__file__).parents[2] / "docs/stored-values.md").read_text()
    for tag in codec._unpackers:
        assert tag in VAST or any(f'"@":"{tag}"' in text for text in GOLDEN), tag
        assert f'"@": "{tag}"' in table, tag
    assert codec.encode(16**4000).startswith('{"@":"int","value":"1000')
    ratio = codec.encode(Fraction(16**4000, 3))
    assert ratio.startswith('{"@":"ratio","value":[{"@":"int","value":"1000')
    assert ratio.endswith('0"},3]}')


def test_what_is_stored_can_be_queried(codec: Codec):
    text = codec.encode({
        "title": "Home", "page": Page(url="u", body="b"), "at": date(2026, 1, 2),
        "pos": Point(1, 2),
        "titles": StateMap({"http://a.b/c": "A"}),
    })  # fmt: skip
    query = """select ? ->> 'title', ?1 -> 'page' ->> 'url', ?1 -> 'at' ->> 'value',
        ?1 -> 'pos' ->> 'y', ?1 -> 'titles' -> 'value' ->> 'http://a.b/c'"""
    with sqlite3.connect(":memory:") as connection:
        assert connection.execute(query, (text,)).fetchone() == ("Home", "u", "2026-01-02", 2, "A")
    connection.close()


# -- what is refused -------------------------------------------------------------------------------


class Zone(tzinfo):
    def utcoffset(self, dt: datetime | None) -> timedelta:
        return timedelta(0)


def zone_of(key: str | None) -> ZoneInfo:
    """A time zone of a file that no other machine has: always UTC."""
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    data = b"TZif" + bytes(16) + counts + struct.pack(">lBB", 0, 0, 0) + b"UTC\0"
    return ZoneInfo.from_file(io.BytesIO(data), key)


def local() -> object:
    @dataclass
    class Here:
        x: int

    return Here(1)


def made_here() -> object:
    return Box[tuple[int, str]](item=(1, ""))


def with_less() -> object:
    point = Point(1)
    del point.x
    return point


def with_more() -> object:
    point = Point(1)
    point.__dict__["more"] = 2
    return point


REFUSED: list[tuple[object, str, str]] = [
    (object(), "state", "state is an object, which can't be saved: register it.*or keep it out"),
    ({"pages": [0, Point(threading.Lock())]}, "state['pages'][1].x", "is a lock.*field secret"),
    ([{"a": ({1: [len]},)}], "state[0]['a'][0][1][0]", "is a builtin_function_or_method"),
    ({(1, object): 2}, "state.keys()[(1, <class 'object'>)][1]", "is a type"),
    ({"s": {len}}, "state['s']{...}", "is a builtin_function"),
    (Page(url="", body=[len]), "state.body[0]", "is a builtin_function"),
    (Pair(1, (len,)), "state.b[0]", "is a builtin_function"),
    (StateMap({"k": [len]}), "state['k'][0]", "is a builtin_function"),
    (State({"f": StateList([1, len])}), "state['f'][1]", "is a builtin_function"),
    ([local()], "state[0]", "is a Here.*can't be found again.*inside of a function: move it"),
    ([made_here()], "state[0]", "is a Box.tuple.*can't be found again"),
    ([Bag([1])], "state[0]", "is a Bag, and would come back as a plain list: make it one"),
    ([Title("a")], "state[0]", "is a Title, and would come back as a plain str"),
    ({Title("a"): 1}, "state.keys()['a']", "is a Title"),
    ([with_more()], "state[0]", "has an attribute 'more', which is not a field of Point"),
    ([with_less()], "state[0]", "has no 'x', which a Point has"),
    ([Page.model_construct()], "state[0]", "has no 'url', which a Page has"),
    ([defaultdict(lambda: 1)], "state[0]", "is a defaultdict that calls.*make it a dict"),
    (datetime(2026, 1, 1, tzinfo=Zone()), "state.tzinfo", "is a Zone"),
    ([zone_of("My/Own")], "state[0]", "is .*My/Own.*time zone that can't be found again"),
    ([zone_of(None)], "state[0]", "a time zone that can't be found again by its name"),
    ([memoryview(b"")], "state[0]", "is a memoryview"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "path", "message"), REFUSED, ids=named)
def test_what_cannot_be_saved_is_named(codec: Codec, value: object, path: str, message: str):
    with pytest.raises(NotEncodable, match=message) as caught:
        codec.encode(value, "state")
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path} ")
    assert isinstance(caught.value, NotData)


def test_a_socket_is_closed_and_refused(codec: Codec):
    with socket.socket() as one, pytest.raises(NotEncodable, match=r"is a socket.*register"):
        codec.encode([one])


def test_a_cycle_is_refused_as_such(codec: Codec):
    loop: list[object] = [1]
    loop.append({"a": loop})
    with pytest.raises(NotEncodable, match="holds itself") as caught:
        codec.encode(loop, "state")
    assert caught.value.path == "state[1]['a']"
    point = Point(None)
    point.x = (point,)
    with pytest.raises(NotEncodable, match="holds itself"):
        codec.encode(point)
    shared = [(1,)]
    assert codec.decode(codec.encode([shared, shared])) == [[(1,)], [(1,)]]


def nested(make: Callable[[Any], object], depth: int, value: object = 1) -> object:
    for _ in range(depth):
        value = make(value)
    return value


WRAPPERS: dict[str, Callable[[Any], object]] = {
    "list": lambda v: [v],
    "dict": lambda v: {"a": v},
    "tuple": lambda v: (v,),
    "pairs": lambda v: {1: v},
    "dataclass": Point,
    "model": lambda v: Page.model_construct(url="", body=v),
    "namedtuple": Pair,
    "map": lambda v: StateMap({1: v}).put(2, 2),
    "state": lambda v: State(a=v),
    "frozenset": lambda v: frozenset([v]),
}


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
def test_depth_is_bounded_and_read_with_little_of_the_stack(
    codec: Codec, make: Callable[[Any], object]
):
    def deeper(frames: int) -> object:
        return deeper(frames - 1) if frames else codec.decode(codec.encode(whole))

    whole = nested(make, MAX_DEPTH - 2)  # a model's own parts are deeper still
    read = deeper(150)
    assert codec.encode(read) == codec.encode(whole)
    with pytest.raises(NotEncodable, match=f"nested more than {MAX_DEPTH} levels deep"):
        codec.encode(nested(make, MAX_DEPTH + 1))


def test_a_stack_that_is_all_but_used_up_is_an_error_too(codec: Codec):
    def deeper(do: Callable[[], object]) -> object:
        try:
            return deeper(do)
        except RecursionError:
            return do()

    whole, plain = nested(lambda v: (v,), MAX_DEPTH - 1), nested(lambda v: [v], 15)
    text = codec.encode(whole)
    with pytest.raises(NotEncodable, match="too deeply for the stack"):
        deeper(lambda: codec.encode(plain))
    with pytest.raises(NotEncodable, match="too deeply for the stack"):
        deeper(lambda: codec.encode(whole))
    with pytest.raises(NotDecodable, match="too deeply"):
        deeper(lambda: codec.decode(text))


def test_a_long_path_is_shown_in_part_and_published_as_a_whole(codec: Codec):
    with pytest.raises(
        NotEncodable, match=r"^state\['a'\]\['a'\].*….*\['a'\] is a builtin"
    ) as caught:
        codec.encode(nested(lambda v: {"a": v}, 60, len), "state")
    assert caught.value.path == "state" + "['a']" * 60
    assert len(str(caught.value)) < 450


def test_a_text_that_is_nested_deeper_than_any_that_was_written_is_refused(codec: Codec):
    with pytest.raises(NotDecodable, match="nested too deeply to be read"):
        codec.decode('{"@":"tuple","value":[' * 350 + "]}" * 350)


@pytest.mark.parametrize("digits", [0, 640, 4300, 5000])
def test_ints_come_back_whatever_pythons_limit_of_digits_is(codec: Codec, digits: int):
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(digits)
    try:
        for size in (10**639, 10**641, 10**4299, 10**4301):
            for value in (size, -size):
                for whole in (
                    value,
                    [value],
                    {"a": (value,)},
                    {value: 1},
                    {(1, value): 1},
                    Fraction(value, 7),
                    Fraction(7, size),
                ):
                    assert codec.decode(codec.encode(whole)) == whole
    finally:
        sys.set_int_max_str_digits(limit)


def test_of_vast_ints_only_those_that_json_can_not_have_are_tagged(codec: Codec):
    most = 10**4300 - 1
    for value in (most, -(most // 10), [-1, most]):
        assert "@" not in codec.encode(value)
    for value in (most + 1, -most, -(most // 10) - 1):
        assert codec.encode(value) == f'{{"@":"int","value":"{value:x}"}}'
    assert codec.encode(f"-{most}") == f'"-{most}"'


def test_what_a_vast_key_leads_to_is_named_in_short(codec: Codec):
    with pytest.raises(NotEncodable) as refused:
        codec.encode({10**5000: object()})
    assert refused.value.path.startswith("value[0x31e2080103")
    assert len(refused.value.path) < 60


def test_sets_of_strings_are_written_alike_in_every_process():
    script = "from shoal import Codec; print(Codec().encode({'a','b','c','dd','e'}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(found) == 1


# -- types that users register ---------------------------------------------------------------------


def register_money(codec: Codec, version: int = 1) -> None:
    def decode(saved: Any, version: int) -> Money:
        return Money(saved, "EUR") if version == 1 else Money(*saved)

    def encode(money: Money) -> object:
        return money.amount if version == 1 else (money.amount, money.currency)

    codec.register(Money, tag="money", version=version, encode=encode, decode=decode)


def test_a_registered_type_comes_back_at_any_depth(codec: Codec):
    register_money(codec, version=2)
    price = Money(Decimal("1.10"), "USD")
    text = codec.encode({"price": price, "all": [(price,)]})
    assert codec.decode(text) == {"price": price, "all": [(price,)]}
    assert '"price":{"@":"money/2","value":{"@":"tuple","value":[' in text


def test_an_old_version_is_given_to_decode_and_a_newer_one_is_refused():
    old, new = Codec(), Codec()
    register_money(old, version=1)
    register_money(new, version=2)
    text = old.encode([Money(Decimal(5), "EUR")])
    assert text == '[{"@":"money/1","value":{"@":"Decimal","value":"5"}}]'
    assert new.decode(text) == [Money(Decimal(5), "EUR")]
    with pytest.raises(NotDecodable, match=r"'money' was saved in version 2.*knows up to 1"):
        old.decode(new.encode(Money(Decimal(5), "USD")))


def test_a_tag_that_nobody_registered_says_so(codec: Codec):
    with pytest.raises(
        NotDecodable, match=r"saved with the tag 'money', and no class is registered.*register"
    ):
        codec.decode('[{"@":"money/1","value":1}]')


def test_what_was_saved_before_a_type_was_registered_is_version_0(codec: Codec):
    saved = [codec.encode(each) for each in (Point(1, (2,)), Pair(1), Page(url="a"), Color.RED)]
    seen: list[tuple[Any, int]] = []

    def decode(fields: Any, version: int) -> Any:
        seen.append((fields, version))
        return "made"

    kinds: list[type] = [Point, Pair, Page, Color]
    for kind in kinds:
        codec.register(kind, tag=kind.__name__, encode=repr, decode=decode)
    assert [codec.decode(text) for text in saved] == ["made"] * 4
    assert seen[0] == ({"x": 1, "y": (2,), "label": ""}, 0)
    assert seen[1] == ({"a": 1, "b": None}, 0)
    assert seen[2][0].keys() == {"url", "size", "tags", "parent", "body"}
    assert seen[3] == ({"name": "RED"}, 0)
    assert codec.encode(Point(1)).startswith('{"@":"Point/1"')


def test_an_error_of_encode_or_decode_is_raised_with_its_place(codec: Codec):
    def fail(*_: Any) -> Any:
        raise LookupError("nothing there")

    codec.register(Money, tag="money", encode=fail, decode=fail)
    with pytest.raises(NotEncodable, match="encode= of Money raised LookupError") as caught:
        codec.encode({"a": [Money(Decimal(1), "")]}, "state")
    assert caught.value.path == "state['a'][0]"
    assert isinstance(caught.value.__cause__, LookupError)
    with pytest.raises(NotDecodable, match="'money/1' can't be read: LookupError: nothing there"):
        codec.decode('{"@":"money/1","value":1}')


def test_what_encode_returns_must_be_data_too(codec: Codec):
    codec.register(Money, tag="money", encode=lambda m: [len], decode=lambda v, n: Money(v, ""))
    with pytest.raises(NotEncodable, match="builtin_function") as caught:
        codec.encode([Money(Decimal(1), "")], "state")
    assert caught.value.path == "state[0][0]"


def as_it_is(saved: Any, version: int) -> Any:
    return saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "a/b"}, "'a/b' can't be a tag"),
        ({"tag": ""}, "'' can't be a tag"),
        ({"version": 0}, "a number that counts from 1"),
        ({"version": True}, "a number that counts from 1"),
        ({"tag": "point"}, "tag 'point' is in use for Point"),
        ({"kind": Point}, "Point already: as 'point'"),
        ({"kind": dict}, "knows dict already"),
        ({"kind": "Money"}, "takes a class"),
    ],
)
def test_what_cannot_be_registered(codec: Codec, change: dict[str, Any], message: str):
    codec.register(Point, tag="point", encode=repr, decode=as_it_is)
    arguments: dict[str, Any] = {
        "kind": Money, "tag": "money", "encode": repr, "decode": as_it_is, **change,
    }  # fmt: skip
    with pytest.raises(DefinitionError, match=message):
        codec.register(arguments.pop("kind"), **arguments)


def test_codecs_share_nothing():
    one, other = Codec(), Codec()
    register_money(one)
    with pytest.raises(NotEncodable):
        other.encode(Money(Decimal(1), ""))


def test_a_type_used_before_it_was_registered_is_written_as_registered_from_then_on(codec: Codec):
    codec.encode(Point(1))
    codec.register(Point, tag="point", encode=lambda p: p.x, decode=lambda v, n: Point(v))
    assert codec.encode(Point(1)) == '{"@":"point/1","value":1}'


def custom(status: Any, version: int) -> Custom:
    return Custom("", status=status)


def test_an_exception_may_be_registered(codec: Codec):
    codec.register(Custom, tag="custom", encode=lambda e: e.status, decode=custom)
    assert codec.encode(Custom("a", status=3)) == '{"@":"custom/1","value":3}'


# -- types that have changed since -----------------------------------------------------------------


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("app_models")
    monkeypatch.setitem(sys.modules, "app_models", made)
    return made


def dataclass_in(module: ModuleType, name: str, fields: list[Any]) -> type[Any]:
    kind = make_dataclass(name, fields)
    kind.__module__ = module.__name__
    setattr(module, name, kind)
    return kind


def test_fields_that_were_added_get_defaults_and_those_removed_are_dropped(
    codec: Codec, module: ModuleType
):
    was = dataclass_in(module, "Item", ["a", "b"])
    text = codec.encode(was(1, 2))
    now = dataclass_in(
        module, "Item", ["b", ("c", int, 5), ("d", list, field(default_factory=list))]
    )
    read = codec.decode(text)
    assert (type(read), read.b, read.c, read.d, hasattr(read, "a")) == (now, 2, 5, [], False)


def test_a_field_that_was_added_without_a_default_is_refused(codec: Codec, module: ModuleType):
    text = codec.encode([dataclass_in(module, "Item", ["a"])(1)])
    dataclass_in(module, "Item", ["a", "b"])
    with pytest.raises(
        NotDecodable, match=r"Item was saved without a field 'b'.*give it a default, or register"
    ):
        codec.decode(text)


def test_models_and_named_tuples_change_alike(codec: Codec, module: ModuleType):
    class Row(BaseModel):
        a: int
        old: int = 0

    class Line(NamedTuple):
        a: int
        old: int = 0

    def place(kind: Any, name: str) -> None:
        kind.__module__, kind.__qualname__ = module.__name__, name
        setattr(module, name, kind)

    place(Row, "Row")
    place(Line, "Line")
    texts = codec.encode(Row(a=1)), codec.encode(Line(1))

    class NewRow(BaseModel):
        a: int
        new: list[int] = Field(default_factory=list)
        twice: int = Field(default_factory=lambda data: 2 * data["a"])

    class NewLine(NamedTuple):
        a: int
        new: int = 5

    place(NewRow, "Row")
    place(NewLine, "Line")
    row, line = Codec().decode(texts[0]), Codec().decode(texts[1])
    assert (type(row), row.a, row.new, row.twice, row.model_fields_set) == (NewRow, 1, [], 2, {"a"})
    assert (type(line), line) == (NewLine, (1, 5))

    class Strict(BaseModel):
        a: int
        more: int

    class StrictLine(NamedTuple):
        more: int

    place(Strict, "Row")
    place(StrictLine, "Line")
    for text in texts:
        with pytest.raises(NotDecodable, match="without a field 'more'"):
            Codec().decode(text)


def test_a_type_that_has_moved_is_reported(codec: Codec):
    text = (
        '[{"@":"dataclass","@type":"app.old:Spot","x":1},'
        '{"@":"error","@type":"app.old:E","text":"a","args":[1]}]'
    )
    with pytest.raises(NotDecodable, match=r"app\.old:Spot.*import app\.old before"):
        codec.decode(text)
    codec.moved("app.old:Spot", Point)
    codec.moved("app.old:E", Needy)
    point, error = codec.decode(text)
    assert (point, type(error), error.args) == (Point(1), Needy, (1,))
    with pytest.raises(DefinitionError, match="module and a name"):
        codec.moved("Spot", Point)


def test_a_member_that_is_gone_is_named(codec: Codec):
    with pytest.raises(NotDecodable, match=r"Color\.GREEN was saved.*as an alias"):
        codec.decode(f'{{"@":"enum","@type":"{HERE}:Color","name":"GREEN"}}')


def test_a_tag_of_a_newer_shoal_says_so(codec: Codec):
    with pytest.raises(NotDecodable, match="'tensor', which this version of shoal doesn't know"):
        codec.decode('{"@":"tensor","value":[]}')


# -- exceptions ------------------------------------------------------------------------------------


def test_an_exception_that_is_gone_leaves_its_name_and_text(codec: Codec, module: ModuleType):
    class Gone(Exception):
        def __str__(self) -> str:
            return "what it says"

    Gone.__module__, Gone.__qualname__ = "app_models", "Gone"
    setattr(module, "Gone", Gone)  # noqa: B010
    text = codec.encode([raised(Gone(1), KeyError("k"), "a note")])
    assert type(codec.decode(text)[0]) is Gone
    delattr(module, "Gone")
    (error,) = codec.decode(text)
    assert isinstance(error, SavedError)
    assert (error.type, error.text) == ("app_models:Gone", "what it says")
    assert str(error) == "app_models.Gone: what it says"
    assert error.__notes__ == ["a note"]
    assert isinstance(error.__cause__, KeyError)
    again = codec.decode(codec.encode(error))
    assert shape(again) == shape(error)


class Odd(Exception):
    def __init__(self) -> None:
        super().__init__(threading.Lock(), len)
        self.handle = threading.Lock()
        self.code = 5

    def __str__(self) -> str:
        raise ZeroDivisionError("in str")


def test_an_exception_is_kept_as_far_as_it_goes(codec: Codec):
    error = codec.decode(codec.encode(Odd()))
    assert isinstance(error, SavedError)
    assert error.type == f"{HERE}:Odd"
    assert "str() of it failed" in error.text
    assert cast("Any", error).code == 5
    assert not hasattr(error, "handle")

    class Local(Exception):
        pass

    read = codec.decode(codec.encode(ExceptionGroup("g", [Local("a"), ValueError("b")])))
    assert type(read) is ExceptionGroup
    assert [str(each) for each in read.exceptions] == [
        f"{HERE}.test_an_exception_is_kept_as_far_as_it_goes.<locals>.Local: a", "b",
    ]  # fmt: skip


class Coded(ExceptionGroup[Exception]):
    code: int

    def __new__(cls, message: str, errors: Any, code: int = 0) -> Self:  # pyright: ignore[reportInconsistentConstructor]
        self = super().__new__(cls, message, errors)
        self.code = code
        return self

    def __reduce__(self) -> Any:
        raise ZeroDivisionError


def test_a_group_is_made_again_of_what_every_group_has(codec: Codec):
    read = codec.decode(codec.encode(cast("Any", Coded)("many", [ValueError(1)], 5)))
    assert (type(read), read.message, read.code) == (Coded, "many", 5)
    assert shape(read.exceptions) == shape((ValueError(1),))


def test_an_attribute_of_a_type_that_is_gone_is_left_out(codec: Codec):
    error = Custom("a", status=5)
    error.__dict__["where"] = Point(1)
    read = codec.decode(codec.encode(error).replace(":Point", ":Gone"))
    assert (type(read), read.status, hasattr(read, "where")) == (Custom, 5, False)


def test_a_codec_keeps_no_class_alive(codec: Codec):
    class Local(Exception):
        pass

    codec.encode(Local("a"))
    kept = weakref.ref(Local)
    del Local
    gc.collect()
    assert kept() is None


def test_arguments_of_a_type_that_is_gone_do_not_hide_the_exception(codec: Codec):
    text = codec.encode(ValueError("no", Point(1))).replace(":Point", ":Gone")
    error = codec.decode(text)
    assert isinstance(error, SavedError)
    assert str(error) == "ValueError: ('no', Point(x=1, y=0, label=''))"


def test_exceptions_in_a_circle_and_in_long_chains_are_kept_in_part(codec: Codec):
    one, other = ValueError(1), KeyError(2)
    one.__cause__, other.__cause__ = other, one
    read = codec.decode(codec.encode(one))
    assert isinstance(read.__cause__, KeyError)
    assert read.__cause__.__cause__ is None
    chain: BaseException = ValueError(0)
    for n in range(3 * MAX_DEPTH):
        chain = raised(ValueError(n), chain)
    assert codec.decode(codec.encode(chain)).args == (3 * MAX_DEPTH - 1,)


def test_an_exception_runs_nothing_of_its_own_when_it_is_read(codec: Codec):
    assert codec.decode(codec.encode(Needy(1, 2))).sum == 3  # __init__(1, 2) would take both
    frozen = Frozen("a")
    frozen.__dict__["code"] = 5
    read = codec.decode(codec.encode(frozen))
    assert (type(read), read.code) == (Frozen, 5)
    RAN.clear()
    codec.decode(codec.encode(frozen).replace('"code"', '"status"'))
    assert RAN == []


# -- nothing that a file says is run ---------------------------------------------------------------

RAN: list[str] = []


class Trap:
    def __init__(self, *args: object) -> None:
        RAN.append("init")

    def __call__(self) -> None:
        RAN.append("call")


class LazyModule(ModuleType):
    def __getattr__(self, name: str) -> object:
        RAN.append(name)
        raise AttributeError(name)


def trap() -> None:
    RAN.append("function")


@dataclass
class Guarded:
    x: int

    def __post_init__(self) -> None:
        RAN.append("post_init")

    def __setattr__(self, name: str, value: object) -> None:
        RAN.append("setattr")


HOSTILE = [
    f'{{"@":"{tag}","@type":"{name}","args":[1],"text":"","name":"RED","value":1,"x":1}}'
    for tag in ("dataclass", "enum", "flag", "namedtuple", "model")
    for name in (
        f"{HERE}:Trap", f"{HERE}:trap", f"{HERE}:RAN", f"{HERE}:Trap.__init__",
        f"{HERE}:Point.norm",
        "os:system", "builtins:eval", "subprocess:Popen", "antigravity:x", "this:s", "os:path.join",
        "lazy_module:Thing", "nowhere", "", ":", "builtins:dict", f"{HERE}:HERE", "sys:modules.os",
        f"{HERE}:Color.__class__", "builtins:type", "builtins:object",
    )
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_file_cannot_name_what_is_no_data(
    codec: Codec, text: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "lazy_module", LazyModule("lazy_module"))
    RAN.clear()
    before = {*sys.modules}
    with pytest.raises(NotDecodable):
        codec.decode(text)
    assert RAN == []
    assert {*sys.modules} == before


@pytest.mark.parametrize("args", ['["ls"]', "[]", '["a","b"]'])
def test_an_error_of_a_hostile_file_is_a_stand_in(codec: Codec, args: str):
    RAN.clear()
    for name in (
        f"{HERE}:Trap", f"{HERE}:trap", "os:system", "antigravity:x", "builtins:eval", ":",
        "builtins:dict", "shoal:SavedError",
    ):  # fmt: skip
        read = codec.decode(f'{{"@":"error","@type":"{name}","text":"t","args":{args}}}')
        assert type(read) is SavedError
        assert str(read).endswith(": t")
    assert "antigravity" not in sys.modules
    assert RAN == []


def test_reading_an_object_runs_none_of_its_methods(codec: Codec):
    text = f'{{"@":"dataclass","@type":"{HERE}:Guarded","x":1}}'
    RAN.clear()
    assert codec.decode(text).x == 1
    assert RAN == []


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "nul", "[1,]", '"\\ud800"', "NaN", '{"@":1}', '{"@":[]}', '{"@":"tuple"}',
        '{"@":"tuple","value":5}', '{"@":"set","value":[[1]]}',
        '{"@":"datetime","value":"yesterday"}',
        '{"@":"bytes","value":"*"}', '{"@":"zone","value":"../../etc/passwd"}',
        '{"@":"zone","value":"No/Where"}',
        '{"@":"int","value":"xyz"}', '{"@":"dataclass"}', '{"@":"dataclass","@type":5}',
        '{"@":"error"}',
        '{"@":"error","@type":[],"text":"a"}', '{"@":"error","@type":"a:b","text":"a","state":5}',
        '{"@":"StateMap","value":{"a":1},"positions":[1,2]}',
        '{"@":"PositionedList","value":[1],"at":[]}',
        '{"@":"Decimal","value":"x"}', '{"@":"defaultdict","value":{},"factory":"eval"}',
        f'{{"@":"model","@type":"{HERE}:Page","url":"a","@unset":5}}', "[" * 100_000,
        '{"@":"money/x"}',
        f'{{"@":"flag","@type":"{HERE}:Rights","value":99}}',
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused(codec: Codec, text: str):
    with pytest.raises(NotDecodable):
        codec.decode(text)


# -- the main module, and what isn't installed -----------------------------------------------------


def run_python(*arguments: str, **options: Any) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_the_main_module_defines_is_found_by_the_name_others_import_it_by(tmp_path: Path):
    (tmp_path / "crawler.py").write_text(
        "from dataclasses import dataclass\n"
        "from shoal import Codec\n"
        "@dataclass\n"
        "class Page:\n"
        "    url: str\n"
        "if __name__ == '__main__':\n"
        "    text = Codec().encode(Page('a'))\n"
        "    assert type(Codec().decode(text)) is Page\n"
        "    print(text)\n"
    )
    environment: Any = {"cwd": tmp_path, "env": {"PYTHONPATH": ":".join(sys.path)}}
    as_module = run_python("-m", "crawler", **environment)
    assert as_module == '{"@":"dataclass","@type":"crawler:Page","url":"a"}'
    as_script = run_python("crawler.py", **environment)
    assert as_script == '{"@":"dataclass","@type":"__main__:Page","url":"a"}'
    read = f"import crawler; from shoal import Codec; print(Codec().decode({as_module!r}))"
    assert run_python("-c", read, **environment) == "Page(url='a')"


def test_without_pydantic_nothing_imports_it():
    script = (
        "import sys\n"
        "from dataclasses import dataclass\n"
        "from shoal import Codec\n"
        "from shoal.errors import NotDecodable\n"
        "class A: pass\n"
        "codec = Codec()\n"
        'for text in (\'{"@":"model","@type":"pydantic:BaseModel"}\',):\n'
        "    try: codec.decode(text)\n"
        "    except NotDecodable: pass\n"
        "try: codec.encode(A())\n"
        "except Exception: pass\n"
        "print('pydantic' in sys.modules)\n"
    )
    assert run_python("-c", script, env={"PYTHONPATH": ":".join(sys.path)}) == "False"


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "msgspec.json", None)
    with pytest.raises(ImportError, match=r"pip install 'shoal\[sqlite\]'"):
        Codec()


# -- sizes -----------------------------------------------------------------------------------------


def test_a_large_update_is_warned_of_once():
    sizes = UpdateSizes(max_update=3 * LARGE)
    sizes.check("x" * LARGE, "step 'a'")
    with warnings.catch_warnings(record=True, action="always") as seen:
        sizes.check("ü" * (LARGE // 2 + 1), "step 'a'")
        sizes.check("x" * 2 * LARGE, "step 'b'")
    (warning,) = seen
    assert "step 'a' has 1,000,002 bytes" in str(warning.message)
    assert warning.category is UserWarning


def test_an_update_that_is_too_large_is_refused():
    sizes = UpdateSizes(max_update=10)
    sizes.check("x" * 10, "a")
    with pytest.raises(UpdateTooLarge, match=r"step 'a' has 12 bytes.*takes 10.*max_update="):
        sizes.check("𝄞" * 3, "step 'a'")
    assert size_of("aü𝄞") == 7
