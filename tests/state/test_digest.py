"""Digests: equal data has one, in every process; different data has different ones."""

# ruff: noqa: DTZ001
# Naive times are data, too.

from __future__ import annotations

import subprocess
import sys
import threading
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum, auto
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PrivateAttr

from shoal import PositionedList, State, StateList, StateMap
from shoal._state.digest import combined, digest, written
from shoal._state.digest import named as digest_of
from shoal.errors import NotData


class Color(Enum):
    RED = 1
    BLUE = 2


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    LOW = "low"


class Rights(Flag):
    READ = auto()
    WRITE = auto()


@dataclass
class Point:
    x: int
    y: int = 0
    seen_at: float = field(default=0.0, compare=False)

    @cached_property
    def norm(self) -> int:
        return self.x**2 + self.y**2


@dataclass(frozen=True, slots=True)
class Pixel:
    x: int
    y: int = 0


@dataclass(eq=False)
class Same:
    x: int


class Pair(NamedTuple):
    a: int
    b: int


class Page(BaseModel):
    url: str
    size: int = 0
    tags: set[str] = Field(default_factory=set)
    _cached: int = PrivateAttr(default=0)


class Plain:
    def __init__(self, value: object) -> None:
        self.value = value

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: int) -> None:
        self.a = a


class Bag(list[int]):
    label = ""


def named() -> None: ...


def other() -> None: ...


def numbers() -> Iterator[int]:
    yield 1


EQUAL: list[tuple[object, ...]] = [
    ([1, 2], (1, 2), StateList([1, 2]), deque([1, 2]), range(1, 3), Pair(1, 2)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, StateMap({"b": 2, "a": 1}), OrderedDict(b=2, a=1)),
    ({"a": 1}, MappingProxyType({"a": 1}), UserDict(a=1), State({"a": 1}), defaultdict(int, a=1)),
    ([], (), StateList(), PositionedList(StateMap[int, int]())),
    ([5, 6], PositionedList(StateMap[int, int]().put_all([(1, 6, 1.0), (0, 5, 0.0)]))),
    ({1, 2, 3}, frozenset([3, 2, 1]), {1: 0, 2: 0, 3: 0}.keys()),
    (b"ab", bytearray(b"ab"), memoryview(b"ab")),
    (Point(1, 2), Point(1, 2, seen_at=9.0)),
    (Pixel(1), Pixel(1, 0)),
    (Same(1), Same(1)),
    (Page(url="a"), Page(url="a", size=0), Page.model_validate({"url": "a"})),
    (Page(url="a", tags={"x", "y", "z"}), Page(url="a", tags={"z", "y", "x"})),
    (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
    (Path("a") / "b", Path("a/b"), Path("a//b")),
    (Plain([1]), Plain((1,))),
    (float("nan"), float("nan")),
    ([1], Bag([1])),
]

DIFFERENT = cast("list[object]", [
    None, True, False, 0, 1, -1, 2**64, 10**5000, 1.0, 0.0, float("inf"), float("nan"), 1j,
    "", "1", "None", "True", "a", "\ud800", b"", b"1", b"a",
    [], [[]], [None], [1], ["1"], [1, 2], [2, 1], [12], [1, [2]], [[1], 2], ["a", "b"], ["ab"],
    {}, {"a": 1}, {"a": "1"}, {1: "a"}, {"1": "a"}, {"a": {"b": 1}}, {"a": {}, "b": 1}, {"ab": 1},
    set(), {1}, {"1"}, frozenset([1, 2]), {(1, 2)},
    Color.RED, Color.BLUE, "Color.RED", Level.LOW, Word.LOW,
    Rights.READ, Rights.READ | Rights.WRITE, Rights(0),
    Point(1), Point(0, 1), Pixel(1), Same(1), Same(2), Page(url="a"), Page(url="b"), Plain(1),
    Plain("1"), Plain(None), Slotted(1), Slotted(2),
    Point, Pixel, Color, int, list, list[int], named, other, len, print, partial(named),
    partial(other), partial(print, 1), Plain(1).method, Plain(2).method, ..., NotImplemented,
    date(2026, 1, 1), datetime(2026, 1, 1), datetime(2026, 1, 1, fold=1), timedelta(1),
    datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Rome")),
    Decimal("1.5"), Decimal("1.6"), Fraction(3, 2), UUID(int=1), UUID(int=2), 1.5,
    Path("a"), Path("b"), PurePosixPath("a"), ValueError("a"), ValueError("b"), KeyError("a"),
])  # fmt: skip


@pytest.mark.parametrize("group", EQUAL)
def test_equal_data_has_one_digest(group: tuple[object, ...]):
    assert len({digest(value) for value in group}) == 1


def test_different_data_has_different_digests():
    seen: dict[bytes, object] = {}
    for value in DIFFERENT:
        before = seen.setdefault(digest(value), value)
        assert before is value, f"{before!r} and {value!r}"
    nested = {digest([value]) for value in DIFFERENT} | {digest({"a": v}) for v in DIFFERENT}
    assert len(nested) == 2 * len(DIFFERENT)


def test_what_a_property_has_cached_is_no_data():
    cached = Point(3, 4)
    assert cached.norm == 25
    assert digest(cached) == digest(Point(3, 4))


def test_fields_that_a_dataclass_does_not_compare_may_hold_anything():
    assert digest(Point(1, seen_at=threading.Lock())) == digest(Point(1))  # pyright: ignore[reportArgumentType]


# Values that are rebuilt from scratch in another process, whose hashes are seeded otherwise.
REBUILT = """
import importlib
import sys
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo
digest = importlib.import_module(sys.argv[1]).digest

Color = Enum("Color", ["RED", "BLUE"])

@dataclass
class Point:
    x: object

class Plain:
    def __init__(self, value): self.value = value
    def method(self): pass

words = ["hello", "world", "", "a", "b", "c"]
values = [
    {"a": set(words), "b": frozenset("hello world")}, {"k": {("a", 1), ("b", 2)}}, Point({*words}),
    Color.RED, {Color.RED: {Color.BLUE, "BLUE"}}, Path("a/b"), Decimal("1.10"), UUID(int=7),
    datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Rome")), Plain({"s": {*words}}), digest,
    Plain({1}).method, 10**5000,
]
print([digest(value).hex() for value in values])
"""


def test_digests_are_the_same_in_every_process():
    found = {
        subprocess.run(
            [sys.executable, "-c", REBUILT, digest.__module__],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "12345")
    }
    assert len(found) == 1
    assert len(found.pop()) > 13 * 32


def test_cycles_are_told_apart_by_where_they_lead():
    def loop(*before: object) -> list[object]:
        made: list[object] = [*before]
        made.append(made)
        return made

    assert digest(loop(1)) == digest(loop(1))
    assert digest(loop(1)) != digest(loop(2))
    assert digest(loop()) != digest(cast("object", [[]]))
    outer: list[Any] = [[]]
    outer[0].append(outer)  # the same shape, but the inner one leads to the outer one
    inner: list[Any] = [[]]
    inner[0].append(inner[0])
    assert digest(outer) != digest(inner)
    node = Plain(None)
    node.value = {"self": node}
    twin = Plain(None)
    twin.value = {"self": twin}
    assert digest(node) == digest(twin)


def test_what_is_used_twice_is_no_cycle():
    shared = [1]
    assert digest([shared, shared]) == digest([[1], [1]])


@pytest.mark.parametrize(
    ("value", "named_so"),
    [
        (threading.Lock(), "a lock"),
        ([{"deep": numbers()}], "a generator"),
        (sys.__stdout__, "a TextIOWrapper"),
        (sys, "a module"),
        (lambda: 1, "function .*<lambda>"),
        (Plain(lambda: 1), "function .*<lambda>"),
        ({threading.Lock(): 1}, "a lock"),
    ],
    ids=["lock", "generator", "file", "module", "lambda", "within", "key"],
)
def test_what_is_no_data_is_named(value: object, named_so: str):
    with pytest.raises(NotData, match=f"{named_so}.* is not data.*inputs="):
        digest(value)


def test_a_local_function_is_no_data_for_nobody_knows_what_it_holds():
    def made(n: int) -> Any:
        def inner() -> int:
            return n

        return inner

    with pytest.raises(NotData, match="inner"):
        digest(made(1))


def test_what_is_nested_too_deeply_is_refused():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotData, match="nested too deeply"):
        digest(deep)
    while deep:  # else freeing it would be as deep
        deep = deep.pop()  # pyright: ignore[reportAssignmentType]


def test_parts_are_told_apart_by_name():
    one, two = digest_of("a", 1), digest_of("b", 2)
    different = [
        combined((written("act", "1"), one, two)),
        combined((written("act", "1"), digest_of("a", 2), digest_of("b", 1))),
        combined((written("act", "1"), one)),
        combined((written("act", "2"), one, two)),
        combined((written("act1", ""), one, two)),
        combined((written("1", "act"), one, two)),
        combined((written("act", "1"), digest_of("ab", 1))),
        combined((written("act", "1"),)),
    ]
    assert len(set(different)) == len(different)
    assert all(len(text) == 32 for text in different)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def typed(value: object) -> object:
    """``value`` with its types, so that only what is the same compares equal."""
    match value:
        case list():
            return [typed(item) for item in cast("list[object]", value)]
        case dict():
            items = cast("dict[object, object]", value).items()
            return {key: typed(item) for key, item in items}
        case _:
            return type(value), repr(value)


@settings(deadline=None, max_examples=50)
@given(plain, plain)
def test_digests_are_equal_exactly_where_values_are(one: object, other: object):
    assert (digest(one) == digest(other)) == (typed(one) == typed(other))


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), plain, min_size=2), st.randoms())
def test_the_order_of_a_mapping_does_not_count(value: dict[str, object], random: Any):
    items = list(value.items())
    random.shuffle(items)
    assert digest(dict(items)) == digest(value)
