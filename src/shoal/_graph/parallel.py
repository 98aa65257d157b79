"""Parallel acts: the base class of all acts whose work is children, and how results are joined.

Invariants:
- Results are collected in a persistent collection, arranged as ``Shape`` says, whatever collection
  the field held before.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Any, Literal, cast, final

from shoal._errors.completion import hides
from shoal._errors.exceptions import StateError, brief, kind_of
from shoal._events.events import Done, Failed
from shoal._events.hooks import Hook
from shoal._events.identity import Key
from shoal._limits.limits import DEFAULT_LIMITS, Limits
from shoal._state.collections import PositionedList, StateMap
from shoal._state.schema import Schema
from shoal._state.state import NO_CHANGE, Change, FieldAccess, State
from shoal.executors._named import ExecutorName, executor_named
from shoal.executors._port import Executor
from shoal.stores._protocol import Store

from .act import Act, Performer
from .graph import Graph
from .picture import drawing_of
from .policy import INHERIT, Each, Hedge, Inherit, OnError, Stagger, Title, Tolerate
from .sketch import named, of_executor, of_limits, of_retry, of_timeout, seconds
from .until import ALL, EndCondition

Reduce = Callable[[State, Done | Failed], State]
Grow = Callable[[State, Done | Failed], Iterable[Any]]
Take = str | Sequence[str] | Callable[[State], Any]

Collected = StateMap[Any, Any] | PositionedList[Any]
"""The collection in a field of results or failures."""

Shape = Literal["by key", "by position", "by key and act", "by position and act", "by act", "one"]
"""How ``into`` and ``errors_into`` are arranged; ``"one"``: a single value, no collection."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSpec:
    """How a parallel step joins the results of its children into the parent's state."""

    name: str
    """The name of the step."""
    access: FieldAccess
    """The fields of the parent's state that ``reduce`` and ``grow`` may read and write."""
    into: str | None = None
    errors_into: str | None = None
    shape: Shape = "by key"
    reduce: Reduce | None = None
    grow: Grow | None = None
    on_error: OnError = "fail"
    until: EndCondition = ALL
    again: bool | None = None
    """Whether elements with a collected result run again; None: except on the first visit."""

    @property
    def is_race(self) -> bool:
        """Whether a child must win, so that a failure only removes a contestant."""
        return self.until.is_race

    def collections(
        self, data: Mapping[str, object], *, first_visit: bool
    ) -> tuple[dict[str, object], Mapping[object, object]]:
        """Return the collections before the first result, and the results that need no child.

        Args:
            data: The fields of the parent's state.
            first_visit: Whether the run visits the step for the first time.

        Returns the values of ``into`` and ``errors_into``, and those results in ``into`` that are
        kept from the start.
        """
        values: dict[str, object] = {}
        done: Mapping[object, object] = {}
        again = not first_visit if self.again is None else self.again
        if self.into is not None and self.shape != "one":
            found = data.get(self.into)
            if self.is_listed:
                values[self.into] = PositionedList[object](StateMap())
            elif found is None or again or not self.continues:
                values[self.into] = _empty()
            else:
                done = self._found(found, self.into)
                values[self.into] = StateMap(done)
        if self.errors_into is not None:
            values[self.errors_into] = _empty()
        return values, done

    @property
    def continues(self) -> Collection[str]:
        """The field in ``into``, if results that are in it from the start may be kept."""
        is_keyed = self.shape in ("by key", "by key and act")
        goes_on = is_keyed and not (self.again or self.grow or self.is_race)
        return (self.into,) if goes_on and self.into is not None else ()

    @property
    def is_listed(self) -> bool:
        """Whether ``into`` is a list."""
        return self.into is not None and self.shape in ("by position", "by position and act")

    @property
    def is_nested(self) -> bool:
        """Whether ``into`` has a mapping by act for each key or position."""
        return self.shape in ("by key and act", "by position and act")

    def conflict(self, data: Mapping[str, object]) -> str:
        """Return why an unfinished step can't continue to collect into ``into``; "" if it can.

        The program may have changed since the step began, so that its results are elsewhere.
        """
        if self.into is None or self.shape == "one":
            return ""
        if self.into not in data:
            return f"it did not collect into {self.into!r}"
        found = data[self.into]
        if isinstance(found, StateMap):
            inner = cast("StateMap[object, object]", found).values()
        else:
            inner = cast("PositionedList[object]", found)
        kind = PositionedList if self.is_listed else StateMap
        nests = all(isinstance(one, StateMap) for one in islice(inner, 1))
        if isinstance(found, kind) and (nests or not self.is_nested):
            return ""
        return f"it did not collect into {self.into!r} {self.shape}"

    def misfit(self, schema: Schema[Any]) -> str:
        """Return why the model of the parent's state can't hold the results; "" if it can."""
        nested = self.is_nested
        listed = self.shape in ("by position", "by position and act")
        if self.into is not None and self.shape != "one":
            why = schema.why_not_grown(self.into, mapping=not listed, nested=nested)
            if why:
                return f"{why}; declare one, or {'give' if listed else 'leave out'} key="
        if self.errors_into is not None:
            why = schema.why_not_grown(self.errors_into, mapping=True, nested=nested)
            if why:
                return f"{why}; declare one"
        return ""

    def _found(self, found: object, field: str) -> Mapping[object, object]:
        """Check and return the results that ``field`` holds already."""
        # By type first: an ABC takes as long as all else here.
        if type(found) is not dict and not isinstance(found, Mapping):
            msg = (
                f"fan-out {self.name!r} collects a mapping into {field!r}, "
                f"which holds {kind_of(found)}"
            )
            raise StateError(msg)
        done = cast("Mapping[object, object]", found)
        if self.shape == "by key":
            return done
        by_key: dict[object, object] = {}
        for key, by_act in done.items():
            if not isinstance(by_act, Mapping):
                msg = (
                    f"fan-out {self.name!r} collects {{key: {{act: value}}}} into {field!r}, "
                    f"which holds {kind_of(by_act)} for key {brief(key)}"
                )
                raise StateError(msg)
            by_key[key] = StateMap(cast("Mapping[object, object]", by_act))
        return by_key

    def without(
        self, data: Mapping[str, object], children: Collection[tuple[str, Key]]
    ) -> Mapping[str, object]:
        """Remove the values of ``children`` from ``into``.

        Args:
            data: The fields of the parent's state.
            children: The act and key of each child.

        Returns the field with its new value, or nothing if it doesn't change.
        """
        if self.into is None or self.shape == "one" or not children:
            return {}
        found = left = cast("Collected", data[self.into])
        if not self.is_nested:
            by_act = self.shape == "by act"
            left = left.without({act if by_act else key for act, key in children})
        else:
            for act, key in children:
                left = _without_within(left, key, act)
        return {} if left is found else {self.into: left}

    def collected(self, data: Mapping[str, object], act: str, key: Key) -> object:
        """Return the value of a child in ``into``.

        In a list, a child is found by its position, not by index: other children before it may not
        have ended yet (see test_acts_of_a_list_change_however_much_was_done).
        """
        assert self.into is not None, "it has been collected"
        found = cast("Collected", data[self.into])
        if self.shape == "by act":
            return found[cast("Any", act)]
        value = (
            found.at(cast("int", key), None) if isinstance(found, PositionedList) else found[key]
        )
        return cast("Mapping[str, object]", value)[act] if self.is_nested else value

    def done_keys(self, done: Mapping[object, object], act: str) -> AbstractSet[object]:
        """Return the keys of the children of ``act`` whose results are in ``done``."""
        if self.shape == "by key":
            return frozenset(done)
        by_key = cast("Mapping[object, Mapping[object, object]]", done)
        return frozenset(key for key, by_act in by_key.items() if act in by_act)


def _empty() -> StateMap[Any, Any]:
    # Not `StateMap[object, object]()`: a call of an alias costs as much as the map once more.
    return StateMap()


def _without_within(collection: Collected, key: Any, act: str) -> Collected:
    """Remove the value of ``act`` from the mapping under ``key``."""
    none = StateMap[str, Any]()
    listed = isinstance(collection, PositionedList)
    inner = collection.at(key, none) if listed else collection.get(key, none)
    if act not in inner:
        return collection
    inner = inner.without({act})
    return collection.put_all(((key, inner, None),)) if inner else collection.without({key})


@hides("definition")
class Parallel(Act):
    """An act whose work is children: the base of fan-outs and of ``ParallelAction``."""

    limits: Limits = DEFAULT_LIMITS
    """How many children are in flight, and how fast they start."""
    stagger: Stagger | None = None
    """When the next child starts; None: all start at once."""
    store: Store | Inherit | None = INHERIT
    """The store of the children; None: they aren't saved, except for their outcomes."""
    hooks: Sequence[Hook] | Inherit = INHERIT
    """The hooks that receive the events of the children and their descendants."""
    each: Each | None = None
    """The timeout, retries and circuit breaker of each child."""
    timeout: float | None = None
    """Seconds that the whole step may take."""
    at_most: int | None = None
    """The most children to start."""
    ahead: int | None = None
    """How many elements may be pulled for children that can't start yet; None: as few as help."""
    title: Title | Callable[..., str] | None = None
    """What watchers call the fan-out, or a function of a child's first state that names it."""
    executor: Executor | ExecutorName | None = None
    """Where the actions of the children and their descendants are called."""
    _unlimited: bool = False
    """Whether all of its acts may be in flight at once, because no limit was given."""
    _is_keyed: bool | None = None
    """Whether its elements have keys; None: it has no elements, or each task may have one."""

    @property
    def definition(self) -> object:
        """The object by which limits and latencies are counted, the same for bound copies."""
        return self

    @abstractmethod
    def _join(self) -> JoinSpec:
        """Return how results are joined."""

    def _finished(self, state: State) -> Change:
        """Return the change that completes the step, after all results were applied."""
        return NO_CHANGE

    def misfit(self, schema: Schema[Any]) -> str:
        """Return why it can't work on a state of this model; see ``Act.misfit``."""
        return super().misfit(schema) or self._join().misfit(schema)

    def _said(self) -> Iterator[str]:
        """Yield what drawings say of how its children are run, each in a few words."""
        join = self._join()
        if join.grow is not None:
            yield f"grows by {named(join.grow)}"
        if join.until.may_decide:
            yield f"until {join.until.said}"
        if isinstance(self.stagger, Hedge):
            yield f"hedged above p{self.stagger.percentile:g}"
        elif self.stagger is not None:
            yield "one after another" if self.stagger == inf else f"{seconds(self.stagger)} apart"
        yield from of_limits(self.limits)
        yield from of_executor(executor_named(self.executor, repr(self.name)))
        if self.at_most is not None:
            yield f"at most {self.at_most:,}"
        if self.ahead is not None:
            yield f"{self.ahead:,} read ahead"
        if self.each is not None:
            yield from (f"{label} each" for label in of_retry(self.each.retry))
            yield from (f"{label} each" for label in of_timeout(self.each.timeout))
            if self.each.breaker is not None:
                yield "breaker"
            if self.each.hedge is not None:
                yield f"hedged above p{self.each.hedge.percentile:g} each"
        yield from of_timeout(self.timeout)
        if isinstance(join.on_error, Tolerate) or join.on_error == "collect":
            yield "failures collected"
        elif join.on_error == "ignore" and not join.is_race:
            yield "failures ignored"

    def _repr_svg_(self) -> str:
        """Return its drawing, for notebooks."""
        return drawing_of(self)

    def perform(self, run: Performer) -> Awaitable[Change]:
        """Run all children; see ``Act.perform``."""
        return run.fan_out(self)


def stores_within(graph: Graph) -> Iterator[Store]:
    """Yield the ``store=`` of each fan-out in a graph, as far as they are known before a run."""
    for act in graph.acts:
        if isinstance(act, Graph):
            yield from stores_within(act)
        elif isinstance(act, Parallel):
            if act.store is not None and not isinstance(act.store, Inherit):
                yield act.store
            for inner in act.for_children:
                if isinstance(inner, Graph):
                    yield from stores_within(inner)
