"""How the children of steps ended that an earlier execution has completed: ledgers, from the store.

Imports parallel steps and what is above them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ._child import children_of
from ._events import Decision
from ._graph import Graph
from ._history import Completed, Entry, QuestionAnswered, QuestionAsked
from ._ids import RunPath
from ._join import Ledger
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
    if run.record is not None and run.record.status == "succeeded":
        _count_last(visits, played.step_under_way, played.began.step, graph)
    run.ledgers.update(await _recall(run, run.path, graph, visits, decisions, children=children))


async def _recall(
    run: Run,
    path: RunPath,
    graph: Graph,
    visits: Mapping[str, int],
    decisions: Mapping[tuple[str, int], Decision],
    *,
    children: Sequence[ChildRecord] | None = None,
) -> dict[str, list[Ledger]]:
    """Count how the children of the run ``path`` ended, which walks ``graph``.

    Args:
        run: That run, or the one of whose graph it walks a node.
        path: Where it stands.
        graph: What it walks.
        visits: How often it has completed each step, in the order in which it did so first.
        decisions: How visits of steps were decided, of those that were.
        children: All of its children, if they are at hand.
    """
    execution, store = run.setting.execution, run.setting.store
    if children is None:
        asked = store.children(path)
        children = await execution.ask(asked, f"the children of run {path.id}")
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
                    inner = await _recall(run, child, act, *_visits(entries, act))
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


def _visits(
    entries: Iterable[Entry], graph: Graph
) -> tuple[dict[str, int], dict[tuple[str, int], Decision]]:
    """Count how often a child that has ended well has completed its steps: the last one too.

    Returns that, and how visits were decided.
    """
    visits: dict[str, int] = {}
    decisions: dict[tuple[str, int], Decision] = {}
    completed: str | None = None
    under_way: str | None = None
    for entry in entries:
        if isinstance(entry, Completed):
            visits[entry.step] = visits.get(entry.step, 0) + 1
            completed, under_way = entry.step, None
            continue
        if isinstance(entry, QuestionAsked | QuestionAnswered):
            continue  # which changes nothing
        under_way = entry.step
        if isinstance(entry, Decision):
            decisions[entry.step, visits.get(entry.step, 0)] = entry
    _count_last(visits, under_way, completed, graph)
    return visits, decisions


def _count_last(
    visits: dict[str, int], under_way: str | None, completed: str | None, graph: Graph
) -> None:
    """Count the last step of a child, whose completion is its parent's update that applies it.

    A fan-out without children has left nothing of its own: where nothing has to be decided about
    what comes behind the step that was completed before, that was the last one.
    """
    if under_way is None:
        following = graph.entry if completed is None else graph.straight.get(completed)
        under_way = None if following is None else following.name
    if under_way is not None:
        visits[under_way] = visits.get(under_way, 0) + 1
