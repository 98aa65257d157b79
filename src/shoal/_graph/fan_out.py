"""Fan-outs: a child for each of many elements, for each of several acts, or for both.

Imports acts and policies. What their children are made of in a run is said in ``_elements``.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, NoReturn, cast, final, overload

from shoal._errors.exceptions import DefinitionError
from shoal._events.events import Done
from shoal._events.hooks import Hook
from shoal._limits.limits import DEFAULT_LIMITS, Limits
from shoal._state.functions import is_async, is_streaming, require_plain
from shoal._state.state import Permit, State
from shoal.stores._protocol import Store

from .action import Act, Input, bind_where_taken, field_names, merged_inputs, versions
from .acts import Acts, as_graphs, check_acts, check_wanted
from .checks import check_policies, check_stagger
from .graph import Graph, no_act
from .parallel import Grow, Join, Parallel, Reduce, Shape, Take
from .policy import INHERIT, Each, Inherit, OnError, Stagger, Tolerate
from .until import ALL, All, Asked, EndCondition, Until, as_condition

Over = str | Callable[[State], Iterable[Any] | AsyncIterable[Any]]


@final
class FanOut(Parallel):
    """An act that runs a child for each element, each act, or both. Made by ``fan_out``."""

    def __init__(
        self,
        join: Join,
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
    ) -> None:
        """Use ``fan_out``, which checks all this."""
        self.join: Join = join
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
        self.store = store
        self.hooks = hooks
        self.version: str = "" if callable(acts) else versions(acts)
        self.each = each
        self.timeout = timeout
        self._take = take
        self._several = several
        self._is_keyed: bool | None = None if over is None else key is not None
        self._bound: Mapping[str, object] = {}
        self.reads: Collection[str] = reads
        self.writes: Collection[str] = join.permit.writes
        self.continues: Collection[str] = join.continues
        self.sure_writes: Collection[str] = frozenset(
            f for f in (join.into, join.errors_into) if f is not None
        )

    @property
    def definition(self) -> object:
        """What all that is bound of one fan-out has in common: its latencies, and its rates."""
        return self._definition

    @property
    def _brought(self) -> frozenset[str]:
        """Fields that children don't find in the parent's state."""
        return frozenset() if self.over is None else frozenset((self.item,))

    @property
    def _graphs(self) -> Sequence[Graph]:
        return () if callable(self.acts) else self.acts

    @property
    def takes(self) -> Mapping[str, Input]:
        """What its children take besides fields, by name."""
        return merged_inputs(self._graphs)

    @property
    def takes_more(self) -> bool:
        """Whether it may take inputs that nobody knows before it runs."""
        return callable(self.acts) or any(graph.takes_more for graph in self.acts)

    @property
    def needed_by(self) -> Mapping[str, str]:
        """What it runs over, if that is a field, and what its children can't do without."""
        needed = {
            field: f"{who} in fan-out {self.name!r}, whose element is {self.item!r} (see item=),"
            for graph in self._graphs
            for field, who in graph.needed_by.items()
            if field not in self._brought
        }
        if isinstance(self.over, str):
            needed[self.over] = f"fan-out {self.name!r}, which runs over it,"
        return needed

    def exposing(self, secret: frozenset[str]) -> str:
        """Say how it, or a child, would have secret fields saved or told; see ``Act.exposing``."""
        if isinstance(self.over, str) and self.over in secret:
            return f"fan-out {self.name!r} runs over {self.over!r}, and elements are saved and told"
        if self.item in secret and self.over is not None:
            return (
                f"fan-out {self.name!r} gives its elements as {self.item!r}, and elements are "
                f"saved and told: give them another name, item=..."
            )
        for field in sorted(secret.intersection(self._taken)):
            return f"fan-out {self.name!r} takes {field!r}, and values are saved and told"
        found = (super().exposing(secret), *(graph.exposing(secret) for graph in self._graphs))
        return next(filter(None, found), "")

    @property
    def _taken(self) -> Collection[str]:
        """The fields of a child's state that are its value, if ``take`` names them."""
        take = self._take
        return (take,) if isinstance(take, str) else () if take is None or callable(take) else take

    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        permit = self.join.permit
        self.join = replace(self.join, name=name, permit=replace(permit, action=name))
        self.name = name
        self._bound = {**inputs, **self._bound}
        if not callable(self.acts):
            self.acts = [bind_where_taken(graph, inputs) for graph in self.acts]

    def _join(self) -> Join:
        return self.join

    @property
    def for_children(self) -> Sequence[Graph]:
        """What its children execute, unless that is chosen later."""
        return self._graphs

    def __repr__(self) -> str:
        acts = "chosen acts" if callable(self.acts) else ", ".join(a.name for a in self.acts)
        return f"<fan_out {self.name} of {acts}>"


def shape_of(over: Over | None, key: object, until: EndCondition, *, several: bool) -> Shape:
    """Say how results are arranged."""
    if until.picks_one:
        return "one"
    if over is None:
        return "by act"
    if several:
        return "by position and act" if key is None else "by key and act"
    return "by position" if key is None else "by key"


# Where failures end the step, `reduce` and `grow` are only ever given what is Done.


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
) -> FanOut: ...


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
) -> FanOut:
    """Make an act that runs many children at once, and joins their results.

    There is a child for each of many elements (``over``), for each of several acts (a list of
    them), or for each act and element. Every child is a run of its own: it starts from the parent's
    state as it was when the step began, narrowed to what its act reads, plus its element. Elements
    are pulled as there is room. When a child ends, its result is applied to the parent's state at
    once, by an update like any other: saved, published, and seen by hooks.

    If the step is cancelled, so are its children; it ends when they have, their ``finally`` blocks
    included, and what had been applied stays. Nothing that it started outlives it. An ``await`` in
    a ``finally`` is cancelled again at once, unless ``shielded`` is around it.

    Args:
        act: What each child executes: an action, a graph, another fan-out; a list of them; or a
            plain function of the state that returns one or a list, called when the step begins.
        over: The elements: a field of the state, or a plain function of the state that returns an
            iterable or async iterable. Infinite ones are fine. Left out, the acts of a list run
            once each.
        item: The field in which a child finds its element.
        key: What names a child: a plain function of the element that returns a str or int, or the
            name of a field of it. Without it, its position. A member of an enum that is a str or
            int becomes that. Keys make work idempotent: an element whose key is in ``into`` from
            the start is skipped; in a loop, on the first visit.
        into: The field that collects the children's values: with ``key`` a mapping, without it a
            list; for a list of acts ``{key: {act: value}}``, without ``over`` ``{act: value}``. In
            input order at every moment, whatever order they end in.
        take: What of a child's final state is its value: a field, a list of fields (for a dict of
            them), or a plain function of that state. By default the field that is called as
            ``into``, or the only one that the act writes.
        errors_into: The field that collects failures, arranged as ``into`` with ``key``, with an
            ``ErrorInfo`` for each.
        reduce: Instead of ``into``: a plain function ``(state, outcome) -> state``, called for each
            result as it arrives, and for failures that are collected. It sees the fan-out's
            ``reads`` and ``writes``.
        grow: A plain function ``(state, outcome) -> new elements``, called after the result was
            reduced: a frontier that discovers its own work. Elements whose key is known are dropped
            and counted, here and in ``over``.
        at_most: Children to start in all.
        until: What ends it before all children have ended: ``first(n)``, ``quorum(n)``,
            ``first_item()``, or a plain function ``(state, outcome) -> bool``, called after each
            outcome's update. The others are then cancelled, and awaited. By default ``all_()``.
        on_error: By default ``"fail"``: the first failure cancels the others, and the step raises
            an ``ExceptionGroup`` of all failures, in input order. With ``"collect"``, failures are
            data: for ``errors_into``, ``reduce`` and the result's ledger; with ``"ignore"`` for the
            ledger only. ``Tolerate(...)`` collects until there are too many, then fails. Not with
            ``first``, ``quorum`` and ``first_item``: there a failure only removes a contestant.
        stagger: Seconds from the start of one child to the start of the next, which starts at once
            when a child fails or is refused. With ``math.inf`` one at a time: the next starts when
            the one before has ended. In a race also ``Hedge(...)``, which learns the delay. By
            default all start at once, as far as there is room.
        limits: How many children are in flight; by default 100, or all of a race among acts.
        again: Whether elements whose key is in ``into`` already run again. By default they do on
            every visit of the step but the first; True: on the first too; False: never. What
            executions before a crash have recorded counts first, whatever this says.
        each: What goes for each child by itself: its timeout, its retry.
        timeout: Seconds that the whole step may take, whatever it waits for. Then the children are
            cancelled and awaited, and it raises ``StepTimeout``; what was applied by then stays.
        name: What the fan-out is called; by default the name in ``into``.
        reads: Fields that ``act`` and ``over`` (if functions, where it must be given), ``reduce``
            and ``grow`` read; those that the children and ``over`` (if a field) read are known.
        writes: Fields that ``reduce`` writes; ``into`` and ``errors_into`` are known.
        store: Where the children are kept instead of where the run is; None: nowhere, but for how
            they ended.
        hooks: Who is told of the children and their descendants, instead of the run's hooks.

    Raises:
        DefinitionError: The arguments don't fit together, and why.

    While it runs, the step raises ``BadKey`` for a repeated key, ``BadResult`` where a function
    returns what it must not, and whatever those functions raise.

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
        # What is wrong with a function is wrong under any name.
        _Checks("").functions(reduce=reduce, grow=grow)
        msg = "a fan_out without into= needs a name: fan_out(..., name=...)"
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
        checks.refuse("until=first_item() decides before there are results that grow= could take")
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
    join = Join(
        name=label,
        permit=Permit(label, readable | writable, writable),
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
    )


class _Checks(NamedTuple):
    """What is refused when a fan-out is built."""

    name: str

    def refuse(self, why: str) -> NoReturn:
        msg = f"{self.who}: {why}"
        raise DefinitionError(msg)

    @property
    def who(self) -> str:
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
        if is_async(act) or is_streaming(act) or not _takes_one(act):
            raise DefinitionError(no_act(act, f"fan_out {self.name!r}"))
        return cast("Callable[[State], Act | Sequence[Act]]", act), False

    def over(self, over: object, key: object, grow: object) -> None:
        if over is None:
            for parameter, value in (("key", key), ("grow", grow)):
                if value is not None:
                    self.refuse(f"{parameter}= is about elements, but there is no over=")
            return
        if isinstance(over, str) or inspect.isasyncgenfunction(over):
            return  # calling the latter waits for nothing: it gives an async iterable
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
                    f"{parameter}= is a function, so what it reads of the state can't be known; "
                    f"declare it: reads=[...], or reads=[] for nothing"
                    f"{meant if parameter == 'act' else ''}"
                )

    def functions(self, **given: object) -> None:
        for parameter, value in given.items():
            if value is not None:
                require_plain(value, f"{self.who}: {parameter}=")

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
            self.refuse("into= and reduce= both say what becomes of results; give one of them")
        if into is not None and into == errors_into:
            self.refuse(f"into= and errors_into= are both {into!r}; name two fields")

    def race(self, until: EndCondition, on_error: object, errors_into: object) -> None:
        if not until.is_race:
            return
        for parameter, value in (("on_error", on_error), ("errors_into", errors_into)):
            if value is not None:
                self.refuse(
                    f"with until={until.name}(...) a failure only removes a contestant, so "
                    f"{parameter}= can't be given; result.outcomes({self.name!r}) tells who failed"
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
                "again=False skips elements, but what a skipped element would make grow return is "
                "not known; leave one of them out"
            )
        if is_race and again is False:
            self.refuse("again=False skips elements, and in a race none is; leave it out")

    def writes(self, writes: Iterable[str], reduce: Reduce | None) -> frozenset[str]:
        fields = field_names(writes, "writes")
        if reduce is not None and not fields:
            self.refuse("what reduce= writes can't be known; declare it: writes=[...]")
        return fields


def _takes_one(function: Callable[..., object]) -> bool:
    """Tell whether ``function`` can be called with the state alone."""
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):
        return False
    return True
