"""Show an open question: its text, and the form for its answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast, final

from shoal._events.identity import RunPath
from shoal.watch._questions import OpenQuestion

from ._forms import Field, fields_of, schema_of

MOST = 5
"""Questions that a page shows; a form has several elements."""

PARTS = 8
"""Parts of a question that are shown one by one; each takes three elements."""


@final
class Asked:
    """An open question as a page shows it."""

    def __init__(self, asked: OpenQuestion) -> None:
        """Show ``asked``."""
        self.path: RunPath = asked.path
        """The run that waits."""
        self.name: str = asked.name
        self.id: str = asked.id
        self._question = asked.question
        self._schema = schema_asked(asked)
        # An older way to say it, in the question itself, where it isn't shown.
        self._is_inside = self._schema is not None and asked.answer_schema is None

    @property
    def fields(self) -> Sequence[Field]:
        """The fields of the form for its answer."""
        return fields_of(self._schema)

    @property
    def has_schema(self) -> bool:
        """Whether it says of what form its answer is."""
        return self._schema is not None

    @property
    def parts(self) -> Mapping[str, str]:
        """The parts of a question that is a mapping of short texts and numbers; else nothing."""
        given: object = self._question
        if not isinstance(given, dict) or not self.has_schema or len(given) > PARTS:  # pyright: ignore[reportUnknownArgumentType]
            return {}
        shown = cast("dict[str, object]", given)
        found = {name: part for name, part in shown.items() if not self._is_hidden(name)}
        if not all(isinstance(part, str | int | float) for part in found.values()):
            return {}
        return {
            name: part if isinstance(part, str) else json.dumps(part)
            for name, part in found.items()
        }

    @property
    def text(self) -> str:
        """The question itself as text, without the schema of its answer."""
        shown = self._question
        if isinstance(shown, dict) and self._is_inside:
            shown = {name: value for name, value in shown.items() if name != "schema"}  # pyright: ignore[reportUnknownVariableType]
            if len(shown) == 1:  # pyright: ignore[reportUnknownArgumentType]
                [shown] = shown.values()  # pyright: ignore[reportUnknownVariableType]
        return shown if isinstance(shown, str) else json.dumps(shown, indent=2, ensure_ascii=False)

    def _is_hidden(self, name: str) -> bool:
        return self._is_inside and name == "schema"


def schema_asked(asked: OpenQuestion) -> Mapping[str, Any] | None:
    """Return the JSON schema of the answers to a question; None if it has none."""
    given = asked.answer_schema
    return schema_of(asked.question) if given is None else given
