"""What a run is given, held against what its graph takes. Imports graphs and states."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from ._errors import did_you_mean, kind_of
from ._graph import Graph
from ._state import State


def fields_of(given: object, parameter: str, where: str) -> Mapping[str, object]:
    """Check what a user gave as ``state`` or ``inputs``."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        msg = (
            f"{where}() takes {parameter} as a mapping of names to values, "
            f"not {kind_of(given)}; to give an instance of a model, declare it: "
            f"Application(..., state=Model)"
        )
        raise TypeError(msg)
    return dict(State(cast("Mapping[str, object]", given))._data)


def missing_field(graph: Graph, fields: Collection[str]) -> str:
    """Say which field must come from outside and doesn't; nothing if none."""
    for field, who in graph.missing(fields).items():
        return (
            f"{who} reads field {field!r}, which the state does not "
            f"have (it has: {', '.join(sorted(fields)) or 'none'}) and no earlier action "
            f"writes; pass it to run(), or write it in an earlier action"
            f"{did_you_mean(field, graph.writes - {field})}"
        )
    return ""


def unknown_secret(graph: Graph, secret: frozenset[str]) -> str:
    """Say which secret field nobody reads; nothing if none."""
    schema = graph.schema
    known = graph.reads if schema is None else schema.fields
    for name in sorted(secret.difference(known)):
        found = ", ".join(sorted(known)) or "none"
        meant = did_you_mean(name, known)
        return f"no action reads a field {name!r} of the initial state (there are: {found}){meant}"
    return ""


def missing_inputs(graph: Graph, given: Collection[str]) -> str:
    """Say which inputs are needed and not given; nothing if none."""
    return ", ".join(
        f"{name!r} (action {need.by!r})"
        for name, need in graph.takes.items()
        if need.required and name not in given
    )


def unknown_input(graph: Graph, given: Collection[str]) -> str:
    """Say which input is given and never taken; nothing if none."""
    takes = graph.takes
    for name in () if graph.takes_more else given:
        if name not in takes:
            known = ", ".join(sorted(takes)) or "none"
            hint = "; an action names what its children take, where it starts them by itself"
            return (
                f"no action takes an input {name!r} (they take: {known})"
                f"{did_you_mean(name, takes) or hint}"
            )
    return ""
