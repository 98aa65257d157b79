"""Trying again: what is tried again, how often, and how long is waited in between.

Values and pure arithmetic; time and chance come from outside. Imports states and errors.

Invariants:
- A delay is never longer than the cap.
- A budget's retries are, over any span of time, at most its share of the first attempts, its floor,
  and what a window of them had left in hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import NoReturn, cast, final

from shoal._errors.arguments import is_positive
from shoal._errors.exceptions import DefinitionError
from shoal._errors.inspection import members
from shoal._state.functions import require_plain
from shoal._state.state import refuse_awaitable

On = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], object]
"""What is tried again: classes of exceptions, or a function that says so of one."""


@final
@dataclass(frozen=True, slots=True)
class Retry:
    """How often something that failed is tried again, and how long is waited in between.

    On an action it makes further attempts of that step; in ``Each(retry=...)`` of a child, which
    goes on at the step that failed: what it has completed stays. Between two attempts nothing is
    held: no slot of any ``Limits``, no thread, no place among the children in flight.

    The delay after the n-th failure is ``initial * factor ** (n - 1)``, at most ``cap``, less a
    random part of it, at most ``jitter``. So nobody waits longer than said, and what failed
    together does not come back together.

    Cancellation and KeyboardInterrupt are never tried again, nor is what ends the whole execution:
    a store or a guarding hook that failed.

    Args:
        attempts: How many in all, the first included: ``Retry(3)`` tries twice more.
        on: What is tried again: an exception class, a tuple of them, or a plain function of the
            exception that tells. An ``ExceptionGroup``, such as a fan-out raises, is tried again if
            that is true of every exception in it, at whatever depth.
        total: Seconds after the start of the first attempt when no further one is begun any more.
        initial: Seconds before the second attempt.
        factor: How much longer each further delay is than the one before.
        cap: Seconds that no delay exceeds.
        jitter: The share of a delay that is left to chance: 0, none, to 1, all of it.
        budget: Bounds the retries of all that share it, so that an outage doesn't multiply load.

    Raises:
        DefinitionError: One of them is out of range, and why.

    Examples:
        >>> failures = iter([TimeoutError(), TimeoutError()])
        >>> @action(writes=["answer"], retry=Retry(3, on=TimeoutError, initial=0.01))
        ... async def ask(context: Context) -> str:
        ...     for failure in failures:
        ...         raise failure
        ...     return f"said at attempt {context.attempt}"
        >>> Application(ask).run_sync().state["answer"]
        'said at attempt 3'
    """

    attempts: int = 3
    _: KW_ONLY
    on: On
    total: float | None = None
    initial: float = 0.1
    factor: float = 2.0
    cap: float = 5.0
    jitter: float = 0.5
    budget: RetryBudget | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if type(self.attempts) is not int or self.attempts < 1:
            _refuse(f"takes the attempts in all, a whole number of at least 1, not {self.attempts}")
        self._check_on()
        if self.total is not None and not is_positive(self.total):
            _refuse(f"(total=...) takes a number of seconds above 0, not {self.total!r}")
        for name, value in (("initial", self.initial), ("cap", self.cap)):
            if value != 0 and not is_positive(value):
                _refuse(f"({name}=...) takes a number of seconds, not {value!r}")
        if not is_positive(self.factor) or self.factor < 1:
            _refuse(f"(factor=...) takes a number of at least 1, not {self.factor!r}")
        if self.jitter != 0 and (not is_positive(self.jitter) or self.jitter > 1):
            _refuse(f"(jitter=...) takes a share of the delay, from 0 to 1, not {self.jitter!r}")
        if self.budget is not None and not isinstance(self.budget, RetryBudget):
            _refuse(f"(budget=...) takes a RetryBudget(...), not {self.budget!r}")

    def _check_on(self) -> None:
        given: object = self.on
        if isinstance(given, type | tuple):
            kinds = cast("tuple[object, ...]", given if isinstance(given, tuple) else (given,))
            for kind in kinds:
                if not isinstance(kind, type) or not issubclass(kind, BaseException):
                    _refuse(f"(on=...) takes exception classes, not {kind!r}")
                if not issubclass(kind, Exception):
                    _refuse(f"(on=...): {kind.__name__} ends a run, it is never tried again")
            if not kinds:
                _refuse("(on=()) would never try anything again; leave the retry out")
        elif not callable(given):
            _refuse(f"(on=...) takes exception classes, or a function of an error, not {given!r}")
        else:
            require_plain(given, "Retry(on=...)")

    def is_for(self, error: Exception) -> bool:
        """Tell whether ``error`` is tried again, as long as there are attempts left.

        Raises:
            Exception: Whatever ``on``, if it is a function, raises.
            BadResult: It returned something to be awaited.
        """
        on = self.on
        if isinstance(on, type | tuple) and isinstance(error, on):
            return True
        if isinstance(error, ExceptionGroup):
            group = cast("ExceptionGroup[Exception]", error)
            return all(map(self.is_for, cast("tuple[Exception, ...]", members(group))))
        if isinstance(on, type | tuple):
            return False
        answer = on(error)
        refuse_awaitable(answer, "Retry(on=...)")
        return bool(answer)

    def delay(self, failures: int, chance: float) -> float:
        """Return the seconds to wait after so many failures.

        Args:
            failures: At least 1.
            chance: A random number from 0 up to, but not, 1.
        """
        try:
            longest = min(self.cap, self.initial * self.factor ** (failures - 1))
        except OverflowError:  # after a thousand doublings
            longest = self.cap
        return longest * (1 - self.jitter * chance)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RetryBudget:
    """How many retries there may be for all first attempts together: a share of them.

    When a service fails altogether, retries by each caller multiply the load that it gets just
    then. A budget bounds that: it is shared by everything whose ``Retry`` has this very object, in
    all runs of a runtime. Where it is spent, what fails is not tried again, and its error has a
    note that says so.

    Each first attempt adds ``share`` of a retry, and time adds ``floor`` retries a second; what
    isn't used is gone after about ``window`` seconds. This is the token bucket of Finagle's
    ``RetryBudget`` and tower's ``Budget`` (gRPC's retry throttling, proposal A6, is a kin of it
    without a clock), with tokens that fade instead of expiring at once.

    Args:
        share: Retries for each first attempt, from 0.
        floor: Retries a second that are allowed besides, for who makes few attempts.
        window: Seconds in which what was not used fades.

    Raises:
        DefinitionError: One of them is out of range.

    Examples:
        >>> budget = RetryBudget(share=0.1)
        >>> Retry(5, on=ConnectionError, budget=budget).budget is budget
        True
    """

    share: float = 0.1
    floor: float = 1.0
    window: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, value in (("share", self.share), ("floor", self.floor)):
            if value != 0 and not is_positive(value):
                msg = f"RetryBudget({name}=...) takes a number from 0, not {value!r}"
                raise DefinitionError(msg)
        if not is_positive(self.window):
            msg = f"RetryBudget(window=...) takes a number of seconds above 0, not {self.window!r}"
            raise DefinitionError(msg)


@final
class Account:
    """What is in hand of a budget: a bucket that time fills, or drains, to floor times window.

    Its level after ``t`` seconds is ``reserve + (level - reserve) * exp(-t / window)``: one number
    and one moment, whatever came and went. Below the reserve it rises by at most ``floor`` a
    second, above it nothing is added.
    """

    __slots__ = ("_at", "_budget", "_level", "_reserve")

    def __init__(self, budget: RetryBudget, now: float) -> None:
        """Have the reserve in hand."""
        self._budget = budget
        self._reserve = budget.floor * budget.window
        self._level = self._reserve
        self._at = now

    def level(self, now: float) -> float:
        """Return how many retries are in hand at ``now``, which never goes back."""
        faded = math.exp((self._at - now) / self._budget.window)
        self._level = self._reserve + (self._level - self._reserve) * faded
        self._at = now
        return self._level

    def earn(self, now: float) -> None:
        """Hear of a first attempt."""
        self._level = self.level(now) + self._budget.share

    def spend(self, now: float) -> bool:
        """Take a retry, if there is one."""
        if self.level(now) < 1 - _ROUNDING:
            return False
        self._level -= 1
        return True


_ROUNDING = 1e-9
"""Ten tenths of a retry are one."""


def _refuse(why: str) -> NoReturn:
    msg = f"Retry{'' if why.startswith('(') else ' '}{why}"
    raise DefinitionError(msg)
