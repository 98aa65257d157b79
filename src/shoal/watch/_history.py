"""Read the history of a run for people: what each entry changed, when, and for which child."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, final

from shoal.stores._watching import EntryKind, Row, StoredEntry

from ._words import shortened

How = Literal["set", "put", "extended", "increased", "removed"]
"""What happened to a field: it was set as a whole, one of its keys was put, items were added at its
end, a number was added to it, or it was removed."""

_SHOWN = 200
"""The characters of a value that a history shows: two lines of a terminal."""
_UNTAGGED = 4_000
"""The characters of a value that is shown without tags: twenty times what is shown of it."""
_HOW: Mapping[str, How] = {
    "set": "set",
    "put": "put",
    "within": "put",
    "extend": "extended",
    "add": "increased",
    "drop": "removed",
}


@final
class FieldChange(NamedTuple):
    """What an update did to one field."""

    field: str
    how: How
    key: str = ""
    """The key within the field that was put, as JSON; two keys if it was put a level further down.
    Empty for another change."""
    value: str = ""
    """The new value or items as JSON, shortened."""
    size: int = 0
    """The characters of the whole value as JSON."""

    def __str__(self) -> str:
        """Return the change as a line: ``titles["a"] = "Home"``."""
        place = f"{self.field}{self.key and f'[{self.key}]'}"
        match self.how:
            case "set" | "put":
                return f"{place} = {self.value}"
            case "extended" | "increased":
                return f"{place} += {self.value}"
            case "removed":
                return f"{place} removed"


@final
class HistoryEntry(NamedTuple):
    """One entry of a run's history."""

    number: int
    """The number of the update; of another entry, that of the last update before it."""
    kind: EntryKind
    step: str
    at: float | None
    """When it was saved, in seconds since 1970; None if that isn't known."""
    changes: Sequence[FieldChange] = ()
    child: Row | None = None
    """The child that the update applied."""
    discovered: int = 0
    """How many new elements the update discovered."""
    text: str = ""
    """What the entry says, if it is no update: the winner of a race, the name of a question."""


@final
class HistoryPage(NamedTuple):
    """A page of a history."""

    entries: Sequence[HistoryEntry]
    after: str | None
    """The cursor of the next page; None after the last one."""


def entry_of(stored: StoredEntry) -> HistoryEntry:
    """Read a stored entry."""
    changes, discovered, text = list[FieldChange](), 0, ""
    if stored.kind == "update":
        operations, discovered = _update(stored.data)
        changes = [_change(*operation) for operation in operations]
    else:
        text = _text_of(stored.kind, json.loads(stored.data))
    return HistoryEntry(
        number=stored.number,
        kind=stored.kind,
        step=stored.step,
        at=stored.at,
        changes=changes,
        child=stored.child,
        discovered=discovered,
        text=text,
    )


def _change(kind: str, field: str, *parts: str) -> FieldChange:
    how = _HOW.get(kind, "set")
    match kind:
        case "put":
            key, value = _plain(parts[0]), parts[1]
        case "within":
            key, value = f"{_plain(parts[0])}][{_plain(parts[1])}", parts[2]
        case "drop":
            key, value = "", ""
        case _:
            key, value = "", parts[0]
    shown = shortened(_plain(value), _SHOWN)
    return FieldChange(field, how, shortened(key, _SHOWN), shown, len(value))


def _plain(text: str) -> str:
    """Return JSON without the tags of types, unless it is long."""
    if len(text) > _UNTAGGED or '"@"' not in text:
        return text
    return json.dumps(_untagged(json.loads(text)), ensure_ascii=False)


def _untagged(value: Any) -> Any:
    if isinstance(value, list):
        return [_untagged(one) for one in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    data = cast("dict[str, Any]", value)
    if "@" in data and "value" in data:
        return _untagged(data["value"])
    return {name: _untagged(one) for name, one in data.items()}


def _text_of(kind: EntryKind, data: Any) -> str:
    match kind:
        case "decision":
            (act, key), _, reason = data
            return f"{act}[{json.dumps(key, ensure_ascii=False)}] won: {reason}"
        case "asked":
            return f"{data[0]}: {shortened(json.dumps(data[1], ensure_ascii=False), _SHOWN)}"
        case "answered":
            return shortened(json.dumps(data[1], ensure_ascii=False), _SHOWN)
        case "spent":
            budget, key, unit, spent, aside, _ = data
            more = f", {aside:g} set aside" if aside else ""
            return f"{budget}{' of ' + key if key else ''}: {spent:g} {unit} spent{more}"
        case "steered":
            what, by, _, arguments = data
            told = ", ".join(
                f"{name}={value}" for name, value in arguments.items() if name not in ("id", "path")
            )
            said = f"{what} by {by}" if by else what
            return shortened(f"{said}: {told}" if told else said, _SHOWN)
        case "rewound":
            return f"goes back into visit {data}"
        case _:
            return ""


def _update(text: str) -> tuple[Sequence[Sequence[str]], int]:
    """Return the operations of a stored update as (kind, field, parts as JSON), and discoveries."""
    operations, found = _parts_of(text)
    return [(kind, field, *parts) for kind, field, parts in operations], found


_Parts = tuple[Sequence[tuple[str, str, Sequence[str]]], int]


def _by_msgspec() -> Callable[[str], _Parts]:
    """Return a function that finds the parts of an update without decoding the values in it.

    Decoding 1 MB into objects takes some 10 ms, and a page has 100 entries.
    """
    from msgspec import Raw  # noqa: PLC0415 # an extra, which all stores in databases need
    from msgspec.json import Decoder  # noqa: PLC0415 # as above

    whole, rows = Decoder(dict[str, Raw]).decode, Decoder(list[list[Raw]]).decode
    items = Decoder(list[Raw]).decode

    def parts(text: str) -> _Parts:
        update = whole(text)
        operations = list[tuple[str, str, Sequence[str]]]()
        for kind, field, *more in rows(update["do"]):
            shown = [bytes(part).decode("utf-8", "surrogatepass") for part in more]
            operations.append((json.loads(bytes(kind)), json.loads(bytes(field)), shown))
        return operations, len(items(update["found"])) if "found" in update else 0

    return parts


def _by_json(text: str) -> _Parts:
    data = json.loads(text)
    operations = [
        (kind, field, [json.dumps(part, ensure_ascii=False) for part in parts])
        for kind, field, *parts in data["do"]
    ]
    return operations, len(data.get("found", ()))


try:
    _parts_of: Callable[[str], _Parts] = _by_msgspec()
except ImportError:
    _parts_of = _by_json
