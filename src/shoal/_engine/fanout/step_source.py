"""The sources of a parallel step: one for each round, of the acts that the step executes.

Invariants:
- All sources of a step make children from the same data: the parent's state at its beginning.
- A function that chooses the acts is called for each source, so it may choose others in another
  attempt. What the step declares to the store are the acts of its last source.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, KeysView, Mapping, ValuesView
from typing import final

from shoal._engine.run import Run
from shoal._events.hooks import Hooks
from shoal._graph.fan_out import FanOut
from shoal._graph.graph import Graph
from shoal._graph.parallel import JoinSpec, Parallel, stores_within
from shoal._graph.task_classes import ParallelAction
from shoal._limits.limits import Limits
from shoal._state.collections import PositionedList, StateList, StateMap
from shoal.executors._named import executor_named
from shoal.stores._protocol import Store

from .children import child_config
from .elements import ChosenActs, choose_acts, make_elements
from .entries import ChildTemplate
from .recorded import RecordedChildren
from .source import ElementSource
from .takeup import Declared, declared
from .task_source import TaskElements

_COLLECTIONS = (
    *(list, tuple, range, dict, set, frozenset),
    *(KeysView, ValuesView, ItemsView),
    *(StateList, StateMap, PositionedList),
)


@final
class StepSources:
    """Makes the sources of one execution of a parallel step."""

    def __init__(
        self,
        act: Parallel,
        parent: Run,
        data: Mapping[str, object],
        *,
        store: Store,
        hooks: Hooks,
        on_item: Callable[[Run, object], None],
    ) -> None:
        """Prepare; nothing of the user's is called yet.

        Args:
            act: The step's act.
            parent: The run whose step it is.
            data: The fields of the parent's state when the step began.
            store: The store of the children.
            hooks: The hooks of the children.
            on_item: Receives each partial item of a child, if items decide the step.
        """
        # What a source is made of stays the same for all rounds; only `join` and `_chosen` are
        # replaced.
        self._act = act
        self._parent = parent
        # The same for all rounds and attempts, though the parent's state changes meanwhile: a
        # child's digest is made of it, and finds the child again.
        self._data = data
        self._store = store
        self._hooks = hooks
        self.join = act._join()
        """Says where results go. Its shape is final only after the first source was made."""
        # None, so that an item of other children costs no call.
        self._on_item = on_item if self.join.until.by_item else None
        # Shared by all children: the hash of a field that they have in common is computed once.
        self._digests: dict[str, tuple[object, bytes]] = {}
        self._chosen: ChosenActs | None = None  # None for tasks, and before the first source

    def make(self, recorded_children: RecordedChildren | None) -> ElementSource:
        """Make a source, calling the user's functions for acts and elements.

        Args:
            recorded_children: The children that earlier executions recorded; None: there are none.
        """
        act = self._act
        if isinstance(act, FanOut):
            # Asked for each source, also in another attempt: a function may look at more than the
            # state.
            chosen = choose_acts(act, self.join, self._data)
            # Both at once: what is declared must be what this source makes.
            self._chosen, self.join = chosen, chosen.join
            return make_elements(
                act,
                chosen,
                parent=self._parent,
                data=self._data,
                recorded_children=recorded_children,
                make_template=self._template,
            )
        assert isinstance(act, ParallelAction), "there is no other parallel act"
        return TaskElements(
            act,
            parent=self._parent,
            access=self.join.access,
            data=self._data,
            recorded_children=recorded_children,
            make_template=self._template,
        )

    def _template(
        self,
        graph: Graph,
        base: Mapping[str, object],
        value_of: Callable[[Run], object] | None,
        inputs: Mapping[str, object] | None = None,
    ) -> ChildTemplate:
        """Describe the children that execute ``graph``; see ``MakeTemplate``."""
        # A function may have chosen the graph, so the execution hasn't seen its stores yet.
        if self._parent.config.execution.is_resumed:
            self._parent.config.execution.know_all(stores_within(graph))
        config = child_config(
            self._parent,
            self._act.name,
            graph,
            value_of,
            inputs,
            store=self._store,
            hooks=self._hooks,
            digests=self._digests,
            each=self._act.each,
            on_item=self._on_item,
            executor=(
                None
                if self._act.executor is None
                else executor_named(self._act.executor, repr(self._act.name))
            ),
        )
        return ChildTemplate(config, base)

    def room_of(self, source: ElementSource) -> int:
        """Return how many children of ``source`` may be in flight."""
        # A race without limits starts all its contestants; see test_all_start_at_once_however_many.
        return len(source.kinds) if self._act._unlimited else self._act.limits.in_flight

    def declared(self) -> Declared:
        """Return what a store keeps of the step, by which a changed program is recognized."""
        chosen, is_keyed = self._chosen, self._act._is_keyed
        if chosen is None:
            # Tasks bring their acts one by one, so none can be named before.
            return declared(self.join, is_keyed=is_keyed)
        return declared(
            self.join,
            acts=[graph.name for graph in chosen.graphs],
            versions=[graph.version for graph in chosen.graphs],
            is_keyed=is_keyed,
            take=chosen.take,
        )


def goes_ahead(run: Run, limits: Limits, join: JoinSpec, source: ElementSource) -> bool:
    """Return whether children may start before the ends of others are committed.

    Only where nobody can tell: no store is waited for, no hook counts the children in flight, and
    neither commits nor the elements decide which child is next. A user's iterator may look at what
    is done so far, a collection can't.
    """
    hooks = run.config.hooks
    return (
        run.config.keeps_no_history
        and join.grow is None
        and limits.in_flight > 1
        and isinstance(source.given, _COLLECTIONS)
        and not (hooks.child_started or hooks.child_ended or hooks.run_started or hooks.run_ended)
    )
