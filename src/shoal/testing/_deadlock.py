"""`VirtualDeadlock`: the error for a program in which nothing can ever happen again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from shoal.testing._stacks import where_task_stands


@final
class VirtualDeadlock(RuntimeError):
    """Every task is blocked, and nothing is left that could wake one.

    Raised in the main thread, under virtual time only, so that the program does not hang: no timer
    is set, no socket is waited for, and no thread is left that may call into the loop. The message
    names each task and the line where it stands.

    Attributes:
        at: the virtual time.
        blocked_tasks: the names of the blocked tasks, sorted.
    """

    def __init__(self, at: float, tasks: Iterable[tuple[str, object]]) -> None:
        by_name = sorted(tasks, key=lambda task: task[0])
        self.at = at
        self.blocked_tasks: tuple[str, ...] = tuple(name for name, _ in by_name)
        super().__init__(_message(at, by_name))


def _message(at: float, tasks: list[tuple[str, object]]) -> str:
    standing = [
        f"  task {name!r} stands at\n{where_task_stands(coroutine, indent='    ')}"
        for name, coroutine in tasks
    ]
    return (
        f"at virtual time {at:g} every task is blocked and nothing is left to wake one:"
        " no timer, no socket, no thread\n"
        + ("".join(standing) or "  (no task exists)\n")
        + "HINT: look for an event that is never set, a slot that is not given back, a task that"
        " waits for itself. If a signal should come from outside, run this in real time."
    )
