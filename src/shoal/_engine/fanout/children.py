"""The configuration, circuits and initial fields that the children of a step share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial

from shoal._engine.child_time import work_around
from shoal._engine.config import RunConfig
from shoal._engine.run import Run
from shoal._engine.services import Services
from shoal._errors.exceptions import (
    DefinitionError,
    DepthExceeded,
    MissingField,
    MissingInput,
    StateError,
    did_you_mean,
)
from shoal._events.hooks import Hook, Hooks
from shoal._graph.graph import Graph
from shoal._graph.parallel import Take
from shoal._graph.policy import Each, Inherit
from shoal._limits.breaker import Circuits
from shoal._state.state import refuse_awaitable
from shoal.executors._named import Place
from shoal.stores._protocol import NullStore, Store


def check_depth(run: Run, step: str) -> None:
    """Refuse to nest runs deeper than ``max_depth``.

    Raises:
        DepthExceeded: A child of ``run`` would be too deep.
    """
    deepest = run.config.execution.max_depth
    # Looked at before anything of the step is made; see
    # test_one_level_too_many_is_refused_before_anything_of_it_starts.
    if run.path.depth >= deepest:
        msg = (
            f"{step!r} would run {run.path.depth + 1} levels below the root; "
            f"at most {deepest} are allowed (Application(max_depth=...)): does it contain itself?"
        )
        raise DepthExceeded(msg)


def child_config(
    run: Run,
    step: str,
    graph: Graph,
    value_of: Callable[[Run], object] | None = None,
    inputs: Mapping[str, object] | None = None,
    *,
    visit: int | None = None,
    deadline: float | None = None,
    store: Store | None = None,
    hooks: Hooks | None = None,
    digests: dict[str, tuple[object, bytes]] | None = None,
    on_item: Callable[[Run, object], None] | None = None,
    each: Each | None = None,
    host: Run | None = None,
    executor: Place | None = None,
) -> RunConfig:
    """Make the configuration of the children of ``run`` that execute ``graph`` in ``step``.

    A partial item of such a child is passed to ``on_item``, and to the ``on_item`` of ``run``: it
    counts as an item of ``run`` too.

    Raises:
        MissingInput: The graph takes an input that was not given.
        DefinitionError: None of its acts takes one of ``inputs``.
        StateError: The graph would save or publish secret fields.
    """
    config = run.config
    # Here too, since a function may have chosen the graph: the check before the run has not seen
    # it.
    refuse_exposing(run, step, graph)
    unknown = graph.unknown_input(inputs) if inputs else ""
    if unknown:
        msg = f"step {step!r} of run {run.path.id} gives {graph.name!r} an input: {unknown}"
        raise DefinitionError(msg)
    # One mapping for all descendants, as long as none of them adds to it.
    given = {**config.inputs, **inputs} if inputs else config.inputs
    # Before the first child, and for the whole graph: else each child would fail by itself, and
    # some of them late.
    for name, need in graph.takes.items():
        if need.required and name not in given:
            msg = (
                f"action {need.by!r} in step {step!r} of run {run.path.id} lacks the input "
                f"{name!r}; give it to run(inputs=...), to the Task, or bind it"
            )
            raise MissingInput(msg)
    return RunConfig(
        graph=graph,
        inputs=given,
        execution=config.execution,
        act=graph.name,
        parent=run.path,
        step=step,
        visit=run.visit(step) if visit is None else visit,
        value_of=value_of,
        # A graph that is a node belongs to the run: its steps are the run's own.
        scopes=config.scopes_below if host is None else config.scopes,
        deadline=config.deadline if deadline is None else deadline,
        store=config.store if store is None else store,
        # The ends of the children stay with their parent, whatever store has their histories: the
        # parent's update and the ends that it applies have to be one save.
        keeper=config.store,
        hooks=config.hooks if hooks is None else hooks,
        digests=digests,
        # Usually no run above takes items, and an item then costs no further call.
        on_item=on_item if config.on_item is None else partial(_hand_up, run, on_item),
        each=each,
        # What is retried above may come back to a child at any depth.
        is_resumable=config.is_resumable,
        host=host,
        executor=config.executor if executor is None else executor,
        begins_host=host is None or run.is_starting,
        time_above=work_around(run) if host is None else None,
    )


def refuse_exposing(run: Run, step: str, graph: Graph) -> None:
    """Refuse a graph that exposes secret fields, and that was unknown when the run started.

    Graphs that are known from the start are checked before the run.

    Raises:
        StateError: The graph would save or publish secret fields.
    """
    secret = run.config.execution.secrets.names
    why = graph.exposing(secret) if secret else ""
    if why:
        msg = f"children of {step!r} of run {run.path.id} would expose a secret field: {why}"
        raise StateError(msg)


def circuits_of(
    services: Services, definition: object, each: Each | None, name: str = ""
) -> Circuits | None:
    """Return the circuits of a fan-out, made on first use; None if it has no breaker.

    Args:
        services: The runtime's services, which keep the circuits.
        definition: The definition that all executions of the fan-out share.
        each: The policy that may have a breaker.
        name: The name of the fan-out among those of one action.
    """
    if each is None or each.breaker is None:
        return None
    # By the definition and not by the run, so that all executions of a fan-out learn from each
    # other. By name too, because an action may have several.
    named = services.circuits.setdefault(definition, {})
    found = named.get(name)
    # A changed breaker starts over: what the old one counted says nothing about its thresholds.
    if found is None or found.breaker != each.breaker:
        found = named[name] = Circuits(each.breaker, services.clock)
    return found


def children_of(
    run: Run, store: Store | Inherit | None, hooks: Iterable[Hook] | Inherit
) -> tuple[Store, Hooks]:
    """Return the store and the hooks of the children of a step of ``run``."""
    config = run.config
    kept = config.store
    # A parent's NullStore is shared, because stores are compared by identity to see whether the
    # children are kept where their parent is.
    if store is None:
        kept = kept if isinstance(kept, NullStore) else NullStore()
    elif not isinstance(store, Inherit):
        injection = config.services.injection
        kept = store = store if injection is None else injection.store(store)
        # Before the first child: whatever ends descendants has to ask this store as well.
        config.execution.know_all((store,))
    listening = config.hooks if isinstance(hooks, Inherit) else config.hooks.replaced(hooks)
    return kept, listening


def _hand_up(
    run: Run, on_item: Callable[[Run, object], None] | None, child: Run, item: object
) -> None:
    if on_item is not None:
        # The child's own parent first; see test_the_parent_of_a_child_receives_its_items_first.
        on_item(child, item)
    if run.config.on_item is not None:
        run.config.on_item(run, item)


def is_revisited(run: Run) -> bool:
    """Return whether a run is a graph as a node, inside a step that is visited again.

    The step may be one of its parent or of a run above, up to the host. The run counts the visits
    of its own steps from 0 again, but their fields may already have what an earlier visit
    collected.
    """
    host, path = run.config.host, run.path
    # Up to the host only: above it, each visit of a fan-out has children of its own, with states of
    # their own.
    while host is not None and path is not host.path and path.parent is not None:
        if path.visit:
            return True
        path = path.parent
    return False


def narrowed(
    data: Mapping[str, object], graph: Graph, given: Mapping[str, object], subject: str, hint: str
) -> dict[str, object]:
    """Return the fields that a child starts with: those that its graph reads.

    Args:
        data: The parent's fields.
        graph: The graph that the child executes.
        given: Fields from elsewhere. They take precedence over ``data``.
        subject: Names the children, for the error.
        hint: Says how to provide a missing field, for the error.

    Raises:
        MissingField: A field is in neither, and no action of the graph writes it first.
    """
    base: dict[str, object] = {}
    for field in graph.reads:
        if field in given:
            base[field] = given[field]
        elif field in data:
            base[field] = data[field]
        # Other fields are written before they are read, or left to a default; see
        # test_what_a_child_can_do_without_needs_no_declaration.
        elif field in graph.needed_by:
            has = ", ".join(sorted(data)) or "none"
            msg = (
                f"{subject} read field {field!r}, which the state does not have "
                f"(it has: {has}); {hint}{did_you_mean(field, given)}"
            )
            raise MissingField(msg)
    return base


def only_write_reader(graph: Graph) -> Callable[[Run], object] | None:
    """Return a reader of the only field that ``graph`` writes; None if it writes several or none.

    The reader returns None for a child that never wrote the field.
    """
    if len(graph.writes) != 1:
        return None
    (field,) = graph.writes
    return _written_field_reader(field)


@lru_cache(maxsize=256)
def _written_field_reader(field: str) -> Callable[[Run], object]:
    def only_write(child: Run) -> object:
        change = child.pending
        if change is not None and field in change.values:  # no call for nearly all children
            return change.values[field]
        try:
            return child.final_field(field)
        except KeyError:
            return None

    return only_write


def value_reader(take: Take | None, subject: str) -> Callable[[Run], object] | None:
    """Return a reader of a child's value, as ``take`` describes it; None without ``take``."""
    if take is None:
        return None
    if isinstance(take, str):
        return _field_reader(take, subject)
    if callable(take):

        def taken(child: Run) -> object:
            # Costs a state for each child, which the other forms of `take` do without.
            value: object = take(child.final_state)
            refuse_awaitable(value, f"take= of fan-out {subject!r}")
            return value

        return taken
    fields = tuple(take)
    return lambda child: {field: _field_of(child, field, subject) for field in fields}


@lru_cache(maxsize=256)  # a reader is seven objects, which would live as long as each step
def _field_reader(field: str, subject: str) -> Callable[[Run], object]:
    """Return a reader of one field of a child of the fan-out named ``subject``."""

    def taken_field(child: Run) -> object:
        # Nearly always its last step has written the field: no call for that.
        change = child.pending
        if change is not None and field in change.values:
            return change.values[field]
        return _field_of(child, field, subject)

    return taken_field


def _field_of(child: Run, field: str, subject: str) -> object:
    try:
        return child.final_field(field)
    except KeyError:
        msg = (
            f"fan-out {subject!r} takes field {field!r} of each child, but this one never "
            f"wrote it; where only some do, take=lambda state: state.get({field!r})"
        )
        raise MissingField(msg) from None
