"""Graphs of Burr's as graphs of ours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast, final

from burr.core import Action, Application, ApplicationBuilder, ApplicationGraph, Graph, GraphBuilder
from burr.core.graph import Transition
from burr.core.parallelism import RunnableGraph
from burr.core.typing import TypingSystem

from shoal._errors.exceptions import DefinitionError, brief, did_you_mean
from shoal._graph.act import Act
from shoal._graph.condition import Condition
from shoal._graph.dataflow import END, End
from shoal._graph.graph import Graph as OurGraph
from shoal._graph.graph import no_act

from ._conditions import condition_of

TAG = "@tag:"
"""What Burr writes before the tag of actions in a list of their names."""


@final
class Walk(NamedTuple):
    """A graph of Burr's, and where a run of it begins and ends."""

    graph: Graph
    entrypoint: str | None
    """None: where no other action leads to."""
    halt_after: Sequence[str]
    typing_system: TypingSystem[Any] | None = None


def walk_of(found: object, entrypoint: str | None, halt_after: object) -> Walk:
    """Return what a user has given as a graph of Burr's.

    Raises:
        DefinitionError: It is none, or can't be taken over as a whole.
    """
    ends = _names(halt_after)
    shown: object = found
    match found:
        case RunnableGraph():
            given = entrypoint or found.entrypoint
            # A text where Burr's documentation writes one, though Burr takes a list.
            return Walk(found.graph, given, ends or _names(found.halt_after))
        case ApplicationGraph():
            return Walk(found, entrypoint or found.entrypoint.name, ends)
        case Graph():
            return Walk(found, entrypoint, ends)
        case GraphBuilder():
            return Walk(found.build(), entrypoint, ends)
        case Application():
            application = cast("Application[Any]", found)
            _refuse_adapters(application)
            system = application.state.typing_system
            return Walk(application.graph, entrypoint or application.entrypoint, ends, system)
        case ApplicationBuilder():
            hint = "build the application first: graph(builder.build())"
        case OurGraph():
            hint = "it is a graph of shoal's already: use it as it is"
        case Action():
            hint = "it is an action: shoal.burr.act(...)"
        case _ if hasattr(found, "action_function"):
            hint = f"it is an action: shoal.burr.act({getattr(found, '__name__', '...')})"
        case _:
            hint = "give a Graph, a GraphBuilder, an Application or a RunnableGraph"
    msg = f"graph(...) takes graphs of Burr's; {brief(shown)} is none: {hint}"
    raise DefinitionError(msg)


def _names(given: object) -> Sequence[str]:
    if isinstance(given, str):
        return (given,)
    names = list(cast("Iterable[object]", given)) if isinstance(given, Iterable) else [given]
    for one in names:
        if not isinstance(one, str):
            msg = f"graph(halt_after=...) takes a list of names of actions, not {brief(one)}"
            raise DefinitionError(msg)
    return cast("Sequence[str]", names)


def _refuse_adapters(application: Any) -> None:
    """Refuse an application with parts that shoal would never call.

    Raises:
        DefinitionError: It has a tracker, hooks, a persister or an executor.
    """
    builder = application.builder
    if builder is None:
        return
    known = builder.tracker, builder.state_persister, builder.state_initializer
    hooks = [one for one in builder.lifecycle_adapters if one not in known]
    parts = (
        ("a tracker", builder.tracker, "`shoal ui`, or `shoal export RUN --format burr`"),
        ("a state persister", builder.state_persister, "Application(..., store=...)"),
        ("a state initializer", builder.state_initializer, "run(id=...), which resumes a run"),
        ("an executor", builder.parallel_executor_factory, "parallel(..., limits=Limits(n))"),
        ("hooks", hooks, "Application(..., hooks=[...])"),
    )
    found = [(name, instead) for name, part, instead in parts if part]
    if found:
        msg = (
            f"the application has {' and '.join(name for name, _ in found)}, which Burr calls and "
            f"shoal doesn't; take over its graph alone: graph(application.graph). "
            f"{'; '.join(f'Instead of {name}: {instead}' for name, instead in found)}"
        )
        raise DefinitionError(msg)


def translated(
    walk: Walk,
    name: str | None,
    acts: Mapping[str, Act],
    act_of: Callable[[Action, TypingSystem[Any] | None], Act],
) -> OurGraph:
    """Return a graph of ours that walks as Burr's does.

    Args:
        walk: Burr's graph.
        name: The name of the new graph; None: the names of its acts.
        acts: Acts that stand in the place of actions, by their names.
        act_of: Makes an act of an action.

    Raises:
        DefinitionError: A name is that of no action, or the graph can't be one of ours.
    """
    graph = walk.graph
    known = {action.name: action for action in graph.actions}
    _check_acts(acts, known)
    ends = {one for name_ in walk.halt_after for one in _tagged(name_, known)}
    entry = walk.entrypoint
    if entry is not None and entry not in known:
        raise DefinitionError(_unknown("entrypoint", entry, known))
    leaving: dict[str, list[Transition]] = {one: [] for one in known}
    for transition in graph.transitions:
        if transition.from_.name not in ends:
            leaving[transition.from_.name].append(transition)
    start = entry or _first(known, graph.transitions)
    reached = _reached(start, leaving)
    made = {
        one: acts[one].bind(name=one) if one in acts else act_of(known[one], walk.typing_system)
        for one in known  # in Burr's order, in which the names of the acts name the graph
        if one in reached
    }
    edges: list[tuple[Act, Act | End, Condition | None]] = []
    for source, act in made.items():
        conditions = [(one.to.name, condition_of(one.condition)) for one in leaving[source]]
        edges += [(act, made[target], condition) for target, condition in conditions]
        # Where none of its conditions is true, Burr's application ends.
        if conditions and all(condition is not None for _, condition in conditions):
            edges.append((act, END, None))
    if not edges:
        return OurGraph.chain(made[start], name=name)
    return OurGraph(*edges, entry=made[start], name=name)


def _check_acts(acts: object, known: Collection[str]) -> None:
    if not isinstance(acts, Mapping):
        msg = f"acts= takes a mapping of names of actions to acts, not {brief(acts)}"
        raise DefinitionError(msg)
    for name, act in cast("Mapping[object, object]", acts).items():
        if not isinstance(name, str) or name not in known:
            raise DefinitionError(_unknown("acts", name, known))
        if not isinstance(act, Act):
            raise DefinitionError(no_act(cast("Any", act), f"acts={{{name!r}: ...}}"))


def _tagged(name: str, known: Mapping[str, Action]) -> Collection[str]:
    if not name.startswith(TAG):
        if name not in known:
            raise DefinitionError(_unknown("halt_after", name, known))
        return (name,)
    tag = name.removeprefix(TAG)
    found = [one for one, action in known.items() if tag in action.tags]
    if not found:
        tags = {tag for action in known.values() for tag in action.tags}
        raise DefinitionError(_unknown("halt_after", name, [f"{TAG}{tag}" for tag in tags]))
    return found


def _unknown(where: str, name: object, known: Collection[str]) -> str:
    return (
        f"graph({where}=...): Burr's graph has no action {name!r} "
        f"(there are: {', '.join(known)}){did_you_mean(str(name), known)}"
    )


def _first(known: Mapping[str, Action], transitions: Iterable[Transition]) -> str:
    """Return the action that no other leads to, where Burr's graph doesn't say where it begins."""
    followers = {one.to.name for one in transitions if one.to.name != one.from_.name}
    firsts = [name for name in known if name not in followers]
    if len(firsts) == 1:
        return firsts[0]
    why = "no transition leads to" if firsts else "each follows another"
    candidates = ", ".join(firsts or known)
    msg = (
        f"where does the graph begin? Burr's Graph doesn't say, only its application does; {why}: "
        f"{candidates}: give graph(..., entrypoint={next(iter(firsts or known))!r})"
    )
    raise DefinitionError(msg)


def _reached(start: str, leaving: Mapping[str, Iterable[Transition]]) -> Collection[str]:
    """Return the names of the actions that a run can reach; Burr's graphs may have others."""
    reached = {start}
    waiting = [start]
    while waiting:
        found = {one.to.name for one in leaving[waiting.pop()]} - reached
        reached |= found
        waiting += found
    return reached
