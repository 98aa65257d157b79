"""Reads the ledgers of completed steps from the store, when a run is resumed.

The store has the children, but not how often the run completed each step. So the history of the run
says which steps and visits are complete, and their children are counted. A graph as a node is a
child with a history of its own, which is read in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from shoal._engine.parts import read_children, read_done, read_history
from shoal._engine.run import Run
from shoal._events.events import Decision
from shoal._events.identity import RunPath
from shoal._graph.graph import Graph
from shoal._graph.parallel import Parallel
from shoal.stores._history import (
    BudgetLevel,
    Completed,
    Entry,
    QuestionAnswered,
    QuestionAsked,
    Steered,
    StepBegun,
    own_of,
)
from shoal.stores._protocol import ChildRecord, DoneChild

from .children import children_of
from .ledger import Ledger
from .recorded import decided, is_unended, outcome_of


async def recall_ledgers(
    run: Run,
    done: Mapping[tuple[str, int], int] | None = None,
    children: Sequence[ChildRecord] = (),
) -> None:
    """Fill the ledgers of a resumed run, for the steps that it has completed.

    Args:
        run: The run, after its history was replayed.
        done: The number of done children, by step and visit; None: read it from the store.
        children: The children that are not done, if ``done`` is given.

    Raises:
        StoreFailed: The store could not be read.
    """
    played = run.playback
    assert played is not None, "it goes on"
    # Copies, since the last step is counted below and the replayed history is read again later.
    way = _Way(dict(played.began.visits), dict(played.decided), dict(played.own))
    record = None if run.resume is None else run.resume.record
    # The last step of a child that has succeeded is saved by its parent, so that its own history
    # lacks the completion.
    if record is not None and record.status == "succeeded":
        now = played.step_under_way
        way.under_way, way.last = set() if now is None else {now}, played.began.step
    known = await _children_of(run, run.path) if done is None else (done, children)
    run.ledgers.update(await _recall(run, run.path, run.config.graph, way, known=known))


async def _children_of(
    run: Run, path: RunPath
) -> tuple[Mapping[tuple[str, int], int], Sequence[ChildRecord]]:
    config = run.config
    return await read_children(config.execution, config.store, path)


async def _recall(
    run: Run,
    path: RunPath,
    graph: Graph,
    way: _Way,
    *,
    known: tuple[Mapping[tuple[str, int], int], Sequence[ChildRecord]],
) -> dict[str, list[Ledger]]:
    """Return the ledgers of the run at ``path``, which walks ``graph``, by step.

    Args:
        run: The resumed run: the one at ``path``, or one above it.
        path: The path of the run whose children are counted.
        graph: The graph that it walks.
        way: The steps that it has completed.
        known: The number of its done children, by step and visit, and the records of the others.
    """
    done, children = known
    visits, decisions = way.visits, way.decisions
    places = {*done, *((one.step, one.visit) for one in children)}
    # First: a run that has ended saves no completion of its last step.
    for step in _last_steps(way, graph, places):
        visits[step] = visits.get(step, 0) + 1
    of_steps: dict[str, list[ChildRecord]] = {}
    for record in children:
        ended = decided(record, decisions.get((record.step, record.visit)))
        # A child that is under way has no outcome, and is counted when it comes up again.
        if not is_unended(ended):
            of_steps.setdefault(record.step, []).append(ended)

    def counted(step: str, completed: int, *, kept: bool) -> list[Ledger]:
        # Also for visits without children: a result has a ledger for each visit.
        ledgers = [Ledger(done.get((step, visit), 0)) for visit in range(completed)]
        for record in of_steps.get(step, ()):
            # The visit that is under way gets its ledger when the step is resumed.
            if record.visit < completed:
                ledgers[record.visit].add(outcome_of(record, path), kept=kept)
        for visit, ledger in enumerate(ledgers):
            decision = decisions.get((step, visit))
            ledger.winner = None if decision is None else decision.winner
        return ledgers

    ledgers: dict[str, list[Ledger]] = {}
    for step, completed in visits.items():
        act = graph.find(step)
        if isinstance(act, Parallel):
            ledgers[step] = counted(step, completed, kept=True)
            for ledger in ledgers[step]:
                # As when the step was executed, so that outcomes are read from the same store.
                ledger.kept_in, _ = children_of(run, act.store, act.hooks)
        elif isinstance(act, Graph):
            for child in await _nodes(run, path, step, completed, of_steps.get(step, ())):
                inner = await _recall_inner(run, child, act)
                for name, found in inner.items():
                    # Under the same names as `subgraph` gives them when a node is executed.
                    ledgers.setdefault(f"{step}/{name}", []).extend(found)
        else:
            # The act is an action, whose own fan-outs are no steps of the graph.
            for name, opened in _own(step, way, places):
                # Counts only, because the action got the outcomes itself. There is a ledger for
                # each visit up to the last one that opened the fan-out, as in `new_ledger`.
                ledgers[name] = counted(name, min(completed, opened), kept=False)
    return ledgers


def _own(step: str, way: _Way, places: Iterable[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    """Return an action's own fan-outs: each name, and one more than the last visit that opened it.

    Args:
        step: The action's name.
        way: The completed steps.
        places: The steps and visits that have children.
    """
    opened = dict[str, int]()
    # Fan-outs that have started no child are in the history alone.
    declared = ((name, visit) for (of, visit), own in way.own.items() if of == step for name in own)
    for name, visit in (*places, *declared):
        if name.startswith(f"{step}/"):
            # The last visit with a child or a declaration: later ones have not opened it.
            opened[name] = max(opened.get(name, 0), visit + 1)
    return sorted(opened.items())


async def _nodes(
    run: Run, path: RunPath, step: str, completed: int, others: Iterable[ChildRecord]
) -> list[RunPath]:
    """Return the paths of a graph node's children, one for each completed visit, in order."""
    config = run.config
    # A node has one child for each visit, so its visit identifies it.
    found = {one.visit: outcome_of(one, path).path for one in others if one.visit < completed}

    def take(children: Sequence[DoneChild]) -> None:
        for one in children:
            found[one.visit] = RunPath(
                act=one.act, parent=path, step=step, visit=one.visit, key=one.key
            )

    await read_done(config.execution, config.store, path, step, None, take=take)
    return [found[visit] for visit in sorted(found) if visit < completed]


async def _recall_inner(run: Run, path: RunPath, graph: Graph) -> dict[str, list[Ledger]]:
    """Return the ledgers of a child that is a graph as a node."""
    config, way = run.config, _Way({}, {}, {}, set())
    await read_history(config.execution, config.store, path, way.take)
    known = await _children_of(run, path)
    return await _recall(run, path, graph, way, known=known)


_UNCHANGING = QuestionAsked | QuestionAnswered | BudgetLevel | Steered
"""Entries of a history that belong to no step."""


@final
@dataclass(slots=True)
class _Way:
    """The steps that a run has completed, according to its history."""

    visits: dict[str, int]
    """The number of completed visits of each step, in the order of the first completions."""
    decisions: dict[tuple[str, int], Decision]
    """The decisions of races, by step and visit."""
    own: dict[tuple[str, int], Sequence[str]]
    """The own fan-outs without children that actions have opened, by action and visit."""
    under_way: set[str] | None = None
    """The steps of the entries after the last completed step; None: the run has not ended."""
    last: str | None = None
    """The last completed step; None: no step was completed, or the run has not ended."""

    def take(self, entries: Iterable[Entry]) -> None:
        """Add the next entries from the history of a child that succeeded."""
        visits, under_way = self.visits, self.under_way
        assert under_way is not None, "it has ended"
        for entry in entries:
            if isinstance(entry, Completed):
                visits[entry.step] = visits.get(entry.step, 0) + 1
                # What comes after a completion belongs to the next step.
                under_way.clear()
                self.last = entry.step
            elif not isinstance(entry, _UNCHANGING):
                under_way.add(entry.step)
                if isinstance(entry, Decision):
                    self.decisions[entry.step, visits.get(entry.step, 0)] = entry
                elif isinstance(entry, StepBegun) and (own := own_of(entry)):
                    self.own[entry.step, visits.get(entry.step, 0)] = own


def _last_steps(way: _Way, graph: Graph, places: Iterable[tuple[str, int]]) -> Collection[str]:
    """Find the last step of a run that succeeded, which its end has completed.

    It is the step that changed the state after the last completion, or that has children in its
    current visit, or the only step that follows in the graph. If several steps could follow, and
    none of them left a trace, the result is empty.

    Args:
        way: The steps that were completed before.
        graph: The graph that the run walks.
        places: The steps and visits that have children.
    """
    # A trace of the step: a change or a declaration that no completion follows.
    if way.under_way is None or way.under_way:
        return way.under_way or ()
    for name, visit in places:
        step, _, _ = name.rpartition("/")
        step = name if graph.find(name) is not None else step
        # Children of a visit that no completion follows.
        if visit == way.visits.get(step, 0) and graph.find(step) is not None:
            return (step,)
    if way.last is None:
        # It has completed no step before, so the last one was the first.
        return (graph.entry.name,)
    following = graph.straight.get(way.last)
    return () if following is None else (following.name,)
