"""The losers of a race that an earlier execution or round decided: left out, or given an end.

Invariants:
- After a decision, every known child has an outcome, also in the store.
- The ends of losers are saved from below to above: no descendant goes on below an end.
- The step is decided, so nothing that fails while its losers are looked for fails it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Literal

from shoal._engine.commit import record_ends
from shoal._engine.run import Run
from shoal._engine.unended import CutOff, end_below, end_unended, is_left, may_have_children
from shoal._events.events import ChildName, Decision, Outcome
from shoal._events.identity import Key
from shoal.stores._protocol import SavedRun, Store

from .recorded import RecordedChildren, decided, is_unended
from .source import ElementSource

logger = logging.getLogger("shoal")

Pick = Literal["leave", "anew"] | None
"""The decision about one child: leave it out, run it anew; None: as its record says."""


def only(winner: ChildName, act: str, key: Key, *, anew: bool) -> Pick:
    """Leave out all children except the winner, which runs anew if ``anew`` is true."""
    if (act, key) != winner:
        return "leave"
    return "anew" if anew else None


def without(out: AbstractSet[ChildName], begun: AbstractSet[ChildName], act: str, key: Key) -> Pick:
    """Leave out the children in ``out``, and let those in ``begun`` run anew."""
    child = ChildName(act, key)
    return "leave" if child in out else "anew" if child in begun else None


async def end_losers(
    run: Run,
    recorded_children: RecordedChildren,
    decision: Decision,
    make: Callable[[], ElementSource] | None,
    room_of: Callable[[ElementSource], int],
    *,
    kept_in: Store,
) -> list[Outcome]:
    """Record the ends of losers that had none when the process died; return their outcomes.

    Args:
        run: The parent.
        recorded_children: The recorded children. The losers are removed from it.
        decision: The decision of the step.
        make: Makes a source, to find children without a record; None: there are none.
        room_of: Returns how many children of that source were in flight at most.
        kept_in: The store that has the children's histories.

    Raises:
        ShoalError: The ends could not be saved.
    """
    execution, graph = run.config.execution, run.config.graph
    unrecorded = list[Run]()
    if make is not None and not any(
        one.winner == decision.winner for one in recorded_children.rest()
    ):
        try:
            source = make()
            unrecorded = _unrecorded(source, recorded_children, decision, room_of(source))
        except Exception:  # the step is decided: a failing source must not fail it now
            step, run_id = decision.step, run.path.id
            logger.exception("the losers of fan-out %r of run %s can't be made", step, run_id)
    for child in unrecorded:
        inner = child.config.graph
        # A child with children of its own may have saved nothing itself, while these have.
        if may_have_children(inner):
            await end_unended(execution, kept_in, child, None, decision.reason, graph=inner)
    # From below to above: each end is saved after those of its descendants, so that a crash in
    # between leaves no descendant that goes on below an end.
    lost: list[SavedRun] = [*unrecorded]
    for record in recorded_children.rest():
        # `rest` is a copy, so records may be dropped meanwhile.
        name = ChildName(record.act, record.key)
        if name == decision.winner:
            continue  # a winner by its first item has no end yet, and continues
        loser = CutOff(decided(record, decision), run.path)
        # Even if the loser itself has an end: its descendants may lack theirs, see `is_left`.
        if is_left(record):
            await end_below(execution, kept_in, loser, decision.reason, graph)
        if is_unended(record):
            recorded_children.drop(name)
            lost.append(loser)
    if lost:
        await record_ends(run, lost)
    return [one.outcome for one in lost]


def _unrecorded(
    source: ElementSource, children: RecordedChildren, decision: Decision, room: int
) -> list[Run]:
    """Make the children that may have been under way and have no record.

    An async source is not pulled, because that could wait: its children remain unknown.
    """
    lost: list[Run] = []

    def pick(act: str, key: Key) -> Pick:
        name = ChildName(act, key)
        return "leave" if name == decision.winner or children.get(name) is not None else "anew"

    source.pick = pick
    # At most ``room`` children were in flight. The winner was one of them, and so were recorded
    # children without an end: the remaining ones have no record.
    others = [one for one in children.rest() if (one.act, one.key) != decision.winner]
    most = 0 if source.waits else room - 1 - sum(map(is_unended, others))
    most = min(most, source.may_start - (children.get(decision.winner) is None))
    try:
        # A bound, since the source may be endless: each recorded child may come up and be left out,
        # and as many may follow as were in flight.
        for _ in range(children.left + room):
            child = None if len(lost) >= most else source.take()
            if child is None:
                break
            if child != "dropped":
                child.resume_state().is_afresh = False  # "anew" has set it, but nothing runs
                child.never_start(decision.reason, decision.winner)
                lost.append(child)
    except Exception:  # the step is decided: a failing source must not fail it now
        logger.exception("while the losers of fan-out %r were looked for", source.name)
    finally:
        source.close()
    return lost
