"""Circuit breakers: what keeps failing is skipped for a while. Imports states and errors.

Invariants:
- After ``failures`` in a row of one key nothing of it starts for ``cool_down`` seconds; then one
  probe does. If that succeeds all may again; if it fails, the next cool-down begins.
- Only ends that say something count: what was cancelled is no failure, and frees the probe's place.
  So does an end that the user's function can't judge.
- Keys that do not fail take no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, final

from shoal._errors.exceptions import BadResult, DefinitionError, brief
from shoal._state.functions import require_plain
from shoal._state.secrets import refuse_key
from shoal._state.state import State, make_state, refuse_awaitable

On = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
"""Which exceptions count: a class, several, or a plain function that tells."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """Skips the children of a fan-out whose key keeps failing: ``Each(breaker=Breaker(...))``.

    After so many failures in a row the circuit of a key is open: its children are not started but
    end as ``Skipped("breaker open: KEY")``, for ``cool_down`` seconds. Then it is half open: one
    child is started as a probe, others are skipped still. If the probe succeeds the circuit closes;
    if it fails, it is open again. What is learnt is kept for each runtime and fan-out, and what was
    skipped runs when the run is resumed. (M. Nygard, Release It!, 2007.)

    Args:
        by: A plain function of the state that a child would start from: its key, any hashable; by
            default the name of the act that it executes. So in a race each contestant has its own.
        failures: In a row, that open the circuit; at least 1.
        cool_down: Seconds that it stays open; above 0.
        on: The exceptions that count as failures: a class, several, or a plain function. Others
            count as successes: the other side works. What the function raises fails the child in
            place of its own error, and says nothing of the other side.

    Raises:
        DefinitionError: One of them is not what it must be.

    Examples:
        >>> Breaker(failures=3, cool_down=10.0)
        Breaker(failures=3, cool_down=10.0)
    """

    by: Callable[[Any], Hashable] | None = None
    failures: int = 5
    cool_down: float = 30.0
    on: On = Exception

    def __post_init__(self) -> None:
        """Refuse what could not work."""
        if self.by is not None:
            require_plain(self.by, "Breaker(by=...)")
        if type(self.failures) is not int or self.failures < 1:
            msg = f"Breaker(failures=...) takes a whole number of at least 1, not {self.failures!r}"
            raise DefinitionError(msg)
        if not isinstance(self.cool_down, int | float) or not 0 < self.cool_down < math.inf:
            msg = f"Breaker(cool_down=...) takes seconds, above 0, not {self.cool_down!r}"
            raise DefinitionError(msg)
        on: object = self.on
        if not isinstance(on, type | tuple):
            require_plain(on, "Breaker(on=...)")
            return
        kinds = cast("tuple[object, ...]", on if isinstance(on, tuple) else (on,))
        if not kinds or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
        ):
            msg = f"Breaker(on=...) takes exception classes, or a function of an error, not {on!r}"
            raise DefinitionError(msg)

    def counts(self, error: BaseException) -> bool:
        """Tell whether ``error`` is a failure of the other side.

        Raises:
            Exception: Whatever ``on``, if it is a function, raises.
            BadResult: It returned something to be awaited.
        """
        on = self.on
        if isinstance(on, type | tuple):
            return isinstance(error, on)
        answer: object = on(error)
        refuse_awaitable(answer, "Breaker(on=...)")
        return bool(answer)

    def __repr__(self) -> str:
        by = "" if self.by is None else f"by={getattr(self.by, '__qualname__', self.by)}, "
        return f"Breaker({by}failures={self.failures}, cool_down={self.cool_down})"


@final
@dataclass(slots=True)
class _Circuit:
    """What is known of one key that has failed lately."""

    failed: int = 0  # in a row
    open_until: float = -math.inf
    is_probing: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatistics:
    """How the circuits of a fan-out are: ``runtime.circuits(fan_out).statistics()``."""

    failing: int
    """Keys that have failed and not succeeded since."""
    open: tuple[Hashable, ...]
    """Keys whose circuit is open or half open."""
    skipped: int
    """Children that were skipped so far."""


@final
class Circuits:
    """The circuits of one fan-out, for all its executions in a runtime."""

    def __init__(self, breaker: Breaker, clock: Callable[[], float]) -> None:
        """Have all of them closed."""
        self.breaker: Breaker = breaker
        self._clock = clock
        self._failing: dict[Hashable, _Circuit] = {}
        self._skipped = 0

    def admit(self, key: Hashable) -> bool:
        """Tell whether a child of ``key`` may start; that it then does is counted on."""
        circuit = self._failing.get(key)
        if circuit is None or circuit.open_until == -math.inf:
            return True
        if circuit.is_probing or self._clock() < circuit.open_until:
            self._skipped += 1
            return False
        circuit.is_probing = True
        return True

    def hear(self, key: Hashable, end: BaseException | Literal["done", "cancelled"]) -> None:
        """Hear how a child of ``key`` ended that was admitted.

        Raises:
            Exception: What ``on``, if it is a function, raised.
        """
        circuit = self._failing.get(key)
        was_probing = circuit is not None and circuit.is_probing
        if circuit is not None:
            circuit.is_probing = False
        if end == "cancelled":
            return
        if not isinstance(end, BaseException) or not self.breaker.counts(end):
            self._failing.pop(key, None)
            return
        if circuit is None:
            circuit = self._failing[key] = _Circuit()
        circuit.failed += 1
        if was_probing or circuit.failed >= self.breaker.failures:
            circuit.open_until = self._clock() + self.breaker.cool_down

    def key(self, act: str, data: Mapping[str, object]) -> Hashable:
        """Find the key of a child that would execute ``act`` from the fields ``data``."""
        by = self.breaker.by
        return act if by is None else _key(by, make_state(data))

    def statistics(self) -> BreakerStatistics:
        """Say how they are."""
        opened = [key for key, one in self._failing.items() if one.open_until > -math.inf]
        return BreakerStatistics(
            failing=len(self._failing), open=tuple(opened), skipped=self._skipped
        )

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<Circuits of {self.breaker!r}: {len(now.open)} open, {now.skipped} skipped>"


def _key(by: Callable[[State], Hashable], state: State) -> Hashable:
    key = by(state)
    try:
        hash(key)
    except TypeError:
        msg = f"Breaker(by=...) returned {brief(key)}, which is not hashable; return a str, say"
        raise BadResult(msg) from None
    refuse_awaitable(key, "Breaker(by=...)")
    refuse_key(key, state._data, "Breaker(by=...)")
    return key
