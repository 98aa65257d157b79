"""How the children of steps ended that an earlier execution has completed: ledgers, from the store.

Imports parallel steps and what is above them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import final

from ._child import children_of
from ._events import Decision, Update
from ._graph import Graph
from ._history import Completed, Entry, QuestionAnswered, QuestionAsked
from ._ids import RunPath
from ._join import Ledger
from ._parallel import Parallel
from ._parts import read_children, read_done, read_history
from ._recorded import decided, is_unended, outcome_of
from ._run import Run
from ._store import ChildRecord, DoneChild


async def recall_ledgers(
    run: Run,
    done: Mapping[tuple[str, int], int] | None = None,
    children: Sequence[ChildRecord] = (),
) -> None:
    """Fill the ledgers of a run that goes on, for the steps it has completed.

    Args:
        run: It stands where its history has led to.
        done: How many of its children are done, by step and visit; None: the store is asked.
        children: Those of its children that are not, if ``done`` is given.

    Raises:
        StoreFailed: The store did not say what it has.
    """
    played = run.playback
    assert played is not None, "it goes on"
    visits = dict(played.began.visits)
    if run.record is not None and run.record.status == "succeeded":
        _count_last(visits, played.under_way)
    graph, decisions = run.setting.graph, played.decided
    known = await _children_of(run, run.path) if done is None else (done, children)
    run.ledgers.update(await _recall(run, run.path, graph, visits, decisions, known=known))


async def _children_of(
    run: Run, path: RunPath
) -> tuple[Mapping[tuple[str, int], int], Sequence[ChildRecord]]:
    setting = run.setting
    return await read_children(setting.execution, setting.store, path)


async def _recall(
    run: Run,
    path: RunPath,
    graph: Graph,
    visits: Mapping[str, int],
    decisions: Mapping[tuple[str, int], Decision],
    *,
    known: tuple[Mapping[tuple[str, int], int], Sequence[ChildRecord]],
) -> dict[str, list[Ledger]]:
    """Count how the children of the run ``path`` ended, which walks ``graph``.

    Args:
        run: That run, or the one of whose graph it walks a node.
        path: Where it stands.
        graph: What it walks.
        visits: How often it has completed each step, in the order in which it did so first.
        decisions: How visits of steps were decided, of those that were.
        known: How many of its children are done, by step and visit, and those that are not.
    """
    done, children = known
    of_steps: dict[str, list[ChildRecord]] = {step: [] for step, _ in sorted(done)}
    for record in sorted(children, key=lambda one: (one.visit, one.position)):
        ended = decided(record, decisions.get((record.step, record.visit)))
        if not is_unended(ended):
            of_steps.setdefault(record.step, []).append(ended)

    def counted(step: str, completed: int, *, kept: bool) -> list[Ledger]:
        ledgers = [Ledger(done.get((step, visit), 0)) for visit in range(completed)]
        for record in of_steps.get(step, ()):
            if record.visit < completed:
                ledgers[record.visit].add(outcome_of(record, path), kept=kept)
        return ledgers

    ledgers: dict[str, list[Ledger]] = {}
    for step, completed in visits.items():
        act = graph.find(step)
        if isinstance(act, Parallel):
            ledgers[step] = counted(step, completed, kept=True)
            for ledger in ledgers[step]:
                ledger.kept_in, _ = children_of(run, act.store, act.hooks)
        elif isinstance(act, Graph):
            for child in await _nodes(run, path, step, completed, of_steps.get(step, ())):
                inner = await _recall_inner(run, child, act)
                for name, found in inner.items():
                    ledgers.setdefault(f"{step}/{name}", []).extend(found)
        else:
            for name in of_steps:
                if name.startswith(f"{step}/"):  # the action's own: it has dealt with failures
                    ledgers[name] = counted(name, completed, kept=False)
    return ledgers


async def _nodes(
    run: Run, path: RunPath, step: str, completed: int, others: Iterable[ChildRecord]
) -> list[RunPath]:
    """Return the children of a step that is a graph, in the order of its completed visits."""
    setting = run.setting
    found = {one.visit: outcome_of(one, path).path for one in others if one.visit < completed}

    def take(children: Sequence[DoneChild]) -> None:
        for one in children:
            found[one.visit] = RunPath(
                act=one.act, parent=path, step=step, visit=one.visit, key=one.key
            )

    await read_done(setting.execution, setting.store, path, step, None, take=take)
    return [found[visit] for visit in sorted(found) if visit < completed]


async def _recall_inner(run: Run, path: RunPath, graph: Graph) -> dict[str, list[Ledger]]:
    """Count how the children of a child ended that is a graph as a node."""
    setting, walked = run.setting, _Walked()
    await read_history(setting.execution, setting.store, path, walked.take)
    walked.end()
    known = await _children_of(run, path)
    return await _recall(run, path, graph, walked.visits, walked.decisions, known=known)


@final
class _Walked:
    """Counts how often a child that has ended well has completed its steps: the last one too."""

    def __init__(self) -> None:
        self.visits: dict[str, int] = {}
        self.decisions: dict[tuple[str, int], Decision] = {}
        """How visits were decided."""
        self._under_way: dict[str, None] = {}  # the steps that have saved something since

    def take(self, entries: Iterable[Entry]) -> None:
        visits = self.visits
        for entry in entries:
            if isinstance(entry, Completed):
                visits[entry.step] = visits.get(entry.step, 0) + 1
                self._under_way.clear()
            elif not isinstance(entry, QuestionAsked | QuestionAnswered):  # these change nothing
                self._under_way[entry.step] = None
                if isinstance(entry, Decision):
                    self.decisions[entry.step, visits.get(entry.step, 0)] = entry

    def end(self) -> None:
        for step in self._under_way:
            self.visits[step] = self.visits.get(step, 0) + 1


def _count_last(visits: dict[str, int], under_way: Iterable[Update]) -> None:
    """Count the last step of a child, whose completion is its parent's update that applies it."""
    for step in {entry.step for entry in under_way}:
        visits[step] = visits.get(step, 0) + 1
