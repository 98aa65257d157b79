"""Write a recorded run as a fixture, and the test that replays it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple, cast, final

from ._recorded import Data


@final
class ReplayTest(NamedTuple):
    """The two files of a test."""

    test: Path
    fixture: Path
    is_new: bool
    """Whether the test was written. One that is there stays, because it may have fakes in it."""


def write_test(data: Data, folder: Path, module: str, expression: str) -> ReplayTest:
    """Write a recorded run, and the test that replays it, into a folder.

    The fixture is replaced if it is there.

    Args:
        data: The run, as ``read_run`` returns it.
        folder: Where to write; made if it is missing.
        module: The module of the application.
        expression: The application in the module: a name, or a call of one.

    Raises:
        OSError: A file can't be written.
    """
    name = "replay_" + (re.sub(r"\W+", "_", data["run"], flags=re.ASCII).strip("_") or "run")[:80]
    test, fixture = folder / f"test_{name}.py", folder / f"test_{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    fixture.write_text(fixture_text(data), "utf-8")
    is_new = not test.exists()
    if is_new:
        test.write_text(_test_text(data, name, module, expression), "utf-8")
    return ReplayTest(test, fixture, is_new)


def _test_text(data: Data, name: str, module: str, expression: str) -> str:
    run, app = data["run"], data["application"]
    secret = data.get("secret", {})
    said = ""
    if secret:
        stands = ", ".join(f"{text!r} for {field!r}" for field, text in secret.items())
        said = (
            f"\nSecret fields are not recorded. In the replay texts stand for them: {stands}.\n"
            f"If a condition depends on one, give a value: replay(..., secrets={{...}}).\n"
        )
    imported = expression.partition("(")[0].partition(".")[0]
    title = f'"""Replay run {run} of application {app}: does the program still decide the same?'
    return (
        title.replace("\\", "\\\\")
        + """

No action is called: each is served its recorded outcome. If the test fails, it names the first
decision that differs. If the change is meant, record a run of the new program, and write its
fixture in the same way: shoal export RUN --as-test
"""
        + said
        + '"""\n\n'
        + "from pathlib import Path\n\n"
        + f"from {module} import {imported}\n"
        + "from shoal.testing import replay\n\n\n"
        + f"def test_{name}() -> None:\n"
        + f'    replay({expression}, Path(__file__).with_suffix(".json"))\n'
    )


def fixture_text(data: Data) -> str:
    """Return the data of a run as JSON in which a changed entry is a changed line."""
    return f"{_run_text(data, '')}\n"


def _run_text(data: Data, indent: str) -> str:
    lines = list[str]()
    for name, value in data.items():
        key = f"{indent} {json.dumps(name)}: "
        if name == "history":
            entries = [f"{indent}  {_line(one)}" for one in cast("list[Data]", value)]
            lines.append(f"{key}[\n" + ",\n".join(entries) + f"\n{indent} ]")
        elif name == "children":
            runs = [_run_text(one, f"{indent}  ") for one in cast("list[Data]", value)]
            lines.append(f"{key}[\n" + ",\n".join(runs) + f"\n{indent} ]")
        else:
            lines.append(f"{key}{_line(value)}")
    return f"{indent}{{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
