"""Circuit breakers: skip the children of a key that keeps failing, for a while.

Invariants:
- After ``failures`` in a row of one key, no child of it starts for ``cool_down`` seconds. Then one
  child starts as a probe. If it succeeds, all may start again; if it fails, the next cool-down
  begins.
- Only a success or a failure counts. A child that was cancelled, or whose failure the user's
  function can't judge, changes nothing; if it was the probe, another child may be.
- Keys that don't fail take no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from typing import Any, Literal, NamedTuple, cast, final

from shoal._errors.completion import hides
from shoal._errors.exceptions import BadResult, DefinitionError, brief
from shoal._state.functions import require_plain
from shoal._state.secrets import refuse_key
from shoal._state.state import State, make_state, refuse_awaitable

On = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
"""Which exceptions count as failures: a class, several, or a plain function of the exception."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """Skips the children of a fan-out whose key keeps failing: ``Each(breaker=Breaker(...))``.

    After ``failures`` in a row the circuit of a key is open: its children are not started, and end
    as ``Skipped("breaker open: KEY")``, for ``cool_down`` seconds. Then the circuit is half open:
    one child is started as a probe, and others are still skipped. If the probe succeeds, the
    circuit closes; if it fails, the circuit is open again. Circuits are kept for each runtime and
    fan-out. Skipped children run when the run is resumed. (M. Nygard, Release It!, 2007.)

    Args:
        by: A plain function of the state that a child would start from. It returns the child's key,
            any hashable. By default the key is the name of the act that the child executes, so
            in a race each contestant has a circuit of its own.
        failures: The failures in a row that open the circuit; at least 1.
        cool_down: The seconds that the circuit stays open; above 0.
        on: The exceptions that count as failures: a class, several, or a plain function of the
            exception. Others count as successes, because the service has answered. If the function
            raises, the child fails with that exception instead of its own, and the circuit stays as
            it is.

    Raises:
        DefinitionError: An argument has the wrong type or is out of range.

    Examples:
        >>> Breaker(failures=3, cool_down=10.0)
        Breaker(failures=3, cool_down=10.0)
    """

    by: Callable[[Any], Hashable] | None = None
    failures: int = 5
    cool_down: float = 30.0
    on: On = Exception

    def __post_init__(self) -> None:
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
        """Return whether ``error`` counts as a failure.

        Raises:
            Exception: Whatever ``on``, if it is a function, raises.
            BadResult: ``on`` returned an awaitable.
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
    """The state of one key that has failed since its last success."""

    failed: int = 0  # in a row
    open_until: float = -math.inf  # -inf: closed; past: half open
    is_probing: bool = False  # only while half open

    def state(self, now: float) -> Literal["closed", "open", "half open"]:
        """Return the state at a time."""
        if self.open_until == -math.inf:
            return "closed"
        return "half open" if self.is_probing or self.open_until <= now else "open"


@final
class CircuitState(NamedTuple):
    """The state of the circuit of one key."""

    key: Hashable
    state: Literal["closed", "open", "half open"]
    failed: int
    """How often it has failed in a row."""
    left: float
    """Seconds that it stays open, if it is."""


ORDER = ("open", "half open", "closed")
SOUGHT = 1000
"""Failing keys that a report looks at: it is made a few times per second."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatistics:
    """The circuits of a fan-out, from ``runtime.circuits(fan_out).statistics()``."""

    failing: int
    """The number of keys that have failed since their last success."""
    open: tuple[Hashable, ...]
    """The keys whose circuit is open or half open."""
    skipped: int
    """The number of children skipped so far."""


@hides("admit key on_end")
@final
class Circuits:
    """The circuits of one fan-out, for all its executions in a runtime."""

    def __init__(self, breaker: Breaker, clock: Callable[[], float]) -> None:
        # Neither is replaced: if a definition gets another breaker, the runtime makes new circuits.
        self.breaker: Breaker = breaker
        self._clock = clock
        self._failing: dict[Hashable, _Circuit] = {}  # a success removes a key
        # Only grows, also over circuits that have closed since.
        self._skipped = 0

    def admit(self, key: Hashable) -> bool:
        """Return whether a child of ``key`` may start; then pass its end to ``on_end``."""
        circuit = self._failing.get(key)
        if circuit is None or circuit.open_until == -math.inf:
            return True
        # Time alone closes no circuit: after the cool-down a probe must succeed.
        if circuit.is_probing or self._clock() < circuit.open_until:
            self._skipped += 1
            return False
        # Until `on_end`, which is called for each child that was admitted, also if it is cancelled
        # before its start. Else no further probe would ever start; see
        # test_cancelled_everywhere_no_probe_is_lost.
        circuit.is_probing = True
        return True

    def on_end(self, key: Hashable, end: BaseException | Literal["done", "cancelled"]) -> None:
        """Count the end of a child of ``key`` that was admitted.

        Raises:
            Exception: Whatever ``on``, if it is a function, raises.
        """
        circuit = self._failing.get(key)
        was_probing = circuit is not None and circuit.is_probing
        # Before the user's function, which may raise: the next child is the probe then. See
        # test_a_probe_that_cannot_be_judged_leaves_its_place_to_another.
        if circuit is not None:
            circuit.is_probing = False
        if end == "cancelled":  # that says nothing about the service
            return
        if not isinstance(end, BaseException) or not self.breaker.counts(end):
            # An error that doesn't count shows that the service answers. So the earlier failures
            # are forgotten, which count only in a row; and healthy keys take no memory.
            self._failing.pop(key, None)
            return
        if circuit is None:
            circuit = self._failing[key] = _Circuit()
        # Children that started before the circuit opened may fail while it is open. These failures
        # extend the cool-down: the service was still failing.
        circuit.failed += 1
        if was_probing or circuit.failed >= self.breaker.failures:
            circuit.open_until = self._clock() + self.breaker.cool_down

    def key(self, act: str, data: Mapping[str, object]) -> Hashable:
        """Return the key of a child that would execute ``act`` on the fields ``data``."""
        by = self.breaker.by
        # No state is made for the default, which most breakers have.
        return act if by is None else _key(by, make_state(data))

    def states(self, most: int) -> list[CircuitState]:
        """Return the circuits of keys that have failed, open ones first.

        Args:
            most: At most so many. They are sought among the thousand keys that have failed for
                the first time since their last success longest ago.
        """
        now = self._clock()
        found = [
            CircuitState(key, one.state(now), one.failed, one.open_until - now)
            for key, one in islice(self._failing.items(), SOUGHT)
        ]
        return nsmallest(most, found, key=lambda one: (ORDER.index(one.state), -one.failed))

    def statistics(self) -> BreakerStatistics:
        """Return the failing and open keys, and the number of skipped children."""
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
        # Tried here, where the message can say which function returned the key, and not in a dict
        # later.
        hash(key)
    except TypeError:
        msg = f"Breaker(by=...) returned {brief(key)}, which is not hashable; return a str, say"
        raise BadResult(msg) from None
    refuse_awaitable(key, "Breaker(by=...)")  # a coroutine is hashable
    refuse_key(key, state._data, "Breaker(by=...)")
    return key
