"""Actions: what a graph is made of. Imports values.

Invariants:
- What an action reads, writes and needs as inputs is known when it is defined, and a definition
  that can't work is refused there.
- Calling a decorated function calls the function: it can be tested without any of this.
- An act never changes: ``bind`` gives another one.
"""

from __future__ import annotations

import copy
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    NoReturn,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    final,
)

from shoal._errors.arguments import is_positive
from shoal._errors.exceptions import DefinitionError, did_you_mean
from shoal._limits.limits import Limits
from shoal._limits.retry import Retry
from shoal._state.functions import is_async, is_kind, is_streaming
from shoal._state.schema import Schema
from shoal._state.state import Change, Permit

from .policy import check_timeout

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)

_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Performer(Protocol):
    """What an act is performed by, and all that an act knows of it: a run implements it."""

    def call(self, action: FunctionAction[..., object]) -> Awaitable[Change]:
        """Bind what the function takes, call it, and check what it returns."""
        ...

    def enter(self, graph: Act) -> Awaitable[Change]:
        """Run a graph as a child of its own, and return what it changed."""
        ...

    def fan_out(self, parallel: Act) -> Awaitable[Change]:
        """Run the children of an act whose work is children; return what completes the step."""
        ...


@final
class Input(NamedTuple):
    """An input that an act takes."""

    by: str
    """The name of the action that takes it."""
    required: bool
    """Whether that action can't do without: it has no default and is not bound."""


@final
@dataclass(frozen=True)  # with slots, Result[int](5) would raise
class Result(Generic[T_co]):
    """What a streaming action yields last: what it would return if it were a coroutine function.

    With one write that is its value, with several a mapping, and a state if it takes ``state``;
    ``Result(None)`` without writes.

    Examples:
        >>> from collections.abc import AsyncIterator
        >>> @action(reads=["question"], writes=["answer"])
        ... async def answer(question: str) -> AsyncIterator[str | Result[str]]:
        ...     words = []
        ...     for word in ("it", "depends"):
        ...         words.append(word)
        ...         yield word  # a partial item: told at once, saved nowhere
        ...     yield Result(" ".join(words))
        >>> class Show(Hook):
        ...     def on_item(self, event: Item) -> None:
        ...         print(event.index, event.item)
        >>> Application(answer, hooks=[Show()]).run_sync({"question": "why"}).state["answer"]
        0 it
        1 depends
        'it depends'
    """

    value: T_co


class Act(ABC):
    """What a run can execute as a step: an action, a fan-out, a graph."""

    name: str
    reads: Collection[str] = ()
    """Fields that it may look at in the state."""
    writes: Collection[str] = ()
    """Fields that it may change."""
    sure_writes: Collection[str] = ()
    """Those of them that are in the state afterwards, whatever it does."""
    continues: Collection[str] = ()
    """Fields that it collects into, and goes on with where they hold something already."""
    version: str = "1"
    """Part of the identity of its work: with another one, recorded results of it count no more."""
    retry: Retry | None = None
    """How often it is tried again by itself."""

    @property
    @abstractmethod
    def takes(self) -> Mapping[str, Input]:
        """What it takes besides fields, by name."""

    @property
    def needed_by(self) -> Mapping[str, str]:
        """Those of the fields it reads that it can't do without, and which act reads each."""
        return dict.fromkeys(self.reads, f"act {self.name!r}")

    @property
    def needs(self) -> frozenset[str]:
        """Those of the fields it reads that it can't do without."""
        return frozenset(self.needed_by)

    @property
    def takes_more(self) -> bool:
        """Whether it may take inputs that nobody knows before it runs."""
        return False

    @property
    def for_children(self) -> Sequence[Act]:
        """What its children execute, as far as that is known before it is executed."""
        return ()

    def misfit(self, schema: Schema[Any]) -> str:
        """Say why it can't work on a state held to ``schema``, and what to do; nothing if it can.

        What a model declares and how it is used is compared here; values only when there are some.
        """
        for verb, fields in (("reads", self.reads), ("writes", self.writes)):
            for field in sorted(set(fields) - schema.fields):
                return f"it {verb} field {field!r}, which {schema.why_undeclared(field)}"
        return ""

    def exposing(self, secret: frozenset[str]) -> str:
        """Say how it would have secret fields saved or told; nothing if it wouldn't.

        Args:
            secret: The names of those fields.
        """
        for field in sorted(secret.intersection(self.writes)):
            return (
                f"{self.name!r} writes {field!r}, and what is written is saved and told: have it "
                f"write another field, or give it an object as an input to keep the secret in"
            )
        return ""

    @abstractmethod
    def perform(self, run: Performer) -> Awaitable[Change]:
        """Execute one step of ``run``.

        Returns the change that completes the step; what a fan-out does before that, it commits
        itself. Whatever it raises fails the step.
        """

    def bind(self, *, name: str | None = None, **inputs: object) -> Self:
        """Return the same act under another name, or with some of its inputs given, or both.

        A bound input is what the act falls back to where nobody else gives one: not the task, the
        run, the application or the runtime. What is bound already stays.

        Args:
            name: What the new act is called; as before, if left out.
            inputs: Inputs, by name.

        Raises:
            DefinitionError: It takes no input of that name, or ``name`` is no string.

        Examples:
            >>> @action(reads=["question"], writes=["answer"])
            ... async def ask(question: str, model: str) -> str:
            ...     return f"{model}: {question}!"
            >>> small = ask.bind(name="small", model="tiny-1")
            >>> Application(small).run_sync({"question": "why"}).state["answer"]
            'tiny-1: why!'
        """
        check_binding(self.name, self.takes, name, inputs, takes_more=self.takes_more)
        bound = copy.copy(self)
        vars(bound).update(vars(self))  # a frozen dataclass with slots copies nothing else
        bound._bind(name if name is not None else self.name, inputs)
        return bound

    @abstractmethod
    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        """Take ``name``, and ``inputs`` where there are none yet. Called on a fresh copy."""


def check_binding(
    act: str, known: Collection[str], name: object, given: Collection[str], *, takes_more: bool
) -> None:
    """Refuse what can't be bound to the act named ``act``.

    Raises:
        DefinitionError: It takes no such input, or ``name`` is no string.
    """
    if name is not None and (not isinstance(name, str) or not name):
        msg = f"{act!r}: bind(name=...) takes a name, not {name!r}"
        raise DefinitionError(msg)
    for one in () if takes_more else given:
        if one not in known:
            msg = (
                f"{act!r} takes no input {one!r} that could be bound "
                f"(it takes: {', '.join(sorted(known)) or 'none'}){did_you_mean(one, known)}"
            )
            raise DefinitionError(msg)


def merged_inputs(acts: Iterable[Act]) -> Mapping[str, Input]:
    """Collect what several acts take; one that can't do without an input counts before others."""
    takes: dict[str, Input] = {}
    for act in acts:
        for name, need in act.takes.items():
            if name not in takes or (need.required and not takes[name].required):
                takes[name] = need
    return takes


def versions(acts: Iterable[Act]) -> str:
    """Say which acts these are, in which versions."""
    return ",".join(sorted(f"{act.name}={act.version}" for act in acts))


A = TypeVar("A", bound=Act)


def bind_where_taken(act: A, inputs: Mapping[str, object]) -> A:
    """Bind to ``act`` those of ``inputs`` that it takes."""
    taken = {name: value for name, value in inputs.items() if act.takes_more or name in act.takes}
    return act.bind(name=None, **taken) if taken else act


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
        version: str = "1",
        in_thread: bool = True,
        limits: Limits | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        abandon: bool = False,
        cache: float | None = None,
        method: bool = False,
    ) -> None:
        """Read the function's signature; see ``action`` for what it means.

        Args:
            function: Called once for each attempt.
            reads: Fields.
            writes: Fields.
            name: The action's.
            version: Part of the identity of its work.
            in_thread: Whether a plain function runs in a worker thread.
            limits: How many attempts run at once.
            timeout: Seconds that an attempt may take.
            retry: How often it is tried again.
            abandon: Whether its thread is left behind when it is cancelled.
            cache: Seconds for which what it comes to is remembered.
            method: Whether ``function`` is a class's, so that its first parameter is the object.
        """
        functools.update_wrapper(self, function)
        self.function = function
        self.name: str = name
        self.reads: Collection[str] = reads
        self.writes: Collection[str] = writes
        self.version = version
        self.limits = limits
        self.timeout = timeout
        self.retry = retry
        self.abandon = abandon
        self.cache = cache
        self.definition: object = self
        """What all that is bound of one definition has in common: its limits are counted by it."""
        self.is_async: bool = is_async(function)
        self.is_streaming: bool = is_streaming(function)
        self.in_thread: bool = in_thread and not self.is_async and not self.is_streaming
        self.bound: Mapping[str, object] = {}
        self._read_signature(method=method)
        self.is_governed: bool = (
            self.takes_context
            or self.in_thread
            or self.is_streaming
            or limits is not None
            or timeout is not None
            or cache is not None
        )
        """Whether an attempt needs more than a call."""

    def _read_signature(self, *, method: bool) -> None:
        fields: list[str] = []
        inputs: dict[str, Input] = {}
        special: set[str] = set()
        try:
            parameters = list(inspect.signature(self.function).parameters.values())
        except ValueError:
            self._refuse(f"the parameters of {self.function!r} can't be known; wrap it in a def")
        for parameter in parameters[method:]:
            name = parameter.name
            if name == "self":
                self._refuse(
                    "it takes 'self', so it is a method, of which nobody knows the object; "
                    "decorate a function, or the bound method: action(...)(thing.method); "
                    "or make the class a subclass of shoal.Action"
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
                if _is_context(parameter.annotation, self.function):
                    self._refuse(
                        f"parameter {name!r} is to be a Context, which is given to the parameter "
                        f"called 'context'; rename it"
                    )
                inputs[name] = Input(self.name, parameter.default is inspect.Parameter.empty)
        required = [name for name, need in inputs.items() if need.required]
        for field in () if special else sorted(set(self.reads).difference(fields)):
            meant = did_you_mean(field, required)
            if meant:  # else it is read for nothing, which harms nobody
                self._refuse(f"it reads {field!r}, and no parameter is called so{meant}")
        self.takes_state: bool = "state" in special
        self.takes_context: bool = "context" in special
        self.permit: Permit = Permit(self.name, frozenset(self.reads), frozenset(self.writes))
        self.sure_writes: Collection[str] = () if self.takes_state else self.writes
        self.fields: tuple[str, ...] = tuple(fields)
        self.input_names: tuple[str, ...] = tuple(inputs)
        self._takes = inputs
        self.only_write: str | None = next(iter(self.writes)) if len(self.writes) == 1 else None

    def _refuse(self, why: str) -> NoReturn:
        msg = f"action {self.name!r}: {why}"
        raise DefinitionError(msg)

    @property
    def takes(self) -> Mapping[str, Input]:
        """What it takes besides fields, by name."""
        return self._takes

    @property
    def needed_by(self) -> Mapping[str, str]:
        """The fields that parameters are named for; of its ``state`` it may do without others."""
        return dict.fromkeys(self.fields, f"action {self.name!r}")

    def exposing(self, secret: frozenset[str]) -> str:
        """Say how it would have secret fields saved or told; see ``Act.exposing``."""
        if self.cache is not None:
            for field in sorted(secret.intersection(self.reads)):
                return (
                    f"{self.name!r} has cache= and reads {field!r}: what it comes to would be "
                    f"remembered by a hash of that; leave out cache=, or give it as an input"
                )
        return super().exposing(secret)

    def perform(self, run: Performer) -> Awaitable[Change]:
        """Execute one step of ``run``; see ``Act.perform``."""
        return run.call(self)

    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        self.name = name
        self.bound = {**inputs, **self.bound}
        self.permit = Permit(name, self.permit.reads, self.permit.writes)
        self._takes = {
            taken: Input(name, need.required and taken not in self.bound)
            for taken, need in self._takes.items()
        }

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
    limits: Limits | None = None,
    timeout: float | None = None,
    retry: Retry | None = None,
    abandon: bool = False,
    cache: float | None = None,
) -> Callable[[Callable[P, R]], FunctionAction[P, R]]:
    """Make an action of a function.

    The function's parameters are filled by name: one that is named in ``reads`` gets that field;
    ``state`` gets the state, narrowed to what the action may read and write; ``context`` gets the
    ``Context``; every other one is an input. Inputs are looked up in what the task, the run, the
    application and the runtime were given, in this order, then in what ``bind`` was; then the
    parameter's default counts.

    An action that takes ``state`` returns a state made from it. Otherwise, with one write, the
    return value is the new value of that field; with several, it is a mapping with each of them;
    with none, it is None.

    A coroutine function runs on the event loop. So does an async generator function, of which a
    *streaming action* is made: each thing that it yields is a partial item, which hooks and opened
    runs hear of at once, but for the last, ``Result(value)``, whose value counts as the return
    value. It goes on after a ``yield`` when all who hear of the item have let it. On every way out
    it is closed, and its cleanup awaited, for at most 5 seconds when it stands at a ``yield``.

    An action that is cancelled is cancelled again at each ``await``, also in a ``finally``; see
    ``shielded`` for cleanup that awaits.

    A plain function runs in a worker thread, so that it can't hold up the loop. Whatever is
    cancelled is waited for, but a thread no longer than the grace of the runtime, 5 seconds by
    default: then it is left behind, keeps its slots until it returns, and what it returns is
    dropped (``anyio.from_thread.check_cancelled()`` ends it sooner).

    With ``cache=`` it is remembered what the action has written, for its name, its ``version`` and
    the values of the fields in ``reads``, in any run of the store: of all processes. Without a
    store that can do that, in any run of the runtime, which remembers the last 1,000 results that
    were used. Inputs and a class's settings don't count: what should give other results with others
    has another name or version. A step whose result is remembered waits for no limit and no thread,
    and is no attempt; its update is saved and published like any other, and ``StepEnded.cached``
    says so. Failures are never remembered. Several steps that begin before the first one of them
    has come to something are all executed.

    Args:
        misplaced: Nothing; it is there to tell who forgets the parentheses.
        reads: Names of the fields that it reads.
        writes: Names of the fields that it writes.
        name: What the action is called in graphs, events and errors; the function's own name
            otherwise.
        version: Change it when the same input should give another result than before.
        run_in: ``"loop"`` calls a plain function on the event loop, for one that is quick: nothing
            else runs until it returns.
        limits: How many of its attempts run at once, in all runs of a runtime together.
        timeout: Seconds that one attempt may take, from when all limits let it start. Then it is
            cancelled, awaited until it has ended, and has failed with ``StepTimeout``, also
            where it has swallowed the cancellation and returns something.
        retry: What of its failures is tried again, and how often.
        abandon: Whether a worker thread is left behind as soon as the action is cancelled or timed
            out, not only after the grace.
        cache: Seconds for which what it comes to is remembered: as long, it is not executed where
            it would read the same. ``math.inf``: for ever.

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
        return make_action(
            function,
            name=act_name,
            reads=read_fields,
            writes=written_fields,
            version=version,
            run_in=run_in,
            limits=limits,
            timeout=timeout,
            retry=retry,
            abandon=abandon,
            cache=cache,
        )

    return decorate


def make_action(
    function: Callable[P, R],
    *,
    name: str,
    reads: Iterable[str],
    writes: Iterable[str],
    version: str,
    run_in: object,
    limits: object,
    timeout: Any,
    retry: object,
    abandon: bool,
    cache: Any,
    method: bool = False,
) -> FunctionAction[P, R]:
    """Check what functions and classes have in common, and make the action."""
    if run_in not in ("thread", "loop"):
        msg = f"action {name!r}: run_in is 'thread' or 'loop', not {run_in!r}"
        raise DefinitionError(msg)
    if limits is not None and not isinstance(limits, Limits):
        msg = f"action {name!r}: limits= takes Limits(n), not {limits!r}"
        raise DefinitionError(msg)
    if is_kind(function, inspect.isgeneratorfunction):
        msg = (
            f"action {name!r} is a generator function; to stream partial items, make it an async "
            f"one, with async def, that yields Result(value) last; else return the value"
        )
        raise DefinitionError(msg)
    check_timeout(f"action {name!r}: timeout=", timeout)
    if retry is not None and not isinstance(retry, Retry):
        msg = f"action {name!r}: retry= takes Retry(n, on=...), not {retry!r}"
        raise DefinitionError(msg)
    in_thread = run_in == "thread" and not is_async(function)
    if abandon and not in_thread:
        msg = (
            f"action {name!r}: only a function in a worker thread can be abandoned; what runs on "
            f"the loop is always awaited, so leave out abandon=True"
        )
        raise DefinitionError(msg)
    if timeout is not None and run_in == "loop" and not is_async(function):
        msg = (
            f"action {name!r}: a plain function on the loop can't be interrupted, so it can't have "
            f"a timeout; leave out run_in='loop'"
        )
        raise DefinitionError(msg)
    made = FunctionAction(
        function,
        reads=frozenset(reads),
        writes=frozenset(writes),
        name=name,
        version=version,
        in_thread=in_thread,
        limits=limits,
        timeout=timeout,
        retry=retry,
        abandon=bool(abandon),
        cache=cache,
        method=method,
    )
    if cache is not None:
        _check_cache(made)
    return made


def _check_cache(made: FunctionAction[..., Any]) -> None:
    seconds = made.cache
    if seconds != inf and not is_positive(seconds):
        made._refuse(
            f"cache= takes a number of seconds above 0, or math.inf for ever, not {seconds!r}"
        )
    reasons = {
        "it gives partial items, which nobody would hear of": made.is_streaming,
        "what it does with its context, asking or emitting say, would not be done": (
            made.takes_context
        ),
        "it writes nothing, so there is nothing to be remembered": not made.writes,
    }
    for why, applies in reasons.items():
        if applies:
            made._refuse(f"it can't have cache=: where it is not executed, {why}")


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


def _is_context(annotation: object, function: Callable[..., object]) -> bool:
    """Tell whether a parameter is annotated with shoal's ``Context``, as it is or as a string."""
    if isinstance(annotation, str):
        annotation = getattr(function, "__globals__", {}).get(annotation)
    if not isinstance(annotation, type) or annotation.__name__ != "Context":
        return False
    # Not imported, for it stands above; and wherever in the package it does, there is one.
    return annotation.__module__.partition(".")[0] == __name__.partition(".")[0]
