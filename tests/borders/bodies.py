"""Bodies of actions, with the parameters that shoal binds by their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

_BODIES = """
def of_async(body):
    async def step({parameters}):
        return await body(item, {before}, {context})
    return step
def of_plain(body):
    def step({parameters}):
        return body(item, {before}, {context})
    return step
def of_stream(body):
    async def step({parameters}):
        inner = body(item, {before}, {context})
        try:
            async for one in inner:
                yield one
        finally:
            await inner.aclose()
    return step
"""


@cache
def with_parameters(kind: str, at: int, *, has_context: bool) -> Callable[[Any], Any]:
    """Give what makes a body one with the parameters that its action binds, by their names."""
    read = [] if at == 1 else [f"v{at - 1}"]
    space: dict[str, Any] = {}
    source = _BODIES.format(
        parameters=", ".join(["item", *read, *(["context"] if has_context else [])]),
        before=read[0] if read else "''",
        context="context" if has_context else "None",
    )
    exec(source, space)  # a parameter's name is what binds it
    return space[f"of_{kind}"]
