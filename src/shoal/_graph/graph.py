"""Graphs: acts, and the edges between them.

Invariants:
- A graph is checked when it is built: one with unreachable acts or edges never reaches a run.
- The fields and inputs that must be given to a graph are known when it is built.
- A graph is immutable, so it can't contain itself; ``part`` and ``bind`` return copies.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Collection, Coroutine, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast, final

from shoal._errors.completion import hides
from shoal._errors.exceptions import DefinitionError, NoTransition, brief, did_you_mean, note
from shoal._errors.misplaced import says_where
from shoal._state.schema import Schema
from shoal._state.state import Change

from .act import Act, Input, Performer, bind_where_taken, merged_inputs, versions
from .condition import Condition, Predicate, when
from .dataflow import END, Edge, End, Flow, name_of, reachable, trace
from .picture import drawing_of
from .sketch import Sketch

WrittenEdge = tuple[Act, Act | End] | tuple[Act, Act | End, Condition | Predicate | None]
"""An edge as users write it; a function stands for ``when(function)``."""


_SIMPLE = 16
"""Steps of a graph that ``Graph.simple`` has, at most: a loop has no end, and is not among them."""


@says_where
@hides("after find leads missing names schema simple straight unknown_input")
@final
class Graph(Act):
    """Acts and the edges between them. Immutable, and an act itself: a graph may contain graphs.

    A run begins at the entry. After each act its edges are tried in the order in which they are
    written. The first edge that has no condition, or whose condition is true of the state, is
    taken. An edge to ``END`` ends the run, and so does an act without edges. If an act has edges
    and none is true, the run fails with ``NoTransition``.

    As a node of another graph, a graph runs as a child run, on the fields that it reads.

    Args:
        edges: Tuples of an act, the next act or ``END``, and optionally a condition: a
            ``when(...)``, or a plain function, which stands for ``when(function)``.
        entry: The act to begin at, or its name. It may be left out if exactly one act follows no
            other.
        name: The name of the graph in events and errors, and as a node of another graph; by default
            the names of its acts, joined by ``+``.
        state: A model of the state: a pydantic model, a dataclass or a TypedDict (needs
            ``shoal[pydantic]``). If the graph runs as a child, the fields of the model are filled
            by name: from what the child is given, from the fields of the parent's state that the
            graph reads or requires, and from defaults. Every update is checked against the types of
            the fields that it changes.

    Raises:
        DefinitionError: The edges make no graph; the message says why.

    Examples:
        >>> @action(reads=["guess", "n"], writes=["guess"])
        ... async def improve(guess: float, n: float) -> float:
        ...     return (guess + n / guess) / 2
        >>> @action(reads=["guess"], writes=["root"])
        ... async def finish(guess: float) -> float:
        ...     return round(guess, 3)
        >>> good = when(lambda guess, n: abs(guess**2 - n) < 1e-6)
        >>> root = Graph((improve, improve, ~good), (improve, finish))
        >>> Application(root).run_sync({"n": 2.0, "guess": 1.0}).state["root"]
        1.414
    """

    schema: Schema[Any] | None = None
    """The model of its state, if any."""
    acts: tuple[Act, ...]
    """Its nodes, in the order in which the edges first name them."""
    edges: tuple[Edge, ...]
    """Its edges, in the order in which they were written."""
    entry: Act
    """The act that a run begins at."""
    straight: Mapping[str, Act | None]
    """The next act, or None for the end, after each act that needs no condition to be evaluated."""
    simple: Sequence[Any]
    """All steps of a run in order, if these are few, and simple actions without conditions, which
    may have limits."""
    reads: frozenset[str]
    """Fields that its acts and conditions may read before they are surely written."""
    writes: frozenset[str]
    """Fields that some of its acts may change."""
    sure_writes: frozenset[str]
    """Fields that are certain to be in the state at the end, whichever path is taken."""

    def __init__(
        self,
        *edges: WrittenEdge,
        entry: Act | str | None = None,
        name: str | None = None,
        state: type | None = None,
    ) -> None:
        """Check the edges; see the class."""
        if name is not None and (not isinstance(name, str) or not name):
            msg = f"Graph(name=...) takes a name, not {name!r}"
            raise DefinitionError(msg)
        if not edges:
            msg = "Graph() needs an edge: Graph((a, b)); of a single act make Graph.chain(a)"
            raise DefinitionError(msg)
        checked = tuple(_checked(edge) for edge in edges)
        acts = _acts_by_name(checked, entry)
        start = _entry(acts, checked, entry)
        _refuse_never_tried(checked)
        self._wire(checked, acts, start)
        _refuse_unreachable(acts, reachable(start.name, self._leaving), start)
        self.name: str = name if name is not None else "+".join(acts)
        self._let_flow(trace(start, self.acts, self._leaving))
        if state is not None:
            self._hold_to(Schema(state))

    @classmethod
    def chain(cls, *acts: Act, name: str | None = None, state: type | None = None) -> Graph:
        """Make a graph without branches: each act follows the one before.

        Args:
            acts: At least one act.
            name: The name of the graph; by default the names of its acts, joined by ``+``.
            state: A model of the state; see ``Graph``.

        Raises:
            DefinitionError: There is no act, or two of one name, or an argument is no act.
        """
        if not acts:
            msg = "Graph.chain() needs at least one action"
            raise DefinitionError(msg)
        seen: dict[str, Act] = {}
        for act in acts:
            _check_act(act, "Graph.chain")
            if act.name in seen:
                raise DefinitionError(_two_of_one_name(seen[act.name], act))
            seen[act.name] = act
        edges = zip(acts, (*acts[1:], END), strict=True)
        return cls(*edges, entry=acts[0], name=name, state=state)

    def part(
        self,
        entry: Act | str | None = None,
        ends_after: Collection[Act | str] = (),
        name: str | None = None,
    ) -> Graph:
        """Return a copy of the graph that begins at another act, or ends earlier, or both.

        Acts that can't be reached then are left out.

        Args:
            entry: The act to begin at, or its name; by default the same.
            ends_after: Acts, or their names, after which the run ends; their edges are left out.
            name: The name of the new graph; by default the same.

        Raises:
            DefinitionError: The graph has no such act.

        Examples:
            >>> @action(writes=["page"])
            ... async def fetch() -> str:
            ...     return "<h1>shoal</h1>"
            >>> @action(reads=["page"], writes=["title"])
            ... async def parse(page: str) -> str:
            ...     return page[4:-5]
            >>> graph = Graph((fetch, parse, when("page")), (fetch, END), name="crawl")
            >>> graph.part(entry="parse"), graph.part(ends_after=[fetch])
            (<Graph crawl: parse>, <Graph crawl: fetch>)
        """
        last = self.names(ends_after, f"graph {self.name!r}: part(ends_after=...)")
        where = f"graph {self.name!r}: part(entry=...)"
        acts = {act.name: act for act in self.acts}
        start = self.entry if entry is None else _named(acts, entry, where)
        leaving = {act: () if act in last else edges for act, edges in self._leaving.items()}
        reached = reachable(start.name, leaving)
        kept = [edge for edge in self.edges if edge.source.name in reached - last]
        part = Graph(
            *(kept or ((start, END),)), entry=start, name=name if name is not None else self.name
        )
        if self.schema is not None:
            part._hold_to(self.schema)
        return part

    def typed(self, model: type) -> Graph:
        """Return a copy of the graph with a model of its state; see ``Graph``."""
        typed = copy.copy(self)
        typed._let_flow(trace(self.entry, self.acts, self._leaving))
        typed._hold_to(Schema(model))
        return typed

    def names(self, given: object, where: str) -> frozenset[str]:
        """Check a user's list of acts of this graph, or of their names; return the names.

        Raises:
            DefinitionError: ``given`` is no list, or has an element that is no act of this graph.
        """
        if isinstance(given, str | Act) or not isinstance(given, Iterable):
            msg = f"{where} takes a list of acts, not {brief(given)}"
            raise DefinitionError(msg)
        acts = {act.name: act for act in self.acts}
        wanted = cast("Iterable[object]", given)
        return frozenset(_named(acts, one, where).name for one in wanted)

    # -- walking --------------------------------------------------------------------------------

    def after(self, act: Act, data: Mapping[str, object]) -> Act | None:
        """Return the act that follows ``act``, or None at the end.

        Args:
            act: An act of the graph.
            data: The fields of the state after ``act``.

        Raises:
            NoTransition: No condition of its edges is true.
            MissingField: A condition reads a field that isn't there.
            Exception: Whatever a condition raises, with a note that names the edge.
        """
        if act.name in self.straight:
            return self.straight[act.name]
        for edge in self._leaving[act.name]:
            if edge.condition is None or _is_true(edge, edge.condition, data):
                return edge.target if isinstance(edge.target, Act) else None
        tried = "; ".join(_as_tried(edge, data) for edge in self._leaving[act.name])
        msg = (
            f"graph {self.name!r}: no edge that leaves {act.name!r} is true of the state: {tried}; "
            f"add a last edge without a condition, to END or to another act: ({act.name}, END)"
        )
        raise NoTransition(msg)

    def leads(self, source: str | None, target: str) -> bool:
        """Return whether ``target`` may follow ``source``; if that is None, may begin a run."""
        if source is None:
            return target == self.entry.name
        targets = (edge.target for edge in self._leaving.get(source, ()))
        return any(isinstance(one, Act) and one.name == target for one in targets)

    def sketch(self) -> Sketch:
        """Return what drawings show of it: its acts, and the edges between them."""
        acts = sorted(self.acts, key=lambda act: act is not self.entry)
        model = () if self.schema is None else (f"state {self.schema.name}",)
        return Sketch("graph", model, acts, self.edges)

    def _repr_svg_(self) -> str:  # pyright: ignore[reportUnusedFunction] # notebooks call it
        """Return its drawing, for notebooks."""
        return drawing_of(self)

    def perform(self, run: Performer) -> Awaitable[Change]:
        """Execute one step of ``run``; see ``Act.perform``."""
        return run.enter(self)

    # -- parts ----------------------------------------------------------------------------------

    def _wire(self, edges: tuple[Edge, ...], acts: Mapping[str, Act], entry: Act) -> None:
        self.edges = edges
        self.acts = tuple(acts.values())
        self.version: str = versions(self.acts)
        self.entry = entry
        leaving: dict[str, list[Edge]] = {name: [] for name in acts}
        for edge in edges:
            leaving[edge.source.name].append(edge)
        self._leaving: Mapping[str, Sequence[Edge]] = leaving
        straight: dict[str, Act | None] = {}
        for name, tried in leaving.items():
            if not tried:
                straight[name] = None
            elif tried[0].condition is None:
                target = tried[0].target
                straight[name] = target if isinstance(target, Act) else None
        self.straight = straight
        self.simple = self._simple_steps()
        self.continues: Collection[str] = {f for act in self.acts for f in act.continues}
        self._takes = merged_inputs(self.acts)
        self._takes_more: bool = any(act.takes_more for act in self.acts)

    def _simple_steps(self) -> Sequence[Act]:
        steps: list[Act] = []
        act: Act | None = self.entry
        while act is not None:
            is_simple = act.is_simple_within_limits and act.name in self.straight
            if not is_simple or len(steps) == _SIMPLE:
                return ()
            steps.append(act)
            act = self.straight[act.name]
        return steps

    def find(self, name: str) -> Act | None:
        """Return the act of that name; None if there is none."""
        return next((act for act in self.acts if act.name == name), None)

    @property
    def takes(self) -> Mapping[str, Input]:
        """The inputs that its acts take, by name."""
        return self._takes

    @property
    def bound(self) -> Collection[str]:
        """The inputs that are bound wherever an act would take them."""
        return {name for act in self.acts for name in act.bound}.difference(self.takes)

    @property
    def takes_more(self) -> bool:
        """Whether one of its acts may take inputs that are only known while it runs."""
        return self._takes_more

    @property
    def needed_by(self) -> Mapping[str, str]:
        """The fields that must be given to it; see ``Flow.needed_by``."""
        return self._flow.needed_by

    def exposing(self, secret: frozenset[str]) -> str:
        """Return how the first such act would expose secret fields; see ``Act.exposing``."""
        return next(filter(None, (act.exposing(secret) for act in self.acts)), "")

    def unknown_input(self, given: Collection[str]) -> str:
        """Return which given input no act takes, and what to do; "" if all are taken."""
        takes = self.takes
        for name in () if self.takes_more else given:
            if name not in takes:
                if name in self.bound:
                    return (
                        f"every action that takes {name!r} has it bound, and so it can't be given"
                    )
                known = ", ".join(sorted(takes)) or "none"
                hint = "; an action names what its children take, where it starts them by itself"
                return (
                    f"no action takes an input {name!r} (they take: {known})"
                    f"{did_you_mean(name, takes) or hint}"
                )
        return ""

    def missing(self, fields: Collection[str]) -> Mapping[str, str]:
        """Return the needed fields that are not among ``fields``; see ``Flow.needed_by``."""
        return {
            field: reader for field, reader in self._flow.needed_by.items() if field not in fields
        }

    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        self.name = name
        if not inputs:
            return
        acts = {act.name: bind_where_taken(act, inputs) for act in self.acts}
        edges = tuple(
            Edge(
                acts[edge.source.name],
                acts[edge.target.name] if isinstance(edge.target, Act) else END,
                edge.condition,
            )
            for edge in self.edges
        )
        self._wire(edges, acts, acts[self.entry.name])

    def _hold_to(self, schema: Schema[Any]) -> None:
        """Check the graph against a model of its state, and add the fields that the model requires.

        Raises:
            DefinitionError: An act or a condition uses a field that the model doesn't have, or a
                fan-out collects into a field that can't hold a collection.
        """
        for act in self.acts:
            why = act.misfit(schema)
            if why:
                raise DefinitionError(f"graph {self.name!r}: {act.name!r} does not fit: {why}")
        for edge in self.edges:
            if edge.condition is None:
                continue
            for field in sorted(edge.condition.reads - schema.fields):
                msg = (
                    f"graph {self.name!r}: edge {edge}, {edge.condition!r} reads field {field!r}, "
                    f"which {schema.why_undeclared(field)}"
                )
                raise DefinitionError(msg)
        reader = f"the model {schema.name} of graph {self.name!r}, which has no default for it,"
        wanted = dict.fromkeys(sorted(schema.required - self.writes), reader)
        flow = self._flow
        defaults = schema.fields - schema.required
        needed = {
            field: reader for field, reader in flow.needed_by.items() if field not in defaults
        }
        self._let_flow(
            flow._replace(reads=flow.reads | wanted.keys(), needed_by={**wanted, **needed})
        )
        self.schema = schema

    def _let_flow(self, flow: Flow) -> None:
        """Set the fields that it reads, writes and needs."""
        self._flow = flow
        # Narrower types than in Act are sound, since these are set only while the graph is built.
        self.reads = flow.reads  # pyright: ignore[reportIncompatibleVariableOverride]
        self.writes = flow.writes  # pyright: ignore[reportIncompatibleVariableOverride]
        self.sure_writes = flow.sure_writes  # pyright: ignore[reportIncompatibleVariableOverride]

    def __repr__(self) -> str:
        names = [act.name for act in self.acts]
        is_chain = [f"{one} -> {two}" for one, two in pairwise((*names, "END"))]
        edges = [repr(edge) for edge in self.edges]
        shown = names if edges in (is_chain, is_chain[:-1]) else edges
        return f"<Graph {self.name}: {(' -> ' if shown is names else ', ').join(shown)}>"


def _is_true(edge: Edge, condition: Condition, data: Mapping[str, object]) -> bool:
    try:
        return condition(data)
    except BaseException as error:
        note(error, f"shoal: on edge {edge}, {condition!r}")
        raise


def _as_tried(edge: Edge, data: Mapping[str, object]) -> str:
    assert edge.condition is not None
    found = (
        f"{field}={brief(data[field])}" for field in sorted(edge.condition.reads) if field in data
    )
    return f"to {name_of(edge.target)} {edge.condition!r}, with {', '.join(found) or 'no field'}"


# -- checks -------------------------------------------------------------------------------------


def _checked(edge: object) -> Edge:
    """Check an edge as a user wrote it.

    Raises:
        DefinitionError: It is no edge.
    """
    if not isinstance(edge, tuple) or len(cast("tuple[object, ...]", edge)) not in (2, 3):
        hint = ""
        if isinstance(edge, Act):
            hint = "; a straight graph is written Graph.chain(a, b, c)"
        elif isinstance(edge, list):
            hint = "; edges are tuples, each an argument of its own: Graph((a, b), (b, c))"
        shown = brief(cast("object", edge))
        msg = f"Graph takes edges, (a, b) or (a, b, when(...)), not {shown}{hint}"
        raise DefinitionError(msg)
    source, target, *rest = cast("tuple[object, ...]", edge)
    if source is END:
        msg = f"Graph: no edge leaves END, but one leads from it to {name_of(target)}: leave it out"
        raise DefinitionError(msg)
    checked = _check_act(source, "Graph")
    end = target if isinstance(target, End) else _check_act(target, "Graph")
    where = f"edge {name_of(source)} -> {name_of(target)}"
    return Edge(checked, end, _condition(rest[0], where) if rest else None)


def _condition(found: object, where: str) -> Condition | None:
    if found is None or isinstance(found, Condition):
        return found
    if isinstance(found, str):
        hint = f"write when({found!r})"
    elif is_of_burr(found):
        hint = (
            "it is Burr's: take `when` from shoal, and leave out `default`; "
            "shoal.burr.graph(...) takes over a whole graph of Burr's"
        )
    elif isinstance(found, bool):
        hint = "an edge without a condition is always taken"
    elif callable(found):
        try:
            return when(found)
        except DefinitionError as error:
            msg = f"{where}: {error}"
            raise DefinitionError(msg) from None
    else:
        hint = "write when(...) or give a plain function"
    msg = f"{where}: {brief(found)} is no condition: {hint}"
    raise DefinitionError(msg)


def _check_act(found: object, where: str) -> Act:
    if isinstance(found, Act):
        return found
    raise DefinitionError(no_act(found, where))


def _acts_by_name(edges: Iterable[Edge], entry: object) -> dict[str, Act]:
    """Return the acts of some edges by name.

    Raises:
        DefinitionError: Two acts have the same name.
    """
    acts: dict[str, Act] = {}
    for edge in edges:
        for act in edge[:2]:
            if isinstance(act, Act) and acts.setdefault(act.name, act) is not act:
                raise DefinitionError(_two_of_one_name(acts[act.name], act))
    if isinstance(entry, Act) and acts.get(entry.name, entry) is not entry:
        raise DefinitionError(_two_of_one_name(acts[entry.name], entry))
    return acts


def _two_of_one_name(one: Act, two: Act) -> str:
    same = "it is the same act, twice" if one is two else f"{one!r} and {two!r}"
    return (
        f"two acts of the graph are named {one.name!r}: {same}; "
        f"give one of them another name: act.bind(name=...)"
    )


def _entry(acts: Mapping[str, Act], edges: Iterable[Edge], entry: object) -> Act:
    """Return the act at which a run begins.

    Raises:
        DefinitionError: It isn't clear which, or ``entry`` is no act of the graph.
    """
    if entry is not None:
        return _named(acts, entry, "Graph(entry=...)")
    followers = {
        edge.target.name
        for edge in edges
        if isinstance(edge.target, Act) and edge.target is not edge.source
    }
    firsts = [name for name in acts if name not in followers]
    if len(firsts) != 1:
        candidates = ", ".join(firsts or acts)
        why = f"no edge leads to: {candidates}" if firsts else f"each follows another: {candidates}"
        msg = f"missing entry: where does the graph begin? {why}; give Graph(..., entry=...)"
        raise DefinitionError(msg)
    return acts[firsts[0]]


def _refuse_never_tried(edges: Iterable[Edge]) -> None:
    always: dict[str, Edge] = {}
    for edge in edges:
        taken = always.get(edge.source.name)
        if taken is not None:
            msg = (
                f"edge {edge} is never tried: {taken} comes before it and has no condition; "
                f"give that one a condition, or put it last"
            )
            raise DefinitionError(msg)
        if edge.condition is None:
            always[edge.source.name] = edge


def _refuse_unreachable(acts: Mapping[str, Act], reached: Collection[str], entry: Act) -> None:
    lost = [name for name in acts if name not in reached]
    if lost:
        msg = (
            f"no path leads from {entry.name!r}, where the graph begins, to {', '.join(lost)}; "
            f"add an edge, or leave out what can't be reached"
        )
        raise DefinitionError(msg)


def _named(acts: Mapping[str, Act], wanted: object, where: str) -> Act:
    """Return the one of ``acts`` that a user gave, or named.

    Raises:
        DefinitionError: ``wanted`` is none of them.
    """
    name = wanted.name if isinstance(wanted, Act) else wanted
    if not isinstance(name, str):
        msg = f"{where} takes an act of the graph, or its name, not {brief(wanted)}"
        raise DefinitionError(msg)
    if name not in acts:
        known = ", ".join(acts)
        msg = f"{where}: no act is named {name!r} (there are: {known}){did_you_mean(name, acts)}"
        raise DefinitionError(msg)
    return acts[name]


def as_graph(act: Act, where: str) -> Graph:
    """Return a graph as it is, and any other act as a graph of that act alone.

    Raises:
        DefinitionError: ``act`` is no act.
    """
    if isinstance(act, Graph):
        return act
    return Graph.chain(_check_act(act, where))


def no_act(found: object, where: str) -> str:
    """Return the message that ``found`` is no act, with a hint what to write."""
    if isinstance(found, type) and issubclass(found, Act):
        hint = f"it is a class: write {found.__name__}() for an act of it"
    elif isinstance(found, End):
        hint = "it is only where an edge leads to: (act, END)"
    elif isinstance(found, Coroutine):
        cast("Coroutine[Any, Any, Any]", found).close()  # else it warns that it was never awaited
        hint = "it is the result of calling a coroutine function: write the action without ()"
    elif is_of_burr(cast("object", found)):
        hint = "it is Burr's: shoal.burr.act(...) makes an act of it, or shoal.burr.graph(...)"
    elif isinstance(found, list | tuple):
        hint = "acts in a row are Graph.chain(*acts), and acts side by side fan_out(acts, into=...)"
    elif callable(cast("object", found)):
        hint = "decorate it: @action(reads=[...], writes=[...])"
    else:
        hint = "give an @action, a fan_out(...) or a Graph(...)"
    return f"{where} takes actions; {found!r} is none: {hint}"


def is_of_burr(found: object) -> bool:
    """Return whether ``found`` belongs to Burr, which is not imported for that."""
    # Burr's decorator leaves a function as it is, with one more attribute.
    if hasattr(found, "action_function"):
        return True
    return any(cls.__module__.partition(".")[0] == "burr" for cls in type(found).__mro__)
