"""What commands write: lines for people, and for programs. Imports nothing of ours.

Ids, names and errors are a user's, or somebody else's: whatever is in them, a line stays a line,
and a terminal shows it instead of obeying it.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from unicodedata import category, east_asian_width

LEAST = 20
"""Columns that the last cell of a row may have to do with; where there are fewer, it has a line."""
GAP = "  "
"""What is between columns, and before a last cell that has a line."""

_ACTING = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # that change in which direction text is read
    "\u2028\u2029"  # that separate lines
    "\ud800-\udfff]"  # halves of pairs, which no encoding has
)


class Unwritten(Exception):
    """What a command had to say could not be written. The message says why."""


def shown(text: str) -> str:
    """Escape, as Python does, what a terminal would act on, and what the encoding doesn't have."""
    text = _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def write(line: str) -> None:
    """Write a line.

    Raises:
        BrokenPipeError: Nobody reads any more.
        Unwritten: It can't be written.
    """
    try:
        print(line)
    except BrokenPipeError:  # no failure, but one of the others by its class
        raise
    except OSError as error:
        raise Unwritten(_why(error)) from error


def flush() -> None:
    """Have written what was left for later; raises as ``write`` does."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritten(_why(error)) from error


def _why(error: OSError) -> str:
    return f"the output can't be written: {error.strerror or error}"


def write_json(value: object) -> None:
    write(json.dumps(value))  # in ASCII, which has nothing that would have to be escaped


def write_fields(fields: Iterable[object], *more: object) -> None:
    """Write a line with tabs between fields, and nothing in these that breaks or changes a line."""
    write("\t".join(shown(str(field).replace("\\", "\\\\")) for field in (*fields, *more)))


def write_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, shortens: int | None = None
) -> None:
    """Write rows whose last cell has what room there is: where that is little, a line of its own.

    Args:
        titles: Of the columns; may be none.
        rows: At least one.
        shortens: The column that has less than it needs, though not less than its title, where
            the others leave it too little.
    """
    table = [[shown(cell) for cell in row] for row in ([titles] if titles else []) + [*rows]]
    *widths, longest = [max(map(width, column)) for column in zip(*table, strict=True)]
    columns = shutil.get_terminal_size().columns
    room = columns - sum(widths) - len(GAP) * len(widths)
    is_below = room < min(longest, LEAST)
    lacking = -room - len(GAP)
    if is_below and lacking > 0 and shortens is not None:
        widths[shortens] = max(width(titles[shortens]), widths[shortens] - lacking)
    for *cells, last in table:
        shortened = map(cut, cells, widths)
        line = GAP.join(padded(cell, wide) for cell, wide in zip(shortened, widths, strict=True))
        if not is_below:
            line = f"{line}{GAP}{cut(last, room)}"
        write(line.rstrip())
        if is_below and last:
            write(f"{GAP}{cut(last, columns - len(GAP))}")


def width(text: str) -> int:
    """Count the columns that ``text`` takes up on a terminal."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if category(character) in ("Mn", "Me", "Cf"):  # it is put onto the one before
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def padded(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """Shorten ``text`` to so many columns."""
    if width(text) <= columns:
        return text
    kept, left = "", columns - len("...")
    for character in text:
        left -= _width(character)
        if left < 0:
            break
        kept += character
    return f"{kept}..."
