"""Know which run's action starts another application by hand: ``app.run(...)`` inside an action.

Each worker has a context variable that leads to it, set once, and the contexts of its children are
copies of that context. So a child costs nothing, and the variable reaches the tasks and threads
that an action starts.
"""

from __future__ import annotations

from contextvars import Context, ContextVar
from typing import Protocol, final

from shoal._events.identity import RunPath
from shoal._limits.flows import Priority

from .run import Run


class Executor(Protocol):
    """Executes runs, one at a time."""

    child: Run | None
    """The run that it executes, or has executed last; None if there is none."""


@final
class Executing:
    """Executes one run: a root run, or a graph as a node."""

    __slots__ = ("child",)

    def __init__(self, run: Run) -> None:
        # Set to None when the run has ended: tasks that outlive it keep the context, and not the
        # run; see test_a_task_that_outlives_its_action_keeps_no_run_alive.
        self.child: Run | None = run


_executor: ContextVar[Executor | None] = ContextVar("shoal_executor", default=None)


def within(context: Context, executor: Executor) -> Context:
    """Let ``context`` lead to ``executor``, and return it."""
    context.run(_executor.set, executor)
    return context


def spawner() -> tuple[RunPath, str] | None:
    """Return the run and the step whose action calls this; None if no action does."""
    run = _run_around()
    return None if run is None or run.step is None else (run.path, run.step)


def owner_around() -> str:
    """Return the owner of the run whose action calls this; empty if there is none."""
    run = _run_around()
    return "" if run is None else run.config.execution.owner


def priority_around() -> Priority:
    """Return how urgent the run is whose action calls this; "normal" if there is none."""
    run = _run_around()
    return "normal" if run is None else run.config.execution.priority


def _run_around() -> Run | None:
    executor = _executor.get()
    run = None if executor is None else executor.child
    # A task that has outlived its action may find that the run has ended.
    return None if run is None or run.status is not None else run
