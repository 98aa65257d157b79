"""Group failures: by the step that failed, the class of the error, and the form of the message.

Messages that differ only in numbers, ids, quoted texts or the variable parts of URLs are in one
group. Its message has those parts that all members share, and a placeholder for each other one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from shoal.stores._watching import Row

MOST_GROUPS = 50
"""With more groups than a screen has lines, nobody sees the large ones."""
_LONGEST = 2_000
"""The characters of a message that are compared: the rest of such a message is mostly data."""
_LONG = 80
"""Longer parts are not shown, even if all members share them."""
_FEW = 3
"""A quoted text that on average so many members share tells kinds of failures apart: ``KeyError:
'name'`` and ``KeyError: 'id'`` are two groups, a thousand different names are one."""


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
    """The message: ``<n>`` stands for a number that differs from member to member, ``<text>`` for a
    quoted text, ``<host>`` and ``<path>`` for parts of an address."""
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
    read = _read(message)
    slots = zip(read.form.kinds, read.parts, strict=True)
    return _written(read.form, [part if kind == "host" else f"<{kind}>" for kind, part in slots])


@final
class _Form(NamedTuple):
    """What the messages of a group have in common: texts, with parts that vary between them."""

    texts: tuple[str, ...]
    """One more than there are parts."""
    kinds: tuple[str, ...]


@final
class _Message(NamedTuple):
    """A message as its form and its parts."""

    form: _Form
    parts: tuple[str, ...]


def _read(message: str) -> _Message:
    message = _unquoted(" ".join(message[:_LONGEST].split()))
    texts, kinds, parts, at = list[str](), list[str](), list[str](), 0

    def add(text: str, kind: str, part: str) -> None:
        texts.append(text)
        kinds.append(kind)
        parts.append(part)

    for found in _VARIES.finditer(message):
        before = message[at : found.start()]
        at = found.end()
        if found["url"] is None:
            add(before, found.lastgroup or "", found[0])
            continue
        scheme, _, host = found["host"].partition("://")
        add(f"{before}{scheme}://", "host", host.rpartition("@")[2])  # without user and password
        path = found["url"][len(found["host"]) :].strip("/")
        if path:
            add("/", "path", path)
    return _Message(_Form((*texts, message[at:]), tuple(kinds)), tuple(parts))


def _unquoted(message: str) -> str:
    """Return a message without quotes around all of it, which ``str`` of a KeyError adds."""
    inner, quote = message[1:-1], message[:1]
    is_sentence = quote in ("'", '"') and message[-1] == quote and quote not in inner
    return inner if is_sentence and " " in inner else message


def _written(form: _Form, parts: Sequence[str]) -> str:
    pairs = zip(form.texts, (*parts, ""), strict=True)
    return "".join(f"{text}{part}" for text, part in pairs)


def _shared(form: _Form, members: Sequence[_Member]) -> str:
    """Return the message of a group: with the parts that all members share."""
    columns = zip(*(member.parts for member in members), strict=True)
    shown = [
        column[0]
        if len(column[0]) <= _LONG and all(part == column[0] for part in column)
        else f"<{kind}>"
        for kind, column in zip(form.kinds, columns, strict=True)
    ]
    return _written(form, shown)


@final
class _Member(NamedTuple):
    """A failure in a group."""

    parts: tuple[str, ...]
    row: Row


def _divided(form: _Form, members: Sequence[_Member]) -> Iterable[Sequence[_Member]]:
    """Divide a group by the quoted texts that many of its members share."""
    telling = [
        at
        for at, kind in enumerate(form.kinds)
        if kind == "text" and _FEW * len({member.parts[at] for member in members}) <= len(members)
    ]
    if not telling:
        return (members,)
    divided = dict[tuple[str, ...], list[_Member]]()
    for member in members:
        divided.setdefault(tuple(member.parts[at] for at in telling), []).append(member)
    return divided.values()


def grouped(rows: Iterable[Row], total: int | None = None) -> Failures:
    """Group failed children.

    Args:
        rows: The failed children.
        total: How many there are, if ``rows`` are only the first of them.
    """
    found = dict[tuple[str, str, _Form], list[_Member]]()
    counted = 0
    for counted, row in enumerate(rows, 1):  # noqa: B007 # read behind the loop
        step = f"{row.path.step}/{row.failed_step}" if row.failed_step else row.path.step
        read = _read(row.error.removeprefix(f"{row.error_type}: "))
        found.setdefault((step, row.error_type, read.form), []).append(_Member(read.parts, row))
    divided = [
        (name, members) for name, all_ in found.items() for members in _divided(name[2], all_)
    ]
    divided.sort(key=lambda one: -len(one[1]))  # stable: the first failure stays first
    groups = tuple(
        FailureGroup(
            step=step,
            error_type=error_type,
            message=_shared(form, members),
            count=len(members),
            example=members[0].row,
        )
        for (step, error_type, form), members in divided[:MOST_GROUPS]
    )
    return Failures(
        groups=groups,
        counted=counted,
        total=counted if total is None else max(total, counted),
        omitted=len(divided) - len(groups),
    )
