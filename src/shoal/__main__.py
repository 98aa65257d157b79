"""The command ``shoal``: which commands there are. Imports these; everything else when it is asked.

Exit codes: 0; 1 where what was asked for isn't there; 2 where it was asked wrongly, or the store
can't be used; 3 where its output can't be written; 130 where somebody has interrupted it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from shoal._errors.exceptions import ShoalError

from ._version import __version__
from .commands import (
    Refused,
    Unwritten,
    answer,
    diff,
    draw,
    events,
    explain,
    export,
    flush,
    prune,
    runs,
    show,
    shown,
    steer,
    top,
    ui,
)

COMMANDS = (runs, show, top, events, explain, ui, answer, steer, diff, export, draw, prune)
"""The modules of the commands, in the order of the help."""
UNWRITTEN = 3
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what a command line says, and return its exit code.

    Raises:
        SystemExit: The command line is wrong, or asked for help.
    """
    parser = argparse.ArgumentParser(prog="shoal", description="Look at runs, and steer them.")
    parser.add_argument("--version", action="version", version=f"shoal {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    given = parser.parse_args(arguments)
    try:
        code: int = given.do(given)
        flush()
    except (Refused, ShoalError) as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader has closed the pipe
        _drop_output()
        return 0
    except Unwritten as error:
        _drop_output()
        return _complain(str(error), UNWRITTEN)
    return code


def _drop_output() -> None:
    """Have what was not written yet go nowhere, so that closing it is fine."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(why: str, code: int) -> int:
    lines = "\n".join(map(shown, why.split("\n")))
    sys.stderr.write(f"shoal: {lines}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
