"""Pack values into JSON, and unpack them: define how each built-in type is written.

Types of JSON are written as they are: None, bool, int, float, str, list, and dict with strings as
keys. Other values are *packed* into an object with a tag: ``{"@": "tuple", "value": [1]}``.
docs/stored-values.md has the table of all tags; ``objects`` packs objects of users' classes.

Invariants:
- An unpacked value equals the packed one and has the same types, at any depth.
- Keys of a user's dict that begin with ``@`` get another ``@``, so they can't be taken for tags.
- No string is written that Postgres refuses in JSON, with a NUL or half a surrogate pair.
- The meaning of a tag never changes. A new way to write a type gets a new tag, and both are read.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import starmap
from math import inf, isfinite
from pathlib import Path, PurePosixPath, PureWindowsPath
from sys import get_int_max_str_digits
from types import MappingProxyType
from typing import Any, cast, final
from uuid import UUID
from zoneinfo import ZoneInfo

from shoal._errors.exceptions import NotDecodable, brief
from shoal._state.collections import PositionedList, StateList, StateMap
from shoal._state.secrets import without_secrets
from shoal._state.state import State, held

TAG = "@"

MAX_DEPTH = 100
"""The deepest nesting of a value: bounded so that unpacking, which recurses, needs little of the
stack (see test_depth_is_bounded_and_read_with_little_of_the_stack)."""

MAX_DIGITS = 4300
"""The decimal digits of the largest int that Python converts by default."""

_LEAST_DIGITS = 640
"""The lowest limit that ``sys.set_int_max_str_digits`` accepts: ints with fewer digits are always
converted."""

ATOMS = frozenset({str, int, bool, type(None)})
"""Types that JSON has, too. Strings that are not clean, and vast ints, are packed all the same."""

_ALIKE = ATOMS - {str, int}

Packed = dict[str, Any]
Packer = Callable[["Packing", Any], object]
Unpacker = Callable[["Unpacking", Packed], object]


@final
class Refused(Exception):  # never seen outside: NotEncodable is what users get
    """A value can't be packed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: str = reason
        self.steps: list[str] = []
        """The path to the value, from the inside out."""


@final
class Packing:
    """The packing of one value: remembers which values contain the one being packed now."""

    __slots__ = ("_around", "_packer_of")

    def __init__(self, packer_of: Callable[[type], Packer]) -> None:
        self._packer_of = packer_of
        # The ids of the containers around the current value, the innermost one last (a dict keeps
        # the order). A value whose id is in it contains itself.
        self._around: dict[int, None] = {}

    def pack(self, value: object) -> object:
        """Return ``value`` as JSON types.

        Raises:
            Refused: The value, or one in it, has a type that can't be packed, or is nested too
                deeply.
        """
        kind = type(value)
        if kind in _ALIKE:
            return value
        packer = self._packer_of(kind)
        if kind in ATOMS:
            return packer(self, value)
        around = self._around
        if id(value) in around:
            raise Refused("holds itself, so it has no end")
        if len(around) >= MAX_DEPTH:
            raise Refused(
                f"is nested more than {MAX_DEPTH} levels deep: keep linked objects in a list"
            )
        around[id(value)] = None
        packed = packer(self, value)
        del around[id(value)]
        return packed

    def at(self, step: str, value: object) -> object:
        """Pack ``value``; ``step`` is its path within its container."""
        try:
            return self.pack(value)
        except Refused as refused:
            refused.steps.append(step)
            raise

    def items(self, values: Iterable[object], step: str = "[{}]") -> list[object]:
        """Pack each of ``values``."""
        packed: list[object] = []
        # ``extend`` takes one by one, so if a value is refused, the length is its index.
        try:
            packed.extend(value if type(value) in _ALIKE else self.pack(value) for value in values)
        except Refused as refused:
            refused.steps.append(step.format(len(packed)))
            raise
        return packed

    def attempt(self, value: object, otherwise: object = None) -> object:
        """Pack ``value`` if it can be; else return ``otherwise``."""
        around = self._around
        depth = len(around)
        try:
            return self.pack(value)
        except Refused:
            # ``pack`` leaves its entries behind when it raises.
            while len(around) > depth:
                around.popitem()
            return otherwise


class Unpacking:
    """The unpacking of one value, with the unpackers of all tags."""

    __slots__ = ("_unpackers",)

    def __init__(self, unpackers: Mapping[str, Unpacker]) -> None:
        self._unpackers = unpackers

    def unpack(self, packed: object) -> Any:
        """Return the value that was packed.

        Raises:
            NotDecodable: A tag is unknown, or its content is invalid.
        """
        if type(packed) is list:
            items = cast("list[object]", packed)
            return [item if type(item) in ATOMS else self.unpack(item) for item in items]
        if type(packed) is not dict:
            return packed
        fields = cast("Packed", packed)
        tag = fields.get(TAG)
        if tag is not None:
            return self._tagged(tag, fields)
        return {
            name[1:] if name[:1] == TAG else name: item
            if type(item) in ATOMS
            else self.unpack(item)
            for name, item in fields.items()
        }

    def _tagged(self, tag: object, fields: Packed) -> object:
        unpacker = self._unpackers.get(tag) if isinstance(tag, str) else None
        if unpacker is None:
            raise NotDecodable(self._unknown(str(tag)))
        try:
            return unpacker(self, fields)
        except (NotDecodable, RecursionError):
            raise
        except Exception as error:
            about = fields.get("@type")
            of = f" of {about}" if isinstance(about, str) else ""
            msg = f"a value saved as {tag!r}{of} can't be read: {type(error).__name__}: {error}"
            raise NotDecodable(msg) from error

    def _unknown(self, tag: str) -> str:
        name, slash, version = tag.partition("/")
        known = sum(each.startswith(f"{name}/") for each in self._unpackers)
        if slash and known:
            return (
                f"a value with the tag {name!r} was saved in version {version}, and this program "
                f"knows up to {known}: a newer program has saved it, and is needed to read it"
            )
        if slash:
            return (
                f"a value was saved with the tag {name!r}, and no class is registered for it: call "
                f"codec.register(..., tag={name!r}, ...) before it is read"
            )
        return f"a value was saved as {tag!r}, which this version of shoal doesn't know: update it"


# -- the types of JSON, with their exceptions ------------------------------------------------------

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_clean(text: str) -> bool:
    """Return whether every database accepts ``text``."""
    return "\0" not in text and (text.isascii() or _SURROGATE.search(text) is None)


def _pack_str(_: Packing, value: str) -> object:
    if is_clean(value):
        return value
    return {TAG: "str", "value": value.encode("unicode_escape").decode("ascii")}


def _unpack_str(_: Unpacking, packed: Packed) -> object:
    return packed["value"].encode("ascii").decode("unicode_escape")


def _pack_int(_: Packing, value: int) -> object:
    if not _is_vast(value):
        return value
    return {TAG: "int", "value": f"{value:x}"}  # Python limits decimal digits, not hexadecimal ones


_LARGE = 10**_LEAST_DIGITS


def _is_vast(value: int) -> bool:
    """Return whether ``value`` has more digits than a reader of JSON accepts."""
    if -_LARGE < value < _LARGE:
        return False
    most = MAX_DIGITS - (value < 0)  # msgspec counts the sign
    return abs(value) >= 10 ** min(get_int_max_str_digits() or MAX_DIGITS, most)


def _pack_float(_: Packing, value: float) -> object:
    return value if isfinite(value) else {TAG: "float", "value": repr(value)}


def _pack_list(packing: Packing, value: list[object]) -> object:
    return packing.items(value)


def pack_dict(packing: Packing, value: Mapping[Any, object]) -> object:
    """Pack a mapping: into an object if its keys are strings, else into a list of pairs."""
    packed: Packed = {}
    key: object = None
    try:
        for key, item in value.items():
            if type(key) is not str or not is_clean(key):
                break
            name = TAG + key if key[:1] == TAG else key
            packed[name] = item if type(item) in _ALIKE else packing.pack(item)
        else:
            return packed
    except Refused as refused:
        refused.steps.append(f"[{brief(key)}]")
        raise
    return {TAG: "dict", "value": list(starmap(partial(_pair, packing), value.items()))}


def _pair(packing: Packing, key: object, value: object) -> list[object]:
    return [packing.at(f".keys()[{brief(key)}]", key), packing.at(f"[{brief(key)}]", value)]


def _unpack_dict(unpacking: Unpacking, packed: Packed) -> object:
    return {unpacking.unpack(key): unpacking.unpack(value) for key, value in packed["value"]}


# -- numbers, bytes, names -------------------------------------------------------------------------


def _pack_bytes(tag: str, _: Packing, value: bytes | bytearray) -> object:
    return {TAG: tag, "value": b64encode(value).decode("ascii")}


def _unpack_bytes(_: Unpacking, packed: Packed) -> bytes:
    return b64decode(packed["value"], validate=True)


def _pack_text(tag: str, packing: Packing, value: object) -> object:
    return {TAG: tag, "value": _pack_str(packing, str(value))}


def _pack_fraction(packing: Packing, value: Fraction) -> object:
    if _is_vast(value.numerator) or _is_vast(value.denominator):
        return {TAG: "ratio", "value": packing.items((value.numerator, value.denominator))}
    return _pack_text("Fraction", packing, value)


def _pack_path(packing: Packing, value: Path) -> object:
    return _pack_text("Path", packing, value.as_posix())  # Windows reads slashes, too


def _unpack_text(make: Callable[[str], object], unpacking: Unpacking, packed: Packed) -> object:
    return make(unpacking.unpack(packed["value"]))


def _pack_complex(packing: Packing, value: complex) -> object:
    return {TAG: "complex", "value": packing.items((value.real, value.imag))}


def _pack_range(packing: Packing, value: range) -> object:
    return {TAG: "range", "value": packing.items((value.start, value.stop, value.step))}


def _unpack_numbers(make: Callable[..., object], unpacking: Unpacking, packed: Packed) -> object:
    return make(*unpacking.unpack(packed["value"]))


# -- dates and times -------------------------------------------------------------------------------


def _pack_time(tag: str, packing: Packing, value: datetime | time) -> object:
    packed: Packed = {TAG: tag, "value": value.isoformat()}
    zone = value.tzinfo
    if zone is not None and not _is_offset(zone):
        packed["zone"] = packing.at(".tzinfo", zone)
    if value.fold:
        packed["fold"] = 1
    return packed


def _unpack_time(
    make: Callable[[str], datetime | time], unpacking: Unpacking, packed: Packed
) -> object:
    value = make(packed["value"])
    if "zone" in packed:  # keeps the local time, even if the rules of the zone have changed since
        value = value.replace(tzinfo=unpacking.unpack(packed["zone"]))
    return value.replace(fold=packed.get("fold", 0))


def _is_offset(zone: tzinfo) -> bool:
    """Return whether the ``+01:00`` at the end of a time describes ``zone`` completely."""
    if type(zone) is not timezone:
        return False
    if timedelta(0) != abs(zone.utcoffset(None)) < timedelta(seconds=1):
        return False  # Python's own fromisoformat takes +00:00:00.000001 for UTC
    return zone.tzname(None) == timezone(zone.utcoffset(None)).tzname(None)


def _pack_date(_: Packing, value: date) -> object:
    return {TAG: "date", "value": value.isoformat()}


def _pack_timedelta(_: Packing, value: timedelta) -> object:
    return {TAG: "timedelta", "value": [value.days, value.seconds, value.microseconds]}


def _pack_timezone(packing: Packing, value: timezone) -> object:
    offset = value.utcoffset(None)
    numbers = [offset.days, offset.seconds, offset.microseconds]
    return {TAG: "timezone", "value": numbers, "name": packing.pack(value.tzname(None))}


def _unpack_timezone(unpacking: Unpacking, packed: Packed) -> object:
    offset, name = timedelta(*packed["value"]), unpacking.unpack(packed["name"])
    plain = timezone(offset)
    return plain if plain.tzname(None) == name else timezone(offset, name)


def _pack_zone(_: Packing, value: ZoneInfo) -> object:
    if not isinstance(value.key, str) or _find_zone(value.key) is None:
        raise Refused(f"is {value!r}, a time zone that can't be found again by its name")
    return {TAG: "zone", "value": value.key}


def _find_zone(key: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(key)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return None


def _unpack_zone(_: Unpacking, packed: Packed) -> object:
    return ZoneInfo(packed["value"])


# -- collections -----------------------------------------------------------------------------------


def _pack_items(tag: str, packing: Packing, value: Iterable[object]) -> object:
    return {TAG: tag, "value": packing.items(value)}


def _unpack_items(
    make: Callable[[list[object]], object], unpacking: Unpacking, packed: Packed
) -> object:
    return make(unpacking.unpack(packed["value"]))


def _pack_set(tag: str, packing: Packing, value: set[object] | frozenset[object]) -> object:
    members = list(value)
    # Sorted where that is easy, so that equal sets have the same text in every process.
    if {*map(type, members)} in ({str}, {int}):
        members.sort(key=cast("Any", None))
    return {TAG: tag, "value": packing.items(members, "{{...}}")}


def _pack_deque(packing: Packing, value: deque[object]) -> object:
    return {TAG: "deque", "value": packing.items(value), "maxlen": value.maxlen}


def _unpack_deque(unpacking: Unpacking, packed: Packed) -> object:
    return deque(unpacking.unpack(packed["value"]), packed["maxlen"])


def _pack_mapping(tag: str, packing: Packing, value: Mapping[Any, object]) -> object:
    return {TAG: tag, "value": pack_dict(packing, value)}


def _pack_state(packing: Packing, value: State) -> object:
    return _pack_mapping("State", packing, without_secrets(held(value)))


def _unpack_mapping(
    make: Callable[[dict[Any, object]], object], unpacking: Unpacking, packed: Packed
) -> object:
    return make(unpacking.unpack(packed["value"]))


_FACTORIES: dict[str, Callable[[], object]] = {
    kind.__name__: kind
    for kind in (bool, bytes, dict, float, frozenset, int, list, set, str, tuple, deque, Counter)
}


def _pack_defaultdict(packing: Packing, value: defaultdict[object, object]) -> object:
    factory = value.default_factory
    name = None if factory is None else getattr(factory, "__name__", "")
    if name is not None and _FACTORIES.get(name) is not factory:
        raise Refused(
            f"is a defaultdict that calls {factory!r}, which can't be saved: make it a dict"
        )
    return {TAG: "defaultdict", "value": pack_dict(packing, value), "factory": name}


def _unpack_defaultdict(unpacking: Unpacking, packed: Packed) -> object:
    name = packed["factory"]
    factory = None if name is None else _FACTORIES[name]
    return defaultdict(factory, unpacking.unpack(packed["value"]))


# -- states and their collections: entries in order of arrival, with their positions ---------------

_START = -1.0


def _entries(value: StateMap[Any, Any]) -> list[tuple[Any, Any, float]]:
    return value.__reduce__()[1][0]


def _restored(entries: Iterable[tuple[Any, Any, float]]) -> StateMap[Any, Any]:
    return StateMap[Any, Any]().put_all(entries)


def _pack_position(position: float) -> float | None:
    if position == inf:
        return None
    return int(position) if float(position).is_integer() else position


def _unpack_position(packed: float | None) -> float:
    return inf if packed is None else float(packed)


def _pack_state_map(packing: Packing, value: StateMap[Any, Any]) -> object:
    entries = _entries(value)
    packed: Packed = {TAG: "StateMap"}
    packed["value"] = pack_dict(packing, {key: item for key, item, _ in entries})
    if any(position != _START for _, _, position in entries):
        packed["positions"] = [_pack_position(position) for _, _, position in entries]
    return packed


def _unpack_state_map(unpacking: Unpacking, packed: Packed) -> object:
    items: dict[Any, object] = unpacking.unpack(packed["value"])
    positions = map(_unpack_position, packed.get("positions") or [_START] * len(items))
    pairs = zip(items.items(), positions, strict=True)
    return _restored([(key, item, position) for (key, item), position in pairs])


def _pack_positioned(packing: Packing, value: PositionedList[Any]) -> object:
    entries = _entries(value._map)
    packed: Packed = {TAG: "PositionedList"}
    packed["value"] = packing.items(item for _, item, _ in entries)
    packed["at"] = [key for key, _, _ in entries]
    if any(key != position for key, _, position in entries):
        packed["positions"] = [_pack_position(position) for _, _, position in entries]
    return packed


def _unpack_positioned(unpacking: Unpacking, packed: Packed) -> object:
    positions = map(_unpack_position, packed.get("positions") or packed["at"])
    items = unpacking.unpack(packed["value"])
    return PositionedList(_restored(zip(packed["at"], items, positions, strict=True)))


# -- all of them -----------------------------------------------------------------------------------

PACKERS: dict[type, Packer] = {
    str: _pack_str,
    int: _pack_int,
    float: _pack_float,
    list: _pack_list,
    dict: pack_dict,
    bytes: partial(_pack_bytes, "bytes"),
    bytearray: partial(_pack_bytes, "bytearray"),
    complex: _pack_complex,
    range: _pack_range,
    Decimal: partial(_pack_text, "Decimal"),
    Fraction: _pack_fraction,
    UUID: partial(_pack_text, "UUID"),
    type(Path()): _pack_path,
    PurePosixPath: partial(_pack_text, "PurePosixPath"),
    PureWindowsPath: partial(_pack_text, "PureWindowsPath"),
    datetime: partial(_pack_time, "datetime"),
    time: partial(_pack_time, "time"),
    date: _pack_date,
    timedelta: _pack_timedelta,
    timezone: _pack_timezone,
    ZoneInfo: _pack_zone,
    tuple: partial(_pack_items, "tuple"),
    set: partial(_pack_set, "set"),
    frozenset: partial(_pack_set, "frozenset"),
    deque: _pack_deque,
    OrderedDict: partial(_pack_mapping, "OrderedDict"),
    Counter: partial(_pack_mapping, "Counter"),
    MappingProxyType: partial(_pack_mapping, "mappingproxy"),
    defaultdict: _pack_defaultdict,
    State: _pack_state,
    StateList: partial(_pack_items, "StateList"),
    StateMap: _pack_state_map,
    PositionedList: _pack_positioned,
}

UNPACKERS: dict[str, Unpacker] = {
    "str": _unpack_str,
    "int": partial(_unpack_text, partial(int, base=16)),
    "float": partial(_unpack_text, float),
    "dict": _unpack_dict,
    "bytes": _unpack_bytes,
    "bytearray": lambda unpacking, packed: bytearray(_unpack_bytes(unpacking, packed)),
    "complex": partial(_unpack_numbers, complex),
    "range": partial(_unpack_numbers, range),
    "Decimal": partial(_unpack_text, Decimal),
    "Fraction": partial(_unpack_text, Fraction),
    "ratio": partial(_unpack_numbers, Fraction),
    "UUID": partial(_unpack_text, UUID),
    "Path": partial(_unpack_text, Path),
    "PurePosixPath": partial(_unpack_text, PurePosixPath),
    "PureWindowsPath": partial(_unpack_text, PureWindowsPath),
    "datetime": partial(_unpack_time, datetime.fromisoformat),
    "time": partial(_unpack_time, time.fromisoformat),
    "date": partial(_unpack_text, date.fromisoformat),
    "timedelta": partial(_unpack_numbers, timedelta),
    "timezone": _unpack_timezone,
    "zone": _unpack_zone,
    "tuple": partial(_unpack_items, tuple),
    "set": partial(_unpack_items, set),
    "frozenset": partial(_unpack_items, frozenset),
    "deque": _unpack_deque,
    "OrderedDict": partial(_unpack_mapping, OrderedDict),
    "Counter": partial(_unpack_mapping, Counter),
    "mappingproxy": partial(_unpack_mapping, MappingProxyType),
    "defaultdict": _unpack_defaultdict,
    "State": partial(_unpack_mapping, State),
    "StateList": partial(_unpack_items, StateList),
    "StateMap": _unpack_state_map,
    "PositionedList": _unpack_positioned,
}
