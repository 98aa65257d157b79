"""The acts of a fan-out: made into graphs, and checked against the fan-out's arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeGuard, cast

from shoal._errors.exceptions import DefinitionError, brief, did_you_mean
from shoal._state.state import State

from .act import Act
from .graph import Graph, as_graph
from .parallel import Take
from .until import EndCondition

Acts = Act | Sequence[Act] | Callable[[State], Act | Sequence[Act]]


def as_graphs(found: object, where: str) -> tuple[list[Graph], bool]:
    """Return the graphs of an act or a list of acts, and whether it was a list.

    Raises:
        DefinitionError: ``found`` is neither, or two of the acts have the same name.
    """
    if isinstance(found, Act) or not _is_list(found):
        return [as_graph(cast("Act", found), where)], False
    if not found:
        msg = f"{where} takes at least one act; the list is empty"
        raise DefinitionError(msg)
    by_name: dict[str, Graph] = {}
    for act in found:
        if _is_list(act):
            msg = f"{where} takes one list of acts, in which {brief(act)} is another; flatten it"
            raise DefinitionError(msg)
        graph = as_graph(cast("Act", act), where)
        if graph.name in by_name:
            msg = (
                f"{where}: two acts are named {graph.name!r}; "
                f"rename one of them: act.bind(name=...)"
            )
            raise DefinitionError(msg)
        by_name[graph.name] = graph
    return list(by_name.values()), True


def _is_list(found: object) -> TypeGuard[Sequence[object]]:
    return isinstance(found, Sequence) and not isinstance(found, str | bytes)


def check_acts(
    graphs: Iterable[Graph],
    brought: Collection[str],
    take: Take | None,
    into: str | None,
    subject: str,
) -> None:
    """Check that the children of the fan-out ``subject`` can execute each of ``graphs``.

    Raises:
        DefinitionError: A graph writes a field in ``brought``, takes an input of that name, or has
            no value to take.
    """
    for graph in graphs:
        for field in brought:
            if field in graph.writes:
                msg = (
                    f"fan_out {subject!r}: {graph.name!r} writes {field!r}, the field that holds "
                    f"its element"
                )
                raise DefinitionError(msg)
            need = graph.takes.get(field)
            if need is not None:
                msg = (
                    f"fan_out {subject!r}: action {need.by!r} has a parameter {field!r}, which is "
                    f"the field that holds its element and not in its reads=[...]; add it to reads"
                )
                raise DefinitionError(msg)
        resolve_take(take, into, graph, subject)


def check_wanted(subject: str, until: EndCondition, count: int) -> None:
    """Check that ``until`` needs no more results than there can be children.

    Raises:
        DefinitionError: It needs more than ``count``.
    """
    if until.wanted is not None and until.wanted > count:
        msg = f"{subject}: until={until} can't be reached by at most {count} children"
        raise DefinitionError(msg)


def resolve_take(take: Take | None, into: str | None, graph: Graph, subject: str) -> Take | None:
    """Return what to take from a child's final state; None if neither take nor into is given.

    Raises:
        DefinitionError: It isn't clear which field is meant, or the child never has that field.
    """
    if take is None:
        if into is None:
            return None
        if into in graph.writes:
            return into
        if len(graph.writes) == 1:
            return next(iter(graph.writes))
        msg = (
            f"fan_out {subject!r}: which of the fields that {graph.name!r} writes "
            f"({_writes(graph)}) goes into {into!r}? give take=..."
        )
        raise DefinitionError(msg)
    fields = (take,) if isinstance(take, str) else () if callable(take) else tuple(take)
    for field in fields:
        if field not in graph.writes and field not in graph.reads:
            msg = (
                f"fan_out {subject!r}: take={field!r} is no field that {graph.name!r} writes "
                f"(it writes: {_writes(graph)}){did_you_mean(str(field), graph.writes)}"
            )
            raise DefinitionError(msg)
    return take


def _writes(graph: Graph) -> str:
    return ", ".join(sorted(graph.writes)) or "none"
