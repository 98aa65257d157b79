"""Fan-outs: a child for each of many elements, for each of several acts, or for both."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, NoReturn, cast, final, overload

from shoal._errors.completion import hides
from shoal._errors.exceptions import DefinitionError
from shoal._errors.misplaced import says_where
from shoal._events.events import Done
from shoal._events.hooks import Hook
from shoal._limits.limits import DEFAULT_LIMITS, Limits
from shoal._state.functions import is_async, is_streaming, require_plain, signature_of
from shoal._state.state import FieldAccess, State
from shoal.executors._named import ExecutorName
from shoal.executors._port import Executor
from shoal.stores._protocol import Store

from .act import Act, Input, bind_where_taken, merged_inputs, versions
from .action import field_names
from .acts import Acts, as_graphs, check_acts, check_wanted
from .checks import check_policies, check_stagger
from .graph import Graph, is_of_burr, no_act
from .parallel import Grow, JoinSpec, Parallel, Reduce, Shape, Take
from .policy import INHERIT, Each, Inherit, OnError, Stagger, Title, Tolerate
from .sketch import Sketch, named, named_by
from .until import ALL, All, Asked, EndCondition, Until, as_condition

Over = str | Callable[[State], Iterable[Any] | AsyncIterable[Any]]


@hides("acts at_most join")
@final
class FanOut(Parallel):
    """An act that runs a child for each element, each act, or both. Made by ``fan_out``."""

    def __init__(
        self,
        join: JoinSpec,
        *,
        acts: Sequence[Graph] | Callable[[State], Act | Sequence[Act]],
        several: bool,
        over: Over | None,
        item: str,
        key: str | Callable[[Any], object] | None,
        take: Take | None,
        at_most: int | None,
        limits: Limits | None,
        each: Each | None,
        timeout: float | None,
        stagger: Stagger | None,
        reads: frozenset[str],
        store: Store | Inherit | None = INHERIT,
        hooks: Sequence[Hook] | Inherit = INHERIT,
        title: Title | None = None,
        executor: Executor | ExecutorName | None = None,
        ahead: int | None = None,
    ) -> None:
        """Store the arguments of ``fan_out``, which checks them."""
        self.join: JoinSpec = join
        self.name: str = join.name
        self.acts: Sequence[Graph] | Callable[[State], Act | Sequence[Act]] = acts
        self.over: Over | None = over
        self.item = item
        self.key = key
        self.at_most = at_most
        self._unlimited: bool = limits is None
        self.limits: Limits = DEFAULT_LIMITS if limits is None else limits
        self.stagger = stagger
        self._definition = self
        self.limits.stand_on(self)
        self.store = store
        self.hooks = hooks
        self.title = title
        self.executor: ExecutorName | Executor | None = executor
        self.ahead = ahead
        self.version: str = "" if callable(acts) else versions(acts)
        self.each = each
        self.timeout = timeout
        self._take = take
        self._several = several
        self._is_keyed: bool | None = None if over is None else key is not None
        self._bound: Mapping[str, object] = {}
        self.reads: Collection[str] = reads
        self.writes: Collection[str] = join.access.writes
        self.continues: Collection[str] = join.continues
        self.sure_writes: Collection[str] = frozenset(
            f for f in (join.into, join.errors_into) if f is not None
        )

    @property
    def definition(self) -> object:
        """The fan-out that this one is a bound copy of, or itself.

        Rates and the latencies for hedging are counted by it.
        """
        return self._definition

    @property
    def _brought(self) -> frozenset[str]:
        """The fields that the fan-out adds to the state of its children."""
        return frozenset() if self.over is None else frozenset((self.item,))

    @property
    def _graphs(self) -> Sequence[Graph]:
        return () if callable(self.acts) else self.acts

    @property
    def takes(self) -> Mapping[str, Input]:
        """The inputs that its children take, by name."""
        return merged_inputs(self._graphs)

    @property
    def bound(self) -> Collection[str]:
        """The inputs that are bound, for all its children or in each act that would take them."""
        names = {name for graph in self._graphs for name in graph.bound}
        return names.union(self._bound).difference(self.takes)

    @property
    def takes_more(self) -> bool:
        """Whether its children may take inputs that are only known while it runs."""
        return callable(self.acts) or any(graph.takes_more for graph in self.acts)

    @property
    def needed_by(self) -> Mapping[str, str]:
        """The field that it runs over, if it is one, and the fields that its children need."""
        needed = {
            field: f"{reader} in fan-out {self.name!r}, {self._hint(graph, field)},"
            for graph in self._graphs
            for field, reader in graph.needed_by.items()
            if field not in self._brought
        }
        if isinstance(self.over, str):
            needed[self.over] = f"fan-out {self.name!r}, which runs over it,"
        return needed

    def _hint(self, graph: Graph, field: str) -> str:
        """Say where children find their element, for an error about a field that they lack."""
        # The most frequent slip: the element is where no action looks for it.
        is_unread = self.over is not None and self.item not in graph.reads
        if_it_is = f"; if {field!r} is the element, write item={field!r}" if is_unread else ""
        return f"whose element is {self.item!r} (see item={if_it_is})"

    def exposing(self, secret: frozenset[str]) -> str:
        """Return how it or a child would expose secret fields; see ``Act.exposing``."""
        if isinstance(self.over, str) and self.over in secret:
            return (
                f"fan-out {self.name!r} runs over {self.over!r}, and elements are saved and "
                f"published"
            )
        if self.item in secret and self.over is not None:
            return (
                f"fan-out {self.name!r} gives its elements as {self.item!r}, and elements are "
                f"saved and published: give them another name, item=..."
            )
        for field in sorted(secret.intersection(self._taken)):
            return f"fan-out {self.name!r} takes {field!r}, and values are saved and published"
        found = (super().exposing(secret), *(graph.exposing(secret) for graph in self._graphs))
        return next(filter(None, found), "")

    @property
    def _taken(self) -> Collection[str]:
        """The fields that ``take`` names; none if it is a function or not given."""
        take = self._take
        return (take,) if isinstance(take, str) else () if take is None or callable(take) else take

    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        access = self.join.access
        self.join = replace(self.join, name=name, access=replace(access, action=name))
        self.name = name
        self._bound = {**self._bound, **inputs}
        if not callable(self.acts):
            self.acts = [bind_where_taken(graph, inputs) for graph in self.acts]

    def _join(self) -> JoinSpec:
        return self.join

    def sketch(self) -> Sketch:
        """Return what drawings show of it: the acts of its children, as far as they are known."""
        chosen = callable(self.acts)
        over, key = self.over, self.key
        labels: list[str] = []
        if over is not None:
            elements = over if isinstance(over, str) else named(over)
            by = "" if key is None else f" by {key if isinstance(key, str) else named(key)}"
            labels.append(f"over {elements}{by}")
        if chosen:
            labels.append(f"acts of {named(self.acts)}")
        return Sketch(
            "race" if self.join.is_race else "fan-out",
            (*labels, *self._said()),
            named_by(self.acts) if callable(self.acts) else self.acts,
            is_chosen=chosen,
            is_many=over is not None,
        )

    @property
    def for_children(self) -> Sequence[Graph]:
        """The acts of its children, unless they are chosen at run time."""
        return self._graphs

    def __repr__(self) -> str:
        acts = "chosen acts" if callable(self.acts) else ", ".join(a.name for a in self.acts)
        return f"<fan_out {self.name} of {acts}>"


def shape_of(over: Over | None, key: object, until: EndCondition, *, several: bool) -> Shape:
    """Return how results are arranged in ``into``."""
    if until.picks_one:
        return "one"
    if over is None:
        return "by act"
    if several:
        return "by position and act" if key is None else "by key and act"
    return "by position" if key is None else "by key"


# Two overloads, because `reduce` and `grow` receive only `Done` if a failure ends the step.


@overload
def fan_out(
    act: Acts,
    *,
    over: Over | None = None,
    item: str = "item",
    key: str | Callable[[Any], object] | None = None,
    into: str | None = None,
    take: Take | None = None,
    errors_into: str | None = None,
    reduce: Callable[[State, Done], State] | None = None,
    grow: Callable[[State, Done], Iterable[Any]] | None = None,
    at_most: int | None = None,
    until: Until | None = None,
    on_error: Literal["fail"] | None = None,
    stagger: Stagger | None = None,
    limits: Limits | None = None,
    again: bool | None = None,
    each: Each | None = None,
    timeout: float | None = None,
    name: str | None = None,
    reads: Iterable[str] | None = None,
    writes: Iterable[str] = (),
    store: Store | Inherit | None = INHERIT,
    hooks: Sequence[Hook] | Inherit = INHERIT,
    title: Title | None = None,
    executor: Executor | ExecutorName | None = None,
    ahead: int | None = None,
) -> FanOut: ...


@overload
def fan_out(
    act: Acts,
    *,
    over: Over | None = None,
    item: str = "item",
    key: str | Callable[[Any], object] | None = None,
    into: str | None = None,
    take: Take | None = None,
    errors_into: str | None = None,
    reduce: Reduce | None = None,
    grow: Grow | None = None,
    at_most: int | None = None,
    until: All | Asked | None = None,
    on_error: Literal["collect", "ignore"] | Tolerate,
    stagger: Stagger | None = None,
    limits: Limits | None = None,
    again: bool | None = None,
    each: Each | None = None,
    timeout: float | None = None,
    name: str | None = None,
    reads: Iterable[str] | None = None,
    writes: Iterable[str] = (),
    store: Store | Inherit | None = INHERIT,
    hooks: Sequence[Hook] | Inherit = INHERIT,
    title: Title | None = None,
    executor: Executor | ExecutorName | None = None,
    ahead: int | None = None,
) -> FanOut: ...


@says_where
def fan_out(
    act: Acts,
    *,
    over: Over | None = None,
    item: str = "item",
    key: str | Callable[[Any], object] | None = None,
    into: str | None = None,
    take: Any | None = None,
    errors_into: str | None = None,
    reduce: Any | None = None,
    grow: Any | None = None,
    at_most: int | None = None,
    until: Until | None = None,
    on_error: OnError | None = None,
    stagger: Stagger | None = None,
    limits: Limits | None = None,
    again: bool | None = None,
    each: Each | None = None,
    timeout: float | None = None,
    name: str | None = None,
    reads: Iterable[str] | None = None,
    writes: Iterable[str] = (),
    store: Store | Inherit | None = INHERIT,
    hooks: Sequence[Hook] | Inherit = INHERIT,
    title: Title | None = None,
    executor: Executor | ExecutorName | None = None,
    ahead: int | None = None,
) -> FanOut:
    """Make an act that runs many children at once and joins their results.

    There is a child for each of many elements (``over``), for each of several acts (a list of
    them), or for each act and element. Every child is a run of its own. It starts from the parent's
    state as it was when the step began, narrowed to the fields that its act reads, plus its
    element. Elements are pulled as there is room. When a child ends, its result is applied to the
    parent's state at once, as an update like any other: saved, and published to hooks.

    If the step is cancelled, so are its children. It ends when they have ended, their ``finally``
    blocks included, and results that were applied stay. Nothing that it started outlives it. An
    ``await`` in a ``finally`` is cancelled again at once, unless it is inside ``shielded``.

    Args:
        act: The act of each child: an action, a graph, another fan-out; a list of them; or a plain
            function of the state that returns an act or a list, called when the step begins.
        over: The elements: a field of the state, or a plain function of the state that returns an
            iterable or async iterable, which may be infinite. Without it, each act of a list runs
            once.
        item: The field in which a child finds its element.
        key: The key of a child: a plain function of the element that returns a str or int, or the
            name of a field of the element. By default the element's position. A member of an enum
            that is a str or int becomes that. Keys make work idempotent: an element whose key is in
            ``into`` when the step begins is skipped; in a loop, only on the first visit.
        into: The field that collects the children's values: a mapping with ``key``, a list without;
            for a list of acts ``{key: {act: value}}``, and without ``over`` ``{act: value}``. It is
            in input order at every moment, in whatever order the children end. If a loop comes
            back to the step, it begins empty, unless ``again=False`` keeps it; ``errors_into``
            begins empty on every visit.
        take: The part of a child's final state that is its value: a field, a list of fields (for a
            dict of them), or a plain function of that state. By default the field with the name in
            ``into``, or the only field that the act writes.
        errors_into: The field that collects failures, each an ``ErrorInfo``, arranged as ``into``
            is with ``key``.
        reduce: Instead of ``into``: a plain function ``(state, outcome) -> state``, called for each
            result as it arrives, and for failures that are collected. Its state has the fields in
            the fan-out's ``reads`` and ``writes``.
        grow: A plain function ``(state, outcome) -> new elements``, called after the result was
            reduced, for a frontier that discovers its own work. Elements with a known key are
            dropped and counted, also those of ``over``.
        at_most: The most children to start.
        until: The condition that ends the step before all children have ended: ``first(n)``,
            ``quorum(n)``, ``first_item()``, or a plain function ``(state, outcome) -> bool``,
            called after each outcome's update. The other children are then cancelled and awaited.
            By default ``all_()``.
        on_error: With ``"fail"``, the default, the first failure cancels the other children, and
            the step raises an ``ExceptionGroup`` of all failures, in input order. With
            ``"collect"``, failures are data, for ``errors_into``, ``reduce`` and the result's
            ledger; with ``"ignore"``, for the ledger alone. ``Tolerate(...)`` collects failures
            until there are too many, then fails. It can't be given with ``first``, ``quorum`` and
            ``first_item``, where a failure only removes a contestant.
        stagger: Seconds from the start of one child to the start of the next. If a child fails or
            is refused, the next one starts at once. With ``math.inf``, the next child starts when
            the one before has ended. In a race, ``Hedge(...)`` learns the delay. By default all
            children start at once, as far as there is room.
        limits: How many children are in flight; by default 100, or all in a race of several acts.
        again: Whether elements whose key is in ``into`` already run again. By default they do on
            every visit of the step but the first. True: on the first too. False: never, and
            ``into`` keeps the results of all visits. Results recorded before a crash count in any
            case.
        each: The timeout, retries and circuit breaker of each child.
        timeout: Seconds that the whole step may take, waits included. Then the children are
            cancelled and awaited, and the step raises ``StepTimeout``. Results that were applied
            stay. A resumed run has the whole time again.
        name: The name of the fan-out; by default the name in ``into``.
        reads: The fields read by ``reduce``, ``grow``, and ``act`` and ``over`` if they are
            functions, in which case it must be given. Fields that the children read, and the field
            in ``over``, are known.
        writes: The fields that ``reduce`` writes; ``into`` and ``errors_into`` are known.
        store: The store of the children, instead of the run's. None: they aren't saved, except for
            their outcomes.
        hooks: The hooks that receive the events of the children and their descendants, instead of
            the run's.
        title: What watchers call the fan-out: progress displays, reports, pages. Or a plain
            function of the state that a child starts with, which names the child; it is called only
            for children that are shown. If it raises, that is shown instead.
        executor: Where the actions of the children and their descendants are called: ``"loop"``,
            ``"threads"``, ``"processes"``, ``"interpreters"``, or an ``Executor`` of
            ``shoal.executors``. It goes
            before those of the run and the application; one of a fan-out further down, or of the
            action itself, goes before it.
        ahead: How many elements may be pulled for children that can't start yet, because a limit is
            closed. By default 2 if all children wait for the same, and the greater of 64 and four
            times the limit if ``by=`` or ``share=`` of a limit, or several acts, let others start
            first, and for a ``SharedRate``. At most so many elements more than ``limits`` allows in
            flight are pulled and not ended, those of children that wait for another attempt
            included. Give a small number if pulling an element takes it away from others, as from a
            queue. With 0 an element is pulled only when its child can start. Where only the element
            tells (``by=``, ``cost=``, ``share=``, several acts), and if limits have closed while an
            async source took its time, one waits all the same. If it is given, an async source is
            pulled while all places are taken, too.

    Raises:
        DefinitionError: The arguments don't fit together; the message says why.

    While it runs, the step raises ``BadKey`` for a repeated key, ``BadResult`` for an invalid
    return value of one of those functions, and whatever they raise.

    Examples:
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> squares = fan_out(square, over="numbers", item="n", into="squares", take="square")
        >>> Application(squares).run_sync({"numbers": [1, 2, 3]}).state["squares"]
        [1, 4, 9]
    """
    label = name or into or errors_into
    if not label:
        # First, because a coroutine function needs mending under any name.
        _Checks("").functions(reduce=reduce, grow=grow)
        msg = (
            "a fan_out or race without into= needs a name: give into=..., the field for what comes "
            "of it, or name=..."
        )
        raise DefinitionError(msg)
    checks = _Checks(label)
    checks.names(name=name, item=item, into=into, errors_into=errors_into)
    graphs, several = checks.acts(act, over)
    checks.over(over, key, grow)
    checks.functions(
        key=None if isinstance(key, str) else key,
        take=None if isinstance(take, Sequence) else take,
        reduce=reduce,
        grow=grow,
    )
    checks.declared(act, over, reads)
    ends = ALL if until is None else as_condition(f"fan_out {label!r}", until)
    checks.race(ends, on_error, errors_into)
    if ends.by_item and grow is not None:
        checks.refuse("until=first_item() decides before there are results for grow= to receive")
    if on_error is None:
        on_error = "ignore" if ends.is_race else "fail"
    checks.results(into, errors_into, reduce, on_error)
    limited = limits is not None or over is not None or not ends.is_race
    limits = DEFAULT_LIMITS if limits is None else limits
    check_policies(
        f"fan_out {label!r}",
        on_error=on_error,
        at_most=at_most,
        limits=limits,
        store=store,
        hooks=hooks,
        each=each,
        timeout=timeout,
        title=title,
        executor=executor,
        ahead=ahead,
    )
    check_stagger(f"fan_out {label!r}", stagger, ends)
    checks.again(again, key, into, grow, is_race=ends.is_race)
    brought = set[str]() if over is None else {item}
    known = () if callable(graphs) else graphs
    if known and over is None:
        check_wanted(f"fan_out {label!r}", ends, len(known))
    if at_most is not None:
        check_wanted(f"fan_out {label!r}", ends, at_most)
    check_acts(known, brought, cast("Take | None", take), into, label)
    writable = checks.writes(writes, reduce) | {f for f in (into, errors_into) if f is not None}
    readable = field_names(reads or (), "reads") | ({over} if isinstance(over, str) else set[str]())
    readable = readable.union(*(graph.reads - brought for graph in known))
    join = JoinSpec(
        name=label,
        access=FieldAccess(label, readable | writable, writable),
        into=into,
        errors_into=errors_into,
        shape=shape_of(over, key, ends, several=several),
        reduce=reduce,
        grow=grow,
        on_error=on_error,
        until=ends,
        again=again,
    )
    return FanOut(
        join,
        acts=graphs,
        several=several,
        over=over,
        item=item,
        key=key,
        take=cast("Take | None", take),
        at_most=at_most,
        limits=limits if limited else None,
        each=each,
        timeout=timeout,
        stagger=stagger,
        reads=readable,
        store=store,
        hooks=hooks,
        title=title,
        executor=executor,
        ahead=ahead,
    )


class _Checks(NamedTuple):
    """Checks of the arguments of ``fan_out``. Each method raises ``DefinitionError``."""

    name: str

    def refuse(self, why: str) -> NoReturn:
        msg = f"{self.subject}: {why}"
        raise DefinitionError(msg)

    @property
    def subject(self) -> str:
        return f"fan_out {self.name!r}" if self.name else "fan_out"

    def acts(
        self, act: object, over: object
    ) -> tuple[Sequence[Graph] | Callable[[State], Act | Sequence[Act]], bool]:
        if isinstance(act, Act | Sequence) or not callable(act) or isinstance(act, type):
            graphs, several = as_graphs(cast("object", act), f"fan_out {self.name!r}")
            if over is None and not several:
                self.refuse(
                    "there is nothing to fan out over: give over=..., or a list of acts to run "
                    "side by side"
                )
            return graphs, several
        if is_async(act) or is_streaming(act) or not _takes_one(act) or is_of_burr(act):
            raise DefinitionError(no_act(act, f"fan_out {self.name!r}"))
        return cast("Callable[[State], Act | Sequence[Act]]", act), False

    def over(self, over: object, key: object, grow: object) -> None:
        if over is None:
            for parameter, value in (("key", key), ("grow", grow)):
                if value is not None:
                    self.refuse(f"{parameter}= is about elements, but there is no over=")
            return
        if isinstance(over, str) or inspect.isasyncgenfunction(over):
            return  # calling an async generator function returns an async iterable, at once
        if not callable(over):
            self.refuse(
                f"over= takes the name of a field or a function of the state, not a "
                f"{type(over).__name__}; pass the elements to run() in a field, "
                f"or write over=lambda state: elements"
            )
        self.functions(over=over)

    def declared(self, act: object, over: object, reads: object) -> None:
        if reads is not None:
            return
        for parameter, value in (("over", over), ("act", act)):
            if callable(value) and not isinstance(value, Act):
                meant = "; if it was meant to be the action itself, decorate it: @action(...)"
                self.refuse(
                    f"{parameter}= is a function, so the fields that it reads can't be known; "
                    f"declare them: reads=[...], or reads=[] for none"
                    f"{meant if parameter == 'act' else ''}"
                )

    def functions(self, **given: object) -> None:
        for parameter, value in given.items():
            if value is not None:
                require_plain(value, f"{self.subject}: {parameter}=")

    def names(self, **given: object) -> None:
        for parameter, value in given.items():
            if value is not None and not isinstance(value, str):
                self.refuse(f"{parameter}= takes a name, not {value!r}")

    def results(
        self, into: str | None, errors_into: str | None, reduce: Reduce | None, on_error: OnError
    ) -> None:
        if errors_into is not None and on_error == "fail":
            self.refuse(
                "errors_into= collects failures, but with on_error='fail' the first one ends the "
                "step; give on_error='collect'"
            )
        if errors_into is not None and on_error == "ignore":
            self.refuse("errors_into= collects failures; that is on_error='collect', not 'ignore'")
        if into is not None and reduce is not None:
            self.refuse("into= and reduce= both take the results; give one of them")
        if into is not None and into == errors_into:
            self.refuse(f"into= and errors_into= are both {into!r}; name two fields")

    def race(self, until: EndCondition, on_error: object, errors_into: object) -> None:
        if not until.is_race:
            return
        for parameter, value in (("on_error", on_error), ("errors_into", errors_into)):
            if value is not None:
                self.refuse(
                    f"with until={until.name}(...) a failure only removes a contestant, so "
                    f"{parameter}= can't be given; result.outcomes({self.name!r}) has the failures"
                )

    def again(
        self, again: object, key: object, into: object, grow: object, *, is_race: bool
    ) -> None:
        if again is None:
            return
        if not isinstance(again, bool):
            self.refuse(f"again= is True, False or left out, not {again!r}")
        if key is None or into is None:
            self.refuse(
                "again= says whether elements whose key is in into= already run again, so it needs "
                "both key= and into="
            )
        if grow is not None and again is False:
            self.refuse(
                "again=False skips elements, but the elements that grow= would return for a "
                "skipped one are not known; leave one of them out"
            )
        if is_race and again is False:
            self.refuse("again=False skips elements, but a race skips none; leave it out")

    def writes(self, writes: Iterable[str], reduce: Reduce | None) -> frozenset[str]:
        fields = field_names(writes, "writes")
        if reduce is not None and not fields:
            self.refuse("the fields that reduce= writes can't be known; declare them: writes=[...]")
        return fields


def _takes_one(function: Callable[..., object]) -> bool:
    """Return whether ``function`` can be called with the state alone."""
    try:
        signature_of(function).bind(None)
    except (TypeError, ValueError):
        return False
    return True
