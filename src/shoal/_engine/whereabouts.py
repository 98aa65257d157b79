"""Where an error was raised, for the note that it gets: the step, the child and the run."""

from __future__ import annotations

from shoal._errors.exceptions import brief, note
from shoal._events.identity import RunPath
from shoal._graph.graph import Graph
from shoal._graph.parallel import Parallel


def note_where(error: BaseException, path: RunPath, step: str | None, graph: Graph) -> None:
    """Note in an error which run failed with it, and at which step.

    Args:
        error: The error.
        path: The run.
        step: The step that the run was at; None: at none.
        graph: What the run walks.
    """
    where = f"in {path.act!r}" if step is None else f"in {_kind(step, graph)} {step!r}"
    note(error, f"shoal: {where}{of_parent(path)}, run {path.id}")


def of_parent(path: RunPath) -> str:
    """Return which child a run is, as in "of 'titles', key 'a'"; "" if it is a root run."""
    if path.parent is None:
        return ""
    # Children that are told apart by their acts alone have an empty key.
    key = "" if path.key == "" else f", key {brief(path.key)}"
    return f" of {path.step!r}{key}"


def _kind(step: str, graph: Graph) -> str:
    act = next((one for one in graph.acts if one.name == step), None)
    if isinstance(act, Parallel):
        return "fan-out"
    return "graph" if isinstance(act, Graph) else "action"
