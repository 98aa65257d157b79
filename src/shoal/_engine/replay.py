"""Replay a run's saved history, to resume the run after the last step that it has completed.

A history that the graph no longer leads through is refused in a root run, and made void in a child:
a child can be executed again, and its input is in its parent's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal._concurrency.cancellation import ki_unprotected
from shoal._errors.exceptions import RunConflict, fork_advice
from shoal._events.events import Update
from shoal._graph.act import Act
from shoal._graph.graph import Graph
from shoal._state.schema import Schema
from shoal._state.state import NO_CHANGE, Change
from shoal.stores._history import Entry, ReplayedHistory, Rewound, play
from shoal.stores._protocol import NullStore, Store

from .commit import Write, commit, forget_history
from .parts import read_history
from .progress import PendingQuestions
from .run import Run


async def load_history(run: Run, store: Store | None = None) -> None:
    """Resume a child where its saved history ends.

    If the graph no longer has the way that the history took, the child starts again and the history
    becomes void.

    Args:
        run: The child.
        store: Has the history; by default, the store of the child.

    Raises:
        StoreFailed: The store raised, or did not answer in time.
    """
    config = run.config
    # The updates apply to the state that the model has completed with defaults.
    if config.schema is not None:
        fill_model(run, config.schema)
    # Filled part by part below, since a long history comes in parts.
    played = play(run.initial, ())

    def take(entries: Sequence[Entry]) -> None:
        for entry in entries:
            played.add(entry)

    kept_in = config.store if store is None else store
    await read_history(config.execution, kept_in, run.path, take)
    resume = run.resume_state()
    # A child that is done takes no further step, so its way is of no interest.
    is_done = resume.record is not None and resume.record.status == "succeeded"
    if not is_done and _other_way(run, played) is not None:
        resume.record = None  # its crashes are void, too
        # Before the child begins: its new updates must not follow the old ones.
        await forget_history(run)
    else:
        stand_at(run, played)


async def load_end(run: Run) -> None:
    """Read the final state of a child that is done and only has to be applied.

    If the child has no store, its parent's store has its changes as one update.

    Raises:
        StoreFailed: The store raised, or did not answer in time.
    """
    config = run.config
    await load_history(run, config.keeper if isinstance(config.store, NullStore) else None)
    run.pending = NO_CHANGE  # not None: its last step is decided, and `lacks_history` is over


def stand_at(run: Run, played: ReplayedHistory) -> None:
    """Set the state, visits and open questions of ``run`` to the end of a history."""
    resume = run.resume_state()
    resume.replayed = played
    resume.is_undone = played.is_undone if played.undone else None
    # As long as the run has taken no step. From then on, only commits move it on.
    run.head = (played.number, played.data)
    # A copy, because the run counts on in it.
    run.step_counts().visits = dict(played.began.visits)
    if played.asked:  # else the record isn't made: most runs never ask
        run.questions = PendingQuestions(dict(played.asked))


async def rewind(run: Run, rewound: Rewound, back: Change) -> None:
    """Go back into a completed step. ``back`` restores the state as it was in that step."""
    # Going back is an update like any other: history only grows, and is never rewritten.
    update = Update(run.head[0] + 1, rewound.step, back.operations)
    await commit(run, Write((update,), back.applied_to(run.head[1]), rewound=rewound))


def next_act(run: Run, played: ReplayedHistory) -> Act | None:
    """Return the act that follows the last completed step of a history; None at the end.

    The conditions on edges see the state after that step: the step under way may have changed it
    since.

    Raises:
        RunConflict: The graph lacks the step that was completed last, or another step than the one
            under way follows it.
    """
    record = None if run.resume is None else run.resume.record
    if record is not None and record.status == "succeeded":
        return None
    # `load_history` has made the history of a child void instead.
    if run.config.parent is None:
        refuse_other_way(run, played)
    return _after(run, played)


def refuse_other_way(run: Run, played: ReplayedHistory) -> None:
    """Refuse to resume a history that has taken a way that the graph doesn't have.

    Raises:
        RunConflict: It names the first step that doesn't fit, and says how to fork before it.
    """
    other = _other_way(run, played)
    if other is not None:
        why, number = other
        fork = "" if number is None else f", or {fork_advice(run.path.id, number)}"
        msg = f"run {run.path.id} {why}; change the graph back to go on{fork}"
        raise RunConflict(msg)


def _other_way(run: Run, played: ReplayedHistory) -> tuple[str, int | None] | None:
    """Return why the graph doesn't lead through a history; None: it does.

    The second value is the number of the last update after which the graph can continue, if there
    is one.
    """
    graph, before = run.config.graph, played.first_after
    for step, _, number in played.completed_visits():
        # A step that is not in the graph any more may lie behind the run: only its last one must
        # be found, to continue from. Between two known steps there must be an edge.
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
    # The conditions may be others now, so that another step follows than the one under way.
    if following is None or following.name != under_way:
        comes = "nothing" if following is None else f"{following.name!r}"
        why = (
            f"was in the middle of step {under_way!r}, where {comes} comes in {graph.name!r} "
            f"now (if the step was renamed, give it its old name with name=)"
        )
        return why, played.began.number
    return None


def _after(run: Run, played: ReplayedHistory) -> Act | None:
    config, step = run.config, played.began.step
    if step is None:
        return config.graph.entry
    act = config.graph.find(step)
    assert act is not None, "else its way would be another one"
    return act_after(config.graph, act, played.began.data)


def fill_model(run: Run, schema: Schema[Any]) -> None:
    """Complete the first state of a child by its model; a root run's state is complete already."""
    if run.config.parent is not None:
        # A child is given the fields that its graph reads, and its model may lack some of these.
        data = {name: value for name, value in run.head[1].items() if name in schema.fields}
        run.initial = schema.initial(data, f"the first state of {run.config.act!r}")
        run.head = (0, run.initial)


def unknown_step(step: str, graph: Graph) -> str:
    """Return the words for a completed step that a graph doesn't have."""
    return (
        f"has completed the step {step!r}, which {graph.name!r} does not have any more (if it was "
        f"renamed, give it its old name with name=)"
    )


@ki_unprotected  # conditions on edges are user code, which a Ctrl-C must be able to interrupt
def act_after(graph: Graph, act: Act, data: Mapping[str, object]) -> Act | None:
    """Return the act that follows ``act``, by the conditions on its edges; None at the end."""
    return graph.after(act, data)
