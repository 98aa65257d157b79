"""Actions: what a graph is made of. Imports values.

Invariants:
- What an action reads, writes and needs as inputs is known when it is defined, and a definition
  that can't work is refused there.
- Calling a decorated function calls the function: it can be tested without any of this.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, Literal, NoReturn, ParamSpec, Protocol, TypeVar, cast, final

from ._errors import DefinitionError
from ._state import Change, Permit

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Performer(Protocol):
    """What an act is performed by: a run. Layer 2 implements it."""

    def call(self, action: FunctionAction[..., object]) -> Awaitable[Change]:
        """Bind what the function takes, call it, and check what it returns."""
        ...


class Act(ABC):
    """What a run can execute as a step: a function, or a fan-out."""

    name: str
    reads: frozenset[str]
    """Fields that it needs to find in the state."""
    writes: frozenset[str]
    """Fields that it may change."""

    @property
    @abstractmethod
    def required_inputs(self) -> Mapping[str, str]:
        """Inputs without a default that it needs, each with the name of the action needing it."""

    @abstractmethod
    def perform(self, run: Performer) -> Awaitable[Change]:
        """Execute one step of ``run``.

        Returns the change that completes the step; what a fan-out does before that, it commits
        itself. Whatever it raises fails the step.
        """


@final
class FunctionAction(Act, Generic[P, R_co]):
    """An action made of a function by ``@action``."""

    def __init__(
        self,
        function: Callable[P, R_co],
        *,
        reads: frozenset[str],
        writes: frozenset[str],
        name: str,
        version: str,
        in_thread: bool,
    ) -> None:
        """Read the function's signature; see ``action`` for what it means."""
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name
        self.reads = reads
        self.writes = writes
        self.version = version
        self.is_async: bool = _is_async(function)
        self.in_thread: bool = in_thread and not self.is_async
        self._read_signature()

    def _read_signature(self) -> None:
        fields: list[str] = []
        inputs: dict[str, bool] = {}  # name -> whether it has a default
        special: set[str] = set()
        try:
            parameters = inspect.signature(self.function).parameters
        except ValueError:
            self._refuse(f"the parameters of {self.function!r} can't be known; wrap it in a def")
        for parameter in parameters.values():
            name = parameter.name
            if name == "self":
                self._refuse(
                    "it takes 'self', so it is a method, of which nobody knows the object; "
                    "decorate a function, or the bound method: action(...)(thing.method)"
                )
            if parameter.kind in _VARIADIC or parameter.kind is _POSITIONAL_ONLY:
                self._refuse(
                    f"parameter {parameter} can't be bound by name; "
                    f"name every field and input that the function takes"
                )
            if name in ("state", "context"):
                if name in self.reads:
                    self._refuse(
                        f"parameter {name!r} is both a field in reads= and the name under which "
                        f"an action takes its whole {name}; rename the field"
                    )
                special.add(name)
            elif name in self.reads:
                fields.append(name)
            elif name in self.writes:
                self._refuse(
                    f"parameter {name!r} is a field that it writes and does not read; "
                    f"add it to reads=[...], or rename it if it is an input"
                )
            else:
                inputs[name] = parameter.default is not inspect.Parameter.empty
        if "context" in special:
            self._refuse("'context' is reserved and can't be an input; rename the parameter")
        self.takes_state: bool = "state" in special
        self.permit: Permit = Permit(self.name, self.reads, self.writes)
        self.fields: tuple[str, ...] = tuple(fields)
        self.inputs: dict[str, bool] = inputs
        self.only_write: str | None = next(iter(self.writes)) if len(self.writes) == 1 else None

    def _refuse(self, why: str) -> NoReturn:
        msg = f"action {self.name!r}: {why}"
        raise DefinitionError(msg)

    @property
    def required_inputs(self) -> Mapping[str, str]:
        """Inputs without a default that it needs, each with the name of the action needing it."""
        return {name: self.name for name, optional in self.inputs.items() if not optional}

    def perform(self, run: Performer) -> Awaitable[Change]:
        """Execute one step of ``run``; see ``Act.perform``."""
        return run.call(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function itself, as if it weren't decorated."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        reads, writes = sorted(self.reads), sorted(self.writes)
        return f"<action {self.name} reads={reads} writes={writes}>"


def action(
    misplaced: None = None,
    /,
    *,
    reads: Iterable[str] = (),
    writes: Iterable[str] = (),
    name: str | None = None,
    version: str = "1",
    run_in: Literal["thread", "loop"] = "thread",
) -> Callable[[Callable[P, R]], FunctionAction[P, R]]:
    """Make an action of a function.

    The function's parameters are filled by name: one that is named in ``reads`` gets that field;
    ``state`` gets the state, narrowed to what the action may read and write; every other one is an
    input, given to ``run(inputs={...})``, or its default.

    An action that takes ``state`` returns a state made from it. Otherwise, with one write, the
    return value is the new value of that field; with several, it is a mapping with each of them;
    with none, it is None.

    A coroutine function runs on the event loop. A plain function runs in a worker thread, so that
    it can't hold up the loop; a run that is cancelled meanwhile waits for it to return.

    Args:
        misplaced: Nothing; it is there to tell who forgets the parentheses.
        reads: Names of the fields that it reads.
        writes: Names of the fields that it writes.
        name: What the action is called in graphs, events and errors; the function's own name
            otherwise.
        version: Change it when the same input should give another result than before.
        run_in: ``"loop"`` calls a plain function on the event loop, for one that is quick: nothing
            else runs until it returns.

    Raises:
        DefinitionError: The function can't be an action, and why.

    Examples:
        >>> @action(reads=["name"], writes=["greeting"])
        ... async def greet(name: str) -> str:
        ...     return f"hello, {name}"
    """
    bare = misplaced or (reads if callable(reads) else None)
    if bare is not None:
        msg = (
            f"@action is used without parentheses on {bare!r}; "
            f"instead, you want: @action() or @action(reads=[...], writes=[...])"
        )
        raise DefinitionError(msg)
    if run_in not in ("thread", "loop"):
        msg = f"run_in is 'thread' or 'loop', not {run_in!r}"
        raise DefinitionError(msg)
    for parameter, text in (("name", name), ("version", version)):
        if text is not None and not isinstance(text, str):
            msg = f"@action({parameter}=...) takes a string, not {text!r}"
            raise DefinitionError(msg)
    read_fields = field_names(reads, "reads")
    written_fields = field_names(writes, "writes")

    def decorate(function: Callable[P, R]) -> FunctionAction[P, R]:
        if not callable(function):
            msg = f"@action decorates functions, not {function!r}"
            raise DefinitionError(msg)
        if isinstance(function, FunctionAction):  # declared once more, under another name
            function = cast("FunctionAction[P, R]", function).function
        act_name = name if name is not None else getattr(function, "__name__", None)
        if not act_name or act_name == "<lambda>":
            msg = f"{function!r} has no name of its own; give one: @action(name=..., ...)"
            raise DefinitionError(msg)
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            msg = f"action {act_name!r} is a generator function; return the value instead"
            raise DefinitionError(msg)
        return FunctionAction(
            function,
            reads=read_fields,
            writes=written_fields,
            name=act_name,
            version=version,
            in_thread=run_in == "thread",
        )

    return decorate


def field_names(names: Iterable[str], where: str) -> frozenset[str]:
    """Check what a user gave as ``reads=`` or ``writes=``."""
    if isinstance(names, str):
        msg = f"{where}={names!r} is one string; give a list of field names: {where}=[{names!r}]"
        raise DefinitionError(msg)
    given: object = names
    if not isinstance(given, Iterable):
        msg = f"{where}= takes a list of field names, not {given!r}"
        raise DefinitionError(msg)
    fields = tuple(names)
    for field in fields:
        if not isinstance(field, str):
            msg = f"{where}= lists field names, which are strings, not {field!r}"
            raise DefinitionError(msg)
    return frozenset(fields)


def _is_async(function: Callable[..., object]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 # a callable object's own method
    )


def require_plain(function: object, what: str) -> None:
    """Refuse a coroutine function where shoal calls a plain one on the event loop.

    Raises:
        DefinitionError: Naming ``what`` it was given as.
    """
    if not callable(function):
        msg = f"{what} takes a function, not {function!r}"
        raise DefinitionError(msg)
    if _is_async(function) or inspect.isasyncgenfunction(function):
        msg = (
            f"{what} takes a plain function, called on the event loop between two results; "
            f"{getattr(function, '__name__', function)!r} is a coroutine function. "
            f"Put what must be awaited into an action"
        )
        raise DefinitionError(msg)
