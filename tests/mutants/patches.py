"""The defects that were thought out: each breaks an invariant, and names the test that must fail.

They are in ``patches/``, a file for each few invariants. A patch replaces text of the source that
occurs once, so it applies as long as that text stands.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from .bench import SOURCE

FOLDER = Path(__file__).with_name("patches")


@dataclass(frozen=True, slots=True)
class Patch:
    """A defect."""

    name: str
    """What goes wrong."""
    invariant: str
    """The beginning of a row in the table of docs/internals.md."""
    red: str
    """The test that must fail, by its id below ``tests/``."""
    edits: tuple[tuple[str, str, str], ...]
    """Files below ``src/shoal``, each with a text that occurs once in it, and the text instead."""

    def changed(self) -> Mapping[str, str]:
        """Return the new text of each file.

        Raises:
            LookupError: The patch does not apply any more.
        """
        texts: dict[str, str] = {}
        for name, before, after in self.edits:
            text = texts.get(name) or (SOURCE / name).read_text()
            places = _places(text, before)
            if len(places) != 1:
                msg = (
                    f"patch {self.name!r}: its text occurs {len(places)} times in {name}. HINT: if "
                    f"the code has changed, write the patch anew in tests/mutants/patches/, so "
                    f"that it breaks the same invariant, and run `python -m tests.mutants` with "
                    f"a part of its name"
                )
                raise LookupError(msg)
            (at, there), margin = places[0], _margin(before)
            instead = after
            if there != before:  # as far in as the code is now
                indent = _margin(there)
                lines = after.split("\n")
                instead = "\n".join(indent + line.removeprefix(margin) for line in lines)
            texts[name] = text[:at] + instead + text[at + len(there) :]
        return texts


def _places(text: str, before: str) -> list[tuple[int, str]]:
    """Return where ``before`` stands in a text, and as what: whole lines may be further in."""
    exact = [(found.start(), before) for found in re.finditer(re.escape(before), text)]
    if exact:
        return exact
    lines = [re.escape(line) for line in dedent(before).split("\n")]
    if not before.startswith(" "):
        return []
    pattern = r"^(?P<indent> *)" + r"\n(?:(?P=indent)|(?=\n))".join(lines) + "$"
    return [(one.start(), one[0]) for one in re.finditer(pattern, text, re.MULTILINE)]


def _margin(text: str) -> str:
    """Return the spaces in front of the first line."""
    return text[: len(text) - len(text.lstrip(" "))]


def read() -> Iterator[Patch]:
    for path in sorted(FOLDER.glob("*.toml")):
        for table in tomllib.loads(path.read_text())["patch"]:
            yield _patch(table)


def _patch(table: dict[str, Any]) -> Patch:
    edits = table.get("edit", [table])
    return Patch(
        name=table["name"],
        invariant=table["invariant"],
        red=table["red"],
        # Without the end of the last line, so that a text may also end in the middle of one.
        edits=tuple(
            (edit["file"], edit["before"].removesuffix("\n"), edit["after"].removesuffix("\n"))
            for edit in edits
        ),
    )
