"""Going back to a step that a run has completed: to its failures, or to what it left unstarted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple, final

from shoal._errors.exceptions import BadUse, did_you_mean
from shoal._events.identity import RunPath
from shoal._graph.graph import Graph
from shoal._graph.parallel import Parallel
from shoal._state.state import Change, Drop, Set
from shoal.stores._history import ReplayedHistory, Rewound
from shoal.stores._protocol import ChildRecord


@final
class Reopening(NamedTuple):
    """What a run goes back for."""

    step: str | None = None
    """The step to go back to; None: the first one that has something to do."""
    more: bool = False
    """Whether also for children that ``at_most`` allows now, and not only for those that failed."""


def step_to_reopen(
    path: RunPath,
    graph: Graph,
    played: ReplayedHistory,
    done: Mapping[tuple[str, int], int],
    children: Iterable[ChildRecord],
    *,
    wanted: Reopening,
) -> Rewound:
    """Return the first completed fan-out that has something to do again.

    Args:
        path: The path of the run.
        graph: Its graph.
        played: Its history.
        done: How many of its children are done, by step and visit.
        children: The records of the others.
        wanted: What it goes back for.

    Raises:
        BadUse: There is no such step, or ``reduce`` has taken the failures of that step.
    """
    if wanted.step is not None and not isinstance(graph.find(wanted.step), Parallel):
        names = [act.name for act in graph.acts if isinstance(act, Parallel)]
        msg = (
            f"run {path.id} has no fan-out {wanted.step!r} of its own (it has: "
            f"{', '.join(names) or 'none'}){did_you_mean(wanted.step, names)}"
        )
        raise BadUse(msg)
    failed, started = set[tuple[str, int]](), Counter(done)
    for one in children:
        at = one.step, one.visit
        started[at] += one.status != "skipped" or not one.used
        if one.status == "failed":
            failed.add(at)
    for step, visit, number in played.completed_visits():
        act, at = graph.find(step), (step, visit)
        if wanted.step not in (None, step) or not isinstance(act, Parallel):
            continue
        if at in played.decided:
            continue  # a contestant that failed has only lost its race
        # A fan-out without a limit may have had one; only if it is named, since most never had.
        most = act.at_most
        if wanted.more and (wanted.step is not None if most is None else started[at] < most):
            return Rewound(step, visit)
        if at not in failed:
            continue
        if act._join().reduce is None:
            return Rewound(step, visit)
        msg = (
            f"run {path.id}: children of {step!r} have failed, and reduce has taken that; "
            f"it can't be undone: start a new run from before that step instead, with "
            f"fork({path.id!r}, number={number})"
        )
        raise BadUse(msg)
    raise BadUse(_nothing_to_do(path, wanted))


def _nothing_to_do(path: RunPath, wanted: Reopening) -> str:
    go_on = f"a run that has not succeeded goes on with run(id={path.id!r})"
    if not wanted.more:
        return (
            f"run {path.id} has completed no fan-out with failures, so there is none to retry; "
            f"failures that a child, or a graph as a node, has tolerated below itself stay, "
            f"because it has succeeded; {go_on}"
        )
    which = "no fan-out of it" if wanted.step is None else f"{wanted.step!r}"
    lacks = "has" if wanted.step is None else "is not completed, or has no"
    return (
        f"run {path.id} can't be reopened: {which} {lacks} failures, or fewer children than its "
        f"at_most= allows now, so there is nothing to start; raise at_most= first; {go_on}"
    )


def way_back(now: Mapping[str, object], then: Mapping[str, object]) -> Change:
    """Return the change that leads from the fields ``now`` back to those of ``then``."""
    values = {
        field: value for field, value in then.items() if field not in now or now[field] is not value
    }
    dropped = tuple(field for field in now if field not in then)
    sets = tuple(Set(field, value) for field, value in values.items())
    return Change((*sets, *map(Drop, dropped)), values, dropped)
