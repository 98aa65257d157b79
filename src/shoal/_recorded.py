"""What earlier executions have left of a step's children. Imports the run and what is above it.

Invariants:
- A child that has ended well and was applied is not run again, and not applied again; one that
  ended well and was not applied, is applied; any other goes on after the last step it completed.
- A child whose digest is not the recorded one runs anew. If ``reduce`` has taken what it returned,
  nothing is run: that can't be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, final

from ._errors import InputChanged
from ._events import Cancelled, Done, Failed, Outcome, Skipped
from ._ids import Key, RunPath
from ._ports import ChildRecord
from ._run import Run
from ._state import make_state

Fate = Literal["new", "goes on", "runs anew", "is kept"]
"""What becomes of a child in this execution."""


async def recorded_children(
    run: Run, step: str, visit: int
) -> Mapping[tuple[str, Key], ChildRecord]:
    """Ask the store for the children of one visit of a step, by act and key.

    Raises:
        StoreFailed: It did not say.
    """
    setting = run.setting
    if not setting.execution.is_resumed:
        return {}
    asked = setting.store.children(run.path, step, visit)
    what = f"the children of step {step!r} of run {run.path.id}"
    found = await setting.execution.ask(asked, what)
    return {(record.act, record.key): record for record in found}


@final
class Recorded:
    """The recorded children of one execution of a step."""

    __slots__ = ("_folds", "_is_undone", "_left", "_who", "last_position", "started")

    def __init__(
        self,
        who: str,
        records: Mapping[tuple[str, Key], ChildRecord],
        *,
        folds: bool = False,
        is_undone: Callable[[int], bool] | None = None,
    ) -> None:
        """Collect them.

        Args:
            who: The step's name, for errors.
            records: By act and key.
            folds: Whether ``reduce`` takes what they return.
            is_undone: Tells whether the parent's update of a number counts no more.
        """
        self._who = who
        self._folds = folds
        self._is_undone = is_undone
        self._left = dict(records)
        self.last_position: int = max((one.position for one in records.values()), default=-1)
        self.started: int = sum(one.status != "skipped" for one in records.values())
        """How many of them have been started."""

    @property
    def left(self) -> int:
        """How many have not come up yet."""
        return len(self._left)

    def judge(self, child: Run) -> tuple[Fate, ChildRecord | None]:
        """Decide what becomes of ``child``, which comes up now.

        Raises:
            InputChanged: It would have to run anew, and ``reduce`` has taken its result.
        """
        record = self._left.pop((child.setting.act, child.key), None)
        if record is None:
            return "new", None
        applied = self.is_applied(record)
        if record.digest != child.digest:
            if self._folds and applied:
                msg = (
                    f"fan-out {self._who!r}: what key {child.key!r} works on, or its act's "
                    f"version, has changed since its result was reduced (run {child.path.id}); "
                    f"reduce can't be undone: start a new run, or fork() this one from before the "
                    f"fan-out"
                )
                raise InputChanged(msg)
            return "runs anew", record
        if applied and (self._folds or record.status in ("succeeded", "skipped")):
            return "is kept", record
        return "goes on", record

    def is_applied(self, record: ChildRecord) -> bool:
        """Tell whether an update that counts has applied a child."""
        number = record.applied
        return number is not None and not (self._is_undone and self._is_undone(number))

    def keeps_failure(self, record: ChildRecord) -> bool:
        """Tell whether a child's failure is part of the state for good."""
        return record.status == "failed" and self._folds and self.is_applied(record)


def outcome_of(record: ChildRecord, parent: RunPath) -> Outcome:
    """Make the outcome that was recorded of a child of the run ``parent``.

    A child that is Done has neither value nor state here.
    """
    path = RunPath(
        act=record.act, parent=parent, step=record.step, visit=record.visit, key=record.key
    )
    position, element = record.position, record.element
    attempts, elapsed = record.attempts, record.elapsed
    match record.status:
        case "failed":
            assert record.error is not None, "a store keeps what a child failed with"
            return Failed(
                path=path,
                position=position,
                element=element,
                attempts=attempts,
                elapsed=elapsed,
                error=record.error,
            )
        case "cancelled":
            return Cancelled(
                path=path,
                position=position,
                element=element,
                attempts=attempts,
                elapsed=elapsed,
                reason=record.reason,
            )
        case "skipped":
            return Skipped(path=path, position=position, element=element, reason=record.reason)
        case _:
            return Done(
                path=path,
                position=position,
                element=element,
                attempts=attempts,
                elapsed=elapsed,
                value=None,
                state=make_state({}),
                used=record.used,
            )


def newest(records: Iterable[ChildRecord]) -> Mapping[tuple[str, int], list[ChildRecord]]:
    """Sort records by step and visit, each in input order."""
    sorted_: dict[tuple[str, int], list[ChildRecord]] = {}
    for record in sorted(records, key=lambda one: one.position):
        sorted_.setdefault((record.step, record.visit), []).append(record)
    return sorted_
