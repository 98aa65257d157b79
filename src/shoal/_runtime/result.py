"""The result of a root run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, final

from shoal._engine.fanout.ledger import Ledger
from shoal._engine.fanout.read_runs import read_outcomes
from shoal._engine.run import Run
from shoal._errors.exceptions import BadUse
from shoal._events.events import Failed, Outcome, Question
from shoal._events.report import Report
from shoal._graph.graph import Graph
from shoal._state.state import S, State


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult(Generic[S]):
    """The result of a run that has succeeded, or is halted."""

    run_id: str
    """The run's id."""
    state: State[S]
    """The final state; ``state.data`` is an instance of the application's model. If the run is
    halted, the state as it was committed last."""
    status: Literal["succeeded", "halted"] = "succeeded"
    """``"halted"`` if the run waits: for answers to its ``questions``, or to be run again, because
    it was drained (see ``reason``) or told to halt between two steps."""
    questions: Sequence[Question] = ()
    """The open questions of the run and its descendants; of siblings, in order of positions."""
    reason: str = ""
    """Why the run was drained, if that has halted it; else empty. See ``RunHandle.drain``."""
    report: Report | None = field(default=None, repr=False, compare=False)
    """The last report about the run: where its time went. None if it was not watched, or ended
    before the first sample."""
    spent: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the run and its descendants have spent of each budget, by the budget's name, which is
    its unit by default; of a runtime's budget ``"USD"``, as ``"USD of the runtime"``."""
    _ledgers: Mapping[str, Sequence[Ledger]] = field(repr=False)
    _run: Run = field(repr=False, compare=False)

    def outcomes(self, step: str, visit: int = -1) -> Ledger:
        """Return how the children of the fan-out ``step`` ended: counts, and those not Done.

        The children that are Done are in the state, where ``into`` or ``reduce`` has put them;
        ``all_outcomes`` reads them from the store. Of an action's own fan-out there are counts
        alone, because the action has dealt with the rest; ``all_outcomes`` reads that too.

        Args:
            step: The fan-out's name; inside of a graph that is a node, ``"graph/fan-out"``; of an
                action's own fan-out, ``"action/fan-out"``.
            visit: Which execution of the fan-out, counted from 0; by default the last one.

        Raises:
            KeyError: The run executed no fan-out of that name, or not so often.
        """
        try:
            ledgers = self._ledgers[step]
        except KeyError:
            names = ", ".join(sorted(self._ledgers)) or "none"
            msg = f"run {self.run_id} executed no fan-out named {step!r} (it did: {names})"
            raise KeyError(msg) from None
        try:
            return ledgers[visit]
        except IndexError:
            msg = f"run {self.run_id} executed {step!r} {len(ledgers)} times; no visit {visit}"
            raise KeyError(msg) from None

    def all_outcomes(self, step: str, visit: int = -1) -> AsyncIterator[Outcome]:
        """Read from the store how each child of the fan-out ``step`` ended, in input order.

        Outcomes are read lazily: ``async for outcome in result.all_outcomes("titles")``. The
        ``state`` of a child that is Done holds the fields that it has written. It does not if the
        children are saved nowhere; of an action's own fan-out with a ``store=`` it does only in the
        execution that ran the fan-out.

        Args:
            step: The name of one of the run's own fan-outs; of an action's, ``"action/fan-out"``.
                Of a fan-out inside of a graph that is a node, only ``outcomes`` knows.
            visit: Which execution of the fan-out, counted from 0; by default the last one.

        Raises:
            KeyError: The run executed no fan-out of that name, or not so often.
            BadUse: The run has no store, or the fan-out is one inside of a graph that is a node.
            StoreFailed: The store could not be read.
        """
        ledger = self.outcomes(step, visit)
        self._refuse_inner(step)
        count = len(self._ledgers[step])
        return read_outcomes(self._run, step, visit % count, ledger.kept_in)

    def _refuse_inner(self, step: str) -> None:
        graph = self._run.config.graph
        node, _, inner = step.partition("/")
        if graph.find(step) is None and isinstance(graph.find(node), Graph):
            msg = (
                f"run {self.run_id}: {inner!r} is a fan-out of {node!r}, which is a graph and so a "
                f"run of its own, and only the run's own children can be read back; "
                f"outcomes({step!r}) has their counts and those that are not Done, and the results "
                f"of the others are in the state, if {node!r} writes them"
            )
            raise BadUse(msg)

    def raise_for_failures(self) -> None:
        """Raise the failures that were collected or ignored, if there are any.

        For programs that collect failures and, in the end, accept none. Three kinds of failures
        are not raised: those of the losers of a decided race, because a contestant has won
        (``outcomes`` has them); those below a child that tolerated them, because that child is
        Done; and those in an action's own fan-out, which were raised there or handed to the action.

        Raises:
            ExceptionGroup: All these failures of the run's fan-outs, in the order of the steps and,
                within each, of the input.
        """
        errors = [
            outcome.error
            for ledgers in self._ledgers.values()
            for ledger in ledgers
            if not ledger.is_decided
            for outcome in ledger
            if isinstance(outcome, Failed)
        ]
        if errors:
            count = "a child" if len(errors) == 1 else f"{len(errors)} children"
            msg = f"{count} of run {self.run_id} failed"
            raise ExceptionGroup(msg, errors)


class _RunResult(Generic[S]):
    """The twin of ``RunResult``, which is filled by plain assignments; see ``_events/making``."""

    __slots__ = RunResult.__slots__  # pyright: ignore[reportAttributeAccessIssue] # by dataclass


def result_of(run: Run, report: Report | None = None) -> RunResult[Any]:
    """Make the result of a root run that has succeeded, or is halted."""
    made: Any = _RunResult()
    is_halted = run.status == "halted"
    made.run_id = run.path.id
    made.state = run.state
    made.status = run.status
    made.questions = run.open_questions if is_halted else ()
    made.reason = run.reason if is_halted else ""
    made.report = report
    made.spent = run.config.execution.accounts.spent
    made._ledgers = run.ledgers
    made._run = run
    made.__class__ = RunResult
    return made
