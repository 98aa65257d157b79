"""Whether a simulated run has come to the same as an undisturbed one, where it must."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

from shoal._errors.exceptions import ShoalError
from shoal._events.events import Cancelled, ChildEnded, Decision, Done, LeaderChanged
from shoal._graph.act import Act
from shoal._graph.graph import Graph
from shoal._graph.parallel import Parallel
from shoal._state.state import State
from shoal.testing._faulty_store import kept_runs
from shoal.testing._invariants import different, plain
from shoal.testing._lives import SimulatedRun
from shoal.testing._violation import Violation

Same = Callable[[State[Any]], object] | bool | None


@final
class Comparison:
    """Compares runs with the undisturbed one.

    By itself it compares final states only where they have to be equal: no race was decided, whose
    winner is a matter of time, and each child has ended as it did in the undisturbed run.
    """

    def __init__(self, same: Same, act: Act, undisturbed: SimulatedRun) -> None:
        self._same = same
        self._undisturbed = undisturbed
        self._changes = ""
        self._ends = _ends_of(undisturbed)
        self._has_raced = has_raced(undisturbed)
        self._is_whole = not _why_not_whole(undisturbed)
        self._takes_first = next(steps_that_take_the_first(act), "")

    def expect_change(self, changed: SimulatedRun | None) -> None:
        """Compare no run that a changed application resumes, if that comes to another state.

        Args:
            changed: Its undisturbed run; None if it doesn't begin with the same state.
        """
        if changed is None:
            self._changes = "the changed application doesn't begin with this state"
            return
        fields = different(changed.state, self._undisturbed.state)
        if fields:
            self._changes = f"the changed application comes to another state: {fields}"

    @property
    def why_not(self) -> str:
        """Why final states are not compared; "" if they are."""
        if self._same is False:
            return "same=False"
        if self._same is None and self._changes:
            return f"{self._changes}; say with same= what must be the same"
        if self._same is None and self._has_raced:
            return "it has a race, whose winner may be another one; say with same= what must not be"
        if self._same is None and self._takes_first:
            return (
                f"step {self._takes_first!r} takes those children that come first; say with same= "
                f"what must be the same"
            )
        return ""

    def judge(self, run: SimulatedRun) -> None:
        """Compare a run.

        Raises:
            Violation: It has come to something else.
        """
        base = self._undisturbed.result
        if self._is_whole and run.result is not None and run.result.status == "succeeded":
            why = _why_not_whole(run)
            if why:
                raise Violation("incomplete", f"it has succeeded, and has no `state.data`: {why}")
        if self._same is False or base is None or run.result is None:
            return
        if run.result.status != base.status:
            return
        if callable(self._same):
            mine, theirs = plain(self._same(run.state)), plain(self._same(base.state))
            if mine != theirs:
                raise Violation(
                    "other result", f"same= returns {mine!r} here, and {theirs!r} for the"
                    " undisturbed run",
                )  # fmt: skip
            return
        if self._same is None and (
            self._takes_first or self._has_raced or has_raced(run) or _ends_of(run) != self._ends
        ):
            return
        if self._same is None and self._changes and any(life.is_changed for life in run.lives):
            return
        fields = different(run.state, base.state)
        if fields:
            why = "after those faults" if run.faults else "in another order of steps"
            raise Violation(
                "other result",
                f"its final state {why} is not that of the undisturbed run: {fields}."
                " HINT: if the state may differ (it holds times, say), give same=lambda state: ...,"
                " which returns what may not",
            )


def _why_not_whole(run: SimulatedRun) -> str:
    """Return why the final state makes no instance of the application's model; "" if it does."""
    try:
        _ = None if run.result is None else run.result.state.data
    except ShoalError as error:
        return str(error)
    return ""


def _ends_of(run: SimulatedRun) -> Mapping[str, str]:
    """Return how each child has ended that is not done, by its id."""
    ends: dict[str, str] = {}
    for event in run.events:
        if isinstance(event, ChildEnded):
            outcome = event.outcome
            ends.pop(outcome.run_id, None)
            if not isinstance(outcome, Done) or not outcome.used:
                ends[outcome.run_id] = type(outcome).__name__
    return ends


def has_raced(run: SimulatedRun) -> bool:
    """Return whether a race was decided in a run."""
    for event in run.events:
        if isinstance(event, LeaderChanged):
            return True
        match event:
            case ChildEnded(outcome=Cancelled(winner=winner)) if winner is not None:
                return True
            case _:
                pass
    if run.result is not None and any(
        ledger.is_decided for ledgers in run.result._ledgers.values() for ledger in ledgers
    ):
        return True
    return any(
        isinstance(entry, Decision)
        for store in run.stores
        for _, kept in kept_runs(store)
        for entry in kept.history
    )


def steps_that_take_the_first(act: Act) -> Iterator[str]:
    """Yield the names of fan-outs whose children are a matter of time, not only their order.

    They end early, or grow up to a number.
    """
    if isinstance(act, Parallel):
        join = act._join()
        if join.until.may_decide or (getattr(act, "at_most", None) is not None and join.grow):
            yield act.name
    for inner in act.acts if isinstance(act, Graph) else act.for_children:
        yield from steps_that_take_the_first(inner)


def actions_below(act: Act) -> Iterator[str]:
    """Yield the names of the actions that an act shows before it runs."""
    if isinstance(act, Graph):
        for inner in act.acts:
            yield from actions_below(inner)
    elif isinstance(act, Parallel):
        for inner in act.for_children:
            yield from actions_below(inner)
    else:
        yield act.name
