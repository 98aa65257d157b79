"""``shoal answer``: list the open questions of a run, and answer one."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from shoal._events.paths import path_text
from shoal._state.json_schema import misfit

from ._command import Subparsers, add_command, add_run, complain, queries_of
from ._lines import is_terminal, shown, write, write_fields, write_json
from .steer import GOES_ON, add_by, steered

if TYPE_CHECKING:
    from shoal._events.identity import RunPath
    from shoal.stores import Store
    from shoal.watch import OpenQuestion, Queries

MOST = 100
"""Questions that are listed, and among which one is found by its name."""


def add_to(commands: Subparsers) -> None:
    """Add the command ``answer``."""
    what = "list the open questions of a run, or answer one"
    parser = add_command(commands, "answer", _answer, what)
    add_run(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the name of the question")
    parser.add_argument(
        "answer",
        metavar="ANSWER",
        nargs="?",
        help="JSON if the question says of what type its answer is, else text; '-' reads stdin",
    )
    parser.add_argument("--as-json", action="store_true", help="the answer is JSON in any case")
    add_by(parser)


async def _answer(store: Store, given: argparse.Namespace) -> int:
    queries = queries_of(store, "find its questions")
    found = await queries.questions(given.path, limit=MOST)
    if given.name is None or given.answer is None:
        asked = [one for one in found.open if given.name in (None, one.name)]
        if not asked:
            return complain(f"{path_text(given.path)} has no open question")
        for one in asked:
            _write(one, as_json=given.json)
        return 0
    meant = [one for one in found.open if one.name == given.name]
    if len(meant) != 1:
        why = "several open questions have this name: name the child that asks"
        if not meant:
            names = [f"{one.name!r} of {path_text(one.path)}" for one in found.open]
            why = f"the open questions are {', '.join(names)}" if names else "no question is open"
            if given.path in found.answered:
                why = f"it is answered; the run {GOES_ON.format(given.path.root.id)}"
        return complain(f"{path_text(given.path)}, {given.name!r}: {why}")
    text = sys.stdin.read() if given.answer == "-" else given.answer
    try:
        value = _value(meant[0], text, as_json=given.as_json)
    except ValueError as error:
        return complain(f"{given.name!r}: the answer is no JSON: {error}")
    code = await steered(store, given, lambda control: control.answer(meant[0], value))
    if code == 0 and not given.json and is_terminal(sys.stdout):
        await _write_next(queries, given.path.root)
    return code


async def _write_next(queries: Queries, root: RunPath) -> None:
    """Say that the answer alone doesn't continue a run which no process executes."""
    if (await queries.overview(root)).status != "halted":
        return
    left = (await queries.questions(root, limit=MOST)).open
    more = f", and has {len(left)} more to answer" if left else ""
    write(shown(f"the run {GOES_ON.format(root.id)}{more}"))


def _value(question: OpenQuestion, text: str, *, as_json: bool) -> object:
    """Return the answer that a text stands for.

    Raises:
        ValueError: It has to be JSON, and isn't.
    """
    schema = question.answer_schema
    if as_json:
        return json.loads(text)
    if schema is None:
        return text
    # A text that a text may be is that text: "3" for a string is no number.
    if misfit(text, schema) is None:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text  # refused with what is allowed, which says more than a mistake in JSON


def _write(one: OpenQuestion, *, as_json: bool) -> None:
    path, question = path_text(one.path), one.question
    text = question if isinstance(question, str) else json.dumps(question, ensure_ascii=False)
    schema = None if one.answer_schema is None else dict(one.answer_schema)
    if as_json:
        write_json({"path": path, "name": one.name, "question": question, "answer_schema": schema})
    elif is_terminal(sys.stdout):
        write(shown(f"{one.name}  {path}"))
        write(shown(f"  {text}"))
        if schema is not None:
            write(shown(f"  answer: {json.dumps(schema, ensure_ascii=False)}"))
    else:
        write_fields((path, one.name, text), *(() if schema is None else (json.dumps(schema),)))
