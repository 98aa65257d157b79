"""Where a run goes on that the store knows: after the last step it has completed.

Imports runs, graphs and history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal._concurrency.cancellation import ki_unprotected
from shoal._errors.exceptions import RunConflict, fork_advice
from shoal._events.events import Update
from shoal._graph.action import Act
from shoal._graph.graph import Graph
from shoal._state.schema import Schema
from shoal._state.state import NO_CHANGE, Change
from shoal.stores._history import Entry, Playback, Rewound, play
from shoal.stores._protocol import NullStore, Store

from .commit import Write, commit, forget_history
from .parts import read_history
from .progress import PendingQuestions
from .run import Run


async def load_history(run: Run, store: Store | None = None) -> None:
    """Go to where the history of a child leads.

    If its graph has other ways now, it begins anew: what it has done counts no more.

    Args:
        run: The child.
        store: Has it; by default, the one where the child is kept.

    Raises:
        StoreFailed: The store did not say what it has.
    """
    setting = run.setting
    if setting.schema is not None:
        fill_model(run, setting.schema)
    played = play(run.initial, ())

    def take(entries: Sequence[Entry]) -> None:
        for entry in entries:
            played.add(entry)

    kept_in = setting.store if store is None else store
    await read_history(setting.execution, kept_in, run.path, take)
    resume = run.resume_state()
    is_done = resume.record is not None and resume.record.status == "succeeded"
    if not is_done and _other_way(run, played) is not None:
        resume.record = None
        await forget_history(run)
    else:
        stand_at(run, played)


async def load_end(run: Run) -> None:
    """Read what a child has written that is Done, and that only has to be applied.

    Of a child that is kept nowhere, its parent's store has what it wrote last.

    Raises:
        StoreFailed: The store did not say what it has.
    """
    setting = run.setting
    await load_history(run, setting.keeper if isinstance(setting.store, NullStore) else None)
    run.pending = NO_CHANGE


def stand_at(run: Run, played: Playback) -> None:
    """Stand where a history has led to."""
    resume = run.resume_state()
    resume.replayed = played
    resume.is_undone = played.is_undone if played.undone else None
    run.head = (played.number, played.data)
    run.step_counts().visits = dict(played.began.visits)
    if played.asked:
        run.questions = PendingQuestions(dict(played.asked))


async def rewind(run: Run, rewound: Rewound, back: Change) -> None:
    """Go back into a step that was completed; ``back`` brings the state back as it was."""
    update = Update(run.head[0] + 1, rewound.step, back.operations)
    await commit(run, Write((update,), back.applied_to(run.head[1]), rewound=rewound))


def next_act(run: Run, played: Playback) -> Act | None:
    """Return the act that comes next in a history, None at the end.

    It is chosen by the state as it was then: the step under way may have changed it since.

    Raises:
        RunConflict: The graph does not have the step that was completed last, or the one under
            way is not what comes next in it.
    """
    record = None if run.resume is None else run.resume.record
    if record is not None and record.status == "succeeded":
        return None
    if run.setting.parent is None:  # see load_history
        refuse_other_way(run, played)
    return _after(run, played)


def refuse_other_way(run: Run, played: Playback) -> None:
    """Refuse to go on with a history that has gone a way that the graph doesn't have.

    Raises:
        RunConflict: Saying where.
    """
    other = _other_way(run, played)
    if other is not None:
        why, number = other
        fork = "" if number is None else f", or {fork_advice(run.path.id, number)}"
        msg = f"run {run.path.id} {why}; change the graph back to go on{fork}"
        raise RunConflict(msg)


def _other_way(run: Run, played: Playback) -> tuple[str, int | None] | None:
    """Say where a history has gone a way that the graph doesn't have; None: it has it.

    With the number of the last update that the graph can begin behind, if there is one.
    """
    graph, before = run.setting.graph, played.first_after
    for step, _, number in played.completed_visits():
        known = graph.find(step) and (before is None or graph.find(before))
        if known and not graph.leads(before, step):
            behind = "to begin with" if before is None else f"behind {before!r}"
            why = f"has completed the step {step!r} {behind}, where {graph.name!r} has others"
            return why, number
        before = step
    if before is not None and graph.find(before) is None:
        return unknown_step(before, graph), played.last_behind(graph.find)
    under_way = played.step_under_way
    if under_way is None:
        return None
    following = _after(run, played)
    if following is None or following.name != under_way:
        comes = "nothing" if following is None else f"{following.name!r}"
        why = (
            f"was in the middle of step {under_way!r}, where {comes} comes in {graph.name!r} "
            f"now (if the step was renamed, give it its old name with name=)"
        )
        return why, played.began.number
    return None


def _after(run: Run, played: Playback) -> Act | None:
    """Return the act behind the step that was completed last."""
    setting, step = run.setting, played.began.step
    if step is None:
        return setting.graph.entry
    act = setting.graph.find(step)
    assert act is not None, "else its way would be another one"
    return act_after(setting.graph, act, played.began.data)


def fill_model(run: Run, schema: Schema[Any]) -> None:
    """Make the first state of a child that has a model; a root run's was made before."""
    if run.setting.parent is not None:
        data = {name: value for name, value in run.head[1].items() if name in schema.fields}
        run.initial = schema.initial(data, f"the first state of {run.setting.act!r}")
        run.head = (0, run.initial)


def unknown_step(step: str, graph: Graph) -> str:
    """Say that a run has completed a step that a graph doesn't have."""
    return (
        f"has completed the step {step!r}, which {graph.name!r} does not have any more (if it was "
        f"renamed, give it its old name with name=)"
    )


@ki_unprotected
def act_after(graph: Graph, act: Act, data: Mapping[str, object]) -> Act | None:
    """Find what follows ``act`` by the conditions on edges, which are user code."""
    return graph.after(act, data)
