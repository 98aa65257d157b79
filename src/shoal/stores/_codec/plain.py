"""Read stored JSON as people do: without the tags of types, and two values at their difference.

Imports nothing of the codec: what reads a store has the types of no program.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import takewhile
from typing import Any, cast


def is_error(value: Any) -> bool:
    """Return whether a stored value is an error, or what stands for one."""
    if not isinstance(value, dict):
        return False
    data = cast("dict[str, Any]", value)
    return data.get("@") == "error" or data.get("@type") == "shoal:ErrorInfo"


def plain(value: Any, *, without: Collection[str] = ()) -> Any:
    """Return stored JSON without the tags of types.

    Args:
        value: The JSON, decoded.
        without: Members of errors that are left out, too.
    """
    if isinstance(value, list):
        return [plain(one, without=without) for one in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    data = cast("dict[str, Any]", value)
    if "@" in data and "value" in data:
        return plain(data["value"], without=without)
    left_out = {"@", "@type", *(without if is_error(data) else ())}
    return {name: plain(one, without=without) for name, one in data.items() if name not in left_out}


def from_difference(one: str, other: str, *, shown: int, before: int) -> tuple[str, str]:
    """Return two texts from shortly before their first difference on, if that is far behind.

    Args:
        one: A text...
        other: ...and another one.
        shown: Characters that there is room for; the texts are not cut at their ends.
        before: Of these, those before the difference.
    """
    pairs = zip(one, other, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if same <= shown // 2:
        return one, other
    start = same - before
    return f"…{one[start:]}", f"…{other[start:]}"
