"""Fan-outs as classes: tasks that they make up themselves. Imports everything above.

Invariants:
- Tasks are pulled as there is room for their children, like elements.
- No two tasks of a step have the same act and key.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from ._action import Act, Input, bind_where_taken, check_fields, require_plain
from ._errors import BadKey, BadResult, DefinitionError, brief
from ._events import Done, Failed
from ._graph import Graph, as_graph
from ._ids import Key
from ._join import Join, value_reader
from ._parallel import Parallel, ParallelStep, narrowed
from ._policy import Limits, OnError
from ._source import Elements, Entry
from ._state import Change, Permit, State, change_between, refuse_awaitable

NOTHING: Mapping[str, Any] = {}
GRAPHS = 64
"""Acts of one step whose graphs are remembered."""


@final
@dataclass(frozen=True, slots=True)
class Task:
    """One child to be.

    Args:
        act: What it executes: an action, a graph, a fan-out.
        state: What it starts with beside what its act reads of the parent's state: a mapping, or a
            State made from the one that ``tasks`` was given. It counts before the parent's.
        key: Names it among the tasks of its act; by default its position.
        inputs: What its actions take besides fields. They count before the run's own.
        element: What its outcome is said to be about; by default ``state``.

    Raises:
        DefinitionError: ``act`` is no act, or ``state`` or ``inputs`` is no mapping.

    Examples:
        >>> @action(reads=["name"], writes=["greeting"])
        ... async def greet(name: str) -> str:
        ...     return f"hello, {name}"
        >>> Task(greet, {"name": "shoal"}, key="shoal").key
        'shoal'
    """

    act: Act
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    key: Key | None = field(default=None, kw_only=True)
    inputs: Mapping[str, object] = field(default_factory=dict[str, object], kw_only=True)
    element: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what can't be run."""
        as_graph(self.act, "Task")
        for name, given in (("state", self.state), ("inputs", self.inputs)):
            if not isinstance(given, Mapping):
                msg = f"Task({name}=...) takes a mapping of names to values, not {brief(given)}"
                raise DefinitionError(msg)


class ParallelAction(Parallel):
    """Base class of parallel actions that make up their own tasks.

    A subclass says what it reads and writes, makes tasks, and reduces their results; each child is
    a run of its own, and each result is applied to the parent's state the moment it arrives. All
    methods are plain functions called on the event loop, but ``tasks``, which may be an async
    generator. An instance is what goes into a graph.

    Class attributes: ``reads`` and ``writes`` (of ``tasks``, ``reduce``, ``finish`` and the
    children), ``inputs`` (names of inputs that ``tasks`` or the children can't do without),
    ``name`` (by default the class's own), ``limits`` (how many children are in flight),
    ``on_error`` and ``at_most`` (as for ``fan_out``).

    Examples:
        >>> @action(reads=["word"], writes=["length"])
        ... async def measure(word: str) -> int:
        ...     return len(word)
        >>> class Longest(ParallelAction):
        ...     reads = ["words"]
        ...     writes = ["longest"]
        ...
        ...     def tasks(self, state, inputs):
        ...         for word in state["words"]:
        ...             yield Task(measure, {"word": word}, key=word)
        ...
        ...     def reduce(self, state, outcome):
        ...         return state.put("longest", outcome.key, outcome.value)
        ...
        ...     def finish(self, state):
        ...         return state.update(longest=max(state["longest"].values(), default=0))
        >>> Application(Longest()).run_sync({"words": ["cod", "shark"]}).state["longest"]
        5
    """

    inputs: Collection[str] = ()
    on_error: OnError = "fail"
    at_most: int | None = None
    _bound: Mapping[str, object] = NOTHING

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the subclass where it is defined."""
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name: str = cls.__name__
        check_fields(cls, "reads", "writes", "inputs")
        for method in ("reduce", "finish", *cls._plain):
            require_plain(getattr(cls, method), f"{cls.__name__}.{method}")
        if inspect.iscoroutinefunction(cls.tasks):
            msg = (
                f"{cls.__name__}.tasks is a coroutine function; make it an async generator, which "
                f"yields Tasks"
            )
            raise DefinitionError(msg)
        if not isinstance(cls.limits, Limits):
            msg = f"{cls.__name__}.limits is Limits(n), not {cls.limits!r}"
            raise DefinitionError(msg)

    _plain: Collection[str] = ()

    @abstractmethod
    def tasks(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Task] | AsyncIterable[Task]:
        """Make the tasks: pulled one by one, as there is room.

        Args:
            state: As it was when the step began, narrowed to ``reads`` and ``writes``.
            inputs: Everything that the run was given.
        """

    @abstractmethod
    def reduce(self, state: State, outcome: Done | Failed) -> State:
        """Return the state after a child's result; called as each arrives.

        With ``on_error="fail"`` or ``"ignore"`` outcomes are always ``Done``. A child's ``value``
        is its only write, if it has just one; ``outcome.state`` has everything.
        """

    def finish(self, state: State) -> State:
        """Return the state after all results were reduced; the step is completed by that."""
        return state

    @property
    def takes(self) -> Mapping[str, Input]:
        """What it takes besides fields, by name."""
        return {name: Input(self.name, name not in self._bound) for name in self.inputs}

    @property
    def takes_more(self) -> bool:
        """Whether it may take inputs that nobody knows before it runs."""
        return True

    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        vars(self).update(name=name, _bound={**inputs, **self._bound})  # past a frozen dataclass

    @property
    def _permit(self) -> Permit:
        writes = frozenset(self.writes)
        return Permit(self.name, frozenset(self.reads) | writes, writes)

    def _join(self) -> Join:
        return Join(name=self.name, permit=self._permit, reduce=self.reduce, on_error=self.on_error)

    def _source(self, step: ParallelStep) -> Elements:
        inputs = {**self._bound, **step.parent.setting.inputs}
        return TaskElements(self.tasks(step.state, inputs), self, step)

    def _finished(self, state: State) -> Change:
        return change_between(state, self.finish(state), f"finish of {self.name!r}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class MapStates(ParallelAction):
    """A parallel action that runs one act over many states.

    A subclass has ``action`` and ``states``, and ``reduce``; see ``ParallelAction``.

    Examples:
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> class Squares(MapStates):
        ...     reads = ["numbers"]
        ...     writes = ["sum"]
        ...
        ...     def action(self, state, inputs):
        ...         return square
        ...
        ...     def states(self, state, inputs):
        ...         for n in state["numbers"]:
        ...             yield {"n": n}
        ...
        ...     def reduce(self, state, outcome):
        ...         return state.increment(sum=outcome.value)
        >>> Application(Squares()).run_sync({"numbers": [1, 2, 3]}).state["sum"]
        14
    """

    _plain = ("action", "key")

    @abstractmethod
    def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
        """Return what every child executes."""

    @abstractmethod
    def states(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]:
        """Make what the children start with, one by one; see ``Task``."""

    def key(self, state: Mapping[str, Any]) -> Key | None:
        """Name the child that starts with ``state``; None: its position."""
        return None

    def tasks(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Task] | AsyncIterable[Task]:
        """Make a task for each state."""
        return _each([self.action(state, inputs)], self.states(state, inputs), self)


class MapActions(ParallelAction):
    """A parallel action that runs many acts over one state.

    A subclass has ``actions`` and ``reduce``; see ``ParallelAction``.

    Examples:
        >>> @action(reads=["question"], writes=["answer"])
        ... async def ask(question: str, model: str) -> str:
        ...     return f"{model}: {question}!"
        >>> class AskAll(MapActions):
        ...     reads = ["question"]
        ...     writes = ["answers"]
        ...
        ...     def actions(self, state, inputs):
        ...         for model in ("large", "small"):
        ...             yield ask.bind(name=model, model=model)
        ...
        ...     def reduce(self, state, outcome):
        ...         return state.put("answers", outcome.act, outcome.value)
        >>> Application(AskAll()).run_sync({"question": "why"}).state["answers"]
        {'large': 'large: why!', 'small': 'small: why!'}
    """

    _plain = ("state",)

    @abstractmethod
    def actions(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Act] | AsyncIterable[Act]:
        """Make what the children execute, one by one."""

    def state(self, state: State, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what every child starts with; see ``Task``."""
        return state

    def tasks(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Task] | AsyncIterable[Task]:
        """Make a task for each act."""
        acts, start = self.actions(state, inputs), self.state(state, inputs)
        if isinstance(acts, AsyncIterable):
            return _each_act_async(acts, start)
        return (Task(act, start, key="") for act in acts)


class MapActionsAndStates(ParallelAction):
    """A parallel action that runs each of several acts over each of many states.

    A subclass has ``actions``, ``states`` and ``reduce``; see ``ParallelAction``. Actions are made
    once, states are pulled as there is room.
    """

    _plain = ("actions", "key")

    @abstractmethod
    def actions(self, state: State, inputs: Mapping[str, Any]) -> Iterable[Act]:
        """Return what is executed for each state."""

    @abstractmethod
    def states(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]:
        """Make what the children start with, one by one; see ``Task``."""

    def key(self, state: Mapping[str, Any]) -> Key | None:
        """Name the children that start with ``state``; None: by their positions."""
        return None

    def tasks(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Task] | AsyncIterable[Task]:
        """Make a task for each state and act."""
        return _each(list(self.actions(state, inputs)), self.states(state, inputs), self)


def _each(
    acts: list[Act],
    states: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
    named_by: MapStates | MapActionsAndStates,
) -> Iterator[Task] | AsyncIterator[Task]:
    def tasks_for(state: Mapping[str, Any]) -> Iterator[Task]:
        key = named_by.key(state)
        return (Task(act, state, key=key) for act in acts)

    async def from_async(states: AsyncIterable[Mapping[str, Any]]) -> AsyncIterator[Task]:
        async for state in states:
            for task in tasks_for(state):
                yield task

    if isinstance(states, AsyncIterable):
        return from_async(states)
    return (task for state in states for task in tasks_for(state))


async def _each_act_async(
    acts: AsyncIterable[Act], start: Mapping[str, Any]
) -> AsyncIterator[Task]:
    async for act in acts:
        yield Task(act, start, key="")


@final
class TaskElements(Elements):
    """The source of a fan-out over tasks."""

    __slots__ = ("_act", "_graphs", "_keyed", "_step")

    def __init__(self, tasks: object, act: ParallelAction, step: ParallelStep) -> None:
        """Stand before the first task."""
        super().__init__(tasks, who=act.name, at_most=act.at_most, given_by="tasks")
        self._act = act
        self._step = step
        self._keyed: bool | None = None
        self._graphs: dict[Act, Graph] = {}

    def _entries(self, element: object) -> tuple[Entry, ...]:
        if not isinstance(element, Task):
            refuse_awaitable(element, f"tasks of {self.who!r}")
            msg = f"tasks of {self.who!r} yields Tasks, not {brief(element)}"
            raise BadResult(msg)
        position = self._position
        graph = self._graph(element.act)
        key = self._task_key(element, graph)
        self._position = position + 1
        self._count = position + 1
        base = narrowed(
            self._step.data,
            graph,
            element.state,
            f"the children of {self.who!r} that execute {graph.name!r}",
            "give it to the Task: Task(act, {field: ...})",
        )
        take = next(iter(graph.writes)) if len(graph.writes) == 1 else None
        kind = self._step.kind(graph, base, value_reader(take, self.who), element.inputs)
        about = element.state if element.element is None else element.element
        return (Entry(key, position, about, kind),)

    def _graph(self, act: Act) -> Graph:
        graph = self._graphs.get(act)
        if graph is None:
            if len(self._graphs) >= GRAPHS:  # acts that are made for one task each
                self._graphs.clear()
            bound = bind_where_taken(act, self._act._bound)
            graph = self._graphs[act] = as_graph(bound, f"tasks of {self.who!r}")
        return graph

    def _task_key(self, task: Task, graph: Graph) -> Key:
        keyed = task.key is not None
        if self._keyed is None:
            self._keyed = keyed
        if self._keyed != keyed:
            msg = (
                f"tasks of {self.who!r}: some have a key= and some have none, so that a position "
                f"could be taken for a key; give all of them one, or none"
            )
            raise BadKey(msg)
        if task.key is None:
            return self._position
        key = self._checked_key(task.key, task)
        if (graph.name, key) in self._seen:
            self._refuse_repeated(key, task)
        self._seen.add((graph.name, key))
        return key
