"""Watch runs: what they do now, what failed, where the time went.

``Queries`` answers questions about the runs in a store, for pages, commands and programs alike. It
reads the store and the last reports of the processes that execute runs, so it may be in another
process than these. ``explain`` says where the time of a run went.

The modules, from the first that others need to the last:

- ``_words``: numbers and times for people.
- ``_values``: stored JSON in little room, ``Value``.
- ``_failures``: failures in groups, by step, class of error and normalised message.
- ``_headline``: one sentence that says how far a run is and what holds it up.
- ``_history``, ``_timeline``, ``_overview``, ``_explain``: what the queries return.
- ``_questions``: the open questions of a run and its descendants.
- ``_stored``: histories and children as they are stored; ``_diff`` compares two runs with it,
  ``_export`` writes lines of JSON, and ``_burr`` logs for Burr's UI.
- ``_nested``: counts of nested fan-outs.
- ``_any_store``: looks into stores that implement less than ``Inspects``.
- ``_queries``: ``Queries``.
- ``_board``: what a display of progress shows of a run; ``progress`` shows it on a terminal, in a
  notebook, or as lines.
- ``draw``: graphs as Mermaid, DOT and SVG. ``telemetry``: OpenTelemetry. ``logging``: the run that
  a log record comes from.
- ``ui``: the page.

Names are imported when they are first asked for.

Examples:
    >>> from shoal.watch import parse_path
    >>> parse_path("crawl-1/pages:0:fetch:a.html").key
    'a.html'
"""

from __future__ import annotations

import importlib
import typing

if typing.TYPE_CHECKING:
    from shoal._events.paths import parse_path, path_text
    from shoal._events.report import (
        BreakerUse,
        BudgetUse,
        CircuitUse,
        Doing,
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
    from shoal._runtime.steering import Control
    from shoal.stores._watching import Bin, Row, RowPage, StepTally

    from ._burr import BurrExport
    from ._diff import ChildDifference, Difference, FieldDifference, Parting
    from ._explain import Explanation, Link, explain
    from ._failures import FailureGroup, Failures
    from ._headline import Headline, HeldUp, StepBar
    from ._history import FieldChange, HistoryEntry, HistoryPage
    from ._overview import Overview
    from ._queries import Queries, RunsPage
    from ._questions import OpenQuestion, Questions
    from ._timeline import Timeline
    from ._values import Value

_HOMES = {
    "Bin": "shoal.stores._watching",
    "BreakerUse": "shoal._events.report",
    "BudgetUse": "shoal._events.report",
    "BurrExport": "shoal.watch._burr",
    "ChildDifference": "shoal.watch._diff",
    "CircuitUse": "shoal._events.report",
    "Control": "shoal._runtime.steering",
    "Difference": "shoal.watch._diff",
    "Doing": "shoal._events.report",
    "Explanation": "shoal.watch._explain",
    "FailureGroup": "shoal.watch._failures",
    "Failures": "shoal.watch._failures",
    "FieldChange": "shoal.watch._history",
    "FieldDifference": "shoal.watch._diff",
    "Headline": "shoal.watch._headline",
    "HeldUp": "shoal.watch._headline",
    "HistoryEntry": "shoal.watch._history",
    "HistoryPage": "shoal.watch._history",
    "HedgeUse": "shoal._events.report",
    "LimitUse": "shoal._events.report",
    "Spending": "shoal._events.report",
    "Link": "shoal.watch._explain",
    "LiveRun": "shoal._events.report",
    "LiveStep": "shoal._events.report",
    "OpenQuestion": "shoal.watch._questions",
    "Overview": "shoal.watch._overview",
    "Parting": "shoal.watch._diff",
    "Queries": "shoal.watch._queries",
    "Questions": "shoal.watch._questions",
    "Report": "shoal._events.report",
    "Row": "shoal.stores._watching",
    "RowPage": "shoal.stores._watching",
    "RunsPage": "shoal.watch._queries",
    "StepBar": "shoal.watch._headline",
    "StepTally": "shoal.stores._watching",
    "Timeline": "shoal.watch._timeline",
    "Value": "shoal.watch._values",
    "SecondCopy": "shoal._events.report",
    "SlowRun": "shoal._events.report",
    "Waited": "shoal._events.report",
    "explain": "shoal.watch._explain",
    "parse_path": "shoal._events.paths",
    "path_text": "shoal._events.paths",
}

__all__ = [
    "Bin",
    "BreakerUse",
    "BudgetUse",
    "BurrExport",
    "ChildDifference",
    "CircuitUse",
    "Control",
    "Difference",
    "Doing",
    "Explanation",
    "FailureGroup",
    "Failures",
    "FieldChange",
    "FieldDifference",
    "Headline",
    "HedgeUse",
    "HeldUp",
    "HistoryEntry",
    "HistoryPage",
    "LimitUse",
    "Link",
    "LiveRun",
    "LiveStep",
    "OpenQuestion",
    "Overview",
    "Parting",
    "Queries",
    "Questions",
    "Report",
    "Row",
    "RowPage",
    "RunsPage",
    "SecondCopy",
    "SlowRun",
    "Spending",
    "StepBar",
    "StepTally",
    "Timeline",
    "Value",
    "Waited",
    "explain",
    "parse_path",
    "path_text",
]


if not typing.TYPE_CHECKING:  # type checkers would take any name to exist

    def __getattr__(name):  # noqa: ANN001, ANN202
        """Import a name when it is first asked for."""
        if name not in _HOMES:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
