"""Group failures: by the step that failed, the class of the error, and the normalised message.

Messages that differ only in numbers, ids, quoted texts or the variable parts of URLs are in one
group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from shoal.stores._watching import Row

MOST_GROUPS = 50
"""With more groups than a screen has lines, nobody sees the large ones."""
_LONGEST = 2_000
"""The characters of a message that are compared: the rest of such a message is mostly data."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failed children whose errors say the same."""

    step: str
    """The step that failed: of the parent, and behind a slash that of the child, if that has
    several."""
    error_type: str
    """The class of the errors."""
    message: str
    """The normalised message: ``<n>`` stands for a number, ``<text>`` for a quoted text."""
    count: int
    example: Row
    """The first failure of the group."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """The failed children of a run in groups, the largest first. Losers of races are left out."""

    groups: tuple[FailureGroup, ...] = ()
    """At most 50."""
    counted: int = 0
    """How many failures were grouped."""
    total: int = 0
    """How many there are: more than were grouped, if there are very many."""
    omitted: int = 0
    """How many groups are left out."""


_VARIES = re.compile(
    r"(?P<url>(?P<host>\b[a-z][a-z0-9+.-]{0,20}://[^\s/?#'\"<>()]+)(?:[^\s'\"<>()]*[^\s'\"<>().,:;])?)"
    r"|(?P<text>(?<!\w)(?:'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`)(?!\w))"
    r"|(?P<id>\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b)"
    r"|(?P<hex>\b0x[0-9a-f]+|\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{8,}\b)"
    r"|(?P<n>\d+(?:[.,]\d+)*)",
    re.IGNORECASE,
)


def normalised(message: str) -> str:
    """Replace the parts of a message that vary from one failure to the next.

    Examples:
        >>> normalised("GET https://a.example/items/17?page=2: 503 after 1.5 s")
        'GET https://a.example/<path>: <n> after <n> s'
    """
    return _VARIES.sub(_kind_of, " ".join(message[:_LONGEST].split()))


def _kind_of(found: re.Match[str]) -> str:
    if found["url"] is not None:
        # The host stays: "the mirror is down" and "the site is down" are two groups. Its user and
        # password go.
        scheme, _, host = found["host"].partition("://")
        host = host.rpartition("@")[2]
        has_more = found["url"][len(found["host"]) :].strip("/")
        return f"{scheme}://{host}/<path>" if has_more else f"{scheme}://{host}"
    return f"<{found.lastgroup}>"


def grouped(rows: Iterable[Row], total: int | None = None) -> Failures:
    """Group failed children.

    Args:
        rows: The failed children.
        total: How many there are, if ``rows`` are only the first of them.
    """
    counts = dict[tuple[str, str, str], int]()
    examples = dict[tuple[str, str, str], Row]()
    counted = 0
    for counted, row in enumerate(rows, 1):  # noqa: B007 # read behind the loop
        step = f"{row.path.step}/{row.failed_step}" if row.failed_step else row.path.step
        message = row.error.removeprefix(f"{row.error_type}: ")
        name = step, row.error_type, normalised(message)
        counts[name] = counts.get(name, 0) + 1
        examples.setdefault(name, row)
    names = sorted(counts, key=lambda name: -counts[name])  # stable: the first failure stays first
    groups = tuple(
        FailureGroup(
            step=name[0],
            error_type=name[1],
            message=name[2],
            count=counts[name],
            example=examples[name],
        )
        for name in names[:MOST_GROUPS]
    )
    return Failures(
        groups=groups,
        counted=counted,
        total=counted if total is None else max(total, counted),
        omitted=len(names) - len(groups),
    )
