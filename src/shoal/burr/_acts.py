"""``act``, ``parallel`` and ``graph``: actions and graphs of Burr's as acts of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from burr.core import Action, Application, Graph, GraphBuilder
from burr.core.parallelism import RunnableGraph, TaskBasedParallelAction
from burr.core.typing import TypingSystem

from shoal._errors.exceptions import DefinitionError
from shoal._events.hooks import Hook
from shoal._graph.act import Act
from shoal._graph.action import FunctionAction, field_names, make_action
from shoal._graph.checks import check_policies
from shoal._graph.graph import Graph as OurGraph
from shoal._graph.policy import INHERIT, Each, Inherit, Title
from shoal._limits.limits import DEFAULT_LIMITS, Limits
from shoal._limits.retry import Retry
from shoal.executors._named import ExecutorName
from shoal.executors._port import Executor
from shoal.stores._protocol import Store

from ._calls import call_of, streams_in_thread
from ._declared import Declared, declared, is_parallel
from ._graphs import translated, walk_of
from ._parallel import FannedOut, cascade

NO_ACTS: Mapping[str, Act] = {}


def act(
    action: Action | Callable[..., Any],
    /,
    *,
    name: str | None = None,
    reads: Iterable[str] = (),
    writes: Iterable[str] = (),
    version: str = "1",
    executor: Executor | ExecutorName | None = None,
    limits: Limits | None = None,
    timeout: float | None = None,
    retry: Retry | None = None,
    abandon: bool = False,
    cache: float | None = None,
) -> FunctionAction[..., Any]:
    """Make an action of shoal of an action of Burr's.

    What it reads, writes and takes as inputs is what it declares to Burr, less what is bound. It
    gets Burr's ``State``, of the fields that it declares, and what it returns is taken as with
    Burr: ``update``, ``append``, ``extend``, ``increment`` and ``wipe`` are the same operations
    here. Its result, which isn't part of the state, is dropped.

    - A plain action runs in a worker thread, a coroutine function on the event loop. Code that
      needs asyncio doesn't run on trio.
    - A streaming action gives each item that it yields to hooks and opened runs. One that is a
      plain generator runs in a worker thread from the first item to the last.
    - ``__context`` has the id of the run as ``app_id``. Burr's trackers, persisters and hooks are
      not called, and spans of ``__tracer`` reach nobody: hooks and stores of shoal's take their
      places.
    - A parallel action makes its tasks, which run as children; see ``parallel``.

    An action that does what shoal can't save is refused when it does so, with what to write: it
    reads or writes a field that it doesn't declare, changes a list in place, or returns a state
    that was not made from the one it got.

    Args:
        action: A function with Burr's ``@action`` or ``@streaming_action``, or an instance of one
            of Burr's classes of actions.
        name: The name of the act; by default that of the action or function, else of the class.
        reads: Fields that it reads besides those that it declares.
        writes: Fields that it may change besides those that it declares, such as those that it
            wipes: Burr expects a declared field to be there afterwards.
        version: Change it when the same input should give a different result than before.
        executor: Where it is called; see ``shoal.action``, as for all that follows.
        limits: How many of its attempts run at once.
        timeout: Seconds that one attempt may take.
        retry: Which of its failures are tried again, and how often.
        abandon: Whether a worker thread is left behind as soon as the action is cancelled.
        cache: Seconds for which a result is cached.

    Raises:
        DefinitionError: It is no action of Burr's, or can't be one of shoal's; the message says
            why.

    Examples:
        >>> from burr.core import action
        >>> from shoal import Application, fan_out
        >>> from shoal.burr import act
        >>> @action(reads=["n"], writes=["square"])
        ... def square(state):
        ...     return state.update(square=state["n"] ** 2)
        >>> many = fan_out(act(square), over="numbers", item="n", into="squares")
        >>> Application(many).run_sync({"numbers": [1, 2, 3]}).state["squares"]
        [1, 4, 9]
    """
    found = declared(action, name, "act")
    if is_parallel(found.action):
        if any((reads, writes, executor, limits, timeout, retry, abandon, cache)):
            msg = (
                f"action {found.name!r} makes tasks, and has settings for them besides its own: "
                f"shoal.burr.parallel(..., limits=..., each=..., retry=...)"
            )
            raise DefinitionError(msg)
        return _parallel_act(found, version=version)
    return _single_act(
        found,
        None,
        reads=reads,
        writes=writes,
        version=version,
        executor=executor,
        limits=limits,
        timeout=timeout,
        retry=retry,
        abandon=abandon,
        cache=cache,
    )


def parallel(
    action: TaskBasedParallelAction,
    /,
    *,
    name: str | None = None,
    acts: Mapping[str, Act] = NO_ACTS,
    limits: Limits | None = None,
    each: Each | None = None,
    timeout: float | None = None,
    retry: Retry | None = None,
    title: Title | None = None,
    executor: Executor | ExecutorName | None = None,
    store: Store | Inherit | None = INHERIT,
    hooks: Sequence[Hook] | Inherit = INHERIT,
    version: str = "1",
) -> FunctionAction[..., Any]:
    """Make an action of shoal of a parallel action of Burr's, with settings for its children.

    It is an instance of a subclass of Burr's ``MapStates``, ``MapActions``, ``MapActionsAndStates``
    or ``TaskBasedParallelAction``. Its tasks are made as with Burr, all of them before the first
    one starts. Each runs as a child of its own: saved when it ends, watched, limited. If one fails,
    the others are cancelled and an ``ExceptionGroup`` is raised. When all have ended, ``reduce``
    gets their states, in the order of the tasks.

    What the class does itself, making tasks and reducing, is called in a worker thread unless it
    says that it is async. That thread is awaited, also when the action is cancelled.

    If the process dies meanwhile, or the action is tried again, the tasks are made again, and those
    that are done already are not executed again. They are recognized by their place, or by their
    ``application_id`` if the class makes the tasks itself.

    Args:
        action: The action.
        name: The name of the act; by default that of the action, else of its class.
        acts: Acts that the tasks run in the place of Burr's actions, by their names: those that
            have been moved, or ``act(...)`` with limits or retries of its own.
        limits: How many children are in flight; 100 by default.
        each: The policy of each single child: its timeout, its retry.
        timeout: Seconds that the children may take together.
        retry: Which failures of the action as a whole are tried again.
        title: What watchers call the fan-out, or its children; see ``fan_out``.
        executor: Where the actions of the children are called.
        store: The store of the children; None: only how they ended is saved.
        hooks: The hooks of the children, instead of the run's.
        version: Change it when the same input should give a different result than before.

    Raises:
        DefinitionError: It is no parallel action of Burr's, or has parts that shoal wouldn't call.

    Examples:
        >>> from burr.core import action
        >>> from burr.core.parallelism import MapStates
        >>> from shoal import Application, Limits
        >>> from shoal.burr import parallel
        >>> @action(reads=["n"], writes=["square"])
        ... def square(state):
        ...     return state.update(square=state["n"] ** 2)
        >>> class Squares(MapStates):
        ...     reads, writes = ["numbers"], ["total"]
        ...
        ...     def action(self, state, inputs):
        ...         return square
        ...
        ...     def states(self, state, context, inputs):
        ...         for n in state["numbers"]:
        ...             yield state.update(n=n)
        ...
        ...     def reduce(self, state, states):
        ...         return state.update(total=sum(one["square"] for one in states))
        >>> squares = parallel(Squares(), limits=Limits(2))
        >>> Application(squares).run_sync({"numbers": [1, 2, 3]}).state["total"]
        14
    """
    found = declared(action, name, "parallel")
    if not is_parallel(found.action):
        msg = (
            f"parallel(...) takes an action that makes tasks, and {found.name!r} makes none: "
            f"shoal.burr.act(...), and fan_out(...) to run it many times"
        )
        raise DefinitionError(msg)
    check_policies(
        f"parallel {found.name!r}",
        on_error="fail",
        at_most=None,
        limits=DEFAULT_LIMITS if limits is None else limits,
        store=store,
        hooks=hooks,
        each=each,
        timeout=timeout,
        title=title,
        executor=executor,
    )
    options: dict[str, Any] = {
        "limits": limits,
        "each": each,
        "timeout": timeout,
        "title": title,
        "executor": executor,
    }
    if store is not INHERIT:
        options["store"] = store
    if hooks is not INHERIT:
        options["hooks"] = hooks
    return _parallel_act(found, options, acts=acts, retry=retry, version=version)


def graph(
    graph: Graph | GraphBuilder | Application[Any] | RunnableGraph,
    /,
    *,
    entrypoint: str | None = None,
    halt_after: Iterable[str] = (),
    name: str | None = None,
    acts: Mapping[str, Act] = NO_ACTS,
) -> OurGraph:
    """Make a graph of shoal of a graph of Burr's.

    Its actions become acts, as by ``act``, and its transitions edges, tried in the same order. If
    none is true, the run ends, as with Burr. Actions that can't be reached from the entrypoint are
    left out. Inputs are asked for when the action that takes them begins, so that a run may halt
    before it, and be given them when it goes on; one that is missing then raises ``MissingInput``.

    Args:
        graph: A ``Graph``, a ``GraphBuilder``, an ``Application`` or its ``graph``, or a
            ``RunnableGraph``.
        entrypoint: The action at which runs begin; by default that of the application, or the
            action that no other leads to.
        halt_after: Actions after which a run has ended, or their tags: ``"@tag:name"``. To halt a
            run that goes on later, use ``Application.run(halt_after=..., halt_before=...)``.
        name: The name of the graph; by default the names of its acts, joined by ``+``.
        acts: Acts that stand in the place of Burr's actions, by their names: those that have been
            moved, or ``act(...)`` with limits or retries of its own.

    Raises:
        DefinitionError: It is no graph of Burr's, or can't be one of shoal's: it names an action
            that isn't there, has a transition that is never tried, or belongs to an application
            with hooks or a persister, which shoal wouldn't call.

    Examples:
        >>> from burr.core import GraphBuilder, action, expr
        >>> from shoal import Application
        >>> from shoal.burr import graph
        >>> @action(reads=["n"], writes=["n"])
        ... def count(state):
        ...     return state.increment(n=1)
        >>> @action(reads=["n"], writes=["text"])
        ... def say(state):
        ...     return state.update(text=f"counted to {state['n']}")
        >>> counting = (
        ...     GraphBuilder()
        ...     .with_actions(count, say)
        ...     .with_transitions(("count", "count", expr("n < 3")), ("count", "say"))
        ...     .build()
        ... )
        >>> app = Application(graph(counting, entrypoint="count"))
        >>> app.run_sync({"n": 0}).state["text"]
        'counted to 3'
    """
    return translated(walk_of(graph, entrypoint, halt_after), name, acts, _node)


def _node(action: Action, typing_system: TypingSystem[Any] | None) -> Act:
    # As with Burr, which runs to where it halts, and is then given the inputs of what follows.
    found = declared(action, None, "graph")
    if is_parallel(action):
        return _parallel_act(found, asks_late=True)
    return _single_act(found, typing_system, asks_late=True)


def _task(action: Action, typing_system: TypingSystem[Any] | None) -> Act:
    found = declared(action, None, "parallel")
    return _parallel_act(found) if is_parallel(action) else _single_act(found, typing_system)


def _single_act(
    found: Declared,
    typing_system: TypingSystem[Any] | None,
    *,
    reads: Iterable[str] = (),
    writes: Iterable[str] = (),
    version: str = "1",
    executor: Executor | ExecutorName | None = None,
    limits: Limits | None = None,
    timeout: float | None = None,
    retry: Retry | None = None,
    abandon: bool = False,
    cache: float | None = None,
    asks_late: bool = False,
) -> FunctionAction[..., Any]:
    streams = streams_in_thread(found.action)
    if streams and executor == "loop":
        msg = (
            f"action {found.name!r} streams from a plain generator, which would block the event "
            f"loop between its items: leave out executor='loop'"
        )
        raise DefinitionError(msg)
    more_reads, more_writes = field_names(reads, "reads"), field_names(writes, "writes")
    made = make_action(
        call_of(found, typing_system, streams_in_thread=streams),
        name=found.name,
        reads=found.reads | more_reads,
        writes=found.writes | more_writes,
        version=version,
        executor=executor,
        limits=limits,
        timeout=timeout,
        retry=retry,
        abandon=abandon,
        cache=cache,
        parameters=found.parameters(takes_context=streams, asks_late=asks_late),
    )
    return _finished(made, found)


def _parallel_act(
    found: Declared,
    options: Mapping[str, Any] | None = None,
    *,
    acts: Mapping[str, Act] = NO_ACTS,
    retry: Retry | None = None,
    version: str = "1",
    asks_late: bool = False,
) -> FunctionAction[..., Any]:
    def graph_of(task: RunnableGraph) -> OurGraph:
        names = {action.name for action in task.graph.actions}
        # Other tasks of the action may have the other actions.
        mine = {name: act for name, act in acts.items() if name in names}
        # A task can't halt, so what it needs must be there when it starts.
        return translated(walk_of(task, None, ()), None, mine, _task)

    made = make_action(
        FannedOut(found, cascade(found, options or {}), graph_of),
        name=found.name,
        reads=found.reads,
        writes=found.writes,
        version=version,
        executor=None,
        limits=None,
        timeout=None,
        retry=retry,
        abandon=False,
        cache=None,
        parameters=found.parameters(takes_context=True, asks_late=asks_late),
    )
    return _finished(made, found)


def _finished(made: FunctionAction[..., Any], found: Declared) -> FunctionAction[..., Any]:
    # A declared field is there afterwards: Burr promises it, and the call checks it.
    made.sure_writes = found.writes
    made.__doc__ = getattr(getattr(found.action, "fn", found.action), "__doc__", None)
    return made
