"""The definition of an application: its graph, and the settings of its runs.

Invariants:
- Everything that can be checked without running is checked here, when the application is built.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, cast, final

from shoal._errors.exceptions import DefinitionError, did_you_mean, kind_of
from shoal._events.hooks import Hook, Hooks
from shoal._graph.act import Act
from shoal._graph.action import field_names
from shoal._graph.graph import Graph, as_graph
from shoal._graph.reach import limits_in
from shoal._limits.accounts import Accounts
from shoal._limits.flows import Priority, check_priority
from shoal._limits.limits import Limits, mended
from shoal.executors._named import Place, executor_named
from shoal.stores._protocol import Store, check_store


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AppDefinition:
    """What an application runs, and with which settings; ``define`` checks and makes it."""

    name: str
    version: str
    graph: Graph
    store: Store | None
    """Where runs are saved; None: in the runtime's store."""
    hooks: tuple[Hook, ...]
    inputs: Mapping[str, object]
    """The inputs that the application binds. A run's own and its runtime's come besides."""
    secret: frozenset[str]
    """The fields of the initial state that are secret in every run."""
    limits: Limits | None
    max_steps: int
    max_depth: int
    max_live: int
    watch: bool | None
    """Whether runs are watched; None: as their runtime does."""
    executor: Place | None
    """Where actions are called; None: where the runtime says, or by default."""
    priority: Priority | None
    """How urgent new runs are that don't say so themselves; None: like those that start them."""

    def __str__(self) -> str:
        """How error messages begin."""
        return f"application {self.name!r}"


def define(
    graph: Act,
    *,
    name: str | None,
    state: object,
    inputs: Mapping[str, object] | Collection[str] | None,
    secret: Collection[str],
    version: str,
    store: Store | None,
    hooks: Iterable[Hook],
    limits: Limits | None,
    max_steps: int,
    max_depth: int,
    max_live: int,
    watch: bool | None = None,
    executor: object = None,
    priority: Priority | None = None,
) -> AppDefinition:
    """Check what ``Application`` was given, and make its definition.

    Raises:
        DefinitionError: The application can't work as written; the message says why.
    """
    walked = as_graph(graph, "Application")
    if name is not None and (not isinstance(name, str) or not name):
        msg = f"Application(name=...) takes a name, not {name!r}"
        raise DefinitionError(msg)
    name = walked.name if name is None else name
    subject = f"application {name!r}"
    if not isinstance(version, str):
        _refuse(subject, f"version= takes a string, not {version!r}")
    if store is not None:
        check_store(store, f"{subject}: store=")
    if isinstance(state, type):
        walked = _typed(walked, state, subject)
    all_hooks = Hooks(hooks).hooks
    if limits is not None and not isinstance(limits, Limits):
        _refuse(subject, f"limits= takes Limits(n), not {limits!r}{mended(limits)}")
    _check_budgets(walked, limits, subject)
    if watch not in (None, True, False):
        _refuse(subject, f"watch= takes True, False or None, not {watch!r}")
    if priority is not None:
        check_priority(priority, f"{subject}: priority=", DefinitionError)
    bounds = {"max_steps": max_steps, "max_depth": max_depth, "max_live": max_live}
    for parameter, count in bounds.items():
        if type(count) is not int or count < 1:
            _refuse(subject, f"{parameter}= takes a whole number of at least 1, not {count!r}")
    bound = _inputs(walked, inputs, subject)
    secret_fields = frozenset(field_names(secret, "secret"))
    why = walked.exposing(secret_fields) or _unknown_secret(walked, secret_fields)
    if why:
        _refuse(subject, f"secret=...: {why}")
    if state is not None and not isinstance(state, type):
        _check_fields(walked, state, subject)
    return AppDefinition(
        name=name,
        version=version,
        graph=walked,
        store=store,
        hooks=all_hooks,
        inputs=bound,
        secret=secret_fields,
        limits=limits,
        watch=watch,
        executor=executor_named(executor, subject),
        priority=priority,
        **bounds,
    )


def missing_field(graph: Graph, fields: Collection[str]) -> tuple[str, str]:
    """Return a field that ``fields`` lacks, and a sentence about it; two empty texts if none."""
    for field, reader in graph.missing(fields).items():
        return field, (
            f"{reader} reads field {field!r}, which the state does not "
            f"have (it has: {', '.join(sorted(fields)) or 'none'}) and no earlier action "
            f"writes; pass it to run(), or write it in an earlier action"
            f"{did_you_mean(field, graph.writes - {field})}"
        )
    return "", ""


def missing_inputs(graph: Graph, given: Collection[str]) -> str:
    """Name the inputs that actions need and ``given`` lacks, in one text; empty if none."""
    takes = graph.takes
    if not takes:  # as of most graphs
        return ""
    return ", ".join(
        f"{name!r} (action {need.by!r})"
        for name, need in takes.items()
        if need.required and name not in given
    )


def unread_field(graph: Graph, given: Collection[str], state: object) -> str:
    """Name an input that is left to its default and has the name of a field; "" if none has.

    The field was almost certainly meant: its action would go on with the default, unnoticed.

    Args:
        graph: Its actions take the inputs.
        given: The names of the inputs that are given.
        state: The fields or the model that the run begins with; only a mapping names fields that no
            model has.
    """
    if not graph.takes:  # as of most graphs
        return ""
    schema = graph.schema
    fields = cast("Mapping[str, object]", state) if isinstance(state, Mapping) else ()
    known = {*fields, *graph.writes, *(() if schema is None else schema.fields)}
    for name, need in graph.takes.items():
        if name not in given and name in known and not need.is_apart:
            return (
                f"action {need.by!r} has a parameter {name!r}, which is a field of the state and "
                f"not in its reads=[...], so that it would get its default; add it to reads, or "
                f"rename the parameter"
            )
    return ""


def _refuse(subject: str, why: str) -> NoReturn:
    msg = f"{subject}: {why}"
    raise DefinitionError(msg)


def _check_budgets(graph: Graph, limits: Limits | None, subject: str) -> None:
    """Refuse two budgets of one name, which a run would refuse where the second one is needed.

    There, in a child, ``on_error="collect"`` would count the refusal as a failure like others.
    """
    accounts = Accounts()
    for one in (*(() if limits is None else (limits,)), *limits_in(graph)):
        for part in one.parts:
            terms = part.terms
            # Only those that each run has for itself. By key, two of one name may never meet.
            if terms is None or terms.per is not None or terms.backend or part.by is not None:
                continue
            try:
                accounts.of(terms, None)
            except DefinitionError as error:
                raise DefinitionError(f"{subject}: {error}") from None


def _typed(graph: Graph, model: type[object], subject: str) -> Graph:
    schema = graph.schema
    if schema is not None and schema.model is not model:
        msg = (
            f"{subject}: its graph has a model of the state already, "
            f"{schema.name}; leave out state={model.__name__}"
        )
        raise DefinitionError(msg)
    return graph.typed(model)


def _inputs(graph: Graph, inputs: object, subject: str) -> Mapping[str, object]:
    """Check the application's inputs, and return those that it binds to values."""
    if inputs is None:
        return {}
    bound: Mapping[str, object] = {}
    lacking = ""
    names: Collection[str]
    if isinstance(inputs, Mapping):
        names = bound = dict(cast("Mapping[str, object]", inputs))
        # What a mapping lacks may still come with a run, so only a list of names is held to it.
    else:
        if not isinstance(inputs, Collection):
            _refuse(
                subject,
                f"inputs= takes a mapping of names to values, or a list of the names that every "
                f"run is given, not {kind_of(inputs)}",
            )
        names = field_names(cast("Collection[str]", inputs), "inputs")
        lacking = missing_inputs(graph, names)
    unknown = graph.unknown_input(names)
    if unknown:
        _refuse(subject, unknown)
    if lacking:
        _refuse(subject, f"lacks the input {lacking}; name it in inputs=[...], or bind it")
    return bound


def _unknown_secret(graph: Graph, secret: Collection[str]) -> str:
    """Name a secret field that no action reads, and those that are read; empty if none."""
    schema = graph.schema
    known = graph.reads if schema is None else schema.fields
    for name in sorted(frozenset(secret).difference(known)):
        found = ", ".join(sorted(known)) or "none"
        meant = did_you_mean(name, known)
        return f"no action reads a field {name!r} of the initial state (there are: {found}){meant}"
    return ""


def _check_fields(graph: Graph, fields: object, subject: str) -> None:
    """Hold the graph to the list of fields that every run is given."""
    if not isinstance(fields, Collection):
        _refuse(
            subject,
            f"state= takes a model, which is a class, or a list of field names, "
            f"not {kind_of(fields)}",
        )
    if isinstance(fields, Mapping):
        _refuse(
            subject,
            "state= takes the shape of the state, a model or a list of field names, and no values: "
            "give those to each run, run({...})",
        )
    names = field_names(cast("Collection[str]", fields), "state")
    _, missing = missing_field(graph, names)
    if missing:
        _refuse(subject, missing)
