"""The configuration that all children of one fan-out share.

Everything in it stays as it is while children run, apart from ``in_flight`` and two caches. The
state of one run is in ``run``.
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
from shoal._limits.passes import Passes
from shoal._limits.permits import InFlight
from shoal._state.digest import combined, named, written
from shoal._state.schema import Schema
from shoal._state.secrets import Secret, Secrets
from shoal.executors._named import Place
from shoal.executors._port import Pool
from shoal.stores._protocol import NullStore, Store

from .execution import Execution
from .services import Services


@final
@dataclass(frozen=True, slots=True)
class Halts:
    """The breakpoints of a root run: between these steps it stops until it is run again."""

    before: frozenset[str]
    """Names of acts that the run stops before."""
    after: frozenset[str]
    """Names of acts that the run stops after, if another act follows."""

    def stop(self, act: str | None, following: str) -> bool:
        """Return whether the run stops between ``act`` (None: the start) and ``following``."""
        return act in self.after or following in self.before


@final
class RunConfig:
    """The configuration that all children of one fan-out share; a root run has its own."""

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
        "executor",
        "gate",
        "graph",
        "halts",
        "hooks",
        "host",
        "in_flight",
        "inputs",
        "is_forgotten",
        "is_governed",
        "is_hedged",
        "is_limited",
        "is_limited_simply",
        "keeper",
        "keeps",
        "on_item",
        "is_resumable",
        "keeps_no_history",
        "may_call_simply",
        "packs",
        "passes",
        "is_timed",
        "parent",
        "performs_directly",
        "schema",
        "scopes",
        "scopes_below",
        "secrets",
        "services",
        "step",
        "store",
        "time_above",
        "times",
        "value_of",
        "visit",
        "walks_simply",
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
        executor: Place | None = None,
        time_above: Any = None,
    ) -> None:
        """Derive from the arguments what each child would else work out by itself.

        Args:
            graph: The graph that the children walk.
            inputs: The inputs of their actions, by name.
            execution: The execution that they belong to.
            act: The name of the act that they execute.
            parent: The path of the run that starts them; None for a root run.
            step: The parent's step that they belong to.
            visit: The parent's visit of that step.
            value_of: Reads a child's value off its final state.
            scopes: The limits of the runtime and the application, which hold for all attempts.
            gate: Awaited before each step, with its name.
            deadline: The time on the loop's clock at which they will be cancelled from outside; by
                default, the deadline of the execution.
            store: Keeps their histories; by default, the store of the execution.
            keeper: Keeps their ends: the store of their parent. If that is another store than
                ``store``, a child saves its last step itself.
            hooks: Receive events of the children and their descendants; by default, the hooks of
                the execution.
            digests: A cache of digests of fields that siblings share, by name. It is filled as
                children are made.
            on_item: Called with a run and each of its partial items, before hooks receive it.
            each: The policy of each child: retry, timeout.
            is_resumable: Whether something around the children is retried, so that a failed step
                of a child may be attempted again and resumes where it failed.
            host: The child of a fan-out that they are part of, if they are graphs as nodes of its
                graph.
            begins_host: Whether the host has completed no step before them.
            halts: The breakpoints of a root run.
            executor: Where their actions are called, and those of their descendants, unless these
                say otherwise; None: where they are called by default.
            time_above: The ``ChildTime`` of a child around them that has a ``work_timeout``.
        """
        self.graph: Graph = graph
        self.inputs: Mapping[str, object] = inputs
        self.execution: Execution = execution
        # The execution's own objects, one attribute closer: children read them at every step.
        self.secrets: Secrets = execution.secrets
        self.services: Services = execution.services
        self.hooks: Hooks = execution.hooks if hooks is None else hooks
        self.store: Store = execution.store if store is None else store
        self.keeper: Store = self.store if keeper is None else keeper
        # By identity: two store objects may use one file, and each saves for itself.
        self.ends_itself: bool = self.keeper is not self.store
        # Whether any store gets records of the children. Each record has a digest of the child's
        # input, so a child is hashed when it is made, before the action can change the input.
        self.keeps: bool = parent is not None and (
            self.ends_itself or not isinstance(self.store, NullStore)
        )
        # By type: stores that only save derive from it.
        self.keeps_no_history: bool = type(self.store) is NullStore
        """Whether nothing keeps what the children do between their start and their end."""
        self.packs: bool = parent is not None and type(self.keeper) is not NullStore
        """Whether the store that keeps the ends of the children encodes them at once."""
        # Whether the ends of the children are saved and nothing else of them: their parent has a
        # store, and they have none. See `commit._gather`.
        self.is_forgotten: bool = self.ends_itself and isinstance(self.store, NullStore)
        # Of scopes outside of the engine's tasks, which don't reach in here: actions read it as
        # `context.deadline`.
        self.deadline: float = execution.deadline if deadline is None else deadline
        self.act: str = act
        # With `step`, `visit` and `act` it makes the ids of children, so none of these may change.
        self.parent: RunPath | None = parent
        self.step: str = step
        self.visit: int = visit
        # None if nothing takes the value, as of a graph that is a node.
        self.value_of: Callable[[Any], object] | None = value_of
        # Where children stand under limits of their fan-out, it adds those as it admits them.
        self.scopes: tuple[Limiter, ...] = scopes
        """The limiters of every attempt of these runs, but for those of their actions."""
        self.scopes_below: tuple[Limiter, ...] = scopes
        """The limiters of every attempt of their descendants."""
        # Only of a root run that is executed step by step.
        self.gate: Callable[[str], Awaitable[None]] | None = gate
        self.on_item: Callable[[Any, object], None] | None = on_item
        self.each: Each | None = each
        # Then a run that raises keeps where it stood, and what its fan-outs have done.
        self.is_resumable: bool = is_resumable or (each is not None and each.retry is not None)
        # Worked out once, since children read it at every step.
        has_timeout = each is not None and each.has_timeout
        self.performs_directly: bool = not self.services.debug and not has_timeout
        """Whether nothing is checked around a step: the children have no timeout, and the runtime
        does not look for values that are changed in place."""
        self.is_hedged: bool = each is not None and each.hedge is not None
        """Whether late attempts get second copies."""
        self.is_governed: bool = bool(scopes) or executor is not None or self.is_hedged
        """Whether anything applies to all attempts, besides what their actions say."""
        self.may_call_simply: bool = (
            self.performs_directly and not self.is_governed and self.services.injection is None
        )
        """Whether nothing but an action itself may need more around its call than the call."""
        # `Any`, since `child_time` is above this module.
        self.time_above: Any = time_above
        # By child, and not an attribute of each: most have none. Only of children at work.
        self.times: dict[Any, Any] | None = {} if has_timeout or time_above is not None else None
        """The ``ChildTime`` of each child, if it is known for what they wait."""
        self.is_timed: bool = each is not None or time_above is not None
        """Whether anything surrounds the walk of a child; see ``live_child``."""
        self.schema: Schema[Any] | None = graph.schema
        # None unless the run is a graph as a node. `Any`, since `run` is above this module.
        self.host: Any = host
        self.begins_host: bool = begins_host
        self.halts: Halts | None = halts
        self.executor: Place | None = executor
        # Set by the fan-out when it admits a child, before the child starts; None in a root run.
        self.in_flight: InFlight | None = None
        """Counts the children of the fan-out that are in flight."""
        first = graph.entry
        # Admission takes the permit of the first action before the child starts, so it must know
        # the action and its fields. A schema may still change the fields, and an action with a
        # cache may need no permit at all; then this is None.
        self.entry: FunctionAction[..., Any] | None = None
        """The first action of each child, if its permit can be taken before the child starts."""
        # By type, which nothing can inherit from: for other acts isinstance would ask their ABC.
        if type(first) is FunctionAction and self.schema is None and first.cache is None:
            self.entry = first
        # Worked out once: admission asks this for every child, and most have no limits.
        self.is_limited: bool = self.entry is not None and bool(scopes or self.entry.limits)
        """Whether ``entry`` is known and limited."""
        # Whether other attempts follow, other limits hold, or others look: nothing that is known
        # before the run. See `walk_simply`, which asks for the rest.
        self.walks_simply: bool = (
            bool(graph.simple)
            and len(graph.simple) <= execution.max_steps
            and self.performs_directly
            and (executor is self.services.injection is None)
            and not self.is_hedged
            and (self.schema is halts is gate is host is None)
            and not (self.ends_itself or self.is_resumable or self.is_timed)
        )
        """Whether each child only calls simple actions one after the other, as far as is known."""
        self.is_limited_simply: bool = self.walks_simply and (
            bool(scopes) or not all(act.is_simple for act in graph.simple)
        )
        """Whether it does so within limits."""
        # Made by the admission, or by the first child that needs it.
        self.passes: Passes | None = None
        """Takes the units of these limits past the requests for them."""
        self._digests: dict[str, tuple[object, bytes]] = {} if digests is None else digests
        self._names = b""  # of the act and its version; empty until the first digest

    def pool_of(self, action: FunctionAction[..., Any]) -> Pool | None:
        """Return the open executor that calls an action; None: it is called on the event loop."""
        inherited = self.executor
        executor = action.default_executor
        if inherited is not None:
            executor = action.executor_below(inherited)
        return None if executor is None else self.services.pools.of(executor)

    def digest(self, data: Mapping[str, object], key: Key) -> str:
        """Hash the fields that a child starts with, the name of its act and the act's version.

        Secrets are left out: a secret may be another one at the next run, and its hash could give
        it away.

        Raises:
            NotData: A field holds a value that is not data.
        """
        known = self._digests
        if not self._names:
            self._names = written(self.act, self.graph.version)
        parts = [self._names]
        # By name, so that the order in which fields were written makes no difference.
        for field in sorted(data):
            value, found = data[field], known.get(field)
            if type(value) is Secret:
                continue
            # Siblings share most fields, and share them as one object, so the last value of each
            # name is enough of a cache.
            if found is None or found[0] is not value:
                try:
                    found = known[field] = value, named(field, value)
                except NotData as error:
                    subject = f"{self.act!r} in step {self.step!r}, key {brief(key)}"
                    msg = f"{subject}, would start with field {field!r}: {error}"
                    raise NotData(msg) from error
            parts.append(found[1])
        return combined(parts)
