"""``shoal export``: write a run as lines of JSON, as logs for Burr's UI, or as a test."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from anyio import to_thread

from ._command import Subparsers, add_command, add_run, count, queries_of
from ._lines import hint, is_terminal, shown, write, write_fields, write_json
from ._store import Refused

if TYPE_CHECKING:
    from shoal import Application
    from shoal.stores import Store


def add_to(commands: Subparsers) -> None:
    """Add the command ``export``."""
    what = "write a run as lines of JSON, as logs that Burr's UI shows, or as a test"
    parser = add_command(commands, "export", _export, what)
    add_run(parser)
    parser.add_argument(
        "--format",
        choices=("jsonl", "burr"),
        default="jsonl",
        help="jsonl: the run, its history and its children, to stdout (default); burr: a "
        "directory with logs",
    )
    parser.add_argument(
        "--values",
        action="store_true",
        help="jsonl: add the history, element, value and error of each child",
    )
    parser.add_argument(
        "--as-test",
        action="store_true",
        help="write a test for pytest that replays the run, and its fixture: into --to DIR, by "
        "default the present directory",
    )
    parser.add_argument(
        "--app",
        metavar="MODULE:NAME",
        type=_application,  # imported before the event loop begins: that blocks
        help="--as-test: the application, or a function without arguments that makes it: "
        "myproject.app:app",
    )
    parser.add_argument("--to", metavar="DIR", help="the directory to write into")
    parser.add_argument("--project", metavar="NAME", help="burr: the project's name")
    parser.add_argument(
        "--max-children",
        type=count,
        metavar="N",
        help="burr: write at most N children: winners, failed ones, the slowest (default: 200)",
    )


async def _export(store: Store, given: argparse.Namespace) -> int:
    if given.as_test:
        return await _export_test(store, given)
    if given.app is not None:
        msg = "--app is for --as-test: nothing else needs the application"
        raise Refused(msg)
    queries = queries_of(store, "export its runs")
    if given.format == "jsonl":
        async for line in queries.lines(given.path, values=given.values):
            write(line)
        return 0
    if given.to is None:
        msg = "where to? Give a directory with --to; Burr's UI is started with it"
        raise Refused(msg)
    more = {} if given.max_children is None else {"max_children": given.max_children}
    try:
        done = await queries.to_burr(given.path, given.to, project=given.project, **more)
    except OSError as error:
        msg = f"the export can't be written: {error}"
        raise Refused(msg) from error
    if given.json:
        write_json({**done._asdict(), "directory": str(done.directory)})
    elif is_terminal(sys.stdout):
        left_out = f"; {done.omitted:,} children are left out" if done.omitted else ""
        write(shown(f"wrote {done.written:,} runs to {done.directory / done.project}{left_out}"))
        hint(
            f"to look at them: burr_path={done.directory} burr-admin-server, or the `burr` command"
        )
    else:
        write_fields(done)
    return 0


async def _export_test(store: Store, given: argparse.Namespace) -> int:
    """Write a test that replays a root run."""
    from shoal._graph.parallel import stores_within  # noqa: PLC0415 # for this command alone
    from shoal.testing._as_test import write_test  # noqa: PLC0415
    from shoal.testing._recorded import read_run  # noqa: PLC0415

    if given.path.parent is not None:
        msg = "a test replays a whole run: give the id of the root run"
        raise Refused(msg)
    if given.app is None:
        msg = "which application does the test replay? Give it with --app MODULE:NAME"
        raise Refused(msg)
    app, module, expression = given.app
    data = await read_run(store, given.path.id, tuple(stores_within(app.graph)))
    if data["application"] != app.name:
        given_app = f"{module}:{expression} is {app.name!r}"
        msg = f"the run is of application {data['application']!r}, and {given_app}"
        raise Refused(msg)
    write_it = partial(write_test, data, Path(given.to or "."), module, expression)
    try:
        written = await to_thread.run_sync(write_it)
    except OSError as error:
        msg = f"the test can't be written: {error}"
        raise Refused(msg) from error
    if given.json:
        write_json({"test": str(written.test), "fixture": str(written.fixture)})
    elif is_terminal(sys.stdout):
        there = "" if written.is_new else " (it was there, and stays)"
        write(shown(f"wrote {written.fixture} and {written.test}{there}"))
    else:
        write_fields((written.test, written.fixture))
    for field, text in data.get("secret", {}).items():
        hint(f"secret field {field!r} is not recorded; {text!r} stands for it in the test")
    hint(f"to replay it: pytest {written.test}")
    return 0


def _application(what: str) -> tuple[Application[Any], str, str]:
    """Import an application; return it, its module, and the expression that is it there."""
    try:
        return _imported_application(what)
    except Refused as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _imported_application(what: str) -> tuple[Application[Any], str, str]:
    from shoal import Application  # noqa: PLC0415 # most of shoal: not for `shoal --help`

    from .draw import imported  # noqa: PLC0415

    module_name, _, name = what.partition(":")
    module = imported(module_name, what)
    found: object = getattr(module, name, None) if name.isidentifier() else None
    expression = name
    if callable(found) and not isinstance(found, Application):
        required = [
            one.name
            for one in signature(found).parameters.values()
            if one.default is Parameter.empty
            and one.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
        ]
        if required:
            msg = (
                f"{what} takes {', '.join(required)}: write a function without arguments that "
                f"calls it, and name that one"
            )
            raise Refused(msg)
        found, expression = found(), f"{name}()"
    if not isinstance(found, Application):
        names = [one for one, value in vars(module).items() if isinstance(value, Application)]
        there = f"; it has: {', '.join(names)}" if names else ""
        msg = f"{what} is no application{there}"
        raise Refused(msg)
    return cast("Application[Any]", found), module_name, expression
