"""Retries: which failures are tried again, how often, and after which delay.

Values and pure arithmetic: time and random numbers are arguments.

Invariants:
- A delay is never longer than ``cap``.
- Over any span of time, the retries of a budget are at most ``share`` of the first attempts, plus
  ``floor`` a second, plus what was left over from one window before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import NoReturn, cast, final

from shoal._errors.arguments import is_positive
from shoal._errors.exceptions import DefinitionError
from shoal._errors.inspection import members
from shoal._errors.misplaced import says_where
from shoal._state.functions import require_plain
from shoal._state.state import refuse_awaitable

On = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], object]
"""Which failures are tried again: classes of exceptions, or a function of the exception."""


@says_where
@final
@dataclass(frozen=True, slots=True)
class Retry:
    """Which failures are tried again, how often, and after which delay.

    On an action, a failed step is attempted again. In ``Each(retry=...)``, a failed child continues
    at the step that failed; steps that it has completed stay. Between two attempts nothing is held:
    no slot of any ``Limits``, no thread, no place among the children in flight.

    The delay after the n-th failure is ``initial * factor ** (n - 1)``, at most ``cap``, minus a
    random part of it, at most ``jitter``. So no delay is longer than configured, and attempts that
    failed together are not repeated together.

    Cancellation and KeyboardInterrupt are never tried again, nor is a failure that ends the whole
    execution: of the store, or of a guarding hook.

    Args:
        attempts: The number of attempts, the first included: ``Retry(3)`` tries twice more.
        on: Which failures are tried again: an exception class, a tuple of them, or a plain function
            that returns whether an exception is. An ``ExceptionGroup``, such as a fan-out raises,
            is tried again if every exception in it is, at whatever depth.
        total: Seconds after the start of the first attempt during which further attempts may begin.
        initial: Seconds before the second attempt.
        factor: The factor from each delay to the next.
        cap: The longest delay in seconds.
        jitter: The share of a delay that is random, from 0 (none) to 1 (all of it).
        budget: A bound on the retries of all actions that share it, so that an outage doesn't
            multiply the load.

    Raises:
        DefinitionError: An argument has the wrong type or is out of range; the message says why.

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

    # Chosen numbers: by default a failure is retried twice, after at most 0.1 and 0.2 seconds.
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
        if type(self.attempts) is not int or self.attempts < 1:
            _refuse(
                f"takes the number of attempts, a whole number of at least 1, not {self.attempts}"
            )
        self._check_on()
        if self.total is not None and not is_positive(self.total):
            _refuse(f"(total=...) takes a number of seconds above 0, not {self.total!r}")
        for name, value in (("initial", self.initial), ("cap", self.cap)):
            if value != 0 and not is_positive(value):
                _refuse(f"({name}=...) takes a number of seconds, not {value!r}")
        if not is_positive(self.factor) or self.factor < 1:
            _refuse(f"(factor=...) takes a number of at least 1, not {self.factor!r}")
        # 0 is allowed, for tests that count on exact delays.
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
        """Return whether ``error`` is tried again, as long as attempts are left.

        Raises:
            Exception: Whatever ``on``, if it is a function, raises.
            BadResult: ``on`` returned an awaitable.
        """
        on = self.on
        # Before groups are looked into, so that `on=ExceptionGroup` means the group itself.
        if isinstance(on, type | tuple) and isinstance(error, on):
            return True
        # A function receives the exceptions in a group, not the group. See
        # test_groups_are_looked_into.
        if isinstance(error, ExceptionGroup):
            group = cast("ExceptionGroup[Exception]", error)
            return all(map(self.is_for, cast("tuple[Exception, ...]", members(group))))
        if isinstance(on, type | tuple):
            return False
        answer = on(error)
        refuse_awaitable(answer, "Retry(on=...)")
        return bool(answer)

    def delay(self, failures: int, chance: float) -> float:
        """Return the delay in seconds before the next attempt.

        Args:
            failures: The number of failures so far; at least 1.
            chance: A random number in [0, 1).
        """
        try:
            longest = min(self.cap, self.initial * self.factor ** (failures - 1))
        except OverflowError:  # a float ends at 2 ** 1024: a thousand doublings
            longest = self.cap
        # Subtracted, not added, so that `cap` bounds the delay with any jitter.
        return longest * (1 - self.jitter * chance)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RetryBudget:
    """Bounds all retries together to a share of all first attempts.

    When a service is down, the retries of all callers multiply the load on it. A budget bounds
    that. It is shared by every ``Retry`` that has this very object, in all runs of a runtime. Once
    the budget is spent, failures are not tried again, and their errors have a note that says so.

    Each first attempt adds ``share`` of a retry, and time adds ``floor`` retries a second. Retries
    that aren't used fade within about ``window`` seconds. This is the token bucket of Finagle's
    ``RetryBudget`` and tower's ``Budget``, with tokens that fade instead of expiring at once.
    (gRPC's retry throttling, proposal A6, is similar, without a clock.)

    Args:
        share: Retries for each first attempt, from 0.
        floor: Retries a second that are allowed in addition, for programs with few attempts.
        window: Seconds in which unused retries fade.

    Raises:
        DefinitionError: An argument is out of range.

    Examples:
        >>> budget = RetryBudget(share=0.1)
        >>> Retry(5, on=ConnectionError, budget=budget).budget is budget
        True
    """

    # Chosen numbers, below those of Finagle, which allows a fifth and 10 retries a second, and has
    # the same window.
    share: float = 0.1
    floor: float = 1.0
    window: float = 10.0

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("floor", self.floor)):
            if value != 0 and not is_positive(value):
                msg = f"RetryBudget({name}=...) takes a number from 0, not {value!r}"
                raise DefinitionError(msg)
        if not is_positive(self.window):
            msg = f"RetryBudget(window=...) takes a number of seconds above 0, not {self.window!r}"
            raise DefinitionError(msg)


@final
class Account:
    """The balance of a budget in one runtime: retries that may be spent.

    Time moves the level to the reserve, ``floor * window``: after ``t`` seconds it is
    ``reserve + (level - reserve) * exp(-t / window)``. So one number and one time are all that is
    kept. Below the reserve, the level rises by at most ``floor`` a second; above it, it only fades.
    """

    __slots__ = ("_at", "_budget", "_level", "_reserve", "refused")

    def __init__(self, budget: RetryBudget, now: float) -> None:
        self._budget = budget
        # Full at first, so that a program that has just started may retry: see
        # test_a_budget_is_full_again_in_another_runtime.
        self._reserve = budget.floor * budget.window
        self._level = self._reserve
        self._at = now
        self.refused: int = 0
        """How many retries were refused so far."""

    def level(self, now: float) -> float:
        """Return how many retries may be spent at ``now``, which never decreases."""
        # At most 1, because `now` never decreases; so the level moves towards the reserve and not
        # away.
        faded = math.exp((self._at - now) / self._budget.window)
        self._level = self._reserve + (self._level - self._reserve) * faded
        self._at = now
        return self._level

    def earn(self, now: float) -> None:
        """Add the share of a first attempt."""
        # Faded up to now before the share is added, so that what is new does not fade for the time
        # before it.
        self._level = self.level(now) + self._budget.share

    def spend(self, now: float) -> bool:
        """Spend a retry; return False if there is none."""
        if self.level(now) < 1 - _ROUNDING:
            self.refused += 1
            return False
        self._level -= 1  # no lower than 0, but for the rounding
        return True


_ROUNDING = 1e-9
"""Tolerated below 1: ten shares of 0.1 add up to slightly less than 1 in floats.

See test_ten_first_attempts_make_up_for_one_retry.
"""


def _refuse(why: str) -> NoReturn:
    msg = f"Retry{'' if why.startswith('(') else ' '}{why}"
    raise DefinitionError(msg)
