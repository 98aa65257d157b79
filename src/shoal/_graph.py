"""Graphs: which action comes after which. Imports values and actions.

Invariants:
- A graph is checked when it is built: two acts of one name, or something that is no act, never
  reach a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from ._action import Act, Input
from ._errors import DefinitionError


@final
class Graph:
    """Acts, and the order in which a run walks them.

    Immutable. Make one with ``Graph.chain``.
    """

    __slots__ = ("_after", "acts", "entry", "name", "reads", "takes", "writes")

    def __init__(self, acts: tuple[Act, ...], name: str) -> None:
        """Use ``Graph.chain``."""
        self.name: str = name
        self.acts: tuple[Act, ...] = acts
        self.entry: Act = acts[0]
        self._after: dict[str, Act | None] = {
            act.name: following for act, following in zip(acts, (*acts[1:], None), strict=True)
        }
        reads: set[str] = set()
        writes: set[str] = set()
        takes: dict[str, Input] = {}
        for act in acts:
            reads |= frozenset(act.reads) - writes
            writes |= frozenset(act.writes)
            for taken, need in act.takes.items():
                if taken not in takes or (need.required and not takes[taken].required):
                    takes[taken] = need
        self.reads: frozenset[str] = frozenset(reads)
        self.writes: frozenset[str] = frozenset(writes)
        self.takes: Mapping[str, Input] = takes

    @classmethod
    def chain(cls, *acts: Act, name: str | None = None) -> Graph:
        """Make the straight graph: each act follows the one before, the last one ends the run.

        Args:
            acts: At least one action or fan-out.
            name: What the graph is called as a part of something larger; otherwise the names of
                its acts, joined by ``+``.

        Raises:
            DefinitionError: No act, two of one name, or something that is no act.
        """
        if name is not None and not isinstance(name, str):
            msg = f"Graph.chain(name=...) takes a string, not {name!r}"
            raise DefinitionError(msg)
        if not acts:
            msg = "Graph.chain() needs at least one action"
            raise DefinitionError(msg)
        seen: set[str] = set()
        for act in acts:
            if not isinstance(act, Act):
                raise DefinitionError(no_act(act, "Graph.chain"))
            if act.name in seen:
                msg = (
                    f"two acts of the graph are named {act.name!r}; "
                    f"give one of them another name: @action(name=...) or fan_out(..., name=...)"
                )
                raise DefinitionError(msg)
            seen.add(act.name)
        return cls(acts, name if name is not None else "+".join(act.name for act in acts))

    def after(self, act: Act) -> Act | None:
        """Return what follows ``act``; None where the run ends."""
        return self._after[act.name]

    takes_more = False

    @property
    def needs(self) -> frozenset[str]:
        return self.reads

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {' -> '.join(act.name for act in self.acts)}>"


def as_graph(act: Act | Graph, where: str) -> Graph:
    """Take a single act for the graph that consists of it.

    Raises:
        DefinitionError: It is neither.
    """
    if isinstance(act, Graph):
        return act
    if isinstance(act, Act):
        return Graph.chain(act)
    raise DefinitionError(no_act(act, where))


def no_act(found: object, where: str) -> str:
    """Say that ``found`` is no act, and what it lacks."""
    if isinstance(found, Graph):
        hint = "a graph can't be a node of another one yet; give its acts, or a fan_out of it"
    elif callable(found):
        hint = "decorate it: @action(reads=[...], writes=[...])"
    else:
        hint = "give an @action or a fan_out(...)"
    return f"{where} takes actions; {found!r} is none: {hint}"
