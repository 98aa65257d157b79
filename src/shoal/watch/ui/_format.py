"""Write numbers, times, keys and errors as people read them."""

from __future__ import annotations

import json
import time
from datetime import datetime

from shoal._events.identity import RunPath
from shoal._events.paths import key_as_text
from shoal.watch._overview import ancestors_of
from shoal.watch._words import length

LONGEST_KEY = 64
"""Characters of a key in a table; the rest is behind its link."""

STATUSES = ("failed", "running", "halted", "cancelled", "succeeded", "skipped")
"""All statuses of a child, in the order in which a page shows them."""


def number(value: float) -> str:
    """Write a count with commas, or a fraction with as many digits as matter."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"  # noqa: PLR2004 # 9.87 but 98.7


def duration(seconds: float | None) -> str:
    """Write a length of time; nothing if it isn't known."""
    return "" if seconds is None else length(max(seconds, 0.0))


def moment(at: float | None) -> str:
    """Write a time of the clock; with the day if that isn't today."""
    if at is None:
        return ""
    then, now = datetime.fromtimestamp(at).astimezone(), datetime.now().astimezone()
    if then.date() == now.date():
        return f"{then:%H:%M:%S}"
    return f"{then:%-d %b %H:%M}" if then.year == now.year else f"{then:%-d %b %Y %H:%M}"


def iso(at: float | None) -> str:
    """Write a time for programs, to the second."""
    return "" if at is None else f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%dT%H:%M:%S%z}"


def since(at: float | None) -> float:
    """Return how many seconds ago a time was."""
    return 0.0 if at is None else max(time.time() - at, 0.0)


def percent(share: float) -> str:
    """Write a share of one: ``83 %``, and never 0 % or 100 % for what is only nearly that."""
    shown = round(share * 100)
    if not shown and share > 0:
        return "< 1 %"
    if shown == 100 and share < 1:  # noqa: PLR2004 # per cent
        return "> 99 %"
    return f"{shown} %"


def between(path: RunPath, ancestor: RunPath) -> list[RunPath]:
    """Return the runs on the way down from a run to a descendant, without these two."""
    return [one for one in ancestors_of(path) if one.depth > ancestor.depth]


def key_text(path: RunPath) -> str:
    """Name a run: a child by its key, or by its act if the key is empty; a root run by its id."""
    if path.parent is None:
        return path.id
    return key_as_text(path.key) if path.key != "" else path.act or path.step


def cut(text: str, characters: int = LONGEST_KEY) -> str:
    """Shorten a text in its middle, since the ends of keys and addresses tell them apart."""
    text = " ".join(text.split()) if "\n" in text else text
    if len(text) <= characters:
        return text
    half = (characters - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def first_line(text: str) -> str:
    """Return the first line of an error."""
    return text.split("\n", 1)[0]


def bytes_text(characters: int) -> str:
    """Write the size of a text."""
    if characters < 10_000:  # noqa: PLR2004 # smaller numbers are read at a glance
        return f"{characters:,} characters"
    if characters < 1_000_000:  # noqa: PLR2004 # the next unit
        return f"{characters / 1000:,.0f} kB"
    return f"{characters / 1_000_000:,.1f} MB"


def plain_json(text: str) -> object:
    """Parse stored JSON; return the text itself if it is none, or was shortened."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
