"""Children that an earlier execution has left under way, and this one has not come to.

Imports executions.

Invariants:
- Nothing below a run that has ended is kept as if it went on: what this execution has not taken up
  is recorded as cancelled before the end of the run is. It goes on all the same when its run is
  resumed. No hook is told: this execution has not told of its start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast, final

from anyio import CancelScope

from ._action import FunctionAction
from ._events import Cancelled, ChildName, Decision, Status, Update
from ._execution import Execution
from ._graph import Graph
from ._history import play
from ._ids import Key, RunPath
from ._store import Batch, ChildRecord, ReadsInParts, SavedRun, Store

T = TypeVar("T")
Decided = Mapping[tuple[str, int], Decision]
"""How visits of steps were decided."""


def may_have_children(graph: Graph) -> bool:
    """Tell whether a run of ``graph`` may have children, by what its acts are."""
    return any(not isinstance(act, FunctionAction) or act.takes_context for act in graph.acts)


async def end_unended(
    execution: Execution, store: Store, run: SavedRun, decided: Decided | None, reason: str
) -> None:
    """Record that all below ``run`` that has no end was cancelled; it has ended, or is about to.

    Args:
        execution: Whose work that is.
        store: Where it is kept.
        run: It was left under way by an earlier execution.
        decided: The decisions in its history; None: that is to be read.
        reason: Why it was cancelled.

    Raises:
        StoreFailed: The store did not say what there is.
        ShoalError: It could not be saved.
    """
    path = run.path
    reading = store.not_done(path) if isinstance(store, ReadsInParts) else store.children(path)
    found = await _ask(execution, reading, f"the children of run {path.id}")
    left = [record for record in found if record.status is None]
    if not left:
        return
    if decided is None:
        entries = await _ask(execution, store.read(path), f"the history of run {path.id}")
        decided = play({}, entries).decided
    await end_children(execution, store, run, left, decided=decided, reason=reason)


async def end_children(
    execution: Execution,
    store: Store,
    run: SavedRun,
    left: Iterable[ChildRecord],
    *,
    decided: Decided,
    reason: str,
) -> None:
    """Record that the children of ``run`` in ``left`` were cancelled, and all below them.

    Args:
        execution: Whose work that is.
        store: Where it is kept.
        run: Their parent.
        left: Children without an end.
        decided: The decisions in the parent's history.
        reason: Why they were cancelled.

    Raises:
        StoreFailed: The store did not say what there is.
        ShoalError: It could not be saved.
    """
    path = run.path
    ended = list[CutOff]()
    for record in left:
        child, decision = CutOff(record, path), decided.get((record.step, record.visit))
        await end_unended(execution, store, child, None, reason)
        if decision is None or decision.winner == (record.act, record.key):
            how = record._replace(status="cancelled", reason=reason)
        else:
            how = record._replace(
                status="cancelled", reason=decision.reason, winner=decision.winner
            )
        ended.append(CutOff(how, path))
    await execution.save(Batch(run, unapplied=ended, holder=execution.holder), store)


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
