"""What users write as ``executor=``, and the executor that it stands for."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Literal

from shoal._errors.exceptions import DefinitionError

from ._port import Executor
from ._threads import SHARED_THREADS

ExecutorName = Literal["loop", "threads", "processes", "interpreters"]
"""The event loop, the worker threads of the runtime, or processes or interpreters of it."""

Place = Executor | Literal["loop"]
"""Where functions are called: an executor, or the event loop."""


def executor_named(given: object, what: str) -> Place | None:
    """Return what a user's ``executor=`` stands for; None if none was given.

    Args:
        given: What the user gave.
        what: Where it was given, for the error: "action 'parse'".

    Raises:
        DefinitionError: It is neither a known name nor an executor.
    """
    if given is None or isinstance(given, Executor) or given == "loop":
        return given  # pyright: ignore[reportReturnType] # "loop" is that literal
    if given == "threads":
        return SHARED_THREADS
    if given == "processes":
        return _processes()
    if given == "interpreters":
        return _interpreters()
    made = " (make one of it: it is a class)" if isinstance(given, type) else ""
    msg = (
        f"{what}: executor= is 'loop', 'threads', 'processes', 'interpreters', or an executor "
        f"such as Threads(4), not {given!r}{made}"
    )
    raise DefinitionError(msg)


@cache
def _processes() -> Executor:
    """Return the processes that ``"processes"`` stands for: the same object wherever it is given.

    Imported late, because most programs use no processes.
    """
    return importlib.import_module("shoal.executors._processes").Processes()


@cache
def _interpreters() -> Executor:
    """Return the interpreters that ``"interpreters"`` stands for, in the same way."""
    return importlib.import_module("shoal.executors._interpreters").Interpreters()
