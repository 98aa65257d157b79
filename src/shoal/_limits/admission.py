"""Admission: what may start, and when, as the limits of a runtime allow. Binds the other limits.

The way of an attempt: its *limiters* (`_limiter`: what limits it, by owner) have *gates* (`_gate`:
slots and a rate, for one key). It takes a *seat* (`_seat`) at all of them together, or waits for
that in the *queue* (`_queue`). The children of a fan-out come in through an entrance of their own,
which is made of the same parts, above runs (`_entrance`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import random
from typing import final

from shoal._concurrency.backend import Clock, Waiter

from .limiters import Limiter, Limiters
from .limits import Limits
from .permits import HeldPermits, Seat, Stake
from .scheduler import Queue
from .shared_rate_client import StartTask
from .timers import SetAlarm


@final
class Admission:
    """Lets attempts start, as the limits of a runtime allow."""

    def __init__(
        self,
        waiter: Callable[[], Waiter],
        clock: Clock,
        alarm: SetAlarm | None = None,
        start_task: StartTask | None = None,
        chance: Callable[[], float] = random,
        *,
        threads: int | None = None,
        takes_foreign: bool = True,
    ) -> None:
        """Admit everybody at first.

        Args:
            waiter: Makes what an attempt waits for.
            clock: The loop's.
            alarm: Has a function called at a time; None: nothing but slots is waited for.
            start_task: Starts a task; None: nothing is waited for that other processes share.
            chance: Makes random numbers from 0 up to, but not, 1.
            threads: Worker threads there are; None: any number.
            takes_foreign: Whether rates that are not ours work here: they are made for asyncio.
        """
        self.queue: Queue = Queue(waiter, clock, alarm, start_task, chance)
        self.limiters: Limiters = Limiters(self.queue, threads, takes_foreign=takes_foreign)

    def limiter(self, owner: object, limits: Limits, name: str = "") -> Limiter:
        """Find what counts the limits that stand on ``owner``; see ``Limiters.of``."""
        return self.limiters.of(owner, limits, name)

    def seat(
        self,
        scopes: tuple[Limiter, ...],
        data: Mapping[str, object],
        holder: HeldPermits | None = None,
        *,
        owner: object,
        limits: Limits | None,
        in_thread: bool,
    ) -> Seat | None:
        """Take a seat for an attempt, granted at once where there is room.

        Args:
            scopes: What limits the run that the attempt belongs to.
            data: The fields of the state that the attempt starts from.
            holder: What the run holds; the child of a fan-out, if it is part of one.
            owner: What the limits of the action are counted by: its definition.
            limits: Those limits, if the action has any.
            in_thread: Whether the attempt needs a worker thread.

        Returns None where nothing limits the attempt.
        """
        stake = None if holder is None else holder.stake
        limiters = self.limiters.of_attempt(scopes, owner, limits)
        thread = self.limiters.threads if in_thread else None
        if not limiters and thread is None and (stake is None or stake.is_held):
            return None
        needed, costs = self.limiters.gates(limiters, data)
        return Seat(self.queue, needed, costs, holder, stake=stake, thread=thread)

    def place(self, holder: HeldPermits) -> Seat:
        """Take again what a child holds in flight, which has stepped aside."""
        return Seat(self.queue, (), None, holder, stake=holder.stake)

    def charge(self, seat: Seat | None, stake: Stake | None, actual: float) -> None:
        """Correct what an attempt was charged, and its child, wherever ``cost=`` said it."""
        for held in (seat, stake):
            if held is not None:
                self.queue.charge(held, actual)

    def pause(self, seat: Seat | None, holder: HeldPermits, seconds: float) -> bool:
        """Let nothing start for a while with the keys of an attempt.

        These are those of its action, application and runtime, of the child that ``holder`` is of,
        and of the children which that is part of. Returns whether they keep the next attempt
        waiting: whether the first two have any. Those further up only keep others.
        """
        until = self.queue.clock() + seconds
        paused = [
            self.queue.pause(held, until) for held in (seat, holder.stake) if held is not None
        ]
        above = holder.above
        while above is not None:
            if above.stake is not None:
                self.queue.pause(above.stake, until)
            above = above.above
        return any(paused)

    def adapt(self, held: Seat | Stake, error: BaseException | None) -> None:
        """Hear how something ended, before it gives back what it holds.

        Raises:
            Exception: What a user's policy raised that was told.
        """
        self.queue.adapt(held, error)

    def close(self) -> None:
        """Look at the clock no more, and give back what is held of shared rates."""
        self.queue.close()

    def __repr__(self) -> str:
        return f"<Admission, {self.queue}>"
