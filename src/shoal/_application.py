"""Applications: a graph and how to run it. Imports everything above; anyio.

Invariants:
- What can be checked without running is checked before the first action starts.
- A failing run raises what failed, unwrapped, in its caller's frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, cast, final

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from ._action import Act
from ._errors import DefinitionError, MissingInput
from ._execution import Execution
from ._graph import Graph, as_graph
from ._hooks import Hook, Hooks
from ._ids import RunPath, new_run_id
from ._open import Gate, OpenRun, RunResult
from ._ports import Store
from ._run import Run, Setting
from ._runtime import Runtime
from ._state import State

BUFFER = 1000
"""Events of an opened run that may wait to be read."""


@final
class Application:
    """A graph with its settings: built once, run as often as wanted.

    Args:
        graph: What a run walks: a graph, or a single action or fan-out.
        name: What the application is called; by default as its graph.
        hooks: Told of every run and all its descendants, in this order.

    Raises:
        DefinitionError: ``graph`` is no graph, or a hook is no ``Hook``.

    Examples:
        >>> @action(reads=["name"], writes=["greeting"])
        ... async def greet(name: str) -> str:
        ...     return f"hello, {name}"
        >>> Application(greet).run_sync({"name": "shoal"}).state["greeting"]
        'hello, shoal'
    """

    def __init__(
        self, graph: Graph | Act, *, name: str | None = None, hooks: Iterable[Hook] = ()
    ) -> None:
        """Check and keep the definition; see the class."""
        self.graph: Graph = as_graph(graph, "Application")
        if name is not None and not isinstance(name, str):
            msg = f"Application(name=...) takes a string, not {name!r}"
            raise DefinitionError(msg)
        self.name: str = name if name is not None else self.graph.name
        self.hooks: tuple[Hook, ...] = Hooks(hooks).hooks
        self._store: Store | None = None

    async def run(
        self,
        state: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002 # the word users know
        inputs: Mapping[str, object] | None = None,
    ) -> RunResult:
        """Run the application to its end and return what it came to.

        The run lives in a task of its own. If the caller is cancelled, in whatever way, the run is
        cancelled, awaited to the end of its cleanup, and left consistent; then the cancellation
        goes on. Nothing that the run started is alive afterwards, however it ended.

        Args:
            state: The fields that the run starts with.
            id: Names the run; by default a random one.
            inputs: What the actions take besides fields: clients, models, settings. Never saved.

        Raises:
            MissingInput: An action needs an input that isn't given; before any action starts.
            ExceptionGroup: Children of a fan-out failed.
            Exception: Whatever the failing action raised, with a note saying where.
        """
        data, given, path = self._check(state, id, inputs, "run")
        await checkpoint_if_cancelled()  # in a cancelled scope no action starts
        interruption: BaseException | None = None
        try:
            async with Runtime(store=self._store) as runtime:
                run = self._make_run(runtime, data, given, path)
                interruption = await runtime.complete(run)
        except BaseException:
            if isinstance(interruption, KeyboardInterrupt | SystemExit):
                raise interruption from None  # came out of the run; nothing outranks it
            raise
        error = interruption or run.error
        if error is not None:
            run.error = None
            try:
                raise error
            finally:
                del error, interruption  # no cycle from the exception to this frame
        return RunResult(run_id=path.id, state=run.state, _ledgers=run.ledgers)

    def open(
        self,
        state: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002
        inputs: Mapping[str, object] | None = None,
        buffer: int = BUFFER,
        stepwise: bool = False,
    ) -> OpenRun:
        """Run the application while reading its events: ``async with app.open(...) as run``.

        Nothing starts until the block is entered. What the block can do, and what leaving it means,
        is said at ``OpenRun``.

        Args:
            state: The fields that the run starts with.
            id: Names the run; by default a random one.
            inputs: What the actions take besides fields. Never saved.
            buffer: Events that may wait to be read before the run is held back or, where nobody
                reads, the oldest are dropped; at least 1.
            stepwise: Whether the run waits before each of its steps for ``step()``.

        Raises:
            MissingInput: An action needs an input that isn't given.
            DefinitionError: ``buffer`` is not a whole number of at least 1.

        Examples:
            >>> @action(reads=["n"], writes=["n"])
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> @action(reads=["n"], writes=["text"])
            ... async def show(n: int) -> str:
            ...     return f"it is {n}"
            >>> app = Application(Graph.chain(double, show))
            >>> async def main() -> None:
            ...     async with app.open({"n": 2}, stepwise=True) as run:
            ...         while (step := await run.step()) is not None:
            ...             print(step, run.state.to_plain())
            >>> anyio.run(main)
            double {'n': 4}
            show {'n': 4, 'text': 'it is 4'}
        """
        data, given, path = self._check(state, id, inputs, "open")
        if type(buffer) is not int or buffer < 1:
            msg = f"open(buffer=...) takes a whole number of at least 1, not {buffer!r}"
            raise DefinitionError(msg)

        def make_run(runtime: Runtime, stream: Hook, gate: Gate | None) -> Run:
            return self._make_run(runtime, data, given, path, stream=stream, gate=gate)

        runtime = Runtime(store=self._store)
        return OpenRun(path, runtime, make_run, buffer=buffer, stepwise=stepwise)

    def _make_run(
        self,
        runtime: Runtime,
        data: Mapping[str, object],
        inputs: Mapping[str, object],
        path: RunPath,
        *,
        stream: Hook | None = None,
        gate: Gate | None = None,
    ) -> Run:
        hooks = self.hooks if stream is None else (*self.hooks, stream)
        execution = Execution(runtime.services, Hooks(hooks))
        setting = Setting(
            graph=self.graph, inputs=inputs, execution=execution, act=self.name, gate=gate
        )
        return Run(setting, data, path=path)

    def _check(
        self,
        state: Mapping[str, Any] | None,
        id: str | None,  # noqa: A002
        inputs: Mapping[str, object] | None,
        where: str,
    ) -> tuple[dict[str, Any], dict[str, Any], RunPath]:
        """Check what ``run`` or ``open`` was given; return fields, inputs, and who the run is."""
        data = _fields(state, "state", where)
        given = _fields(inputs, "inputs", where)
        if id is not None and not isinstance(id, str):
            msg = f"{where}(id=...) takes a string, not {id!r}"
            raise TypeError(msg)
        self._check_inputs(given, where)
        return data, given, RunPath(run_id=id if id is not None else new_run_id(), act=self.name)

    def _check_inputs(self, given: Mapping[str, object], where: str) -> None:
        missing = {
            name: needed_by
            for name, needed_by in self.graph.required_inputs.items()
            if name not in given
        }
        if missing:
            wanted = ", ".join(f"{name!r} (action {by!r})" for name, by in missing.items())
            msg = (
                f"application {self.name!r} lacks the input {wanted}; give it to "
                f"{where}(inputs=...), or, if it is a field of the state, name it in the action's "
                f"reads=[...]"
            )
            raise MissingInput(msg)

    def run_sync(
        self,
        state: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002
        inputs: Mapping[str, object] | None = None,
        backend: Literal["asyncio", "trio"] = "asyncio",
    ) -> RunResult:
        """Run the application from synchronous code, in an event loop of its own; see ``run``.

        Args:
            state: The fields that the run starts with.
            id: Names the run; by default a random one.
            inputs: What the actions take besides fields.
            backend: The event loop's kind.
        """
        return anyio.run(partial(self.run, state, id=id, inputs=inputs), backend=backend)


def _fields(given: object, parameter: str, where: str) -> dict[str, Any]:
    """Check what a user gave as ``state`` or ``inputs``."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        msg = (
            f"{where}() takes {parameter} as a mapping of names to values, "
            f"not a {type(given).__name__}"
        )
        raise TypeError(msg)
    return dict(State(cast("Mapping[str, object]", given)))
