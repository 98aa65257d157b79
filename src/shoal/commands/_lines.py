"""Write the output of commands: tables for people, and lines of fields or JSON for programs.

Ids, names and errors come from users or from the network. Characters that would break a line or
that a terminal would act on are escaped.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TextIO
from unicodedata import category, east_asian_width

LEAST = 20
"""The fewest columns for the last cell of a row. With less room, it gets a line of its own."""
GAP = "  "
"""The text between columns, and before a last cell that has a line of its own."""

_ACTING = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # characters that change the text direction
    "\u2028\u2029"  # line separators
    "\ud800-\udfff]"  # halves of surrogate pairs, which no encoding has
)


class Unwritten(Exception):
    """The output of a command could not be written. The message says why."""


def shown(text: str) -> str:
    """Escape, as Python does, characters that a terminal acts on or that the encoding lacks."""
    text = _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def write(line: str) -> None:
    """Write a line.

    Raises:
        BrokenPipeError: The reader has closed the pipe.
        Unwritten: The output can't be written.
    """
    try:
        print(line)
    except BrokenPipeError:  # an OSError, but not a failure
        raise
    except OSError as error:
        raise Unwritten(_why(error)) from error


def write_document(text: str) -> None:
    """Write a document as UTF-8, whatever the encoding of the output; raises as ``write`` does."""
    flush()
    try:
        sys.stdout.buffer.write(text.encode())
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritten(_why(error)) from error


def flush() -> None:
    """Write the buffered output; raises as ``write`` does."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritten(_why(error)) from error


def is_terminal(stream: TextIO) -> bool:
    """Return whether people read a stream."""
    return stream.isatty()


def hint(text: str) -> None:
    """Write a hint to stderr, but only if that is a terminal."""
    if is_terminal(sys.stderr):
        sys.stderr.write(f"{text}\n")


def _why(error: OSError) -> str:
    return f"the output can't be written: {error.strerror or error}"


def write_json(value: object) -> None:
    write(json.dumps(value))  # json.dumps escapes control characters and everything beyond ASCII


def write_fields(fields: Iterable[object], *more: object) -> None:
    """Write fields with tabs between them, escaping characters that would break the line."""
    write("\t".join(shown(str(field).replace("\\", "\\\\")) for field in (*fields, *more)))


def write_named(names: Sequence[tuple[str, str]]) -> None:
    """Write texts behind their names, for people. A text may have several lines."""
    for name, text in names:
        first, *others = map(shown, text.split("\n"))
        write(f"{name:11}  {first}".rstrip())
        for line in others:
            write(f"{'':11}  {line}")


def utc(at: float | None) -> str:
    """Return a time for programs; empty if there is none."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def local(at: float) -> str:
    """Return a time for people, where they live."""
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"  # noqa: DTZ006 # people's local time


def write_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, shortens: int | None = None
) -> None:
    """Write rows as a table. The last cell gets the remaining width, or a line if that is small.

    Args:
        titles: The titles of the columns; may be empty.
        rows: The rows; at least one.
        shortens: The index of the column that is shortened, to the width of its title at least, if
            the table is too wide.
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
    """Return the number of columns that ``text`` takes up on a terminal."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if category(character) in ("Mn", "Me", "Cf"):  # combined with the character before it
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def padded(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """Shorten ``text`` to at most that many columns."""
    if width(text) <= columns:
        return text
    kept, left = "", columns - len("...")
    for character in text:
        left -= _width(character)
        if left < 0:
            break
        kept += character
    return f"{kept}..."
