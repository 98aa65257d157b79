"""Write reports as JSON, and read them: the form in which stores keep them.

A report is read by other processes, perhaps of another version of shoal. So fields that the reader
doesn't know are dropped, and fields that the writer didn't know have their defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, cast

from .identity import RunPath
from .paths import parse_path, path_text
from .report import LimitUse, LiveRun, LiveStep, Report, Waited

_PARTS: Mapping[str, type[Any]] = {
    "waited": Waited,
    "steps": LiveStep,
    "longest": LiveRun,
    "limits": LimitUse,
}
"""The fields of a report that hold several objects, with the class of these."""


def report_text(report: Report) -> str:
    """Write a report as JSON. Fields that have their defaults are left out."""
    data = _written(report)
    for name in _PARTS:
        if name in data:
            data[name] = [_written(part) for part in data[name]]
    return json.dumps(data, separators=(",", ":"))


def parse_report(text: str) -> Report:
    """Return the report that ``report_text`` wrote as ``text``."""
    data = json.loads(text)
    for name, kind in _PARTS.items():
        data[name] = tuple(_read(kind, part) for part in data.get(name, ()))
    return _read(Report, data)


def _written(value: Any) -> dict[str, Any]:
    data = dict[str, Any]()
    for field in fields(value):
        found = getattr(value, field.name)
        if field.default_factory is not MISSING:
            default: object = field.default_factory()
        else:
            default = field.default
        if found != default:
            data[field.name] = path_text(found) if isinstance(found, RunPath) else found
    return data


def _read(kind: type[Any], data: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    given = {name: value for name, value in data.items() if name in known}
    if "path" in given:
        given["path"] = parse_path(given["path"])
    if "holders" in given:
        given["holders"] = tuple(cast("list[str]", given["holders"]))
    return kind(**given)
