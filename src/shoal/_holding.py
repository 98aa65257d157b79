"""What a run holds while it works: a seat with each attempt, a stake while it is in flight.

Imports ports and settings; anyio.

Invariants:
- Between two attempts nothing is held, not even a place in flight.
- What has stepped aside for the next attempt and is cancelled meanwhile holds its stake again: it
  is about to end, and ends in flight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from typing import Any

from anyio import sleep
from anyio.lowlevel import checkpoint_if_cancelled

from ._action import FunctionAction
from ._execution import Execution
from ._ports import Seat, Stake
from ._setting import Setting
from ._state import Change
from ._trials import StepCounts


class Holder(ABC):
    """The part of a run that holds something."""

    __slots__ = ()
    setting: Setting
    stake: Stake | None
    """What it holds in flight, where that is more than a place."""
    seat: Seat | None
    """Of its first attempt, taken when it was let in."""
    head: tuple[int, Mapping[str, object]]
    pending: Change | None
    step: str | None
    steps: StepCounts | None

    @abstractmethod
    def tell_waiting(self, seat: Seat) -> Awaitable[None]:
        """Publish that it waits for a limit."""

    @property
    def lodger(self) -> Holder:
        """The child of a fan-out that it is part of, or itself."""
        return self.setting.host or self

    @property
    def above(self) -> Holder | None:
        """The child of a fan-out that started it, if it is a child of a child."""
        entrance = self.setting.entrance
        parent: Holder | None = None if entrance is None else entrance.parent
        return None if parent is None else parent.lodger

    @property
    def unit(self) -> Execution:
        """What takes turns with others at limits."""
        return self.setting.execution

    def make_stake(self) -> Stake | None:
        """Say what it holds in flight from now on, if it is a child of a fan-out."""
        if self.stake is None and self.setting.entrance is not None:
            self.stake = self.setting.entrance.stake(self)
        return self.stake

    def take_seat(self, action: FunctionAction[..., Any]) -> Seat | None:
        """Take the seat for an attempt, which may have to wait; None if nothing limits it."""
        seat, self.seat = self.seat, None
        if seat is not None:
            return seat
        setting = self.setting
        admission = setting.services.admission
        return admission.seat(setting.scopes, action, self.head[1], self.lodger)

    @property
    def is_starting(self) -> bool:
        """Whether it has completed no step, nor has the child of a fan-out that it is part of."""
        is_at_entry = self.pending is None and (self.steps is None or not self.steps.visits)
        return is_at_entry and self.setting.begins_host

    async def wait(self, seconds: float) -> None:
        """Wait before another attempt, holding nothing: not even its place in flight.

        An action's next attempt takes that again, together with what else it needs.
        """
        stake = self._step_aside()
        if stake is not None:
            stake.returns = True
        try:
            await sleep(seconds)
            await checkpoint_if_cancelled()  # in the tick in which its time had come
        except BaseException:
            if stake is not None:
                stake.resume()
            raise

    def _step_aside(self) -> Stake | None:
        stake = self.lodger.make_stake()
        if stake is not None:
            stake.step_aside()
            # The rate of a fan-out counts starts of children. An action that is tried again by its
            # own ``retry`` is none unless it is the child's first step; see
            # test_a_retry_of_a_further_step_does_not_pay_the_rate_of_the_fan_out.
            stake.is_due = self.is_starting
        return stake

    def pause(self, seconds: float, seat: Seat | None) -> bool:
        """Let nothing more start for a while with the keys of an attempt, before it ends.

        Returns whether its limits have any.
        """
        return self.setting.services.admission.pause(seat, self.lodger, seconds)

    async def wait_for_later(self, seconds: float, *, is_paused: bool) -> None:
        """Hold nothing until an action that asked for it may be tried again.

        If its keys are paused, the next attempt waits for them as others do, and behind them: else
        one child that is refused again and again would keep all others with its key from starting.
        """
        if is_paused:
            self._step_aside()
        else:
            await self.wait(seconds)

    async def come_back(self) -> None:
        """Take its place in flight again after ``wait``, unless that is an action's to do."""
        stake = self.stake
        if stake is None or stake.is_held:
            return
        stake.is_due = True  # the child is tried again, at whichever step it stands
        if self.pending is None and any(
            act.name == self.step
            and isinstance(act, FunctionAction)
            and act.cache is None
            and bool(act.limits or self.setting.scopes)
            for act in self.setting.graph.acts
        ):
            return
        await self._retake_place()

    async def wait_aside(self, turn: Awaitable[None]) -> None:
        """Await ``turn``, which others must give, without a place in flight: they may wait for it.

        See test_a_suspect_that_waits_for_its_turn_holds_no_place.
        """
        lodger = self.lodger
        stake = lodger.make_stake()
        if stake is None or not stake.is_held:
            await turn
            return
        stake.step_aside()
        stake.returns = True
        try:
            await turn
            await lodger._retake_place()
        except BaseException:
            stake.resume()  # it is about to end, and ends in flight
            raise

    async def _retake_place(self) -> None:
        seat = self.setting.services.admission.place(self)
        try:
            await self.tell_waiting(seat)
            await seat.wait()
        except BaseException:
            seat.cancel()  # hooks were told when it was granted, or it waits still
            raise
