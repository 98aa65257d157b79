"""Explain where the time of a run went, and what would make it faster.

The shares come from the last report about the root run, which its process has sampled. The critical
path and the slowest children come from the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from shoal._events.identity import RunPath
from shoal._events.report import Doing, Report, Waited
from shoal._runtime.result import RunResult
from shoal.stores._watching import Row


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A run on the critical path."""

    row: Row
    step: str = ""
    """The step of the run from which the path leads down; empty for the last run."""
    seconds: float = 0.0
    """From the run's start to its end."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where the time of a run went."""

    run_id: str
    seconds: float
    """The makespan: from the start of the execution to its end, or until now."""
    is_over: bool
    """Whether the execution has ended."""
    shares: Mapping[Doing, float] = field(default_factory=dict[Doing, float])
    """The part of the makespan for each thing done, the largest first. They add up to 1; empty if
    there is no report."""
    waited: Sequence[Waited] = ()
    """The limits and keys that were waited for longest, the longest first."""
    critical_path: Sequence[Link] = ()
    """The run, its child that ended last, that child's, and so on."""
    slowest: Sequence[Row] = ()
    """The children that took longest; at most 5."""
    advice: str = ""
    """What would make it faster, computed from the shares; empty if there is no report."""
    notes: Sequence[str] = ()
    """What is missing, and why."""
    samples: int = 0
    """How often the run was looked at."""

    @property
    def text(self) -> str:
        """The explanation for people, in several lines."""
        raise NotImplementedError


def explain(run: RunResult[Any] | Report) -> Explanation:
    """Explain where the time of a run went, by its last report.

    ``Queries.explain`` says more, because it also reads the run's children from the store.

    Args:
        run: The result of a run, an open run, a handle, or a report.
    """
    raise NotImplementedError


def advice_on(report: Report) -> str:
    """Return what would make the run faster: a sentence, computed from its shares."""
    raise NotImplementedError


def explained(
    report: Report,
    path: RunPath,
    critical_path: Sequence[Link] = (),
    slowest: Sequence[Row] = (),
    notes: Sequence[str] = (),
) -> Explanation:
    """Make an explanation of a report and of what the store knows."""
    raise NotImplementedError
