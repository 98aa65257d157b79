"""Parallel actions as classes, which make their own tasks."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, cast, final

from shoal._errors.exceptions import DefinitionError, brief
from shoal._events.events import Done, Failed
from shoal._events.identity import Key
from shoal._state.functions import is_async, require_plain, signature_of
from shoal._state.state import Change, FieldAccess, State, change_between

from .act import Act, Input
from .action_class import bind_instance, check_class
from .checks import check_policies, check_stagger
from .graph import no_act
from .parallel import JoinSpec, Parallel
from .policy import OnError
from .sketch import Sketch, named_by
from .until import ALL, Until, as_condition

T = TypeVar("T")

NOTHING: Mapping[str, Any] = {}


@final
@dataclass(frozen=True, slots=True)
class Task:
    """A child that a ``ParallelAction`` wants to run.

    Args:
        act: The act of the child: an action, a graph, a fan-out.
        state: Fields that the child starts with, in addition to those that its act reads from the
            parent's state, and before these: a mapping, or a State made from the one that ``tasks``
            receives.
        key: The key of the child among the tasks of its act; by default its position.
        inputs: Inputs for the actions of the child, before those of the run.
        element: The ``element`` of the child's outcome; by default ``state``.

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
        if not isinstance(self.act, Act):
            raise DefinitionError(no_act(self.act, "Task"))
        for name, given in (("state", self.state), ("inputs", self.inputs)):
            if not isinstance(given, Mapping):
                msg = f"Task({name}=...) takes a mapping of names to values, not {brief(given)}"
                raise DefinitionError(msg)


class ParallelAction(Parallel):
    """Base class of parallel actions that make their own tasks.

    A subclass declares ``reads`` and ``writes``, makes tasks, and reduces their results. Each child
    is a run of its own, and each result is applied to the parent's state the moment it arrives.
    Methods are plain functions, called on the event loop, except for ``tasks``, which may be an
    async generator. Instances go into graphs.

    Class attributes: ``reads`` and ``writes`` (of ``tasks``, ``reduce``, ``finish`` and the
    children), ``inputs`` (names of inputs that ``tasks`` or the children need), ``name`` (by
    default the name of the class), ``limits`` (how many children are in flight), ``until``,
    ``stagger``, ``on_error``, ``at_most``, ``each``, ``timeout``, ``store``, ``hooks``,
    ``title`` and ``executor`` (as for ``fan_out``; ``until`` and ``title`` may also be methods).
    ``reads``, ``writes`` and ``inputs`` may be properties.

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
    until: Until | Callable[..., bool] = ALL
    on_error: OnError = "fail"
    _bound: Mapping[str, object] = NOTHING
    _plain: ClassVar[Collection[str]] = ("reduce", "finish")
    """Methods that must be plain functions."""
    _making: ClassVar[Collection[str]] = ("tasks",)
    """Methods that return iterables or async iterables: often generators, never coroutines."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the subclass where it is defined."""
        super().__init_subclass__(**options)
        check_class(cls, "reads", "writes", "inputs", may_be_properties=True)
        for method, parameters in _SIGNATURES.items():
            _check_signature(cls, method, parameters)
        for method in cls._plain:
            require_plain(getattr(cls, method), f"{cls.__name__}.{method}")
        for method in cls._making:
            if is_async(getattr(cls, method)):
                msg = (
                    f"{cls.__name__}.{method} is a coroutine function; make it an async generator, "
                    f"which yields them one by one"
                )
                raise DefinitionError(msg)
        subject = f"class {cls.__name__}"
        check_policies(
            subject,
            on_error=cls.on_error,
            at_most=cls.at_most,
            limits=cls.limits,
            store=cls.store,
            hooks=cls.hooks,
            each=cls.each,
            timeout=cls.timeout,
            title=cls.title,
            executor=cls.executor,
        )
        cls.limits.stand_on(cls)
        until = as_condition(subject, cls.until)
        check_stagger(subject, cls.stagger, until)
        if until.is_race and _says(cls, "on_error"):
            msg = (
                f"{subject}: with such an until a failure only removes a contestant, so on_error "
                "can't be given; result.outcomes(name) has the failures"
            )
            raise DefinitionError(msg)

    @abstractmethod
    def tasks(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Task] | AsyncIterable[Task]:
        """Make the tasks, which are pulled one by one as there is room.

        Args:
            state: The state when the step began, narrowed to ``reads`` and ``writes``.
            inputs: All inputs of the run.
        """

    @abstractmethod
    def reduce(self, state: State, outcome: Done | Failed) -> State:
        """Return the state after a child's result. Called for each result as it arrives.

        With ``on_error="fail"`` or ``"ignore"`` outcomes are always ``Done``. If the child's act
        writes one field, ``outcome.value`` is that; ``outcome.state`` has all fields.
        """

    def finish(self, state: State) -> State:
        """Return the state that completes the step, after all results were reduced."""
        return state

    @property
    def definition(self) -> object:
        """The class: limits and latencies are counted for all its instances together."""
        return type(self)

    def sketch(self) -> Sketch:
        """Return what drawings show of it, with the acts that the code that makes tasks names."""
        makes = [getattr(self, name, None) for name in ("tasks", "action", "actions")]
        return Sketch(
            "race" if self._join().is_race else "fan-out",
            (*self._said(),),
            [act for function in makes for act in named_by(function)],
            is_chosen=True,
            is_many=True,
        )

    @property
    def takes(self) -> Mapping[str, Input]:
        """The inputs that it declares, by name."""
        return {name: Input(self.name, True) for name in self.inputs if name not in self._bound}

    @property
    def bound(self) -> Collection[str]:
        """The inputs that are bound."""
        return self._bound

    @property
    def takes_more(self) -> bool:
        """Return True: the acts of its tasks, and so their inputs, are only known at run time."""
        return True

    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        bind_instance(self, name, {**self._bound, **inputs})

    @property
    def _access(self) -> FieldAccess:
        writes = frozenset(self.writes)
        return FieldAccess(self.name, frozenset(self.reads) | writes, writes)

    def _join(self) -> JoinSpec:
        until = as_condition(self.name, self.until)
        return JoinSpec(
            name=self.name,
            access=self._access,
            reduce=self.reduce,
            on_error="ignore" if until.is_race else self.on_error,
            until=until,
        )

    def _finished(self, state: State) -> Change:
        return change_between(state, self.finish(state), f"finish of {self.name!r}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


_SIGNATURES = {
    "tasks": ("state", "inputs"),
    "states": ("state", "inputs"),
    "actions": ("state", "inputs"),
    "action": ("state", "inputs"),
    "state": ("state", "inputs"),
    "key": ("state",),
    "reduce": ("state", "outcome"),
    "finish": ("state",),
}
"""The methods of the classes here, and what each is called with."""


def _check_signature(cls: type[ParallelAction], method: str, parameters: Sequence[str]) -> None:
    """Check that a method takes what it is called with.

    Raises:
        DefinitionError: It doesn't. One that is written as for Burr is shown as it is here.
    """
    own = vars(cls).get(method)
    if not inspect.isfunction(own):  # inherited and checked there, or made by something else
        return
    taken = signature_of(own).parameters.values()
    names = [parameter.name for parameter in taken][1:]
    mended = f"def {method}(self, {', '.join(parameters)})"
    shown = f"class {cls.__name__}: {method}(self, {', '.join(names)})"
    as_it_is = (
        f"or keep Burr's base class, and make an act of it as it is: "
        f"shoal.burr.act({cls.__name__}())"
    )
    try:
        signature_of(own).bind("self", *parameters)
    except TypeError:
        if "context" in names:
            msg = (
                f"{shown} is Burr's, and shoal gives it no context; instead, you want: {mended}; "
                f"{as_it_is}"
            )
        else:
            msg = (
                f"{shown} can't be called: shoal gives it {' and '.join(parameters)}, in this "
                f"order; instead, you want: {mended}"
            )
        raise DefinitionError(msg) from None
    gets_all = names[1:2] == ["states"] or "Generator" in str([one.annotation for one in taken])
    if method == "reduce" and gets_all:
        field = next(iter(cls.writes), "results") if not isinstance(cls.writes, property) else "..."
        msg = (
            f"{shown} is Burr's, which is called once, with the states of all children. shoal "
            f"calls it for each result, as it arrives; instead, you want: {mended}: "
            f"return state.append({field}=outcome.value); {as_it_is}"
        )
        raise DefinitionError(msg)


def _says(cls: type[ParallelAction], attribute: str) -> bool:
    """Return whether a subclass defines ``attribute`` itself."""
    above = cls.__mro__[: cls.__mro__.index(ParallelAction)]
    return any(attribute in vars(each) for each in above)


class MapStates(ParallelAction):
    """A parallel action that runs one act over many states.

    A subclass has methods ``action``, ``states`` and ``reduce``; see ``ParallelAction``.

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

    _plain = (*ParallelAction._plain, "action", "key")
    _making = ("tasks", "states")

    @abstractmethod
    def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
        """Return the act of every child."""

    @abstractmethod
    def states(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]:
        """Make the states that the children start with, one by one; see ``Task``."""

    def key(self, state: Mapping[str, Any]) -> Key | None:
        """Return the key of the child that starts with ``state``; None: its position."""
        return None

    def tasks(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Task] | AsyncIterable[Task]:
        """Make a task for each state."""
        acts, states = [self.action(state, inputs)], self.states(state, inputs)
        return _each(states, lambda start: _tasks_for(acts, start, self.key(start)))


class MapActions(ParallelAction):
    """A parallel action that runs many acts over one state.

    A subclass has methods ``actions`` and ``reduce``; see ``ParallelAction``.

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

    _plain = (*ParallelAction._plain, "state")
    _making = ("tasks", "actions")

    @abstractmethod
    def actions(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Act] | AsyncIterable[Act]:
        """Make the acts of the children, one by one."""

    def state(self, state: State, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the state that every child starts with; see ``Task``."""
        return state

    def tasks(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Task] | AsyncIterable[Task]:
        """Make a task for each act."""
        acts, start = self.actions(state, inputs), self.state(state, inputs)
        return _each(acts, lambda act: _tasks_for([act], start, ""))


class MapActionsAndStates(ParallelAction):
    """A parallel action that runs each of several acts over each of many states.

    A subclass has methods ``actions``, ``states`` and ``reduce``; see ``ParallelAction``. The
    method ``actions`` is called once; states are pulled as there is room.
    """

    _plain = (*ParallelAction._plain, "actions", "key")
    _making = ("tasks", "states")

    @abstractmethod
    def actions(self, state: State, inputs: Mapping[str, Any]) -> Iterable[Act]:
        """Return the acts to run over each state."""

    @abstractmethod
    def states(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]:
        """Make the states that the children start with, one by one; see ``Task``."""

    def key(self, state: Mapping[str, Any]) -> Key | None:
        """Return the key of the children that start with ``state``; None: their positions."""
        return None

    def tasks(
        self, state: State, inputs: Mapping[str, Any]
    ) -> Iterable[Task] | AsyncIterable[Task]:
        """Make a task for each state and act."""
        acts, states = list(self.actions(state, inputs)), self.states(state, inputs)
        return _each(states, lambda start: _tasks_for(acts, start, self.key(start)))


def _tasks_for(acts: Iterable[Act], start: Mapping[str, Any], key: Key | None) -> Iterable[Task]:
    return (Task(act, start, key=key) for act in acts)


def _each(
    made: Iterable[T] | AsyncIterable[T], tasks_of: Callable[[T], Iterable[Task]]
) -> Iterable[Task] | AsyncIterable[Task]:
    """Make tasks of the values that a subclass makes.

    An invalid value is returned as it is: the engine refuses it, with the name of the step.
    """
    if isinstance(made, AsyncIterable):
        return _each_later(made, tasks_of)
    return _each_now(made, tasks_of) if isinstance(made, Iterable) else made


def _each_now(made: Iterable[T], tasks_of: Callable[[T], Iterable[Task]]) -> Iterator[Task]:
    try:
        for one in made:
            yield from tasks_of(one)
    finally:
        # The engine closes the generator of tasks, and only this one knows the generator of values.
        if isinstance(made, Generator):
            cast("Generator[T]", made).close()


async def _each_later(
    made: AsyncIterable[T], tasks_of: Callable[[T], Iterable[Task]]
) -> AsyncIterator[Task]:
    source = aiter(made)
    try:
        async for one in source:
            for task in tasks_of(one):
                yield task
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
