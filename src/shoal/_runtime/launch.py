"""Launching root runs: planned, handed to a runtime, and awaited.

Invariants:
- A failing run raises what failed, unwrapped, in its caller's frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Generic, final

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import fatal_leaf, ki_protected
from shoal._engine.config import RunConfig
from shoal._engine.execution import Execution
from shoal._engine.fanout.read_runs import read_questions
from shoal._engine.progress import unique
from shoal._errors.inspection import first_of
from shoal._events.events import Question
from shoal._events.hooks import Hooks
from shoal._events.identity import RunPath
from shoal._state.state import S
from shoal.stores._protocol import Store

from .definition import AppDefinition
from .display import new_display, showing
from .handle import RunHandle
from .open_run import Gate, OpenRun
from .result import RunResult
from .root_run import RootRun
from .runtime import Runtime
from .start import RunRequest


@final
class Launcher(Generic[S]):
    """Plans the root runs of an application, has a runtime execute them, and awaits them."""

    __slots__ = ("_definition", "_owner")

    def __init__(self, definition: AppDefinition, owner: object) -> None:
        """Launch runs of a definition.

        Args:
            definition: What runs.
            owner: Whose limits the definition's are: the application, by which a runtime keeps
                what it counts.
        """
        self._definition = definition
        self._owner = owner

    def plan(
        self,
        request: RunRequest,
        runtime: Runtime,
        gate: Gate | None = None,
        deadline: float | None = None,
    ) -> RootRun:
        """Plan an execution of the requested run; nothing of it happens yet.

        Args:
            request: The run.
            runtime: Where it is executed, an open one.
            gate: Called before each step, which waits for it.
            deadline: When the run's time is over; by default when the caller's is.
        """
        definition = self._definition
        injection = runtime.services.injection
        execution = Execution(
            runtime.services,
            Hooks(definition.hooks, always=() if injection is None else injection.hooks()),
            self._store(runtime),
            max_steps=definition.max_steps,
            max_depth=definition.max_depth,
            max_live=definition.max_live,
            deadline=anyio.current_effective_deadline() if deadline is None else deadline,
            priority=request.priority or definition.priority or "normal",
        )
        config = RunConfig(
            graph=definition.graph,
            inputs=request.inputs,
            execution=execution,
            act=definition.name,
            gate=gate,
            halts=request.halts,
            executor=runtime.executor if definition.executor is None else definition.executor,
            scopes=runtime.scopes(self._owner, definition.limits),
        )
        return RootRun(request, config, definition, wants_watch=definition.watch)

    def _store(self, runtime: Runtime) -> Store:
        given = self._definition.store
        store = runtime.store if given is None else given
        injection = runtime.services.injection
        return store if injection is None else injection.store(store)

    # A Ctrl-C between a runtime's opening and its closing would leave its nursery open on trio; see
    # test_ctrl_c_anywhere_on_trio.
    @ki_protected
    async def run(
        self, request: RunRequest, runtime: Runtime | None, *, progress: bool = False
    ) -> RunResult[S]:
        """Execute the requested run in a task of its own, await its end, and return its result.

        Args:
            request: The run.
            runtime: Where it is executed; None: one of its own.
            progress: Whether to show its progress.

        Raises:
            DefinitionError: Its progress can't be shown: a package isn't installed.
            BaseException: What the run failed with, or what interrupted the wait.
        """
        deadline = anyio.current_effective_deadline()
        if deadline == -math.inf:
            await checkpoint_if_cancelled()  # in a cancelled scope no action starts
        display = new_display() if progress else None  # first of all: it may refuse
        interruption: BaseException | None = None
        try:
            async with opened(runtime) as where:
                root = self.plan(request, where, deadline=deadline)
                if display is None:
                    task = where.begin(root)
                    interruption = await task.wait()
                else:
                    root.wants_watch = True
                    with showing(display, where.watch_reports, root):
                        task = where.begin(root)
                        interruption = await task.wait()
                interruption = first_of(task.fatal, interruption)
        except BaseException:  # of the runtime's own block
            if interruption is not None and fatal_leaf(interruption) is not None:
                raise interruption from None  # came out of the run; nothing outranks it
            raise
        error = first_of(interruption, root.failure)
        if error is not None:
            root.release_error()
            try:
                raise error
            finally:
                del error, interruption  # breaks the traceback cycle
        return root.result()

    async def start(self, request: RunRequest, runtime: Runtime) -> RunHandle[S]:
        """Execute the requested run in a task that nobody awaits; return once the run has begun.

        Raises:
            Exception: What kept it from beginning.
        """
        # A run that outlives its caller has no deadline of the caller's.
        root = self.plan(request, runtime, deadline=math.inf)
        await checkpoint_if_cancelled()  # in a cancelled scope no action starts
        runtime.begin(root, is_detached=True)
        await root.wait_begun()
        return RunHandle(root)

    @ki_protected
    async def questions(self, run_id: str, runtime: Runtime | None) -> Sequence[Question]:
        """Read the open questions of a run from its store; see ``Application.questions``."""
        definition = self._definition
        path = RunPath(run_id=run_id, act=definition.name)
        async with opened(runtime) as where:
            store = self._store(where)
            execution = Execution(where.services, Hooks(), store)
            record = await execution.ask(store.load(run_id), f"run {run_id}")
            if record is not None and record.status == "succeeded":
                return []
            asked, played = await read_questions(execution, path, definition.graph)
            return list(unique(one for one in asked if one.id not in played.answers))

    def open(
        self, request: RunRequest, runtime: Runtime | None, *, buffer: int, stepwise: bool
    ) -> OpenRun[S]:
        """Return the requested run as a block that executes it."""
        plan = partial(self.plan, request)
        return OpenRun(request.path, opened(runtime), plan, buffer=buffer, stepwise=stepwise)


def opened(runtime: Runtime | None) -> AbstractAsyncContextManager[Runtime]:
    """Return a block in which there is an open runtime: the given one, or one for itself.

    Raises:
        BadUse: The given one is not open.
    """
    if runtime is None:
        return Runtime()
    runtime.check_open()
    return nullcontext(runtime)
