"""The tasks of an open runtime: each root run, and each piece of the runtime's own work, has one.

Invariants:
- No task is started in the caller's: what cancels a caller does not reach them.
- The runtime's block ends after all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context as ContextVars
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Self, final

from anyio import CancelScope, create_task_group, sleep_until
from anyio.abc import TaskGroup

from shoal._concurrency.backend import Backend, Kinds, startable
from shoal._concurrency.background import MadeLate, StartTask, Work


@final
class RuntimeTasks:
    """The task group of a runtime, and the contexts that tasks are started in."""

    __slots__ = ("_group", "_library", "_own_context", "kinds")

    def __init__(self, backend: Backend) -> None:
        """Use the loop that runs, and the context of the task that opens the runtime."""
        self._library = backend.library
        self._own_context = startable(copy_context(), backend.library)
        self._group: TaskGroup = create_task_group()
        self.kinds: Kinds = Kinds.here()
        """The classes of scopes and events in the loop."""

    async def __aenter__(self) -> Self:
        """Open the group."""
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> bool | None:
        """Wait until all tasks have ended."""
        return await self._group.__aexit__(kind, error, frames)

    @property
    def is_cancelled(self) -> bool:
        """Whether all tasks are cancelled, by ``cancel`` or because one of them failed."""
        return self._group.cancel_scope.cancel_called

    def cancel(self) -> None:
        """Cancel all tasks."""
        self._group.cancel_scope.cancel()

    def start(self, work: Work) -> None:
        """Start a task in a copy of the current context."""
        name = getattr(work, "__qualname__", "shoal")
        self._group.create_task(MadeLate(work), name=name)

    def start_again(self) -> StartTask:
        """Return what starts tasks in a copy of the context as it is now.

        It may be called in callbacks of the loop, too, where there is no current task.
        """
        return partial(self._start_in, copy_context())

    def start_own(self, work: Work) -> None:
        """Start a task of the runtime's own; callable in callbacks of the loop, too."""
        # A copy each: what a task sets in its context variables is its own.
        self._own_context.copy().run(self.start, work)

    def alarm(self, at: float, call: Callable[[], None]) -> Callable[[], object]:
        """Call ``call`` at a time, by a task; return what calls that off."""
        scope = CancelScope(shield=True)

        async def wait() -> None:
            with scope:
                await sleep_until(at)
                call()

        self.start_own(wait)
        return scope.cancel

    def _start_in(self, context: ContextVars, work: Work) -> None:
        startable(context, self._library).run(self.start, work)
