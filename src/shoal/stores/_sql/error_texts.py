"""Shorten saved errors for lists of runs, without decoding them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from shoal._events.events import LEAVES, shortened


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
