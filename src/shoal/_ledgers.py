"""How the children of steps ended that an earlier execution has completed: ledgers, from the store.

Imports parallel steps and what is above them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from ._child import children_of
from ._events import Decision
from ._graph import Graph
from ._history import Completed, Entry, QuestionAnswered, QuestionAsked
from ._ids import RunPath
from ._ledger import Ledger
from ._parallel import Parallel
from ._recorded import decided, is_unended, outcome_of
from ._run import Run
from ._store import ChildRecord


async def recall_ledgers(run: Run, children: Sequence[ChildRecord] | None = None) -> None:
    """Fill the ledgers of a run that goes on, for the steps it has completed.

    Args:
        run: It stands where its history has led to.
        children: All of its children, if they are at hand.

    Raises:
        StoreFailed: The store did not say what it has.
    """
    played = run.playback
    assert played is not None, "it goes on"
    visits = dict(played.began.visits)
    graph, decisions = run.setting.graph, played.decided
    last, now = played.began.step, played.step_under_way
    ended = run.record is not None and run.record.status == "succeeded"
    way = _Way(visits, decisions, set() if now is None else {now}, last) if ended else None
    run.ledgers.update(
        await _recall(run, run.path, graph, way or _Way(visits, decisions), children=children)
    )


async def _recall(
    run: Run,
    path: RunPath,
    graph: Graph,
    way: _Way,
    *,
    children: Sequence[ChildRecord] | None = None,
) -> dict[str, list[Ledger]]:
    """Count how the children of the run ``path`` ended, which walks ``graph``.

    Args:
        run: That run, or the one of whose graph it walks a node.
        path: Where it stands.
        graph: What it walks.
        way: The steps that it has completed.
        children: All of its children, if they are at hand.
    """
    execution, store = run.setting.execution, run.setting.store
    if children is None:
        asked = store.children(path)
        children = await execution.ask(asked, f"the children of run {path.id}")
    visits, decisions = way.visits, way.decisions
    for step in _last_steps(way, graph, children):
        visits[step] = visits.get(step, 0) + 1
    of_steps: dict[str, list[ChildRecord]] = {}
    for record in sorted(children, key=lambda one: (one.visit, one.position)):
        ended = decided(record, decisions.get((record.step, record.visit)))
        if not is_unended(ended):
            of_steps.setdefault(record.step, []).append(ended)
    ledgers: dict[str, list[Ledger]] = {}
    for step, completed in visits.items():
        act = graph.find(step)
        if isinstance(act, Parallel):
            ledgers[step] = _counted(of_steps.get(step, ()), completed, path, kept=True)
            for ledger in ledgers[step]:
                ledger.kept_in, _ = children_of(run, act.store, act.hooks)
        elif isinstance(act, Graph):
            for record in of_steps.get(step, ()):
                if record.visit < completed:
                    child = outcome_of(record, path).path
                    asked = store.read(child)
                    entries = await execution.ask(asked, f"the history of run {child.id}")
                    inner = await _recall(run, child, act, _way(entries))
                    for name, found in inner.items():
                        ledgers.setdefault(f"{step}/{name}", []).extend(found)
        else:
            for name, records in of_steps.items():
                if name.startswith(f"{step}/"):  # the action's own: it has dealt with failures
                    ledgers[name] = _counted(records, completed, path, kept=False)
    return ledgers


def _counted(
    records: Iterable[ChildRecord], visits: int, parent: RunPath, *, kept: bool
) -> list[Ledger]:
    """Count how the children of a step ended, in each of its completed visits."""
    ledgers = [Ledger() for _ in range(visits)]
    for record in records:
        if record.visit < visits:
            ledgers[record.visit].add(outcome_of(record, parent), kept=kept)
    return ledgers


@final
@dataclass(slots=True)
class _Way:
    """The steps that a run has completed, as far as its history says."""

    visits: dict[str, int]
    """How often each of them, in the order in which it did so first."""
    decisions: Mapping[tuple[str, int], Decision]
    """How visits of steps were decided, of those that were."""
    under_way: Collection[str] | None = None
    """The steps of what came after the last that was completed; None: the run has not ended."""
    last: str | None = None
    """The step that was completed last."""


def _way(entries: Iterable[Entry]) -> _Way:
    """Read off the history of a child that has ended well which steps it has completed."""
    visits: dict[str, int] = {}
    decisions: dict[tuple[str, int], Decision] = {}
    under_way: set[str] = set()
    last: str | None = None
    for entry in entries:
        if isinstance(entry, Completed):
            visits[entry.step] = visits.get(entry.step, 0) + 1
            under_way.clear()
            last = entry.step
            continue
        if isinstance(entry, QuestionAsked | QuestionAnswered):
            continue  # which changes nothing
        under_way.add(entry.step)
        if isinstance(entry, Decision):
            decisions[entry.step, visits.get(entry.step, 0)] = entry
    return _Way(visits, decisions, under_way, last)


def _last_steps(way: _Way, graph: Graph, children: Iterable[ChildRecord]) -> Collection[str]:
    """Find the last step of a child that has ended well: its end says that it is completed.

    That one has changed the state, or has children; or the graph leads nowhere else. Where it has
    done neither, and is one of several that could have come, nothing tells which.
    """
    if way.under_way is None or way.under_way:
        return way.under_way or ()
    for record in children:
        step, _, _ = record.step.rpartition("/")
        step = record.step if graph.find(record.step) is not None else step
        if record.visit == way.visits.get(step, 0) and graph.find(step) is not None:
            return (step,)
    if way.last is None:
        return (graph.entry.name,)
    following = graph.straight.get(way.last)
    return () if following is None else (following.name,)
