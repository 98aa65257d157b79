"""The defects that were thought out: each breaks an invariant, and names the test that must fail.

They are in ``patches/``, a file for each few invariants. A patch replaces text of the source that
occurs once, so it applies as long as that text stands.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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
            if text.count(before) != 1:
                msg = f"{self.name!r}: its text occurs {text.count(before)} times in {name}"
                raise LookupError(msg)
            texts[name] = text.replace(before, after)
        return texts


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
