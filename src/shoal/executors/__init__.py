"""Executors, for actions whose functions are called elsewhere than on the event loop.

By default, plain functions run in worker threads and all others on the event loop. ``executor=`` of
``@action``, of fan-outs, of ``Application`` and of ``Runtime`` says otherwise, and the nearest one
holds for an action: ``"loop"``, ``"threads"``, ``"processes"``, ``"interpreters"``, or one of the
declarations here.

Examples:
    >>> from shoal import Application, action, fan_out
    >>> from shoal.executors import Threads
    >>> @action(reads=["n"], writes=["square"])
    ... def square(n: int) -> int:
    ...     return n * n
    >>> squares = fan_out(square, over="ns", item="n", into="squares", executor=Threads(2))
    >>> Application(squares).run_sync({"ns": [1, 2, 3]}).state["squares"]
    [1, 4, 9]
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:  # at run time __getattr__ imports them, each when it is first asked for
    from ._interpreters import Interpreters
    from ._named import ExecutorName
    from ._port import Executor
    from ._processes import Processes
    from ._ray import Ray
    from ._threads import Threads

__all__ = ["Executor", "ExecutorName", "Interpreters", "Processes", "Ray", "Threads"]

_DEFINED = {
    "Executor": "_port",
    "ExecutorName": "_named",
    "Interpreters": "_interpreters",
    "Processes": "_processes",
    "Ray": "_ray",
    "Threads": "_threads",
}
"""The names of ``__all__``, by the module that defines them: a program loads what it uses."""

if not typing.TYPE_CHECKING:  # type checkers would take any name to exist

    def __getattr__(name):  # noqa: ANN001, ANN202
        """Import a name when it is first asked for."""
        home = _DEFINED.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
