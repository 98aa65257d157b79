"""The widths of texts, without fonts.

Names are set in a monospaced font, whose characters are 0.602 em wide in nearly all of them. Labels
are set in a sans-serif font, which differs by system: the widths are those of DejaVu Sans, the
widest of the common ones, so that a text is never wider than its room.
"""

from __future__ import annotations

from unicodedata import category, east_asian_width

MONOSPACED = 0.602
NARROW = frozenset("ijlIft.,:;'|!()[]/ ")
WIDE = frozenset("mwMW@%—→↻")


def name_width(text: str, size: float) -> float:
    """Return the width of a monospaced text."""
    return size * MONOSPACED * sum(map(_cells, text))


def label_width(text: str, size: float) -> float:
    """Return the width of a text in a sans-serif font, or a little more."""
    return size * sum(map(_width, text))


def shortened(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _cells(character: str) -> int:
    if category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def _width(character: str) -> float:
    if character in NARROW:
        return 0.4
    if character in WIDE:
        return 1.0
    return 0.64 * _cells(character)
