"""How the children of steps ended that an earlier execution has completed: ledgers, from the store.

Imports parallel steps and what is above them.
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
    Completed,
    Entry,
    QuestionAnswered,
    QuestionAsked,
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
    way = _Way(dict(played.began.visits), dict(played.decided), dict(played.own))
    record = None if run.resume is None else run.resume.record
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
    """Count how the children of the run ``path`` ended, which walks ``graph``.

    Args:
        run: That run, or the one of whose graph it walks a node.
        path: Where it stands.
        graph: What it walks.
        way: The steps that it has completed.
        known: How many of its children are done, by step and visit, and those that are not.
    """
    done, children = known
    visits, decisions = way.visits, way.decisions
    places = {*done, *((one.step, one.visit) for one in children)}
    for step in _last_steps(way, graph, places):
        visits[step] = visits.get(step, 0) + 1
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
        for visit, ledger in enumerate(ledgers):
            ledger.is_decided = (step, visit) in decisions
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
            for name, opened in _own(step, way, places):
                # It has dealt with failures. Like in the execution that ran it, there is a ledger
                # for each visit up to the last one that has opened it.
                ledgers[name] = counted(name, min(completed, opened), kept=False)
    return ledgers


def _own(step: str, way: _Way, places: Iterable[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    """Find an action's own fan-outs: their names, and up to which visit it has opened them.

    Args:
        step: The action.
        way: The steps that were completed.
        places: The steps and visits that there are children of.
    """
    opened = dict[str, int]()
    declared = ((name, visit) for (of, visit), own in way.own.items() if of == step for name in own)
    for name, visit in (*places, *declared):
        if name.startswith(f"{step}/"):
            opened[name] = max(opened.get(name, 0), visit + 1)
    return sorted(opened.items())


async def _nodes(
    run: Run, path: RunPath, step: str, completed: int, others: Iterable[ChildRecord]
) -> list[RunPath]:
    """Return the children of a step that is a graph, in the order of its completed visits."""
    config = run.config
    found = {one.visit: outcome_of(one, path).path for one in others if one.visit < completed}

    def take(children: Sequence[DoneChild]) -> None:
        for one in children:
            found[one.visit] = RunPath(
                act=one.act, parent=path, step=step, visit=one.visit, key=one.key
            )

    await read_done(config.execution, config.store, path, step, None, take=take)
    return [found[visit] for visit in sorted(found) if visit < completed]


async def _recall_inner(run: Run, path: RunPath, graph: Graph) -> dict[str, list[Ledger]]:
    """Count how the children of a child ended that is a graph as a node."""
    config, way = run.config, _Way({}, {}, {}, set())
    await read_history(config.execution, config.store, path, way.take)
    known = await _children_of(run, path)
    return await _recall(run, path, graph, way, known=known)


@final
@dataclass(slots=True)
class _Way:
    """The steps that a run has completed, as far as its history says."""

    visits: dict[str, int]
    """How often each of them, in the order in which it did so first."""
    decisions: dict[tuple[str, int], Decision]
    """How visits of steps were decided, of those that were."""
    own: dict[tuple[str, int], Sequence[str]]
    """By visits of actions: their own fan-outs that have started nothing, if there were some."""
    under_way: set[str] | None = None
    """The steps of what came after the last that was completed; None: the run has not ended."""
    last: str | None = None
    """The step that was completed last."""

    def take(self, entries: Iterable[Entry]) -> None:
        """Go on by some entries of the history of a child that has ended well."""
        visits, under_way = self.visits, self.under_way
        assert under_way is not None, "it has ended"
        for entry in entries:
            if isinstance(entry, Completed):
                visits[entry.step] = visits.get(entry.step, 0) + 1
                under_way.clear()
                self.last = entry.step
            elif not isinstance(entry, QuestionAsked | QuestionAnswered):  # these change nothing
                under_way.add(entry.step)
                if isinstance(entry, Decision):
                    self.decisions[entry.step, visits.get(entry.step, 0)] = entry
                elif isinstance(entry, StepBegun) and (own := own_of(entry)):
                    self.own[entry.step, visits.get(entry.step, 0)] = own


def _last_steps(way: _Way, graph: Graph, places: Iterable[tuple[str, int]]) -> Collection[str]:
    """Find the last step of a child that has ended well: its end says that it is completed.

    That one has changed the state, or has children; or the graph leads nowhere else. Where it has
    done neither, and is one of several that could have come, nothing tells which.

    Args:
        way: The steps that were completed before.
        graph: What the child walks.
        places: The steps and visits that it has children of.
    """
    if way.under_way is None or way.under_way:
        return way.under_way or ()
    for name, visit in places:
        step, _, _ = name.rpartition("/")
        step = name if graph.find(name) is not None else step
        if visit == way.visits.get(step, 0) and graph.find(step) is not None:
            return (step,)
    if way.last is None:
        return (graph.entry.name,)
    following = graph.straight.get(way.last)
    return () if following is None else (following.name,)
