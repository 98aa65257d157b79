"""A failed simulation, told for people: what broke, what had gone wrong, how to repeat it."""

from __future__ import annotations

import os
import shlex
import traceback
from collections.abc import Iterator

from shoal._errors.exceptions import CommitInDoubt, HookFailed, StoreFailed
from shoal.testing._faults import Plan
from shoal.testing._faulty_acts import InjectedFault
from shoal.testing._invariants import leaves, short
from shoal.testing._lives import Life, SimulatedRun
from shoal.testing._violation import Violation

_OF_FAULTS = (InjectedFault, StoreFailed, CommitInDoubt, HookFailed)
_ORDINALS = {1: "1st", 2: "2nd", 3: "3rd"}


def story(violation: Violation, run: SimulatedRun, *, first: Plan, tries: int, runs: int) -> str:
    """Return the message of a failed simulation.

    Args:
        violation: What broke.
        run: The run in which it broke.
        first: The plan with which it was found.
        tries: How many plans were tried to make that smaller.
        runs: How many runs had gone well before.
    """
    return "\n".join(_lines(violation, run, first, tries, runs))


def _lines(
    violation: Violation, run: SimulatedRun, first: Plan, tries: int, runs: int
) -> Iterator[str]:
    yield f"{violation.kind}: {violation}"
    where = _where(violation.__cause__)
    if where and violation.kind == "check":
        yield where
    yield ""
    order = "first come, first served" if run.plan.order is None else f"order {run.plan.order}"
    yield f"What happened, on {run.plan.backend} with its ready tasks in {order}:"
    if not run.faults:
        yield "  nothing went wrong: " + (
            "the order of the tasks alone does it" if run.plan.order is not None else "it does this"
            " by itself"
        )  # fmt: skip
    for life in run.lives:
        yield from _life(life)
    yield ""
    if tries:
        had = len(first.faults)
        yield (
            f"Found by run {first.order}, after {runs} that went well, with {had} "
            f"fault{'s' * (had != 1)}; made smaller in {tries} tries."
        )
    yield "To repeat exactly this:"
    yield f"  simulate(..., replay={str(run.plan)!r})"
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    if test:
        yield f"  SHOAL_REPLAY={shlex.quote(str(run.plan))} pytest {shlex.quote(test)}"


def _life(life: Life) -> Iterator[str]:
    number = _ORDINALS.get(life.number, f"{life.number}th")
    resumed = " (resumed)" if life.number > 1 else ""
    if life.is_changed:
        resumed = " (resumed by the changed application)"
    yield f"  {number} process{resumed}: after {life.seconds:.3g} s the run {_end(life)}"
    for fault in life.faults:
        yield f"    - {fault.sentence}"


def _end(life: Life) -> str:
    match life.status:
        case "killed":
            return "was cut off, as its process died"
        case "failed" if life.error is not None:
            # Of faults that are listed below it the name is enough.
            kinds = [type(leaf) for leaf in leaves(life.error)]
            if life.faults and all(issubclass(kind, _OF_FAULTS) for kind in kinds):
                return f"failed with {kinds[0].__name__}"
            return f"failed with {short(life.error)}"
        case "cancelled":
            return "was cancelled"
        case "halted":
            return "waited for answers"
        case _:
            return life.status


def _where(error: BaseException | None) -> str:
    """Return the line of the user's check that raised."""
    frames = traceback.extract_tb(None if error is None else error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    return f"  at {last.filename}:{last.lineno}, in {last.name}: {last.line}"
