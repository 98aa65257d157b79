"""Write a report as text, and read it back: stores carry it between processes as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

from .identity import RunPath
from .paths import key_data, key_of_data
from .report import (
    BreakerUse,
    BudgetUse,
    CircuitUse,
    HedgeUse,
    LimitUse,
    LiveRun,
    LiveStep,
    Report,
    SecondCopy,
    SlowRun,
    Spending,
    Waited,
)

T = TypeVar("T")

_PARTS: Mapping[str, type[object]] = {
    "breakers": BreakerUse,
    "budgets": BudgetUse,
    "circuits": CircuitUse,
    "copies": SecondCopy,
    "hedges": HedgeUse,
    "limits": LimitUse,
    "longest": LiveRun,
    "recent_waited": Waited,
    "slowest": SlowRun,
    "spending": Spending,
    "steps": LiveStep,
    "unfinished": LiveStep,
    "waited": Waited,
}


def report_text(report: Report) -> str:
    """Return a report as JSON. Attributes that have their default are left out."""
    return json.dumps(_data(report), separators=(",", ":"))


def parse_report(text: str) -> Report:
    """Return the report that ``report_text`` has written.

    Attributes that this version doesn't know are ignored: another process, with a later version,
    may have written them.

    Raises:
        ValueError: It is no report.
    """
    try:
        return _made(Report, cast("Mapping[str, Any]", json.loads(text)))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        msg = f"this is no report of a run: {error!r}"
        raise ValueError(msg) from error


def _data(value: object) -> object:
    if isinstance(value, RunPath):
        return _path_data(value)
    if isinstance(value, Mapping):
        inner = cast("Mapping[object, object]", value)
        return {str(name): _data(one) for name, one in inner.items()}
    if isinstance(value, tuple | list):
        return [_data(one) for one in cast("tuple[object, ...]", value)]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    data: dict[str, object] = {}
    for field in fields(value):
        found = getattr(value, field.name)
        if field.default_factory is not _MISSING:
            is_default = not found
        else:
            is_default = found is field.default or (
                type(found) is type(field.default) and found == field.default
            )
        if not is_default:
            data[field.name] = _data(found)
    return data


_MISSING = fields(Waited)[0].default_factory  # of a field without a default


def _made(kind: type[T], data: Mapping[str, Any]) -> T:
    given: dict[str, Any] = {}
    for field in fields(cast("Any", kind)):
        if field.name not in data:
            continue
        value = data[field.name]
        if field.name == "path":
            value = _path_of(value)
        elif field.name in _PARTS and isinstance(value, list):
            parts = cast("list[Mapping[str, Any]]", value)
            value = tuple([_made(_PARTS[field.name], one) for one in parts])
        elif isinstance(value, list):
            value = tuple(cast("list[object]", value))
        given[field.name] = value
    return kind(**given)


# A path is a list: the id and the act of the root run, then `[step, visit, act, key]` of each run
# down to the one that is meant.


def _path_data(path: RunPath) -> list[object]:
    below: list[object] = []
    while path.parent is not None:
        below.append([path.step, path.visit, path.act, key_data(path.key)])
        path = path.parent
    return [path.id, path.act, *reversed(below)]


def _path_of(data: list[Any]) -> RunPath:
    path = RunPath(run_id=data[0], act=data[1])
    for step, visit, act, key in data[2:]:
        path = RunPath(act=act, parent=path, step=step, visit=visit, key=key_of_data(key))
    return path
