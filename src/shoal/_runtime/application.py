"""Applications: a graph and how to run it. Imports everything above; anyio.

Invariants:
- What can be checked without running is checked when the application is built, or else before the
  first action starts.
- A failing run raises what failed, unwrapped, in its caller's frame.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast, final, overload

import anyio
from anyio import NoEventLoopError, get_cancelled_exc_class

from shoal._engine.execution import MAX_DEPTH, MAX_LIVE, MAX_STEPS, Execution
from shoal._engine.fanout.recorded import (
    read_questions,
    recorded_beginning,
    recorded_history,
    unknown_run,
)
from shoal._engine.fanout.takeup import has_folded, refuse_fork
from shoal._engine.questions import Answers
from shoal._errors.exceptions import BadUse, DefinitionError, RunClaimed, kind_of
from shoal._events.events import Question
from shoal._events.hooks import Hook, Hooks
from shoal._events.identity import RunPath
from shoal._graph.action import Act, field_names
from shoal._graph.graph import Graph, as_graph
from shoal._limits.limits import Limits
from shoal._state.secrets import boxed
from shoal._state.state import S
from shoal.stores._protocol import Beginning, RunRecord, Store, check_store

from .handle import BUFFER, RunHandle, check_buffer
from .inputs import fields_of
from .launch import Launcher
from .open_run import Gate, OpenRun
from .result import RunResult
from .root_run import Root
from .runtime import Runtime
from .start import Left, Start, only_secrets, refuse_missing


@final
class Application(Launcher[S]):
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
        secret: Fields of the initial state that are secret in every run, as if each state given
            said so by itself; see ``State``. What a run was started with is saved but for these:
            whoever resumes it gives them again. No action may write one, nor a fan-out run over it.
        version: Change it when runs that are under way can't go on with the new definition.
        store: Where runs are kept, so that they can go on after a crash; by default, where the
            runtime keeps them, or nowhere.
        hooks: Told of every run and all its descendants, in this order.
        limits: How many attempts of actions run at once, in all runs of a runtime together.
        max_steps: Steps that a run may take; each child counts for itself. One more, and it fails
            with ``TooManySteps``.
        max_depth: How deep runs may be nested. One deeper fails with ``DepthExceeded``.
        max_live: Children of one run, at all depths together, that are alive at once, besides one
            of each fan-out. A fan-out whose ``limits`` name a number of children in flight above
            that raises it for its run, and so does a race of more; the default of 100 doesn't.

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
        secret: Collection[str] = (),
        version: str = "1",
        store: Store | None = None,
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
        secret: Collection[str] = (),
        version: str = "1",
        store: Store | None = None,
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
        secret: Collection[str] = (),
        version: str = "1",
        store: Store | None = None,
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
        if not isinstance(version, str):
            self._refuse(f"version= takes a string, not {version!r}")
        if store is not None:
            check_store(store, f"application {self.name!r}: store=")
        self.version: str = version
        self.store: Store | None = store
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
        self.secret: frozenset[str] = frozenset(field_names(secret, "secret"))
        why = self.graph.exposing(self.secret) or self._unknown_secret()
        if why:
            self._refuse(f"secret=...: {why}")
        if state is not None and not isinstance(state, type):
            if not isinstance(state, Collection):
                self._refuse(
                    f"state= takes a model, which is a class, or a list of field names, "
                    f"not {kind_of(state)}"
                )
            _, missing = self._missing_field(field_names(cast("Collection[str]", state), "state"))
            if missing:
                self._refuse(missing)

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
        unknown = self.graph.unknown_input(cast("Collection[str]", inputs))
        if unknown:
            self._refuse(unknown)
        if lacking:
            self._refuse(f"lacks the input {lacking}; name it in inputs=[...], or bind it")

    # -- running --------------------------------------------------------------------------------

    async def run(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        runtime: Runtime | None = None,
    ) -> RunResult[S]:
        """Run the application to its end and return what it came to.

        The run lives in a task of its own. If the caller is cancelled, in whatever way, the run is
        cancelled, awaited until it has ended, and left consistent; then the cancellation
        goes on. Nothing that the run started is alive afterwards, however it ended.

        With a store, a run of an ``id`` that the store knows goes on where it stood: what is
        recorded as completed is not run again, whether the run failed, was cancelled, or its
        process was killed. One that has succeeded returns what it came to, and nothing is run.

        What is secret, in ``state`` or by ``Application(secret=)``, is saved nowhere: a run that
        goes on needs it again, be it the same or another. Then ``state`` may be that alone:
        ``run(State({"token": token}, secret={"token"}), id=...)``.

        A run that waits for a person (see ``Context.ask``) ends as well, for now: the result's
        ``status`` is ``"halted"``, and its ``questions`` are what is asked. Run again with
        ``answers``, it goes on; what has no answer yet stays halted. So does a run end that is to
        halt before or after some of its steps; run again, it goes on from there, also if it is to
        halt there as before. Only a run that has a store can be run again.

        Args:
            state: The fields that the run starts with: a mapping, or an instance of the model. May
                be left out where the store has the run, but for what is secret.
            id: Names the run; by default a random one.
            inputs: What the actions take besides fields: clients, models, settings. Never saved.
            answers: To questions that the run has asked before: by (run id, name), or by the name
                alone where one open question has it. They are saved together, then the run goes on.
            halt_before: Acts of the graph, or their names, before which the run is to halt...
            halt_after: ...and after which it is, unless nothing follows.
            runtime: Where to run, an open one; by default one that this run has for itself.

        Raises:
            MissingField: A field must come from outside and isn't given; before any action starts.
            MissingInput: An action needs an input that isn't given; before any action starts.
            MissingSecret: The run was started with secret fields that are not given again.
            SecretLeaked: Another field of ``state`` holds what a secret one has.
            RunConflict: The store has a run of that id which was started with something else.
            RunClaimed: Another execution of the run goes on.
            UnknownQuestion: An answer belongs to no open question, or to several; nothing has run.
            NotData: An answer can't be kept; nothing has run.
            NotDecodable: What the store has kept of the run can't be read any more: a type is gone.
            StoreFailed: The store could not keep a save, or say what it has kept.
            RunCancelled: The runtime's block was left by an exception, or cancelled.
            ExceptionGroup: Children of a fan-out failed.
            Exception: Whatever the failing action raised, with a note saying where.
        """
        first, given, path = self._check(state, id, inputs, runtime, "run")
        asked_for = self._check_halting(
            "run", id, runtime, answers=answers, halt_before=halt_before, halt_after=halt_after
        )
        return await self._run(first, given, path, runtime, **asked_for)

    async def questions(self, run_id: str, *, runtime: Runtime | None = None) -> Sequence[Question]:
        """Say what a run, and its descendants, have asked and nobody has answered: from its store.

        In the order of ``result.questions``, also while the run goes on elsewhere, or after its
        process has died. Nothing is run. So whoever shows questions, and answers them with
        ``run(id=run_id, answers=...)``, needn't be who has run it.

        Args:
            run_id: The run, which the store has.
            runtime: As for ``run``.

        Raises:
            UnknownRun: The store has no such run.
            StoreFailed: The store did not say.
            BadUse: There is no store.

        Examples:
            >>> import anyio
            >>> @action(writes=["name"])
            ... async def greet(context: Context) -> str:
            ...     return await context.ask("name", "who are you?")
            >>> async def main() -> None:
            ...     app = Application(greet, store=MemoryStore())
            ...     await app.run(id="visitor")
            ...     for one in await app.questions("visitor"):
            ...         print(one.address, one.question)
            >>> anyio.run(main)
            ('visitor', 'name') who are you?
        """
        self._require_store(run_id, runtime, "questions")
        path = RunPath(run_id=run_id, act=self.name)
        async with self._runtime(runtime) as opened:
            store = opened.store if self.store is None else self.store
            execution = Execution(opened.services, Hooks(), store)
            record = await execution.ask(store.load(run_id), f"run {run_id}")
            if record is not None and record.status == "succeeded":
                return []
            asked, played = await read_questions(execution, path, self.graph)
            return [one for one in asked if one.id not in played.answers]

    async def fork(
        self,
        run_id: str,
        *,
        update: Mapping[str, Any] | None = None,
        number: int | None = None,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        runtime: Runtime | None = None,
    ) -> RunResult[S]:
        """Start a new run from a state that another one has had, and run it to its end.

        It begins where that one stood then: after the step that it had completed last. A step under
        way begins anew. What it had collected with ``into=`` so far is in the state: under ``key=``
        those elements are skipped, also where an act is another one now. What it had folded with
        ``reduce=`` can't be folded again, so then the new run begins before that step. To begin
        before any step, give the number of the last update before it; a ``RunConflict`` names it.
        The other run is left as it is.

        Args:
            run_id: The run to start from. It may still go on.
            update: Fields to be changed first; and what is secret in the other run, again.
            number: The number of the update after which to start, 0 being before the first; by
                default the last one, or the last before a fan-out under way that has ``reduce=``.
            id: Names the new run; by default a random one.
            inputs: As for ``run``.
            runtime: As for ``run``.

        Raises:
            UnknownRun: The store has no such run, or it has no such update.
            BadUse: ``number`` is in the middle of a fan-out that has ``reduce=``.
            RunConflict: The graph does not have the step that the run had completed last.
            MissingSecret: The other run has secret fields, and ``update`` has not all of them.
            Exception: Everything that ``run`` raises.

        Examples:
            >>> import anyio
            >>> @action(reads=["n"], writes=["square"])
            ... async def square(n: int) -> int:
            ...     return n * n
            >>> async def main() -> int:
            ...     app = Application(square, store=MemoryStore())
            ...     await app.run({"n": 3}, id="three")
            ...     forked = await app.fork("three", number=0, update={"n": 4})
            ...     return forked.state["square"]
            >>> anyio.run(main)
            16
        """
        self._require_store(id, runtime, "fork")
        changed = fields_of(update, "update", "fork")
        self._refuse_in_id(id, changed)
        given, path = self._check_inputs(id, inputs, runtime, "fork")

        async def first(execution: Execution, _known: RunRecord | None) -> Start:
            """Make a beginning of what the other run has come to."""
            other = RunPath(run_id=run_id, act=self.name)
            begun = await recorded_beginning(execution, other)
            refuse_missing(run_id, begun.secret, changed)
            played = await recorded_history(execution, other, begun, upto=number)
            if number is None and has_folded(played):
                upto = played.began.number
                played = await recorded_history(execution, other, begun, upto=upto)
            refuse_fork(run_id, self.graph, played)
            secret = begun.secret | self.secret
            beginning = Beginning(
                application=self.name,
                version=self.version,
                first=self._checked(boxed({**played.data, **changed}, secret)),
                after=played.began.step,
                visits=played.began.visits,
                forked_from=(run_id, played.number),
            )
            return Start.of(beginning, secret)

        return await self._run(first, given, path, runtime)

    async def retry_failed(
        self,
        run_id: str,
        state: Mapping[str, Any] | None = None,
        *,
        inputs: Mapping[str, object] | None = None,
        runtime: Runtime | None = None,
    ) -> RunResult[S]:
        """Go back to where children of a run have failed, run them again, and go on from there.

        Of the steps that the run has completed although children had failed (collected, ignored or
        tolerated), the first is taken up again: those children run again, the others keep their
        outcomes. What came after it runs again too; there, children whose input is still the same
        keep what they have returned.

        It reaches the run's own fan-outs. A child that runs again goes on where it failed, however
        deep that was. What a child, or a graph as a node, has put up with below itself is its own
        affair: it is Done, so it is kept, and does not run again. Who has only lost a race has not
        failed either.

        Args:
            run_id: The run, which the store has.
            state: What is secret in it, again; nothing else.
            inputs: As for ``run``.
            runtime: As for ``run``.

        Raises:
            UnknownRun: The store has no such run.
            BadUse: No children of the run's own fan-outs have failed, ``reduce`` has taken their
                failures, or ``state`` has a field that isn't secret.
            Exception: Everything that ``run`` raises.
        """
        self._require_store(run_id, runtime, "retry_failed")
        secrets = fields_of(state, "state", "retry_failed")
        given, path = self._check_inputs(run_id, inputs, runtime, "retry_failed")

        async def first(execution: Execution, known: RunRecord | None) -> Start:
            """Leave it to the store."""
            if known is None:
                raise await unknown_run(execution, run_id)
            return self._same(known, only_secrets(secrets, known.beginning, "retry_failed"))

        return await self._run(first, given, path, runtime, retries_failed=True)

    async def recover(
        self,
        run_id: str,
        state: Mapping[str, Any] | None = None,
        *,
        inputs: Mapping[str, object] | None = None,
        runtime: Runtime | None = None,
    ) -> RunResult[S] | None:
        """Resume a run that an earlier execution has left without an end; see ``Runtime.recover``.

        Unlike ``run``, it does nothing where there is nothing to be recovered, and returns None:
        where the run goes on elsewhere, where it has ended, well or not, and where the store has no
        run of that id, for it may have been deleted since it was found. So a mistyped id gives
        None too; ``questions``, ``fork`` and ``retry_failed`` raise ``UnknownRun`` for it.

        Args:
            run_id: The run.
            state: What is secret in it, again; nothing else.
            inputs: As for ``run``.
            runtime: As for ``run``.

        Raises:
            BadUse: ``state`` has a field that isn't secret.
            Exception: Everything that ``run`` raises, but ``RunClaimed`` for the run itself.
        """
        self._require_store(run_id, runtime, "recover")
        secrets = fields_of(state, "state", "recover")
        given, path = self._check_inputs(run_id, inputs, runtime, "recover")
        left = Left(run_id, secrets, self._same)
        try:
            return await self._run(left.first, given, path, runtime)
        except RunClaimed:
            if left.is_ours:  # a store of its children's refuses them
                raise
            return None

    async def take_over(
        self,
        run_id: str,
        state: Mapping[str, object] | None = None,
        *,
        inputs: Mapping[str, object] | None = None,
        runtime: Runtime,
    ) -> RunHandle[S] | None:
        """Do as ``recover``, but return a handle once the run goes on; see ``Runtime.start``.

        Args:
            run_id: The run.
            state: As for ``recover``.
            inputs: As for ``run``.
            runtime: Where to run, an open one.

        Raises:
            Exception: As ``Runtime.start``, but ``RunClaimed`` for the run itself.
        """
        runtime.check_open()
        self._require_store(run_id, runtime, "take_over")
        secrets = fields_of(state, "state", "take_over")
        given, path = self._check_inputs(run_id, inputs, runtime, "take_over")
        left = Left(run_id, secrets, self._same)
        try:
            root = self._plan(runtime, left.first, given, path, deadline=math.inf)
            return await self._begin(root, runtime)
        except RunClaimed:
            if left.is_ours:
                raise
            return None

    async def start(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        runtime: Runtime,
    ) -> RunHandle[S]:
        """Have the application run in ``runtime``, and return once it does; see ``Runtime.start``.

        Args:
            state: As for ``run``.
            id: As for ``run``.
            inputs: As for ``run``.
            answers: As for ``run``.
            halt_before: As for ``run``...
            halt_after: ...and so is this.
            runtime: Where to run, an open one.

        Raises:
            Exception: As ``Runtime.start``.
        """
        runtime.check_open()
        first, given, path = self._check(state, id, inputs, runtime, "start")
        asked_for = self._check_halting(
            "start", id, runtime, answers=answers, halt_before=halt_before, halt_after=halt_after
        )
        root = self._plan(runtime, first, given, path, deadline=math.inf, **asked_for)
        return await self._begin(root, runtime)

    def open(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        runtime: Runtime | None = None,
        buffer: int = BUFFER,
        stepwise: bool = False,
    ) -> OpenRun[S]:
        """Run the application while reading its events: ``async with app.open(...) as run``.

        Nothing starts until the block is entered. What the block can do, and what leaving it means,
        is said at ``OpenRun``.

        Args:
            state: The fields that the run starts with: a mapping, or an instance of the model. May
                be left out where the store has the run.
            id: Names the run, which goes on if the store has it; by default a random one.
            inputs: What the actions take besides fields. Never saved.
            answers: As for ``run``.
            halt_before: As for ``run``...
            halt_after: ...and so is this.
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
        first, given, path = self._check(state, id, inputs, runtime, "open")
        asked_for = self._check_halting(
            "open", id, runtime, answers=answers, halt_before=halt_before, halt_after=halt_after
        )
        check_buffer(buffer, "open")

        def plan(opened: Runtime, gate: Gate | None) -> Root:
            return self._plan(opened, first, given, path, gate=gate, **asked_for)

        return OpenRun(path, self._runtime(runtime), plan, buffer=buffer, stepwise=stepwise)

    def run_sync(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        backend: Literal["asyncio", "trio"] = "asyncio",
    ) -> RunResult[S]:
        """Run the application from synchronous code, in an event loop of its own; see ``run``.

        Args:
            state: The fields that the run starts with: a mapping, or an instance of the model.
            id: Names the run; by default a random one.
            inputs: What the actions take besides fields.
            answers: As for ``run``.
            halt_before: As for ``run``...
            halt_after: ...and so is this.
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
        run = partial(
            self.run,
            state,
            id=id,
            inputs=inputs,
            answers=answers,
            halt_before=halt_before,
            halt_after=halt_after,
        )
        return anyio.run(run, backend=backend)

    def __repr__(self) -> str:
        return f"<Application {self.name}>"


def _is_in_a_loop() -> bool:
    try:
        get_cancelled_exc_class()
    except NoEventLoopError:
        return False
    return True
