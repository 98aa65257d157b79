"""Digests of data: they tell whether a child starts with the same input as before.

Invariants:
- Equal data has one digest, in every process and on every machine: nothing depends on hash seeds,
  addresses or the order in which a mapping was filled.
- A list, a tuple and any other sequence of the same items are equal; so are mappings of all kinds.
  ``1``, ``1.0``, ``True`` and ``"1"`` are different.
- A dataclass is written as the fields that its ``==`` compares. Any other object is written as
  pickle would save it: its class and its state. Classes and functions are written as their names,
  so a function must have one.
- A field that was added to a dataclass later (``ADDED``) is left out as long as it has its default,
  so what was written before it came has the same digest.
- A class or a function of shoal may move to another module: its name in digests is fixed (see
  test_a_class_that_moves_keeps_its_digest).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from pathlib import PurePath
from types import FunctionType, MappingProxyType
from typing import Any, cast

from shoal._errors.exceptions import NotData, brief, kind_of

ADDED: Mapping[str, object] = MappingProxyType({"shoal": "added"})
"""The metadata of a field that a class of ours was given after its values were first stored."""
BYTES = 16  # as many as a UUID: no two inputs of a store will ever share a digest by chance
NAMES = 1024
"""Names whose written form is cached: the names of fields come up again with each child."""

_NO_DATA = (
    "{} is not data: a value that is saved, and compared after a crash, consists of numbers, "
    "strings, lists, mappings and objects that hold such; give services to inputs= instead"
)
_UNSAVED = ("__pydantic_fields_set__",)  # says which fields of a model were given, not their values

_OURS = __name__.partition(".")[0]
_HOMES = {
    "_action": "Act FunctionAction Input Result action",
    "_action_class": "Action",
    "_application": "Application",
    "_breaker": "Breaker BreakerStatistics Circuits",
    "_children": "ChildGroup",
    "_codec": "Codec",
    "_collections": "PositionedList StateList StateMap",
    "_condition": "Condition when",
    "_context": "Context",
    "_events": (
        "AttemptEnded Cancelled ChildEnded ChildHalted ChildName ChildRerun ChildStarted "
        "Decision Done ErrorInfo Event Failed GraceExceeded Halted Item Missed Question "
        "RunEnded RunStarted Skipped SpanStarted StateUpdated StepEnded StepStarted Update "
        "Waiting"
    ),
    "_fanout": "FanOut fan_out",
    "_flow": "END End",
    "_graph": "Graph",
    "_handle": "RunEvents RunHandle",
    "_history": "Completed QuestionAnswered QuestionAsked Rewound StepBegun",
    "_hooks": "Hook",
    "_ids": "RunPath",
    "_ledger": "Ledger",
    "_limiter": "Limiter Statistics",
    "_open": "OpenRun",
    "_policy": "Each Hedge Inherit Tolerate",
    "_race": "race",
    "_rate": "AIMD Adaptive Ended Limits Part Rate SharedRate",
    "_recovery": "Recovered",
    "_result": "RunResult",
    "_retry": "Retry RetryBudget",
    "_runtime": "Runtime",
    "_shared": "RateBackend RateReply RateRequest RateState reckon",
    "_shielded": "shielded",
    "_state": "Drop Extend Increment Permit Put PutWithin Set State replay",
    "_store": (
        "Batch Beginning Browses CachesResults ChildRecord DoneChild FailedChild FindsOrphans "
        "NullStore Orphan Prunes ReadsInParts RunRecord RunSummary SavedRun Store"
    ),
    "_tasks": "MapActions MapActionsAndStates MapStates ParallelAction Task",
    "_until": "All First FirstItem Quorum all_ first first_item quorum",
    "rates._memory": "MemoryRates",
    "rates.redis": "RedisRates",
    "stores._memory": "MemoryStore",
    "stores._postgres": "PostgresStore",
    "stores._sqlite": "SQLiteStore",
}
"""Names of shoal that digests in stores contain, by the module that defined them when this table
was made. Other names need no row: they are written as if ``shoal`` itself defined them."""
_FIXED = {name: f"{_OURS}.{home}" for home, names in _HOMES.items() for name in names.split()}


def digest(value: object) -> bytes:
    """Hash ``value`` into 16 bytes (BLAKE2b).

    Raises:
        NotData: The value contains something that can't be saved: a lock, a socket, a generator.
    """
    out = bytearray()
    writer = _WRITERS.get(type(value))  # as `_write` does it: most elements are numbers and texts
    if writer is not None:
        writer(out, value)
        return blake2b(out, digest_size=BYTES).digest()
    try:
        _write(out, value, ())
    except RecursionError:
        msg = f"{kind_of(value)} is nested too deeply to be compared with others"
        raise NotData(msg) from None
    return blake2b(out, digest_size=BYTES).digest()


def place_of_no_data(value: object, path: str) -> str:
    """Return the path of the part of ``value`` that is not data; ``path`` names the whole."""
    inner: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        inner = cast("Mapping[object, object]", value).items()
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        inner = enumerate(cast("Sequence[object]", value))
    for key, one in inner:
        try:
            digest(one)
        except NotData:
            return place_of_no_data(one, f"{path}[{brief(key)}]")
    return path


def named(name: str, value: object) -> bytes:
    """Return ``name`` as written, and the hash of ``value`` after it.

    Raises:
        NotData: As ``digest``.
    """
    return written(name) + digest(value)


@lru_cache(NAMES)
def written(*names: str) -> bytes:
    """Write ``names`` so that no other names are written alike."""
    out = bytearray()
    for name in names:
        _write_str(out, name)
    return bytes(out)


def combined(parts: Iterable[bytes]) -> str:
    """Hash parts that ``written`` and ``named`` returned into 32 hexadecimal digits."""
    return blake2b(b"".join(parts), digest_size=BYTES).hexdigest()


# Each value is written behind a letter for its kind and, where its end would be unclear, its
# length. So no two different values are written alike.


def _write(out: bytearray, value: object, around: tuple[int, ...]) -> None:
    writer = _WRITERS.get(type(value))
    if writer is not None:
        writer(out, value)
        return
    if id(value) in around:  # a cycle: the number of levels up says to which value it leads
        out += b"^%d;" % (len(around) - around.index(id(value)))
        return
    around = (*around, id(value))
    if isinstance(value, Enum):
        _write_global(out, type(value), f".{value._name_ or value._value_}")
    elif isinstance(value, str):
        _write_str(out, value)
    elif isinstance(value, bytes | bytearray | memoryview):
        _write_bytes(out, bytes(cast("bytes", value)))
    elif isinstance(value, Mapping):
        _write_mapping(out, cast("Mapping[object, object]", value), around)
    elif isinstance(value, AbstractSet):
        members = cast("AbstractSet[object]", value)
        _write_sorted(out, b"e", [_written(member, around) for member in members])
    elif isinstance(value, Sequence):
        items = cast("Sequence[object]", value)
        out += b"l%d;" % len(items)
        for item in items:
            _write(out, item, around)
    elif isinstance(value, type):
        _write_global(out, value)
    elif isinstance(value, FunctionType):
        if "<" in value.__qualname__:  # <lambda>, <locals>: it may close over anything
            raise NotData(_NO_DATA.format(f"the function {value.__qualname__}, which has no name,"))
        _write_global(out, value)
    elif isinstance(value, PurePath):  # versions of Python pickle it differently
        out += b"p"
        _write_global(out, type(value))
        _write_str(out, str(value))
    elif is_dataclass(value) and not isinstance(value, type) and _compares(value):
        compared = [
            one.name
            for one in fields(value)
            if one.compare and not _is_unused(one, getattr(value, one.name))
        ]
        out += b"d%d;" % len(compared)
        _write_global(out, type(value))
        for name in compared:
            _write_str(out, name)
            _write(out, getattr(value, name), around)
    else:
        _write_object(out, value, around)


def _is_unused(field: Field[Any], value: object) -> bool:
    """Whether a field was added later and still says nothing."""
    return field.metadata == ADDED and value is field.default


def _written(value: object, around: tuple[int, ...]) -> bytes:
    out = bytearray()
    _write(out, value, around)
    return bytes(out)


def _write_str(out: bytearray, value: str) -> None:
    text = str.encode(value, "utf-8", "surrogatepass")
    out += b"s%d;" % len(text)
    out += text


def _write_bytes(out: bytearray, value: bytes) -> None:
    out += b"b%d;" % len(value)
    out += value


def _write_global(out: bytearray, value: Any, more: str = "") -> None:
    name = f"{value.__qualname__}{more}"
    text = f"{_home(value.__module__, name)}.{name}".encode("utf-8", "surrogatepass")
    out += b"g%d;" % len(text)
    out += text


def _home(module: str | None, name: str) -> str | None:
    """Return the module that a name is written with: for a name of shoal, a fixed one."""
    if module is None or module.partition(".")[0] != _OURS:
        return module
    return _FIXED.get(name.partition(".")[0], _OURS)


def _write_int(out: bytearray, value: int) -> None:
    out += b"i%x;" % value  # hexadecimal, because Python refuses to write huge ints in decimal


def _write_float(out: bytearray, value: float) -> None:
    out += f"f{value!r};".encode()


def _write_constant(out: bytearray, value: object) -> None:
    out += {None: b"n", True: b"t", False: b"u"}[cast("bool | None", value)]


def _write_mapping(out: bytearray, value: Mapping[object, object], around: tuple[int, ...]) -> None:
    pairs = [_written(key, around) + _written(item, around) for key, item in value.items()]
    _write_sorted(out, b"m", pairs)


def _write_sorted(out: bytearray, kind: bytes, written: list[bytes]) -> None:
    out += b"%b%d;" % (kind, len(written))
    for one in sorted(written):
        out += one


def _write_object(out: bytearray, value: object, around: tuple[int, ...]) -> None:
    """Write the class and the state of an object, as it would be copied or pickled."""
    try:
        reduced: Any = value.__reduce_ex__(4)
    except Exception as error:
        raise NotData(_NO_DATA.format(kind_of(value))) from error
    if isinstance(reduced, str):  # the name of a global
        _write_str(out, f"{_home(getattr(value, '__module__', None), reduced)}.{reduced}")
        return
    out += b"o"
    for part in reduced[:3]:
        _write(out, _saved(part), around)
    for items in reduced[3:5]:  # the items of an object that is also a list or a dict
        _write(out, None if items is None else list(items), around)


def _compares(value: object) -> bool:
    """Return whether a dataclass is compared by its fields."""
    return bool(getattr(type(value), "__dataclass_params__").eq)  # noqa: B009 # untyped


def _saved(state: object) -> object:
    if not isinstance(state, dict):
        return state
    held = cast("dict[object, object]", state)
    return {name: value for name, value in held.items() if name not in _UNSAVED}


_WRITERS: dict[type, Callable[[bytearray, Any], None]] = {
    str: _write_str,
    int: _write_int,
    float: _write_float,
    bytes: _write_bytes,
    bool: _write_constant,
    type(None): _write_constant,
}
