"""Write numbers, times and JSON for people, in little room."""

from __future__ import annotations

from collections.abc import Mapping

from shoal._events.report import Doing

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
_HUNDRED = 100

DOING: Mapping[Doing, str] = {
    "action": "working",
    "slot": "waiting for a slot",
    "rate": "waiting for a rate",
    "key": "waiting for its key",
    "breaker": "waiting for an open breaker",
    "backoff": "waiting for its next attempt",
    "paused": "paused",
    "store": "being saved",
    "reducer": "being applied",
    "question": "waiting for an answer",
    "loop": "event loop busy",
    "other": "between steps",
}
"""What a run does, for people: on the page, in a progress display, in commands."""


def many(count: int, name: str) -> str:
    """Return a count with its noun: ``1 run``, ``1,200 runs``."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def length(seconds: float) -> str:
    """Return a length of time in its two largest units: ``3 min 12 s``, ``0.42 s``, ``7 ms``."""
    if seconds < 0.0095:  # noqa: PLR2004 # ms: two digits suffice
        return f"{seconds * 1000:.2g} ms" if seconds else "0 s"
    if seconds < 0.0995:  # noqa: PLR2004 # rounds to less than 0.1 s
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:  # noqa: PLR2004 # below, a second is more than a tenth
        return f"{seconds:.2g} s"
    if round(seconds) < 60:  # noqa: PLR2004 # a minute
        return f"{seconds:.0f} s"
    whole = round(seconds)
    for (larger, name), (smaller, below) in zip(_UNITS, (*_UNITS[1:], (1, "s")), strict=True):
        if whole >= larger:
            rest = whole % larger // smaller
            return f"{whole // larger:,} {name}" + (f" {rest} {below}" if rest else "")
    raise AssertionError("shorter times have returned before")


def about(seconds: float) -> str:
    """Return a length of time that is an estimate: ``about 3 min``."""
    if seconds < 10:  # noqa: PLR2004 # estimates change by more than that from look to look
        return "a few seconds"
    if seconds < 55:  # noqa: PLR2004 # then it is rounded to a minute
        return f"about {round(seconds / 5) * 5} s"
    for unit, name in _UNITS:
        if seconds >= unit * 0.9:
            count = seconds / unit
            halves = round(count) if count >= 2.75 else round(2 * count) / 2  # noqa: PLR2004 # 2.5 h, but 3 h
            return f"about {halves:g} {name}"
    return "about 1 min"


def pace(per_second: float) -> str:
    """Return a pace per second, minute or hour, whichever makes it at least 1."""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        count = per_second * seconds
        if count >= 1 or unit == "h":
            return f"{count:,.0f}/{unit}" if count >= 10 else f"{count:.2g}/{unit}"  # noqa: PLR2004 # two digits suffice
    raise AssertionError("the last unit has returned before")


def percent(share: float) -> str:
    """Return a share of 1 in percent; small ones with a digit behind the point."""
    count = share * _HUNDRED
    return f"{count:.0f} %" if count >= 10 or not count else f"{count:.1f} %"  # noqa: PLR2004 # as above


def number(count: float) -> str:
    """Return a number without needless digits: ``20``, ``1.25``."""
    return f"{count:,.0f}" if count == int(count) else f"{count:,.4g}"


def shortened(text: str, characters: int) -> str:
    """Return the first characters of a text, with dots if there are more."""
    return text if len(text) <= characters else f"{text[: max(characters - 1, 0)]}…"
