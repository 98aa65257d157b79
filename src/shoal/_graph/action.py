"""Actions: acts made of functions.

Invariants:
- The fields that an action reads and writes and the inputs that it takes are known when it is
  defined. A definition that can't work is refused there.
- Calling a decorated function calls the function, so it can be tested without an application.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from math import inf
from types import FunctionType
from typing import Any, Generic, NamedTuple, NoReturn, ParamSpec, TypeVar, cast, final

from shoal._errors.arguments import is_positive
from shoal._errors.completion import hides
from shoal._errors.exceptions import DefinitionError, brief, did_you_mean
from shoal._errors.misplaced import says_where
from shoal._limits.limits import Limits, mended
from shoal._limits.retry import Retry
from shoal._state.functions import is_async, is_kind, is_streaming, signature_of
from shoal._state.state import Change, FieldAccess
from shoal.executors._named import ExecutorName, Place, executor_named
from shoal.executors._port import Executor, Job
from shoal.executors._threads import SHARED_THREADS, Threads

from .act import Act, Input, Performer
from .policy import check_timeout
from .sketch import Sketch, named_by, of_executor, of_limits, of_retry, of_timeout

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@final
class Parameters(NamedTuple):
    """What the parameters of an action's function are filled with, by name."""

    fields: tuple[str, ...] = ()
    """The parameters that get the field of their name."""
    inputs: Mapping[str, bool] = {}
    """The parameters that get an input, and whether the function needs it."""
    takes_state: bool = False
    takes_context: bool = False
    are_apart: bool = False
    """Whether an input may have the name of a field; see ``Input.is_apart``."""


@hides(
    "access bound_inputs default_executor definition executor_below fields input_names "
    "is_async is_governed is_plain is_streaming job only_field only_write takes_context "
    "takes_state unfit_for"
)
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
        executor: Place | None = None,
        limits: Limits | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        abandon: bool = False,
        cache: float | None = None,
        method: bool = False,
        parameters: Parameters | None = None,
    ) -> None:
        """Create an action from the function and its signature; see ``action``.

        Args:
            function: Called once for each attempt.
            reads: The fields that it reads.
            writes: The fields that it writes.
            name: The name of the action.
            version: Part of the identity of its work.
            executor: Where the function is called; None: where it is inherited from, or by
                default.
            limits: How many attempts run at once.
            timeout: Seconds that an attempt may take.
            retry: Which failures are tried again, and how often.
            abandon: Whether a worker is left behind at once when the action is cancelled.
            cache: Seconds for which results are cached.
            method: Whether ``function`` is an unbound method, whose first parameter is the object.
            parameters: What its parameters are filled with, if its signature doesn't say so.
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
        """The action that this one is a bound copy of, or itself. Limits are counted by it."""
        self.is_async: bool = is_async(function)
        self.is_streaming: bool = is_streaming(function)
        self.is_plain: bool = not self.is_async and not self.is_streaming
        self.executor: Place | None = executor
        self.default_executor: Executor | None = None
        """Where the function is called if nothing around the action has an executor; None: on the
        event loop."""
        if executor is None:
            self.default_executor = SHARED_THREADS if self.is_plain else None
        elif executor != "loop":
            self.default_executor = executor
        self.bound_inputs: Mapping[str, object] = {}
        self._take(self._read_signature(method=method) if parameters is None else parameters)
        self.is_governed: bool = (
            self.takes_context
            or self.default_executor is not None
            or self.is_streaming
            or limits is not None
            or timeout is not None
            or cache is not None
        )
        """Whether an attempt is more than a call: for others the engine takes a shorter path."""
        self.is_simple_within_limits: bool = (
            self.is_async
            and not (self.takes_context or self.default_executor is not None)
            and (timeout is cache is retry is None)
            and not self.input_names
        )
        """Whether it only reads fields and is awaited, within its limits if it has any."""
        self.is_simple: bool = self.is_simple_within_limits and limits is None
        """Whether it only reads fields and is awaited: the engine calls most actions at once."""
        self.only_field: str | None = self._only_field()
        """The field that it is called with, by position; "": it is called with nothing.

        None if it is called by names.
        """

    def _only_field(self) -> str | None:
        function: object = self.function
        # By position a call takes half as long; but only a plain function surely takes it so: the
        # signature of a wrapper may be that of what it wraps.
        if not isinstance(function, FunctionType) or len(self.fields) > 1:
            return None
        if not self.fields:
            return "" if not (self.takes_state or self.takes_context or self.input_names) else None
        code, (field,) = function.__code__, self.fields
        only = code.co_argcount + code.co_kwonlyargcount == 1 and code.co_varnames[0] == field
        return field if only and code.co_argcount else None

    def _read_signature(self, *, method: bool) -> Parameters:
        fields: list[str] = []
        inputs: dict[str, bool] = {}
        special: set[str] = set()
        try:
            parameters = list(signature_of(self.function).parameters.values())
        except ValueError:
            self._refuse(f"the parameters of {self.function!r} can't be known; wrap it in a def")
        for parameter in parameters[method:]:
            name = parameter.name
            if name == "self":
                self._refuse(
                    "it takes 'self', so it is a method, and its object is not known; "
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
                        f"parameter {name!r} is annotated as a Context, but only a parameter "
                        f"called 'context' gets it; rename it"
                    )
                inputs[name] = parameter.default is inspect.Parameter.empty
        required = [name for name, is_required in inputs.items() if is_required]
        for field in () if special else sorted(set(self.reads).difference(fields)):
            meant = did_you_mean(field, required)
            # Only if a parameter looks like a misspelt field: reading one field more does no harm.
            if meant:
                self._refuse(f"it reads {field!r}, but no parameter has that name{meant}")
        return Parameters(tuple(fields), inputs, "state" in special, "context" in special)

    def _take(self, parameters: Parameters) -> None:
        self.takes_state: bool = parameters.takes_state
        self.takes_context: bool = parameters.takes_context
        self.access: FieldAccess = FieldAccess(
            self.name, frozenset(self.reads), frozenset(self.writes)
        )
        self.sure_writes: Collection[str] = () if self.takes_state else self.writes
        self.fields: tuple[str, ...] = parameters.fields
        self.input_names: tuple[str, ...] = tuple(parameters.inputs)
        apart = parameters.are_apart
        self._takes = {
            name: Input(self.name, need, apart) for name, need in parameters.inputs.items()
        }
        # With one write, the return value is the field's value and no mapping.
        self.only_write: str | None = next(iter(self.writes)) if len(self.writes) == 1 else None

    def _refuse(self, why: str) -> NoReturn:
        msg = f"action {self.name!r}: {why}"
        raise DefinitionError(msg)

    def executor_below(self, inherited: Place | None) -> Executor | None:
        """Return where the function is called: its own executor, or else the inherited one.

        Args:
            inherited: The nearest executor around the action; None: there is none.

        Returns None if it is called on the event loop.
        """
        if inherited is None or self.executor is not None:
            return self.default_executor
        if inherited == "loop":
            return None
        return inherited if self.is_plain or inherited.takes == "all" else None

    @functools.cached_property
    def job(self) -> Job:
        """The function, as executors know it."""
        return Job(
            function=self.function,
            name=self.name,
            kind="async" if self.is_async else "stream" if self.is_streaming else "plain",
            access=self.access if self.takes_state else None,
            takes_context=self.takes_context,
        )

    def unfit_for(self, executor: Executor | None) -> str:
        """Return why the action can't be executed there, and what to do; "" if it can.

        Args:
            executor: Where its function would be called; None: on the event loop.
        """
        if executor is not None:
            return ""
        if self.abandon:
            return (
                "only a function in a worker can be abandoned; a function on the loop is always "
                "awaited, so leave out abandon=True"
            )
        if self.timeout is not None and self.is_plain:
            return (
                "a plain function on the loop can't be interrupted, so it can't have a timeout; "
                "give the action another executor than 'loop'"
            )
        return ""

    @property
    def takes(self) -> Mapping[str, Input]:
        """The inputs that it takes, by name."""
        return self._takes

    @property
    def bound(self) -> Collection[str]:
        """The inputs that are bound."""
        return self.bound_inputs

    @property
    def needed_by(self) -> Mapping[str, str]:
        """The fields with a parameter of their own; those that ``state`` offers may be missing."""
        return dict.fromkeys(self.fields, f"action {self.name!r}")

    def exposing(self, secret: frozenset[str]) -> str:
        """Return how it would expose secret fields; see ``Act.exposing``."""
        if self.cache is not None:
            for field in sorted(secret.intersection(self.reads)):
                return (
                    f"{self.name!r} has cache= and reads {field!r}: its results would be stored "
                    f"under a hash of that; leave out cache=, or give it as an input"
                )
        return super().exposing(secret)

    def sketch(self) -> Sketch:
        """Return what drawings show of it, with the acts that its code names if it may run them."""
        more = {"streams": self.is_streaming, "cached": self.cache is not None}
        labels = (
            *of_executor(self.executor),
            *of_limits(self.limits),
            *of_retry(self.retry),
            *of_timeout(self.timeout),
        )
        # Without a context it starts no children: an act that it names it calls as a function.
        runs = [
            one for one in named_by(self.function) if self.takes_context or not isinstance(one, Act)
        ]
        labels = (*labels, *(label for label, applies in more.items() if applies))
        return Sketch("action", labels, runs, is_chosen=True)

    def perform(self, run: Performer) -> Awaitable[Change]:
        """Execute one step of ``run``; see ``Act.perform``."""
        return run.call(self)

    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        vars(self).pop("job", None)
        self.name = name
        self.bound_inputs = {**self.bound_inputs, **inputs}
        self.access = FieldAccess(name, self.access.reads, self.access.writes)
        self._takes = {
            taken: Input(name, need.required, need.is_apart)
            for taken, need in self._takes.items()
            if taken not in inputs
        }

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function itself, as if it were not decorated."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        reads, writes = sorted(self.reads), sorted(self.writes)
        return f"<action {self.name} reads={reads} writes={writes}>"


@says_where
def action(
    misplaced: None = None,
    also_misplaced: None = None,
    /,
    *,
    reads: Iterable[str] = (),
    writes: Iterable[str] = (),
    name: str | None = None,
    version: str = "1",
    executor: Executor | ExecutorName | None = None,
    limits: Limits | None = None,
    timeout: float | None = None,
    retry: Retry | None = None,
    abandon: bool = False,
    cache: float | None = None,
) -> Callable[[Callable[P, R]], FunctionAction[P, R]]:
    """Make an action of a function.

    The parameters of the function are filled by name:

    - A parameter named in ``reads`` gets that field.
    - ``state`` gets the state, narrowed to the fields that the action may read and write.
    - ``context`` gets the ``Context``.
    - Every other parameter is an input. It has the value given to ``bind``; else inputs are looked
      up in those given to the task, the run, the application and the runtime, in this order; then
      the parameter's default is used.

    An action that takes ``state`` returns a state made from it. Otherwise, with one write, the
    return value is the new value of that field. With several, it is a mapping with a value for
    each of them; with none, it is None.

    Unless ``executor`` says otherwise, a coroutine function runs on the event loop. So does an
    async generator function, which makes a *streaming action*: hooks and opened runs receive each
    value that it yields as a partial item, at once. The last one is a ``Result(value)``, whose
    value is the return value. The generator continues after a ``yield`` when all receivers of the
    item have returned. However the action ends, its generator is closed and its cleanup awaited,
    for at most 5 seconds if it is suspended at a ``yield``.

    An action that is cancelled is cancelled again at each ``await``, also in a ``finally``; see
    ``shielded`` for cleanup that awaits.

    Unless ``executor`` says otherwise, a plain function runs in a worker thread, so that it can't
    block the loop. A cancelled action is awaited, but in a worker no longer than the grace of the
    runtime, 5 seconds by default. Then a thread is left behind: it keeps its slots until the
    function returns, and the return value is dropped. (``anyio.from_thread.check_cancelled()`` ends
    it sooner.) A worker process is ended.

    With ``cache=``, the fields that the action has written are cached, under its name, its
    ``version`` and the values of the fields in ``reads``. If the store can do that, the cache is
    shared by all runs of all its processes; otherwise it holds the last 1,000 results used in the
    runtime. Inputs, and settings of an action class, don't count: actions whose results depend on
    them need different names or versions. A step with a cached result waits for no limit and no
    thread, and makes no attempt. Its update is saved and published like any other, with
    ``StepEnded.cached`` set. Failures are never cached. Steps that begin before the first result is
    there are all executed.

    Args:
        misplaced: Nothing; a function here means that the parentheses were forgotten.
        also_misplaced: Nothing; ``reads`` and ``writes`` are given by name.
        reads: Names of the fields that it reads.
        writes: Names of the fields that it writes.
        name: The name of the action in graphs, events and errors; by default the function's.
        version: Change it when the same input should give a different result than before.
        executor: Where the function is called: ``"threads"``, ``"processes"``, ``"interpreters"``,
            or an ``Executor`` of ``shoal.executors``. ``"loop"`` calls a plain function on the
            event loop, for one that is quick: nothing else runs until it returns. Without it, the
            nearest executor of the fan-outs around, the application and the runtime holds, if it
            takes functions of this kind.
        limits: How many of its attempts run at once, in all runs of a runtime together.
        timeout: Seconds that one attempt may take, from when all limits let it start and a worker,
            if it is called in one, is at it. Then the attempt is cancelled, awaited until it has
            ended, and fails with ``StepTimeout``, even if it swallows the cancellation and returns.
        retry: Which of its failures are tried again, and how often.
        abandon: Whether a worker thread is left behind, or another worker ended, as soon as the
            action is cancelled or timed out, not only after the grace.
        cache: Seconds for which a result is cached. During that time the action is not executed
            again on the same fields. ``math.inf``: for ever.

    Raises:
        DefinitionError: The function can't be an action; the message says why.

    Examples:
        >>> @action(reads=["name"], writes=["greeting"])
        ... async def greet(name: str) -> str:
        ...     return f"hello, {name}"
    """
    given_by_place: tuple[object, ...] = (misplaced, also_misplaced)
    by_place = [brief(one) for one in given_by_place if isinstance(one, list | tuple)]
    if by_place:
        names = ("reads", "writes") if len(by_place) > 1 else ("reads",)
        given = ", ".join(f"{name}={one}" for name, one in zip(names, by_place, strict=True))
        msg = f"@action takes fields by name; instead, you want: @action({given})"
        raise DefinitionError(msg)
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
        if isinstance(function, FunctionAction):  # a second action of the same function
            function = cast("FunctionAction[P, R]", function).function
        act_name = name if name is not None else getattr(function, "__name__", None)
        if not act_name or act_name == "<lambda>":
            msg = f"{function!r} has no name of its own; give one: @action(name=..., ...)"
            raise DefinitionError(msg)
        made = make_action(
            function,
            name=act_name,
            reads=read_fields,
            writes=written_fields,
            version=version,
            executor=executor,
            limits=limits,
            timeout=timeout,
            retry=retry,
            abandon=abandon,
            cache=cache,
        )
        if limits is not None:
            limits.stand_on(made)
        return made

    return decorate


def make_action(
    function: Callable[P, R],
    *,
    name: str,
    reads: Iterable[str],
    writes: Iterable[str],
    version: str,
    executor: object,
    limits: object,
    timeout: Any,
    retry: object,
    abandon: bool,
    cache: Any,
    method: bool = False,
    parameters: Parameters | None = None,
) -> FunctionAction[P, R]:
    """Check the arguments that actions of functions and of classes share, and make the action."""
    place = executor_named(executor, f"action {name!r}")
    if limits is not None and not isinstance(limits, Limits):
        msg = f"action {name!r}: limits= takes Limits(n), not {limits!r}{mended(limits)}"
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
    made = FunctionAction(
        function,
        reads=frozenset(reads),
        writes=frozenset(writes),
        name=name,
        version=version,
        executor=place,
        limits=limits,
        timeout=timeout,
        retry=retry,
        abandon=bool(abandon),
        cache=cache,
        method=method,
        parameters=parameters,
    )
    why = made.unfit_for(made.default_executor)
    if isinstance(place, Threads):  # others can tell only once the module is imported
        why = place.refuse(made.job, {})
    if why:
        made._refuse(why)
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
        "no partial items would be published": made.is_streaming,
        "nothing would be done with its context, such as asking or emitting": made.takes_context,
        "there would be no result, because it writes nothing": not made.writes,
    }
    for why, applies in reasons.items():
        if applies:
            made._refuse(f"it can't have cache=: when its result is cached, {why}")


def field_names(names: Iterable[str], where: str) -> frozenset[str]:
    """Check a user's ``reads=`` or ``writes=``, and return the names."""
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
    """Return whether an annotation is shoal's ``Context``: the class, or its name as a string."""
    if isinstance(annotation, str):
        annotation = getattr(function, "__globals__", {}).get(annotation)
    if not isinstance(annotation, type) or annotation.__name__ != "Context":
        return False
    # By name, because the engine, which defines it, may not be imported here.
    return annotation.__module__.partition(".")[0] == __name__.partition(".")[0]
