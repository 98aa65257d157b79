"""Applications: a graph, and the methods that run it.

Invariants:
- Everything that can be checked without running is checked when the application is built; the rest
  of a run's start before its first action.
- A failing run raises what failed, unwrapped, in its caller's frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Literal, final, overload

import anyio

from shoal._engine.execution import MAX_DEPTH, MAX_LIVE, MAX_STEPS
from shoal._errors.misplaced import says_where
from shoal._errors.tracebacks import frames_hidden
from shoal._events.events import Question
from shoal._events.hooks import Hook
from shoal._graph.act import Act
from shoal._graph.graph import Graph
from shoal._graph.picture import drawing_of
from shoal._limits.flows import Priority
from shoal._limits.limits import Limits
from shoal._state.state import S
from shoal.executors._named import ExecutorName
from shoal.executors._port import Executor
from shoal.stores._protocol import Store

from .answers import Answers
from .definition import AppDefinition, define
from .handle import BUFFER, RunHandle, check_buffer
from .inputs import Asked, Call, StartCheck, refuse_in_a_loop
from .launch import Launcher
from .open_run import OpenRun
from .reopening import Reopening
from .result import RunResult
from .runtime import Runtime


@says_where
@final
class Application(Generic[S]):
    """A graph with its settings: built once, run as often as wanted.

    Args:
        graph: What a run walks: a graph, or a single action or fan-out.
        name: The application's name; by default that of its graph.
        state: The shape of the state: a model (a pydantic model, a dataclass or a TypedDict; needs
            ``shoal[pydantic]``), or the names of the fields that every run is given. The graph is
            then checked against it here, and not only when it is run. With a model, every update is
            checked against the types of the fields it changes, and ``result.state.data`` is an
            instance of the model.
        inputs: What the actions take besides fields: values, by name; or only the names of the
            inputs that every run is given, to check here that none is missing.
        secret: Fields of the initial state that are secret in every run, as if each given state
            declared them; see ``State``. Secret fields are not saved with a run's start, so to
            resume the run they are given again. No action may write one, and no fan-out may run
            over one.
        version: Change it when runs that are under way can't go on with the new definition.
        store: Where runs are saved, so that they can go on after a crash; by default, in the
            runtime's store, or nowhere.
        hooks: Receive the events of every run and all its descendants, in this order.
        limits: How many attempts of actions run at once, in all runs of a runtime together.
        max_steps: Steps that a run may take; each child counts for itself. A run that would take
            one more fails with ``TooManySteps``.
        max_depth: How deep runs may be nested. A deeper run fails with ``DepthExceeded``.
        max_live: Children of one run, at all depths together, that are alive at once, besides one
            of each fan-out. A fan-out whose ``limits`` allow more children in flight raises the
            number for its run, and so does a race of more contestants; the default of 100 children
            in flight doesn't.
        watch: Whether to sample what its runs do, and to report that; see ``Runtime(watch=)``.
        executor: Where actions are called that say nothing of it, and around which no fan-out does:
            ``"loop"``, ``"threads"``, ``"processes"``, ``"interpreters"``, or an ``Executor`` of
            ``shoal.executors``. It goes before ``Runtime(executor=)``.
        priority: How urgent new runs are that don't say so themselves; None: like the run whose
            action starts them, if one does, else ``"normal"``. While requests wait at any limit,
            ``"interactive"`` runs have eight turns for one of ``"normal"`` runs, and these eight
            for one of ``"batch"`` runs, however many runs of each class there are. So a batch run
            yields, and never starves. An attempt that runs is not interrupted.

    Raises:
        DefinitionError: The application can't work as written; the message says why.

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
        watch: bool | None = None,
        executor: Executor | ExecutorName | None = None,
        priority: Priority | None = None,
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
        watch: bool | None = None,
        executor: Executor | ExecutorName | None = None,
        priority: Priority | None = None,
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
        watch: bool | None = None,
        executor: Executor | ExecutorName | None = None,
        priority: Priority | None = None,
    ) -> None:
        """Check the definition; see the class."""
        definition = define(
            graph,
            name=name,
            state=state,
            inputs=inputs,
            secret=secret,
            version=version,
            store=store,
            hooks=hooks,
            limits=limits,
            max_steps=max_steps,
            max_depth=max_depth,
            max_live=max_live,
            watch=watch,
            executor=executor,
            priority=priority,
        )
        # Both replaced by `_define` alone.
        self._definition = definition
        self._check = StartCheck(definition)
        if limits is not None:
            limits.stand_on(self)

    # -- what it is -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What the application is called."""
        return self._definition.name

    @property
    def version(self) -> str:
        """The version of its definition."""
        return self._definition.version

    @property
    def graph(self) -> Graph:
        """What a run walks."""
        return self._definition.graph

    def _repr_svg_(self) -> str:  # pyright: ignore[reportUnusedFunction] # notebooks call it
        """Return the drawing of its graph, for notebooks."""
        return drawing_of(self.graph)

    @property
    def store(self) -> Store | None:
        """Where runs are saved; None: in the runtime's store. Setting it affects later runs."""
        return self._definition.store

    @store.setter
    def store(self, store: Store | None) -> None:
        self._define(replace(self._definition, store=store))

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """What receives the events of every run. Setting it affects later runs."""
        return self._definition.hooks

    @hooks.setter
    def hooks(self, hooks: tuple[Hook, ...]) -> None:
        self._define(replace(self._definition, hooks=hooks))

    @property
    def inputs(self) -> Mapping[str, object]:
        """The inputs that it binds."""
        return self._definition.inputs

    @property
    def secret(self) -> frozenset[str]:
        """The fields of the initial state that are secret in every run."""
        return self._definition.secret

    @property
    def limits(self) -> Limits | None:
        """How many attempts of actions run at once, in all runs of a runtime together."""
        return self._definition.limits

    @property
    def max_steps(self) -> int:
        """Steps that a run may take."""
        return self._definition.max_steps

    @property
    def max_depth(self) -> int:
        """How deep runs may be nested."""
        return self._definition.max_depth

    @property
    def max_live(self) -> int:
        """Children of one run that are alive at once."""
        return self._definition.max_live

    def _define(self, definition: AppDefinition) -> None:
        self._definition = definition
        self._check = StartCheck(definition)

    @property
    def _launcher(self) -> Launcher[S]:
        # Made for each call. A launcher that was kept would refer back here, and a runtime would
        # then keep what it counts for an application until the garbage collector has found it.
        return Launcher(self._definition, self)

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
        priority: Priority | None = None,
        owner: str | None = None,
        runtime: Runtime | None = None,
        progress: bool = False,
    ) -> RunResult[S]:
        """Run the application to its end and return the result.

        The run has a task of its own. If the caller is cancelled, in whatever way, the run is
        cancelled, awaited until it has ended, and left consistent; then the cancellation goes on.
        Nothing that the run started is alive afterwards, however it ended.

        If the store has a run of that ``id``, the run goes on where it stood: steps and children
        that are recorded as completed don't run again, whether the run failed, was cancelled, or
        its process was killed. For a run that has succeeded, nothing is executed and its result is
        returned.

        Secret fields, declared in ``state`` or by ``Application(secret=)``, are not saved, so a run
        that goes on needs them again: ``run(State({"token": token}, secret={"token"}), id=...)``.

        A run that waits for a person (see ``Context.ask``) ends for now: the result's ``status`` is
        ``"halted"``, and ``questions`` has the open questions. Run again with ``answers``, it goes
        on; what has no answer yet stays halted. A run also ends for now before or after the steps
        that ``halt_before`` and ``halt_after`` name; run again, it goes on from there, even with
        the same arguments. Only a run with a store can be run again.

        Args:
            state: The fields that the run starts with: a mapping, or an instance of the model. May
                be left out if the store has the run, except for secret fields.
            id: Names the run, and finds it again in the store; by default a random one. Without a
                store it is only a name, for events and errors: nothing is kept to go on with.
            inputs: What the actions take besides fields: clients, models, settings. Never saved.
            answers: Answers to questions that the run has asked before: by (run id, name), or by
                the name alone if one open question has it. They are saved together, then the run
                goes on.
            halt_before: Acts of the graph, or their names, before which the run halts.
            halt_after: Acts of the graph, or their names, after which the run halts if one follows.
            priority: How urgent it is: ``"interactive"``, ``"normal"`` or ``"batch"``. It is saved
                with the run's start, so the run has it again when it is resumed, in whatever
                process. A run that goes on is as urgent as this says for this one execution. None:
                as saved; for a new run, as the application says.
            owner: Whose run it is, saved with its start: a name by which a service lists and
                authorises runs. None: that of the run whose action starts this one, if one does.
            runtime: Where to run, an open one; by default one that this run has for itself.
            progress: Whether to show the progress on stderr: as bars on a terminal and in a
                notebook, else as a line every few seconds. Needs ``pip install shoal[progress]``.

        Raises:
            MissingField: A field must come from outside and isn't given; before any action starts.
            MissingInput: An action needs an input that isn't given; before any action starts.
            NotSendable: A function or an input can't be sent to the executor of an action; before
                any action starts, if the action is known by then.
            MissingSecret: The run was started with secret fields that are not given again.
            SecretLeaked: Another field of ``state`` holds the text of a secret one.
            RunConflict: The store has a run of that id which was started with something else.
            RunClaimed: Another execution of the run goes on.
            UnknownQuestion: An answer belongs to no open question, or to several; nothing has run.
            NotData: An answer can't be saved; nothing has run.
            NotDecodable: The run's record in the store can't be read any more: a type is gone.
            StoreFailed: The store could not save, or could not be read.
            RunCancelled: The runtime's block was left by an exception, or cancelled.
            ExceptionGroup: Children of a fan-out failed.
            Exception: Whatever the failing action raised, with a note saying where.
        """
        with frames_hidden:
            asked = Asked(answers, halt_before, halt_after, priority, owner)
            call = Call("run", id, runtime)
            request = self._check.run_request(call, state, inputs, asked)
            del asked, call  # this frame lives as long as the run
            return await self._launcher.run(request, runtime, progress=progress)

    async def questions(self, run_id: str, *, runtime: Runtime | None = None) -> Sequence[Question]:
        """Read the open questions of a run and its descendants from its store.

        In the order of ``result.questions``, also while the run goes on elsewhere, or after its
        process has died. Nothing is executed, so another program than the one that has run it may
        show the questions, and answer them with ``run(id=run_id, answers=...)``.

        Args:
            run_id: The run, which the store has.
            runtime: As for ``run``.

        Raises:
            UnknownRun: The store has no such run.
            StoreFailed: The store could not be read.
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
        self._check.require_store(Call("questions", run_id, runtime))
        return await self._launcher.questions(run_id, runtime)

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
        """Start a new run from a state that another run once had, and run it to its end.

        The new run begins where the other stood then: after the step that it had completed last. A
        step under way begins anew. What that step had collected with ``into=`` is in the state, and
        with ``key=`` those elements are skipped, even if an act is another one now. What it had
        folded with ``reduce=`` can't be folded again, so then the new run begins before that step.
        To begin before another step, give the number of the last update before it; a
        ``RunConflict`` names it. The other run is left as it is.

        Args:
            run_id: The run to start from. It may still go on.
            update: Fields to change first; and the secret fields of the other run, again.
            number: The number of the update after which to start, 0 being before the first; by
                default the last one, or the last before a fan-out under way that has ``reduce=``.
            id: Names the new run; by default a random one.
            inputs: As for ``run``.
            runtime: As for ``run``.

        Raises:
            UnknownRun: The store has no such run, or it has no such update.
            BadUse: ``number`` is in the middle of a fan-out that has ``reduce=``.
            RunConflict: The graph does not have the step that the run had completed last.
            MissingSecret: The other run has secret fields, and ``update`` lacks some of them.
            Exception: Everything that ``run`` raises.
        """
        with frames_hidden:
            call = Call("fork", id, runtime)
            request = self._check.fork_request(call, run_id, update, inputs, number)
            return await self._launcher.run(request, runtime)

    async def retry_failed(
        self,
        run_id: str,
        state: Mapping[str, Any] | None = None,
        *,
        inputs: Mapping[str, object] | None = None,
        runtime: Runtime | None = None,
    ) -> RunResult[S]:
        """Go back to where children of a run have failed, run them again, and go on from there.

        The run goes back to the first step that it has completed although children had failed
        (collected, ignored or tolerated): those children run again, the others keep their outcomes.
        Later steps run again too; there, children whose input is still the same keep what they have
        returned.

        This reaches the run's own fan-outs. A child that runs again goes on where it failed,
        however deep that was. A child, or a graph as a node, that tolerated failures below itself
        is Done and does not, nor does a contestant that has only lost its race.

        Args:
            run_id: The run, which the store has.
            state: The run's secret fields, again; nothing else.
            inputs: As for ``run``.
            runtime: As for ``run``.

        Raises:
            UnknownRun: The store has no such run.
            BadUse: No children of the run's own fan-outs have failed, ``reduce`` has taken their
                failures, or ``state`` has a field that isn't secret.
            Exception: Everything that ``run`` raises.
        """
        with frames_hidden:
            call = Call("retry_failed", run_id, runtime)
            request = self._check.reopen_request(call, run_id, state, inputs, Reopening())
            return await self._launcher.run(request, runtime)

    async def reopen(
        self,
        run_id: str,
        state: Mapping[str, Any] | None = None,
        *,
        step: Act | str | None = None,
        inputs: Mapping[str, object] | None = None,
        runtime: Runtime | None = None,
    ) -> RunResult[S]:
        """Go back to a completed fan-out that may start more now, and go on from there.

        As ``retry_failed``, and also for elements that were left out because ``at_most`` children
        had started: if the application has a higher ``at_most`` now, they start.

        Args:
            run_id: The run, which the store has.
            state: The run's secret fields, again; nothing else.
            step: The fan-out, or its name; by default the first one that has failures, or an
                ``at_most`` with room.
            inputs: As for ``run``.
            runtime: As for ``run``.

        Raises:
            UnknownRun: The store has no such run.
            BadUse: There is nothing to start; or ``reduce`` has taken the failures, or ``state``
                has a field that isn't secret.
            Exception: Everything that ``run`` raises.
        """
        with frames_hidden:
            call = Call("reopen", run_id, runtime)
            reopening = Reopening(step.name if isinstance(step, Act) else step, more=True)
            request = self._check.reopen_request(call, run_id, state, inputs, reopening)
            return await self._launcher.run(request, runtime)

    async def recover(
        self,
        run_id: str,
        state: Mapping[str, Any] | None = None,
        *,
        inputs: Mapping[str, object] | None = None,
        priority: Priority | None = None,
        runtime: Runtime | None = None,
    ) -> RunResult[S] | None:
        """Resume a run that an earlier execution has left without an end; see ``Runtime.recover``.

        Unlike ``run``, it does nothing and returns None if there is nothing to recover: if the run
        goes on elsewhere, if it has ended, well or not, or if the store has no run of that id,
        which may have been deleted since it was found. So a mistyped id returns None too;
        ``questions``, ``fork`` and ``retry_failed`` raise ``UnknownRun`` for it.

        Args:
            run_id: The run.
            state: The run's secret fields, again; nothing else.
            inputs: As for ``run``.
            priority: As for ``run``.
            runtime: As for ``run``.

        Raises:
            BadUse: ``state`` has a field that isn't secret.
            Exception: Everything that ``run`` raises, but not ``RunClaimed`` for the run itself.
        """
        with frames_hidden:
            call = Call("recover", run_id, runtime)
            orphan, request = self._check.orphan_request(call, run_id, state, inputs, priority)
            return await orphan.unless_taken(self._launcher.run(request, runtime))

    async def take_over(
        self,
        run_id: str,
        state: Mapping[str, object] | None = None,
        *,
        inputs: Mapping[str, object] | None = None,
        priority: Priority | None = None,
        runtime: Runtime,
    ) -> RunHandle[S] | None:
        """Resume a run as ``recover``, but return a handle once it goes on; see ``Runtime.start``.

        Args:
            run_id: The run.
            state: As for ``recover``.
            inputs: As for ``run``.
            priority: As for ``run``.
            runtime: Where to run, an open one.

        Raises:
            Exception: As ``Runtime.start``, but not ``RunClaimed`` for the run itself.
        """
        with frames_hidden:
            runtime.check_open()
            call = Call("take_over", run_id, runtime)
            orphan, request = self._check.orphan_request(call, run_id, state, inputs, priority)
            return await orphan.unless_taken(self._launcher.start(request, runtime))

    async def start(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        priority: Priority | None = None,
        owner: str | None = None,
        runtime: Runtime,
    ) -> RunHandle[S]:
        """Start a run in ``runtime``, and return once it has begun; see ``Runtime.start``.

        Args:
            state: As for ``run``.
            id: As for ``run``.
            inputs: As for ``run``.
            answers: As for ``run``.
            halt_before: As for ``run``.
            halt_after: As for ``run``.
            priority: As for ``run``.
            owner: As for ``run``.
            runtime: Where to run, an open one.

        Raises:
            Exception: As ``Runtime.start``.
        """
        with frames_hidden:
            runtime.check_open()
            asked = Asked(answers, halt_before, halt_after, priority, owner)
            call = Call("start", id, runtime)
            request = self._check.run_request(call, state, inputs, asked)
            return await self._launcher.start(request, runtime)

    def open(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        priority: Priority | None = None,
        owner: str | None = None,
        runtime: Runtime | None = None,
        buffer: int = BUFFER,
        stepwise: bool = False,
    ) -> OpenRun[S]:
        """Run the application while reading its events: ``async with app.open(...) as run``.

        Nothing starts until the block is entered. ``OpenRun`` describes what the block can do, and
        what leaving it means.

        Args:
            state: The fields that the run starts with: a mapping, or an instance of the model. May
                be left out if the store has the run.
            id: Names the run, which goes on if the store has it; by default a random one.
            inputs: What the actions take besides fields. Never saved.
            answers: As for ``run``.
            halt_before: As for ``run``.
            halt_after: As for ``run``.
            priority: As for ``run``.
            owner: As for ``run``.
            runtime: Where to run, an open one; by default one that this run has for itself.
            buffer: Events that may wait to be read before the run is held back or, while no loop
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
        asked = Asked(answers, halt_before, halt_after, priority, owner)
        call = Call("open", id, runtime)
        request = self._check.run_request(call, state, inputs, asked)
        check_buffer(buffer, "open")
        return self._launcher.open(request, runtime, buffer=buffer, stepwise=stepwise)

    def run_sync(
        self,
        state: S | Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        priority: Priority | None = None,
        owner: str | None = None,
        progress: bool = False,
        backend: Literal["asyncio", "trio"] = "asyncio",
    ) -> RunResult[S]:
        """Run the application from synchronous code, in an event loop of its own; see ``run``.

        Args:
            state: The fields that the run starts with: a mapping, or an instance of the model.
            id: Names the run; by default a random one.
            inputs: What the actions take besides fields.
            answers: As for ``run``.
            halt_before: As for ``run``.
            halt_after: As for ``run``.
            priority: As for ``run``.
            owner: As for ``run``.
            progress: As for ``run``.
            backend: The event loop's kind.

        Raises:
            BadUse: An event loop runs already in this thread; everything else as ``run``.
        """
        refuse_in_a_loop(self.name)
        run = partial(
            self.run,
            state,
            id=id,
            inputs=inputs,
            answers=answers,
            halt_before=halt_before,
            halt_after=halt_after,
            priority=priority,
            owner=owner,
            progress=progress,
        )
        with frames_hidden:
            return anyio.run(run, backend=backend)

    def __repr__(self) -> str:
        return f"<Application {self.name}>"
