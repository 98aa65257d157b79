"""The source of a ``fan_out``: its acts in one execution of the step, and its elements.

Invariants:
- Acts that a function chooses pass the same checks as acts that are given to ``fan_out`` itself.
- Acts are executed under the names under which their children are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast, final

from shoal._engine.run import Run
from shoal._errors.exceptions import BadKey, BadResult, DefinitionError, MissingField, brief
from shoal._graph.act import Act, bind_where_taken
from shoal._graph.acts import as_graphs, check_acts, check_wanted, resolve_take
from shoal._graph.checks import check_reads
from shoal._graph.fan_out import FanOut, shape_of
from shoal._graph.graph import Graph
from shoal._graph.parallel import JoinSpec, Take
from shoal._state.state import State, make_state, refuse_awaitable

from .children import narrowed, only_write_reader, value_reader
from .entries import ChildTemplate, MakeTemplate
from .recorded import RecordedChildren
from .source import ElementSource
from .takeup import as_recorded


@final
class ChosenActs(NamedTuple):
    """The acts of a fan-out in one execution of its step."""

    graphs: Sequence[Graph]
    join: JoinSpec
    """Says where results go. Its shape depends on whether there are several acts."""
    take: Take | None
    """Says which part of a child's final state is its value; None: the field its act writes."""


def choose_acts(act: FanOut, join: JoinSpec, data: Mapping[str, object]) -> ChosenActs:
    """Return the acts of a fan-out, calling its function if a function chooses them.

    Args:
        act: The fan-out.
        join: Says where results go, as declared.
        data: The fields of the parent's state when the step began.

    Raises:
        BadResult: The function returned something that can't be executed.
        UndeclaredRead: An act reads a field that the fan-out did not declare.
    """
    # Both may still change below. The definition itself is shared by all runs, and is left as it
    # is.
    graphs, several = act.acts, act._several
    if callable(graphs):
        graphs, several = _chosen(act, graphs, make_state(data, join.access), data)
    # The declared shape was a guess: only the function knows whether the acts are several.
    if several != act._several:
        join = replace(join, shape=shape_of(act.over, act.key, join.until, several=several))
    take = act._take
    # Only for the declaration, which a later execution compares. `_kind` asks for each act by
    # itself.
    if take is None and not several:
        take = resolve_take(None, join.into, graphs[0], act.name)
    return ChosenActs(graphs, join, take)


def _chosen(
    act: FanOut,
    choose: Callable[[State], Act | Sequence[Act]],
    state: State,
    data: Mapping[str, object],
) -> tuple[Sequence[Graph], bool]:
    """Return the acts that ``choose`` returns, and whether they are several."""
    found = choose(state)
    refuse_awaitable(found, f"the function that chooses the acts of fan-out {act.name!r}")
    try:
        graphs, several = as_graphs(found, f"fan-out {act.name!r}, whose acts are chosen,")
        if act.over is None:
            # Only then the number of acts is the number of children.
            check_wanted(f"fan-out {act.name!r}", act.join.until, len(graphs))
        check_acts(graphs, act._brought, act._take, act.join.into, act.name)
    except DefinitionError as error:
        hint = "; if the function itself was meant to be the action, decorate it"
        msg = f"{error}{'' if isinstance(found, Act | Sequence) else hint}"
        # The definition is in order, and what the function has returned is not.
        raise BadResult(msg) from None
    # What is bound to the fan-out counts for acts that it has chosen as for those that it was
    # given.
    graphs = [bind_where_taken(graph, act._bound) for graph in graphs]
    for graph in graphs:
        check_reads(f"fan-out {act.name!r}", graph, act.join.access.reads, act._brought, data)
    return graphs, several


def make_elements(
    act: FanOut,
    chosen: ChosenActs,
    *,
    parent: Run,
    data: Mapping[str, object],
    recorded_children: RecordedChildren | None,
    make_template: MakeTemplate,
) -> ElementSource:
    """Make the source of a fan-out's children. No element is pulled yet.

    Args:
        act: The fan-out.
        chosen: Its acts.
        parent: The run whose step it is.
        data: The fields of that run's state when the step began.
        recorded_children: The children that earlier executions recorded; None if there are none.
        make_template: Makes the template of the children of one act.

    Raises:
        BadResult: ``over`` gave something that is not iterable.
        MissingField: The state lacks the field of ``over``, or a field that the children need.
        RunConflict: There are results of acts that the fan-out doesn't have any more.
    """
    join = chosen.join
    # First: the templates below must have the names under which the children are recorded.
    graphs = as_recorded(chosen.graphs, join.shape, parent, act.name, recorded_children)
    kinds = [_kind(act, graph, data, make_template) for graph in graphs]
    return ElementSource(
        # One element, which no child sees: each act has one child then.
        (None,) if act.over is None else _over(act, make_state(data, join.access), data),
        name=act.name,
        kinds=kinds,
        item=None if act.over is None else act.item,
        key_of=_key_reader(act),
        grows=join.grow is not None,
        at_most=act.at_most,
        done_in=join.into,
        recorded_children=recorded_children,
        # Without a history nothing tells what `grow` has found before, so it is asked about each
        # child again.
        finds_again=parent.playback is None,
    )


def _kind(
    act: FanOut, graph: Graph, data: Mapping[str, object], make_template: MakeTemplate
) -> ChildTemplate:
    brought = "pass it to run(), or write it in an earlier action"
    if act.over is not None:
        brought = (
            f"pass it to run(), or write it in an earlier action, or, if it is what they run "
            f"over, name it so: item={act.item!r} is what they get now"
        )
    # Each child has a value of its own for these, such as its element. None holds their places.
    comes_later = dict.fromkeys(act._brought)
    base = narrowed(data, graph, comes_later, f"the children of fan-out {act.name!r}", brought)
    # For each act by itself, since without `take=` the value is the field that the act writes.
    take = resolve_take(act._take, act.join.into, graph, act.name)
    reader = only_write_reader(graph) if take is None else value_reader(take, act.name)
    return make_template(graph, base, reader, None)


def _over(act: FanOut, state: State, data: Mapping[str, object]) -> object:
    """Return the elements of a fan-out, or whatever ``over`` gave instead of elements."""
    over = act.over
    if callable(over):
        return over(state)
    assert over is not None, "else there is nothing to run over"
    try:
        return data[over]
    except KeyError:
        msg = (
            f"fan-out {act.name!r} runs over field {over!r}, which the state does "
            f"not have (it has: {', '.join(sorted(data)) or 'none'})"
        )
        raise MissingField(msg) from None


def _key_reader(act: FanOut) -> Callable[[Any], object] | None:
    """Return a reader of an element's key; None: keys are positions."""
    if act.over is None:
        return _only_key
    key, name = act.key, act.name
    # None means that positions are the keys; a function is called as it is.
    if not isinstance(key, str):
        return key

    def key_field(element: object) -> object:
        try:
            if isinstance(element, Mapping):
                # A mapping by its entry, also where it has an attribute of that name, such as
                # `items`.
                return cast("Mapping[str, object]", element)[key]
            return getattr(element, key)
        except (KeyError, AttributeError):
            msg = (
                f"fan-out {name!r}: key={key!r} names a field of each element, "
                f"but {brief(cast('object', element))} has none of that name"
            )
            raise BadKey(msg) from None

    return key_field


def _only_key(_element: object) -> str:
    """Return the same key for all children of a fan-out without ``over``: their acts differ."""
    return ""
