"""How an application has its root runs planned, begun, and awaited. Imports handles; anyio.

Invariants:
- A failing run raises what failed, unwrapped, in its caller's frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Generic

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import fatal_leaf
from shoal._engine.config import Halts, Setting
from shoal._engine.execution import Execution
from shoal._engine.questions import Answers
from shoal._engine.run import Run
from shoal._errors.exceptions import RunCancelled
from shoal._errors.inspection import first_of
from shoal._events.hooks import Hook, Hooks
from shoal._events.identity import RunPath
from shoal._limits.limits import Limits
from shoal._state.state import S

from .handle import RunHandle, wait_begun
from .inputs import Given
from .open_run import Gate
from .result import RunResult, result_of
from .root_run import Root
from .runtime import Runtime
from .start import First, Start, refuse_exposing, refuse_in_id


class Launcher(Given, Generic[S]):
    """The part of an application that has its runs lived."""

    hooks: tuple[Hook, ...]
    limits: Limits | None
    max_steps: int
    max_depth: int
    max_live: int

    def _runtime(self, runtime: Runtime | None) -> AbstractAsyncContextManager[Runtime]:
        if runtime is None:
            return Runtime()
        runtime.check_open()
        return nullcontext(runtime)

    def _plan(
        self,
        runtime: Runtime,
        first: Start | First,
        inputs: Mapping[str, object],
        path: RunPath,
        *,
        gate: Gate | None = None,
        retries_failed: bool = False,
        answers: Answers | None = None,
        halts: Halts | None = None,
        deadline: float | None = None,
    ) -> Root:
        """Plan an execution of the run ``path`` in ``runtime``."""
        execution = Execution(
            runtime.services,
            Hooks(self.hooks),
            runtime.store if self.store is None else self.store,
            max_steps=self.max_steps,
            max_depth=self.max_depth,
            max_live=self.max_live,
            deadline=anyio.current_effective_deadline() if deadline is None else deadline,
        )
        setting = Setting(
            graph=self.graph,
            inputs=inputs,
            execution=execution,
            act=self.name,
            gate=gate,
            halts=halts,
            scopes=runtime.scopes(self, self.limits),
        )

        def make_run(fields: Mapping[str, object]) -> Run:
            execution.secrets.learn(fields)
            refuse_in_id(
                f"application {self.name!r}", path.id, fields
            )  # also what a store knows of
            refuse_exposing(f"application {self.name!r}", self.graph, fields, execution.secrets)
            return Run(setting, fields, path=path)

        return Root(
            path, execution, make_run, first, retries_failed=retries_failed, answers=answers
        )

    async def _run(
        self,
        first: Start | First,
        inputs: Mapping[str, Any],
        path: RunPath,
        runtime: Runtime | None,
        *,
        retries_failed: bool = False,
        answers: Answers | None = None,
        halts: Halts | None = None,
    ) -> RunResult[S]:
        """Live a root run in a task of its own, and bring back how it ended."""
        await checkpoint_if_cancelled()  # in a cancelled scope no action starts
        interruption: BaseException | None = None
        try:
            async with self._runtime(runtime) as opened:
                root = self._plan(
                    opened,
                    first,
                    inputs,
                    path,
                    retries_failed=retries_failed,
                    answers=answers,
                    halts=halts,
                )
                hosted = opened.begin(root)
                interruption = await hosted.wait()
                interruption = first_of(hosted.fatal, interruption)
        except BaseException:
            if interruption is not None and fatal_leaf(interruption) is not None:
                raise interruption from None  # came out of the run; nothing outranks it
            raise
        run = root.run
        error = first_of(interruption, root.error, None if run is None else run.error)
        if error is not None:
            root.forget()
            try:
                raise error
            finally:
                del error, interruption  # no cycle from the exception to this frame
        if run is None or run.status == "cancelled":
            reason = root.reason if run is None else run.reason
            msg = f"run {path.id} has no result, it was cancelled: {reason}"
            raise RunCancelled(msg)
        return result_of(run)

    async def _begin(self, root: Root, runtime: Runtime) -> RunHandle[S]:
        """Have a root run live in a task of its own, which nobody awaits."""
        await checkpoint_if_cancelled()  # in a cancelled scope no action starts
        runtime.begin(root, is_detached=True)
        await wait_begun(root)
        return RunHandle(root)
