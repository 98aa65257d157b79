"""Know which run's action starts another application by hand: ``app.run(...)`` inside an action.

Each worker has a context variable that leads to it, set once, and the contexts of its children are
copies of that context. So a child costs nothing, and the variable reaches the tasks and threads
that an action starts.
"""

from __future__ import annotations

from contextvars import Context, ContextVar
from typing import NamedTuple, Protocol, final

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


@final
class Around(NamedTuple):
    """The run whose action starts another application by hand."""

    spawned_by: tuple[RunPath, str] | None = None
    """It, and its step; None if there is none."""
    owner: str = ""
    """Its owner; empty if it has none."""
    priority: Priority = "normal"
    """How urgent it is."""


_NOTHING = Around()  # as around nearly all runs
_executor: ContextVar[Executor | None] = ContextVar("shoal_executor", default=None)


def within(context: Context, executor: Executor) -> Context:
    """Let ``context`` lead to ``executor``, and return it."""
    context.run(_executor.set, executor)
    return context


def around() -> Around:
    """Return what a run that is started here takes over from the run whose action calls this."""
    executor = _executor.get()
    run = None if executor is None else executor.child
    # A task that has outlived its action may find that the run has ended.
    if run is None or run.status is not None:
        return _NOTHING
    execution = run.config.execution
    spawned_by = None if run.step is None else (run.path, run.step)
    return Around(spawned_by, execution.owner, execution.priority)
