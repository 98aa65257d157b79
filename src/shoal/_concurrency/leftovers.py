"""Tasks that actions leave behind: named in asyncio's debug mode. Imports nothing of shoal.

A task that an action makes with ``asyncio.create_task`` belongs to nobody: the engine can't await
it. In debug mode (``asyncio.run(main(), debug=True)``, ``python -X dev``), the end of a root run
looks for such tasks. That is a walk over all tasks of the loop, too dear at other times.

Invariants:
- A task counts if its context is a copy of that of the run's own task; Python tells since 3.12.
- One that is being cancelled doesn't: it is about to end.
- A task that outlives its run is named once, whatever runs of that id come later.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import Any

logger = logging.getLogger("shoal")

_root: ContextVar[object] = ContextVar("shoal.root")


def mark_tasks() -> object:
    """Have tasks that are made from now on in this context be known as those of a root run.

    Returns what they are known by.
    """
    mark = object()
    _root.set(mark)
    return mark


def tell_leftovers(run_id: str, mark: object) -> None:
    """Warn of tasks that were made in the run, and go on; called in its task when it has ended."""
    aio: Any = sys.modules.get("asyncio")  # not imported here: trio does without it
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
        if task.get_context().get(_root) is mark and name != "TaskHandle._run_coro":  # anyio's
            told = (
                "run %s has ended, but a task that an action made goes on: %s, running %s, made at "
                "%s. Await it in the action, or start children with context.fan_out; one that is "
                "to outlive the run is made with create_task(..., context=contextvars.Context())"
            )
            logger.warning(told, run_id, task.get_name(), name, _made_at(task))


def _made_at(task: Any) -> str:
    """Say where a task was made; in debug mode asyncio keeps that."""
    made = [
        frame
        for frame in getattr(task, "_source_traceback", None) or ()
        if "asyncio" not in frame.filename
    ]
    if not made:
        return "a place unknown"
    return f"{made[-1].filename}:{made[-1].lineno}, in {made[-1].name}"
