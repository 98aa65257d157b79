"""Applications: a graph and how to run it. Imports everything above; anyio.

Invariants:
- What can be checked without running is checked when the application is built, or else before the
  first action starts.
- A failing run raises what failed, unwrapped, in its caller's frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Generic, Literal, cast, final, overload

import anyio
from anyio import NoEventLoopError, get_cancelled_exc_class
from anyio.lowlevel import checkpoint_if_cancelled

from ._action import Act, field_names
from ._errors import (
    BadUse,
    DefinitionError,
    MissingField,
    MissingInput,
    RunCancelled,
    did_you_mean,
    kind_of,
)
from ._execution import MAX_DEPTH, MAX_LIVE, MAX_STEPS, Execution
from ._graph import Graph, as_graph
from ._hooks import Hook, Hooks
from ._ids import RunPath, new_run_id
from ._open import Gate, OpenRun, RunResult
from ._policy import Limits
from ._ports import Store
from ._run import Run, Setting
from ._runtime import Runtime
from ._state import S, State

BUFFER = 1000
"""Events of an opened run that may wait to be read."""


@final
class Application(Generic[S]):
    """A graph with its settings: built once, run as often as wanted.

    Args:
        graph: What a run walks: a graph, or a single action or fan-out.
        name: What the application is called; by default as its graph.
        state: What the state is made of: a model (a pydantic model, a dataclass or a TypedDict;
            needs ``shoal[pydantic]``), or the names of the fields that every run is given. Then
            the graph is checked against it here, and not only when it is run. With a model, every
            update is checked against the types of the fields it changes, and
            ``result.state.data`` is an instance of it.
        inputs: What the actions take besides fields: values, by name; or only the names of what
            every run is given. Then it is checked here that none is missing.
        hooks: Told of every run and all its descendants, in this order.
        limits: How many attempts of actions run at once, in all runs of a runtime together.
        max_steps: Steps that a run may take; each child counts for itself. One more, and it fails
            with ``TooManySteps``.
        max_depth: How deep runs may be nested. One deeper fails with ``DepthExceeded``.
        max_live: Children of one run, at all depths together, that are alive at once, besides one
            of each fan-out. A fan-out that is allowed more in flight, by its ``limits`` or by the
            default of 100, raises it for its run.

    Raises:
        DefinitionError: It can't work as written, and why.

    Examples:
        >>> @action(reads=["name"], writes=["greeting"])
        ... async def greet(name: str) -> str:
        ...     return f"hello, {name}"
        >>> Application(greet).run_sync({"name": "shoal"}).state["greeting"]
        'hello, shoal'

        With a model:

        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Greeting:
        ...     name: str
        ...     greeting: str = ""
        >>> result = Application(greet, state=Greeting).run_sync(Greeting("shoal"))
        >>> result.state.data.greeting
        'hello, shoal'
    """

    @overload
    def __init__(
        self: Application[dict[str, Any]],
        graph: Act,
        *,
        name: str | None = None,
        state: Collection[str] | None = None,
        inputs: Mapping[str, object] | Collection[str] | None = None,
        hooks: Iterable[Hook] = (),
        limits: Limits | None = None,
        max_steps: int = MAX_STEPS,
        max_depth: int = MAX_DEPTH,
        max_live: int = MAX_LIVE,
    ) -> None: ...

    @overload
    def __init__(
        self,
        graph: Act,
        *,
        name: str | None = None,
        state: type[S],
        inputs: Mapping[str, object] | Collection[str] | None = None,
        hooks: Iterable[Hook] = (),
        limits: Limits | None = None,
        max_steps: int = MAX_STEPS,
        max_depth: int = MAX_DEPTH,
        max_live: int = MAX_LIVE,
    ) -> None: ...

    def __init__(
        self,
        graph: Act,
        *,
        name: str | None = None,
        state: Any = None,
        inputs: Mapping[str, object] | Collection[str] | None = None,
        hooks: Iterable[Hook] = (),
        limits: Limits | None = None,
        max_steps: int = MAX_STEPS,
        max_depth: int = MAX_DEPTH,
        max_live: int = MAX_LIVE,
    ) -> None:
        """Check and keep the definition; see the class."""
        walked = as_graph(graph, "Application")
        if name is not None and (not isinstance(name, str) or not name):
            msg = f"Application(name=...) takes a name, not {name!r}"
            raise DefinitionError(msg)
        self.name: str = name if name is not None else walked.name
        if isinstance(state, type):
            if walked.schema is not None and walked.schema.model is not state:
                msg = (
                    f"application {self.name!r}: its graph has a model of the state already, "
                    f"{walked.schema.name}; leave out state={state.__name__}"
                )
                raise DefinitionError(msg)
            walked = walked.typed(state)
        self.graph: Graph = walked
        self.hooks: tuple[Hook, ...] = Hooks(hooks).hooks
        if limits is not None and not isinstance(limits, Limits):
            self._refuse(f"limits= takes Limits(n), not {limits!r}")
        self.limits: Limits | None = limits
        self.max_steps: int = self._count("max_steps", max_steps)
        self.max_depth: int = self._count("max_depth", max_depth)
        self.max_live: int = self._count("max_live", max_live)
        self.inputs: Mapping[str, object] = {}
        self._take_inputs(inputs)
        if state is not None and not isinstance(state, type):
            if not isinstance(state, Collection):
                self._refuse(
                    f"state= takes a model, which is a class, or a list of field names, "
                    f"not {kind_of(state)}"
                )
            missing = self._missing_field(field_names(cast("Collection[str]", state), "state"))
            if missing:
                self._refuse(missing)
        self._store: Store | None = None

    def _refuse(self, why: str) -> Any:
        msg = f"application {self.name!r}: {why}"
        raise DefinitionError(msg)

    def _count(self, parameter: str, value: object) -> int:
        if type(value) is not int or value < 1:
            self._refuse(f"{parameter}= takes a whole number of at least 1, not {value!r}")
        return cast("int", value)

    def _take_inputs(self, inputs: object) -> None:
        if inputs is None:
            return
        if isinstance(inputs, Mapping):
            self.inputs = dict(cast("Mapping[str, object]", inputs))
            lacking = ""  # others may come with the run
        else:
            inputs = field_names(cast("Collection[str]", inputs), "inputs")
            lacking = self._missing_inputs(inputs)
        unknown = self._unknown_input(cast("Collection[str]", inputs))
        if unknown:
            self._refuse(unknown)
        if lacking:
            self._refuse(f"lacks the input {lacking}; name it in inputs=[...], or bind it")

    # -- running --------------------------------------------------------------------------------

    async def run(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002 # the word users know
        inputs: Mapping[str, object] | None = None,
        runtime: Runtime | None = None,
    ) -> RunResult[S]:
        """Run the application to its end and return what it came to.

        The run lives in a task of its own. If the caller is cancelled, in whatever way, the run is
        cancelled, awaited to the end of its cleanup, and left consistent; then the cancellation
        goes on. Nothing that the run started is alive afterwards, however it ended.

        Args:
            state: The fields that the run starts with: a mapping, or an instance of the model.
            id: Names the run; by default a random one.
            inputs: What the actions take besides fields: clients, models, settings. Never saved.
            runtime: Where to run, an open one; by default one that this run has for itself.

        Raises:
            MissingField: A field must come from outside and isn't given; before any action starts.
            MissingInput: An action needs an input that isn't given; before any action starts.
            RunCancelled: The runtime's block was left by an exception, or cancelled.
            ExceptionGroup: Children of a fan-out failed.
            Exception: Whatever the failing action raised, with a note saying where.
        """
        data, given, path = self._check(state, id, inputs, runtime, "run")
        await checkpoint_if_cancelled()  # in a cancelled scope no action starts
        interruption: BaseException | None = None
        try:
            async with self._runtime(runtime) as opened:
                run = self._make_run(opened, data, given, path)
                root = opened.start(run)
                interruption = await root.wait()
                interruption = root.fatal or interruption
        except BaseException:
            if isinstance(interruption, KeyboardInterrupt | SystemExit):
                raise interruption from None  # came out of the run; nothing outranks it
            raise
        error = interruption or run.error
        if error is not None:
            run.forget()
            try:
                raise error
            finally:
                del error, interruption  # no cycle from the exception to this frame
        if run.status == "cancelled":
            msg = f"run {path.id} has no result, it was cancelled: {run.reason}"
            raise RunCancelled(msg)
        final = cast("State[S]", run.state)
        return RunResult(run_id=path.id, state=final, _ledgers=run.ledgers)

    def open(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002
        inputs: Mapping[str, object] | None = None,
        runtime: Runtime | None = None,
        buffer: int = BUFFER,
        stepwise: bool = False,
    ) -> OpenRun[S]:
        """Run the application while reading its events: ``async with app.open(...) as run``.

        Nothing starts until the block is entered. What the block can do, and what leaving it means,
        is said at ``OpenRun``.

        Args:
            state: The fields that the run starts with: a mapping, or an instance of the model.
            id: Names the run; by default a random one.
            inputs: What the actions take besides fields. Never saved.
            runtime: Where to run, an open one; by default one that this run has for itself.
            buffer: Events that may wait to be read before the run is held back or, where nobody
                reads, the oldest are dropped; at least 1.
            stepwise: Whether the run waits before each of its steps for ``step()``.

        Raises:
            MissingField: A field must come from outside and isn't given.
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
        data, given, path = self._check(state, id, inputs, runtime, "open")
        if type(buffer) is not int or buffer < 1:
            msg = f"open(buffer=...) takes a whole number of at least 1, not {buffer!r}"
            raise DefinitionError(msg)

        def make_run(opened: Runtime, stream: Hook, gate: Gate | None) -> Run:
            return self._make_run(opened, data, given, path, stream=stream, gate=gate)

        return OpenRun(path, self._runtime(runtime), make_run, buffer=buffer, stepwise=stepwise)

    def run_sync(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002
        inputs: Mapping[str, object] | None = None,
        backend: Literal["asyncio", "trio"] = "asyncio",
    ) -> RunResult[S]:
        """Run the application from synchronous code, in an event loop of its own; see ``run``.

        Args:
            state: The fields that the run starts with: a mapping, or an instance of the model.
            id: Names the run; by default a random one.
            inputs: What the actions take besides fields.
            backend: The event loop's kind.

        Raises:
            BadUse: An event loop runs already in this thread; everything else as ``run``.
        """
        if _is_in_a_loop():
            msg = (
                f"application {self.name!r}: run_sync() is called where an event loop is already "
                f"running, which it would block: await app.run(...) instead"
            )
            raise BadUse(msg)
        return anyio.run(partial(self.run, state, id=id, inputs=inputs), backend=backend)

    def _runtime(self, runtime: Runtime | None) -> AbstractAsyncContextManager[Runtime]:
        if runtime is None:
            return Runtime(store=self._store)
        runtime.check_open()
        return nullcontext(runtime)

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
        execution = Execution(
            runtime.services,
            Hooks(self.hooks if stream is None else (*self.hooks, stream)),
            max_steps=self.max_steps,
            max_depth=self.max_depth,
            max_live=self.max_live,
            deadline=anyio.current_effective_deadline(),
        )
        setting = Setting(
            graph=self.graph,
            inputs=inputs,
            execution=execution,
            act=self.name,
            gate=gate,
            scopes=runtime.scopes(self, self.limits),
        )
        return Run(setting, data, path=path)

    # -- checking -------------------------------------------------------------------------------

    def _check(
        self,
        state: object,
        id: str | None,  # noqa: A002
        inputs: Mapping[str, object] | None,
        runtime: Runtime | None,
        where: str,
    ) -> tuple[Mapping[str, Any], Mapping[str, Any], RunPath]:
        """Check what ``run`` or ``open`` was given; return fields, inputs, and who the run is."""
        schema = self.graph.schema
        if schema is not None:
            data = schema.initial({} if state is None else state)
        else:
            data = _fields(state, "state", where)
        given = _fields(inputs, "inputs", where)
        if runtime is not None and not isinstance(runtime, Runtime):
            msg = f"{where}(runtime=...) takes an open Runtime, not {runtime!r}"
            raise TypeError(msg)
        if id is not None and not isinstance(id, str):
            msg = f"{where}(id=...) takes a string, not {id!r}"
            raise TypeError(msg)
        missing = self._missing_field(data)
        if missing:
            msg = f"application {self.name!r}: {missing}"
            raise MissingField(msg)
        unknown = self._unknown_input(given)
        if unknown:
            msg = f"application {self.name!r}: {where}(inputs=...): {unknown}"
            raise DefinitionError(msg)
        given = {**({} if runtime is None else runtime.inputs), **self.inputs, **given}
        lacking = self._missing_inputs(given)
        if lacking:
            msg = (
                f"application {self.name!r} lacks the input {lacking}; give it to "
                f"{where}(inputs=...), or, if it is a field of the state, name it in the action's "
                f"reads=[...]"
            )
            raise MissingInput(msg)
        return data, given, RunPath(run_id=id if id is not None else new_run_id(), act=self.name)

    def _missing_field(self, fields: Collection[str]) -> str:
        """Say which field must come from outside and doesn't; nothing if none."""
        for field, who in self.graph.missing(fields).items():
            return (
                f"{who} reads field {field!r}, which the state does not "
                f"have (it has: {', '.join(sorted(fields)) or 'none'}) and no earlier action "
                f"writes; pass it to run(), or write it in an earlier action"
                f"{did_you_mean(field, self.graph.writes - {field})}"
            )
        return ""

    def _missing_inputs(self, given: Collection[str]) -> str:
        """Say which inputs are needed and not given; nothing if none."""
        return ", ".join(
            f"{name!r} (action {need.by!r})"
            for name, need in self.graph.takes.items()
            if need.required and name not in given
        )

    def _unknown_input(self, given: Collection[str]) -> str:
        """Say which input is given and never taken; nothing if none."""
        takes = self.graph.takes
        for name in () if self.graph.takes_more else given:
            if name not in takes:
                known = ", ".join(sorted(takes)) or "none"
                hint = "; an action names what its children take, where it starts them by itself"
                return (
                    f"no action takes an input {name!r} (they take: {known})"
                    f"{did_you_mean(name, takes) or hint}"
                )
        return ""

    def __repr__(self) -> str:
        return f"<Application {self.name}>"


def _is_in_a_loop() -> bool:
    try:
        get_cancelled_exc_class()
    except NoEventLoopError:
        return False
    return True


def _fields(given: object, parameter: str, where: str) -> dict[str, Any]:
    """Check what a user gave as ``state`` or ``inputs``."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        msg = (
            f"{where}() takes {parameter} as a mapping of names to values, "
            f"not {kind_of(given)}; to give an instance of a model, declare it: "
            f"Application(..., state=Model)"
        )
        raise TypeError(msg)
    return dict(State(cast("Mapping[str, object]", given)))
