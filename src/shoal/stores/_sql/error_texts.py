"""Texts of saved errors: short ones for lists, made without decoding; and where one was raised."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shoal._events.events import LEAVES, shortened

FRAMES = 30
"""The most places of a traceback that are kept, the innermost ones: a recursion has thousands."""

_SHOAL = str(Path(__file__).parents[2])


def with_trace(encoded: str, error: BaseException) -> str:
    """Add where an error was raised to its saved form: file, line and function of each call.

    Pages show that; it is not decoded. There are no lines of code and no values, so no secrets.
    The engine's own calls are left out.
    """
    places = [
        f"{code.co_filename}:{line}, in {code.co_qualname}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not (code := frame.f_code).co_filename.startswith(_SHOAL)
    ][-FRAMES:]
    return f'{encoded[:-1]},"trace":{json.dumps(places)}}}' if places else encoded


def error_in_short(packed: Mapping[str, Any]) -> str:
    """Return the text that ``in_short`` gives for an error, from the saved form of the error."""
    text = _text_of(packed)
    leaves = list(_leaves_of(packed))
    if leaves != [packed]:
        more = f"; and {len(leaves) - LEAVES} more" if len(leaves) > LEAVES else ""
        shown = [f"{kind_of(leaf)}: {_text_of(leaf)}" for leaf in leaves[:LEAVES]]
        text = f"{packed['args'][0]}: {'; '.join(shown)}{more}"
    return shortened(f"{kind_of(packed)}: {text}")


def kind_of(packed: Mapping[str, Any]) -> str:
    """Return the name of an error's class, from the saved form of the error."""
    return str(packed.get("@type", "")).rpartition(":")[2].rpartition(".")[2]


def _text_of(packed: Mapping[str, Any]) -> str:
    text = packed.get("text", "")
    return text if isinstance(text, str) else json.dumps(text)  # tagged: it has a NUL, say


def _leaves_of(packed: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    match packed:
        case {"args": [_, [{"@": "error"}, *_] as errors]}:
            for error in errors:
                yield from _leaves_of(error)
        case _:
            yield packed
