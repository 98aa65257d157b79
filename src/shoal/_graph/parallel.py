"""Parallel acts as they are declared: what all have in common, and what becomes of their results.

Imports acts, and what else a declaration consists of; nothing that executes one.

Invariants:
- What is collected is a persistent collection, arranged as ``Shape`` says, whatever it was before.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast, final

from shoal._errors.exceptions import StateError, brief, kind_of
from shoal._events.events import Done, Failed
from shoal._events.hooks import Hook
from shoal._events.identity import Key
from shoal._limits.limits import DEFAULT_LIMITS, Limits
from shoal._state.collections import PositionedList, StateMap
from shoal._state.schema import Schema
from shoal._state.state import NO_CHANGE, Change, Permit, State
from shoal.stores._protocol import Store

from .action import Act, Performer
from .graph import Graph
from .policy import INHERIT, Each, Inherit, OnError, Stagger
from .until import ALL, EndCondition

Reduce = Callable[[State, Done | Failed], State]
Grow = Callable[[State, Done | Failed], Iterable[Any]]
Take = str | Sequence[str] | Callable[[State], Any]

Collected = StateMap[Any, Any] | PositionedList[Any]
"""What a field holds that results or failures are collected in."""

Shape = Literal["by key", "by position", "by key and act", "by position and act", "by act", "one"]
"""How ``into`` and ``errors_into`` are arranged; ``"one"``: not at all, it is a single value."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """What a parallel step does with its results, as its user said."""

    name: str
    """The step's."""
    permit: Permit
    """What ``reduce`` and ``grow`` may do with the parent's state."""
    into: str | None = None
    errors_into: str | None = None
    shape: Shape = "by key"
    reduce: Reduce | None = None
    grow: Grow | None = None
    on_error: OnError = "fail"
    until: EndCondition = ALL
    again: bool | None = None
    """Whether what is collected already runs again; None: not on the first visit."""

    @property
    def is_race(self) -> bool:
        """Whether a failure only removes a contestant, and somebody has to win."""
        return self.until.is_race

    def collections(
        self, data: Mapping[str, object], *, first_visit: bool
    ) -> tuple[dict[str, object], Mapping[object, object]]:
        """Make what the fields in ``into`` and ``errors_into`` hold before the first result.

        Returns them, and what of it needs no child: the results that were there from the start.
        """
        values: dict[str, object] = {}
        done: Mapping[object, object] = {}
        again = not first_visit if self.again is None else self.again
        if self.into is not None and self.shape != "one":
            found = data.get(self.into)
            if self.is_listed:
                values[self.into] = PositionedList[object](StateMap())
            elif found is None or again or not self.continues:
                values[self.into] = StateMap[object, object]()
            else:
                done = self._found(found, self.into)
                values[self.into] = StateMap(done)
        if self.errors_into is not None:
            values[self.errors_into] = StateMap[object, object]()
        return values, done

    @property
    def continues(self) -> Collection[str]:
        """The field in ``into``, if what is in it from the start may need no child."""
        is_keyed = self.shape in ("by key", "by key and act")
        goes_on = is_keyed and not (self.again or self.grow or self.is_race)
        return (self.into,) if goes_on and self.into is not None else ()

    @property
    def is_listed(self) -> bool:
        """Whether ``into`` is a list."""
        return self.into is not None and self.shape in ("by position", "by position and act")

    @property
    def is_nested(self) -> bool:
        """Whether there is a mapping by act for each key or position."""
        return self.shape in ("by key and act", "by position and act")

    def conflict(self, data: Mapping[str, object]) -> str:
        """Say why a step that was begun can't go on to collect into ``into``, if it can't.

        The program may have changed since, and what is collected already is elsewhere then.
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
        """Say why the model of the parent's state can't hold what is collected, if it can't."""
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
        """Take the results that ``field`` holds already."""
        if not isinstance(found, Mapping):
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
        """Take the values of ``children``, which are given by act and key, out of ``into``.

        Returns the field, if it changes by that.
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
        """Return what ``into`` has of a child, which is found where ``Draft`` has put it.

        A list is not asked by index: while children are put into it, others are missing before them
        (see test_acts_of_a_list_change_however_much_was_done).
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
        """Tell which children of ``act`` needn't run, since ``done`` has their results."""
        if self.shape == "by key":
            return frozenset(done)
        by_key = cast("Mapping[object, Mapping[object, object]]", done)
        return frozenset(key for key, by_act in by_key.items() if act in by_act)


def _without_within(collection: Collected, key: Any, act: str) -> Collected:
    """Take the value of ``act`` out of the mapping that ``key`` has."""
    none = StateMap[str, Any]()
    listed = isinstance(collection, PositionedList)
    inner = collection.at(key, none) if listed else collection.get(key, none)
    if act not in inner:
        return collection
    inner = inner.without({act})
    return collection.put_all(((key, inner, None),)) if inner else collection.without({key})


class Parallel(Act):
    """An act whose work is children: what fan-outs and the classes for them have in common."""

    limits: Limits = DEFAULT_LIMITS
    """How many children are in flight, and how fast they start."""
    stagger: Stagger | None = None
    """When the next child starts; None: all start at once."""
    store: Store | Inherit | None = INHERIT
    """Where the children are kept; None: nowhere, but for how they ended."""
    hooks: Sequence[Hook] | Inherit = INHERIT
    """Who is told of the children and their descendants."""
    each: Each | None = None
    """What goes for each child by itself."""
    timeout: float | None = None
    """Seconds that the whole step may take."""
    _unlimited: bool = False
    """Whether all of its acts may be in flight at once, however many: no limit was given."""
    _is_keyed: bool | None = None
    """Whether its elements have keys; None: it has no elements, or each task says so."""

    @property
    def definition(self) -> object:
        """What all that is bound of one definition has in common."""
        return self

    @abstractmethod
    def _join(self) -> Join:
        """Say what becomes of results."""

    def _finished(self, state: State) -> Change:
        """Return the change that completes the step, once all results were applied."""
        return NO_CHANGE

    def misfit(self, schema: Schema[Any]) -> str:
        """Say why it can't work on such a state; see ``Act.misfit``."""
        return super().misfit(schema) or self._join().misfit(schema)

    def perform(self, run: Performer) -> Awaitable[Change]:
        """Run all children; see ``Act.perform``."""
        return run.fan_out(self)


def stores_within(graph: Graph) -> Iterator[Store]:
    """Go through the stores of their own that fan-outs have, as far as they are known before."""
    for act in graph.acts:
        if isinstance(act, Graph):
            yield from stores_within(act)
        elif isinstance(act, Parallel):
            if act.store is not None and not isinstance(act.store, Inherit):
                yield act.store
            for inner in act.for_children:
                if isinstance(inner, Graph):
                    yield from stores_within(inner)
