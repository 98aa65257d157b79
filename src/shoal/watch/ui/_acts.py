"""Find what a run executes, in the graph of its application."""

from __future__ import annotations

from shoal._events.identity import RunPath
from shoal._graph.act import Act


def act_of(graph: Act, path: RunPath) -> Act | None:
    """Return the act that a run executes.

    Args:
        graph: The graph of its root run.
        path: The run.

    Returns:
        The act; None if the graph has none of that name, or it is chosen by code that doesn't name
        it.
    """
    act: Act | None = graph
    for one in way_down(path):
        step = None if act is None else within(act, one.step)
        if step is None:
            return None
        # The run of a graph that is a node executes the node itself.
        act = step if step.sketch().kind == "graph" else within(step, one.act)
    return act


def is_one_action(act: Act) -> bool:
    """Return whether an act is a single action, maybe in a graph made of it."""
    sketch = act.sketch()
    inside = [one for one in sketch.within if isinstance(one, Act)]
    is_wrapped = sketch.kind == "graph" and len(inside) == 1
    return (inside[0] if is_wrapped else act).sketch().kind == "action"


def within(act: Act, name: str) -> Act | None:
    """Return the act of a name within another one; None if there is none."""
    for one in act.sketch().within:
        found: object = one if isinstance(one, Act) else getattr(one, "graph", None)
        if isinstance(found, Act) and found.name == name:
            return found
    return act if act.name == name and act.sketch().kind in ("fan-out", "race") else None


def way_down(path: RunPath) -> list[RunPath]:
    """Return the runs from a root run's child down to a run."""
    way: list[RunPath] = []
    at = path
    while at.parent is not None:
        way.append(at)
        at = at.parent
    return way[::-1]
