"""Record ends of orphans: children that an earlier execution left under way.

Invariants:
- Nothing below a run that has ended is saved as if it were under way. Descendants that this
  execution has not taken up are recorded as cancelled before the end of the run is saved. They
  still continue when the run is resumed.
- Hooks receive nothing of this, since this execution has not published the starts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast, final

from anyio import CancelScope

from shoal._events.events import Cancelled, ChildName, Decision, Status, Update
from shoal._events.identity import Key, RunPath
from shoal._graph.action import FunctionAction
from shoal._graph.graph import Graph
from shoal.stores._history import play
from shoal.stores._protocol import Batch, ChildRecord, NullStore, ReadsInParts, SavedRun, Store

from .execution import Execution

T = TypeVar("T")
Decided = Mapping[tuple[str, int], Decision]
"""The decisions of races, by step and visit."""


def may_have_children(graph: Graph) -> bool:
    """Return whether a run of ``graph`` may have children: only function actions have none."""
    # An action with a context may open fan-outs of its own.
    return any(not isinstance(act, FunctionAction) or act.takes_context for act in graph.acts)


@final
class Left(NamedTuple):
    """An orphan: a child that an earlier execution left; it or its descendants may go on."""

    record: ChildRecord
    store: Store
    """Keeps the child's history and the ends of its children."""


def is_left(record: ChildRecord) -> bool:
    """Return whether a child, or a descendant of it, may be saved as if it were under way.

    A child that failed or was cancelled in one execution may have been resumed by a later one. As
    long as the child itself has saved nothing there, only records of its descendants show that (see
    test_nothing_goes_on_below_a_child_that_had_ended_in_an_earlier_execution).
    """
    return record.status in (None, "failed", "cancelled")


async def end_unended(
    execution: Execution,
    store: Store,
    run: SavedRun,
    decided: Decided | None,
    reason: str,
    *,
    graph: Graph | None = None,
) -> None:
    """Record all descendants of ``run`` without an end as cancelled; the run has ended or will.

    Args:
        execution: The execution that saves.
        store: The store of the run.
        run: A run that an earlier execution left under way.
        decided: The decisions in the run's history; None: the history is read for them.
        reason: Why the descendants were cancelled.
        graph: The graph of the run; None: unknown.

    Raises:
        StoreFailed: The store raised, or did not answer in time.
        ShoalError: The ends could not be saved.
    """
    path = run.path
    left = await _left_of(execution, store, path)
    # Decisions are needed only for reasons of children without an end, so mostly nothing is read.
    if decided is None and any(one.record.status is None for one in left):
        entries = await _ask(execution, store.read(path), f"the history of run {path.id}")
        decided = play({}, entries).decided
    decided = {} if decided is None else decided
    await end_children(execution, store, run, left, decided=decided, reason=reason, graph=graph)


async def _left_of(execution: Execution, store: Store, path: RunPath) -> Sequence[Left]:
    """Return the orphans of a run.

    The end of a child is saved in ``store``, the store of its parent. A fan-out with a store of its
    own has the histories of its children there. As long as ``store`` has no record of such a child,
    only the child's own store shows that it has started (see
    test_in_a_store_of_its_own_nothing_goes_on_below_a_run_that_has_ended).
    """
    what = f"the children of run {path.id}"
    # Nothing says in which stores the run has children, so all are asked. Most executions have no
    # other.
    elsewhere = {
        _name(record): Left(record, other)
        for other in execution.stores
        if other is not store
        for record in await _ask(execution, other.children(path), what)
    }
    # Children that are done are left out where that is possible: there may be many. With other
    # stores they are needed too, since a child that is done here may look unfinished there.
    if isinstance(store, ReadsInParts) and not elsewhere:
        found = await _ask(execution, store.not_done(path), what)
    else:
        found = await _ask(execution, store.children(path), what)
    left = list[Left]()
    for record in found:
        # The record in the parent's store has the end, and the other one only the store of the
        # history.
        other = elsewhere.pop(_name(record), None)
        if is_left(record):
            left.append(Left(record, store if other is None else other.store))
    # Others in there have an end that only their own store got: it was saved there first, and the
    # parent's process died before its own save.
    left += (one for one in elsewhere.values() if one.record.status is None)  # known there alone
    return left


def _name(record: ChildRecord) -> tuple[object, ...]:
    return record.step, record.visit, record.act, record.key


async def end_children(
    execution: Execution,
    store: Store,
    run: SavedRun,
    left: Iterable[Left],
    *,
    decided: Decided,
    reason: str,
    graph: Graph | None = None,
) -> None:
    """Record the orphans in ``left`` that have no end as cancelled, and all their descendants.

    Descendants of orphans that an earlier execution has ended are recorded as well.

    Args:
        execution: The execution that saves.
        store: The store of the run.
        run: The parent.
        left: Its orphans.
        decided: The decisions in the parent's history.
        reason: Why they were cancelled, if no decision says so.
        graph: The graph of the parent; None: unknown.

    Raises:
        StoreFailed: The store raised, or did not answer in time.
        ShoalError: The ends could not be saved.
    """
    path = run.path
    ended = list[CutOff]()
    for record, kept_in in left:
        # Depth first: a crash in between leaves a parent without an end, which the next execution
        # takes up. The other way round, descendants would stay under way below an ended parent.
        await end_below(execution, kept_in, CutOff(record, path), reason, graph)
        if record.status is not None:
            # Its own end is saved already; only its descendants were left.
            continue
        decision = decided.get((record.step, record.visit))
        # In a decided race the losers were cancelled by the decision. The winner was not.
        if decision is None or decision.winner == (record.act, record.key):
            how = record._replace(status="cancelled", reason=reason)
        else:
            how = record._replace(
                status="cancelled", reason=decision.reason, winner=decision.winner
            )
        ended.append(CutOff(how, path))
    # A NullStore keeps no end, but children below may have a store: they were ended above.
    if not ended or isinstance(store, NullStore):
        return
    # A child's store may not have been used in this execution yet, and saves need the lease.
    await execution.claim(store, path.root.id)
    await execution.save(Batch(run, unapplied=ended, holder=execution.holder), store)


async def end_below(
    execution: Execution, store: Store, child: CutOff, reason: str, graph: Graph | None
) -> None:
    """Record ends of all descendants of an orphan.

    Args:
        execution: The execution that saves.
        store: The store of the child.
        child: The orphan, which may have ended already.
        reason: Why its descendants were cancelled.
        graph: The graph of its parent; None: unknown.

    Raises:
        ShoalError: As ``end_unended``.
    """
    record = child.record
    # The graph only spares questions: a child whose graph is known to have no children needs none.
    # The act of a fan-out that an action has opened isn't in the graph, so its store is asked.
    act = None if graph is None else graph.find(record.step)
    known = (act,) if isinstance(act, Graph) else () if act is None else act.for_children
    # None for an act that the graph lacks now, and for one that a function chose.
    inner = next((one for one in known if one.name == record.act), None)
    if isinstance(inner, Graph) and not may_have_children(inner):
        return
    inner = inner if isinstance(inner, Graph) else None
    await end_unended(execution, store, child, None, reason, graph=inner)


async def _ask(execution: Execution, pending: Awaitable[T], what: str) -> T:
    """Ask the store, shielded: the question is part of a commit, which is done as a whole."""
    answers = list[T]()  # filled even if the scope ends with a cancellation of its own
    with CancelScope(shield=True):
        answers.append(await execution.ask(pending, what))
    return answers[0]


@final
@dataclass(frozen=True, slots=True)
class CutOff:
    """A child as stores read it, made of its record: this execution has no run of the child."""

    record: ChildRecord
    parent: RunPath

    @property
    def path(self) -> RunPath:
        of = self.record
        return RunPath(act=of.act, parent=self.parent, step=of.step, visit=of.visit, key=of.key)

    @property
    def step(self) -> None:
        """None: the step in which the child ended is not known."""

    @property
    def outcome(self) -> Cancelled:
        return Cancelled(
            path=self.path,
            position=self.position,
            element=self.element,
            attempts=self.attempts,
            elapsed=self.elapsed,
            abandoned=self.abandoned,
            reason=self.reason,
            winner=self.winner,
        )

    @property
    def key(self) -> Key:
        return self.record.key

    @property
    def status(self) -> Status | None:
        return cast("Status | None", self.record.status)

    @property
    def position(self) -> int:
        return self.record.position

    @property
    def element(self) -> object:
        return self.record.element

    @property
    def digest(self) -> str:
        return self.record.digest

    @property
    def reason(self) -> str:
        return self.record.reason

    @property
    def winner(self) -> ChildName | None:
        return self.record.winner

    @property
    def attempts(self) -> int:
        return self.record.attempts

    @property
    def elapsed(self) -> float:
        return self.record.elapsed

    @property
    def abandoned(self) -> bool:
        return self.record.abandoned

    # The rest of `SavedRun`: a cancelled child has none of these.
    error: None = None
    used: bool = True
    value: None = None
    crashes: int = 0
    last_update: Update | None = None
    packed: None = None
