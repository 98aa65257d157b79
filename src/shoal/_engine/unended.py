"""Children that an earlier execution has left under way, and this one has not come to.

Imports executions.

Invariants:
- Nothing below a run that has ended is kept as if it went on: what this execution has not taken up
  is recorded as cancelled before the end of the run is. It goes on all the same when its run is
  resumed. No hook is told: this execution has not told of its start.
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
"""How visits of steps were decided."""


def may_have_children(graph: Graph) -> bool:
    """Tell whether a run of ``graph`` may have children, by what its acts are."""
    return any(not isinstance(act, FunctionAction) or act.takes_context for act in graph.acts)


@final
class Left(NamedTuple):
    """A child that an earlier execution has left, which is not Done, or what is below it isn't."""

    record: ChildRecord
    store: Store
    """Keeps its history, and how its children have ended."""


def is_left(record: ChildRecord) -> bool:
    """Tell whether a child, or what is below it, may be kept as if it went on.

    An end that is no success is one of an execution: a later one may have gone on with the child,
    which is known of what is below it alone as long as the child itself has saved nothing (see
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
    """Record that all below ``run`` that has no end was cancelled; it has ended, or is about to.

    Args:
        execution: Whose work that is.
        store: Where it is kept.
        run: It was left under way by an earlier execution.
        decided: The decisions in its history; None: that is to be read.
        reason: Why it was cancelled.
        graph: What it walks; None: nobody knows.

    Raises:
        StoreFailed: The store did not say what there is.
        ShoalError: It could not be saved.
    """
    path = run.path
    left = await _left_of(execution, store, path)
    if decided is None and any(one.record.status is None for one in left):
        entries = await _ask(execution, store.read(path), f"the history of run {path.id}")
        decided = play({}, entries).decided
    decided = {} if decided is None else decided
    await end_children(execution, store, run, left, decided=decided, reason=reason, graph=graph)


async def _left_of(execution: Execution, store: Store, path: RunPath) -> Sequence[Left]:
    """Find the children of a run that are left.

    How a child has ended is saved where its parent is kept, in ``store``. A fan-out with a store of
    its own has its children's histories there; where ``store`` knows nothing of a child yet, that
    it has begun is known in its own store alone (see
    test_in_a_store_of_its_own_nothing_goes_on_below_a_run_that_has_ended).
    """
    what = f"the children of run {path.id}"
    elsewhere = {
        _name(record): Left(record, other)
        for other in execution.stores
        if other is not store
        for record in await _ask(execution, other.children(path), what)
    }
    if isinstance(store, ReadsInParts) and not elsewhere:
        found = await _ask(execution, store.not_done(path), what)
    else:
        found = await _ask(execution, store.children(path), what)
    left = list[Left]()
    for record in found:
        other = elsewhere.pop(_name(record), None)
        if is_left(record):
            left.append(Left(record, store if other is None else other.store))
    left += (one for one in elsewhere.values() if one.record.status is None)
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
    """Record that the children of ``run`` in ``left`` without an end were cancelled.

    And all below them, and below those which have one of an earlier execution.

    Args:
        execution: Whose work that is.
        store: Where it is kept.
        run: Their parent.
        left: Its children.
        decided: The decisions in the parent's history.
        reason: Why they were cancelled.
        graph: What the parent walks; None: nobody knows.

    Raises:
        StoreFailed: The store did not say what there is.
        ShoalError: It could not be saved.
    """
    path = run.path
    ended = list[CutOff]()
    for record, kept_in in left:
        await end_below(execution, kept_in, CutOff(record, path), reason, graph)
        if record.status is not None:
            continue
        decision = decided.get((record.step, record.visit))
        if decision is None or decision.winner == (record.act, record.key):
            how = record._replace(status="cancelled", reason=reason)
        else:
            how = record._replace(
                status="cancelled", reason=decision.reason, winner=decision.winner
            )
        ended.append(CutOff(how, path))
    if not ended or isinstance(store, NullStore):
        return
    await execution.claim(store, path.root.id)
    await execution.save(Batch(run, unapplied=ended, holder=execution.holder), store)


async def end_below(
    execution: Execution, store: Store, child: CutOff, reason: str, graph: Graph | None
) -> None:
    """Record ends of all below a child that this execution has not come to.

    Args:
        execution: Whose work that is.
        store: Where the child is kept.
        child: It may be ended already.
        reason: Why the others were cancelled.
        graph: What its parent walks; None: nobody knows.

    Raises:
        ShoalError: As ``end_unended``.
    """
    record = child.record
    act = None if graph is None else graph.find(record.step)
    known = (act,) if isinstance(act, Graph) else () if act is None else act.for_children
    inner = next((one for one in known if one.name == record.act), None)
    if isinstance(inner, Graph) and not may_have_children(inner):
        return
    inner = inner if isinstance(inner, Graph) else None
    await end_unended(execution, store, child, None, reason, graph=inner)


async def _ask(execution: Execution, pending: Awaitable[T], what: str) -> T:
    """Ask the store; a cancellation waits for that, since what follows belongs to a commit."""
    answers = list[T]()
    with CancelScope(shield=True):
        answers.append(await execution.ask(pending, what))
    return answers[0]


@final
@dataclass(frozen=True, slots=True)
class CutOff:
    """A child as stores see it, made of its record: in this execution there is no run of it."""

    record: ChildRecord
    parent: RunPath

    @property
    def path(self) -> RunPath:
        of = self.record
        return RunPath(act=of.act, parent=self.parent, step=of.step, visit=of.visit, key=of.key)

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

    error: None = None
    used: bool = True
    value: None = None
    crashes: int = 0
    last_update: Update | None = None
    packed: None = None
