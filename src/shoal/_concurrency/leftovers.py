"""Warn of tasks that actions leave behind, in asyncio's debug mode.

A task that an action makes with ``asyncio.create_task`` has no owner: the engine can't await it. In
debug mode (``asyncio.run(main(), debug=True)``, ``python -X dev``), the end of a root run looks for
such tasks. The search walks over all tasks of the loop, which costs too much at other times.

Invariants:
- A task counts if its context is a copy of that of the run's own task. Python tells since 3.12.
- A task that is being cancelled does not count, because it is about to end.
- A task that outlives its run is reported once, even if later runs have the same id.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import Any

logger = logging.getLogger("shoal")

_root: ContextVar[object] = ContextVar("shoal.root")


def mark_tasks() -> object:
    """Mark the tasks that are made from now on in this context as those of a root run.

    Returns the mark.
    """
    mark = object()
    _root.set(mark)
    return mark


def report_leftovers(run_id: str, mark: object) -> None:
    """Warn of the tasks with this mark that still run. Call it in the run's task, at its end."""
    aio: Any = sys.modules.get("asyncio")  # not imported: programs on trio don't load it
    if aio is None:
        return
    loop = aio._get_running_loop()  # None on trio
    if loop is None or not loop.get_debug():
        return
    current = aio.current_task(loop)
    for task in aio.all_tasks(loop):
        if task is current or getattr(task, "get_context", None) is None or task.cancelling():
            continue
        name = getattr(task.get_coro(), "__qualname__", "")
        # anyio's own tasks have a task group that awaits them.
        if task.get_context().get(_root) is mark and name != "TaskHandle._run_coro":
            message = (
                "run %s has ended, but a task that an action made goes on: %s, running %s, made at "
                "%s. Await it in the action, or start children with context.fan_out; a task that "
                "should outlive the run needs create_task(..., context=contextvars.Context())"
            )
            logger.warning(message, run_id, task.get_name(), name, _made_at(task))


def _made_at(task: Any) -> str:
    """Return the place where a task was made, which asyncio keeps in debug mode."""
    made = [
        frame
        for frame in getattr(task, "_source_traceback", None) or ()
        if "asyncio" not in frame.filename
    ]
    if not made:
        return "a place unknown"
    return f"{made[-1].filename}:{made[-1].lineno}, in {made[-1].name}"
