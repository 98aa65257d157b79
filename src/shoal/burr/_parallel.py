"""Parallel actions of Burr's: their tasks are children here.

Invariants:
- The tasks and the reduction are Burr's, called as Burr calls them: all tasks are made before the
  first child starts, and ``reduce`` gets the states in the order of the tasks.
- Everything between is ours: a child is a run, saved as it ends. An attempt that is repeated makes
  the tasks again, and finds the children that are done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

from anyio import to_thread
from burr.core import State as BurrState
from burr.core.parallelism import MapActionsAndStates, RunnableGraph, SubGraphTask

from shoal._engine.fanout.context import Context
from shoal._engine.fanout.finish import failure_group
from shoal._errors.exceptions import BadResult, DefinitionError, MissingInput, UndeclaredRead, brief
from shoal._events.events import Done, Failed
from shoal._graph.graph import Graph
from shoal._state.plain import to_plain
from shoal._state.state import State

from ._declared import Declared
from ._injected import burr_context, injected
from ._state import Given, View, copied

GRAPHS = 64
"""Graphs of one attempt that are kept: Burr makes one for each task, mostly of the same actions."""

Fields = Mapping[str, object]


@final
@dataclass(frozen=True, eq=False)
class FannedOut:
    """Calls a parallel action of Burr's: makes its tasks, runs them as children, and reduces."""

    declared: Declared
    options: Mapping[str, Any]
    """The arguments of ``context.fan_out``."""
    graph_of: Callable[[RunnableGraph], Graph]

    @property
    def __name__(self) -> str:
        return self.declared.name

    async def __call__(self, state: State, context: Context, **given: Any) -> State:
        """Call the action; see ``FunctionAction``."""
        self.declared.refuse_missing(given)
        name, graphs = self.declared.name, _Graphs(self.graph_of)
        tasks = await self._tasks(state, context, given)
        starts: list[Fields] = []
        ends: dict[int, BurrState[Any]] = {}
        failed: dict[int, Exception] = {}
        async with context.fan_out(name="tasks", **self.options) as group:
            for task in tasks:
                graph, whole = graphs.of(task.graph), _fields(task)
                # What the child doesn't read is neither saved with it nor compared on a resume;
                # the reduction gets it all the same.
                start = {one: whole[one] for one in graph.reads if one in whole}
                starts.append(start)
                inputs = {one: task.inputs[one] for one in task.inputs if one in graph.takes}
                self._refuse_unread(state, graph, whole)
                try:
                    group.start(graph, start, key=self._key(task), inputs=inputs)
                except MissingInput as error:
                    msg = (
                        f"{error}; a task gets the inputs that {name!r} names among its own: "
                        f"def inputs(self): return [..., *super().inputs]"
                    )
                    raise MissingInput(msg) from None
            async for outcome in group:
                at = outcome.position
                if isinstance(outcome, Failed):
                    failed[at] = outcome.error
                    group.cancel(f"another child of {name!r} failed")
                elif isinstance(outcome, Done):
                    ends[at] = _merged(_fields(tasks[at]), starts[at], outcome.state)
        if failed:
            raise failure_group(name, [failed[at] for at in sorted(failed)])
        return await self._reduced(state, [ends[at] for at in sorted(ends)])

    async def _tasks(
        self, state: State, context: Context, given: Mapping[str, Any]
    ) -> Sequence[SubGraphTask]:
        action: Any = self.declared.action
        run = context.run_id
        asked = {**given, **injected(self.declared, run)}
        # A state of Burr's own: what the tasks start with is no change of this run's state.
        args = copied(state), burr_context(run, self.declared.name), asked
        if action.is_async():
            made = action.tasks(*args)
            tasks = [one async for one in made] if hasattr(made, "__aiter__") else list(made)
        else:
            # All of it in one thread, because the user's code may block before each of them.
            tasks = await to_thread.run_sync(lambda: list(_plain(action.tasks(*args))))
        return [_checked(task, self.declared.name) for task in tasks]

    def _refuse_unread(self, state: State, graph: Graph, whole: Fields) -> None:
        """Refuse a task that reads a field of the run which the action doesn't declare.

        With Burr each task sees all fields, also those.

        Raises:
            UndeclaredRead: There is such a field.
        """
        for one in sorted(graph.reads.difference(whole)):
            if one in state._data:
                name = self.declared.name
                msg = (
                    f"action {name!r}: its task {graph.name!r} reads field {one!r}, which {name!r} "
                    f"does not declare; add it to its reads (declared: "
                    f"{', '.join(sorted(self.declared.reads)) or 'none'})"
                )
                raise UndeclaredRead(msg)

    def _key(self, task: SubGraphTask) -> str | None:
        # The classes with `states` or `actions` make an id of the position, which needs no name.
        made_here = isinstance(self.declared.action, MapActionsAndStates)
        return None if made_here else task.application_id

    async def _reduced(self, state: State, ends: Sequence[BurrState[Any]]) -> State:
        action: Any = self.declared.action
        view = View(state, Given(), None)
        if action.is_async():
            reduced: object = action.reduce(view, _one_by_one(ends))
            if isinstance(reduced, Awaitable):
                reduced = await cast("Awaitable[object]", reduced)
        else:
            reduced = await to_thread.run_sync(lambda: action.reduce(view, (one for one in ends)))
        return view.back(reduced, self.declared.name, action.writes)


def _plain(tasks: Any) -> Iterable[object]:
    if hasattr(tasks, "__aiter__"):
        msg = (
            "the tasks come from an async generator, and the action says that it is plain; tell "
            "Burr that it isn't: def is_async(self) -> bool: return True"
        )
        raise BadResult(msg)
    return tasks


async def _one_by_one(ends: Iterable[BurrState[Any]]) -> AsyncIterator[BurrState[Any]]:
    for one in ends:
        yield one


def _checked(task: object, name: str) -> SubGraphTask:
    if not isinstance(task, SubGraphTask):
        msg = f"action {name!r}: its tasks are Burr's SubGraphTasks, not {brief(task)}"
        raise BadResult(msg)
    for attribute in ("tracker", "state_persister", "state_initializer"):
        if getattr(task, attribute) is not None:
            raise DefinitionError(_not_called(name, f"SubGraphTask({attribute}=...)"))
    return task


def _fields(task: SubGraphTask) -> Fields:
    return cast("Fields", task.state)  # pyright: ignore[reportUnknownMemberType]


def _merged(whole: Fields, start: Fields, end: State) -> BurrState[Any]:
    """Return the state at the end of a task: what it started with, and what the child changed."""
    dropped = start.keys() - end.keys()
    kept = {one: value for one, value in whole.items() if one not in dropped}
    return BurrState({**kept, **{one: to_plain(value) for one, value in end.items()}})


def cascade(declared: Declared, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a parallel action, with what its class says of its children.

    Raises:
        DefinitionError: It gives its children a tracker, persister, initializer or executor of
            Burr's.
    """
    action = declared.action
    if not isinstance(action, MapActionsAndStates):
        return options
    found = dict(options)
    for method in ("tracker", "state_persister", "state_initializer"):
        behaviour: object = getattr(action, method)()
        if behaviour == "cascade":
            continue
        if behaviour is not None:
            raise DefinitionError(_not_called(declared.name, f"{method}()"))
        if method == "state_persister":
            found.setdefault("store", None)
    if hasattr(action, "executor"):
        msg = (
            f"action {declared.name!r} has a method executor, which neither Burr nor shoal calls; "
            f"say how many children run at once: shoal.burr.parallel(..., limits=Limits(n))"
        )
        raise DefinitionError(msg)
    return found


def _not_called(name: str, what: str) -> str:
    return (
        f"action {name!r}: {what} is Burr's, and shoal wouldn't call it: leave it out, and the "
        f"children are saved and watched like their parent; or say where: "
        f"shoal.burr.parallel(..., store=..., hooks=[...])"
    )


@final
class _Graphs:
    """Graphs of ours for the graphs of tasks: one for all tasks that run the same actions.

    Burr makes a graph and named copies of its actions for each task. Copies share what they are
    made of, and that is compared. One graph of ours for all of them lets the engine do for the
    first task alone what is the same for all.
    """

    def __init__(self, graph_of: Callable[[RunnableGraph], Graph]) -> None:
        self._graph_of = graph_of
        # Burr's graph is in the value, so that no id is used again while the entry exists.
        self._known: dict[object, tuple[RunnableGraph, Graph]] = {}

    def of(self, found: RunnableGraph) -> Graph:
        """Return the graph of ours for a task's."""
        key = (
            found.entrypoint,
            tuple(found.halt_after),
            tuple(_identity(action) for action in found.graph.actions),
            tuple(
                (one.from_.name, one.to.name, id(one.condition)) for one in found.graph.transitions
            ),
        )
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= GRAPHS:
                self._known.clear()
            known = self._known[key] = (found, self._graph_of(found))
        return known[1]


def _identity(action: object) -> object:
    return type(action), tuple(
        (name, value if isinstance(value, str) else id(value))
        for name, value in vars(action).items()
    )
