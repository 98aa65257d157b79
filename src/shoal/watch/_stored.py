"""Read runs as they are stored, page by page, and replay histories on JSON.

No type of the program is needed for that. A mapping that is stored with a tag, because its keys
aren't all strings or because it keeps positions, becomes an ``Opened``: a dict whose keys are JSON.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, cast, final

from shoal._events.identity import RunPath
from shoal.stores._watching import Inspects, Row, StoredEntry

_PAGE = 1_000
"""Entries or rows that are read at once."""


async def entries_of(store: Inspects, path: RunPath) -> AsyncGenerator[StoredEntry]:
    """Yield the history of a run."""
    number: int | None = 0
    while number is not None:
        entries, number = await store.entries(path, from_number=number, limit=_PAGE)
        for entry in entries:
            yield entry


async def rows_of(store: Inspects, path: RunPath) -> AsyncGenerator[Row]:
    """Yield the children of a run."""
    after: str | None = None
    while True:
        page = await store.rows(path, order="failed first", after=after, limit=_PAGE)
        for row in page.rows:
            yield row
        after = page.after
        if after is None:
            return


# -- states as JSON ----------------------------------------------------------------------------


@final
class Opened(dict[str, Any]):
    """A mapping with its keys as JSON."""


def closed(value: Any) -> Any:
    """Return a value with the keys of an ``Opened`` as people read them."""
    if not isinstance(value, Opened):
        return value
    return {_key(key): closed(one) for key, one in value.items()}


def _key(text: str) -> str:
    key = json.loads(text)
    return key if isinstance(key, str) else text


def opened(value: Any) -> Any:
    """Return a stored value; of a mapping, an ``Opened``."""
    if not isinstance(value, dict):
        return value
    data = cast("dict[str, Any]", value)
    inner = data.get("value")
    match data.get("@"):
        case None:
            return Opened((json.dumps(_unescaped(key)), one) for key, one in data.items())
        case "StateMap" | "OrderedDict" | "mappingproxy":
            return opened(inner)
        case "dict" if isinstance(inner, list):
            pairs = cast("list[list[Any]]", inner)
            return Opened((json.dumps(key), one) for key, one in pairs)
        case "StateList":
            return inner
        case _:
            return data


def _unescaped(key: str) -> str:
    """Return a key as it was before it was stored, where keys with an ``@`` get one more."""
    return key[1:] if key.startswith("@@") else key


def apply(state: dict[str, Any], kind: str, field: str, *parts: Any) -> None:
    """Apply a stored operation."""
    match kind:
        case "set":
            state[field] = opened(parts[0])
        case "put":
            _mapping(state, field)[json.dumps(parts[0])] = parts[1]
        case "within":
            inner = _mapping(_mapping(state, field), json.dumps(parts[0]))
            inner[json.dumps(parts[1])] = parts[2]
        case "extend":
            found = state.get(field)
            if not isinstance(found, list):
                found = state[field] = list[Any]()
            cast("list[Any]", found).extend(parts[0])
        case "add":
            found = state.get(field, 0)
            state[field] = found + parts[0] if isinstance(found, int | float) else parts[0]
        case "drop":
            state.pop(field, None)
        case _:  # an operation of a later version
            pass


def _mapping(within: dict[str, Any], field: str) -> dict[str, Any]:
    found = within.get(field)
    if not isinstance(found, Opened):
        found = opened(found)  # one level down, mappings are opened when something is put into them
        within[field] = found = found if isinstance(found, Opened) else Opened()
    return found
