"""Applications: a graph and how to run it. Imports everything above; anyio.

Invariants:
- What can be checked without running is checked before the first action starts.
- A failing run raises what failed, unwrapped, in its caller's frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, final

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from ._action import Act
from ._errors import DefinitionError, MissingField, MissingInput
from ._execution import MAX_STEPS, Execution
from ._graph import Graph, as_graph
from ._hooks import Hook, Hooks
from ._ids import RunPath, new_run_id
from ._join import Ledger
from ._ports import Store
from ._run import Run, Setting
from ._runtime import Runtime
from ._state import State


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run came to."""

    run_id: str
    """The run's id."""
    state: State
    """Its final state."""
    _ledgers: Mapping[str, Ledger]

    def outcomes(self, step: str) -> Ledger:
        """Return how the children of the fan-out ``step`` ended, when it was last executed.

        Raises:
            KeyError: The run executed no fan-out of that name.
        """
        try:
            return self._ledgers[step]
        except KeyError:
            names = ", ".join(sorted(self._ledgers)) or "none"
            msg = f"run {self.run_id} executed no fan-out named {step!r} (it did: {names})"
            raise KeyError(msg) from None


@final
class Application:
    """A graph with its settings: built once, run as often as wanted.

    Args:
        graph: What a run walks: a graph, or a single action or fan-out.
        name: What the application is called; by default as its graph.
        hooks: Told of every run and all its descendants, in this order.
        max_steps: Steps that a run may take; each child counts for itself. One more, and it fails
            with ``TooManySteps``.

    Raises:
        DefinitionError: ``graph`` is no graph, a hook is no ``Hook``, or ``max_steps`` no number.

    Examples:
        >>> @action(reads=["name"], writes=["greeting"])
        ... async def greet(name: str) -> str:
        ...     return f"hello, {name}"
        >>> Application(greet).run_sync({"name": "shoal"}).state["greeting"]
        'hello, shoal'
    """

    def __init__(
        self,
        graph: Graph | Act,
        *,
        name: str | None = None,
        hooks: Iterable[Hook] = (),
        max_steps: int = MAX_STEPS,
    ) -> None:
        """Check and keep the definition; see the class."""
        self.graph: Graph = as_graph(graph, "Application")
        if name is not None and not isinstance(name, str):
            msg = f"Application(name=...) takes a string, not {name!r}"
            raise DefinitionError(msg)
        if not isinstance(max_steps, int) or isinstance(max_steps, bool) or max_steps < 1:
            msg = f"Application(max_steps=...) takes a number of steps, not {max_steps!r}"
            raise DefinitionError(msg)
        self.name: str = name if name is not None else self.graph.name
        self.max_steps: int = max_steps
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
            MissingField: A field must come from outside and isn't given; before any action starts.
            MissingInput: An action needs an input that isn't given; before any action starts.
            ExceptionGroup: Children of a fan-out failed.
            Exception: Whatever the failing action raised, with a note saying where.
        """
        data = _fields(state, "state")
        given = _fields(inputs, "inputs")
        if id is not None and not isinstance(id, str):
            msg = f"run(id=...) takes a string, not {id!r}"
            raise TypeError(msg)
        self._check_fields(data)
        self._check_inputs(given)
        await checkpoint_if_cancelled()  # in a cancelled scope no action starts
        path = RunPath(run_id=id if id is not None else new_run_id(), act=self.name)
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

    def _make_run(
        self,
        runtime: Runtime,
        data: Mapping[str, object],
        inputs: Mapping[str, object],
        path: RunPath,
    ) -> Run:
        execution = Execution(runtime.services, Hooks(self.hooks), max_steps=self.max_steps)
        setting = Setting(graph=self.graph, inputs=inputs, execution=execution, act=self.name)
        return Run(setting, data, path=path)

    def _check_fields(self, given: Mapping[str, object]) -> None:
        for field, who in self.graph.missing(given).items():
            msg = (
                f"application {self.name!r}: {who} reads field {field!r}, which the state does not "
                f"have (it has: {', '.join(sorted(given)) or 'none'}) and no earlier action "
                f"writes; pass it to run(), or write it in an earlier action"
            )
            raise MissingField(msg)

    def _check_inputs(self, given: Mapping[str, object]) -> None:
        missing = {
            name: need.by
            for name, need in self.graph.takes.items()
            if need.required and name not in given
        }
        if missing:
            wanted = ", ".join(f"{name!r} (action {by!r})" for name, by in missing.items())
            msg = (
                f"application {self.name!r} lacks the input {wanted}; give it to run(inputs=...), "
                f"or, if it is a field of the state, name it in the action's reads=[...]"
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


def _fields(given: object, parameter: str) -> dict[str, Any]:
    """Check what a user gave as ``state`` or ``inputs``."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        msg = (
            f"run() takes {parameter} as a mapping of names to values, not a {type(given).__name__}"
        )
        raise TypeError(msg)
    return dict(State(cast("Mapping[str, object]", given)))
