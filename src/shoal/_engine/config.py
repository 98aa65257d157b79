"""What the children of one fan-out have in common. Imports values, graphs, services, hooks.

A run is named in here by what it does alone: what lives with a setting is in ``_run``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from shoal._errors.exceptions import NotData, brief
from shoal._events.hooks import Hooks
from shoal._events.identity import Key, RunPath
from shoal._graph.action import FunctionAction
from shoal._graph.graph import Graph
from shoal._graph.policy import Each
from shoal._limits.limiters import Limiter
from shoal._limits.permits import InFlight
from shoal._state.digest import combined, named, written
from shoal._state.schema import Schema
from shoal._state.secrets import Secret, Secrets
from shoal.stores._protocol import NullStore, Store

from .execution import Execution
from .services import Services


@final
@dataclass(frozen=True, slots=True)
class Halts:
    """Between which of its steps a root run is to stop, until it is run again."""

    before: frozenset[str]
    """Names of acts that are not begun..."""
    after: frozenset[str]
    """...and of those after which no other is begun."""

    def stop(self, act: str | None, following: str) -> bool:
        """Tell whether it stops where ``act`` is completed, or none yet, and the other is next."""
        return act in self.after or following in self.before


@final
class Setting:
    """What all children of one fan-out have in common; a root run has one for itself."""

    __slots__ = (
        "_digests",
        "_names",
        "act",
        "begins_host",
        "deadline",
        "each",
        "ends_itself",
        "entry",
        "execution",
        "gate",
        "graph",
        "halts",
        "hooks",
        "host",
        "in_flight",
        "inputs",
        "is_forgotten",
        "is_limited",
        "keeper",
        "keeps",
        "on_item",
        "is_resumable",
        "parent",
        "schema",
        "scopes",
        "secrets",
        "services",
        "step",
        "store",
        "value_of",
        "visit",
        "wait",
    )

    def __init__(
        self,
        *,
        graph: Graph,
        inputs: Mapping[str, object],
        execution: Execution,
        act: str = "",
        parent: RunPath | None = None,
        step: str = "",
        visit: int = 0,
        value_of: Callable[[Any], object] | None = None,
        scopes: tuple[Limiter, ...] = (),
        gate: Callable[[str], Awaitable[None]] | None = None,
        deadline: float | None = None,
        store: Store | None = None,
        keeper: Store | None = None,
        hooks: Hooks | None = None,
        digests: dict[str, tuple[object, bytes]] | None = None,
        on_item: Callable[[Any, object], None] | None = None,
        each: Each | None = None,
        is_resumable: bool = False,
        host: Any = None,
        begins_host: bool = True,
        halts: Halts | None = None,
    ) -> None:
        """Collect it.

        Args:
            graph: What they walk.
            inputs: What their actions are given.
            execution: What they are part of.
            act: The name of what they execute.
            parent: Where the run stands that started them.
            step: The parent's step they belong to.
            visit: The parent's visit of that step.
            value_of: Reads a child's value off its final state.
            scopes: What limits the attempts of all of them: the runtime's and the application's.
            gate: Awaited before each step, with its name.
            deadline: When they will be cancelled from outside, by the loop's clock; by default,
                when the execution will be.
            store: Where they are kept; by default, where the execution is.
            keeper: Where their parent is kept, if there is one, and so their ends. If that is
                another store, their last step is saved by themselves.
            hooks: Told of them and their descendants; by default, those of the execution.
            digests: Of the fields that siblings have in common, by name; filled as they are made.
            on_item: Called with a run and each partial item that it gives, before hooks are told.
            each: What goes for each of them by itself.
            is_resumable: Whether a step of theirs that fails may be tried again, and is to go on
                where it was then, for something around them is retried.
            host: The run as part of which they live, if they are graphs as nodes of its graph.
            begins_host: Whether nothing of the host was completed before them.
            halts: Between which of its steps a root run stops, if it does.
        """
        self.graph: Graph = graph
        self.inputs: Mapping[str, object] = inputs
        self.execution: Execution = execution
        self.secrets: Secrets = execution.secrets
        self.services: Services = execution.services
        self.hooks: Hooks = execution.hooks if hooks is None else hooks
        self.store: Store = execution.store if store is None else store
        self.keeper: Store = self.store if keeper is None else keeper
        self.ends_itself: bool = self.keeper is not self.store
        # whether a store is going to have them, which asks for their digest
        self.keeps: bool = parent is not None and (
            self.ends_itself or not isinstance(self.store, NullStore)
        )
        # whether a store is going to have how they end, and no store anything else of them
        self.is_forgotten: bool = self.ends_itself and isinstance(self.store, NullStore)
        self.deadline: float = execution.deadline if deadline is None else deadline
        self.act: str = act
        self.parent: RunPath | None = parent
        self.step: str = step
        self.visit: int = visit
        self.value_of: Callable[[Any], object] | None = value_of
        self.scopes: tuple[Limiter, ...] = scopes
        self.gate: Callable[[str], Awaitable[None]] | None = gate
        self.on_item: Callable[[Any, object], None] | None = on_item
        self.each: Each | None = each
        self.is_resumable: bool = is_resumable or (each is not None and each.retry is not None)
        self.schema: Schema[Any] | None = graph.schema
        self.host: Any = host
        self.begins_host: bool = begins_host
        self.halts: Halts | None = halts
        self.in_flight: InFlight | None = None
        """What they are counted by, if they are children of a fan-out that has let one start."""
        first = graph.entry
        self.entry: FunctionAction[..., Any] | None = None
        """What they do first, if that is an action, and what it starts from is known before."""
        if isinstance(first, FunctionAction) and self.schema is None and first.cache is None:
            self.entry = first  # with a cache it may need nothing
        self.is_limited: bool = self.entry is not None and bool(scopes or self.entry.limits)
        """Whether that is limited."""
        self._digests: dict[str, tuple[object, bytes]] = {} if digests is None else digests
        self._names = b""  # of the act and its version; written when first needed

    def digest(self, data: Mapping[str, object], key: Key) -> str:
        """Hash what a child starts with, the name of its act and the act's version.

        Without what is secret: that may be another one next time, and could be found by its hash.

        Raises:
            NotData: A field holds what is no data.
        """
        known = self._digests
        if not self._names:
            self._names = written(self.act, self.graph.version)
        parts = [self._names]
        for field in sorted(data):
            value, found = data[field], known.get(field)
            if type(value) is Secret:
                continue
            if found is None or found[0] is not value:  # what all children share is hashed once
                try:
                    found = known[field] = value, named(field, value)
                except NotData as error:
                    who = f"{self.act!r} in step {self.step!r}, key {brief(key)}"
                    msg = f"{who}, would start with field {field!r}: {error}"
                    raise NotData(msg) from error
            parts.append(found[1])
        return combined(parts)
