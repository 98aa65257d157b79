"""Reads what a store has of a root run, of which nothing is executed: to show it, or to start it.

Invariants:
- If a step was decided, a child without an end in the store has lost; see ``recorded.decided``.
- A question of a child that has lost is not open any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import final

from shoal._engine.execution import Execution
from shoal._engine.parts import read_history
from shoal._engine.progress import own_questions, recorded_questions
from shoal._engine.run import Run
from shoal._errors.exceptions import BadUse, UnknownRun, note
from shoal._events.events import ChildName, Decision, Done, Outcome, Question, Update
from shoal._events.identity import Key, RunPath
from shoal._graph.graph import Graph
from shoal._state.state import make_state
from shoal.stores._history import Entry, ReplayedHistory, Rewound, play
from shoal.stores._protocol import Beginning, ChildRecord, NullStore, Store, similar_run

from .recorded import decided, is_unended, outcome_of


async def recorded_beginning(execution: Execution, path: RunPath) -> Beginning:
    """Read the beginning of a root run from the store.

    Raises:
        StoreFailed: The store could not be read.
        UnknownRun: The store has no run with that id.
    """
    record = await execution.ask(execution.store.load(path.id), f"run {path.id}")
    if record is None:
        raise await unknown_run(execution, path.id)
    return record.beginning


async def unknown_run(execution: Execution, run_id: str) -> UnknownRun:
    """Return the error for an id that the store does not have."""
    similar = await _similar(execution, run_id)
    error = UnknownRun(f"the store has no run {run_id!r}", similar)
    _note_similar(error, similar)
    return error


async def note_similar(error: Exception, execution: Execution, run_id: str) -> None:
    """Add a note with a similar id among the latest runs, if the store can list runs.

    It is no part of the message: clients of a service may not learn the ids of other runs.
    """
    _note_similar(error, await _similar(execution, run_id))


def _note_similar(error: Exception, similar: str) -> None:
    if similar:
        note(error, f"shoal: did you mean {similar!r}?")


async def _similar(execution: Execution, run_id: str) -> str:
    with suppress(Exception):  # a late answer, too, must not hide the error
        return await execution.ask(similar_run(execution.store, run_id), "the latest runs")
    return ""


async def recorded_history(
    execution: Execution, path: RunPath, beginning: Beginning, *, upto: int | None = None
) -> ReplayedHistory:
    """Replay the history of a root run.

    Args:
        execution: The execution, which has the store.
        path: The path of the run.
        beginning: The beginning of the run.
        upto: The number of the last update to replay; by default, all are replayed.

    Raises:
        StoreFailed: The store could not be read.
        UnknownRun: The run has no update of that number.
    """
    # Entries are added part by part, since a long history comes in parts.
    played = play(beginning.first, (), after=beginning.after, visits=beginning.visits)
    upto_there = None if upto is None else _Upto(upto)

    def take(entries: Sequence[Entry]) -> None:
        for entry in entries if upto_there is None else upto_there.cut(entries):
            played.add(entry)

    await read_history(execution, execution.store, path, take)
    if upto_there is not None and not 0 <= upto_there.number <= upto_there.last:
        msg = (
            f"run {path.id} has updates 1 to {upto_there.last}, so it can't be forked at "
            f"{upto_there.number}"
        )
        raise UnknownRun(msg)
    return played


@final
class _Upto:
    """Cuts a history before the first update with a number above ``number``."""

    def __init__(self, number: int) -> None:
        self.number: int = number
        self.last: int = 0
        """The number of the last update in the history, even behind the cut."""
        self._is_over = False  # set by the first update behind the cut, never reset
        self._rewound: Rewound | None = None  # held back: it counts only if the next entry does

    def cut(self, entries: Sequence[Entry]) -> Iterator[Entry]:
        """Yield the next entries that are before the cut."""
        for entry in entries:
            if isinstance(entry, Update):
                self.last = entry.number
                self._is_over = self._is_over or entry.number > self.number
            # Read to the end all the same, because an error names the last number.
            if self._is_over:
                continue
            if self._rewound is not None:
                yield self._rewound
            # If the cut comes next, the fork begins before the run has gone back.
            self._rewound = entry if isinstance(entry, Rewound) else None
            if self._rewound is None:
                yield entry


async def read_questions(
    execution: Execution, path: RunPath, graph: Graph
) -> tuple[Sequence[Question], ReplayedHistory]:
    """Read the questions of a root run and its descendants in the steps under way.

    Args:
        execution: The execution, which has the store.
        path: The path of the run.
        graph: The graph that it walks.

    Returns the questions in order, answered or not, and the replayed history of the run.

    Raises:
        StoreFailed: The store could not be read.
        UnknownRun: The store has no run with that id.
    """
    played = await recorded_history(execution, path, await recorded_beginning(execution, path))
    reading = execution.store.children(path)
    children = await execution.ask(reading, f"the children of run {path.id}")
    return recorded_asked(path, graph, played, children), played


def recorded_asked(
    path: RunPath, graph: Graph, played: ReplayedHistory, children: Iterable[ChildRecord]
) -> list[Question]:
    """Return the questions of a root run and its descendants in the steps under way, in order."""
    found = own_questions(path, played.asked.values())
    # Gone through twice below.
    children = list(children)
    failed = {(one.step, one.visit, one.act, one.key) for one in children if one.status == "failed"}
    resting = [
        record
        for record in children
        if record.status == "halted"
        # A question of an earlier visit was left behind: its step is completed.
        and record.visit == _visit(record.step, graph, played)
        and not _has_lost(record, played, failed)
    ]
    # By position and not by time, as `halt_for` orders them.
    for record in sorted(resting, key=lambda one: (one.step, one.position)):
        found += recorded_questions(record.value, path)
    return found


def _has_lost(
    record: ChildRecord, played: ReplayedHistory, failed: Collection[tuple[str, int, str, Key]]
) -> bool:
    """Return whether a halted child has lost a race, although its end is not recorded yet.

    If the winner has failed since, the race may run again, and the child still waits in it.
    """
    decision = played.decided.get((record.step, record.visit))
    if decision is None:
        return False
    winner = decision.winner
    # Only a race of streams can be decided by a child that fails later.
    has_failed = (record.step, record.visit, winner.act, winner.key) in failed
    return winner != ChildName(record.act, record.key) and not has_failed


def _visit(step: str, graph: Graph, played: ReplayedHistory) -> int:
    """Return the current visit of a step; for an action's own fan-out, that of the action."""
    action, _, _ = step.rpartition("/")
    return played.visit(action if graph.find(step) is None else step)


async def read_outcomes(
    run: Run, step: str, visit: int, kept_in: Store | None = None
) -> AsyncIterator[Outcome]:
    """Yield the outcomes of all children of one ``visit`` of a step, in input order.

    Args:
        run: The parent, whose store has the children's ends.
        step: The step's name.
        visit: The number of the visit.
        kept_in: The store of the children's histories; by default the parent's.

    Raises:
        BadUse: The run has no store.
        StoreFailed: The store could not be read.
    """
    config, path = run.config, run.path
    if isinstance(config.store, NullStore):
        msg = (
            f"run {path.id} has no store, so only counts are known of its children that are Done; "
            f"their values are where into= or reduce= has put them"
        )
        raise BadUse(msg)
    execution, what = config.execution, f"the children of step {step!r} of run {path.id}"
    records = await execution.ask(config.store.children(path, step, visit), what)
    decision: Decision | None = None
    # Only then the history is read, which may be long: nothing else says how these children have
    # ended.
    if any(is_unended(record) for record in records):
        beginning = await recorded_beginning(execution, path)
        played = await recorded_history(execution, path, beginning)
        decision = played.decided.get((step, visit))
    for record in sorted(records, key=lambda one: one.position):
        record = decided(record, decision)  # noqa: PLW2901 # the same, as it ended
        if is_unended(record):  # started by an earlier execution, and never again
            continue
        outcome = outcome_of(record, path)
        if isinstance(outcome, Done):
            # One child at a time, and only when its turn comes: the final states of all together
            # may be more than memory should hold.
            reading = (config.store if kept_in is None else kept_in).read(outcome.path)
            entries = await execution.ask(reading, what)
            written = make_state(play({}, entries).data)
            outcome = outcome_of(record, path, written)
        yield outcome
