"""Read what the headers of a response say of a rate: how much is left of it, and until when."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import final

from shoal._errors.exceptions import BadUse, brief

REQUESTS = "requests"
"""The unit of a rate without ``cost=``."""
TOKENS = "tokens"
"""The unit of a rate with ``cost=`` that names none, where a provider's headers are concerned."""

_NUMBER = re.compile(r"[0-9]{1,100}(?:\.[0-9]{1,100})?")
_DURATION = re.compile(
    r"(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m(?!s))?"
    r"(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)s)?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)ms)?"
)
"""As Go writes it, which OpenAI's headers do: ``6m0s``, ``1h2m3.5s``, ``20ms``."""
_OPENAI = re.compile(r"x-ratelimit-remaining-(.+)")
_ANTHROPIC = re.compile(r"anthropic-ratelimit-(.+)-remaining")
_EPOCH = 1e8
"""A reset above this is a time in seconds since 1970 and no duration, which would be three years.
"""


@final
@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left of one rate, by the server's count."""

    unit: str
    """What the rate counts: ``"requests"``, ``"tokens"``, ``"input-tokens"``..."""
    units: float
    """How many are left."""
    reset_in: float | None = None
    """Seconds until all are available again; None if that isn't said."""
    is_window: bool = False
    """Whether all come back at that moment, and none before."""


@final
@dataclass(frozen=True, slots=True)
class RateHeaders:
    """What the headers of a response say of rates."""

    retry_after: float | None = None
    """Seconds after which the server wants to be asked again; None if it doesn't say."""
    remaining: tuple[Remaining, ...] = ()
    """What is left, for each unit."""


def read_headers(headers: Mapping[str, str], now: float | None = None) -> RateHeaders:
    """Read the headers by which a server says what is left of a rate.

    OpenAI's ``x-ratelimit-remaining-tokens`` and ``x-ratelimit-reset-tokens``, with durations like
    ``6m0s``; Anthropic's ``anthropic-ratelimit-tokens-remaining`` and ``-reset``, with times;
    ``x-ratelimit-remaining`` or ``ratelimit-remaining`` with ``-reset``, in seconds from now or
    since 1970; and ``retry-after``, in seconds or as a date, or ``retry-after-ms``. What can't be
    read is left out. Names are compared without case.

    Args:
        headers: The headers of a response, as ``httpx`` and others have them, or a dict.
        now: Seconds since 1970; by default, the system's clock.

    Raises:
        BadUse: ``headers`` is no mapping.

    Examples:
        >>> said = read_headers({"x-ratelimit-remaining-tokens": "500", "Retry-After": "2"})
        >>> said.retry_after, said.remaining[0].unit, said.remaining[0].units
        (2.0, 'tokens', 500.0)
    """
    if not isinstance(headers, Mapping):
        msg = f"the headers of a response are a mapping of names to text, not {brief(headers)}"
        raise BadUse(msg)
    wall = datetime.now(UTC).timestamp() if now is None else now
    given = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    found: list[Remaining] = []
    for name, value in given.items():
        units = _number(value)
        if units is None:
            continue
        openai, anthropic = _OPENAI.fullmatch(name), _ANTHROPIC.fullmatch(name)
        if openai is not None:
            reset = _seconds(given.get(f"x-ratelimit-reset-{openai[1]}"), wall)
            found.append(Remaining(openai[1], units, reset))
        elif anthropic is not None:
            reset = _seconds(given.get(f"anthropic-ratelimit-{anthropic[1]}-reset"), wall)
            found.append(Remaining(anthropic[1], units, reset))
        elif name in ("x-ratelimit-remaining", "ratelimit-remaining"):
            reset = _seconds(given.get(name.replace("remaining", "reset")), wall)
            found.append(Remaining(REQUESTS, units, reset, is_window=True))
    return RateHeaders(_retry_after(given, wall), tuple(found))


def _retry_after(given: Mapping[str, str], now: float) -> float | None:
    milliseconds = _number(given.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    return _seconds(given.get("retry-after"), now)


def _number(text: str | None) -> float | None:
    number = math.inf if text is None or not _NUMBER.fullmatch(text) else float(text)
    return number if number < math.inf else None


def _seconds(text: str | None, now: float) -> float | None:
    """Return the seconds from now to a time that is written in one of the ways in use."""
    if not text:
        return None
    number = _number(text)
    if number is not None:
        return max(0.0, number - now) if number > _EPOCH else number
    duration = _DURATION.fullmatch(text)
    if duration is not None:
        hours, minutes, seconds, milliseconds = (float(one or 0) for one in duration.groups())
        return 3600 * hours + 60 * minutes + seconds + milliseconds / 1000
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            at = parse(text)
        except ValueError:
            continue
        return max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - now)
    return None
