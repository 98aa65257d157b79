"""How many slots a limit has, as its attempts show: the policies of ``adapt=``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

from shoal._errors.exceptions import DefinitionError, RetryLater, brief
from shoal._state.functions import require_plain
from shoal._state.state import refuse_awaitable

from .numbers import check_count, check_number

OVERLOAD = (429, 503, 529)
"""HTTP statuses of an overloaded server.

Too Many Requests, Service Unavailable, and 529, which some APIs send for "overloaded".
"""


@final
class Ended(NamedTuple):
    """The end of an attempt that held a slot; an ``Adaptive`` policy receives it."""

    error: BaseException | None
    """The exception that the attempt raised; None if it succeeded."""
    # From the grant on: the wait for slots is not in it.
    seconds: float
    """How long the attempt ran."""
    started_at: float
    """When it started, by the runtime's clock."""
    now: float
    """When it ended."""
    # Read before the slots of this attempt are released; see `FairScheduler.adapt`.
    in_use: int
    """Slots in use while it ran, its own included."""


class Adaptive(Protocol):
    """A policy that adjusts the number of slots as attempts end.

    An exception raised by ``after`` replaces the result of the attempt that has ended, or of the
    child if the limits are those of a fan-out. A cancelled attempt stays cancelled. The number of
    slots stays as it was.
    """

    def after(self, n: float, changed_at: float, ended: Ended) -> float:
        """Return the number of slots after an attempt has ended; below 1 counts as 1.

        Args:
            n: The number before. It may have a fraction; only whole slots are granted.
            changed_at: When the number was last lowered.
            ended: The end of the attempt.

        Returns a finite number.
        """
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AIMD:
    """Additive increase, multiplicative decrease: how TCP finds the capacity of a network.

    Each attempt that succeeds while all slots are in use adds a fraction of a slot, so that a full
    round of attempts adds ``increase``. An attempt that shows overload multiplies the number by
    ``decrease``, once for all attempts that were running then (V. Jacobson, Congestion Avoidance
    and Control, 1988).

    Args:
        least: The fewest slots.
        most: The most slots; None: unlimited.
        increase: The slots that a round of successful attempts adds.
        decrease: The factor by which overload multiplies the number, above 0 and below 1.
        slow: An attempt that takes more seconds than this shows overload; None: none does.
        overload: A plain function of an exception that returns whether it shows overload. By
            default a timeout, ``RetryLater``, and an exception with an HTTP status of 429, 503 or
            529 do.

    Raises:
        DefinitionError: An argument has the wrong type or is out of range.
    """

    # Not 0: with no slot, nothing would end that could raise the number again.
    least: int = 1
    most: int | None = None
    # One slot a round up and half the slots down, as in TCP. A number that grows by steps and falls
    # by a factor settles at equal shares if several programs use one server (D.-M. Chiu, R. Jain,
    # 1989).
    increase: float = 1.0
    decrease: float = 0.5
    slow: float | None = None
    overload: Callable[[BaseException], bool] | None = None

    def __post_init__(self) -> None:
        check_count("AIMD(least=...)", self.least)
        if self.most is not None:
            check_count("AIMD(most=...)", self.most)
        if self.most is not None and self.most < self.least:
            msg = f"AIMD(least={self.least}, most={self.most}): most= must not be below least="
            raise DefinitionError(msg)
        check_number("AIMD(increase=...)", self.increase)
        if not isinstance(self.decrease, int | float) or not 0 < self.decrease < 1:
            msg = f"AIMD takes a decrease between 0 and 1, not {self.decrease!r}"
            raise DefinitionError(msg)
        if self.slow is not None:
            check_number("AIMD(slow=...)", self.slow)
        if self.overload is not None:
            require_plain(self.overload, "AIMD(overload=...)")

    def after(self, n: float, changed_at: float, ended: Ended) -> float:
        """Return the number of slots after an attempt has ended; see ``Adaptive``.

        Raises:
            Exception: Whatever ``overload`` raises.
            BadResult: ``overload`` returned an awaitable.
        """
        # Before the error: an answer that came too late shows overload even if it was a good one.
        slow = self.slow is not None and ended.seconds > self.slow
        if slow or (ended.error is not None and self._shows_overload(ended.error)):
            # An attempt that started before the last decrease tells nothing about the number since.
            # So one overload lowers the number once, though all that ran meanwhile may fail; see
            # test_aimd_by_its_numbers.
            lower = n if ended.started_at < changed_at else n * self.decrease
            return max(float(self.least), lower)
        # While slots are free, a success says nothing about a larger number.
        if ended.error is None and ended.in_use >= int(n):
            n += self.increase / n  # n such attempts are a round
        return n if self.most is None else min(n, float(self.most))

    def _shows_overload(self, error: BaseException) -> bool:
        if self.overload is None:
            return is_overload(error)
        shows: object = self.overload(error)
        refuse_awaitable(shows, "AIMD(overload=...)")
        return bool(shows)


def is_overload(error: BaseException) -> bool:
    """Return whether an exception shows that a server is overloaded."""
    if isinstance(error, TimeoutError | RetryLater):
        return True
    # httpx and requests: error.response.status_code. aiohttp: error.status.
    response: object = getattr(error, "response", error)
    status: object = getattr(response, "status_code", getattr(response, "status", None))
    return status in OVERLOAD


def check_adapt(adapt: object) -> None:
    """Check a user's ``adapt=``.

    Raises:
        DefinitionError: It is no object with a plain method ``after``.
    """
    after: object = getattr(adapt, "after", None)
    if isinstance(adapt, type) or not callable(after):
        hint = f"; make one: {adapt.__name__}()" if isinstance(adapt, type) else ""
        msg = (
            f"Limits(adapt=...) takes AIMD(), or an object with a method "
            f"after(n, changed_at, ended), not {brief(adapt)}{hint}"
        )
        raise DefinitionError(msg)
    require_plain(after, "Limits(adapt=...).after")
